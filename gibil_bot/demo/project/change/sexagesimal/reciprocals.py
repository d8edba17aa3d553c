"""One divided by a number, where that ends: the tables every scribe knew by heart."""

from __future__ import annotations

from sexagesimal.numbers import BASE

PRIMES = (2, 3, 5)
"""Of sixty. A number made of these alone is regular: its reciprocal ends."""


def is_regular(number: int) -> bool:
    if number < 1:
        raise ValueError("only numbers above zero have a reciprocal")
    for prime in PRIMES:
        while number % prime == 0:
            number //= prime
    return number == 1


def reciprocal(number: int) -> list[int]:
    """The places behind the point: 1/8 is [7, 30]."""
    if not is_regular(number):
        raise ValueError(f"1/{number} does not end in places of sixty")
    if number == 1:
        return [1]
    found, rest = [], 1
    while rest:
        place, rest = divmod(rest * BASE, number)
        found.append(place)
    return found
