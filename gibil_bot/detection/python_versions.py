"""Which version of Python a project needs. Pure: a range in, the beginning of a version out."""

from __future__ import annotations

import re

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
"""The supported versions, and one before."""
DISTRIBUTED = ("3.11", "3.12", "3.13")
"""What machines have: Debian 12, Ubuntu 24.04, Debian 13."""
_PREFERRED = ("3.13", "3.12", "3.11", "3.14", "3.10", "3.9")
_LAST_MICRO = 99

_CLAUSE = re.compile(r"\s*(~=|===?|!=|<=|>=|<|>|\^|~|)\s*v?(\d+(?:\.\d+)*)((?:\.\*)?)[a-z0-9.+-]*\s*")
_PINNED = re.compile(r"(?:c?python-?|)\s*(3\.\d{1,2})(?:\.\d+)?(?:rc\d+|-dev)?")

Version = tuple[int, ...]


def satisfied_by(wanted: str, version: str) -> bool | None:
    """Return whether some release of `version` (`3.12`) is in the range; None if the range can't be read.

    Understands the version specifiers of Python packages (https://packaging.python.org/specifications/version-specifiers), and
    Poetry's `^3.9`, `~3.9`, `3.*` and `||`.
    """
    wanted = wanted.strip()
    if len(wanted) > 500:
        return None
    results = [_all_clauses(part, version) for part in wanted.split("||")]
    return None if None in results else any(results)


def _all_clauses(part: str, version: str) -> bool | None:
    base = tuple(int(number) for number in version.split("."))
    clauses = []
    for text in filter(None, (text.strip() for text in part.split(","))):
        if text == "*":
            continue
        found = _CLAUSE.fullmatch(text)
        if found is None or len(found[2]) > 30:
            return None
        clauses.append((found[1], tuple(int(number) for number in found[2].split(".")), bool(found[3])))
    micros = {0, _LAST_MICRO} | {bound[2] + step for _, bound, _ in clauses if len(bound) > 2 for step in (-1, 0, 1)}
    return any(all(_holds((*base, micro), *clause) for clause in clauses) for micro in sorted(micros) if micro >= 0)


def _holds(version: Version, sign: str, bound: Version, wild: bool) -> bool:
    size = len(bound)
    same = version[:size] == bound
    padded = (*bound, 0, 0)[: max(3, size)]
    match sign:
        case ">=":
            return version >= padded
        case ">":
            return version > padded
        case "<=":
            return version <= padded
        case "<":
            return version < padded
        case "!=":
            return not (same if wild else version == padded)
        case "~=":
            return version >= padded and version[: max(1, size - 1)] == bound[: max(1, size - 1)]
        case "^":
            return version >= padded and version[0] == bound[0]
        case "~":
            return version >= padded and version[: min(2, size)] == bound[: min(2, size)]
        case _:  # ==, ===, or Poetry's bare version; `3.12` means each of its releases in practice
            return same


def choose(wanted: str) -> tuple[str, tuple[str, ...]]:
    """Return the beginning of a version for this range, and others that will do if the machine has them, the best first.

    The first is empty if the versions of all distributions will do. An unreadable or unsatisfiable range excludes nothing.
    """
    fitting = tuple(version for version in _PREFERRED if satisfied_by(wanted, version))
    if not wanted.strip() or not fitting:
        return "", ()
    if all(version in fitting for version in DISTRIBUTED):
        return "", fitting
    return fitting[0], fitting[1:]


def pinned(line: str) -> str | None:
    """Return the `3.12` of a version file's line: `3.12.4`, `python-3.12`, `cpython-3.12.1`; None for anything else."""
    found = _PINNED.fullmatch(line.strip().lower())
    return found[1] if found else None
