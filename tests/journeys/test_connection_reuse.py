"""`gibil run` over a connection that an earlier command has left open: the same behaviour, and nothing is left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gibil_bot.warm_run import FOLDER
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.patience import patient

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("connection_reuse")]

IDLE = "GIBIL_CONNECTION_IDLE"
LAUNCHER = Path(__file__).parents[2] / "gibil_bot" / "packaging" / "gibil"
CLIENTS = {"perl": "perl/gibil", "python": "gibil-python"}
"""The launcher's own client, and warm_run.py. Users have `gibil`, which is the first one that can."""


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("reuse"), shared_folder(tmp_path_factory)) as line:
        install(line)
        line.json("create", "--name", "box", "--ttl", "1h")
        yield line
        for pid in holders(line):
            os.kill(pid, signal.SIGTERM)
        until(lambda: not holders(line))
        assert os.listdir(line.data_dir / FOLDER) == []


def install(line: CommandLine) -> None:
    """Install the launcher as pip does. `perl` is the same file without the Python that it starts when Perl can't go on."""
    commands = line.folder / "bin"
    (commands / "gibil").unlink()
    shutil.copy(LAUNCHER, commands / "gibil")
    (commands / "perl").mkdir()
    os.link(commands / "gibil", commands / "perl" / "gibil")
    program = commands / "gibil-python"
    program.write_text(f"#!{sys.executable}\nfrom gibil_bot.__main__ import main\nmain()\n")
    program.chmod(0o755)


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "perl" and not os.access("/usr/bin/perl", os.X_OK):
        pytest.skip("perl is not installed")
    return name


def until(condition: object, within_s: float = 20) -> None:
    deadline = time.monotonic() + patient(within_s)
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)  # another process's state


