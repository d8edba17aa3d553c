"""Ranges of versions as npm and Composer write them: `^18.17 || >=20.5`, `1.2.3 - 2.3`, `~8.1.0`, `22.x`.

Rules: node-semver's README ("Ranges") and Composer's documentation ("Versions and constraints"). A pre-release
counts as its release.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

NEWEST = 999_999
"""Stands for the newest minor or patch version."""
_LONGEST = 500

Version = tuple[int, int, int]
Dialect = Literal["npm", "composer"]

_PART = r"(\d{1,6}|[xX*])"
_PARTIAL = (
    rf"[vV=]*{_PART}(?:\.{_PART})?(?:\.{_PART})?(?:\.(?:\d{{1,9}}|\*))?(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?(?:@\w+)?"
)
_COMPARATOR = re.compile(rf"(>=|<=|<|>|!=|==?|\^|~>?|)\s*{_PARTIAL}(?=\s|,|$)")
_HYPHEN = re.compile(rf"\s*{_PARTIAL}\s+-\s+{_PARTIAL}\s*")


@dataclass(frozen=True, slots=True)
class _Interval:
    """`low` inclusive, `high` exclusive; no `high`: without an upper bound."""

    low: Version = (0, 0, 0)
    high: Version | None = None

    def holds(self, version: Version) -> bool:
        return self.low <= version and (self.high is None or version < self.high)


@dataclass(frozen=True, slots=True)
class Range:
    """Alternatives, of each of which all intervals have to hold."""

    alternatives: tuple[tuple[_Interval, ...], ...]

    def holds(self, version: Version) -> bool:
        return any(all(interval.holds(version) for interval in alternative) for alternative in self.alternatives)

    @property
    def any_version(self) -> bool:
        return any(all(interval == _Interval() for interval in alternative) for alternative in self.alternatives)

    def first_major(self, majors: Iterable[int]) -> str:
        """Return the first of the major versions whose newest release is in the range."""
        return next((str(major) for major in majors if self.holds((major, NEWEST, NEWEST))), "")

    def first_minor(self, minors: Iterable[tuple[int, int]]) -> str:
        """Return the first of the (major, minor) versions whose newest release is in the range."""
        return next((f"{major}.{minor}" for major, minor in minors if self.holds((major, minor, NEWEST))), "")

    def prefix(self, majors: Iterable[int]) -> str:
        """Return `first_major`, else a longer beginning of a version in the range (`22.3` for `~22.3.1`), else nothing."""
        if found := self.first_major(majors):
            return found
        lows = sorted(
            {max(interval.low for interval in alternative) for alternative in self.alternatives if alternative}, reverse=True
        )
        for major, minor, patch in lows:
            if (major, minor, patch) == (0, 0, 0):
                continue
            for version, text in (
                ((major, NEWEST, NEWEST), f"{major}"),
                ((major, minor, NEWEST), f"{major}.{minor}"),
                ((major, minor, patch), f"{major}.{minor}.{patch}"),
            ):
                if self.holds(version):
                    return text
        return ""


def parse_range(text: str, dialect: Dialect = "npm") -> Range | None:
    """Return the range; None if it isn't one."""
    if len(text) > _LONGEST:
        return None
    alternatives = []
    for part in re.split(r"\|\|?", text):
        intervals = _alternative(part, dialect)
        if intervals is None:
            return None
        alternatives.append(tuple(intervals))
    return Range(tuple(alternatives))


def _alternative(text: str, dialect: Dialect) -> list[_Interval] | None:
    if hyphen := _HYPHEN.fullmatch(text):
        groups = hyphen.groups()
        return [_Interval(_low(groups[:3])), _Interval(high=_after(groups[3:6]))]
    intervals: list[_Interval] = []
    position = 0
    while position < len(text):
        if text[position] in " ,\t":
            position += 1
            continue
        found = _COMPARATOR.match(text, position)
        if found is None:
            return None
        operator, *parts = found.groups()
        if operator != "!=":
            intervals.append(_interval(operator, tuple(parts), dialect))
        position = found.end()
    return intervals or [_Interval()]


def _numbers(parts: tuple[str | None, ...]) -> list[int]:
    """Return the numbers before the first missing one or wildcard."""
    numbers: list[int] = []
    for part in parts:
        if part is None or not part.isdecimal():
            break
        numbers.append(int(part))
    return numbers


def _low(parts: tuple[str | None, ...]) -> Version:
    major, minor, patch, *_ = [*_numbers(parts), 0, 0, 0]
    return major, minor, patch


def _after(parts: tuple[str | None, ...]) -> Version | None:
    """Return the first version after all that begin with the given parts."""
    numbers = _numbers(parts)
    match numbers:
        case [major]:
            return major + 1, 0, 0
        case [major, minor]:
            return major, minor + 1, 0
        case [major, minor, patch]:
            return major, minor, patch + 1
        case _:
            return None


def _interval(operator: str, parts: tuple[str | None, ...], dialect: Dialect) -> _Interval:
    numbers, low = _numbers(parts), _low(parts)
    if not numbers:
        return _Interval()
    match operator:
        case ">=":
            return _Interval(low)
        case ">":
            return _Interval(_after(parts) or low)
        case "<":
            return _Interval(high=low)
        case "<=":
            return _Interval(high=_after(parts))
        case "^":
            return _Interval(low, _caret(numbers))
        case "~" | "~>":
            # Composer's ~1.2 reaches to 2.0, npm's to 1.3
            kept = len(numbers) - 1 if dialect == "composer" else min(2, len(numbers))
            return _Interval(low, _after(tuple(str(number) for number in numbers[: max(1, kept)])))
        case _:
            return _Interval(low, _after(parts))


def _caret(numbers: list[int]) -> Version | None:
    """Return the first version with another leftmost number that isn't zero."""
    for index, number in enumerate(numbers):
        if number != 0:
            return _after(tuple(str(part) for part in numbers[: index + 1]))
    return _after(tuple(str(number) for number in numbers))
