"""Whole numbers and their places of sixty, the most significant first."""

from __future__ import annotations

BASE = 60


def places(number: int) -> list[int]:
    """4000 is [1, 6, 40]; zero is [0]."""
    if number < 0:
        raise ValueError("there were no numbers below zero")
    found = []
    while True:
        number, place = divmod(number, BASE)
        found.append(place)
        if number == 0:
            return found[::-1]


def value(digits: list[int]) -> int:
    """[1, 6, 40] is 4000."""
    if not digits:
        raise ValueError("a number has at least one place")
    number = 0
    for digit in digits:
        if not 0 <= digit < BASE:
            raise ValueError(f"{digit} does not fit into one place")
        number = number * BASE + digit
    return number


def write(number: int) -> str:
    """4000 is "1,6,40"."""
    return ",".join(str(place) for place in places(number))


def read(text: str) -> int:
    """ "1,6,40" is 4000."""
    try:
        digits = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{text!r} is not a list of places such as 1,6,40") from None
    return value(digits)
