"""`gibil init` registers with each installed MCP client through the client's own command, and only reads its file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
import tomllib
from pathlib import Path

import pytest

from gibil_bot.mcp_server.install.clients import Client, Registration, clients, register, snippet
from tests.doubles.commandline import CommandLine
from tests.doubles.patience import patient

ENTRY: dict[str, object] = {
    "type": "stdio",
    "command": "/opt/gi bil's",
    "args": ["-m", "gibil_bot", "mcp"],
    "env": {"GIBIL_DATA_DIR": '/d "$x"'},
}
TYPELESS = {key: value for key, value in ENTRY.items() if key != "type"}
RECORD = """#!/bin/sh
[ -n "$(cat)" ] && echo "stdin was passed on" >&2 && exit 9
for word in "$0" "$@"; do printf '%s\\0' "$word"; done >> "$HOME/called"
"""


def program(folder: Path, name: str, script: str = RECORD) -> None:
    """Create a client's program that records its arguments in ~/called."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def called(home: Path) -> list[str]:
    """Return the arguments of all calls, each starting with the program's name."""
    if not (home / "called").exists():
        return []
    return [word.removeprefix(f"{home}/bin/") for word in (home / "called").read_text().split("\0")[:-1]]


def environment(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}


def installed(home: Path) -> dict[str, Client]:
    found = clients({"HOME": str(home), "PATH": str(home / "bin")})
    return {client.name: client for client in found if client.is_installed}


def registered(home: Path, name: str, within_s: float = 60.0, entry: dict[str, object] = ENTRY) -> Registration:
    return asyncio.run(register(installed(home)[name], entry, environment(home), within_s=within_s))


@pytest.mark.usefixtures("local_machines")
def test_init_calls_the_command_of_each_installed_client_and_prints_a_snippet_for_the_others(line: CommandLine) -> None:
    home = line.folder / "home"
    for name in ("claude", "codex"):
        program(line.folder / "bin", name)
    (home / ".cursor").mkdir()
    (home / ".gemini").mkdir()
    done = line.gibil("init", "--json")
    assert done.returncode == 0, done.stderr
    results = {each["client"]: each for each in json.loads(done.stdout)["mcp"]}
    assert {name: each["status"] for name, each in results.items() if name in ("Claude Code", "Codex", "Cursor")} == {
        "Claude Code": "added",
        "Codex": "added",
        "Cursor": "left alone",
    }
    words = [word.removeprefix(f"{line.folder}/bin/") for word in (home / "called").read_text().split("\0")]
    assert words.count("claude") == words.count("codex") == 1
    pasted = json.loads(results["Cursor"]["snippet"])["mcpServers"]["gibil"]
    assert pasted["env"] == {"GIBIL_DATA_DIR": str(line.data_dir)}
    assert os.access(pasted["command"], os.X_OK)
    assert f"GIBIL_DATA_DIR={line.data_dir}" in words
    assert f"Claude Code: gibil is registered in {home / '.claude.json'}" in done.stderr
    assert f"Cursor: gibil is not registered: it has no command for this; to register it, add this to {home}" in done.stderr
    assert results["Cursor"]["snippet"] in done.stderr
    assert not (home / ".cursor" / "mcp.json").exists()


@pytest.mark.usefixtures("local_machines")
def test_init_with_no_mcp_calls_no_client(line: CommandLine) -> None:
    program(line.folder / "bin", "claude")
    done = line.gibil("init", "--no-mcp", "--json")
    assert json.loads(done.stdout)["mcp"] == []
    assert not (line.folder / "home" / "called").exists()


def test_a_client_is_installed_if_its_folder_or_its_program_exists(tmp_path: Path) -> None:
    assert installed(tmp_path) == {}
    program(tmp_path / "bin", "claude")
    (tmp_path / ".codeium" / "windsurf").mkdir(parents=True)
    (tmp_path / ".config" / "Claude").mkdir(parents=True)
    assert set(installed(tmp_path)) == {"Claude Code", "Windsurf", "Claude Desktop"}


