"""Faults of the embedded database: killed processes, full disks, invalid files."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import cast

import pytest

from gibil_bot.errors import StoreError
from gibil_bot.model import CommentUpdate, Delivery, Notification
from gibil_bot.ports import DeliveryOutcome
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.checkpointer import LARGE_LOG
from gibil_bot.runs.sqlite.store import open_store
from tests.doubles.patience import patient

PATIENCE_S = 30

PRELUDE = """
import asyncio, sys
from datetime import UTC, datetime
from gibil_bot.errors import StoreError
from gibil_bot.model import Delivery
from gibil_bot.runs.sqlite.store import open_store

def delivery(guid, payload=b"{}"):
    return Delivery(guid=guid, event_name="push", event=None, payload=payload, received_at=datetime.now(UTC))

def say(*words):
    print(*words, flush=True)

url = sys.argv[1]
"""


def delivery(guid: str, payload: bytes = b"{}") -> Delivery:
    return Delivery(guid=guid, event_name="push", event=None, payload=payload, received_at=datetime.now(UTC))


def url_of(folder: Path) -> str:
    return f"sqlite:///{folder / 'gibil.db'}"


@contextmanager
def process(code: str, url: str) -> Iterator[subprocess.Popen[str]]:
    """Run a separate Python that executes `async def main()`; kill it at the end."""
    script = PRELUDE + textwrap.dedent(code) + "\nasyncio.run(main())\n"
    with subprocess.Popen(
        [sys.executable, "-c", script, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.kill()


def line_of(child: subprocess.Popen[str]) -> str:
    """Return the next line of its output, or its errors if there is none."""
    assert child.stdout is not None
    assert child.stderr is not None
    line = child.stdout.readline().strip()
    return line or child.stderr.read()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    opened = await open_store(url_of(tmp_path))
    yield opened
    await opened.close()


# Processes


async def test_acknowledged_deliveries_exist_after_kill_9(tmp_path: Path) -> None:
    code = """
    async def main():
        store = await open_store(url)
        async def client(name):
            number = 0
            while True:
                guid = f"{name}-{number}"
                assert await store.inbox.accept(delivery(guid, guid.encode() * 50))
                say(guid)
                number += 1
        await asyncio.gather(*(client(name) for name in "abcdefgh"))
    """
    with process(code, url_of(tmp_path)) as child:
        assert child.stdout is not None
        acknowledged = [line_of(child) for _ in range(500)]
        os.kill(child.pid, signal.SIGKILL)
        acknowledged += [line for line in child.stdout.read().split("\n")[:-1] if line]
    store = await open_store(url_of(tmp_path))
    try:
        for guid in acknowledged:
            found = await store.inbox.get(guid)
            assert found is not None, guid
            assert found[0].payload == guid.encode() * 50
    finally:
        await store.close()


async def test_each_guid_is_accepted_by_one_of_two_processes(tmp_path: Path) -> None:
    code = """
    async def main():
        store = await open_store(url, exclusive=False)
        say("ready")
        sys.stdin.readline()
        answers = await asyncio.gather(*(store.inbox.accept(delivery(f"guid-{n}")) for n in range(400)))
        say("".join("ny"[answer] for answer in answers))
        await store.close()
    """
    with process(code, url_of(tmp_path)) as one, process(code, url_of(tmp_path)) as two:
        for child in (one, two):
            assert line_of(child) == "ready"
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        answers = zip(line_of(one), line_of(two), strict=True)
        assert {"".join(sorted(pair)) for pair in answers} == {"ny"}


async def test_a_second_bot_is_rejected_and_can_start_after_kill_9(tmp_path: Path) -> None:
    code = """
    async def main():
        store = await open_store(url)
        for number in range(3):
            await store.inbox.accept(delivery(f"guid-{number}"))
        say(len(await store.inbox.claim("dead", limit=2, lease_s=3600)))
        await asyncio.sleep(600)
    """
    url = url_of(tmp_path)
    with process(code, url) as child:
        assert line_of(child) == "2"
        with pytest.raises(StoreError, match=f"another `gibil serve` .process {child.pid}. holds .*gibil.db.lock") as refused:
            await open_store(url)
        assert "\n" not in refused.value.message
        looking_on = await open_store(url, exclusive=False)  # `gibil doctor` while a bot is running
        assert (await looking_on.counts())["deliveries_unhandled"] == 3
        await looking_on.close()
        os.kill(child.pid, signal.SIGKILL)
        child.wait(patient(PATIENCE_S))
        store = await open_store(url)
        try:
            claimed = await store.inbox.claim("alive", limit=9, lease_s=60)
            assert [(one.guid, one.attempts) for one in claimed] == [("guid-0", 2), ("guid-1", 2), ("guid-2", 1)]
        finally:
            await store.close()


async def test_leases_of_a_dead_process_on_runs_and_notifications_end(tmp_path: Path) -> None:
    notification = Notification(
        key="k", installation_id=1, repository="ada/engine", update=CommentUpdate(number=1, marker="m", body="m")
    )
    first = await open_store(url_of(tmp_path), exclusive=False)
    await first.inbox.accept(delivery("guid"))
    await first.inbox.claim("dead", limit=1, lease_s=3600)
    await first.inbox.complete("dead", "guid", DeliveryOutcome(notifications=[notification]))
    assert await first.outbox.claim("dead", limit=1, lease_s=3600)
    await first.close()
    second = await open_store(url_of(tmp_path))
    try:
        assert [due.attempts for due in await second.outbox.claim("alive", limit=1, lease_s=60)] == [1]
    finally:
        await second.close()


async def test_the_lock_is_free_after_closing_and_after_a_failed_opening(tmp_path: Path) -> None:
    (tmp_path / "gibil.db").write_bytes(b"not a database at all, " * 400)
    with pytest.raises(StoreError):
        await open_store(url_of(tmp_path))
    (tmp_path / "gibil.db").unlink()
    for _ in range(2):
        await (await open_store(url_of(tmp_path))).close()
    descriptor = os.open(tmp_path / "gibil.db.lock", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


# Files


@pytest.mark.parametrize("url", ["postgresql://localhost/x", "sqlite:///", "sqlite://x.db", "sqlite:///:memory:", "gibil.db"])
async def test_a_url_without_a_file_is_rejected(url: str) -> None:
    with pytest.raises(StoreError, match="sqlite:///"):
        await open_store(url)


async def test_a_missing_folder_is_created_and_readable_only_by_its_user(tmp_path: Path) -> None:
    store = await open_store(url_of(tmp_path / "a" / "b"))
    try:
        await store.inbox.accept(delivery("guid"))
        files = list((tmp_path / "a" / "b").iterdir())
        assert {"gibil.db", "gibil.db-wal", "gibil.db.lock"} <= {file.name for file in files}
        assert {file.stat().st_mode & 0o077 for file in (*files, tmp_path / "a" / "b")} == {0}
    finally:
        await store.close()


async def test_after_closing_one_file_is_the_whole_database(tmp_path: Path) -> None:
    store = await open_store(url_of(tmp_path))
    await store.inbox.accept(delivery("guid"))
    await store.close()
    assert {file.name for file in tmp_path.iterdir()} == {"gibil.db", "gibil.db.lock"}


async def test_an_error_about_an_invalid_database_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "gibil.db").write_bytes(b"not a database at all, " * 400)
    with pytest.raises(StoreError, match=r"gibil\.db: .*isn't a SQLite database: set GIBIL_DATABASE_URL"):
        await open_store(url_of(tmp_path))


async def test_an_error_about_a_folder_instead_of_a_file_names_it(tmp_path: Path) -> None:
    (tmp_path / "gibil.db").mkdir()
    with pytest.raises(StoreError, match=r"gibil\.db"):
        await open_store(url_of(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"check the path and its owner"):
        await open_store(url_of(tmp_path / "file" / "x"))


READ_ONLY = """
import subprocess
from gibil_bot.errors import StoreError

