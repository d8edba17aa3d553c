"""`gibil create` is killed before it reports its machine: the next command destroys or reports the machine."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gibil_bot.providers.local.paths import read_daemon
from tests.doubles.cloud import Cloud, cloud
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.hetzner_routes import Fault
from tests.doubles.machines import children_of, shared_folder
from tests.doubles.patience import patient
from tests.doubles.prefork import Forked
from tests.doubles.programs import write_program
from tests.doubles.terminal import read_descriptor

WAITS = {".gibil.yml": "tasks: [{name: waits, run: sleep 600}]\n"}


@pytest.fixture
def line(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path, shared_folder(tmp_path_factory), own_daemon=True) as line:
        yield line


@pytest.fixture
def hetzner() -> Iterator[Cloud]:
    """A Hetzner Cloud whose servers never boot, so that SSH never answers."""
    with cloud() as hetzner:
        yield hetzner


@pytest.fixture
def at_hetzner(hetzner: Cloud, tmp_path: Path) -> Iterator[CommandLine]:
    line = CommandLine(tmp_path, hetzner.settings)
    line.here.mkdir()
    yield line
    line.end()


def until(condition: Callable[[], object], what: str) -> None:
    """Poll the double's state, which another thread changes."""
    deadline = time.monotonic() + patient(20)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def kill(process: Forked) -> None:
    """Kill the process and everything that it started, as at the end of a container."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=patient(20))


def report_of_killed_creations(line: CommandLine, *arguments: str) -> str:
    done = line.gibil(*(arguments or ("list",)))
    assert done.returncode == 0, done.stderr
    return "".join(row for row in done.stderr.splitlines(keepends=True) if "there are no machines" not in row)


def records(line: CommandLine) -> list[Path]:
    return list((line.data_dir / "makings").iterdir())


def stop_while_the_code_is_sent(line: CommandLine) -> Callable[[int], None]:
    """From now on `git pack-objects` blocks. The returned function waits until `count` do; their machines exist by then."""
    fifo = line.folder / "bundles"
    os.mkfifo(fifo)
    shim = line.folder / "bin" / "git"
    real = shutil.which("git")
    blocks = f'case " $* " in *" pack-objects "*) echo here >{fifo}; exec sleep 600 ;; esac'
    write_program(shim, f'{blocks}\nexec {real} "$@"')

    def wait(count: int) -> None:
        pipe = os.open(fifo, os.O_RDWR)  # not read-only, because the writers open and close it repeatedly
        try:
            for _ in range(count):
                read_descriptor(pipe, b"here\n", len("here\n"))
        finally:
            os.close(pipe)

    return wait


def test_the_next_command_destroys_an_incomplete_machine_and_reports_it(line: CommandLine) -> None:
    line.repository("project", WAITS)
    line.json("create", "--name", "warm")
    assert records(line) == []
    waits = stop_while_the_code_is_sent(line)
    process = line.start("create", "--name", "lost", "--repo", "project")
    waits(1)
    (record,) = records(line)
    assert report_of_killed_creations(line) == "", "its creator is still running"
    assert {view["name"] for view in line.json("list")} == {"warm", "lost"}
    content = record.read_bytes()
    kill(process)
    assert report_of_killed_creations(line) == "gibil: destroyed lost: a killed `gibil create` left it incomplete\n"
    assert report_of_killed_creations(line) == ""
    assert ([view["name"] for view in line.json("list")], records(line)) == (["warm"], [])

    line.json("create", "--name", "lost")
    record.write_bytes(content)  # as if two commands had found it, and one was slow
    assert report_of_killed_creations(line) == "", "another machine has the name of the lost one"
    assert line.gibil("run", "lost", "true").returncode == 0


def test_an_incomplete_fleet_is_destroyed_as_a_whole_and_its_names_are_free_at_once(line: CommandLine) -> None:
    line.repository("project", WAITS)
    waits = stop_while_the_code_is_sent(line)
    process = line.start("create", "--fleet", "2", "--name", "lost", "--repo", "project")
    waits(2)
    kill(process)
    again = line.gibil("create", "--name", "lost-1", "--json")
    assert again.returncode == 0, again.stderr
    rows = [row for row in again.stderr.splitlines() if "destroyed" in row]
    assert sorted(rows) == [f"gibil: destroyed lost-{n}: a killed `gibil create` left it incomplete" for n in (1, 2)]
    assert ([view["name"] for view in line.json("list")], records(line)) == (["lost-1"], [])


def test_a_complete_machine_is_reported_once_unless_it_was_used_or_destroyed(line: CommandLine) -> None:
    line.repository("project", WAITS)
    for name in ("offered", "taken", "destroyed"):
        process = line.start("create", "--name", name, "--repo", "project", "--wait", "tasks", "--json")
        assert process.stderr is not None
        while b"=== waits" not in process.stderr.readline():
            assert process.poll() is None
        assert report_of_killed_creations(line) == "", "its creator is still running"
        kill(process)
        assert len(records(line)) == 1
        if name == "offered":
            offer = report_of_killed_creations(line)
            assert offer == (
                "gibil: offered was created by a `gibil create` that ended before it could report it: "
                "use it (gibil ssh offered), or destroy it (gibil destroy offered)\n"
            )
        elif name == "taken":
            assert line.gibil("run", "taken", "test -e /root/.gibil-ready").returncode == 0
        else:
            line.json("destroy", "destroyed")
        assert report_of_killed_creations(line) == ""
        assert records(line) == []
    assert {view["name"] for view in line.json("list")} == {"offered", "taken"}


def test_a_machine_whose_name_was_not_read_is_reported(line: CommandLine) -> None:
    done = line.bash("gibil create --name unread --json | true; echo ${PIPESTATUS[0]}")
    assert done.stdout == "141\n"
    assert "gibil ssh unread" in report_of_killed_creations(line)


def test_a_machine_requested_from_the_daemon_by_a_killed_command_is_destroyed(line: CommandLine) -> None:
    line.json("create", "--name", "warm")
    daemon = read_daemon(line.paths)
    assert daemon is not None
    (fork_server,) = children_of(daemon.pid)
    os.kill(fork_server, signal.SIGSTOP)
    try:
        process = line.start("create", "--name", "asked")
        until(lambda: (line.paths.machines / "asked").exists(), "the daemon has started the creation")
        kill(process)
    finally:
        os.kill(fork_server, signal.SIGCONT)
    until(lambda: (line.paths.machines / "asked" / "machine.json").exists(), "the daemon creates the requested machine")
    assert report_of_killed_creations(line) == "gibil: destroyed asked: a killed `gibil create` left it incomplete\n"
    assert [path.name for path in line.paths.machines.iterdir()] == ["warm"]


@pytest.mark.parametrize("moment", ["created, response lost", "requested", "booting"])
def test_the_server_of_a_killed_command_is_destroyed(hetzner: Cloud, at_hetzner: CommandLine, moment: str) -> None:
    double, line = hetzner.double, at_hetzner
    answer = asyncio.Event()
    if moment == "created, response lost":
        double.api.faults.append(Fault("POST", "/servers", after=True, hang=answer))
    elif moment == "requested":
        double.api.faults.append(Fault("POST", "/servers", late=True, hang=answer))
    process = line.start("create", "--name", "lost")
    if moment == "requested":
        until(lambda: "POST /servers" in [call for call, _body in double.api.bodies], "the server is requested")
    elif moment == "created, response lost":
        until(lambda: double.state.servers, "the server is created")
    else:
        assert process.stderr is not None
        while b"created lost" not in process.stderr.readline():
            assert process.poll() is None
        assert report_of_killed_creations(line) == "", "its creator is still running"
    assert hetzner.names == (set() if moment == "requested" else {"lost"})
    kill(process)
    if moment == "requested":
        assert report_of_killed_creations(line) == "", "it doesn't exist yet"

        async def answer_now() -> None:
            answer.set()

        hetzner.do(answer_now())
        until(lambda: double.state.servers, "the server is created after all")
    other = CommandLine(line.folder / "other", hetzner.settings)
    other.here.mkdir(parents=True)
    assert report_of_killed_creations(other) == "", "another computer doesn't touch the machine"
    assert report_of_killed_creations(line) == "gibil: destroyed lost: a killed `gibil create` left it incomplete\n"
    assert (hetzner.names, double.state.primary_ips, records(line)) == (set(), {}, [])


def test_a_second_ctrl_c_leaves_the_cleanup_to_the_next_command(hetzner: Cloud, at_hetzner: CommandLine) -> None:
    double, line = hetzner.double, at_hetzner
    answer = asyncio.Event()
    process = line.start("create", "--name", "lost", "--json")
    assert process.stderr is not None
    while b"created lost" not in process.stderr.readline():
        assert process.poll() is None
    fault = Fault("DELETE", r"/servers/\d+", hang=answer)
    double.api.faults.append(fault)
    process.send_signal(signal.SIGINT)
    while b"press Ctrl-C again to leave that to the next gibil command" not in process.stderr.readline():
        assert process.poll() is None
    until(lambda: any(call.startswith("DELETE /servers") for call in double.api.calls), "it is being destroyed")
    process.send_signal(signal.SIGINT)
    out, _err = process.communicate(timeout=patient(30))
    result = json.loads(out)
    assert (process.returncode, result["code"]) == (130, "INTERRUPTED")
    assert result["message"] == "interrupted; lost may still exist: the next gibil command destroys the rest"

    async def answer_now() -> None:
        answer.set()

    hetzner.do(answer_now())
    report_of_killed_creations(line)
    assert (hetzner.names, double.state.primary_ips, records(line)) == (set(), {}, [])
