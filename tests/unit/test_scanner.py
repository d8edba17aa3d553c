"""The child process that looks for secrets: what it may do, and what happens if it fails."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gibil_bot import wiring
from gibil_bot.commits import scanner as scanners
from gibil_bot.commits.scanner import NoScanner, NotScanned, Scanner, shared_scanner
from gibil_bot.commits.scanner_process import MOST_PIECE_BYTES
from tests.doubles.patience import patient

CHILD = r"""
import base64, json, os, signal, time
def write(data):
    while data:
        data = data[os.write(1, data):]
def read(size):
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            raise SystemExit
        data += more
    return data
def answer(value, times=1):
    data = json.dumps(value).encode()
    write((len(data).to_bytes(4, "big") + data) * times)
answer(None)
while True:
    piece = read(int.from_bytes(read(4), "big"))
    word, _, rest = piece.decode().partition(" ")
    found = [1, "rules." + word, base64.b64encode(piece).decode(), 0, len(piece)]
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "exit":
        raise SystemExit(7)
    elif word == "hang":
        time.sleep(600)
    elif word == "nonsense":
        write(b"\0\0\0\3abc")
    elif word == "short":
        write(b"\0\0\0\3a")
        os.close(1)
        time.sleep(600)
    elif word == "endless":
        write(b"\xff\xff\xff\xff")
        while True:
            write(b"[" * 65536)
    elif word == "many":
        answer([found] * 502)
    elif word == "rule":
        answer([[1, "a rule\n", "", 0, 0]])
    elif word == "line":
        answer([[0, "rule", "", 0, 0]])
    elif word == "wait":
        open(rest).read()
        answer([found])
    else:
        answer([found], 2 if word == "twice" else 1)
"""


@pytest.fixture
def scanner() -> Iterator[Scanner]:
    """A scanner whose child fails as a piece demands."""
    with contextlib.closing(Scanner([sys.executable, "-ISc", CHILD])) as made:
        yield made


def has_ended(pid: int | None) -> bool:
    assert pid is not None
    return not Path(f"/proc/{pid}").exists()


async def found(scanner: Scanner, piece: bytes) -> list[bytes]:
    return [each.secret for each in (await scanner.scan(piece))[0]]


@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        (b"killed", "the scanner was ended by signal 9"),
        (b"exit", "the scanner ended with status 7"),
        (b"short", "the scanner closed its output"),
        *((word, "the scanner returned an invalid answer") for word in (b"nonsense", b"endless", b"many", b"rule", b"line")),
    ],
)
async def test_a_child_that_fails_at_a_piece_is_replaced_for_the_next(scanner: Scanner, piece: bytes, reason: str) -> None:
    await scanner.warm()
    first = scanner.pid
    with pytest.raises(NotScanned) as caught:
        await scanner.scan(piece)
    assert caught.value.message == reason
    assert has_ended(first)
    assert scanner.pid is None
    assert await found(scanner, b"fine") == [b"fine"]


async def test_a_child_that_hangs_is_ended_at_the_limit_of_a_piece() -> None:
    with contextlib.closing(Scanner([sys.executable, "-ISc", CHILD], piece_s=0.1)) as scanner:
        await scanner.warm()
        pid = scanner.pid
        with pytest.raises(NotScanned, match=r"needs more than 0\.1 s for a part of it"):
            await scanner.scan(b"hang")
        assert has_ended(pid)


async def test_a_child_that_ended_or_wrote_between_two_pieces_is_replaced(scanner: Scanner) -> None:
    assert await found(scanner, b"twice") == [b"twice"]
    wrote = scanner.pid
    assert await found(scanner, b"next") == [b"next"]
    assert has_ended(wrote)
    assert scanner.pid is not None
    killed = os.pidfd_open(scanner.pid)
    os.kill(scanner.pid, signal.SIGKILL)
    assert await asyncio.to_thread(select.select, [killed], [], [], patient(10))
    os.close(killed)
    assert await found(scanner, b"last") == [b"last"]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/missing/python"], "can't be started: .*/missing/python"),
        (
            [sys.executable, "-ISc", "raise SystemExit(3)"],
            r"can't be loaded \(it ended with status 3\): install gibil-bot again",
        ),
        ([sys.executable, "-ISc", "import os; os.write(1, b'\\0\\0\\0\\6\"why\\n\"')"], r"invalid|it ended with status 0"),
        ([sys.executable, "-ISc", "import os; os.write(1, b'\\0\\0\\0\\5\"why\"')"], r"can't be loaded \(why\): install"),
        ([sys.executable, "-ISc", "import os; os.write(1, b'\\xff' * 99)"], r"can't be loaded \(it ended with status 0\)"),
    ],
)
async def test_a_child_that_can_not_start_is_reported_with_the_reason(command: list[str], reason: str) -> None:
    with contextlib.closing(Scanner(command)) as scanner:
        for _ in range(2):
            with pytest.raises(NoScanner, match=reason):
                await scanner.scan(b"fine")
        assert scanner.pid is None


async def test_a_child_that_is_not_ready_in_time_is_ended(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Scanner([sys.executable, "-ISc", "import time; time.sleep(600)"], start_s=0.1)
    with contextlib.closing(hanging):
        monkeypatch.setattr(scanners, "shared_scanner", lambda: hanging)
        await wiring.warm_scanner(0)
        assert "commits of runs can't be checked: the scanner for secrets can't be loaded (it isn't ready after" in caplog.text
        assert hanging.pid is None


async def test_the_pieces_of_two_checks_take_turns(scanner: Scanner) -> None:
    order: list[str] = []

    async def check(name: str) -> None:
        for number in range(5):
            piece = f"{name} {number}".encode()
            assert await found(scanner, piece) == [piece]
            order.append(name)

    await scanner.warm()
    await asyncio.gather(check("one"), check("two"))
    assert order == ["one", "two"] * 5


async def test_no_caller_gets_the_answer_of_a_cancelled_scan(scanner: Scanner, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    scan = asyncio.create_task(scanner.scan(b"wait %s" % os.fsencode(fifo)))
    waiting = asyncio.create_task(scanner.scan(b"never"))
    released = await asyncio.to_thread(os.open, fifo, os.O_WRONLY)  # returns when the child reads it
    pid = scanner.pid
    for task in (scan, waiting):
        task.cancel()
    await asyncio.gather(scan, waiting, return_exceptions=True)
    assert scan.cancelled()
    os.close(released)
    assert await found(scanner, b"fine") == [b"fine"]
    assert scanner.pid == pid


async def test_a_closed_scanner_ends_a_scan_and_starts_no_child(scanner: Scanner, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    scan = asyncio.create_task(scanner.scan(b"wait %s" % os.fsencode(fifo)))
    os.close(await asyncio.to_thread(os.open, fifo, os.O_WRONLY | os.O_CLOEXEC))
    await scan
    pid = scanner.pid
    hanging = asyncio.create_task(scanner.scan(b"hang"))
    queued = asyncio.create_task(scanner.scan(b"queued"))
    await asyncio.sleep(0)
    await asyncio.to_thread(scanner.close)
    for task in (hanging, queued):
        with pytest.raises((NotScanned, NoScanner)):
            await task
    assert has_ended(pid)
    with pytest.raises(NoScanner):
        await scanner.scan(b"fine")


async def test_a_piece_is_limited() -> None:
    with pytest.raises(ValueError, match="a piece of"):
        await shared_scanner().scan(b"x" * (MOST_PIECE_BYTES + 1))


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@needs_proc
async def test_the_child_has_no_secret_and_only_its_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GIBIL_GITHUB_PRIVATE_KEY", "HCLOUD_TOKEN", "GITHUB_TOKEN", "PYTHONPATH"):
        monkeypatch.setenv(name, "not for the scanner")
    with open(os.devnull) as inherited, contextlib.closing(Scanner()) as scanner:
        os.set_inheritable(inherited.fileno(), True)
        await scanner.warm()
        process = Path(f"/proc/{scanner.pid}")
        environ = {each.partition(b"=")[0].decode() for each in (process / "environ").read_bytes().split(b"\0") if each}
        assert environ <= {"HOME", "XDG_CACHE_HOME", "KF_RULE_CACHE_DIR", "LD_LIBRARY_PATH", "LC_ALL", "MALLOC_ARENA_MAX"}
        assert b"not for the scanner" not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
        assert sorted(os.listdir(process / "fd")) == ["0", "1", "2"]
        limits = {line[:26].strip(): line[26:].split() for line in (process / "limits").read_text().splitlines()}
        assert limits["Max core file size"][:2] == ["0", "0"]
        assert limits["Max file size"][:2] == ["0", "0"]
        assert limits["Max address space"][1] != "unlimited"
        pid = scanner.pid
    assert has_ended(pid)


@needs_proc
def test_the_child_can_not_open_files_or_touch_other_processes() -> None:
    if "Seccomp:" not in Path("/proc/self/status").read_text():
        pytest.skip("this kernel has no seccomp")
    script = """