async def main():
    await (await open_store(sys.argv[1])).close()
    subprocess.run(["mount", "-o", "remount,bind,ro", sys.argv[2]], check=True)
    try:
        await open_store(sys.argv[1])
    except StoreError as error:
        print(error.message, flush=True)

asyncio.run(main())
"""


async def test_an_error_about_an_unwritable_file_names_it(tmp_path: Path) -> None:
    """On a read-only file system, which applies to root, too, in a private mount namespace."""
    disk, script = tmp_path / "disk", tmp_path / "child.py"
    disk.mkdir()
    script.write_text(PRELUDE + READ_ONLY)
    mount = f"mount -t tmpfs -o size=4m tmpfs {disk}"
    command = f"{mount} && exec {sys.executable} {script} {url_of(disk)} {disk}"
    trial = ["unshare", "-rm", "sh", "-c", f"{mount} && {sys.executable} -c 'import gibil_bot'"]
    tried = subprocess.run(trial, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a private file system can't be mounted here, or Python can't be run with it: {tried.stderr.strip()}")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert "gibil.db" in done.stdout, done.stderr
    assert "owner" in done.stdout


async def test_a_database_of_a_newer_version_is_not_changed(tmp_path: Path) -> None:
    await (await open_store(url_of(tmp_path))).close()
    db = sqlite3.connect(tmp_path / "gibil.db")
    db.execute("pragma user_version = 999")
    db.close()
    with pytest.raises(StoreError, match=r"newer gibil .version 999, this one supports \d+.: upgrade gibil"):
        await open_store(url_of(tmp_path))


async def test_a_damaged_database_is_reported_with_a_remedy(tmp_path: Path) -> None:
    store = await open_store(url_of(tmp_path))
    for number in range(200):
        await store.inbox.accept(delivery(f"guid-{number}", b"x" * 5000))
    await store.close()
    path = tmp_path / "gibil.db"
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)

    async def use() -> None:
        store = await open_store(url_of(tmp_path))
        try:
            await store.inbox.accept(delivery("new"))
        finally:
            await store.close()

    with pytest.raises(StoreError, match="damaged: stop gibil"):
        await use()


async def test_writers_wait_and_readers_continue_while_another_program_locks_the_file(tmp_path: Path, store: SqlStore) -> None:
    await store.inbox.accept(delivery("before"))
    intruder = sqlite3.connect(tmp_path / "gibil.db", isolation_level=None)
    try:
        intruder.execute("begin immediate")
        accepting = asyncio.create_task(store.inbox.accept(delivery("during")))
        assert await store.inbox.get("before") is not None
        assert await store.inbox.get("during") is None
        assert not accepting.done()
        intruder.execute("rollback")
        assert await accepting
    finally:
        intruder.close()


async def test_a_file_locked_for_too_long_fails_waiting_writes_and_not_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gibil_bot.runs.sqlite.database.BUSY_S", 0.05)
    store = await open_store(url_of(tmp_path))
    intruder = sqlite3.connect(tmp_path / "gibil.db", isolation_level=None)
    try:
        intruder.execute("begin immediate")
        answers = await asyncio.gather(*(store.inbox.accept(delivery(f"{n}")) for n in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [StoreError] * 3
        assert "another process keeps it locked" in str(answers[0])
        intruder.execute("rollback")
        assert await store.inbox.accept(delivery("afterwards"))
        assert (await store.counts())["deliveries_unhandled"] == 1
    finally:
        intruder.close()
        await store.close()


# Disks


FILL = """
import os
async def main():
    store = await open_store(url)
    await store.inbox.accept(delivery("before"))
    say("ready")
    sys.stdin.readline()
    big = [delivery(f"big-{n}", os.urandom(200_000)) for n in range(40)]
    answers = await asyncio.gather(*map(store.inbox.accept, big), return_exceptions=True)
    failed = [answer for answer in answers if answer is not True]
    say(len(failed) > 0, {type(answer).__name__ for answer in failed}, str(failed[0]) if failed else "")
    sys.stdin.readline()
    say(await store.inbox.accept(delivery("afterwards")), await store.inbox.get("before") is not None)
    stored = [await store.inbox.get(f"big-{n}") is not None for n in range(40)]
    say(stored == [answer is True for answer in answers])
    await store.close()
    say("closed")
