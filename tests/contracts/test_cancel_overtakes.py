"""A comment that only cancels is handled before the deliveries ahead of it, and has the effect that it has in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import cast

from msgspec.structs import replace

from gibil_bot.model import BranchPush, CancelRequest, CommentUpdate, PullRequest, Repository, Run
from gibil_bot.ports import DeliveryOutcome, GitHub
from gibil_bot.runs.intake import Intake
from gibil_bot.runs.sql.store import SqlStore
from tests.contracts.store_nouns import command, delivery, intake_policy, new_run
from tests.doubles.databases import open_store
from tests.doubles.patience import patient

WORKFLOWS = {
    f".gibil/workflows/{name}.yml": f"on: {{command: {name}}}\ntasks: [{{run: make}}]\n".encode() for name in ("test", "lint")
}


@dataclass
class SlowGitHub:
    """A GitHub where every account may write. Pull requests are answered while `open` is set."""

    open: asyncio.Event = field(default_factory=asyncio.Event)
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def permission(self, installation_id: int, repository: str, login: str) -> str:
        return "write"

    async def pull_request(self, installation_id: int, repository: str, number: int) -> PullRequest:
        self.asked.set()
        await self.open.wait()
        pull = new_run("r1", number=number).source.pull_request
        return replace(pull, head_repository="ada/engine-1", head_repository_id=1, head_owner="ada")

    async def workflow_files(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        return WORKFLOWS

    async def branch_push(self, installation_id: int, repository: Repository, branch: str, sha: str) -> BranchPush | None:
        return BranchPush(repository_id=1, branch=branch, sha=sha, pusher=command().author, at=_LONG_AGO)


_LONG_AGO = command().created_at.replace(year=2020)  # type: ignore[union-attr]


@dataclass
class Scene:
    store: SqlStore
    github: SlowGitHub
    arrived: int = 0

    async def comment(self, body: str, number: int = 7) -> str:
        self.arrived += 1
        guid = f"guid-{self.arrived}"
        cancels = body.startswith("/gibil cancel")
        arrived = replace(delivery(guid, command(body, number=number)), cancels=cancels)
        assert await self.store.inbox.accept(arrived)
        return guid

    async def until(self, reached: Callable[[dict[str, Run], int], bool]) -> dict[str, Run]:
        """Wait until `reached(runs by delivery, unhandled deliveries)` is true."""
        signals = [self.store.inbox.changed(), self.store.runs.changed()]
        async with asyncio.timeout(patient(30)):
            while True:
                runs = {run.delivery_guid: run for run in await self.store.runs.of_repository(1)}
                if reached(runs, (await self.store.counts())["deliveries_unhandled"]):
                    return runs
                waits = [asyncio.create_task(signal.wait(1)) for signal in signals]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

    async def all_handled(self) -> dict[str, Run]:
        return await self.until(lambda _, unhandled: unhandled == 0)


@contextlib.asynccontextmanager
async def scene(url: str) -> AsyncIterator[Scene]:
    store = await open_store(url)
    github = SlowGitHub()
    intake = asyncio.create_task(Intake(store, cast(GitHub, github), intake_policy(), "the test").run())
    try:
        yield Scene(store, github)
    finally:
        intake.cancel()
        await asyncio.gather(intake, return_exceptions=True)
        await store.close()


async def test_a_cancellation_takes_effect_within_2_s_behind_a_burst_of_100_deliveries(database_url: str) -> None:
    async with scene(database_url) as it:
        it.github.open.set()
        first = await it.comment("/gibil test")
        await it.all_handled()
        it.github.open.clear()
        burst = [await it.comment("/gibil lint", number=7 + number % 3) for number in range(100)]
        await it.github.asked.wait()
        begun = time.monotonic()
        cancel = await it.comment("/gibil cancel")
        runs = await it.until(lambda runs, _: runs[first].cancel_reason is not None)
        assert time.monotonic() - begun < patient(2)
        assert runs[first].cancel_reason == "cancelled by ada"
        handled = await it.store.inbox.get(cancel)
        assert handled is not None
        assert handled[1]
        assert (await it.store.counts())["deliveries_unhandled"] == len(burst)


async def test_a_cancellation_stops_earlier_commands_and_not_later_ones(database_url: str) -> None:
    async with scene(database_url) as it:
        before, elsewhere = await it.comment("/gibil test"), await it.comment("/gibil test", number=8)
        cancel = await it.comment("/gibil cancel")
        later = await it.comment("/gibil lint")
        await it.until(lambda _, unhandled: unhandled == 3)
        it.github.open.set()
        runs = await it.all_handled()
        assert {guid: run.cancel_reason for guid, run in runs.items()} == {
            before: "cancelled by ada",
            elsewhere: None,
            later: None,
        }
        assert await it.store.outbox.get("reaction:5:confused") is None
        assert (await it.store.inbox.get(cancel)) is not None


async def test_cancelling_one_workflow_leaves_the_others_running(database_url: str) -> None:
    async with scene(database_url) as it:
        test, lint = await it.comment("/gibil test"), await it.comment("/gibil lint")
        await it.comment("/gibil cancel lint")
        await it.until(lambda _, unhandled: unhandled == 2)
        it.github.open.set()
        runs = await it.all_handled()
        assert {guid: run.cancel_reason for guid, run in runs.items()} == {test: None, lint: "cancelled by ada"}


async def test_a_run_cancelled_before_it_is_queued_supersedes_no_later_run(database_url: str) -> None:
    """The cancelled run's delivery waited for GitHub, and is handled after the later command."""
    store = await open_store(database_url)
    try:
        for guid in ("early", "cancel", "later"):
            await store.inbox.accept(replace(delivery(guid), cancels=guid == "cancel"))
        claimed = await store.inbox.claim("a", limit=9, cancels=9, lease_s=60)
        assert [one.guid for one in claimed] == ["cancel", "early", "later"]
        await store.inbox.complete("a", "later", DeliveryOutcome(runs=[new_run("later", group="g", guid="later")]))
        stop = CancelRequest(repository_id=1, number=7, workflow=None, reason="cancelled by ada")
        await store.inbox.complete("a", "cancel", DeliveryOutcome(cancel_earlier=[stop]))
        await store.inbox.complete("a", "early", DeliveryOutcome(runs=[new_run("early", group="g", guid="early")]))
        assert {run.id: run.cancel_reason for run in await store.runs.unfinished()} == {
            "later": None,
            "early": "cancelled by ada",
        }
        assert sum((await store.prune()).values()) == 1  # no unfinished run is left that it could cancel
    finally:
        await store.close()


async def test_cancelling_without_runs_is_answered(database_url: str) -> None:
    async with scene(database_url) as it:
        await it.comment("/gibil cancel")
        await it.all_handled()
        found = [due.notification for due in await it.store.outbox.claim("a", limit=9, lease_s=60)]
        texts = [one.update.body for one in found if isinstance(one.update, CommentUpdate)]
        assert len(texts) == 1
        assert "Nothing is running or queued" in texts[0]
