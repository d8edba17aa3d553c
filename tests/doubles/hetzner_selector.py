"""Hetzner's label selectors: `k`, `!k`, `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, joined by commas."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_KEY = r"(?P<key>[A-Za-z0-9](?:[A-Za-z0-9._/-]*[A-Za-z0-9])?)"
_TERMS: tuple[tuple[str, Callable[[re.Match[str], Mapping[str, str]], bool]], ...] = (
    (rf"{_KEY}\s+in\s+\((?P<set>[^)]*)\)", lambda m, labels: labels.get(m["key"]) in _set(m)),
    (rf"{_KEY}\s+notin\s+\((?P<set>[^)]*)\)", lambda m, labels: labels.get(m["key"]) not in _set(m)),
    (rf"{_KEY}\s*!=\s*(?P<value>[A-Za-z0-9._-]*)", lambda m, labels: labels.get(m["key"]) != m["value"]),
    (rf"{_KEY}\s*==?\s*(?P<value>[A-Za-z0-9._-]*)", lambda m, labels: labels.get(m["key"]) == m["value"]),
    (rf"!\s*{_KEY}", lambda m, labels: m["key"] not in labels),
    (_KEY, lambda m, labels: m["key"] in labels),
)


def selects(selector: str, labels: Mapping[str, str]) -> bool:
    """Raises ValueError for an invalid selector."""
    for term in re.split(r",(?![^(]*\))", selector):
        for pattern, holds in _TERMS:
            if match := re.fullmatch(pattern, term.strip()):
                if not holds(match, labels):
                    return False
                break
        else:
            raise ValueError(f"invalid label selector: {term!r}")
    return True


def _set(match: re.Match[str]) -> list[str]:
    return [value.strip() for value in match["set"].split(",")]
