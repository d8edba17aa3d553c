"""An agent's work over MCP: the real `gibil mcp`, the protocol library's client, real machines."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gibil_bot.config import load_settings
from gibil_bot.errors import MachineLost
from gibil_bot.machines.session import MachineSession
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.providers.local.limits import SIZES_MB
from tests.doubles.agent import Agent, ToolError, agent_of, opened
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import older_daemon, processes_with, shared_folder
from tests.doubles.patience import patient
from tests.doubles.tools import needs

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("mcp")]

TOOLS = {
    "create_server", "destroy_server", "list_servers", "extend_server", "vm_bash", "vm_read", "vm_write", "vm_ls", "vm_grep",
    "vm_stats", "vm_edit", "vm_job_status", "vm_job_list", "vm_job_tail", "vm_job_cancel", "vm_sweep_orphans",
    "fork", "push", "pr_create", "upload", "download", "run_workflow", "get_run", "run_logs", "cancel_run",
}  # fmt: skip
WITHOUT_A_MACHINE = {"list_servers", "run_workflow", "get_run", "run_logs", "cancel_run"}


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("mcp"), shared_folder(tmp_path_factory), own_daemon=True) as line:
        yield line


@pytest.fixture(scope="module")
def shared(line: CommandLine) -> Iterator[Agent]:
    with agent_of(line) as agent:
        yield agent


@pytest.fixture
def agent(shared: Agent) -> Agent:
    """The agent with the one machine `m`, whatever the previous test left."""
    names = [server["name"] for server in shared.call("list_servers")["servers"]]
    for name in names:
        if name != "m":
            shared.call("destroy_server", name=name)
    if "m" not in names:
        shared.call("create_server", name="m", ttl="1h", env={"WHO": "ada, of 'Engine'"})
    shared.progress.clear()
    return shared


def refusal(agent: Agent, tool: str, **arguments: object) -> tuple[str, str]:
    with pytest.raises(ToolError) as caught:
        agent.call(tool, **arguments)
    return caught.value.code, caught.value.sentence


def test_every_tool_has_input_and_output_schemas_and_annotations(agent: Agent) -> None:
    tools = agent.tools()
    assert set(tools) == TOOLS
    for name, tool in tools.items():
        assert tool.description
        assert tool.output_schema["type"] == "object"
        assert all("description" in each for each in tool.input_schema["properties"].values()), name
        assert ("server" in tool.input_schema["properties"]) == (name not in WITHOUT_A_MACHINE), name
        assert not {"name", "machine"} & set(tool.input_schema["properties"]), name
    assert tools["vm_bash"].input_schema["required"] == ["command"]
    readers = {name for name, tool in tools.items() if tool.annotations.read_only_hint}
    assert readers == {
        "list_servers", "vm_read", "vm_ls", "vm_grep", "vm_stats", "vm_job_status", "vm_job_list", "vm_job_tail",
        "get_run", "run_logs",
    }  # fmt: skip
    assert tools["destroy_server"].annotations.destructive_hint is True


def test_the_machine_has_one_name_in_all_tools_and_its_old_names_still_work(agent: Agent) -> None:
    for argument in ("server", "name", "machine"):
        assert agent.call("vm_bash", command="true", **{argument: "m"})["server"] == "m"
        assert agent.call("destroy_server", **{argument: "absent"})["name"] == "absent"
    assert agent.call("vm_bash", command="true", server="m", name="m")["server"] == "m"
    code, sentence = refusal(agent, "vm_bash", command="true", server="m", name="other")
    assert (code, sentence) == ("USAGE", "vm_bash: server and name name different machines; use server alone")
    assert refusal(agent, "destroy_server") == ("USAGE", "destroy_server needs the argument server")


def test_half_of_an_emoji_is_answered(line: CommandLine) -> None:
    process = line.start("mcp", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    assert process.stdout is not None
    opening = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}}
    call = {"name": "vm_stats", "arguments": {"server": "cut \ud83d"}}
    for message in (
        {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": opening},
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call},
    ):
        process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    _, answer = (json.loads(process.stdout.readline()) for _ in range(2))
    assert (answer["id"], answer["result"]["isError"]) == (1, True)
    assert answer["result"]["content"][0]["text"].startswith("USAGE: 'cut \ufffd' is not a valid machine name")
    process.stdin.close()
    assert process.wait(timeout=patient(20)) == 0


def test_files_are_copied_in_both_directions(agent: Agent, line: CommandLine) -> None:
    content = bytes(range(256)) * 1000
    (line.here / "tool").write_bytes(content)
    (line.here / "tool").chmod(0o755)
    uploaded = agent.call("upload", local_path="tool", path="bin/tool")
    assert (uploaded["size"], uploaded["files"], uploaded["path"]) == (len(content), 1, "/root/bin/tool")
    assert agent.call("vm_bash", command="stat -c %a bin/tool")["stdout"] == "755\n"
    assert agent.call("download", path="bin/tool", local_path="copy")["size"] == len(content)
    assert (line.here / "copy").read_bytes() == content
    assert refusal(agent, "download", path="bin/tool", local_path="copy")[0] == "LOCAL_FILE_EXISTS"
    assert refusal(agent, "upload", local_path="/etc/passwd", path="x")[0] == "LOCAL_FILE"
    assert refusal(agent, "download", path="nope", local_path="new")[0] == "FILE_NOT_FOUND"
    (line.here / "site" / "css").mkdir(parents=True)
    (line.here / "site" / "css" / "a.css").write_text("b {}")
    (line.here / "site" / "index").symlink_to("css/a.css")
    sent = agent.call("upload", local_path="site", path="www/site")
    assert (sent["files"], sent["path"], sent["left_out"]) == (2, "/root/www/site", [])
    agent.call("vm_bash", command="cd www/site && git init -q && ln -s /etc/passwd out && ln -s .git/config inner; >.envrc")
    back = agent.call("download", path="www/site", local_path="back")
    assert (back["files"], back["left_out_total"]) == (3, 3)
    assert sorted(back["left_out"]) == [
        ".envrc: it has instructions or settings that agents and tools obey, which a machine may not write",
        ".git: it is inside .git, whose files git executes or obeys",
        "out: it is a link to something outside of the copied directory",
    ]
    assert sorted(each.name for each in (line.here / "back").iterdir()) == ["css", "index", "inner"]
    assert (line.here / "back" / "index").read_text() == "b {}"
    assert refusal(agent, "download", path="www/site", local_path="back")[0] == "LOCAL_FILE_EXISTS"
    assert not list(line.here.glob(".gibil-*"))


def test_copies_of_a_machine_start_from_its_disk_and_it_goes_on(agent: Agent) -> None:
    agent.call("vm_write", path="/root/state", content="1\n")
    made = agent.call("fork", new_server="try", count=2)
    assert (made["forked_from"], [each["name"] for each in made["servers"]]) == ("m", ["try-1", "try-2"])
    try:
        for name in ("m", "try-1", "try-2"):
            assert agent.call("vm_bash", command="cat /root/state; hostname", server=name)["stdout"] == f"1\n{name}\n"
        job = agent.call("vm_bash", command="sleep 600", background=True, server="m")["job_id"]
        code, sentence = refusal(agent, "fork", server="m")
        assert code == "MACHINE_BUSY"
        assert sentence.startswith("processes run on m (")
        assert "pass stop=true" in sentence
        assert agent.call("vm_job_cancel", job_id=job, server="m")["was_running"]
        assert refusal(agent, "fork", server="absent")[0] == "SERVER_NOT_FOUND"
        assert refusal(agent, "fork", server="m", new_server="try-1")[0] == "NAME_TAKEN"
        assert refusal(agent, "fork", server="m", count=21)[0] == "USAGE"
        assert refusal(agent, "create_server", template="absent")[0] == "TEMPLATE_NOT_FOUND"
    finally:
        for name in ("try-1", "try-2"):
            agent.call("destroy_server", server=name)


def test_commits_are_pushed_and_changes_to_workflows_are_not(agent: Agent, line: CommandLine) -> None:
    origin = line.repository("origin", {"main.py": "print(1)\n"})
    agent.call("create_server", server="dev", repo=str(origin), wait="ready")
    try:
        commit = "git add -A && git commit -qm 'Say two'"
        agent.call("vm_bash", command=f"echo 'print(2)' > main.py && {commit} && git push -q", server="dev")
        pushed = agent.call("push", server="dev")
        waiting = 'git ls-remote "$(git remote get-url --push origin)"'
        assert "refs/heads/" not in agent.call("vm_bash", command=waiting, server="dev")["stdout"]
        assert (pushed["branch"], pushed["commits"], pushed["files"]) == ("gibil/dev", 1, ["main.py"])
        assert line.git(origin, "rev-parse", "gibil/dev") == pushed["commit"]
        assert line.git(origin, "show", "gibil/dev:main.py") == "print(2)"
        assert refusal(agent, "pr_create", server="dev")[0] == "USAGE"  # the origin isn't at GitHub
        agent.call("vm_bash", command=f"echo 'tasks: []' > .gibil.yml && {commit}", server="dev")
        code, sentence = refusal(agent, "push", server="dev")
        assert (code, ".gibil.yml" in sentence) == ("NOT_PUSHED", True)
    finally:
        agent.call("destroy_server", server="dev")


def test_a_workflow_of_a_checkout_runs_with_uncommitted_changes(agent: Agent, line: CommandLine) -> None:
    file = "on: {command: hello}\ntasks:\n  - {name: only, run: 'cat word; sleep $(cat time)'}\n"
    checkout = line.repository("checkout", {".gibil/workflows/hello.yml": file, "word": "old\n", "time": "0\n"})
    (checkout / "word").write_text("new\n")
    (run,) = agent.call("run_workflow", workflow="hello", path="checkout")["runs"]
    ended = run_until(agent, run["id"], lambda view: view["state"] == "finished")
    assert (ended["conclusion"], [task["status"] for task in ended["tasks"]]) == ("success", ["success"])
    log = agent.call("run_logs", run_id=run["id"], offset=0)
    assert ("new\n" in log["text"], log["complete"]) == (True, True)
    assert agent.call("cancel_run", run_id=run["id"])["was_unfinished"] is False

    (checkout / "time").write_text("600\n")
    (run,) = agent.call("run_workflow", workflow="hello", path="checkout")["runs"]
    assert agent.call("cancel_run", run_id=run["id"])["was_unfinished"] is True
    assert run_until(agent, run["id"], lambda view: view["state"] == "finished")["conclusion"] == "cancelled"
    assert refusal(agent, "run_workflow", path="nope")[0] == "USAGE"
    assert refusal(agent, "get_run", run_id="nope")[0] == "RUN_NOT_FOUND"


def test_the_changes_of_a_workflow_with_commit_are_a_patch_that_applies(agent: Agent, line: CommandLine) -> None:
    file = (
        "on: {command: tidy}\ntasks: [{run: 'sed -i s/old/new/ word; echo x >log'}]\n"
        "commit: {message: Tidy, paths: [word], to: branch, branch: tidied}\n"
    )
    checkout = line.repository("tidied", {".gibil/workflows/tidy.yml": file, "word": "very old\n"})
    (checkout / "word").write_text("old\n")
    (run,) = agent.call("run_workflow", workflow="tidy", path="tidied")["runs"]
    assert "commit" not in run
    ended = run_until(agent, run["id"], lambda view: view["state"] == "finished")
    assert (ended["conclusion"], "commit" in ended) == ("success", True), ended
    commit = ended["commit"]
    assert commit | {"bytes": 0, "patch": "", "apply": ""} == {
        "outcome": "patch", "to": "branch", "branch": "tidied", "pull_request": None, "commits": 1, "files": 1, "bytes": 0,
        "left_out": ["log"], "problems": [], "patch": "", "apply": "",
    }  # fmt: skip
    assert commit["apply"] == f"git -C {checkout} apply {commit['patch']}"
    subprocess.run(commit["apply"].split(), check=True)
    assert (checkout / "word").read_text() == "new\n"


def run_until(agent: Agent, run_id: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Poll, as agents do, because the protocol has no notification for it."""
    deadline = time.monotonic() + patient(60)
    while not condition(view := agent.call("get_run", run_id=run_id)):
        assert time.monotonic() < deadline, view
        time.sleep(0.05)
    return view


