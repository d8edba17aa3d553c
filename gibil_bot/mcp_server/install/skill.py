"""The skill file for Claude Code, in the user's folder of skills: https://code.claude.com/docs/en/skills."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from gibil_bot.errors import GibilError

_MARK = "<!-- gibil "
"""Begins the last line, which contains the digest of the lines before it: a file that the user has changed is left alone."""


def shipped(name: str) -> str:
    """Return the text of SKILL.md or AGENTS.md."""
    return resources.files("gibil_bot.mcp_server.install").joinpath(name).read_text(encoding="utf-8")


def skill_file(environ: Mapping[str, str]) -> Path:
    folder = environ.get("CLAUDE_CONFIG_DIR") or Path(environ.get("HOME") or Path.home()) / ".claude"
    return Path(folder) / "skills" / "gibil" / "SKILL.md"


def install(file: Path) -> str:
    """Write the skill, unless the user has changed it. Returns `added`, `already`, or `left alone`. Raises GibilError."""
    text = shipped("SKILL.md")
    wanted = f"{text}{_mark(text)}\n"
    try:
        state = _state(file)
        if state == "changed":
            return "left alone"
        if state == "unchanged" and file.read_text(encoding="utf-8") == wanted:
            return "already"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(wanted, encoding="utf-8")
    except OSError as error:
        raise GibilError(f"{file} can't be written: {error.strerror}", code="CONFIGURATION") from error
    return "added"


def remove(file: Path) -> str:
    """Delete the skill, unless the user has changed it. Returns `removed`, `absent`, or `left alone`. Raises GibilError."""
    try:
        state = _state(file)
        if state == "changed":
            return "left alone"
        if state == "absent":
            return "absent"
        file.unlink()
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    except OSError as error:
        raise GibilError(f"{file} can't be deleted: {error.strerror}", code="CONFIGURATION") from error
    return "removed"


def _state(file: Path) -> str:
    """Return absent, unchanged (as some version wrote it), or changed."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return "absent"
    except UnicodeDecodeError:
        return "changed"
    before, mark, _ = text.rpartition(_MARK)
    return "unchanged" if mark and text == f"{before}{_mark(before)}\n" else "changed"


def _mark(text: str) -> str:
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()[:16]} -->"
