"""Formats numbers, durations and untrusted text for people, and suggests corrections of misspelled words."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from decimal import Decimal  # importing it takes milliseconds


def duration(seconds: float) -> str:
    """Return a measured time: 0.4 s, 12 s, 1 min 12 s, 2 h 3 min."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def precise_duration(seconds: float) -> str:
    """Return a measured time with its milliseconds: 412 ms, 1.23 s."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def duration_setting(seconds: float) -> str:
    """Return a time in its largest whole unit, as in settings and workflow files: 24h, 90m, 45s."""
    whole = int(seconds)
    for unit, size in (("h", 3600), ("m", 60)):
        if whole and whole % size == 0:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def ordinal(number: int) -> str:
    """Return 1st, 2nd, 3rd, 11th."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def dollars(amount: Decimal) -> str:
    """Return 2.00 USD; small amounts with two significant digits, as in 0.0042 USD."""
    if not amount or 10 * amount >= 1:
        return f"{amount:.2f} USD"
    digits = f"{amount:.{min(9, 1 - amount.adjusted())}f}"
    return f"{digits[:4]}{digits[4:].rstrip('0')} USD"


def megabytes(number: int) -> str:
    """Return a number of bytes in MB: 1.2 MB, 340 MB."""
    return f"{number / 1024**2:.0f} MB" if number >= 10 * 1024**2 else f"{number / 1024**2:.1f} MB"


def visible(text: str) -> str:
    """Return untrusted text with U+FFFD in place of unprintable characters, which may control a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def without_hidden(text: str) -> str:
    """Return text without the characters that no reader sees and programs read: control and format characters, private use,
    and the selectors and tags that can encode other text. Newlines and tabs stay, and joiners within words and emoji.
    """
    return "".join(
        sign
        for index, sign in enumerate(text)
        if (sign.isprintable() and not "\U000e0100" <= sign <= "\U000e01ef")
        or sign in "\n\t"
        or (sign in "\u200c\u200d" and _joins(text, index))
    )


def _joins(text: str, index: int) -> bool:
    """Return whether both neighbours of a joiner are visible characters of a script or emoji that uses joiners."""
    around = (text[index - 1 : index], text[index + 1 : index + 2])
    return all(sign and not sign.isascii() and sign.isprintable() for sign in around)


def count(number: int, noun: str) -> str:
    """Return 1 task, 2,000 tasks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(word: str, choices: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)`; empty if no choice is within two typing errors (one in words of up to four letters)."""
    word = word.lower()
    most = 2 if len(word) > 4 else 1
    near = [
        (distance, choice)
        for choice in choices
        if abs(len(choice) - len(word)) <= most and (distance := _typing_errors(word, choice.lower())) <= most
    ]
    return f" (did you mean {min(near)[1]!r}?)" if near else ""


def _typing_errors(left: str, right: str) -> int:
    """Return the optimal string alignment distance: letters to insert, remove, replace, or swap with their neighbour.

    Words of more than 100 letters aren't compared, because the work grows with the square of the length.
    """
    if len(left) > 100 or len(right) > 100:
        return 100
    before_last: list[int] = []
    last = list(range(len(right) + 1))
    for row, letter in enumerate(left, start=1):
        here = [row]
        for column, other in enumerate(right, start=1):
            best = min(last[column] + 1, here[-1] + 1, last[column - 1] + (letter != other))
            if row > 1 and column > 1 and letter == right[column - 2] and left[row - 2] == other:
                best = min(best, before_last[column - 2] + 1)
            here.append(best)
        before_last, last = last, here
    return last[-1]