def test_create_use_and_destroy_with_a_repository_its_tasks_and_progress(agent: Agent, line: CommandLine) -> None:
    file = "tasks: [{name: test, run: test -f main.py}, {name: fail, run: exit 3}]\n"
    line.repository("engine", {"main.py": "print(1)\n", ".gibil.yml": file})
    made, text = agent.full("create_server", name="engine-1", repo=str(line.here / "engine"), ttl=20, wait="tasks")
    assert (made["name"], made["status"], made["ttl_minutes"], made["ready"]) == ("engine-1", "ready", 20, True)
    assert (made["tasks"], [task["status"] for task in made["task_results"]]) == ("failure", ["success", "failure"])
    assert "provision" in text
    assert any("created" in message for message in agent.progress)
    assert "/root/project" in agent.call("vm_bash", command="pwd", server="engine-1")["stdout"]
    assert "fail" in agent.call("vm_job_tail", job_id="provision", server="engine-1")["text"]
    assert refusal(agent, "create_server", name="engine-1")[0] == "NAME_TAKEN"
    code, sentence = refusal(agent, "vm_bash", command="pwd")
    assert code == "WHICH_SERVER"
    assert "engine-1, m" in sentence or "m, engine-1" in sentence
    listed = {server["name"]: server for server in agent.call("list_servers")["servers"]}
    assert set(listed) == {"m", "engine-1"}
    assert listed["engine-1"]["labels"]["made-by"] == "mcp"
    assert agent.call("extend_server", name="engine-1", ttl="10m")["ttl_minutes"] == 30
    assert refusal(agent, "extend_server", name="engine-1", ttl="900d")[0] == "USAGE"
    assert refusal(agent, "create_server", ttl="soon")[0] == "USAGE"
    destroyed = agent.call("destroy_server", name="engine-1")
    assert destroyed == {"name": "engine-1", "status": "destroyed", "destroyed": True, "was_already_destroyed": False}
    assert agent.call("destroy_server", name="engine-1")["was_already_destroyed"] is True
    code, sentence = refusal(agent, "vm_stats", server="engine-1")
    assert (code, sentence) == ("SERVER_NOT_FOUND", "Server 'engine-1' not found; existing machines: m")


