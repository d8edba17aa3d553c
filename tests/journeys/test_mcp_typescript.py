"""`gibil mcp` with clients of the official TypeScript SDK, which check responses against the tools' output schemas."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.agent import over_http
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.node import MCP_INSPECTOR, MCP_SDK, node_folder
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
    ("fork", {"new_server": "ts-2", "stop": True}),
    ("destroy_server", {"server": "ts-2"}),
    ("upload", {"local_path": "note.txt", "path": "note.txt"}),
    ("download", {"path": "note.txt", "local_path": "back.txt"}),
    ("vm_bash", {"command": "git add -A && git commit -qm 'Add files'", "name": "ts"}),
    ("push", {"server": "ts"}),
    ("run_workflow", {"workflow": "hello", "path": "project"}),
    ("get_run", {"run_id": "$RUN"}),
    ("run_logs", {"run_id": "$RUN"}),
    ("cancel_run", {"run_id": "$RUN"}),
    ("destroy_server", {"name": "ts"}),
]
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("create_server", {"name": "No!"}, "USAGE: 'No!' is not a valid machine name"),
    ("create_server", {"ttl": "soon"}, "USAGE: 'soon' is not a duration"),
    ("destroy_server", {}, "USAGE: destroy_server needs the argument server"),
    ("list_servers", {"all": True}, "USAGE: list_servers has no argument 'all'"),
    ("extend_server", {"name": "none", "ttl": "1m"}, "SERVER_NOT_FOUND: "),
    ("vm_bash", {"command": ""}, "USAGE: a command can't be empty"),
    ("vm_bash", {"command": "pwd", "name": "ts", "server": "x"}, "USAGE: vm_bash: server and name name different machines"),
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
    ("fork", {"server": "none"}, "SERVER_NOT_FOUND: "),
    ("push", {"server": "ts"}, "USAGE: ts was created without a repository"),
    ("pr_create", {"server": "ts"}, "USAGE: ts was created without a repository"),
    ("upload", {"local_path": "/etc/passwd", "path": "x"}, "LOCAL_FILE: "),
    ("download", {"path": "/nope", "local_path": "x", "server": "ts"}, "FILE_NOT_FOUND: "),
    ("run_workflow", {"path": "/nope"}, "USAGE: there is no directory '/nope'"),
    ("get_run", {"run_id": "none"}, "RUN_NOT_FOUND: "),
    ("run_logs", {"run_id": "none"}, "RUN_NOT_FOUND: "),
    ("cancel_run", {"run_id": "none"}, "RUN_NOT_FOUND: "),
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


def converse(
    client: Path, line: CommandLine, calls: list[tuple[str, dict[str, Any]]], ask: dict[str, Any] | None = None
) -> tuple[set[str], list[dict[str, Any]]]:
    """Return the tools, and a response for each call. `ask`: the server; the one that `gibil mcp --print-config` describes."""
    if ask is None:
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


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_every_tool_responds_and_every_error_reaches_the_model_as_text(client: Path, line: CommandLine, transport: str) -> None:
    with over_http(line) if transport == "http" else contextlib.nullcontext() as server:
        check_every_tool(client, line, server)


def check_every_tool(client: Path, line: CommandLine, server: dict[str, Any] | None) -> None:
    line.json("create", "--name", "ts")
    line.gibil("run", "ts", "touch a.txt")
    tools, answers = converse(client, line, [(tool, arguments) for tool, arguments, _ in BAD], server)
    assert {tool for tool, _, _ in BAD} >= tools
    for (tool, arguments, words), answer in zip(BAD, answers, strict=True):
        assert "thrown" not in answer, (tool, arguments, answer)
        result = answer["result"]
        assert result["isError"] is True, (tool, arguments)
        assert "structuredContent" not in result
        assert result["content"][0]["text"].startswith(words), result["content"]
    line.json("destroy", "ts")

    for left in ("project", "back.txt"):
        path = line.here / left
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    hello = "on: {command: hello}\ntasks:\n  - {name: only, run: echo hello}\n"
    line.repository("project", {"main.py": "print(1)\n", ".gibil/workflows/hello.yml": hello})  # create_server's `repo`
    (line.here / "note.txt").write_text("a note\n")
    tools, answers = converse(client, line, GOOD, server)
    assert {tool for tool, _ in GOOD} == tools - {"pr_create"}  # that needs GitHub
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


def test_the_inspector_lists_and_calls_tools_over_http(tmp_path_factory: pytest.TempPathFactory, line: CommandLine) -> None:
    folder = node_folder(tmp_path_factory.mktemp("inspector"), MCP_INSPECTOR)
    with over_http(line) as server:

        def inspect(*arguments: str) -> dict[str, Any]:
            header = f"Authorization: {server['headers']['Authorization']}"
            done = subprocess.run(
                [
                    "node_modules/.bin/mcp-inspector",
                    "--cli",
                    server["url"],
                    "--transport",
                    "http",
                    "--header",
                    header,
                    *arguments,
                ],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=patient(60),
            )
            assert done.returncode == 0 or done.stdout, done.stderr
            found: dict[str, Any] = json.loads(done.stdout)
            return found

        names = {tool["name"] for tool in inspect("--method", "tools/list")["tools"]}
        assert {"create_server", "vm_bash", "push", "run_workflow"} <= names
        good = inspect("--method", "tools/call", "--tool-name", "list_servers")
        assert good["structuredContent"]["problems"] == []
        bad = inspect("--method", "tools/call", "--tool-name", "vm_stats", "--tool-arg", "server=none")
        assert (bad["isError"], bad["content"][0]["text"].partition(":")[0]) == (True, "SERVER_NOT_FOUND")
