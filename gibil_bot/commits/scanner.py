"""The scanner for secrets as a bounded child process: scanner_process.py, which reads text that a machine wrote.

Kingfisher is C++ and Rust, and this process may have the App's private key. The child gets an empty environment and three
descriptors. It is started for the first piece or by `warm`, serves all checks of this process, one piece after the other in the
order in which they came, and ends with this process, however that ends. A child that fails at a piece is replaced for the next.

One thread starts the child and talks to it: the child belongs to no event loop, so each command and test can have its own; the
kernel kills it when the thread that started it ends; and a cancelled check leaves no answer unread.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import queue
import select
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Annotated

import msgspec

from gibil_bot.commits.scanner_process import MOST_ANSWER_BYTES, MOST_FOUND, MOST_PIECE_BYTES, PIECE_S
from gibil_bot.errors import GibilError
from gibil_bot.providers.local.isolated_python import start_python
from gibil_bot.ssh.answers import printable

_START_S = 120.0
"""Compiling the rules takes three seconds of processor time."""
_EXIT_S = 0.5
"""Between the end of a child's output and its own."""
_PASSED_ON = ("HOME", "XDG_CACHE_HOME", "KF_RULE_CACHE_DIR", "LD_LIBRARY_PATH")
"""Where the compiled rules are stored, and the libraries of Python."""


class NoScanner(GibilError):
    """The scanner can't be used on this host, so no commit can be checked."""

    code = "CONFIGURATION"
    exit_status = 6


class NotScanned(GibilError):
    """The scanner failed at a text. The message is the reason, for the end of a sentence."""

    code = "COMMIT_REJECTED"