def test_a_failing_command_is_a_result_and_a_failing_tool_an_error(agent: Agent) -> None:
    ran, text = agent.full("vm_bash", command='pwd; echo "$WHO"; echo oops >&2; exit 3')
    assert (ran["stdout"], ran["stderr"], ran["exit_code"]) == ("/root\nada, of 'Engine'\n", "oops\n", 3)
    assert (ran["timed_out"], ran["left_out_bytes"], ran["server"]) == (False, 0, "m")
    assert "exit code 3" in text
    assert agent.call("vm_bash", command="pwd", working_dir="/tmp")["stdout"] == "/tmp\n"
    assert refusal(agent, "vm_bash", command="pwd", working_dir="/no'where")[0] == "FILE_NOT_FOUND"
    blocked = agent.call(
        "vm_bash", command="python3 -c 'import urllib.request as u; u.urlopen(\"https://10.9.8.7/\", timeout=1)' 2>/dev/null"
    )
    assert blocked["stderr"].startswith("gibil: blocked because they are not public: 10.9.8.7:443; the operator can allow")
    late = agent.call("vm_bash", command="echo before; sleep 611 & sleep 612", timeout_ms=300)
    assert (late["stdout"], late["timed_out"], late["exit_code"]) == ("before\n", True, 124)
    assert processes_with("sleep\x00611") == processes_with("sleep\x00612") == []
    for wrong, words in (
        ({"command": "pwd", "timeout_ms": 0}, "timeout_ms"),
        ({"command": " "}, "empty"),
        ({"command": "a\0b"}, "NUL"),
        ({"commnd": "pwd"}, "no argument 'commnd'"),
        ({}, "needs the argument command"),
        ({"command": ["pwd"]}, "command must be a string"),
    ):
        code, sentence = refusal(agent, "vm_bash", **wrong)
        assert code == "USAGE"
        assert words in sentence
        assert "\n" not in sentence
    assert "WHO" not in agent.stderr_text()
    assert processes_with("of 'Engine'") == []


