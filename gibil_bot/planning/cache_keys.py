"""The keys of caches: text with `${{ }}`, as in actions/cache. Pure.

What is known when a run is planned is replaced then. `hashFiles('…')` depends on the files of the commit, so it stays in the
key, and the machine computes it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from gibil_bot.planning import expressions
from gibil_bot.planning.expressions import InvalidExpression

_HASH_FILES = re.compile(r"\s*hashFiles\(\s*('[^']*'(?:\s*,\s*'[^']*')*)\s*\)\s*", re.IGNORECASE)
_RUNNER = {"runner.os": "Linux"}
MAX_PATTERNS = 20


def hash_patterns(piece: str) -> tuple[str, ...] | None:
    """Return the patterns of `hashFiles('…', …)`; None if the piece is another expression."""
    match = _HASH_FILES.fullmatch(piece)
    return None if match is None else tuple(word.strip()[1:-1] for word in match[1].split(","))


def check_key(key: str, *, inputs: Collection[str] | None) -> None:
    """Raise InvalidExpression for a key that `bind_key` wouldn't accept."""
    for piece, start in expressions.pieces_of(key):
        if start is None or piece.strip() in _RUNNER:
            continue
        patterns = hash_patterns(piece)
        if patterns is None:
            if "hashfiles" in piece.lower():
                raise InvalidExpression("expected hashFiles('pattern', …) and nothing else inside ${{ }}", start + 1)
            expressions.check_piece(piece, start, inputs=inputs)
            continue
        if len(patterns) > MAX_PATTERNS:
            raise InvalidExpression(f"hashFiles() takes at most {MAX_PATTERNS} patterns", start + 1)
        for pattern in patterns:
            if not pattern or pattern.startswith("/") or ".." in pattern.lstrip("!").split("/"):
                raise InvalidExpression(f"hashFiles(): {pattern!r} has to be a path inside the checkout", start + 1)


def bind_key(key: str, *, inputs: Mapping[str, str], github: Mapping[str, str]) -> str:
    """Replace every expression except hashFiles(), which gets one spelling: `${{ hashFiles('a', 'b') }}`."""
    parts = []
    for piece, start in expressions.pieces_of(key):
        if start is None:
            parts.append(piece)
        elif (patterns := hash_patterns(piece)) is not None:
            quoted = ", ".join(f"'{pattern}'" for pattern in patterns)
            parts.append("${{ hashFiles(" + quoted + ") }}")
        else:
            known = _RUNNER.get(piece.strip())
            parts.append(expressions.evaluate_piece(piece, start, inputs=inputs, github=github) if known is None else known)
    return "".join(parts)
