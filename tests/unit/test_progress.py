"""Progress on stderr while a machine is created: running seconds on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator
from typing import TextIO

import pytest

from gibil_bot.cli.machine import table
from gibil_bot.cli.progress import Progress
from gibil_bot.ssh.answers import printable
from tests.doubles.patience import patient


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """Open a pty; return its reading end, and a stream that is a terminal."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield ours, stream
    os.close(ours)


async def seen_until(descriptor: int, wanted: str) -> str:
    """Return what the terminal shows up to this text; wait ten seconds at most."""
    seen = b""
    readable = asyncio.Event()
    loop = asyncio.get_running_loop()
    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, readable.set)
    try:
        async with asyncio.timeout(patient(10)):
            while wanted not in seen.decode(errors="replace"):
                await readable.wait()
                readable.clear()
                with contextlib.suppress(BlockingIOError):
                    seen += os.read(descriptor, 4096)
    finally:
        loop.remove_reader(descriptor)
    return seen.decode()


async def test_a_terminal_shows_running_seconds_and_keeps_finished_steps(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, stream = terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)  # set here and not in a fixture, because pytest sets it again before the call
    async with Progress() as progress:
        progress.phase("m", "forge", None)
        progress.phase("n", "forge", None)
        shown = await seen_until(ours, "creating m, 1 more ")
        assert "\r\x1b[K" in shown
        progress.phase("m", "forge", 1.234)
        shown = await seen_until(ours, "(1.23 s)")
        assert "\x1b[32m✔\x1b[0m created m" in shown
        await seen_until(ours, "creating n, 1 more")  # n, and the connection to m


async def test_other_streams_get_one_plain_line_per_finished_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    async with Progress() as progress:
        progress.phase("", "repository", None)
        progress.phase("", "repository", 0.5)
        progress.phase("m", "forge", None)
        progress.phase("m", "forge", 0.03)
        progress.phase("m", "connect", 0.01)
    assert stream.getvalue() == "✔ read the repository (0.50 s)\n✔ created m (0.03 s)\n✔ connected to m (0.01 s)\n"


async def test_progress_works_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    async with Progress() as progress:
        progress.phase("m", "forge", None)
        progress.phase("m", "forge", 0.03)


def test_a_table_has_columns_and_foreign_text_moves_no_cursor() -> None:
    rows: list[tuple[str, ...]] = [("NAME", "FOR"), ("a-long-name", printable("x\x1b[2J\ny")), ("b", "")]
    assert table(rows) == "NAME         FOR\na-long-name  x [2J y\nb\n"


async def test_a_narrow_terminal_keeps_the_important_part_on_one_line(
    terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, stream = terminal
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 40, 0, 0))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    async with Progress() as progress:
        progress.phase("a-name-of-sixty-three-letters-" * 2, "forge", None)
        shown = await seen_until(ours, " s\r")  # drawn twice
    rows = [row.removeprefix("\x1b[K") for row in shown.split("\r") if row.strip("\x1b[K")]
    assert rows[0].startswith("… creating a-name-of-sixty")
    assert max(map(len, rows)) < 40


async def test_a_dumb_terminal_gets_plain_lines(terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch) -> None:
    ours, stream = terminal
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", stream)
    async with Progress() as progress:
        progress.phase("m", "forge", None)
        progress.phase("m", "forge", 0.5)
    assert await seen_until(ours, "\n") == "✔ created m (0.50 s)\r\n"
