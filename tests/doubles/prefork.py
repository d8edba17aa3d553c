"""The `gibil` command as a separate process that starts in hundredths of a second, forked from one with all imports done.

Starting Python and importing the package takes longer than most commands, and the tests start a thousand of them. Each
worker of a test run has one process, `forker.py`, that has imported everything and forks for each start. What it returns is a
real process: a pid that can be killed, an environment, folder and descriptors, an exit status. It doesn't test
that Python starts and that a command imports what it needs. Therefore `CommandLine.bash`, `Terminal`, `agent_of` and the
tests of `gibil demo`, which starts `gibil serve`, start a Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

_FORKER = Path(__file__).with_name("forker.py")
_AT_START = ("PYTHON", "LANG", "LC_", "LD_")
"""Variables that Python and the loader read at their start: for other values of them, another process forks."""


class Forked:
    """A forked process, with the methods of `subprocess.Popen` that tests use.

    stdin, stdout, stderr: `subprocess.PIPE`, `DEVNULL`, a descriptor, a file, or None: closed, as for `>&-` in a shell.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | os.PathLike[str] = "/",
        stdin: Any = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        process_group: int | None = None,
    ) -> None:
        self.args = list(arguments)
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        with contextlib.ExitStack() as passed:

            def opened(fd: int) -> int:
                passed.callback(os.close, fd)
                return fd

            streams: list[int] = []
            for number, wanted in enumerate((stdin, stdout, stderr)):
                if wanted is None:
                    streams.append(-1)
                elif wanted == subprocess.DEVNULL:
                    streams.append(opened(os.open(os.devnull, os.O_RDWR)))
                elif wanted == subprocess.PIPE:
                    reading, writing = os.pipe()
                    streams.append(opened(reading if number == 0 else writing))
                    ours = os.fdopen(writing, "wb", 0) if number == 0 else os.fdopen(reading, "rb", -1)
                    setattr(self, ("stdin", "stdout", "stderr")[number], ours)
                else:
                    streams.append(wanted if isinstance(wanted, int) else wanted.fileno())
            folder = opened(os.open(cwd, os.O_RDONLY | os.O_DIRECTORY))
            request = {
                "arguments": self.args,
                "environment": dict(env),
                "streams": [fd >= 0 for fd in streams],
                "group": process_group,
            }
            self.pid, self._process, self._status = _forker(env).fork(request, [folder, *(fd for fd in streams if fd >= 0)])

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait, blocking. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            ready = select.poll()
            ready.register(self._status, select.POLLIN)
            if not ready.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._read_status()
        assert self.returncode is not None
        return self.returncode

    async def ended(self) -> int:
        """Like `wait`, in an event loop."""
        if self.returncode is None:
            loop = asyncio.get_running_loop()
            ready = asyncio.Event()
            watched = os.dup(self._status)  # a loop has one reader per descriptor, and several tasks may wait
            loop.add_reader(watched, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(watched)
                os.close(watched)
        return self.wait()

    def _read_status(self) -> None:
        message = os.read(self._status, 64)
        assert message, "the forking process has ended"
        self.returncode = os.waitstatus_to_exitcode(int(message))
        os.close(self._status)
        os.close(self._process)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """Return the rest of both streams, until the last process that holds them has ended, and end this one."""
        deadline = None if timeout is None else time.monotonic() + timeout
        output: dict[Any, list[bytes]] = {}
        with selectors.DefaultSelector() as ready:
            for stream in (self.stdout, self.stderr):
                if stream is not None and not stream.closed:
                    ready.register(stream, selectors.EVENT_READ, output.setdefault(stream, []))
            while ready.get_map():
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0)
                for key, _ in ready.select(left):
                    data = key.fileobj.read1(1 << 20)  # type: ignore[union-attr]
                    key.data.append(data)
                    if not data:
                        ready.unregister(key.fileobj)
        for stream in output:
            stream.close()
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return b"".join(output.get(self.stdout, [])), b"".join(output.get(self.stderr, []))


def run(arguments: Sequence[str], *, timeout: float, **words: Any) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run(…, capture_output=True, text=True)`."""
    process = Forked(arguments, **words)
    try:
        out, err = process.communicate(timeout)
    except BaseException:  # also a test's own time limit: a command that goes on would disturb the next test
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.wait(), *(_text(data) for data in (out, err)))


_PROGRAM = """\
import json, os, socket, sys
forker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
forker.connect("\\0{address}")
reading, writing = os.pipe()
request = {{"arguments": sys.argv[1:], "environment": dict(os.environ), "streams": [True] * 3, "group": None}}
descriptors = [writing, os.open(".", os.O_RDONLY), 0, 1, 2]
socket.send_fds(forker, [json.dumps(request).encode()], descriptors)
forker.recv(64)
os.close(writing)
status = os.waitstatus_to_exitcode(int(os.read(reading, 64)))
os._exit(status if status >= 0 else 128 - status)
"""


def program(environment: Mapping[str, str]) -> str:
    """Return a Python program to use as `gibil` in scripts that don't signal it: it requests a fork and waits for its end."""
    return _PROGRAM.format(address=_forker(environment).address)


def _text(data: bytes) -> str:
    return data.decode().replace("\r\n", "\n").replace("\r", "\n")


class _Forker:
    def __init__(self, environment: dict[str, str]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.address = f"gibil-forker-{secrets.token_hex(16)}"
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(f"\0{self.address}")
            listener.listen(64)
            passed = [theirs.fileno(), listener.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_FORKER), *map(str, passed)],
                env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=passed,
            )  # fmt: skip
        self._lock = threading.Lock()

    def fork(self, request: dict[str, Any], passed: list[int]) -> tuple[int, int, int]:
        """Return the pid, a descriptor of the process, and a pipe that will contain its wait status."""
        reading, writing = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._channel, [json.dumps(request).encode()], [writing, *passed])
                message, fds, _, _ = socket.recv_fds(self._channel, 64, 1)
        finally:
            os.close(writing)
        assert message, "the forking process has ended"
        return int(message), fds[0], reading

    def end(self) -> None:
        self._channel.close()
        self._process.wait(timeout=60)


_forkers: dict[tuple[tuple[str, str], ...], _Forker] = {}
_starting = threading.Lock()


def _forker(environment: Mapping[str, str]) -> _Forker:
    key = tuple(sorted((name, value) for name, value in environment.items() if name.startswith(_AT_START)))
    with _starting:
        if key not in _forkers:
            _forkers[key] = _Forker({**dict(key), "PATH": os.environ["PATH"]})
        return _forkers[key]


def end_forkers() -> None:
    """End the forking processes; their children continue."""
    while _forkers:
        _forkers.popitem()[1].end()
