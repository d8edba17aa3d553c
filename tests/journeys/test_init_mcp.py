"""`gibil init` and the MCP clients of a computer: it registers with those that are there, and their files stay theirs."""

from __future__ import annotations

import json
import os
import stat
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from gibil_bot.mcp_server.install.clients import Client, clients, register
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder

ENTRY = {"type": "stdio", "command": "/opt/gibil", "args": ["mcp"], "env": {}}
CLAUDE = """{
  "numStartups": 34,
  "projects": {"/a": {"mcpServers": {}}},
  "mcpServers": {
    "other": {"command": "x"}
  }
}
"""


@pytest.fixture
def line(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(tmp_path, shared_folder(tmp_path_factory)) as line:
        yield line


def here(home: Path) -> dict[str, Client]:
    found = clients({"HOME": str(home), "PATH": str(home / "bin")})
    return {client.name: client for client in found if client.is_here}


@pytest.mark.usefixtures("local_machines")
def test_init_registers_with_the_clients_that_are_here_once_and_says_so(line: CommandLine) -> None:
    home = line.folder / "home"
    claude = home / ".claude.json"
    claude.write_text(CLAUDE)
    claude.chmod(0o600)
    for folder in (".cursor", ".codex", ".gemini", ".config/Code/User"):
        (home / folder).mkdir(parents=True)
    (home / ".gemini" / "settings.json").write_text("// mine\n{}\n")
    codex = home / ".codex" / "config.toml"
    codex.write_text('model = "x"  # mine\n')
    first = line.gibil("init", "--json")
    assert first.returncode == 0, first.stderr
    told = {each["client"]: each["status"] for each in json.loads(first.stdout)["mcp"]}
    assert told == {"Claude Code": "added", "Cursor": "added", "VS Code": "added", "Gemini CLI": "left alone", "Codex": "added"}
    assert f"Claude Code: gibil is registered in {claude}" in first.stderr
    assert "is left alone: it is no plain JSON" in first.stderr
    entry = json.loads(claude.read_text())["mcpServers"]["gibil"]
    assert (entry["type"], entry["args"][-1], entry["env"]) == ("stdio", "mcp", {"GIBIL_DATA_DIR": str(line.data_dir)})
    assert os.access(entry["command"], os.X_OK)
    assert json.loads((home / ".config/Code/User/mcp.json").read_text())["servers"]["gibil"] == entry
    assert json.loads((home / ".cursor/mcp.json").read_text())["mcpServers"]["gibil"] == entry
    assert codex.read_text().startswith('model = "x"  # mine\n')
    assert tomllib.loads(codex.read_text())["mcp_servers"]["gibil"]["command"] == entry["command"]
    assert not (home / ".codeium").exists()
    assert stat.S_IMODE(claude.stat().st_mode) == 0o600
    before = claude.read_bytes(), codex.read_bytes(), claude.stat().st_mtime_ns
    second = line.gibil("init")
    assert f"Claude Code: gibil is already registered in {claude}" in second.stderr
    assert "Codex: gibil is already registered" in second.stderr
    assert (claude.read_bytes(), codex.read_bytes(), claude.stat().st_mtime_ns) == before


@pytest.mark.usefixtures("local_machines")
def test_init_leaves_clients_alone_when_it_is_told_to(line: CommandLine) -> None:
    (line.folder / "home" / ".claude").mkdir()
    done = line.gibil("init", "--no-mcp", "--json")
    assert json.loads(done.stdout)["mcp"] == []
    assert not (line.folder / "home" / ".claude.json").exists()


def test_a_client_is_here_when_its_folder_or_program_is(tmp_path: Path) -> None:
    assert here(tmp_path) == {}
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "claude"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / ".codeium" / "windsurf").mkdir(parents=True)
    (tmp_path / ".config" / "Claude").mkdir(parents=True)
    assert set(here(tmp_path)) == {"Claude Code", "Windsurf", "Claude Desktop"}
    assert register(here(tmp_path)["Claude Code"], ENTRY).status == "added"
    assert json.loads((tmp_path / ".claude.json").read_text()) == {"mcpServers": {"gibil": ENTRY}}
    assert stat.S_IMODE((tmp_path / ".claude.json").stat().st_mode) == 0o600


def test_a_file_keeps_its_bytes_its_mode_and_its_links(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    real = tmp_path / "dotfiles" / "claude.json"
    real.write_text(CLAUDE)
    real.chmod(0o640)
    (tmp_path / ".claude.json").symlink_to("dotfiles/claude.json")
    assert register(here(tmp_path)["Claude Code"], ENTRY).status == "added"
    assert (tmp_path / ".claude.json").is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    added = '"other": {"command": "x"},\n    "gibil": ' + json.dumps(ENTRY, indent=2).replace("\n", "\n    ")
    assert real.read_text() == CLAUDE.replace('"other": {"command": "x"}', added)
    assert [path.name for path in real.parent.iterdir()] == ["claude.json"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"mcpServers": {"gibil": {"command": "/elsewhere/gibil", "args": ["mcp"]}}}', "another server named gibil"),
        (
            '{"mcpServers": {"gibil": {"command": "/opt/gibil", "args": ["mcp"], "env": {"A": "1"}}}}',
            "another server named gibil",
        ),
        ('{"mcpServers": ', "no plain JSON"),
        ('{"mcpServers": 5}', "no table of servers"),
        (b"\xff\xfe{}", "not UTF-8"),
    ],
)
def test_a_file_that_is_broken_or_holds_another_gibil_is_left_alone(tmp_path: Path, text: str | bytes, why: str) -> None:
    file = tmp_path / ".claude.json"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    before = file.read_bytes()
    done = register(here(tmp_path)["Claude Code"], ENTRY)
    assert (done.status, file.read_bytes()) == ("left alone", before)
    assert why in done.note
    assert "gibil mcp --print-config" in done.sentence


def test_clients_that_write_their_file_meanwhile_lose_nothing(tmp_path: Path) -> None:
    """Many at once, as one client that starts several times: each entry is there in the end, in a whole file."""
    file = tmp_path / ".claude.json"
    file.write_text(CLAUDE)
    client = here(tmp_path)["Claude Code"]
    starting = threading.Barrier(4)

    def run() -> None:
        starting.wait()
        register(client, ENTRY)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = json.loads(file.read_text())
    assert content["mcpServers"] == {"other": {"command": "x"}, "gibil": ENTRY}
    assert sorted(path.name for path in tmp_path.iterdir()) == [".claude.json"]
