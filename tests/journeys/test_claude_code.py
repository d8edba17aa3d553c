"""Claude Code, as npm has it, connects to gibil: no account and no model is needed for that."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.doubles.agent import over_http
from tests.doubles.commandline import CommandLine
from tests.doubles.node import claude_code
from tests.doubles.patience import patient

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("mcp"), pytest.mark.timeout(400)]

QUIET = {"DISABLE_TELEMETRY": "1", "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}


def claude(line: CommandLine, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["claude", *arguments],
        env=environment(line, folder),
        cwd=line.here,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(line: CommandLine, folder: Path) -> dict[str, str]:
    return line.environment(PATH=f"{folder}:{line.environment()['PATH']}", **QUIET)


def states(listed: str) -> dict[str, str]:
    """Return the state of each server in the output of `claude mcp list`."""
    return {found[1]: found[2] for found in re.finditer(r"^([\w-]+): .* - \S+ (.+)$", listed, re.MULTILINE)}


def test_claude_code_is_connected_after_init_and_over_http(line: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = claude_code(tmp_path_factory.mktemp("claude"))
    path = environment(line, folder)["PATH"]
    done = line.gibil("init", "--json", PATH=path, **QUIET)
    assert done.returncode == 0, done.stderr
    (registered,) = [each for each in json.loads(done.stdout)["mcp"] if each["client"] == "Claude Code"]
    assert registered["status"] == "added"
    found = claude(line, folder, "mcp", "get", "gibil")
    assert "Scope: User config" in found
    assert re.search(r"Status: \S+ Connected", found)
    assert f"GIBIL_DATA_DIR={line.data_dir}" in found
    skill = line.folder / "home" / ".claude" / "skills" / "gibil" / "SKILL.md"
    assert skill.exists()

    with over_http(line) as server:
        words = ("mcp", "add", "--transport", "http")
        header = f"Authorization: {server['headers']['Authorization']}"
        claude(line, folder, *words, "by-http", server["url"], "--header", header)
        claude(line, folder, *words, "wrong", server["url"], "--header", f"{header}x")
        seen = states(claude(line, folder, "mcp", "list"))
    assert (seen["gibil"], seen["by-http"]) == ("Connected", "Connected")
    assert seen["wrong"] != "Connected"

    removed = line.gibil("init", "--remove", "--json", PATH=path, **QUIET)
    assert removed.returncode == 0, removed.stderr
    assert {each["client"]: each["status"] for each in json.loads(removed.stdout)["mcp"]}["Claude Code"] == "removed"
    assert json.loads((line.folder / "home" / ".claude.json").read_text())["mcpServers"] == {}
    assert not skill.exists()
