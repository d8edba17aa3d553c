"""Numbers in wedges: the upright one counts one, the corner counts ten, and an empty place is a gap."""

from __future__ import annotations

from sexagesimal.numbers import places, value

ONE, TEN, GAP = "\N{CUNEIFORM SIGN DISH}", "\N{CUNEIFORM SIGN U}", "\N{CUNEIFORM PUNCTUATION SIGN OLD ASSYRIAN WORD DIVIDER}"
BETWEEN = "  "


def wedges(number: int) -> str:
    """The places of a number, two spaces between them."""
    return BETWEEN.join(TEN * (place // 10) + ONE * (place % 10) or GAP for place in places(number))


def count(text: str) -> int:
    """The number that these wedges write."""
    digits = []
    for group in text.split(BETWEEN):
        tens, ones = group.count(TEN), group.count(ONE)
        if group not in (GAP, TEN * tens + ONE * ones) or not group:
            raise ValueError(f"{group!r} is not a place written in wedges")
        digits.append(10 * tens + ones)
    return value(digits)
