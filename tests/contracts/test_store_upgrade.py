"""The current version opens a database of the previous version and continues its work.

`samples/version_3.sql` was written by the code that still stored every payload, with invented data.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from gibil_bot.model import (
    BranchPush,
    CheckRunUpdate,
    CommentUpdate,
    Conclusion,
    Person,
    PullRequest,
    Refusal,
    Repository,
    TaskStatus,
    Trust,
)
from gibil_bot.ports import GitHub
from gibil_bot.runs.intake import Intake
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store
from tests.contracts.store_nouns import delivery, intake_policy, new_run, run_id
from tests.doubles.patience import patient

SAMPLE = Path(__file__).parent / "samples" / "version_3.sql"
HEAD = "0123456789abcdef0123456789abcdef01234567"
WORKFLOW = b"on: {command: build}\ninputs: {browser: {default: firefox}}\ntasks: [{run: make}]\n"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    db = sqlite3.connect(tmp_path / "gibil.db")
    db.executescript(SAMPLE.read_text())
    db.close()
    opened = await open_store(f"sqlite:///{tmp_path / 'gibil.db'}")
    yield opened
    await opened.close()


async def test_deliveries_without_an_event_keep_their_payload_until_they_are_handled(store: SqlStore) -> None:
    found = await store.inbox.get("guid-command")
    assert found is not None
    delivery, handled, _ = found
    assert (delivery.event_name, delivery.event, handled) == ("issue_comment", None, False)
    assert b"/gibil build" in delivery.payload
    claimed = await store.inbox.claim("new", limit=9, lease_s=60)
    assert [one.guid for one in claimed] == ["guid-command", "guid-push", "guid-unreadable"]


class OneWriter:
    """A GitHub where every account may write, and HEAD is the head of every pull request."""

    async def permission(self, installation_id: int, repository: str, login: str) -> str:
        return "write"

    async def pull_request(self, installation_id: int, repository: str, number: int) -> PullRequest:
        pull = new_run("r1", number=number, sha=HEAD).source.pull_request
        assert pull is not None
        return replace(pull, head_repository="ada/engine", head_repository_id=1, head_owner="ada")

    async def workflow_files(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        return {".gibil/workflows/build.yml": WORKFLOW}

    async def branch_push(self, installation_id: int, repository: Repository, branch: str, sha: str) -> BranchPush | None:
        return None


async def test_stored_payloads_are_decoded_and_handled(store: SqlStore) -> None:
    found = await store.inbox.get("guid-command")
    assert found is not None
    signal = store.inbox.changed()
    intake = asyncio.create_task(Intake(store, cast(GitHub, OneWriter()), intake_policy(commands_per_hour=60), "new").run())
    try:
        async with asyncio.timeout(patient(30)):
            while (await store.counts())["deliveries_unhandled"]:
                await signal.wait(1)
    finally:
        intake.cancel()
        await asyncio.gather(intake, return_exceptions=True)
    run = await store.runs.get(run_id(hashlib.sha256(found[0].payload).digest(), "build/0"))
    assert run is not None
    assert (run.plan.workflow, run.plan.inputs, run.source.pull_request.number) == ("build", {"browser": "opera"}, 7)
    history = await store.inbox.head_history(1, 8, HEAD)
    assert [(seen.action, seen.sha) for seen in history.heads] == [("synchronize", HEAD)]
    unreadable = await store.inbox.get("guid-unreadable")
    assert unreadable is not None
    assert unreadable[1:] == (
        True,
        "check_run delivery: Object missing required field `head_sha` - at `$.check_run`; replay it when the cause is fixed",
    )


async def test_recorded_notifications_of_each_kind_are_published(store: SqlStore) -> None:
    due = await store.outbox.claim("new", limit=20, lease_s=60)
    updates = {one.notification.key: one.notification.update for one in due}
    assert {key: type(update).__name__ for key, update in updates.items()} == {
        "check:00000000000000a1": "CheckRunUpdate",
        "check:00000000000000b2": "CheckRunUpdate",
        "check:00000000000000c3": "CheckRunUpdate",
        "comment:1:7:lint": "CommentUpdate",
        "comment:1:7:docs": "CommentUpdate",
        "reply:0123456789abcdef": "CommentUpdate",
        "notice:1:7:problems": "CommentUpdate",
        "reaction:6:eyes": "ReactionUpdate",
        "reaction:6:rocket": "ReactionUpdate",
    }
    assert [one.remote_id for one in due if one.notification.key == "check:00000000000000a1"] == [4711]
    ended = updates["check:00000000000000c3"]
    assert isinstance(ended, CheckRunUpdate)
    assert (ended.status, ended.conclusion) == ("completed", Conclusion.FAILURE)
    assert ended.output.title == "gibil itself failed, not your code"
    optional, own = updates["comment:1:7:docs"], updates["comment:1:7:lint"]
    assert isinstance(optional, CommentUpdate)
    assert isinstance(own, CommentUpdate)
    assert (optional.only_if_exists, own.only_if_exists) == (True, False)
    assert own.body.startswith(own.marker)
    # The same states, encoded by this version, are the same bytes.
    await store.outbox.record([one.notification for one in due])
    again = [await store.outbox.get(key) for key in updates]
    assert [found[0].revision for found in again if found] == [one.revision for one in due]


async def test_a_running_run_is_continued_and_a_queued_one_starts(store: SqlStore) -> None:
    running = await store.runs.claim("new", lease_s=60, max_machines=9)
    assert running is not None
    run = running.run
    assert (run.id, run.machine, run.machine_attempt, run.note) == (
        "00000000000000a1", "gibil-00000000000000a1-1", 1, "a note of the run",
    )  # fmt: skip
    machine = run.plan.machine
    assert (machine.size, machine.image, machine.server_type, machine.location) == ("large", "debian-12", "cx22", "fsn1")
    assert (machine.ttl_s, machine.memory_mb, machine.disk_mb, machine.pids) == (1800, 512, 2048, 300)
    results = await store.runs.task_results(run.id, 1)
    assert [(one.name, one.status) for one in results] == [("build", TaskStatus.SUCCESS), ("check", TaskStatus.RUNNING)]
    assert results[0].refusals.refused == (Refusal(host="10.0.0.1", port=80),)
    assert await store.runs.bind_secrets(running, "0" * 64)
    await store.runs.finish(running, Conclusion.SUCCESS, [])
    queued = await store.runs.claim("new", lease_s=60, max_machines=9)
    assert queued is not None
    assert (queued.run.id, queued.run.plan.workflow, queued.run.source.trust) == ("00000000000000b2", "test", Trust.TRUSTED)


async def test_recorded_heads_and_approvals_remain(store: SqlStore) -> None:
    history = await store.inbox.head_history(1, 7, HEAD)
    assert [(seen.action, seen.pusher) for seen in history.heads] == [("opened", None), ("synchronize", Person(login="ada"))]
    assert [push.branch for push in history.pushes] == ["notes/g"]
    assert [(approval.by, approval.sha) for approval in history.approvals] == [("ada", HEAD)]


async def test_one_undecodable_row_does_not_stop_the_others(store: SqlStore, tmp_path: Path) -> None:
    """As after a downgrade, or after a mistake in a new field."""
    await store.inbox.accept(delivery("guid-odd"))
    await store.inbox.accept(delivery("guid-good"))
    db = sqlite3.connect(tmp_path / "gibil.db")
    db.execute("update deliveries set content = ? where guid = 'guid-odd'", (b'{"type":"unheard_of"}',))
    db.execute("update notifications set body = ? where key = 'check:00000000000000b2'", (b'{"name":"n"}',))
    db.commit()
    db.close()
    found = {one.guid: one.event for one in await store.inbox.claim("new", limit=9, lease_s=60)}
    assert found["guid-odd"] is None
    assert found["guid-good"] == delivery().event
    due = await store.outbox.claim("new", limit=20, lease_s=60)
    assert len(due) == 8
    assert (await store.counts())["tellings_failed"] == 1
