"""Splits a stream of bytes into lines, within a limit of memory, and retains the stream as an artifact of limited size."""

from __future__ import annotations

from collections.abc import Callable, Iterator

LINE_LIMIT = 4 << 20
"""Longest line in bytes: an event may contain a file twice, before and after an edit."""
_NOTE_LIMIT = 100


class LineSplitter:
    """Returns whole lines of chunks that end anywhere. A longer line than `limit` is skipped, and returned as its size."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._held = bytearray()
        self._skipped = 0

    def feed(self, data: bytes) -> Iterator[bytes | int]:
        """Yield the lines that this chunk ends, without their newlines. Blank lines are left out."""
        start = 0
        while (stop := data.find(b"\n", start)) >= 0:
            yield from self._line(data[start:stop])
            start = stop + 1
        self._hold(data[start:])

    def rest(self) -> Iterator[bytes | int]:
        """Yield the last line, which has no newline."""
        yield from self._line(b"")

    def _hold(self, part: bytes) -> None:
        if self._skipped or len(self._held) + len(part) > self._limit:
            self._skipped += len(self._held) + len(part)
            self._held.clear()
        else:
            self._held += part

    def _line(self, end: bytes) -> Iterator[bytes | int]:
        if not self._held and not self._skipped and len(end) <= self._limit:  # most lines: nothing is copied
            line = end
        else:
            self._hold(end)
            if self._skipped:
                skipped, self._skipped = self._skipped, 0
                yield skipped
                return
            line = bytes(self._held)
            self._held.clear()
        line = line.removesuffix(b"\r")
        if line.strip():
            yield line


class EventFile:
    """The content of an artifact: the redacted lines of a stream. If they are too long, its beginning, a note and its end.

    `redact` may hold bytes, as `Redactor.feed` does; `flush` returns them. Nothing is written here: append what `feed` and
    `close` return to the file.
    """

    def __init__(
        self,
        redact: Callable[[bytes], bytes],
        flush: Callable[[], bytes] = bytes,
        *,
        limit: int = 32 << 20,
        end: int = 256 << 10,
    ) -> None:
        """`limit`: most bytes in all; `end`: how many of these are for the last lines."""
        self._redact = redact
        self._flush = flush
        self._room = limit - end - _NOTE_LIMIT
        self._end_limit = end
        self._pending = bytearray()
        self._end = bytearray()
        self._omitted = 0
        self._is_full = False
        self._is_skipping = False
        """Until the end of a line that is too long."""

    def feed(self, data: bytes) -> bytes:
        """Return the bytes to append."""
        return self._add(self._redact(data))

    def close(self) -> bytes:
        """Return the last bytes to append; nothing is fed after it."""
        last = self._add(self._flush())
        if self._pending:
            last += self._add(b"\n")
        if self._omitted:
            last += b'{"type":"gibil.omitted","bytes":%d}\n' % self._omitted
        return last + bytes(self._end)

    def _add(self, data: bytes) -> bytes:
        if self._is_skipping:
            stop = data.find(b"\n") + 1
            self._omitted += stop or len(data)
            self._is_skipping = not stop
            data = data[stop or len(data) :]
        self._pending += data
        stop = self._pending.rfind(b"\n") + 1
        lines = bytes(self._pending[:stop])
        del self._pending[:stop]
        if len(self._pending) > LINE_LIMIT:
            self._omitted += len(self._pending)
            self._pending.clear()
            self._is_skipping = True
        if not self._is_full and len(lines) <= self._room:
            self._room -= len(lines)
            return lines
        written = b""
        if not self._is_full:
            self._is_full = True
            written = lines[: lines.rfind(b"\n", 0, self._room) + 1]
        self._end += lines[len(written) :]
        if len(self._end) > self._end_limit:
            cut = self._end.find(b"\n", len(self._end) - self._end_limit - 1) + 1
            self._omitted += cut
            del self._end[:cut]
        return written
