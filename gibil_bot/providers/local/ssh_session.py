"""One SSH session of a machine: relays bytes between an SSH channel and the pipes or the pty of a process on the machine.

Descriptors are read and written directly on the event loop, with the flow control of both sides. The session kills its process
when the channel closes, forwards signals, and after the exit sends what is left in the pipes without waiting for background
processes that hold them open.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import signal
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from gibil_bot.errors import GibilError
from gibil_bot.providers.local.detached_jobs import Jobs
from gibil_bot.providers.local.fd_passing import unread_bytes
from gibil_bot.providers.local.init_client import InitClient
from gibil_bot.scripts.commands import read_plain_command
from gibil_bot.ssh.job_requests import JOB_STATUS, MOST_REQUESTED, START_JOB
from gibil_bot.ssh.lean_asyncssh import asyncssh

if TYPE_CHECKING:
    _Channel = asyncssh.SSHServerChannel[bytes]
    _Base = asyncssh.SSHServerSession[bytes]
else:
    _Base = asyncssh.SSHServerSession

_BLOCK = 128 * 1024
"""The packet size of our clients: asyncssh splits larger writes and copies the rest each time."""

_PIPE_BYTES = 1024 * 1024
_STDIN_HIGH = 1024 * 1024
_GRACE_S = 0.2
"""How long a session stays open after its process ended while other processes hold its pipes open."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_NEVER_FROM_CLIENTS = frozenset(
    ("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "IFS", "SHELLOPTS", "BASHOPTS")
)


