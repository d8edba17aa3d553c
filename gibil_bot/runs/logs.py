"""Files of a run on the bot's disk: the redacted output of each task, and one line for each phase.

A log can be resumed. `<index>.pos`, next to `<index>.log`, has two numbers: how many bytes of the machine's own log are in it,
and how long it was at that point. After a crash the log is truncated to that length and the machine sends the rest from that
byte, so nothing is missing and nothing is duplicated.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from gibil_bot.runs.redact import Redactor, after_the_first_line
from gibil_bot.ssh.answers import size_text

FLUSH_AFTER_S = 0.1
FLUSH_ABOVE_BYTES = 512 * 1024
TAIL_BYTES = 32 * 1024
LOG_LIMIT_BYTES = 256 * 1024 * 1024
"""If a task prints more than this, the log has its beginning and the report has its end."""
FREE_FLOOR_BYTES = 1024 * 1024 * 1024
"""Logs leave this much of the bot's disk free (a twentieth of a small disk), because the database needs it more."""


class TaskLog:
    """The output of one task. Pass the machine's output to `feed`; `raw_offset` is the offset to attach at."""

    def __init__(
        self,
        path: Path,
        redactor: Redactor,
        on_output: Callable[[bytes], None] | None = None,
        *,
        limit: int = LOG_LIMIT_BYTES,
    ) -> None:
        self._limit = min(limit, LOG_LIMIT_BYTES)
        self.is_full = False
        """Whether the log has reached its limit."""
        self.skipped = 0
        """Bytes between the end of what was fed and the end of the output."""
        self._path = path
        self._redactor = redactor
        self._on_output = on_output
        self._log = -1
        self._position = -1
        self._written = 0
        self._fed_offset = 0
        self.raw_offset = 0
        self._pending = bytearray()
        self._tail = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.problem: str | None = None
        """Why the log on disk is incomplete; the run continues without it."""

    async def open(self) -> None:
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._log = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._position = os.open(self._path.with_suffix(".pos"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            words = os.pread(self._position, 64, 0).split()
            if len(words) == 2:
                self.raw_offset, self._written = max(0, int(words[0])), max(0, int(words[1]))
            os.ftruncate(self._log, self._written)
            start = max(0, self._written - TAIL_BYTES)
            self._tail += os.pread(self._log, TAIL_BYTES, start)
            self.is_full = self._written >= self._limit or self.raw_offset >= LOG_LIMIT_BYTES
        except OSError as error:
            self._give_up(error)
        self._fed_offset = self.raw_offset

    def forget(self) -> None:
        """Delete what an earlier process wrote. Call it before `open`."""
        for path in (self._path, self._path.with_suffix(".pos")):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    async def begin(self, note: str) -> None:
        """Write `note` (our own whole lines, redacted) before the output."""
        clean = await asyncio.to_thread(self._write, b"", self._fed_offset, False, note.encode())
        if self._on_output is not None:
            self._on_output(clean)

    async def feed(self, data: bytes, next_offset: int) -> None:
        """Append raw output; `next_offset` is the machine's offset after it. Waits if the disk is slower than the machine."""
        self._pending += data
        self._fed_offset = next_offset
        if len(self._pending) >= FLUSH_ABOVE_BYTES:
            await self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self._flush_soon)

    def _flush_soon(self) -> None:
        self._timer = None
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.create_task(self._flush())

    async def _flush(self, last: bool = False, note: bytes = b"") -> None:
        async with self._lock:
            data, offset = bytes(self._pending), self._fed_offset
            self._pending.clear()
            if not data and not last:
                return
            clean = await asyncio.to_thread(self._write, data, offset, last, note)
        if clean and self._on_output is not None:
            self._on_output(clean)

    def _write(self, data: bytes, offset: int, last: bool, note: bytes) -> bytes:
        clean = self._redactor.feed(data)
        if last:
            clean += self._redactor.flush()
        if note:
            before = clean[-1:] or self._tail[-1:]
            clean += note if before in (b"", b"\n") else b"\n" + note
        self._tail += clean
        del self._tail[:-TAIL_BYTES]
        if self._log >= 0:
            try:
                room = self._limit - self._written
                if not self.is_full and free_above_floor(self._log) < len(clean):
                    self.problem = f"the log {self._path.name} is incomplete: the bot's disk is nearly full"
                    room = 0
                if not self.is_full and (
                    room <= len(clean) or offset >= LOG_LIMIT_BYTES
                ):  # count the original output, too: masks are short
                    self.is_full = True
                    why = self.problem or f"the logs of this run are longer than {size_text(self._limit)}"
                    to_write = clean[: max(0, room)] + f"\n[gibil: the rest is not stored: {why}]\n".encode()
                else:
                    to_write = b"" if self.is_full else clean
                view = memoryview(to_write)
                at = self._written
                while view:
                    count = os.pwrite(self._log, view, at)
                    at += count
                    view = view[count:]
                self._written = at
                # Bytes that the redactor still holds aren't in the log, so they are requested again.
                self.raw_offset = offset - self._redactor.held
                os.pwrite(self._position, b"%31d %31d\n" % (self.raw_offset, self._written), 0)
            except OSError as error:
                self._give_up(error)
        return clean

    async def skip(self, tail: bytes, size: int) -> None:
        """Append the last bytes of output that wasn't fed; `size` is the length of the whole output."""
        await self._flush()
        self.skipped = max(0, size - self._fed_offset)
        unseen = tail[-min(self.skipped, len(tail)) :] if self.skipped else b""
        if self.skipped > len(unseen):  # it may begin inside a secret: whole lines only
            unseen = after_the_first_line(unseen)
        clean = self._redactor.flush() + self._redactor.feed(unseen) + self._redactor.flush()
        self._tail += f"\n[gibil: {self.skipped - len(unseen)} bytes omitted]\n".encode() + clean
        del self._tail[:-TAIL_BYTES]
        if self._on_output is not None:
            self._on_output(clean)

    def _give_up(self, error: OSError) -> None:
        self.problem = f"the bot couldn't write the log {self._path.name}: {error.strerror}"
        self._close_files()

    def tail(self, limit: int = TAIL_BYTES) -> str:
        """Return the end of the output, redacted."""
        return bytes(self._tail[-limit:]).decode("utf-8", "replace")

    async def read_back(self, limit: int) -> bytes:
        """Return the end of the output, redacted: `limit` bytes of the log, and the tail."""
        await self._flush()
        return await asyncio.to_thread(self._read_end, limit) + bytes(self._tail)

    def _read_end(self, limit: int) -> bytes:
        with contextlib.suppress(OSError):
            with open(self._path, "rb") as file:
                file.seek(max(0, self._written - limit))
                return file.read(limit)
        return b""

    async def close(self, note: str = "") -> None:
        """Write everything that was fed, then `note` (our own whole lines, redacted), and close the files."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushing is not None:
            await self._flushing
        await self._flush(last=True, note=note.encode())
        await asyncio.to_thread(self._close_files)

    async def detach(self) -> None:
        """Stop in the middle. The next process that attaches requests the bytes that the redactor still holds."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushing is not None:
            await self._flushing
        await self._flush()
        await asyncio.to_thread(self._close_files)

    def _close_files(self) -> None:
        for descriptor in (self._log, self._position):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._position = -1


Observer = Callable[[dict[str, object]], None]

# One thread, so that lines stay in order and callers of `note` don't wait for the disk.
_JOURNAL_THREAD = ThreadPoolExecutor(max_workers=1, thread_name_prefix="gibil-journal")


class Journal:
    """`events.jsonl`: one JSON line for each phase of a run, for observers and as a record."""

    def __init__(self, folder: Path, observer: Observer | None = None) -> None:
        self._path = folder / "events.jsonl"
        self._observer = observer
        self._last: asyncio.Future[None] | None = None

    def note(self, phase: str, **fields: object) -> None:
        """Queue a line. `flush` waits until all queued lines are in the file."""
        event: dict[str, object] = {"at": datetime.now(UTC).isoformat(), "phase": phase, **fields}
        if self._observer is not None:
            self._observer(event)
        self._last = asyncio.get_running_loop().run_in_executor(_JOURNAL_THREAD, self._append, json.dumps(event) + "\n")

    async def flush(self) -> None:
        if self._last is not None:
            await self._last

    def _append(self, line: str) -> None:
        # The journal is informational: a full disk must not end a run.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._path.open("a") as file:
                file.write(line)


def free_above_floor(path: int | Path) -> int:
    """Return how many bytes may be written to that disk."""
    status = os.statvfs(path)
    floor = min(FREE_FLOOR_BYTES, status.f_blocks * status.f_frsize // 20)
    return status.f_bavail * status.f_frsize - floor


def check_free_space(folder: Path, size: int) -> None:
    """Raise OSError if that disk has no room for a file of `size` bytes."""
    if free_above_floor(folder) < size:
        raise OSError(errno.ENOSPC, "the bot's disk is nearly full")


def size_of(folder: Path, without: Path | None = None) -> int:
    """Return the size of a run's logs in bytes."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            if without is not None and os.path.join(path, name) == str(without):
                continue
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


def trim_logs(folder: Path, most_bytes: int, unfinished: Collection[str]) -> list[str]:
    """Delete the logs of the runs that ended longest ago until the rest fits and the disk has room; return their ids.

    Logs of unfinished runs stay, because those runs are resumed.
    """
    found = []
    with contextlib.suppress(FileNotFoundError):
        for run in list(folder.iterdir()):
            with contextlib.suppress(OSError):
                if run.is_dir() and not run.is_symlink():
                    found.append((run.stat().st_mtime, run, size_of(run)))
    total = sum(size for _, _, size in found)
    deleted = []
    for _, run, size in sorted(found):
        if total <= most_bytes and free_above_floor(folder) >= 0:
            break
        if run.name in unfinished or not size:
            continue
        shutil.rmtree(run, ignore_errors=True)
        total -= size
        deleted.append(run.name)
    return deleted


def forget_old_logs(folder: Path, older_than_s: float) -> None:
    """Remove the folders of runs that ended long ago."""
    deadline = time.time() - older_than_s
    with contextlib.suppress(FileNotFoundError):
        for run in list(folder.iterdir()):
            with contextlib.suppress(OSError):
                if run.is_dir() and run.stat().st_mtime < deadline:
                    shutil.rmtree(run, ignore_errors=True)  # the logs of a second machine are in a subfolder
