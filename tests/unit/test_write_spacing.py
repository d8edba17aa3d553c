"""How fast GitHub is written to, by one bot and by several that share its limits."""

from __future__ import annotations

import pytest

from gibil_bot.github.api.rate_limit import Spacing


def sent(spacings: list[Spacing], seconds: int) -> int:
    """Return how many writes are sent in that time, if each bot always has one to send."""
    number = 0
    for second in range(seconds):
        for spacing in spacings:
            while spacing.delay_s(1, float(second)) == 0:
                spacing.take(1, float(second))
                number += 1
    return number


@pytest.mark.parametrize("bots", [1, 2, 3, 10])
def test_bots_together_stay_within_the_rate_and_the_burst(bots: int) -> None:
    spacings = [Spacing(burst=40, per_s=1.5) for _ in range(bots)]
    for spacing in spacings:
        spacing.bots = bots
    assert sent(spacings, 1) <= 40 + bots
    assert sent([Spacing(burst=40, per_s=1.5)], 600) - bots <= sent(spacings, 600) + 40 <= 600 * 1.5 + 80 + 2 * bots


def test_a_bot_that_is_alone_again_has_the_whole_rate() -> None:
    spacing = Spacing(burst=10, per_s=2.0)
    spacing.bots = 4
    assert sent([spacing], 1) == 3
    spacing.bots = 1
    assert spacing.delay_s(1, 100.0) == 0
    assert sent([spacing], 100) > 150
