"""`gibil mcp` with clients of the official TypeScript SDK, which check responses against the tools' output schemas."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.node import MCP_SDK, node_folder
from tests.doubles.patience import patient

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("mcp"), pytest.mark.timeout(400)]

JOB = "provision"
"""The job that sets the machine up."""

GOOD: list[tuple[str, dict[str, Any]]] = [
    ("create_server", {"name": "ts", "repo": "./project", "ttl": 20, "wait": "ready"}),
    ("list_servers", {}),
    ("extend_server", {"name": "ts", "ttl": 5}),
    ("vm_bash", {"command": "echo hello; exit 3"}),
    ("vm_bash", {"command": "sleep 600", "background": True}),
    ("vm_write", {"path": "a.txt", "content": "one\ntwo\n"}),
    ("vm_read", {"path": "a.txt"}),
    ("vm_edit", {"path": "a.txt", "old_string": "two", "new_string": "three"}),
    ("vm_ls", {}),
    ("vm_grep", {"pattern": "three"}),
    ("vm_stats", {}),
    ("vm_job_list", {}),
    ("vm_job_status", {"job_id": JOB}),
    ("vm_job_tail", {"job_id": JOB}),
    ("vm_job_cancel", {"job_id": JOB}),
    ("vm_sweep_orphans", {}),
    ("destroy_server", {"name": "ts"}),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("create_server", {"name": "No!"}, "USAGE: 'No!' is not a valid machine name"),
    ("create_server", {"ttl": "soon"}, "USAGE: 'soon' is not a duration"),
    ("destroy_server", {}, "USAGE: destroy_server needs the argument name"),
    ("list_servers", {"all": True}, "USAGE: list_servers has no argument 'all'"),
    ("extend_server", {"name": "none", "ttl": "1m"}, "SERVER_NOT_FOUND: "),
    ("vm_bash", {"command": ""}, "USAGE: a command can't be empty"),
    ("vm_bash", {"command": "pwd", "name": "ts"}, "USAGE: vm_bash has no argument 'name'"),
    ("vm_read", {"path": "/nope", "server": "ts"}, "FILE_NOT_FOUND: "),
    ("vm_write", {"path": "/etc", "content": "x", "server": "ts"}, "NOT_A_FILE: "),
    ("vm_edit", {"path": "a.txt", "old_string": "no such text", "new_string": "x", "server": "ts"}, "TEXT_ABSENT: "),
    ("vm_ls", {"path": "/nope", "server": "ts"}, "FILE_NOT_FOUND: "),
    ("vm_grep", {"pattern": "(", "server": "ts"}, "BAD_PATTERN: "),
    ("vm_stats", {"server": "none"}, "SERVER_NOT_FOUND: "),
    ("vm_job_list", {"server": "none"}, "SERVER_NOT_FOUND: "),
    ("vm_job_status", {"job_id": "none", "server": "ts"}, "JOB_NOT_FOUND: "),
    ("vm_job_tail", {"job_id": "none", "server": "ts"}, "JOB_NOT_FOUND: "),
    ("vm_job_cancel", {"job_id": "none", "server": "ts"}, "JOB_NOT_FOUND: "),
    ("vm_sweep_orphans", {"server": "none"}, "SERVER_NOT_FOUND: "),
    ("no_such_tool", {}, "USAGE: there is no tool 'no_such_tool'"),
]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("typescript"), shared_folder(tmp_path_factory)) as line:
        yield line


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = node_folder(tmp_path_factory.mktemp("node"), MCP_SDK)
    script = folder / "client.mjs"
    shutil.copy(Path(__file__).parent.parent / "doubles" / "typescript_client.mjs", script)
    return script


def converse(client: Path, line: CommandLine, calls: list[tuple[str, dict[str, Any]]]) -> tuple[set[str], list[dict[str, Any]]]:
    """Return the tools, and a response for each call."""
    server = json.loads(line.gibil("mcp", "--print-config").stdout)["mcpServers"]["gibil"]
    ask = {"command": server["command"], "args": server["args"], "env": line.environment(), "cwd": str(line.here)}
    done = subprocess.run(
        ["node", str(client)],
        input=json.dumps({"server": ask, "calls": calls}),
        capture_output=True,
        text=True,
        timeout=patient(180),
    )
    assert done.returncode == 0, done.stderr
    listed, *answers = (json.loads(row) for row in done.stdout.splitlines())
    return {tool["name"] for tool in listed["tools"]}, answers


def test_every_tool_responds_and_every_error_reaches_the_model_as_text(client: Path, line: CommandLine) -> None:
    line.json("create", "--name", "ts")
    line.gibil("run", "ts", "touch a.txt")
    tools, answers = converse(client, line, [(tool, arguments) for tool, arguments, _ in BAD])
    assert {tool for tool, _, _ in BAD} >= tools
    for (tool, arguments, words), answer in zip(BAD, answers, strict=True):
        assert "thrown" not in answer, (tool, arguments, answer)
        result = answer["result"]
        assert result["isError"] is True, (tool, arguments)
        assert "structuredContent" not in result
        assert result["content"][0]["text"].startswith(words), result["content"]
    line.json("destroy", "ts")

    line.repository("project", {"main.py": "print(1)\n"})  # create_server's `repo`
    tools, answers = converse(client, line, GOOD)
    assert {tool for tool, _ in GOOD} == tools
    for (tool, arguments), answer in zip(GOOD, answers, strict=True):
        assert "thrown" not in answer, (tool, arguments, answer)
        assert not answer["result"].get("isError"), (tool, arguments, answer)
        assert answer["result"]["structuredContent"]


def test_a_machine_whose_creation_was_reported_is_not_announced_as_abandoned(client: Path, line: CommandLine) -> None:
    _tools, answers = converse(client, line, [("create_server", {"name": "kept"})])
    assert answers[0]["result"]["structuredContent"]["name"] == "kept"
    listed = line.gibil("list")
    assert "kept" in listed.stdout
    assert "could say so" not in listed.stderr
    line.json("destroy", "kept")
