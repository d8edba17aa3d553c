"""One module for each program's event stream, and the choice among them by the name that an engine has."""

from __future__ import annotations

from collections.abc import Callable

from gibil_bot.agents.dialects.claude import ClaudeDialect
from gibil_bot.agents.dialects.codex import CodexDialect
from gibil_bot.agents.dialects.gemini import GeminiDialect
from gibil_bot.agents.dialects.opencode import OpencodeDialect
from gibil_bot.agents.dialects.text import TextDialect
from gibil_bot.agents.transcript import Dialect

DIALECTS: dict[str, Callable[[], Dialect]] = {
    "claude": ClaudeDialect,
    "codex": CodexDialect,
    "gemini": GeminiDialect,
    "opencode": OpencodeDialect,
    "text": TextDialect,
}


def new_dialect(name: str) -> Dialect:
    """Return a new reader of that program's stream, by the name in `Engine.dialect`."""
    return DIALECTS[name]()
