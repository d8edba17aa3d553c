"""Working on a machine: streamed output, Ctrl-C, background jobs, a terminal, and readers that disconnect."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import processes_with, shared_folder
from tests.doubles.patience import patient
from tests.doubles.terminal import Terminal, read_descriptor, read_until

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("machine sessions")]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """One machine, `m`, that every test here uses."""
    with command_line(tmp_path_factory.mktemp("sessions"), shared_folder(tmp_path_factory), own_daemon=True) as line:
        line.json("create", "--name", "m")
        yield line


def gone(mark: str) -> None:
    deadline = time.monotonic() + patient(10)
    while processes_with(mark):
        assert time.monotonic() < deadline, f"{mark} goes on"
        time.sleep(0.02)


def test_both_streams_are_passed_on_live_and_unchanged(line: CommandLine) -> None:
    process = line.start(
        "run", "m", "mkfifo /root/go; printf 'first\\377\\n'; read x </root/go; echo $x; echo wrong >&2; exit 6"
    )
    assert read_until(process, b"\n") == b"first\xff\n"
    line.gibil("run", "m", "echo now >/root/go")
    out, err = process.communicate(timeout=patient(20))
    assert (out, err, process.returncode) == (b"now\n", b"wrong\n", 6)


def test_ctrl_c_is_sent_to_the_command_which_can_handle_it(line: CommandLine) -> None:
    handled = line.start("run", "m", "trap 'echo stopping; exit 9' INT; echo up; while :; do sleep 0.05; done")
    read_until(handled, b"up\n")
    handled.send_signal(signal.SIGINT)
    out, _ = handled.communicate(timeout=patient(20))
    assert (out, handled.returncode) == (b"stopping\n", 9)

    mark = f"1{os.getpid()}.017"
    plain = line.start("run", "m", f"echo up; sleep {mark}; echo never")
    read_until(plain, b"up\n")
    plain.send_signal(signal.SIGINT)
    out, _ = plain.communicate(timeout=patient(20))
    assert (out, plain.returncode) == (b"", 130)
    gone(mark)


def test_a_second_ctrl_c_kills_a_command_that_ignores_the_first(line: CommandLine) -> None:
    mark = f"1{os.getpid()}.018"
    stubborn = line.start("run", "m", f"trap 'echo no' INT; echo up; while :; do sleep {mark}; done")
    read_until(stubborn, b"up\n")
    stubborn.send_signal(signal.SIGINT)
    read_until(stubborn, b"no\n")
    stubborn.send_signal(signal.SIGINT)
    stubborn.communicate(timeout=patient(20))
    assert stubborn.returncode == 130
    gone(mark)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_killing_the_client_kills_its_command(line: CommandLine, how: signal.Signals) -> None:
    mark = f"1{os.getpid()}.0{int(how)}9"
    process = line.start("run", "m", f"echo up; sleep {mark}")
    read_until(process, b"up\n")
    process.send_signal(how)
    process.communicate(timeout=patient(20))
    gone(mark)


def test_a_command_that_exceeds_its_timeout_is_killed_and_reported(line: CommandLine) -> None:
    mark = f"1{os.getpid()}.020"
    done = line.gibil("run", "m", f"echo before; sleep {mark}", "--timeout", "0.5", "--json")
    assert json.loads(done.stdout) == {"stdout": "before\n", "stderr": "", "exit_code": 124, "timed_out": True}
    assert done.returncode == 124
    gone(mark)


def test_one_commands_environment_overrides_the_machines_and_is_not_in_the_process_list(line: CommandLine) -> None:
    value = 'it\'s\n"two" lines $HOME `x`'
    look = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -c 'lin[e]s $H'"
    done = line.gibil("run", "m", f'printf %s "$V"; {look}', "--env", f"V={value}")
    assert done.stdout == f"{value}0\n"
    assert line.gibil("run", "m", "echo $PATH $V", "--env", "PATH=/usr/bin:/bin:/mine").stdout == "/usr/bin:/bin:/mine\n"


def test_a_background_job_continues_and_its_logs_can_be_followed_from_the_beginning(line: CommandLine) -> None:
    started = line.json("run", "m", "echo one; mkfifo /root/p; read x </root/p; echo two; echo bad >&2; exit 3", "--background")
    job = started["job_id"]
    assert started == {"stdout": "", "stderr": "", "exit_code": None, "job_id": job}
    entry = next(each for each in line.json("jobs", "m") if each["job_id"] == job)
    assert (entry["status"], entry["exit_code"]) == ("running", None)
    assert entry["command"].startswith("echo one; mkfifo")
    following = line.start("logs", "m", job, "-f")
    read_until(following, b"one\n")
    line.gibil("run", "m", "echo go >/root/p")
    out, err = following.communicate(timeout=patient(20))
    assert (out, err, following.returncode) == (b"two\n", b"bad\n", 0)
    assert line.json("logs", "m", job) == {
        "name": "m",
        "job_id": job,
        "stdout": "one\ntwo\n",
        "stderr": "bad\n",
        "exit_code": None,
    }
    assert line.json("logs", "m", job, "-f")["exit_code"] == 3
    entry = next(each for each in line.json("jobs", "m") if each["job_id"] == job)
    assert (entry["status"], entry["exit_code"]) == ("exited", 3)
    table = line.gibil("jobs", "m").stdout
    assert re.search(rf"^{job} +exited +3 ", table, re.MULTILINE)
    unknown = line.gibil("logs", "m", "run-00000000", "--json")
    assert (unknown.returncode, json.loads(unknown.stdout)["code"]) == (2, "JOB_NOT_FOUND")


def test_ctrl_c_ends_the_following_and_not_the_job(line: CommandLine) -> None:
    job = line.json("run", "m", "echo up; sleep 600", "--background")["job_id"]
    following = line.start("logs", "m", job, "-f")
    read_until(following, b"up\n")
    following.send_signal(signal.SIGINT)
    following.communicate(timeout=patient(20))
    assert following.returncode == 130
    assert next(each for each in line.json("jobs", "m") if each["job_id"] == job)["status"] == "running"


def test_a_background_job_is_killed_at_its_timeout(line: CommandLine) -> None:
    job = line.json("run", "m", "sleep 600", "--background", "--timeout", "0.3")["job_id"]
    assert line.json("logs", "m", job, "-f")["exit_code"] == 124


@pytest.mark.parametrize(
    "arguments", [("run", "m", "yes"), ("list", "--json"), ("logs", "m", "JOB", "-f"), ("run", "m", "seq 99999", "--json")]
)
def test_the_command_ends_quietly_when_its_reader_exits(line: CommandLine, arguments: tuple[str, ...]) -> None:
    if "JOB" in arguments:
        job = line.json("run", "m", "yes | head -c 3000000; sleep 600", "--background")["job_id"]
        arguments = tuple(job if word == "JOB" else word for word in arguments)
    process = line.start(*arguments)
    assert process.stdout is not None
    if arguments[0] != "list" and "--json" not in arguments:
        os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read()
    assert (process.wait(timeout=patient(20)), errors) == (141, b"")
    process.stderr.close()


# A terminal


@pytest.fixture
def terminal(line: CommandLine) -> Iterator[Terminal]:
    terminal = Terminal(line, "ssh", "m")
    yield terminal
    terminal.close()


def test_ssh_opens_a_real_terminal_that_can_be_resized_and_passes_ctrl_c(terminal: Terminal) -> None:
    terminal.type("PS1='# '; stty size; tty; echo $TERM\n")
    shown = terminal.until("xterm")
    assert "30 90" in shown
    assert "/dev/pts/" in shown
    terminal.resize(120, 40)
    terminal.type("while [ \"$(stty size)\" != '40 120' ]; do sleep 0.02; done; echo re''sized\n")
    terminal.until("resized")
    terminal.type("sh -c 'echo slee''ping; exec sleep 600'\n")
    terminal.until("sleeping")  # ssh has the terminal by now and receives the key
    terminal.type("\x03")
    terminal.type("echo st''ill\n")
    terminal.until("still")
    terminal.type("exit 5\n")
    assert terminal.wait() == 5


def test_a_closed_terminal_ends_its_processes_and_leaves_nothing(line: CommandLine) -> None:
    mark = f"1{os.getpid()}.030"
    line.repository("waits", {".gibil.yml": f"tasks: [{{name: t, run: echo busy; sleep {mark}}}]\n"})
    for arguments in (
        ("ssh", "m", f"echo bu''sy; sleep {mark}"),
        ("run", "m", f"echo bu''sy; sleep {mark}"),
        ("create", "--name", "half", "--repo", "waits", "--wait", "tasks"),
    ):
        terminal = Terminal(line, *arguments)
        terminal.until("busy")
        os.close(terminal.master)
        assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130, arguments
        gone(mark)
    assert [view["name"] for view in line.json("list")] == ["m"]


def test_a_closed_terminal_means_130_also_before_the_hangup_signal_arrives(line: CommandLine) -> None:
    mark = f"1{os.getpid()}.031"
    terminal = Terminal(line, "ssh", "m", f"echo bu''sy; sleep {mark}", hears_hangup=False)
    terminal.until("busy")
    os.close(terminal.master)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130
    gone(mark)


def test_the_local_terminal_is_restored_when_ssh_is_killed_with_sigterm(line: CommandLine) -> None:
    ours, theirs = pty.openpty()
    try:
        before = termios.tcgetattr(theirs)
        process = subprocess.Popen(
            [sys.executable, "-m", "gibil_bot", "ssh", "m"],
            env=line.environment(TERM="xterm"),
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
        )
        os.write(ours, b"echo he''re\n")
        read_descriptor(ours, b"here")
        assert termios.tcgetattr(theirs)[3] != before[3]
        process.terminate()
        # Read pending output, or the terminal never drains.
        while process.poll() is None:
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 65536)
        assert process.stderr is not None
        process.stderr.close()
        assert termios.tcgetattr(theirs)[3] == before[3]
    finally:
        os.close(ours)
        os.close(theirs)


def test_ssh_without_a_terminal_is_a_pipe(line: CommandLine) -> None:
    data = bytes(range(256)) * 3000
    done = subprocess.run(
        [sys.executable, "-m", "gibil_bot", "ssh", "m", "cat;", "echo", "oops", ">&2;", "exit", "7"],
        env=line.environment(),
        input=data,
        capture_output=True,
        timeout=patient(30),
    )
    assert (done.stdout == data, done.stderr, done.returncode) == (True, b"oops\n", 7)
    assert line.gibil("ssh", "m", "--", "echo", "-n", "as kubectl has it").stdout == "as kubectl has it"


@pytest.mark.parametrize("command", ["run", "ssh"])
def test_input_from_a_non_blocking_pipe_arrives_completely(line: CommandLine, command: str) -> None:
    theirs, ours = os.pipe()
    os.set_blocking(theirs, False)
    process = subprocess.Popen(
        [sys.executable, "-m", "gibil_bot", command, "m", "head -n 1; wc -c"],
        env=line.environment(),
        stdin=theirs,
        stdout=subprocess.PIPE,
    )
    os.close(theirs)
    assert process.stdout is not None
    with process, open(ours, "wb", buffering=0) as pipe:
        pipe.write(b"first\n")
        assert process.stdout.readline() == b"first\n"  # the command has emptied the pipe
        pipe.write(b"x" * 50_000)
        pipe.close()
        assert process.stdout.read() == b"50000\n"


def test_commands_and_machines_are_completed(line: CommandLine) -> None:
    script = line.gibil("completion", "bash").stdout
    path = line.folder / "completion"
    path.write_text(script)
    first = 'COMP_WORDS=(gibil run ""); COMP_CWORD=2; _gibil_completion gibil; echo "${COMPREPLY[@]}"'
    second = 'COMPREPLY=(); COMP_WORDS=(gibil ext); COMP_CWORD=1; _gibil_completion gibil; echo "${COMPREPLY[@]}"'
    done = line.bash(f". {path}; {first}; {second}")
    assert done.stdout.splitlines() == ["m", "extend"]


def test_no_output_is_lost_when_a_follower_is_killed(line: CommandLine) -> None:
    job = line.json("run", "m", "for i in 1 2 3; do echo $i; done; mkfifo /root/q; read x </root/q; echo 4", "--background")[
        "job_id"
    ]
    first = line.start("logs", "m", job, "-f")
    read_until(first, b"3\n")
    first.kill()
    first.communicate()
    line.gibil("run", "m", "echo go >/root/q")
    assert line.json("logs", "m", job, "-f")["stdout"] == "1\n2\n3\n4\n"
