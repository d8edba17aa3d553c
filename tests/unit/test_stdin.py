"""Passing stdin to a command on a machine: what is passed, and how long a silent pipe is waited for."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest

from gibil_bot.cli import stdin


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Make stdin a pipe; return its write end."""
    reading, writing = os.pipe()
    monkeypatch.setattr(stdin, "_STDIN", reading)
    monkeypatch.setattr(stdin, "FIRST_BYTE_S", 0.05)
    yield writing
    os.close(writing)  # and the thread that reads it ends


async def all_of(wanted: bool | None) -> bytes | None:
    blocks = stdin.forward(wanted)
    return None if blocks is None else b"".join([block async for block in blocks])


async def test_a_silent_pipe_counts_as_empty_and_is_reported(pipe: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert await all_of(None) == b""
    assert "stdin has been silent for 0.05 s" in capsys.readouterr().err


async def test_a_silent_pipe_is_waited_for_on_request_and_after_its_first_byte(
    pipe: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    writing = os.dup(pipe)
    blocks = stdin.forward(True)
    assert blocks is not None
    os.write(writing, b"first")
    assert await anext(blocks) == b"first"
    os.write(writing, b"second")
    assert await anext(blocks) == b"second"
    os.close(writing)
    assert capsys.readouterr().err == ""
    assert await all_of(False) is None


async def test_a_terminal_and_dev_null_are_no_input_and_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    (tmp_path / "file").write_bytes(b"x" * 3_000_000)
    null, file = os.open(os.devnull, os.O_RDONLY), os.open(tmp_path / "file", os.O_RDONLY)
    try:
        for descriptor in (theirs, null):
            monkeypatch.setattr(stdin, "_STDIN", descriptor)
            assert await all_of(None) is None
            assert await all_of(True) is None
        monkeypatch.setattr(stdin, "_STDIN", file)
        assert await all_of(None) == b"x" * 3_000_000
    finally:
        for descriptor in (ours, theirs, null, file):
            os.close(descriptor)
