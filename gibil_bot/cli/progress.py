"""Progress of creating a machine, on stderr: one line per finished phase, and on a terminal a line that counts the seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from types import TracebackType

from gibil_bot.cli.output import Paint

_EVERY_S = 0.1
_WORDS = {
    "prepare": ("preparing the root file system of machines, once per data directory", ""),
    "repository": ("reading the repository", "read the repository"),
    "forge": ("creating {}", "created {}"),
    "connect": ("connecting to {}", "connected to {}"),
    "code": ("sending the code to {}", "sent the code to {}"),
    "ready": ("setting up {}", "{} is ready"),
}
_NEXT = {"forge": "connect"}


def _cut(text: str, end: str, columns: int) -> str:
    """Fit a text into one row of a terminal: with two rows, only the last could be erased."""
    room = columns - 1 - len(end)
    return (text if len(text) <= room else f"{text[: max(0, room - 1)]}…") + end


class Progress:
    """An async context manager; `phase` is the `on_phase` of `MachineService.create_several`."""

    def __init__(self) -> None:
        self._stream = sys.stderr
        self._paint = Paint(self._stream)
        self._live = self._stream is not None and self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._running: dict[tuple[str, str], float] = {}
        self._drawn = False
        self._preparing = False
        self._drawing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Progress:
        if self._live:
            self._drawing = asyncio.create_task(self._draw())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._drawing is not None:
            self._drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._drawing
        self._wipe()

    def phase(self, name: str, phase: str, seconds: float | None) -> None:
        if phase == "prepare":  # all machines of a fleet wait for it
            if not self._preparing:
                self.print_line(f"… {_WORDS[phase][0]}")
            self._preparing = True
            return
        if seconds is None:
            self._running[name, phase] = time.monotonic()
            return
        self._running.pop((name, phase), None)
        self.print_line(f"{self._paint.good('✔')} {_WORDS[phase][1].format(name)} {self._paint.quiet(f'({seconds:.2f} s)')}")
        if phase in _NEXT:
            self._running[name, _NEXT[phase]] = time.monotonic()

    def pause(self) -> None:
        """Stop drawing: the caller writes further output."""
        self._running.clear()
        self._wipe()

    def print_line(self, text: str) -> None:
        self._wipe()
        self._write(f"{text}\n")

    async def _draw(self) -> None:
        while True:
            if self._running:
                (name, phase), began = next(iter(self._running.items()))
                others = f", {len(self._running) - 1} more" if len(self._running) > 1 else ""
                line = f"… {_WORDS[phase][0].format(name)}{others}"
                line = _cut(line, f" {time.monotonic() - began:.1f} s", self._columns())
                self._write(f"\r\x1b[K{self._paint.quiet(line)}")
                self._drawn = True
            await asyncio.sleep(_EVERY_S)

    def _columns(self) -> int:
        assert self._stream is not None
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        return 80

    def _wipe(self) -> None:
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # the terminal is closed
                self._stream.write(text)
                self._stream.flush()
