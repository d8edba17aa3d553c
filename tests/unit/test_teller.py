"""What is published while GitHub's rate limit delays other notifications."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gibil_bot.errors import GitHubError, NotAskedYet
from gibil_bot.model import (
    CheckRunOutput,
    CheckRunUpdate,
    CommentUpdate,
    DueNotification,
    Notification,
    NotificationUpdate,
    ReactionUpdate,
)
from gibil_bot.runs.outbox import OutboxPublisher
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store
from tests.doubles.patience import patient

WITHIN_S = 10.0


class SlowGitHub:
    """A ports.Publisher that accepts check runs at once, and comments and reactions once `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.published: list[str] = []
        self.started: list[str] = []
        self.errors: list[GitHubError] = []
        self.changed = asyncio.Event()

    async def publish(self, due: DueNotification, *, holds: Callable[[], bool] = lambda: True) -> int | None:
        self.started.append(due.notification.key)
        self.changed.set()
        if not isinstance(due.notification.update, CheckRunUpdate):
            await self.go_on.wait()
        if not holds():
            raise NotAskedYet("the claim has ended", retry_after_s=0.0)
        if self.errors:
            raise self.errors.pop(0)
        self.published.append(due.notification.key)
        self.changed.set()
        return 1

    async def until_started(self, number: int) -> None:
        async with asyncio.timeout(patient(WITHIN_S)):
            while len(self.started) < number:
                await self.changed.wait()
                self.changed.clear()

    async def until_published(self, *keys: str) -> None:
        async with asyncio.timeout(patient(WITHIN_S)):
            while not set(keys) <= set(self.published):
                await self.changed.wait()
                self.changed.clear()


@contextlib.asynccontextmanager
async def publishing(folder: Path, is_present: Callable[[], bool] = lambda: True) -> AsyncIterator[tuple[SqlStore, SlowGitHub]]:
    store = await open_store(f"sqlite:///{folder}/gibil.db")
    github = SlowGitHub()
    task = asyncio.create_task(OutboxPublisher(store.outbox, github, "tests", is_present=is_present).run())
    try:
        yield store, github
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await store.close()


def check(key: str) -> Notification:
    output = CheckRunOutput(title="t", summary="s")
    return _notification(key, CheckRunUpdate(name="n", head_sha="a" * 40, external_id=key, status="queued", output=output))


def comment(key: str) -> Notification:
    return _notification(key, CommentUpdate(number=1, marker=key, body=key))


def reaction(key: str) -> Notification:
    return _notification(key, ReactionUpdate(comment_id=1, is_review_comment=False, content=key))


def _notification(key: str, update: NotificationUpdate) -> Notification:
    return Notification(key=key, installation_id=1, repository="ada/engine", update=update)


async def test_check_runs_are_published_while_comments_and_reactions_wait(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (store, github):
        await store.outbox.record([reaction(f"r{number}") for number in range(50)])
        await store.outbox.record([comment(f"c{number}") for number in range(50)])
        checks = [check(f"k{number}") for number in range(20)]
        await store.outbox.record(checks)
        await github.until_published(*(one.key for one in checks))
        assert sum(key.startswith("r") for key in github.started) <= 4
        assert sum(key.startswith(("r", "c")) for key in github.started) <= 8
        github.go_on.set()
        await github.until_published(*(f"c{number}" for number in range(50)), *(f"r{number}" for number in range(50)))


async def test_comments_are_published_while_reactions_wait(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (store, github):
        await store.outbox.record([reaction(f"r{number}") for number in range(50)])
        async with asyncio.timeout(patient(WITHIN_S)):
            while len(github.started) < 4:
                await github.changed.wait()
                github.changed.clear()
        await store.outbox.record([comment("c")])
        async with asyncio.timeout(patient(WITHIN_S)):
            while "c" not in github.started:
                await github.changed.wait()
                github.changed.clear()


async def test_a_notification_that_was_not_sent_is_no_failure(tmp_path: Path) -> None:
    async with publishing(tmp_path) as (store, github):
        github.errors = [NotAskedYet("waiting for a turn", retry_after_s=0.0) for _ in range(3)]
        await store.outbox.record([check("k")])
        await github.until_published("k")
        found = await store.outbox.get("k")
        assert found is not None
        assert (found[0].attempts, found[0].failures) == (4, 0)


@pytest.mark.parametrize("suspended_s", [140.0, 160.0])
async def test_a_bot_that_was_suspended_beyond_its_lease_sends_nothing_that_it_claimed_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suspended_s: float
) -> None:
    """A lease has 180 s. Another process may have published something newer when it ends."""
    later = [0.0]
    monkeypatch.setattr("gibil_bot.runs.outbox.passed_s", lambda: time.monotonic() + later[0])
    async with publishing(tmp_path) as (store, github):
        await store.outbox.record([comment("c")])
        await github.until_started(1)
        later[0] = suspended_s
        github.go_on.set()
        await github.until_published("c")
        assert len(github.started) == (1 if suspended_s < 150 else 2)  # it is claimed again
        found = await store.outbox.get("c")
        assert found is not None
        assert found[0].failures == 0


async def test_a_bot_that_others_may_take_for_dead_neither_sends_nor_claims(tmp_path: Path) -> None:
    present = [True]
    async with publishing(tmp_path, lambda: present[0]) as (store, github):
        await store.outbox.record([comment("c")])
        await github.until_started(1)
        present[0] = False
        released = store.outbox.changed()
        await store.outbox.record([check("k")])
        github.go_on.set()
        async with asyncio.timeout(patient(WITHIN_S)):
            while await store.outbox.claim("another", limit=1, lease_s=0.0, not_keys=["k"]) == []:
                await released.wait(1.0)
        assert github.published == []
        assert github.started == ["c"]
        present[0] = True
        await store.outbox.record([check("again")])
        await github.until_published("c", "k", "again")
