"""Where the output of an agent's programs goes: its log, its file of events, and the next prompt."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from gibil_bot.agents.lines import EventFile
from gibil_bot.agents.output import AgentOutput
from gibil_bot.agents.transcript import Ended
from gibil_bot.runs.logs import TaskLog, free_above_floor, size_of
from gibil_bot.runs.redact import Redactor, after_the_first_line

EVENTS_BYTES, LEAST_EVENTS_BYTES = 32 * 1024 * 1024, 1024 * 1024
"""How much of a program's events is stored, once for each round."""
STDERR_BYTES = 16 * 1024
FAILING_BYTES = 32 * 1024
"""How much of a failing task's output is in the next prompt."""


class AgentLog:
    """The log of an agent task, to which several programs write one after another."""

    def __init__(self, log: TaskLog) -> None:
        self.log = log
        self._fed = 0

    async def write(self, data: bytes) -> None:
        if data:
            self._fed += len(data)
            await self.log.feed(data, self._fed)


class CheckSink:
    """Passes the output of a check on to the log, and remembers its end for the next prompt."""

    def __init__(self, log: AgentLog) -> None:
        self._log = log
        self.raw_offset = 0
        self.tail = bytearray()

    @property
    def is_full(self) -> bool:
        return self._log.log.is_full

    async def feed(self, data: bytes, next_offset: int) -> None:
        self.raw_offset = next_offset
        self.tail += data
        del self.tail[:-FAILING_BYTES]
        await self._log.write(data)

    async def skip(self, tail: bytes, size: int) -> None:
        self.tail[:] = tail[-FAILING_BYTES:]
        await self._log.log.skip(tail, size)


class EventSink:
    """Reads the output of an agent's program: its entries are written to the log, and its lines to a file."""

    def __init__(self, output: AgentOutput, path: Path, limit: int, log: AgentLog, redactor: Redactor) -> None:
        """`limit`: how many bytes the file may have."""
        self.output = output
        self.has_ended = asyncio.Event()
        self.raw_offset = 0
        self._stderr = bytearray()
        self._events = EventFile(bytes, limit=limit)
        self._path = path
        self._log = log
        self._redactor = redactor

    async def feed(self, data: bytes, next_offset: int) -> None:
        self.raw_offset = next_offset
        await self._read(self._redactor.feed(data))

    def feed_error(self, data: bytes) -> None:
        self._stderr += data
        del self._stderr[:-STDERR_BYTES]

    @property
    def is_full(self) -> bool:
        return self.output.is_full

    async def skip(self, tail: bytes, size: int) -> None:
        """The last lines may have the program's last event, which decides."""
        unread = size - self.raw_offset
        if unread > len(tail):
            await self._read(self._redactor.flush())
            tail = after_the_first_line(tail)
            await self._log.write(self.output.skip(unread - len(tail)).encode("utf-8", "replace"))
        elif unread > 0:
            tail = tail[-unread:]
        else:
            return
        await self._read(self._redactor.feed(tail))

    async def end(self, exit_status: int | None) -> Ended:
        await self._read(self._redactor.flush())
        await asyncio.to_thread(self._append, self._events.close())
        stderr = self._redactor.text(self._stderr.decode("utf-8", "replace"))
        await self._log.write(self.output.end(exit_status, stderr).encode("utf-8", "replace"))
        assert self.output.ended is not None
        return self.output.ended

    async def _read(self, clean: bytes) -> None:
        if not clean:
            return
        # Reading a megabyte of events takes longer than others may wait for the event loop.
        shown, kept = await asyncio.to_thread(lambda: (self.output.feed(clean), self._events.feed(clean)))
        await self._log.write(shown.encode("utf-8", "replace"))
        if kept:
            await asyncio.to_thread(self._append, kept)
        if self.output.has_ended:
            self.has_ended.set()

    def _append(self, data: bytes) -> None:
        with contextlib.suppress(OSError), self._path.open("ab") as file:
            file.write(data)


def events_limit(folder: Path, most_bytes: int) -> int:
    """Return how many bytes of a program's events may be stored, if a run's files have `most_bytes`: always a few."""
    try:
        return max(LEAST_EVENTS_BYTES, min(EVENTS_BYTES, most_bytes - size_of(folder), free_above_floor(folder)))
    except OSError:
        return LEAST_EVENTS_BYTES


def new_file(path: Path) -> Path:
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.unlink(missing_ok=True)
    return path