"""


async def test_a_failing_write_is_reported_to_its_callers_and_the_next_one_succeeds(tmp_path: Path) -> None:
    """A limit on file sizes makes the writes of a real process fail, until it is lifted."""
    with process(FILL, url_of(tmp_path)) as child:
        assert child.stdin is not None
        assert line_of(child) == "ready"
        _, hard = resource.prlimit(child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (1_000_000, hard))
        child.stdin.write("go\n")
        child.stdin.flush()
        printed = line_of(child)
        assert printed.startswith("True {'StoreError'}")
        assert "check the disk and its free space" in printed
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (hard, hard))
        child.stdin.write("go\n")
        child.stdin.flush()
        assert [line_of(child) for _ in range(3)] == ["True True", "True", "closed"]


async def test_a_full_disk_is_reported_with_a_remedy_and_writes_succeed_after_space_is_freed(tmp_path: Path) -> None:
    """On a real file system of 4 MB, in a private mount namespace."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "child.py"
    script.write_text(PRELUDE + FILL + "\nasyncio.run(main())\n")
    mount = f"mount -t tmpfs -o size=4m tmpfs {disk}"
    trial = f"{mount} && {sys.executable} -c 'import gibil_bot'"
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", trial], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"a private file system can't be mounted here, or Python can't be run with it: {tried.stderr.strip()}")
    fill = f"dd if=/dev/zero of={disk}/filler bs=1M count=2 2>/dev/null"
    command = f"{mount} && {fill} && exec {sys.executable} {script} {url_of(disk)}"
    with subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin is not None
        try:
            assert line_of(child) == "ready"
            child.stdin.write("go\n")
            child.stdin.flush()
            printed = line_of(child)
            assert printed.startswith("True {'DatabaseFull'}")
            assert "the disk is full: free some space" in printed
            (Path(f"/proc/{child.pid}/root") / str(disk).lstrip("/") / "filler").unlink()
            child.stdin.write("go\n")
            child.stdin.flush()
            assert [line_of(child) for _ in range(3)] == ["True True", "True", "closed"]
        finally:
            if child.poll() is None:
                child.kill()


