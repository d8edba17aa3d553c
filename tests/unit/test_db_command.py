"""What `gibil db` prints, of a SQLite file."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gibil_bot.cli.db import db
from gibil_bot.errors import StoreError, UsageError
from gibil_bot.model import Host
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.store import open_store
from tests.contracts.store_nouns import Clock, comment, delivery, new_run, queue
from tests.doubles.json_output import check_output

SAMPLE = Path(__file__).parents[1] / "contracts" / "samples" / "version_3.sql"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GIBIL_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("GIBIL_DATABASE_URL", raising=False)
    return tmp_path / "gibil.db"


def gibil_db(*words: str, fails: type[Exception] | None = None) -> Result:
    """Run the command twice, for people and with --json; return the first result."""
    result = CliRunner().invoke(db, words)
    if fails is not None:
        assert isinstance(result.exception, fails), result.exception
        return result
    as_json = CliRunner().invoke(db, [*words, "--json"])
    assert as_json.exit_code == result.exit_code, (result.exception, as_json.exception)
    check_output(["db", *words, "--json"], as_json.stdout)
    return result


async def work(file: Path) -> None:
    """As a bot that ended a minute ago: one run of two is running, one delivery waits, one notification failed."""
    clock = Clock()
    store = await open_store(f"sqlite:///{file}", clock=clock)
    await store.hosts.start(Host(id="00000000000000aa", name="here\x1b[2J", url="http://here:8080"), "here:1")
    await queue(store, new_run("run-1"), new_run("run-2"))
    claim = await store.runs.claim("here:1", lease_s=1e9, max_machines=1)
    assert claim is not None
    await store.runs.save_machine(claim, "m", 1, "00000000000000aa")
    await store.inbox.accept(delivery("waiting"))
    await store.outbox.record([comment()])
    await store.close()


def test_the_state_of_a_missing_file_names_the_next_step(file: Path) -> None:
    shown = gibil_db("status").stdout
    assert "none yet, and this gibil needs 7: run gibil db migrate" in shown
    assert not file.exists()
    for command in ("check", "prune"):
        failed = gibil_db(command, fails=StoreError)
        assert "run gibil db migrate" in str(failed.exception)


def test_the_state_in_words(file: Path) -> None:
    asyncio.run(work(file))
    shown = gibil_db("status").stdout
    lines = [re.sub(r"\d+ (h|min|s)\b", "TIME", line) for line in shown.splitlines()]
    assert lines[0].split() == ["database", str(file)]
    assert re.fullmatch(r"schema +version 7", lines[2])
    assert re.fullmatch(r"deliveries +1 to handle \(the oldest arrived TIME TIME ago\), 0 failed", lines[3])
    assert re.fullmatch(r"runs +1 queued, 1 running, 0 finished", lines[4])
    assert re.fullmatch(r"notifications 1 to publish \(the oldest due in TIME TIME\), 0 that GitHub doesn't accept", lines[5])
    assert lines[7].split() == ["HOST", "ID", "BOT", "MACHINES", "URL"]
    assert lines[8].startswith("here\ufffd[2J  00000000000000aa  running")
    assert lines[11].split()[:4] == ["here:1", "0", "1", "0"]


def test_problems_are_printed_with_a_remedy_and_end_with_1(file: Path) -> None:
    asyncio.run(work(file))
    with closing(sqlite3.connect(file)) as changed:
        changed.execute("update runs set plan = '{}' where id = 'run-2'")
        changed.commit()
    result = gibil_db("check")
    assert result.exit_code == 1
    assert "FAIL run run-2: its plan can't be decoded: Object missing required field `workflow`; no run can be" in result.stdout
    assert "     → if a newer gibil wrote it, upgrade; else stop the bots, and delete it: delete from runs" in result.stdout


def test_a_damaged_file_is_reported_without_a_traceback(file: Path) -> None:
    asyncio.run(work(file))
    data = bytearray(file.read_bytes())
    data[4096 * 3 : 4096 * 40] = b"\xff" * 4096 * 37
    file.write_bytes(data)
    result = gibil_db("check")
    assert result.exit_code == 1
    assert result.stdout.startswith(f"FAIL {file}: ")
    assert "restore a backup" in result.stdout


def test_a_file_without_problems(file: Path) -> None:
    gibil_db("migrate")
    assert gibil_db("check").stdout == f"ok   {file}: no problem was found\n"
    assert gibil_db("check").exit_code == 0


def test_migrating_names_both_versions(file: Path) -> None:
    result = CliRunner().invoke(db, ["migrate"])
    assert result.stderr == f"gibil: created version 7 in {file}\n"
    assert gibil_db("migrate").stderr == f"gibil: {file} has version 7 already\n"
    file.unlink()
    with closing(sqlite3.connect(file)) as changed:
        changed.executescript(SAMPLE.read_text())
    assert "version 3, and this gibil needs 7: run gibil db migrate" in gibil_db("status").stdout
    as_json = CliRunner().invoke(db, ["migrate", "--json"])
    assert json.loads(as_json.stdout) == {"database": str(file), "from_version": 3, "to_version": 7}


def test_a_newer_file_is_not_touched(file: Path) -> None:
    gibil_db("migrate")
    with closing(sqlite3.connect(file)) as changed:
        changed.execute("pragma user_version = 99")
    assert "version 99, of a newer gibil: upgrade this one, which supports 7" in gibil_db("status").stdout
    for command in ("migrate", "check", "prune"):
        assert "newer gibil" in str(gibil_db(command, fails=StoreError).exception)


def test_migrating_needs_the_bot_to_be_stopped(file: Path) -> None:
    gibil_db("migrate")
    lock = database.lock(file)  # as a bot holds it
    try:
        assert [gibil_db(command).exit_code for command in ("status", "check", "prune", "migrate")] == [0, 0, 0, 0]
        with closing(sqlite3.connect(file)) as changed:
            changed.execute("pragma user_version = 6")
        assert "stop it first" in str(gibil_db("migrate", fails=StoreError).exception)
    finally:
        os.close(lock)


def test_pruning_prints_what_it_deleted(file: Path) -> None:
    async def fill() -> None:
        clock = Clock()
        clock.now = 1_600_000_000.0
        store = await open_store(f"sqlite:///{file}", clock=clock)
        for number in range(1200):
            await store.inbox.accept(delivery(f"guid-{number}"), handled=True)
        await store.close()

    asyncio.run(fill())
    result = CliRunner().invoke(db, ["prune"])
    assert result.stdout == "    1,200 deliveries\n"
    assert re.fullmatch(r"gibil: deleted 1,200 rows; new rows use \d\.\d MB that are free in the file\n", result.stderr)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "write the address of the new database"),
        (("--undo", "postgresql://db/gibil"), "write the address of the new database"),
        (("mysql://ada:the-password@db/gibil",), "'mysql://…' isn't the address of a PostgreSQL database"),
        (("postgresql://ada:the/password@db/gibil",), "can't be parsed"),
    ],
)
def test_a_wrong_address_of_an_export_is_a_usage_error(file: Path, words: tuple[str, ...], problem: str) -> None:
    failed = gibil_db("export", *words, fails=UsageError).exception
    assert problem in str(failed)
    assert "password@" not in str(failed)


def test_only_a_sqlite_file_is_exported(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIBIL_DATABASE_URL", "postgresql://ada:the-password@db/gibil")
    failed = gibil_db("export", "postgresql://db/other", fails=UsageError).exception
    assert "GIBIL_DATABASE_URL is postgresql://ada@db/gibil already" in str(failed)