def test_long_output_keeps_both_ends_and_explains_how_to_read_the_rest(agent: Agent) -> None:
    ran, text = agent.full("vm_bash", command="seq 1 300000; seq 300001 400000 >&2")
    assert ran["stdout"].startswith("1\n2\n")
    assert ran["stdout"].endswith("\n299999\n300000\n")
    assert ran["stderr"].endswith("400000\n")
    assert "bytes left out; run it with background=true" in ran["stdout"]
    assert len(text) < 35_000
    assert ran["left_out_bytes"] > 2_000_000


def test_files_are_written_read_by_pages_and_edited_exactly(agent: Agent) -> None:
    path = 'work/it\'s a "$(touch no)"/ä.txt'
    content = "".join(f"line {number}\n" for number in range(1, 11)) + "line 1\nno end"
    assert agent.call("vm_write", path=path, content=content) == {
        "server": "m", "path": path, "size": len(content), "created": True
    }  # fmt: skip
    page, text = agent.full("vm_read", path=path, offset=9, limit=2)
    assert (page["content"], page["first_line"], page["last_line"]) == ("line 9\nline 10\n", 9, 10)
    assert (page["total_lines"], page["next_offset"]) == (12, 11)
    assert text == " 9\tline 9\n10\tline 10\n[lines 9 to 10 of 12; continue with offset=11]"
    whole = agent.call("vm_read", path=f"/root/{path}")
    assert (whole["content"], whole["next_offset"]) == (content, None)
    assert refusal(agent, "vm_read", path=path, offset=13)[0] == "USAGE"
    assert refusal(agent, "vm_edit", path=path, old_string="line 99", new_string="x")[0] == "TEXT_ABSENT"
    code, sentence = refusal(agent, "vm_edit", path=path, old_string="line 1\n", new_string="x")
    assert (code, "2 times" in sentence) == ("TEXT_NOT_UNIQUE", True)
    assert agent.call("vm_read", path=path)["content"] == content
    agent.call(
        "vm_bash",
        command=f"chmod 750 work/*/*; ln -s work/*/* ~/link; printf 'a\\0b' >binary; mkfifo pipe; echo {'x' * 5000} >long",
    )
    edited = agent.call("vm_edit", path="~/link", old_string="line 2\n", new_string="Zeile $2 \\ 'zwei'\n")
    assert (edited["replacements"], edited["line"]) == (1, 2)
    agent.call("vm_edit", path=path, old_string="line 1\n", new_string="line I\n", replace_all=True)
    assert agent.call("vm_bash", command="test -L link && stat -c %a work/*/*; test ! -e no")["stdout"] == "750\n"
    expected = content.replace("line 1\n", "line I\n").replace("line 2\n", "Zeile $2 \\ 'zwei'\n")
    assert agent.call("vm_read", path=path)["content"] == expected
    cut = agent.call("vm_read", path="long")
    assert (len(cut["content"]) < 2100, cut["total_lines"], cut["notes"]) == (
        True,
        1,
        ["long lines are cut: 1"],
    )
    for wrong, expected_code in (
        ("binary", "BINARY_FILE"), ("pipe", "NOT_A_FILE"), ("/etc", "NOT_A_FILE"), ("nothing", "FILE_NOT_FOUND"),
        ("a\0b", "USAGE"), ("", "USAGE"),
    ):  # fmt: skip
        assert refusal(agent, "vm_read", path=wrong)[0] == expected_code
    assert refusal(agent, "vm_write", path="/etc", content="x")[0] == "NOT_A_FILE"
    assert refusal(agent, "vm_write", path="/proc/nowhere/x", content="x")[0] == "FILES"
    agent.call("vm_write", path="work/n", content="".join(f"<{n}>\n" for n in range(8)))
    both = [agent.begin("vm_edit", path="work/n", old_string=f"<{n}>", new_string=str(n)) for n in range(8)]
    for each in both:
        opened(each.result(patient(30)))
    assert agent.call("vm_read", path="work/n")["content"] == "".join(f"{n}\n" for n in range(8))