async def test_the_write_ahead_log_stays_bounded_under_constant_writing(tmp_path: Path, store: SqlStore) -> None:
    log = tmp_path / "gibil.db-wal"
    longest = 0

    async def client(name: str) -> None:
        nonlocal longest
        for number in range(100):
            await store.inbox.accept(delivery(f"{name}-{number}", os.urandom(1000) * 250))
            longest = max(longest, log.stat().st_size)

    await asyncio.gather(*(client(name) for name in "abcdefgh"))  # 200 MB
    assert LARGE_LOG / 4 < longest < LARGE_LOG * 2.5


# Threads


async def test_a_failing_job_does_not_affect_its_batch(store: SqlStore) -> None:
    update = CommentUpdate(number=1, marker="m", body=cast(str, object()))
    bad = Notification(key="k", installation_id=1, repository="ada/engine", update=update)
    good = [store.inbox.accept(delivery(f"guid-{number}")) for number in range(20)]
    answers = await asyncio.gather(*good[:10], store.outbox.record([bad]), *good[10:], return_exceptions=True)
    assert isinstance(answers.pop(10), TypeError)
    assert answers == [True] * 20
    assert (await store.counts())["deliveries_unhandled"] == 20


async def test_a_cancelled_opening_releases_everything(tmp_path: Path) -> None:
    opening = asyncio.create_task(open_store(url_of(tmp_path)))
    await asyncio.sleep(0)
    opening.cancel()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(asyncio.CancelledError):
            await opening
    await (await open_store(url_of(tmp_path))).close()


async def test_a_cancelled_closing_continues(tmp_path: Path) -> None:
    store = await open_store(url_of(tmp_path))
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await store.close()
    await (await open_store(url_of(tmp_path))).close()


async def test_notifications_of_an_older_version_get_a_priority(tmp_path: Path) -> None:
    initial = (resources.files("gibil_bot.runs.sqlite.migrations") / "0001_initial.sql").read_text()
    db = sqlite3.connect(tmp_path / "gibil.db")
    db.executescript(initial)
    checked = '{"external_id":"e","head_sha":"s","name":"n","output":{"summary":"s","title":"t"},"status":"%s"}'
    db.executemany(
        "insert into tellings (key, kind, installation_id, repository, body, told_revision, revision, due_at) "
        "values (?, ?, 1, 'ada/engine', ?, ?, 2, 0)",
        [
            ("reaction", "reaction", '{"comment_id":1,"content":"eyes","is_review_comment":false}', 0),
            ("comment", "comment", '{"body":"b","marker":"m","number":1}', 1),
            ("progress", "check_run", checked % "in_progress", 1),
            ("result", "check_run", checked % "completed", 1),
            ("new", "check_run", checked % "queued", 0),
        ],
    )
    db.execute("pragma user_version = 1")
    db.commit()
    db.close()
    store = await open_store(url_of(tmp_path))
    try:
        due = await store.outbox.claim("a", limit=9, lease_s=60)
        assert [one.notification.key for one in due] == ["result", "new", "progress", "comment", "reaction"]
    finally:
        await store.close()
