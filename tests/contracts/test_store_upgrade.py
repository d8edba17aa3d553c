"""A database that the previous version wrote: the new one opens it and goes on where the old one stopped.

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
from store_nouns import new_run

from gibil_bot.caps import NO_CAPS
from gibil_bot.model import BranchPush, PullRequest, Repository
from gibil_bot.ports import GitHub
from gibil_bot.runs.context import Policy
from gibil_bot.runs.intake import Intake
from gibil_bot.runs.sqlite.store import SqliteStore, open_store
from tests.doubles.patience import patient

SAMPLE = Path(__file__).parent / "samples" / "version_3.sql"
HEAD = "0123456789abcdef0123456789abcdef01234567"
WORKFLOW = b"on: {command: build}\ninputs: {browser: {default: firefox}}\ntasks: [{run: make}]\n"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    db = sqlite3.connect(tmp_path / "gibil.db")
    db.executescript(SAMPLE.read_text())
    db.close()
    opened = await open_store(f"sqlite:///{tmp_path / 'gibil.db'}")
    yield opened
    await opened.close()


async def test_deliveries_without_an_event_keep_their_payload_until_they_are_handled(store: SqliteStore) -> None:
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
        return replace(pull, head_repository="ada/engine", head_repository_id=1, head_owner="ada")

    async def workflow_files(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        return {".gibil/workflows/build.yml": WORKFLOW}

    async def branch_push(self, installation_id: int, repository: Repository, branch: str, sha: str) -> BranchPush | None:
        return None


def run_id(digest: bytes, distinction: str) -> str:
    return hashlib.sha256(digest + distinction.encode()).hexdigest()[:16]


async def test_stored_payloads_are_decoded_and_handled(store: SqliteStore) -> None:
    policy = Policy(
        allowed_accounts=None,
        untrusted="refuse",
        provider="local",
        max_ttl_s=3600,
        caps=NO_CAPS,
        public_url="",
        commands_per_hour=60,
        run_id=run_id,
        operator_workflows=dict,
    )
    found = await store.inbox.get("guid-command")
    assert found is not None
    signal = store.inbox.changed()
    intake = asyncio.create_task(Intake(store, cast(GitHub, OneWriter()), policy, "new").run())
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
        "check_run delivery: Object missing required field `head_sha` - at `$.check_run`; replay it once the cause is known",
    )