def test_files_are_listed_and_searched_with_patterns_that_no_shell_expands(agent: Agent) -> None:
    agent.call("vm_write", path="tree/src/a.py", content="def parse():\n    return 42\n")
    agent.call("vm_write", path="tree/src/deep/b c.ts", content="const Parse = 7\n")
    agent.call(
        "vm_bash", command="cd tree; ln -s src link; mkdir .git; echo parse >.git/x; printf 'parse\\0' >bin; touch -- -n"
    )
    listing = agent.call("vm_ls", path="tree")
    assert [(entry["name"], entry["type"]) for entry in listing["entries"]] == [
        ("-n", "file"), (".git", "folder"), ("bin", "file"), ("link", "link"), ("src", "folder"),
    ]  # fmt: skip
    assert next(entry for entry in listing["entries"] if entry["name"] == "link")["target"] == "src"
    assert [entry["name"] for entry in agent.call("vm_ls", path="tree", glob="**/*.*")["entries"]] == [
        "src/a.py",
        "src/deep/b c.ts",
    ]
    assert agent.call("vm_ls", path="tree", glob="$(touch no)")["entries"] == []
    assert agent.call("vm_ls", path="tree/src/a.py")["entries"][0]["size"] == 27
    assert refusal(agent, "vm_ls", path="tree/nothing")[0] == "FILE_NOT_FOUND"
    assert refusal(agent, "vm_ls", path="tree", glob="/etc/*")[0] == "USAGE"
    agent.call("vm_bash", command="mkdir many; cd many; seq 1 800 | xargs touch; seq 1 800 >numbers")
    many, text = agent.full("vm_ls", path="many")
    assert (len(many["entries"]), many["left_out"], text.splitlines()[-1]) == (
        500,
        301,
        "[301 more: narrow it with path or glob]",
    )
    found, text = agent.full("vm_grep", pattern=r"(?i)\bparse\b", path="tree")
    assert text == "tree/src/a.py:1:def parse():\ntree/src/deep/b c.ts:1:const Parse = 7"
    assert found["matches"][0] == {"file": "tree/src/a.py", "line": 1, "text": "def parse():"}
    only = agent.call("vm_grep", pattern="arse", path="/root/tree", include="*.{js,ts}")
    assert [match["file"] for match in only["matches"]] == ["/root/tree/src/deep/b c.ts"]
    assert agent.call("vm_grep", pattern="-n$(touch no)'", path="tree")["matches"] == []
    assert agent.call("vm_grep", pattern="^[0-9]+$", path="many")["left_out"] == 600
    assert refusal(agent, "vm_grep", pattern="(")[0] == "BAD_PATTERN"
    assert refusal(agent, "vm_grep", pattern="x", path="nothing")[0] == "FILE_NOT_FOUND"
    assert agent.call("vm_bash", command="test -e /root/no")["exit_code"] == 1


