"""Programs without events: every line of their output is text, and their exit status is all that tells how they ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from gibil_bot.agents.dialects import events
from gibil_bot.agents.transcript import SUBJECT_LIMIT, Ended, Entry, Printed


class TextDialect:
    """Implements `Dialect`."""

    has_ended = False

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=20)

    def feed(self, line: bytes) -> Iterator[Entry]:
        words = line[: 4 * SUBJECT_LIMIT].decode("utf-8", "replace")[:SUBJECT_LIMIT]
        self._last.append(words)
        yield Printed(text=words)

    def rest(self) -> list[Entry]:
        return []

    def end(self, exit_status: int | None, stderr_tail: str = "") -> Ended:
        printed = "\n".join(self._last).strip("\n")
        if exit_status == 0:
            return Ended(reason="completed", is_success=True, text=printed)
        ended = events.without_end(exit_status, stderr_tail, printed)
        return Ended(reason="failed", is_success=False, text=ended.text) if ended.reason == "no_end" else ended
