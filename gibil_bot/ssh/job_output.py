"""Following one file of a detached job over one channel: bytes, then the verdict on how the job ended."""

from __future__ import annotations

import asyncio
import base64
import contextlib

from gibil_bot.scripts.jobs import AT_ONCE_BYTES, MAX_RETURNS, RETURN_BYTES
from gibil_bot.ssh.answers import BadAnswer, exit_status, number, printable
from gibil_bot.ssh.channel import Channel

_HIGH_WATER = 4 * 1024 * 1024
"""Bytes that wait for the reader before the machine is told to pause."""
_LINE_BYTES = 2 * RETURN_BYTES
"""A line for us is never longer: a file of RETURN_BYTES takes four thirds of it."""
_MANY_PIECES = 1024
"""Waiting pieces are joined beyond this count: each costs memory of its own, and a machine may send bytes one by one."""


class JobFollower:
    """`channel` runs a script of scripts/jobs.py that follows a file: its stdout is the file, its stderr lines for us.

    `wake` is set whenever there is something new to look at.
    """

    def __init__(self, stream: str, offset: int) -> None:
        self.stream = stream
        self.offset = offset
        """Where the next byte that nobody took yet is in the file."""
        self.wake = asyncio.Event()
        self.started: bool | None = None
        """Only after a start: True: it runs now; False: it was started before."""
        self.separate = False
        self.failed = ""
        self.said = ""
        """The last line without `gibil:` among those on stderr: a complaint of a shell or the server."""
        self.unknown = False
        self.lost = False
        self.cut = False
        self.exit_status: int | None = None
        self.files: dict[str, bytes] = {}
        """What the job's `returns` held; whole once the exit status is known."""
        self._begun_at = offset
        self._final_size: int | None = None
        """None, with an exit status: everything that comes until the channel ends, when that is less than AT_ONCE_BYTES."""
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._lines = bytearray()
        self._paused = False
        self.channel: Channel | None = None

    def on_data(self, stream: str, data: bytes) -> None:
        if stream == "stderr":
            self._lines += data
            if b"\n" in data:
                *lines, rest = self._lines.split(b"\n")
                self._lines = bytearray(rest)
                for line in lines:
                    self._read_line(line.decode("utf-8", "surrogateescape"))
            if len(self._lines) > _LINE_BYTES:  # not from a script of ours
                self._lines.clear()
        else:
            self._waiting.append(data)
            if len(self._waiting) > _MANY_PIECES:
                self._waiting = [b"".join(self._waiting)]
            self._waiting_size += len(data)
            if self._waiting_size > _HIGH_WATER and not self._paused and self.channel is not None:
                self._paused = True
                self.channel.channel.pause_reading()
        self.wake.set()

    def take(self) -> bytes:
        """What has come since the last call; the offset moves past it."""
        data = b"".join(self._waiting) if len(self._waiting) != 1 else self._waiting[0]
        self._waiting.clear()
        self._waiting_size = 0
        self.offset += len(data)
        if self._paused and self.channel is not None:
            self._paused = False
            self.channel.channel.resume_reading()
        return data

    @property
    def complete(self) -> bool:
        """The job has ended and all that it wrote before was taken. (What others write to its output later is not its own.)"""
        if self.exit_status is None or self._waiting:
            return False
        if self._final_size is not None:
            return self.offset >= self._final_size
        ended_well = self.channel is not None and self.channel.ended.done() and self.channel.exit_status == 0
        return ended_well and self.offset - self._begun_at < AT_ONCE_BYTES

    @property
    def broken_off(self) -> bool:
        """The channel ended, and everything that came through it was taken."""
        return self.channel is not None and self.channel.ended.done() and not self._waiting

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()

    def _read_line(self, line: str) -> None:
        word, _, rest = line.partition(" ")
        match word:
            case _ if not word.startswith("gibil:") or word == "gibil:":
                self.said = printable(line) or self.said
            case "gibil:started":
                self.started = True
            case "gibil:again":
                self.started = False
            case "gibil:separate":
                self.separate = True
            case "gibil:unknown":
                self.unknown = True
            case "gibil:lost":
                self.lost = True
            case "gibil:cut":
                self.cut = True
            case "gibil:failed":
                self.failed = self.failed or printable(rest) or "no reason given"  # the launcher only sees that it ended
            case "gibil:file":
                content, _, path = rest.partition(" ")
                if len(self.files) < MAX_RETURNS:
                    self.files[path] = _decoded(content)
            case "gibil:rest":
                with contextlib.suppress(BadAnswer):
                    self.exit_status = exit_status(rest)
            case "gibil:exit":
                status, _, size = rest.partition(" ")
                with contextlib.suppress(BadAnswer):
                    self.exit_status, self._final_size = exit_status(status), number(size)


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content)
    except ValueError:  # the machine belongs to its jobs: one may have put something else in the place of base64
        return b""