def test_a_background_job_is_read_from_any_offset_and_killed(agent: Agent) -> None:
    mark = "echo one; echo err >&2; mkfifo /tmp/go; read -r x </tmp/go; printf 'zwö\\n'; exec sleep 613"
    job = agent.call("vm_bash", command=mark, background=True, working_dir="/tmp")["job_id"]
    while agent.call("vm_job_tail", job_id=job)["size"] == 0 or agent.call("vm_bash", command="test -p /tmp/go")["exit_code"]:
        pass  # each iteration waits for the machine's answer
    status = agent.call("vm_job_status", job_id=job)
    assert (status["status"], status["exit_code"], status["command"]) == ("running", None, mark)
    assert (status["stdout_tail"], status["stderr_tail"]) == ("one\n", "err\n")
    agent.call("vm_bash", command="echo >/tmp/go")
    offset, text = 0, ""
    while not text.endswith("zwö\n"):
        piece = agent.call("vm_job_tail", job_id=job, offset=offset)
        text += piece["text"]
        assert piece["offset"] == offset
        offset = piece["next_offset"]
    assert text == "one\nzwö\n"
    assert agent.call("vm_job_tail", job_id=job, offset=6)["text"] == "ö\n"
    assert agent.call("vm_job_tail", job_id=job, stream="stderr")["text"] == "err\n"
    cancelled = agent.call("vm_job_cancel", job_id=job)
    assert (cancelled["was_running"], cancelled["status"], cancelled["exit_code"]) == (True, "exited", 143)
    assert agent.call("vm_job_cancel", job_id=job)["was_running"] is False
    assert agent.call("vm_job_tail", job_id=job, offset=offset)["complete"] is True
    assert job in [each["job_id"] for each in agent.call("vm_job_list")["jobs"]]
    assert refusal(agent, "vm_job_tail", job_id="run-nothing")[0] == "JOB_NOT_FOUND"
    assert refusal(agent, "vm_job_status", job_id="../x")[0] == "USAGE"


def test_cleanup_kills_leftovers_of_commands_and_jobs_and_nothing_else(agent: Agent) -> None:
    job = agent.call("vm_bash", command="echo; exec sleep 701", background=True)["job_id"]
    ended = agent.call("vm_bash", command="setsid sleep 702 >/dev/null 2>&1 & echo $!", background=True)["job_id"]
    running = agent.begin("vm_bash", command="echo >/tmp/runs; sleep 703; true")
    agent.call(
        "vm_bash", command="until [ -e /tmp/runs ]; do sleep 0.01; done; setsid sleep 704 >/dev/null 2>&1 & sleep 705 & exit 1"
    )
    while agent.call("vm_job_status", job_id=ended)["status"] == "running":
        pass  # each iteration waits for the machine's answer
    seen = agent.call("vm_sweep_orphans", look_only=True)
    assert sorted(each["command"] for each in seen["processes"]) == ["sleep 702", "sleep 704", "sleep 705"]
    swept, text = agent.full("vm_sweep_orphans")
    assert (len(swept["processes"]), swept["ended"], text.startswith("ended 3 on m")) == (3, True, True)
    assert f"job {ended}" in [each["started_by"] for each in swept["processes"]]
    assert [len(processes_with(f"sleep\x00{number}")) for number in (701, 702, 704, 705)] == [1, 0, 0, 0]
    assert not running.done()
    assert agent.call("vm_sweep_orphans")["processes"] == []
    running.cancel()
    agent.call("vm_job_cancel", job_id=job)


@needs("ps")
def test_the_state_of_a_machine_is_reported(agent: Agent) -> None:
    stats, text = agent.full("vm_stats")
    assert stats["cpus"] >= 1
    assert 0 < stats["memory_available_mb"] <= stats["memory_total_mb"]
    assert 0 < stats["disk_free_mb"] <= stats["disk_total_mb"]
    assert 58 < stats["ttl_remaining_minutes"] <= 60
    assert stats["busiest"]
    assert text.startswith("m: ")


BOUNDS = [
    pytest.param(512, 400, id="the disk is a folder"),
    pytest.param(512, 200, id="the disk is in memory"),
]