class Session(_Base):
    """Implements init_client.Command: PID 1 starts it and reports its end."""

    def __init__(self, init_client: InitClient, on_end: Callable[[Session], None], jobs: Jobs) -> None:
        self._init_client = init_client
        self._jobs = jobs
        self._subsystem: str | None = None
        self._request = bytearray()
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._channel: _Channel | None = None
        self._command: str | None = None
        self._terminal: tuple[str, int, int] | None = None
        self._id: int | None = None
        self._stdin: int | None = None
        self._stdin_waiting: deque[memoryview] = deque()
        self._stdin_size = 0
        self._stdin_paused = False
        self._stdin_ends = False
        self._outputs: dict[int, int | None] = {}
        """descriptor → SSH data type."""
        self._owed: dict[int, int] = {}
        """descriptor → bytes that were in the pipe at the exit and aren't sent yet."""
        self._paused = False
        self._status: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._grace_is_over = False
        self._over = False

    # Requests of the client

    def connection_made(self, chan: _Channel) -> None:
        self._channel = chan

    def pty_requested(self, term_type: str, term_size: tuple[int, int, int, int], term_modes: object) -> bool:
        self._terminal = (term_type, term_size[0] or 80, term_size[1] or 24)
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = command
        return True

    def subsystem_requested(self, subsystem: str) -> bool:
        """Accept the subsystems of ssh/job_requests.py. The request comes on stdin, up to its end."""
        self._subsystem = subsystem
        return subsystem in (START_JOB, JOB_STATUS)

    def session_started(self) -> None:
        assert self._channel is not None
        if self._subsystem is not None:
            return
        env = _sane(dict(self._channel.get_environment()))
        size = None
        if self._terminal:
            env["TERM"], *columns_rows = self._terminal
            size = (columns_rows[0], columns_rows[1])
        # "" stands for the machine's shell: bash if it exists; PID 1 replaces it
        arguments = ["", "-l"] if self._command is None else ["", "-c", self._command]
        try:
            plain = read_plain_command(self._command) if self._command is not None and size is None else None
            self._id = self._init_client.spawn(self, arguments, env, size, plain)
        except GibilError as error:
            self._channel.write_stderr(f"gibil: {error.message}\n".encode())
            self._channel.exit(254)

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if self._over or self._stdin_ends:
            return
        if self._subsystem is not None:
            self._request += data
            if len(self._request) > MOST_REQUESTED:
                self._answer(stderr=b"gibil:failed the script and its environment are too long\n")
            return
        self._stdin_waiting.append(memoryview(data))
        self._stdin_size += len(data)
        self._write_stdin()

    def eof_received(self) -> bool:
        if self._subsystem is not None:
            if not self._over:
                self._serve_request(bytes(self._request))
            return True
        self._stdin_ends = True
        self._write_stdin()
        return True  # the output continues

    def _serve_request(self, request: bytes) -> None:
        if self._subsystem == START_JOB:
            self._jobs.start(request).add_done_callback(lambda said: self._answer(stderr=said.result()))
        elif (ended := self._jobs.ended(request.decode("ascii", "replace"))) is None:
            self._answer(b"unknown\n")
        else:
            ended.add_done_callback(lambda status: self._answer(b"exit %d\n" % status.result()))

    def _answer(self, stdout: bytes = b"", stderr: bytes = b"") -> None:
        channel = self._channel
        if self._over or channel is None:
            return
        if stdout:
            channel.write(stdout)
        if stderr:
            channel.write_stderr(stderr)
        self._end()
        channel.exit(0)

    def signal_received(self, signal: str) -> None:
        self._signal(signal)

    def break_received(self, msec: int) -> bool:
        self._signal("INT")
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        if self._terminal and self._stdin is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._stdin, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, pixwidth, pixheight))

    def pause_writing(self) -> None:
        self._paused = True
        for fd in self._outputs:
            self._loop.remove_reader(fd)

    def resume_writing(self) -> None:
        self._paused = False
        for fd in self._outputs:
            self._loop.add_reader(fd, self._read_output, fd)
        self._finish_if_done()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def say(self, text: str) -> None:
        """Print a line on the stderr of the session."""
        if self._channel is not None and not self._over:
            self._channel.write_stderr(f"gibil: {text}\n".encode())

    # Reports of PID 1

    def descriptors(self) -> list[int]:
        if self._terminal:
            return []
        ends: list[int] = []
        try:
            for _ in range(3):
                ends += os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            for fd in ends:
                os.close(fd)
            raise
        stdin_read, stdin_write, stdout_read, stdout_write, stderr_read, stderr_write = ends
        child_ends = [stdin_read, stdout_write, stderr_write]
        for fd in child_ends:
            os.set_blocking(fd, True)
            self._init_client.chown_to_root(fd)
        self._drop_descriptors()  # of a request that could not be sent
        self._stdin = stdin_write
        self._outputs = {stdout_read: None, stderr_read: asyncssh.EXTENDED_DATA_STDERR}
        self._begin()
        return child_ends

    def on_terminal(self, master: int) -> None:
        if self._over:
            os.close(master)
            return
        os.set_blocking(master, False)
        self._stdin = os.dup(master)
        self._outputs = {master: None}
        self._begin()

    def on_exit(self, status: int) -> None:
        self._status = status
        if self._over:
            return
        self._close_stdin()
        self._owed = {fd: unread_bytes(fd) for fd in self._outputs}
        self._timer = self._loop.call_later(_GRACE_S, self._end_grace)
        self._finish_if_done()

    def on_refused(self, reason: str) -> None:
        self.say(reason)
        self.on_exit(254)

    # Bytes

    def _begin(self) -> None:
        if not self._paused:
            for fd in self._outputs:
                self._loop.add_reader(fd, self._read_output, fd)
        self._write_stdin()

    def _read_output(self, fd: int) -> None:
        try:
            data = os.read(fd, _BLOCK)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EIO:  # the last process of a terminal has ended
                raise
            data = b""
        if not data:
            self._loop.remove_reader(fd)
            del self._outputs[fd]
            self._owed.pop(fd, None)
            os.close(fd)
        else:
            if len(data) == 65536:  # a full pipe: this one is busy, so enlarge it
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            if fd in self._owed:
                self._owed[fd] -= len(data)
            assert self._channel is not None
            self._channel.write(data, self._outputs[fd])
        self._finish_if_done()

    def _write_stdin(self) -> None:
        if self._stdin is None or self._over:
            self._pause_stdin()
            return
        while self._stdin_waiting:
            block = self._stdin_waiting[0]
            try:
                written = os.write(self._stdin, block)
            except BlockingIOError:
                self._loop.add_writer(self._stdin, self._write_stdin)
                self._pause_stdin()
                return
            except OSError:  # no process reads it any more
                self._stdin_ends = True
                self._stdin_waiting.clear()
                self._stdin_size = 0
                break
            self._stdin_size -= written
            if written == len(block):
                self._stdin_waiting.popleft()
            else:
                self._stdin_waiting[0] = block[written:]
        self._loop.remove_writer(self._stdin)
        self._pause_stdin()  # resuming may deliver data and EOF at once, before this returns
        if self._stdin_ends and not self._stdin_waiting and self._stdin is not None:
            if self._terminal:
                with contextlib.suppress(OSError):
                    os.write(self._stdin, b"\x04")  # a terminal has no EOF, only a key for it
            else:
                self._close_stdin()

    def _pause_stdin(self) -> None:
        assert self._channel is not None
        wanted = self._stdin_size > _STDIN_HIGH
        if wanted != self._stdin_paused and not self._over:
            self._stdin_paused = wanted
            if wanted:
                self._channel.pause_reading()
            else:
                self._channel.resume_reading()

    def _signal(self, name: str) -> None:
        number = getattr(signal, f"SIG{name.removeprefix('SIG')}", None)
        if isinstance(number, signal.Signals) and self._id is not None and self._status is None:
            self._init_client.kill(self._id, number, session=number == signal.SIGKILL)

    # End

    def _end_grace(self) -> None:
        # Stored rather than compared with the clock: a loop's timers may fire slightly before its clock says so.
        self._grace_is_over = True
        self._finish_if_done()

    def _finish_if_done(self) -> None:
        if self._status is None or self._over or self._paused:
            return
        if self._outputs and (not self._grace_is_over or any(count > 0 for count in self._owed.values())):
            return
        status, channel = self._status, self._channel
        self._end()
        assert channel is not None
        if status >= 0:
            channel.exit(status)
        else:
            channel.exit_with_signal(_signal_name(-status))

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if self._timer:
            self._timer.cancel()
        if self._id is not None and self._status is None:
            self._init_client.kill(self._id)
        self._drop_descriptors()
        self._on_end(self)

    def _drop_descriptors(self) -> None:
        self._close_stdin()
        for fd in self._outputs:
            self._loop.remove_reader(fd)
            os.close(fd)
        self._outputs.clear()

    def _close_stdin(self) -> None:
        if self._stdin is not None:
            self._loop.remove_writer(self._stdin)
            os.close(self._stdin)
            self._stdin = None


def _sane(env: dict[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in env.items()
        if _ENV_NAME.fullmatch(name) and name not in _NEVER_FROM_CLIENTS and "\0" not in value
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"{number}"
