"""Registers `gibil mcp` with the MCP clients of this computer, through each client's own command.

A client's configuration file is only read, to see whether it lists a server of that name: some clients overwrite one silently.
Clients without such a command get a snippet for the user to paste.

Checked with Claude Code 2.1.197, Codex 0.171.0 and Gemini CLI 0.61.0. VS Code:
https://code.visualstudio.com/docs/copilot/guides/mcp-developer-guide
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.operator_secrets import without_secrets

NAME = "gibil"
WITHIN_S = 60.0
"""Time limit for one client's command. Most need a second, those in JavaScript some more on a busy computer."""
_STDERR_BYTES = 64 * 1024
"""Capacity of a pipe on Linux. A command that writes more to stderr blocks until `WITHIN_S`."""
_REASON_CHARACTERS = 200

Entry = Mapping[str, object]
Command = Callable[[str, list[str], dict[str, str]], list[str]]
"""The arguments with which the client's program registers NAME: (command, arguments, environment) of the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """An MCP client whose configuration file is known."""

    name: str
    file: Path
    is_installed: bool
    table: str = "mcpServers"
    """The key under which `file` lists servers."""
    has_type: bool = False
    """Whether an entry names its transport."""
    program: str | None = None
    """Its program in PATH; None if it has no command for registering servers."""
    arguments: Command | None = None
    removal: tuple[str, ...] | None = None
    """The arguments with which the client's program removes NAME; None if it has no command for that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The result for one client: `added`, `already`, or `left alone`, why (`note`), and what to paste (`snippet`).

    Of a removal: `removed`, `absent`, or `not removed` and why.
    """

    client: str
    file: Path
    status: str
    note: str = ""
    snippet: str = ""

    @property
    def message(self) -> str:
        match self.status:
            case "added":
                return f"{self.client}: gibil is registered in {self.file}"
            case "removed":
                return f"{self.client}: gibil is removed from {self.file}"
            case "absent":
                return f"{self.client}: gibil is not registered in {self.file}"
            case "not removed":
                return f"{self.client}: gibil is not removed from {self.file}: {self.note}"
            case "already":
                return f"{self.client}: gibil is already registered in {self.file}"
            case _:
                return f"{self.client}: gibil is not registered: {self.note}; to register it, add this to {self.file}:"


def clients(environ: Mapping[str, str]) -> list[Client]:
    """Return all known clients. One is installed if its program, its file or its folder exists."""
    home = Path(environ.get("HOME") or Path.home())
    settings = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    if sys.platform == "darwin":
        settings = home / "Library" / "Application Support"
    claude_folder = Path(environ.get("CLAUDE_CONFIG_DIR") or home / ".claude")
    claude = (claude_folder if environ.get("CLAUDE_CONFIG_DIR") else home) / ".claude.json"
    codex = Path(environ.get("CODEX_HOME") or home / ".codex")
    gemini, cursor = home / ".gemini", home / ".cursor"
    desktop, code, windsurf = settings / "Claude", settings / "Code" / "User", home / ".codeium" / "windsurf"

    def exists(program: str | None, *paths: Path) -> bool:
        found = program is not None and shutil.which(program, path=environ.get("PATH")) is not None
        return found or any(path.exists() for path in paths)

    return [
        Client(
            name="Claude Code",
            file=claude,
            is_installed=exists("claude", claude, claude_folder),
            has_type=True,
            program="claude",
            arguments=_claude,
            removal=("mcp", "remove", NAME, "--scope", "user"),
        ),
        Client(name="Claude Desktop", file=desktop / "claude_desktop_config.json", is_installed=exists(None, desktop)),
        Client(name="Cursor", file=cursor / "mcp.json", is_installed=exists(None, cursor), has_type=True),
        Client(
            name="VS Code",
            file=code / "mcp.json",
            is_installed=exists("code", code),
            table="servers",
            has_type=True,
            program="code",
            arguments=_vs_code,
        ),
        Client(name="Windsurf", file=windsurf / "mcp_config.json", is_installed=exists(None, windsurf)),
        Client(
            name="Gemini CLI",
            file=gemini / "settings.json",
            is_installed=exists("gemini", gemini),
            program="gemini",
            arguments=_gemini,
            removal=("mcp", "remove", "--scope", "user", NAME),
        ),
        Client(
            name="Codex",
            file=codex / "config.toml",
            is_installed=exists("codex", codex),
            table="mcp_servers",
            program="codex",
            arguments=_codex,
            removal=("mcp", "remove", NAME),
        ),
    ]


async def register(client: Client, entry: Entry, environ: Mapping[str, str], *, within_s: float = WITHIN_S) -> Registration:
    """Register `entry` with one client, unless it lists a server of that name. Safe to repeat; a failure is in the result."""
    wanted = {key: value for key, value in entry.items() if key != "type" or client.has_type}
    try:
        existing = _existing(client)
        if existing is None:
            await _run_command(client, wanted, environ, within_s)
        elif not _is_same(existing, wanted):
            raise _NotRegistered(f"{client.file} lists another server named {NAME!r}")
    except _NotRegistered as problem:
        return Registration(
            client=client.name, file=client.file, status="left alone", note=str(problem), snippet=snippet(client, wanted)
        )
    return Registration(client=client.name, file=client.file, status="added" if existing is None else "already")


async def unregister(client: Client, entry: Entry, environ: Mapping[str, str], *, within_s: float = WITHIN_S) -> Registration:
    """Remove our entry from one client. Another server of that name is left alone; a failure is in the result."""
    wanted = {key: value for key, value in entry.items() if key != "type" or client.has_type}

    def result(status: str, note: str = "") -> Registration:
        return Registration(client=client.name, file=client.file, status=status, note=note)

    try:
        existing = _existing(client)
        if existing is None:
            return result("absent")
        if not _is_same(existing, wanted):
            return result("not removed", f"its server named {NAME!r} is another one")
        if client.removal is None:
            return result("not removed", f"it has no command for this; delete {NAME!r} from {client.table!r} in that file")
        await _run_words(client, list(client.removal), environ, within_s)
    except _NotRegistered as problem:
        return result("not removed", str(problem))
    return result("removed")


def snippet(client: Client, entry: Entry) -> str:
    """Return what a user pastes into the client's file."""
    if client.file.suffix != ".toml":
        return json.dumps({client.table: {NAME: entry}}, indent=2, ensure_ascii=False)
    lines = [f"[{client.table}.{NAME}]"]
    for key, value in entry.items():
        if isinstance(value, dict):
            value = "{ " + ", ".join(f"{name} = {json.dumps(each)}" for name, each in value.items()) + " }"
            lines.append(f"{key} = {value}")
        else:
            lines.append(f"{key} = {json.dumps(value)}")  # JSON's strings and lists of strings are also TOML's
    return "\n".join(lines)


