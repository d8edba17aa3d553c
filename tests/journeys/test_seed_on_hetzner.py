"""The seed's contract on cloud servers that really boot: the same shell examples, commands and JSON keys."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contracts import seed_examples as seed
from tests.doubles.agent import agent_of
from tests.doubles.cloud import Cloud
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.terminal import Terminal
from tests.doubles.tools import needs


@pytest.fixture
def line(hetzner: Cloud, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    shared = shared_folder(tmp_path_factory)
    with command_line(tmp_path, shared, hetzner.settings, forked_in_scripts=True) as line:
        yield line


@needs("jq")
def test_the_seeds_examples_work_unchanged_on_cloud_servers(hetzner: Cloud, line: CommandLine) -> None:
    """One sequence on six servers: each takes seconds to boot, so they boot in parallel."""
    project = line.repository("project", seed.PROJECT)
    line.git(line.here, "clone", "-q", str(project), "work")

    def branch() -> str:
        done = line.bash("cd work && gibil branch main --ttl 10 --run 'git log --oneline | wc -l' --json")
        assert done.returncode == 0, done.stderr
        view = json.loads(done.stdout)
        seed.check_created(view, "hetzner")
        assert view["run"] == {"stdout": "1\n", "stderr": "", "exit_code": 0}
        return str(view["name"])

    with ThreadPoolExecutor() as threads:
        agent = threads.submit(line.bash, seed.CREATE_AND_USE)
        parallel = threads.submit(line.bash, seed.PARALLEL_AGENTS, AGENTS="2", FLEET="2")
        flaky = threads.submit(branch)
        assert succeeded(agent.result()) == ["package.json"]
        work_on_the_agents_machine(hetzner, line, project)
        errors = line.bash(seed.ERROR_PATH, NAME=flaky.result())
        assert [text for text in errors.stdout.splitlines() if text] == seed.expected_error_output(flaky.result())
        assert succeeded(parallel.result()) == ["agent-1", "agent-2", "fleet-1", "fleet-2"]
    servers = {server["name"]: server for server in hetzner.double.state.servers.values()}
    made = [json.loads((line.here / f"created-{n}").read_text()) for n in (1, 2)]
    fleet = json.loads((line.here / "fleet").read_text())
    assert fleet.keys() == {"fleet_id", "instances"}
    for view in (*made, *fleet["instances"]):
        seed.check_created(view, "hetzner")
        server = servers[view["name"]]
        assert (view["server_id"], view["ip"], view["port"]) == (server["id"], server["public_net"]["ipv4"]["ip"], 22)
        assert view["ssh_key_id"] is None, "the project's key is unusable, and isn't the machine's"
        assert view["cost"].keys() == {"so_far", "hourly", "currency"}
    *listed, destroyed = succeeded(line.bash(seed.DESTROY))
    assert (set(listed), destroyed) == ({"agent-task", *servers}, "destroyed")
    *ran, fleet_size, first, second, left = succeeded(line.bash(seed.DESTROY_ALL, AGENTS="2"))
    assert (ran, fleet_size, first, second, left) == (["1", "2"], "2", "true", "true", "0")
    assert (hetzner.double.state.servers, hetzner.double.state.primary_ips) == ({}, {})


def succeeded(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def work_on_the_agents_machine(hetzner: Cloud, line: CommandLine, project: Path) -> None:
    server = next(each for each in hetzner.double.state.servers.values() if each["name"] == "agent-task")
    created = next(view for view in line.json("list") if view["name"] == "agent-task")
    assert (created["server_id"], created["ttl"]) == (server["id"], 20)
    assert created["cost"].keys() == {"so_far", "hourly", "currency"}
    seed.check_what_works_on_a_machine(line, "agent-task", created, repo=str(project))
    ran = line.gibil("run", "agent-task", "cat /etc/gibil/expires-at; echo said >&2; exit 3", "--json")
    result = json.loads(ran.stdout)
    assert (ran.returncode, result["exit_code"], result["stderr"]) == (3, 3, "said\n")
    assert abs(int(result["stdout"]) - time.time() - 30 * 60) < 60, "it powers off at its new expiry"
    terminal = Terminal(line, "ssh", "agent-task")
    try:
        terminal.type("PS1='# '; stty size; tty; test -w /dev/tty && echo lo''gged in as $(whoami)\n")
        shown = terminal.until("logged in as root")
        assert "30 90" in shown
        assert "/dev/pts/" in shown
        terminal.type("exit 5\n")
        assert terminal.wait() == 5
    finally:
        terminal.close()
    an_agent_works_over_mcp(line)


def an_agent_works_over_mcp(line: CommandLine) -> None:
    with agent_of(line) as agent:
        servers = {server["name"]: server for server in agent.call("list_servers")["servers"]}
        assert servers["agent-task"]["provider"] == "hetzner"
        ran = agent.call("vm_bash", server="agent-task", command="pwd; ls package.json; exit 3")
        assert (ran["stdout"], ran["exit_code"]) == ("/root/project\npackage.json\n", 3)
        agent.call("vm_write", server="agent-task", path="/root/project/notes/a.txt", content="one\ntwo\n")
        agent.call("vm_edit", server="agent-task", path="/root/project/notes/a.txt", old_string="two", new_string="three")
        assert "three" in agent.full("vm_read", server="agent-task", path="/root/project/notes/a.txt")[1]
        job = agent.call("vm_bash", server="agent-task", command="echo went on", background=True)["job_id"]
        assert job in {each["job_id"] for each in agent.call("vm_job_list", server="agent-task")["jobs"]}
        assert agent.call("extend_server", name="agent-task", ttl="5m")["ttl_minutes"] == 35