@pytest.mark.parametrize(("memory_mb", "disk_mb"), BOUNDS)
def test_a_local_machine_reports_its_own_limits_and_usage(
    agent: Agent, line: CommandLine, memory_mb: int, disk_mb: int
) -> None:
    name = f"bounded-{disk_mb}"
    line.repository(name, {".gibil.yml": f"machine: {{memory: {memory_mb}, disk: {disk_mb}}}\n"})
    agent.call("create_server", name=name, repo=str(line.here / name), wait="ready")
    before, text = agent.full("vm_stats", server=name)
    assert (before["memory_total_mb"], before["notes"]) == (memory_mb, [])
    # A separate disk has a file system, which uses a little of it.
    assert 0.9 * disk_mb <= before["disk_total_mb"] <= disk_mb
    assert f"of {memory_mb} MB free; disk: " in text
    assert f"of {before['disk_total_mb']} MB free; " in text
    assert memory_mb - 150 < before["memory_available_mb"] <= memory_mb
    assert disk_mb - 50 < before["disk_free_mb"] <= disk_mb

    hold = 'exec python3 -c \'x = b"x" * (100 << 20); open("/run/held", "w"); import time; time.sleep(600)\''
    job = agent.call("vm_bash", server=name, command=hold, background=True)["job_id"]
    agent.call("vm_bash", server=name, command="until [ -e /run/held ]; do sleep 0.01; done")
    held = agent.call("vm_stats", server=name)
    assert 90 <= before["memory_available_mb"] - held["memory_available_mb"] <= 130
    agent.call("vm_job_cancel", server=name, job_id=job)
    freed = agent.call("vm_stats", server=name)
    assert abs(before["memory_available_mb"] - freed["memory_available_mb"]) <= 25

    agent.call("vm_bash", server=name, command="head -c 52428800 /dev/urandom >/root/file; sync")
    written = agent.call("vm_stats", server=name)
    assert 48 <= freed["disk_free_mb"] - written["disk_free_mb"] <= 55
    agent.call("vm_bash", server=name, command="rm /root/file")
    assert abs(agent.call("vm_stats", server=name)["disk_free_mb"] - freed["disk_free_mb"]) <= 5
    agent.call("destroy_server", name=name)


def test_a_daemon_without_usage_reports_gives_the_hosts_numbers_marked_as_such(agent: Agent, line: CommandLine) -> None:
    own = agent.call("vm_stats")
    assert (own["memory_total_mb"], own["notes"]) == (SIZES_MB["small"], [])
    with older_daemon(line.paths):
        hosts, text = agent.full("vm_stats")
    assert hosts["disk_total_mb"] >= own["disk_total_mb"]
    (note,) = hosts["notes"]
    assert note.startswith(
        "memory and disk are its host's: the limits of a local machine's size are below them; this machine's daemon"
    )
    assert f"[{note}]" in text
    assert agent.call("vm_stats")["notes"] == []


def test_calls_run_concurrently_and_a_cancelled_one_is_killed_on_the_machine(agent: Agent) -> None:
    agent.call("vm_bash", command="mkfifo /tmp/a /tmp/b")
    first = agent.begin("vm_bash", command="echo 1 >/tmp/a; cat /tmp/b")
    second = agent.begin("vm_bash", command="cat /tmp/a; echo 2 >/tmp/b")
    assert [opened(each.result(patient(30)))[0]["stdout"] for each in (first, second)] == ["2\n", "1\n"]
    endless = agent.begin("vm_bash", command="echo >/tmp/begun; sleep 706 & sleep 707")
    agent.call("vm_bash", command="until [ -e /tmp/begun ]; do sleep 0.01; done")
    endless.cancel()
    deadline = time.monotonic() + patient(20)
    while processes_with("sleep\x00706") or processes_with("sleep\x00707"):
        assert time.monotonic() < deadline
        agent.call("vm_bash", command="true")  # a pause that depends on the machine


def test_a_machine_destroyed_elsewhere_is_a_clear_error_and_its_name_is_free(agent: Agent, line: CommandLine) -> None:
    agent.call("create_server", name="gone")
    waiting = agent.begin("vm_bash", command="echo >/tmp/begun; sleep 708", server="gone")
    agent.call("vm_bash", command="until [ -e /tmp/begun ]; do sleep 0.01; done", server="gone")
    assert line.gibil("destroy", "gone").returncode == 0
    with pytest.raises(ToolError, match="machine gone no longer exists") as caught:
        opened(waiting.result(patient(30)))
    assert caught.value.code == "MACHINE_LOST"
    assert refusal(agent, "vm_ls", server="gone") == ("SERVER_NOT_FOUND", "Server 'gone' not found; existing machines: m")
    agent.call("create_server", name="gone")
    assert agent.call("vm_bash", command="ls /tmp", server="gone")["stdout"] == ""