import ctypes, os, signal, socket, sys
from gibil_bot.commits import scanner_process
parent = os.getppid()
calls = [
    lambda: os.open("/etc/passwd", os.O_RDONLY), lambda: os.open("/tmp/new", os.O_WRONLY | os.O_CREAT), socket.socket,
    os.fork, lambda: os.kill(parent, 0), lambda: os.listdir("/"), lambda: os.readlink("/proc/self/exe"),
    lambda: os.execv("/bin/true", ["true"]), lambda: os.unlink("/tmp/new"), os.pipe,
    lambda: os.setpriority(os.PRIO_PROCESS, parent, 1),
]
scanner_process._deny_system_calls()
for at, call in enumerate(calls):
    try:
        call()
    except PermissionError:
        continue
    os.write(1, b"allowed: %d\\n" % at)
os.write(1, b"done")
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=patient(30), check=False)
    assert (done.stdout, done.stderr) == (b"done", b"")


@needs_proc
@pytest.mark.parametrize("end", ["killed", "exit"])
async def test_the_child_ends_with_its_parent(end: str) -> None:
    script = """
import asyncio, sys
from gibil_bot.commits.scanner import shared_scanner
asyncio.run(shared_scanner().warm())
print(shared_scanner().pid, flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-Walways", "-Xdev", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stderr is not None
        child = int(await asyncio.to_thread(parent.stdout.readline))
        descriptor = os.pidfd_open(child)
        try:
            if end == "killed":
                os.kill(child, signal.SIGTERM)  # is ignored
                os.kill(child, signal.SIGSTOP)  # as if it scanned: it can't see the end of its stdin
                parent.kill()
            else:
                parent.stdin.close()
            ended, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], patient(20))
        finally:
            os.close(descriptor)
            parent.kill()
        assert ended
        assert await asyncio.to_thread(parent.stderr.read) == ""


async def test_the_real_scanner_finds_a_token() -> None:
    token = "ghp_" + base64.b32encode(os.urandom(40)).decode()[:36]
    (each,), seconds = await shared_scanner().scan(f"first\nx = '{token}'\n".encode())
    assert each.line == 2
    assert each.secret == token.encode()
    assert token not in repr(each)
    assert seconds > 0
