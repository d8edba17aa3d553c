"""Finished runs cost nothing: each write takes as many steps of SQLite's virtual machine with a long history as without."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gibil_bot.model import (
    CommentUpdate,
    Conclusion,
    Delivery,
    Ignored,
    NewRun,
    Notification,
    Person,
    Plan,
    PullRequest,
    Repository,
    Source,
    Trust,
)
from gibil_bot.ports import DeliveryOutcome
from gibil_bot.runs.sql import inbox, outbox, runs
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.connection import SqliteConnection, completed

HISTORY = 3000


@pytest.fixture
def db(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    opened = database.connect(tmp_path / "gibil.db")
    database.migrate(opened, tmp_path / "gibil.db")
    yield opened
    opened.close()


def new_run(run_id: str) -> NewRun:
    person = Person(login="ada")
    repository = Repository(id=1, full_name="ada/engine", clone_url="https://github.com/ada/engine.git", default_branch="main")
    pull_request = PullRequest(
        number=7,
        title="t",
        author=person,
        head_sha="a" * 40,
        head_ref="h",
        head_repository="ada/engine",
        base_ref="main",
        base_sha="b" * 40,
    )
    source = Source(
        installation_id=1, repository=repository, pull_request=pull_request, sha="a" * 40, trust=Trust.TRUSTED, actor="ada"
    )
    plan = Plan(workflow="test", title="test", path="test.yml", tasks=(), concurrency_group="test/7")
    return NewRun(id=run_id, delivery_guid="d", source=source, plan=plan)


def check_run_update(key: str) -> Notification:
    update = CommentUpdate(number=1, marker="m", body=key)
    return Notification(key=key, installation_id=1, repository="ada/engine", update=update)


def write_history(db: sqlite3.Connection) -> None:
    """Write runs of the same repository, pull request and group as the new run."""
    source, plan = msgspec.json.encode(new_run("x").source), msgspec.json.encode(new_run("x").plan)
    numbers = range(HISTORY)
    db.execute("begin")
    db.executemany(
        "insert into deliveries (guid, event, received_at, handled_at) values (?, 'push', 0, 1)",
        [(f"history-{number}",) for number in numbers],
    )
    db.executemany(
        "insert into runs (id, delivery_guid, repository_id, pull_request, sha, concurrency_group, state, queued_at, "
        "finished_at, source, plan) values (?, 'd', 1, 7, ?, 'test/7', 'finished', 0, 1, ?, ?)",
        [(f"history-{number}", "a" * 40, source, plan) for number in numbers],
    )
    db.executemany(
        "insert into notifications (key, kind, installation_id, repository, body, due_at, published_revision, published_at) "
        "values (?, 'comment', 1, 'ada/engine', '{}', 0, 1, 0)",
        [(f"history-{number}",) for number in numbers],
    )
    db.execute("commit")


def one_run_through(db: sqlite3.Connection, name: str) -> dict[str, int]:
    """Return the steps, in tens, of all writes of one run, from its delivery to its notification."""
    topics: set[str] = set()
    steps: dict[str, int] = {}

    connection = SqliteConnection(db)

    def counted(what: str, act: Callable[[], Coroutine[Any, Any, object]]) -> object:
        def step() -> int:
            steps[what] += 1
            return 0

        steps[what] = 0
        db.set_progress_handler(step, 10)
        try:
            return completed(act())
        finally:
            db.set_progress_handler(None, 0)

    arrived = Delivery(guid=name, event_name="push", event=Ignored(reason="a test"), received_at=datetime.now(UTC))
    outcome = DeliveryOutcome(runs=[new_run(name)], notifications=[check_run_update(name)])
    counted("accept", lambda: inbox.accept(connection, topics, arrived))
    counted("claim_deliveries", lambda: inbox.claim(connection, topics, "a", 10, 100.0, 60.0))
    counted("complete", lambda: inbox.complete(connection, topics, "a", name, outcome, 100.0))
    claim = completed(runs.claim_run(connection, topics, "a", 100.0, 60.0, 10))
    assert claim is not None
    counted("finish", lambda: runs.finish(connection, topics, claim, Conclusion.SUCCESS, [], 100.0))
    counted("claim_run", lambda: runs.claim_run(connection, topics, "a", 100.0, 60.0, 10))
    counted("unfinished", lambda: runs.unfinished(connection))
    counted("claim_tellings", lambda: outbox.claim(connection, topics, "a", 10, 200.0, 60.0, []))
    return steps


def test_a_long_history_makes_no_write_slower(db: sqlite3.Connection) -> None:
    before = one_run_through(db, "first")
    write_history(db)
    after = one_run_through(db, "second")
    assert {what: count for what, count in after.items() if count > 2 * before[what] + 10} == {}
