"""When a machine expires: at its expiry by the clock, or when its time to live has passed, whichever comes first.

The expiry is a time of day, because it is shown to people and other processes. The time to live is also measured by a clock
that can't be set and continues while the host sleeps (CLOCK_BOOTTIME, clock_gettime(2)), so that setting the clock back doesn't
extend it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _now() -> datetime:
    return datetime.now(UTC)


class Expiry:
    """The time to live counts from the construction. `now` and `boot_s` are the two clocks."""

    def __init__(
        self, expires_at: datetime, *, now: Callable[[], datetime] = _now, boot_s: Callable[[], float] = _boot_s
    ) -> None:
        self._now, self._boot_s = now, boot_s
        self._expires_at = expires_at
        self._deadline_s = boot_s() + (expires_at - now()).total_seconds()

    def left_s(self) -> float:
        """Return the seconds until the expiry; 0 or less if it has expired."""
        return min((self._expires_at - self._now()).total_seconds(), self._deadline_s - self._boot_s())