class Found(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A finding as the child sends it; nothing of it is certain but its types and bounds."""

    line: Annotated[int, msgspec.Meta(ge=1, le=MOST_PIECE_BYTES + 1)]
    rule: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._/-]{1,200}\Z")]
    secret: bytes
    start: Annotated[int, msgspec.Meta(ge=0)]
    end: Annotated[int, msgspec.Meta(ge=0)]

    def __repr__(self) -> str:
        return f"Found({self.rule} in line {self.line})"


_FINDINGS = msgspec.json.Decoder(Annotated[tuple[Found, ...], msgspec.Meta(max_length=MOST_FOUND)])
_START = msgspec.json.Decoder(str | None)


class Scanner:
    """`command`: the child's. Its methods may be called by any thread."""

    def __init__(self, command: Sequence[str] | None = None, *, piece_s: float = PIECE_S, start_s: float = _START_S) -> None:
        self._command = tuple(command or start_python("gibil_bot.commits.scanner_process"))
        self._piece_s = piece_s
        self._start_s = start_s
        self._asked: queue.SimpleQueue[tuple[bytes, Future[tuple[tuple[Found, ...], float]]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """The child, if it was started."""
        process = self._process
        return process.pid if process is not None else None

    async def warm(self) -> None:
        """Start the child. Raises NoScanner."""
        await self.scan(b"")

    async def scan(self, piece: bytes) -> tuple[tuple[Found, ...], float]:
        """Return what is found in at most MOST_PIECE_BYTES, and how many seconds that took without waiting for other pieces.

        Raises NoScanner, NotScanned.
        """
        if len(piece) > MOST_PIECE_BYTES:
            raise ValueError(f"a piece of {len(piece)} bytes")
        future: Future[tuple[tuple[Found, ...], float]] = Future()
        with self._lock:
            if self._is_closed:
                raise NoScanner("the scanner for secrets has been closed, because this process is ending")
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="secret scanner", daemon=True)
                self._thread.start()
            self._asked.put((piece, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """End the child. A scan that waits for it raises NotScanned or NoScanner."""
        with self._lock:
            self._is_closed = True
            thread, process = self._thread, self._process
            if process is not None:
                process.kill()
        if thread is not None:
            self._asked.put(None)
            thread.join()

    def _serve(self) -> None:
        while (asked := self._asked.get()) is not None:
            piece, future = asked
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(self._scan(piece))
                except BaseException as error:
                    future.set_exception(error)
            del asked, piece, future
        self._end()

    def _scan(self, piece: bytes) -> tuple[tuple[Found, ...], float]:
        process = self._running()
        began = time.monotonic()
        if not piece:
            return (), 0.0
        try:
            _write(process, piece, began + self._piece_s)
            return _FINDINGS.decode(_read(process, began + self._piece_s)), time.monotonic() - began
        except TimeoutError:
            reason = f"the scanner needs more than {self._piece_s:g} s for a part of it"
        except (msgspec.MsgspecError, ValueError):
            reason = "the scanner returned an invalid answer"
        except OSError:
            reason = f"the scanner {self._how_it_ended()}"
        self._end()
        raise NotScanned(reason)

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the child, and start it if there is none or if it has ended or written since the last piece."""
        if self._process is not None:
            if not _is_readable(self._process):
                return self._process
            self._end()
        with self._lock:
            if self._is_closed:
                raise NoScanner("the scanner for secrets has been closed, because this process is ending")
            try:
                self._process = process = subprocess.Popen(
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                    cwd="/", start_new_session=True, env={**_passed_on(), "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
                )  # fmt: skip
            except OSError as error:
                raise NoScanner(f"the scanner for secrets can't be started: {error}") from error
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        try:
            problem = _START.decode(_read(process, time.monotonic() + self._start_s))
        except TimeoutError:
            problem = f"it isn't ready after {self._start_s:g} s"
        except (OSError, ValueError, msgspec.MsgspecError):
            problem = f"it {self._how_it_ended()}"
        if problem is not None:
            self._end()
            raise NoScanner(f"the scanner for secrets can't be loaded ({printable(problem)}): install gibil-bot again")
        return process

    def _how_it_ended(self) -> str:
        process = self._process
        status: int | None = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(_EXIT_S)
        if status is None:
            return "closed its output"
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

    def _end(self) -> None:
        process = self._process
        if process is not None:
            process.kill()
            process.wait()
            with self._lock:
                self._process = None
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def shared_scanner() -> Scanner:
    """Return this process's scanner, which ends with it."""
    return _scanner_of(os.getpid())


@functools.cache
def _scanner_of(pid: int) -> Scanner:
    scanner = Scanner()

    def close() -> None:
        if os.getpid() == pid:
            scanner.close()

    atexit.register(close)
    return scanner


def _passed_on() -> dict[str, str]:
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _write(process: subprocess.Popen[bytes], piece: bytes, latest: float) -> None:
    """Raises TimeoutError; OSError if the child has ended."""
    assert process.stdin is not None
    fd = process.stdin.fileno()
    rest = memoryview(len(piece).to_bytes(4, "big") + piece)
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while rest:
        _wait(poll, latest)
        with contextlib.suppress(BlockingIOError):
            rest = rest[os.write(fd, rest) :]


def _read(process: subprocess.Popen[bytes], latest: float) -> bytes:
    """Return the next message. Raises TimeoutError; OSError if the child has ended; ValueError if the message is too long."""
    size = int.from_bytes(_read_bytes(process, 4, latest), "big")
    if size > MOST_ANSWER_BYTES:
        raise ValueError(f"an answer of {size} bytes")
    return _read_bytes(process, size, latest)


def _read_bytes(process: subprocess.Popen[bytes], size: int, latest: float) -> bytes:
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout.fileno(), select.POLLIN)
    data = bytearray()
    while len(data) < size:
        _wait(poll, latest)
        more = os.read(process.stdout.fileno(), min(size - len(data), 64 * 1024))
        if not more:
            raise BrokenPipeError
        data += more
    return bytes(data)


def _is_readable(process: subprocess.Popen[bytes]) -> bool:
    """Return whether there is something to read, or nothing any more."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _wait(poll: select.poll, latest: float) -> None:
    if not poll.poll(max(0.0, latest - time.monotonic()) * 1000):
        raise TimeoutError
