"""The MCP clients of this computer: `gibil mcp` is registered with those that are here. Their files are theirs.

Nothing is made for a program that is not there; what cannot be read, or holds an entry of that name which is not ours, is left
alone. A file is replaced whole, behind links, with the mode that it has.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.mcp_server.install import entry_text

NAME = "gibil"
_TRIES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """`table` is the key under which it lists its servers; `keys` what it knows of an entry."""

    name: str
    file: Path
    is_here: bool
    table: str = "mcpServers"
    keys: tuple[str, ...] = ("command", "args", "env")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What became of it: added, already, or left alone and why."""

    client: str
    file: Path
    status: str
    note: str = ""

    @property
    def sentence(self) -> str:
        match self.status:
            case "added":
                return f"{self.client}: gibil is registered in {self.file}"
            case "already":
                return f"{self.client}: gibil is already registered in {self.file}"
            case _:
                return f"{self.client}: {self.file} is left alone: {self.note}; gibil mcp --print-config prints what it needs"


class _ChangedMeanwhile(Exception):
    """Somebody else has written the file since we read it."""


def clients(environ: Mapping[str, str]) -> list[Client]:
    """Those whose files we know, and whether each is here."""
    home = Path(environ.get("HOME") or Path.home())
    settings = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    if sys.platform == "darwin":
        settings = home / "Library" / "Application Support"
    claude_folder = Path(environ.get("CLAUDE_CONFIG_DIR") or home / ".claude")
    claude = (claude_folder if environ.get("CLAUDE_CONFIG_DIR") else home) / ".claude.json"
    has_claude = claude.exists() or claude_folder.is_dir() or shutil.which("claude", path=environ.get("PATH")) is not None
    codex = Path(environ.get("CODEX_HOME") or home / ".codex")
    known = ("type", "command", "args", "env")
    desktop, code = settings / "Claude", settings / "Code" / "User"
    windsurf = home / ".codeium" / "windsurf"
    return [
        Client(name="Claude Code", file=claude, is_here=has_claude, keys=known),
        Client(name="Claude Desktop", file=desktop / "claude_desktop_config.json", is_here=desktop.is_dir()),
        Client(name="Cursor", file=home / ".cursor" / "mcp.json", is_here=(home / ".cursor").is_dir(), keys=known),
        Client(name="VS Code", file=code / "mcp.json", is_here=code.is_dir(), table="servers", keys=known),
        Client(name="Windsurf", file=windsurf / "mcp_config.json", is_here=windsurf.is_dir()),
        Client(name="Gemini CLI", file=home / ".gemini" / "settings.json", is_here=(home / ".gemini").is_dir()),
        Client(name="Codex", file=codex / "config.toml", is_here=codex.is_dir(), table="mcp_servers"),
    ]


def register(client: Client, entry: Mapping[str, object]) -> Registration:
    """Idempotent. Never raises for what is wrong with the client's file: that is said."""
    status, note = "left alone", "somebody else writes it all the time"
    for _ in range(_TRIES):
        try:
            status, note = _register(client, {key: entry[key] for key in client.keys if key in entry})
            break
        except _ChangedMeanwhile:
            continue
        except (OSError, UnicodeError, ValueError) as error:
            note = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            if isinstance(error, UnicodeError):
                note = "it is not UTF-8"
            break
    return Registration(client=client.name, file=client.file, status=status, note=note)


def _register(client: Client, entry: dict[str, object]) -> tuple[str, str]:
    is_toml = client.file.suffix == ".toml"
    target = Path(os.path.realpath(client.file))
    before = target.stat() if target.exists() else None
    text = target.read_bytes().decode() if before is not None else ""
    there = (entry_text.find_toml if is_toml else entry_text.find_json)(text, client.table, NAME)
    if there is not None:
        return ("already", "") if _same(there, entry) else ("left alone", f"it holds another server named {NAME}")
    if is_toml and not entry.get("env"):
        entry.pop("env", None)
    changed = (entry_text.add_toml if is_toml else entry_text.add_json)(text, client.table, NAME, entry)
    _replace(target, changed.encode(), before)
    return "added", ""


def _same(there: object, entry: Mapping[str, object]) -> bool:
    if not isinstance(there, dict):
        return False
    return all(there.get(key, {} if key == "env" else None) == entry.get(key) for key in ("command", "args", "env"))


def _replace(target: Path, content: bytes, before: os.stat_result | None) -> None:
    draft = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(content)
            if before is not None:
                os.fchmod(file.fileno(), before.st_mode & 0o7777)
                with contextlib.suppress(OSError):  # root, in somebody else's home
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
            file.flush()
            os.fsync(file.fileno())
        if before is None:
            os.link(draft, target)  # and not over one that was made meanwhile
        else:
            now = target.stat()
            if (now.st_mtime_ns, now.st_size, now.st_ino) != (before.st_mtime_ns, before.st_size, before.st_ino):
                raise _ChangedMeanwhile
            draft.replace(target)
    except FileExistsError:
        raise _ChangedMeanwhile from None
    finally:
        draft.unlink(missing_ok=True)