SERVER = ["/opt/gi bil's", "-m", "gibil_bot", "mcp"]
ENV = ["--env", 'GIBIL_DATA_DIR=/d "$x"']


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Claude Code", ["claude", "mcp", "add", "gibil", "--scope", "user", *ENV, "--", *SERVER]),
        ("Codex", ["codex", "mcp", "add", "gibil", *ENV, "--", *SERVER]),
        ("Gemini CLI", ["gemini", "mcp", "add", "--scope", "user", *ENV, "gibil", SERVER[0], "--", *SERVER[1:]]),
        ("VS Code", ["code", "--add-mcp", json.dumps({"name": "gibil", **ENTRY})]),
    ],
)
def test_a_clients_command_gets_each_argument_unchanged_and_no_stdin(tmp_path: Path, name: str, words: list[str]) -> None:
    program(tmp_path / "bin", words[0])
    assert registered(tmp_path, name).status == "added"
    assert called(tmp_path) == words


@pytest.mark.parametrize(("name", "file"), [("Claude Code", ".claude.json"), ("Codex", ".codex/config.toml")])
def test_a_client_in_which_gibil_is_registered_is_not_called_again(tmp_path: Path, name: str, file: str) -> None:
    program(tmp_path / "bin", "claude")
    program(tmp_path / "bin", "codex")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(snippet(installed(tmp_path)[name], TYPELESS))
    assert registered(tmp_path, name).status == "already"
    assert called(tmp_path) == []


def test_a_missing_environment_equals_an_empty_one(tmp_path: Path) -> None:
    program(tmp_path / "bin", "codex")
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text('[mcp_servers.gibil]\ncommand = "/g"\nargs = ["mcp"]\n')
    assert registered(tmp_path, "Codex", entry={"command": "/g", "args": ["mcp"], "env": {}}).status == "already"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"mcpServers": {"gibil": {"command": "/elsewhere/gibil", "args": ["mcp"]}}}', "lists another server named 'gibil'"),
        ('{"mcpServers": {"gibil": 5}}', "lists another server named 'gibil'"),
        ('{"mcpServers": ', "is not valid JSON"),
        ('// why\n{"mcpServers": {}}', "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"mcpServers": 5}', "'mcpServers' in"),
        ("[]", "'mcpServers' in"),
        (b"\xff\xfe{}", "is not UTF-8"),
    ],
)
def test_a_client_whose_file_is_broken_or_lists_another_gibil_is_not_called(
    tmp_path: Path, text: str | bytes, why: str
) -> None:
    """Codex and Gemini CLI would overwrite the other entry."""
    program(tmp_path / "bin", "claude")
    file = tmp_path / ".claude.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    before = file.read_bytes()
    done = registered(tmp_path, "Claude Code")
    assert (done.status, called(tmp_path), file.read_bytes()) == ("left alone", [], before)
    assert why in done.note
    assert json.loads(done.snippet) == {"mcpServers": {"gibil": ENTRY}}


def test_a_client_whose_file_is_unreadable_is_not_called(tmp_path: Path) -> None:
    (tmp_path / ".claude.json").mkdir()
    done = registered(tmp_path, "Claude Code")
    assert (done.status, done.note) == ("left alone", f"{tmp_path}/.claude.json cannot be read: Is a directory")


def test_a_failing_command_is_reported_with_its_first_line_and_the_snippet(tmp_path: Path) -> None:
    program(tmp_path / "bin", "codex", "#!/bin/sh\nprintf '\\n  Error: no \\033[31mconfig\\nStack backtrace:\\n' >&2\nexit 3\n")
    done = registered(tmp_path, "Codex")
    assert (done.status, done.note) == ("left alone", "`codex mcp add` failed with status 3: Error: no �[31mconfig")
    assert tomllib.loads(done.snippet) == {"mcp_servers": {"gibil": TYPELESS}}


@pytest.mark.parametrize("script", ["exec sleep 1000", "sleep 1000 & wait", "while :; do echo more >&2; done"])
def test_a_hanging_command_is_killed_with_its_children_and_reported(tmp_path: Path, script: str) -> None:
    program(tmp_path / "bin", "code", f'#!/bin/sh\necho $$ > "$HOME/pid"\n{script}\n')
    done = registered(tmp_path, "VS Code", within_s=patient(0.5))
    assert done.status == "left alone"
    assert done.note.startswith("`code --add-mcp` did not end within")
    group = (tmp_path / "pid").read_text().strip().encode()
    until = time.monotonic() + patient(10)
    while (states := states_of(group)) and set(states.values()) != {b"Z"}:  # a killed process may still be scheduled once
        assert time.monotonic() < until, states