def test_a_machine_whose_creation_is_cancelled_is_destroyed(agent: Agent, line: CommandLine) -> None:
    repository = line.repository(f"slow-{secrets.token_hex(4)}", {".gibil.yml": "tasks: [{name: wait, run: sleep 710}]\n"})
    making = agent.begin("create_server", name="called-off", repo=str(repository), wait="tasks")

    def names() -> list[str]:
        return [server["name"] for server in agent.call("list_servers")["servers"]]

    while "called-off" not in names() or not processes_with("sleep\x00710"):
        assert not making.done(), making.result()
    making.cancel()
    while "called-off" in names():
        pass  # each iteration waits for the server's answer
    assert processes_with("sleep\x00710") == []


async def test_a_lost_connection_is_reopened_and_only_repeatable_calls_are_retried(agent: Agent, line: CommandLine) -> None:
    links = MachineConnections(load_settings({"GIBIL_DATA_DIR": str(line.data_dir)}))
    seen: list[MachineSession] = []

    async def cut_off(live: MachineSession) -> str:
        seen.append(live)
        if len(seen) == 1:
            live.shell._connection._connection.abort()  # type: ignore[attr-defined]
        return (await live.run("echo here")).stdout

    try:
        assert await links.work(None, cut_off, repeatable=True) == "here\n"
        assert len(seen) == 2
        connection = seen[1].shell._connection._connection  # type: ignore[attr-defined]
        connection.abort()
        await connection.wait_closed()
        assert await links.work("m", cut_off, repeatable=False) == "here\n"  # it was lost earlier, and not during the call
        seen.clear()
        with pytest.raises(MachineLost, match="Machine m still exists; the call may have taken effect"):
            await links.work("m", cut_off, repeatable=False)
        assert await links.work("m", cut_off, repeatable=False) == "here\n"
    finally:
        await links.close()


def test_a_disconnecting_client_ends_the_server_and_its_commands_but_not_the_machine(
    agent: Agent, line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_killed_after_s = patient(2.0)
    monkeypatch.setattr("mcp.client.stdio.PROCESS_TERMINATION_TIMEOUT", is_killed_after_s)
    with agent_of(line) as other:
        running = other.begin("vm_bash", command="echo >/tmp/other; sleep 709", server="m")
        agent.call("vm_bash", command="until [ -e /tmp/other ]; do sleep 0.01; done")
        began = time.monotonic()
        other.hang_up()
        assert time.monotonic() - began < is_killed_after_s - 0.1
        assert running.exception(5) is not None
        assert "Traceback" not in other.stderr_text()
    assert processes_with("sleep\x00709") == []
    assert agent.call("vm_bash", command="echo lives")["stdout"] == "lives\n"


def test_sigterm_ends_the_server_promptly_and_stdout_has_only_protocol_messages(line: CommandLine) -> None:
    process = line.start("mcp", stdin=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    opening = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "by hand", "version": "1"}}
    messages = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": opening},
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "vm_stats", "arguments": {"server": "nobody"}}},
    ]
    process.stdin.write(b"this is no JSON\n" + b"".join(json.dumps(message).encode() + b"\n" for message in messages))
    process.stdin.flush()
    rejected, *answers = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert (rejected["id"], rejected["error"]["code"]) == (None, -32700)
    assert answers[0]["result"]["serverInfo"]["name"] == "gibil"
    assert answers[1]["result"]["isError"] is True
    assert answers[1]["result"]["content"][0]["text"].startswith("SERVER_NOT_FOUND: ")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=patient(5)) == 0
    assert process.stdout.read() == b""
    process.stdin.close()


def test_the_configuration_is_printed_and_usage_errors_are_reported(line: CommandLine) -> None:
    printed, as_json, wrong = line.many([["mcp", "--print-config"], ["mcp", "--print-config", "--json"], ["mcp", "--json"]])
    config = json.loads(printed.stdout)
    assert json.loads(as_json.stdout) == config
    entry = config["mcpServers"]["gibil"]
    assert entry["type"] == "stdio"
    assert os.access(entry["command"], os.X_OK)
    assert entry["args"][-1] == "mcp"
    assert entry["env"] == {"GIBIL_DATA_DIR": str(line.data_dir)}
    assert (wrong.returncode, json.loads(wrong.stdout)["code"]) == (2, "USAGE")
    closed = line.bash("gibil mcp <&-; echo $?; gibil mcp </dev/null 2>&-; echo $?")
    assert (closed.stdout, closed.stderr) == (
        "2\n0\n",
        "gibil: stdin or stdout is closed: gibil mcp must be started by an MCP client\n",
    )


def test_the_command_line_starts_without_importing_the_protocols_library() -> None:
    script = "import sys; from gibil_bot.cli import gibil; gibil(['mcp', '--print-config'], standalone_mode=False); "
    check = "sys.exit(any(name in sys.modules for name in ('mcp', 'pydantic', 'asyncssh')))"
    assert subprocess.run([sys.executable, "-c", script + check], capture_output=True).returncode == 0