def holders(line: CommandLine, idle: str = "") -> list[int]:
    """Return the processes that hold connections of this data directory, or only those with that setting."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            words, environment = (each / "cmdline").read_bytes(), (each / "environ").read_bytes()
        except OSError:
            continue
        variables = environment.split(b"\0")
        wanted = [f"GIBIL_DATA_DIR={line.data_dir}".encode(), *([f"{IDLE}={idle}".encode()] if idle else [])]
        if b"gibil_bot.cli.connection_holder" in words and all(variable in variables for variable in wanted):
            found.append(int(each.name))
    return found


def is_warm(line: CommandLine) -> bool:
    return any((line.data_dir / FOLDER).glob("*.sock")) and line.bash("gibil run box true", **{IDLE: "5m"}).returncode == 0


@pytest.fixture
def warm(line: CommandLine) -> CommandLine:
    """The command line with a holder that has an open connection."""
    assert line.bash("gibil run box true", **{IDLE: "5m"}).returncode == 0
    until(lambda: is_warm(line))
    until(lambda: len(holders(line)) == 1)  # one that started at the same time ends
    return line


def run(line: CommandLine, script: str, client: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    if client is not None:
        script = f'client={line.folder}/bin/{CLIENTS[client]}; gibil() {{ "$client" "$@"; }}; {script}'
    return line.bash(script, **{IDLE: "5m"}, **more)


def started(line: CommandLine, command: str, program: str, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [line.folder / "bin" / program, "run", "box", command],
        env=line.environment(**{IDLE: "5m"}), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("script", "status", "stdout", "stderr"),
    [
        ("gibil run box 'echo out; echo err >&2; exit 3'", 3, "out\n", "err\n"),
        ("gibil run box -- printf '[%s]' 'a  b' ''", 0, "[a  b][]", ""),
        ("echo input | gibil run box 'cat; pwd'", 0, "input\n/root\n", ""),
        ("gibil run box 'cat' --no-stdin </dev/zero", 0, "", ""),
        ("gibil run box 'echo $A' --env A=1", 0, "1\n", ""),
        ("gibil run box 'exit 5' --json", 5, '{"stdout": "", "stderr": "", "exit_code": 5}\n', ""),
        ("gibil run box 'sleep 60' --timeout 0.2", 124, "", "gibil: the command took longer than 0.2 s and was killed\n"),
        ("head -c 20000000 /dev/zero | gibil run box cat | wc -c", 0, "20000000\n", ""),
        ("gibil run box 'yes | head -c 50000000' | (sleep 1; wc -c)", 0, "50000000\n", ""),
        ("gibil run box yes | head -1; echo ${PIPESTATUS[0]}", 0, "y\n141\n", ""),
        ("gibil run box 'echo x' >/dev/full", 1, "", "gibil: stdout can't be written: No space left on device\n"),
        ("gibil run box 'kill -TERM $$'", 143, "", ""),
        ("env LC_ALL=xx_XX.UTF-8 $client run box 'printf \"\\303\\244\\377\"' | od -An -tx1", 0, " c3 a4 ff\n", ""),
        ("trap '' HUP; gibil run box 'echo x'", 0, "x\n", ""),
    ],
)
def test_a_command_over_a_held_connection_behaves_like_any_other(
    warm: CommandLine, client: str, script: str, status: int, stdout: str, stderr: str
) -> None:
    done = run(warm, script, client)
    assert (done.returncode, done.stdout, done.stderr) == (status, stdout, stderr)
    assert len(holders(warm)) == 1


@pytest.mark.parametrize(
    ("script", "status", "stdout"),
    [
        ("gibil run absent true", 2, ""),
        ("gibil run box 'cat; echo x' <&-", 0, "x\n"),
        ("gibil run box 'echo x' >&-", 0, ""),
        ("gibil run box 'echo x' 2>&-", 0, "x\n"),
        ("cd bin && ln -sf gibil linked && cd .. && bin/linked run box 'echo x'", 0, "x\n"),
        ("cd bin && ln -sf linked twice && ../bin/twice --version | grep -c gibil", 0, "1\n"),
        ("gibil run box 'echo $(uname)' --background --json | grep -c job_id", 0, "1\n"),
        ("GIBIL_DATA_DIR=data gibil run box 'echo x'", 0, "x\n"),
    ],
)
def test_what_the_holder_does_not_serve_is_done_without_it(warm: CommandLine, script: str, status: int, stdout: str) -> None:
    done = run(warm, f"cd ..; {script}")
    assert (done.returncode, done.stdout) == (status, stdout), done.stderr


def test_a_command_is_the_same_whether_the_machine_has_an_environment_or_not(warm: CommandLine) -> None:
    """PID 1 of a machine without one starts the command itself, otherwise a shell does."""
    command = (
        "env | sed 's/=command-.*//'; echo $0 $- $PPID $PWD; tr '\\0' ' ' </proc/$$/cmdline; [ $GIBIL_LEADER = $$ ]; echo $?"
    )
    without = run(warm, 'gibil run box "$COMMAND"', COMMAND=command)
    assert run(warm, "gibil run box 'mkdir -p /run/gibil && : >/run/gibil/env'").returncode == 0
    try:
        having = run(warm, 'gibil run box "$COMMAND"', COMMAND=command)
    finally:
        run(warm, "gibil run box 'rm /run/gibil/env'")
    assert sorted(leaderless(without.stdout)) == sorted(leaderless(having.stdout))
    assert without.stdout.endswith("\n0\n") or without.stdout.endswith(" 0\n")


def leaderless(text: str) -> list[str]:
    return [line for line in text.splitlines() if not line.startswith("GIBIL_LEADER=")]


def test_two_commands_at_once_share_one_holder(warm: CommandLine) -> None:
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda number: run(warm, f"gibil run box 'sleep 0.2; echo {number}'").stdout, range(4)))
    assert outputs == ["0\n", "1\n", "2\n", "3\n"]
    assert len(holders(warm)) == 1


def test_a_folder_that_others_may_enter_is_not_used(warm: CommandLine, client: str) -> None:
    (warm.data_dir / FOLDER).chmod(0o711)
    try:
        done = run(warm, "gibil run box 'echo x' --no-stdin", client)
    finally:
        (warm.data_dir / FOLDER).chmod(0o700)
    if client == "perl":
        assert done.returncode == 1
        assert "gibil-python can't be started" in done.stderr
    else:
        assert done.stdout == "x\n"


def test_changed_settings_need_another_holder(warm: CommandLine) -> None:
    before = holders(warm)
    settings = warm.data_dir / "settings.json"
    settings.touch(mode=0o600)
    settings.write_text("{}")
    try:
        until(lambda: run(warm, "gibil run box 'echo x'").stdout == "x\n" and holders(warm) not in (before, []))
    finally:
        settings.unlink()


def test_no_secret_is_in_the_arguments_of_the_holder(warm: CommandLine) -> None:
    (pid,) = holders(warm)
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    folder = warm.data_dir / FOLDER
    (name,) = (each.name.encode() for each in folder.glob("*.sock"))
    assert words[1:] == [b"-P", b"-m", b"gibil_bot.cli.connection_holder", name, b"box", b""]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert folder.stat().st_mode & 0o777 == 0o700


def is_running(line: CommandLine, number: int) -> bool:
    return (
        run(line, f"gibil run box 'grep -a sleep /proc/[0-9]*/cmdline | grep -ac [{str(number)[0]}]{str(number)[1:]}'").stdout
        != "0\n"
    )


def test_a_killed_client_ends_its_command(warm: CommandLine, client: str) -> None:
    process = started(warm, "echo begun; exec sleep 4711", CLIENTS[client])
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        process.kill()
    until(lambda: not is_running(warm, 4711))


@pytest.mark.parametrize("program", ["gibil", "gibil-python"])
def test_a_killed_holder_is_reported_and_replaced(warm: CommandLine, program: str) -> None:
    process = started(warm, "echo begun; exec sleep 4712", program=program)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    (pid,) = holders(warm)
    os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=patient(30))
    assert process.returncode == 4, stderr
    assert b"the process that held the connection to box has ended; the command was killed" in stderr
    assert run(warm, "gibil run box 'echo again'").stdout == "again\n"
    until(lambda: len(holders(warm)) == 1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 7), (signal.SIGTERM, 130)])
def test_a_signal_reaches_a_command_that_does_not_read_its_input(
    warm: CommandLine, client: str, number: int, status: int
) -> None:
    reading, writing = os.pipe()
    with (
        subprocess.Popen(["cat", "/dev/zero"], stdout=writing, stderr=subprocess.DEVNULL) as input_,
        started(warm, f"trap 'exit 7' INT; echo begun; sleep {4700 + number} & wait", CLIENTS[client], reading) as process,
    ):
        os.close(reading)
        os.close(writing)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        until(lambda: is_blocked(input_.pid))
        process.send_signal(number)
        try:
            assert process.wait(patient(20)) == status
        finally:
            process.kill()
    if number == signal.SIGTERM:  # a shell's background processes ignore SIGINT
        until(lambda: not is_running(warm, 4700 + number))


def is_blocked(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def test_a_holder_ends_with_its_last_machine_and_other_settings_get_another(line: CommandLine) -> None:
    line.json("create", "--name", "brief", "--ttl", "1h")
    other = {IDLE: "6m"}
    assert line.bash("gibil run brief true", **other).returncode == 0
    until(lambda: holders(line, "6m") and line.bash("gibil run brief true", **other).returncode == 0)
    until(lambda: len(holders(line, "6m")) == 1)
    (holder,) = holders(line, "6m")
    line.json("destroy", "brief")
    until(lambda: holder not in holders(line, "6m"))
    assert line.bash("gibil run brief true", **other).returncode == 2