class _NotRegistered(Exception):
    """The reason, without a full stop."""


def _existing(client: Client) -> object | None:
    """Return the client's entry named NAME, or None. Raises _NotRegistered for a file that cannot be understood."""
    try:
        text = client.file.read_bytes().decode()
        is_toml = client.file.suffix == ".toml"
        content = tomllib.loads(text) if is_toml else json.loads(text) if text.strip() else {}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _NotRegistered(f"{client.file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise _NotRegistered(f"{client.file} is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _NotRegistered(f"{client.file} is not valid {'TOML' if is_toml else 'JSON'} ({error})") from None
    servers = content.get(client.table, {}) if isinstance(content, dict) else None
    if not isinstance(servers, dict):
        raise _NotRegistered(f"{client.table!r} in {client.file} is not a table of servers")
    return servers.get(NAME)


def _is_same(existing: object, entry: Entry) -> bool:
    if not isinstance(existing, dict):
        return False
    return all((existing.get(key) or empty) == entry.get(key) for key, empty in (("command", ""), ("args", []), ("env", {})))


async def _run_command(client: Client, entry: Entry, environ: Mapping[str, str], within_s: float) -> None:
    """Run the client's own command. Raises _NotRegistered with the command's reason."""
    if client.program is None or client.arguments is None:
        raise _NotRegistered("it has no command for this")
    command, arguments, environment = entry["command"], entry["args"], entry["env"]
    assert isinstance(command, str)
    assert isinstance(arguments, list)
    assert isinstance(environment, dict)
    await _run_words(client, client.arguments(command, arguments, environment), environ, within_s)


async def _run_words(client: Client, words: list[str], environ: Mapping[str, str], within_s: float) -> None:
    """Run the client's program with these arguments. Raises _NotRegistered."""
    assert client.program is not None
    program = shutil.which(client.program, path=environ.get("PATH"))
    if program is None:
        raise _NotRegistered(f"its command {client.program!r} is not in PATH")
    shown = " ".join([client.program, *words[:2]]) if words[0] == "mcp" else f"{client.program} {words[0]}"
    reading, writing = os.pipe()
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                *words,
                env=without_secrets(environ),
                stdin=asyncio.subprocess.DEVNULL,  # the provider's token may come on our stdin
                stdout=asyncio.subprocess.DEVNULL,
                stderr=writing,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise _NotRegistered(f"`{shown}` cannot be started: {why}") from None
        finally:
            os.close(writing)
        status = await _wait(process, within_s)
        if status is None:
            raise _NotRegistered(f"`{shown}` did not end within {within_s:g} s")
        if status != 0:
            raise _NotRegistered(f"`{shown}` failed with status {status}{_first_line(reading)}")
    finally:
        os.close(reading)


async def _wait(process: asyncio.subprocess.Process, within_s: float) -> int | None:
    """Return the exit status; None after `within_s`, and the processes are killed, as they are when the caller is cancelled."""
    try:
        return await asyncio.wait_for(process.wait(), within_s)
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # `code` and others are shell scripts that start the real program
            await asyncio.shield(process.wait())


def _first_line(reading: int) -> str:
    """Return the reason that an ended command has written. Its child processes may still hold the other end."""
    os.set_blocking(reading, False)
    try:
        text = os.read(reading, _STDERR_BYTES).decode(errors="replace")
    except BlockingIOError:
        return ""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    printable = "".join(letter if letter.isprintable() else "�" for letter in line[:_REASON_CHARACTERS])
    return f": {printable}" if printable else ""


def _pairs(environment: Mapping[str, str]) -> list[str]:
    return [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]


def _claude(command: str, arguments: list[str], environment: dict[str, str]) -> list[str]:
    return ["mcp", "add", NAME, "--scope", "user", *_pairs(environment), "--", command, *arguments]


def _codex(command: str, arguments: list[str], environment: dict[str, str]) -> list[str]:
    return ["mcp", "add", NAME, *_pairs(environment), "--", command, *arguments]


def _gemini(command: str, arguments: list[str], environment: dict[str, str]) -> list[str]:
    for name, value in environment.items():
        if "=" in value:  # it would register the part before that
            raise _NotRegistered(f"`gemini mcp add` cannot pass {name}={value}, which has a second '='")
    return ["mcp", "add", "--scope", "user", *_pairs(environment), NAME, command, "--", *arguments]


def _vs_code(command: str, arguments: list[str], environment: dict[str, str]) -> list[str]:
    server = {"name": NAME, "type": "stdio", "command": command, "args": arguments, "env": environment}
    return ["--add-mcp", json.dumps(server)]
