"""A pty with `gibil ssh` on it, as for a user, and reading its output up to a mark."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

from tests.doubles.commandline import CommandLine
from tests.doubles.machines import alive
from tests.doubles.patience import patient
from tests.doubles.prefork import Forked


def read_until(process: subprocess.Popen[bytes] | Forked, wanted: bytes) -> bytes:
    """Return the stdout up to and including this text; wait ten seconds at most."""
    assert process.stdout is not None
    return read_descriptor(process.stdout.fileno(), wanted)


def read_descriptor(descriptor: int, wanted: bytes, block: int = 65536) -> bytes:
    seen = b""
    deadline = time.monotonic() + patient(10)
    while wanted not in seen:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, f"not within ten seconds: {wanted!r}; got {seen!r}"
        data = os.read(descriptor, block)
        assert data, f"it ended before {wanted!r}; got {seen!r}"
        seen += data
    return seen


class Terminal:
    """`gibil ARGUMENTS` on a pty."""

    def __init__(
        self, line: CommandLine, *arguments: str, columns: int = 90, rows: int = 30, hears_hangup: bool = True, **more: str
    ) -> None:
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            os.chdir(line.here)
            if not hears_hangup:
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
            environment = {**line.environment(), "TERM": "xterm", **more}
            os.execve(sys.executable, [sys.executable, "-m", "gibil_bot", *arguments], environment)
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, wanted: str) -> str:
        return read_descriptor(self.master, wanted.encode()).decode()

    def wait(self) -> int:
        with contextlib.suppress(OSError):  # the other end is closed
            while os.read(self.master, 65536):
                pass
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        if alive(self.pid):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.master)