def states_of(group: bytes) -> dict[Path, bytes]:
    """Return the states of a group's processes."""
    states = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            state, _parent, its_group = path.read_bytes().rpartition(b")")[2].split()[:3]
            if its_group == group:
                states[path] = state
    return states


def test_a_child_that_holds_stderr_open_is_not_waited_for(tmp_path: Path) -> None:
    program(tmp_path / "bin", "code", '#!/bin/sh\nsleep 1000 & echo $! > "$HOME/pid"; exit 1\n')
    try:
        done = registered(tmp_path, "VS Code", within_s=patient(30))
    finally:
        os.kill(int((tmp_path / "pid").read_text()), 9)
    assert done.note == "`code --add-mcp` failed with status 1"


def test_a_command_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    program(tmp_path / "bin", "claude", "#!/nowhere/interpreter\n")
    assert registered(tmp_path, "Claude Code").note == "`claude mcp add` cannot be started: No such file or directory"


def test_a_client_whose_command_is_not_in_path_gets_a_snippet_in_its_own_form(tmp_path: Path) -> None:
    (tmp_path / ".config" / "Code" / "User").mkdir(parents=True)
    client = installed(tmp_path)["VS Code"]
    done = asyncio.run(register(client, ENTRY, {"HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}))
    assert done.note == "its command 'code' is not in PATH"
    assert json.loads(done.snippet) == {"servers": {"gibil": ENTRY}}


def test_gemini_is_not_called_with_a_value_that_it_would_cut_at_an_equals_sign(tmp_path: Path) -> None:
    program(tmp_path / "bin", "gemini")
    done = registered(tmp_path, "Gemini CLI", entry={**ENTRY, "env": {"GIBIL_DATA_DIR": "/a=b"}})
    assert (done.status, called(tmp_path)) == ("left alone", [])
    assert "cannot pass GIBIL_DATA_DIR=/a=b" in done.note
    assert json.loads(done.snippet)["mcpServers"]["gibil"]["env"] == {"GIBIL_DATA_DIR": "/a=b"}


@pytest.mark.usefixtures("local_machines")
def test_remove_undoes_the_registration_and_leaves_what_is_not_ours(line: CommandLine) -> None:
    home = line.folder / "home"
    for name in ("claude", "codex"):
        program(line.folder / "bin", name)
    (home / ".claude").mkdir(exist_ok=True)
    entry = json.loads(line.gibil("mcp", "--print-config").stdout)["mcpServers"]["gibil"]
    (home / ".claude.json").write_text(json.dumps({"mcpServers": {"gibil": entry}}))
    (home / ".codex").mkdir(exist_ok=True)
    (home / ".codex" / "config.toml").write_text('[mcp_servers.gibil]\ncommand = "another"\n')
    (home / ".cursor").mkdir(exist_ok=True)
    (home / ".cursor" / "mcp.json").write_text(json.dumps({"mcpServers": {"gibil": entry}}))
    assert line.gibil("init").returncode == 0
    skill = home / ".claude" / "skills" / "gibil" / "SKILL.md"
    assert skill.exists()
    (home / "called").unlink(missing_ok=True)

    done = line.gibil("init", "--remove", "--json")
    assert done.returncode == 0, done.stderr
    results = {each["client"]: each["status"] for each in json.loads(done.stdout)["mcp"]}
    assert {name: results[name] for name in ("Claude Code", "Codex", "Cursor")} == {
        "Claude Code": "removed",
        "Codex": "not removed",
        "Cursor": "not removed",
    }
    words = [word.removeprefix(f"{line.folder}/bin/") for word in (home / "called").read_text().split("\0")[:-1]]
    assert words == ["claude", "mcp", "remove", "gibil", "--scope", "user"]
    assert not skill.exists()
    assert (line.data_dir / "settings.json").exists()
    assert "delete 'gibil' from 'mcpServers' in that file" in done.stderr
