"""The standard output of an agent's program while it arrives: one object joins splitting, reading, redacting and showing it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from gibil_bot.agents.lines import LineSplitter
from gibil_bot.agents.transcript import Dialect, Ended, Entry, Printed
from gibil_bot.agents.transcript_summary import TranscriptSummary, log_lines

LOG_LIMIT = 8 << 20
"""Most characters that are returned for the log, so that a program that prints forever doesn't fill it."""
MOST_BYTES, MOST_LINES = 64 << 20, 300_000
"""More isn't worth reading: real agents have thousands of events, and each line takes microseconds."""


class AgentOutput:
    """Feed what arrives, in chunks that end anywhere; the returned text is appended to the log.

    `redact` masks secrets in a text that was joined of several events. The bytes should be redacted before, too, because a
    text may be cut. To continue after a restart, feed the same bytes from the beginning and discard what it returns.
    """

    def __init__(self, dialect: Dialect, *, folder: str = "", redact: Callable[[str], str] | None = None) -> None:
        self._dialect = dialect
        self._folder = folder
        self._redact = redact
        self._lines = LineSplitter()
        self._room = LOG_LIMIT
        self._read_bytes = self._read_lines = 0
        self.summary = TranscriptSummary(folder)
        self.ended: Ended | None = None
        """Set by `end`."""

    @property
    def has_ended(self) -> bool:
        """Whether the program's last event arrived: it should exit now."""
        return self._dialect.has_ended

    @property
    def is_full(self) -> bool:
        """Whether so much was fed that only the end matters: see `skip`."""
        return self._read_bytes > MOST_BYTES or self._read_lines > MOST_LINES

    def skip(self, size: int) -> str:
        """Leave out `size` bytes that follow what was fed. The next line is a new one."""
        return self._read((*self._lines.rest(), size))

    def feed(self, data: bytes) -> str:
        """Return the log's lines of all entries that are complete."""
        self._read_bytes += len(data)
        return self._read(self._lines.feed(data))

    def end(self, exit_status: int | None, stderr_tail: str = "") -> str:
        """Return the last lines of the log, and set `ended`. `exit_status` None: it was killed, or is unknown."""
        shown = self._read(self._lines.rest()) + self._show(self._dialect.rest())
        ended = self._dialect.end(exit_status, stderr_tail)
        self.ended = msgspec.structs.replace(ended, text=self._redact(ended.text)) if self._redact else ended
        return shown

    def _read(self, lines: Iterable[bytes | int]) -> str:
        shown = []
        for line in lines:
            self._read_lines += 1
            if isinstance(line, int):
                shown.append(self._show([Printed(text=f"({line:,} bytes are left out)")]))
            else:
                shown.append(self._show(self._dialect.feed(line)))
        return "".join(shown)

    def _show(self, entries: Iterable[Entry]) -> str:
        shown = []
        for entry in entries:
            if self._redact is not None:
                entry = _redacted(entry, self._redact)
            self.summary.add(entry)
            if self._room > 0:
                lines = log_lines(entry, self._folder)
                self._room -= len(lines)
                shown.append(lines)
                if self._room <= 0:
                    shown.append("[gibil: further entries aren't shown: the program printed too many]\n")
        return "".join(shown)


def _redacted(entry: Entry, redact: Callable[[str], str]) -> Entry:
    texts = {
        name: redact(value)
        for name in entry.__struct_fields__
        if name != "kind" and isinstance(value := getattr(entry, name), str) and value
    }
    return msgspec.structs.replace(entry, **texts)
