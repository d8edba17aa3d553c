"""Values of parsed manifests, which may have any type and content."""

from __future__ import annotations

import shlex
from typing import Any

TEXT_LIMIT = 120
"""How much of a manifest's value is shown to people."""


def table(value: object) -> dict[str, Any]:
    """Return the mapping, without keys that aren't strings; empty for any other value."""
    return {key: item for key, item in value.items() if isinstance(key, str)} if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """Return the list; a single value becomes a list of one, None an empty list."""
    if isinstance(value, list):
        return value
    return [] if value is None else [value]


def string(value: object) -> str:
    """Return the string or small number as text; empty for other values, and for text that isn't printable on one line."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return str(value) if abs(value) < 10**9 else ""
    if isinstance(value, float):
        return f"{value:g}"
    if not isinstance(value, str):
        return ""
    text = value.strip()
    return text if text.isprintable() else ""


def shown(value: object) -> str:
    """Return the value as one short line for people."""
    text = value if isinstance(value, str) else string(value)
    text = " ".join("".join(character if character.isprintable() else " " for character in text[: 4 * TEXT_LIMIT]).split())
    return text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…"


def quoted(path: str) -> str:
    """Return the path as one word of shell that no program takes for an option."""
    return shlex.quote(f"./{path}" if path.startswith("-") else path)
