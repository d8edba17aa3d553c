"""What a copy has copied so far, its limits, and its result."""

from __future__ import annotations

from dataclasses import dataclass

from gibil_bot.errors import UsageError
from gibil_bot.ssh.answers import printable, size_text

MOST_ENTRIES = 1_000_000
"""Limit for the files and directories of one copied directory."""
MOST_BYTES = 1024**3
"""Limit for one copy by a program or an agent, unless the caller chooses another. `gibil cp` has none: a person watches it."""
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What was copied. `left_out`: entries of a directory that weren't, at most 20 of them, each with the reason."""

    path: str
    """Where the copy is."""
    files: int
    """Files and links, without directories."""
    bytes: int
    left_out: tuple[str, ...] = ()
    left_out_total: int = 0


class CopyReport:
    """Counts what is copied. Raises UsageError (TOO_LARGE) above a limit."""

    def __init__(self, most_bytes: int | None = None, most_entries: int = MOST_ENTRIES) -> None:
        self.files = 0
        self.bytes = 0
        self.left_out: list[str] = []
        """The first entries; see `left_out_total`."""
        self.left_out_total = 0
        self._most_bytes = most_bytes
        self._most_entries = most_entries
        self._entries = 0

    def leave_out(self, path: str, reason: str) -> None:
        self.left_out_total += 1
        if len(self.left_out) < _SHOWN:
            self.left_out.append(f"{printable(path.removeprefix('./'))}: {reason}")

    def add_entry(self) -> None:
        self._entries += 1
        if self._entries > self._most_entries:
            raise UsageError(
                f"the directory has more than {self._most_entries:,} entries: copy a part of it",
                code="TOO_LARGE",
            )

    def add_bytes(self, count: int) -> None:
        self.bytes += count
        if self._most_bytes is not None and self.bytes > self._most_bytes:
            raise UsageError(f"it is larger than {size_text(self._most_bytes)}: copy a part of it", code="TOO_LARGE")

    def result(self, path: str) -> Transfer:
        return Transfer(
            path=path, files=self.files, bytes=self.bytes, left_out=tuple(self.left_out), left_out_total=self.left_out_total
        )  # fmt: skip
