"""Task logs on the bot's disk: each is bounded, their sum is bounded, and all are redacted even if most is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gibil_bot.runs import logs
from gibil_bot.runs.logs import TaskLog, size_of, trim_logs
from gibil_bot.runs.redact import Redactor, after_the_first_line


async def _fed(path: Path, *blocks: bytes, limit: int, secrets: tuple[str, ...] = ()) -> TaskLog:
    log = TaskLog(path, Redactor(secrets), limit=limit)
    await log.open()
    offset = log.raw_offset
    for block in blocks:
        offset += len(block)
        await log.feed(block, offset)
        await log._flush()
    return log


async def test_a_log_stops_at_its_limit_notes_it_once_and_shows_the_end(tmp_path: Path) -> None:
    log = await _fed(tmp_path / "0.log", b"first\n" * 100, b"second\n" * 100, b"third\n" * 100, limit=1000)
    assert log.is_full
    await log.close()
    kept = (tmp_path / "0.log").read_bytes()
    assert kept.startswith(b"first\n" * 100 + b"second\n" * 57)
    assert kept.count(b"the rest is not stored") == 1
    assert len(kept) < 1200
    assert log.tail().endswith("third\n")


async def test_a_full_log_is_still_full_when_reopened(tmp_path: Path) -> None:
    log = await _fed(tmp_path / "0.log", b"x\n" * 1000, limit=1000)
    await log.detach()
    size = (tmp_path / "0.log").stat().st_size
    again = await _fed(tmp_path / "0.log", b"more\n", limit=1000)
    assert again.is_full
    await again.close()
    assert (tmp_path / "0.log").stat().st_size == size


async def test_the_limit_counts_output_before_masking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_LIMIT_BYTES", 1000)
    log = await _fed(tmp_path / "0.log", b"-----BEGIN PRIVATE KEY-----\n" * 50, limit=1000)
    assert log.is_full
    await log.close()


async def test_a_limit_of_zero_stores_nothing_and_the_end_is_shown(tmp_path: Path) -> None:
    log = await _fed(tmp_path / "0.log", b"words\n", limit=0)
    await log.close()
    assert b"words" not in (tmp_path / "0.log").read_bytes()
    assert log.tail() == "words\n"


async def test_a_nearly_full_disk_ends_the_log_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = await _fed(tmp_path / "0.log", b"before\n", limit=1000)
    monkeypatch.setattr(logs, "free_above_floor", lambda where: 0)
    await log.feed(b"after\n", 13)
    await log.close()
    assert log.problem is not None
    assert "disk is nearly full" in log.problem
    kept = (tmp_path / "0.log").read_bytes()
    assert kept.startswith(b"before\n")
    assert b"after" not in kept
    assert log.tail().endswith("after\n")


async def test_skipped_output_is_counted_and_the_end_is_redacted(tmp_path: Path) -> None:
    heard: list[bytes] = []
    log = TaskLog(tmp_path / "0.log", Redactor(["hunter2-secret"]), heard.append, limit=10)
    await log.open()
    await log.feed(b"0123456789\n", 11)
    await log._flush()
    assert log.is_full
    await log.skip(b"nter2-secret\nthe hunter2-secret\nlast line\n", 1_000_000)
    await log.close()
    assert log.skipped == 1_000_000 - 11
    shown = log.tail()
    assert "nter2" not in shown
    assert shown.endswith("bytes omitted]\nthe ***\nlast line\n")
    assert heard[-1] == b"the ***\nlast line\n"


async def test_output_that_was_already_fed_is_not_shown_twice(tmp_path: Path) -> None:
    log = await _fed(tmp_path / "0.log", b"one\ntwo\nthree\n", limit=4)
    await log.skip(b"one\ntwo\nthree\nfour\n", 19)
    assert log.tail().replace("\n", " ").endswith("three  [gibil: 0 bytes omitted] four ")


def test_output_with_an_unknown_beginning_starts_after_a_line_and_after_a_key() -> None:
    assert after_the_first_line(b"no end of a line") == b""
    assert after_the_first_line(b"rest\nwhole\n") == b"whole\n"
    key = b"x\nMIIEvQIBADANBgkqhkiG\n-----END PRIVATE KEY-----\nafter\n"
    assert after_the_first_line(key) == b"\nafter\n"
    whole = b"x\n-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\n-----END PRIVATE KEY-----\nafter\n"
    assert after_the_first_line(whole) == whole[2:]


def _run(folder: Path, name: str, size: int, age: int) -> None:
    (folder / name / "machine-2").mkdir(parents=True)
    (folder / name / "0.log").write_bytes(bytes(size // 2))
    (folder / name / "machine-2" / "0.log").write_bytes(bytes(size - size // 2))
    os.utime(folder / name, (1_700_000_000 - age, 1_700_000_000 - age))


def test_logs_of_the_oldest_finished_runs_are_deleted_first(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "middle", "running", "old")):
        _run(tmp_path, name, 1000, age)
    assert size_of(tmp_path / "old") == 1000
    assert trim_logs(tmp_path, 4000, {"running"}) == []
    assert trim_logs(tmp_path, 3999, {"running"}) == ["old"]
    assert trim_logs(tmp_path, 1000, {"running"}) == ["middle", "new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["running"]
    assert trim_logs(tmp_path / "absent", 0, set()) == []


def test_a_nearly_full_disk_deletes_finished_logs_below_the_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(("running", "old")):
        _run(tmp_path, name, 1000, age)
    monkeypatch.setattr(logs, "free_above_floor", lambda where: -1)
    assert trim_logs(tmp_path, 10**9, {"running"}) == ["old"]


def test_old_logs_of_a_second_machine_are_deleted_too(tmp_path: Path) -> None:
    _run(tmp_path, "old", 1000, 0)
    logs.forget_old_logs(tmp_path, 86400)
    assert list(tmp_path.iterdir()) == []
