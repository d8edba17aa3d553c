"""The contract of ports.RunStore, for every adapter."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from gibil_bot.errors import ClaimLost
from gibil_bot.model import (
    Claim,
    CommitProgress,
    Conclusion,
    DetectedProject,
    Quote,
    RunState,
    TaskPlan,
    TaskResult,
    TaskStatus,
)
from gibil_bot.ports import RunStore
from tests.contracts.store_nouns import DAY_S, Clock, Queue, RunStoreAdapter, comment, new_run, run_store_adapter
from tests.doubles.databases import DATABASES


@pytest.fixture(params=[*DATABASES, "memory"])
async def adapter(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[RunStoreAdapter]:
    async with run_store_adapter(request.param, request, clock) as opened:
        yield opened


@pytest.fixture
async def runs(adapter: RunStoreAdapter) -> RunStore:
    return await adapter.open()


@pytest.fixture
async def other(runs: RunStore, adapter: RunStoreAdapter) -> RunStore:
    """The store of a second process."""
    return await adapter.open()


@pytest.fixture
def queue(adapter: RunStoreAdapter) -> Queue:
    return adapter.queue


async def claim(runs: RunStore, owner: str = "a", *, lease_s: float = 60, max_machines: int = 10) -> Claim:
    claimed = await runs.claim(owner, lease_s=lease_s, max_machines=max_machines)
    assert claimed is not None
    return claimed


async def claim_ids(runs: RunStore, *, max_machines: int = 10) -> list[str]:
    """Return the ids of all runs that can be claimed now, in order."""
    ids = []
    while (claimed := await runs.claim("a", lease_s=60, max_machines=max_machines)) is not None:
        ids.append(claimed.run.id)
    return ids


async def queued(runs: RunStore) -> list[str]:
    return [run.id for run in await runs.unfinished() if run.state is RunState.QUEUED]


# Runs: queueing


async def test_a_run_is_read_as_it_was_queued(runs: RunStore, queue: Queue, other: RunStore, clock: Clock) -> None:
    new = new_run("r1")
    await queue(new)
    run = await other.get("r1")
    assert run is not None
    assert (run.source, run.plan, run.delivery_guid) == (new.source, new.plan, new.delivery_guid)
    assert (run.state, run.queued_at, run.started_at, run.conclusion) == (RunState.QUEUED, clock.moment, None, None)
    assert await runs.get("r2") is None


async def test_an_existing_run_is_not_queued_again(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("r1", group="g"), new_run("r2", group="g"))
    before = await runs.unfinished()
    await queue(new_run("r1", group="g", number=8))
    assert await runs.unfinished() == before


async def test_a_new_run_supersedes_older_unfinished_runs_of_its_group_and_repository(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("finished", group="g"))
    await runs.finish(await claim(runs), Conclusion.SUCCESS, ())
    await queue(new_run("running", group="g"))
    await claim(runs)
    await queue(new_run("queued", group="g"), new_run("elsewhere", group="g", repository=2), new_run("apart", group="h"))
    await queue(new_run("newest", group="g", sha="abc1234" + "0" * 33))
    reasons = {run.id: run.cancel_reason for run in await runs.of_repository(1) + await runs.of_repository(2)}
    assert reasons == {
        "finished": None,
        "running": "superseded by 0123456",
        "queued": "superseded by abc1234",
        "elsewhere": None,
        "apart": None,
        "newest": None,
    }


async def test_without_cancel_in_progress_the_running_and_the_newest_pending_run_remain(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("running", group="g", cancel_in_progress=False))
    await claim(runs)
    await queue(*(new_run(name, group="g", cancel_in_progress=False) for name in ("second", "third")))
    assert {run.id: run.cancel_reason for run in await runs.unfinished()} == {
        "running": None,
        "second": "superseded by 0123456",
        "third": None,
    }


async def test_runs_without_a_group_neither_wait_nor_supersede(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("r1", group=""), new_run("r2", group=""))
    assert await claim_ids(runs) == ["r1", "r2"]
    assert [run.cancel_reason for run in await runs.unfinished()] == [None, None]


async def test_the_first_reason_to_cancel_remains(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("r1"))
    assert await runs.request_cancel("r1", "cancelled by ada")
    assert await runs.request_cancel("r1", "cancelled by charles")
    run = await runs.get("r1")
    assert run is not None
    assert run.cancel_reason == "cancelled by ada"


async def test_a_finished_run_cannot_be_cancelled(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("r1"))
    await runs.finish(await claim(runs), Conclusion.SUCCESS, ())
    assert not await runs.request_cancel("r1", "cancelled by ada")
    assert not await runs.request_cancel("no such run", "cancelled by ada")
    run = await runs.get("r1")
    assert run is not None
    assert run.cancel_reason is None


# Runs: claims


async def test_claiming_starts_a_run_and_increments_the_fence(
    runs: RunStore, queue: Queue, other: RunStore, clock: Clock
) -> None:
    await queue(new_run("r1"))
    clock.advance(5)
    first_moment = clock.moment
    first = await claim(runs, lease_s=60)
    assert (first.owner, first.run.state, first.run.started_at) == ("a", RunState.RUNNING, first_moment)
    assert await other.get("r1") == first.run
    assert await other.claim("b", lease_s=60, max_machines=10) is None
    clock.advance(60)
    second = await claim(other, "b")
    assert second.fence > first.fence
    assert second.run.started_at == first_moment


async def test_an_abandoned_run_is_claimed_first_and_needs_no_free_slot(
    runs: RunStore, queue: Queue, other: RunStore, clock: Clock
) -> None:
    await queue(new_run("r1", repository=1), new_run("r2", repository=2), new_run("cancelled", repository=3))
    assert (await claim(runs, lease_s=60, max_machines=1)).run.id == "r1"
    await runs.request_cancel("cancelled", "cancelled by ada")
    clock.advance(60)
    assert (await claim(other, "b", max_machines=1)).run.id == "r1"


async def test_a_cancelled_queued_run_is_claimed_without_a_slot_and_out_of_turn(runs: RunStore, queue: Queue) -> None:
    await queue(
        new_run("running", group="g"),
        new_run("waiting", repository=2),
        new_run("stop", group="g", cancel_in_progress=False),
    )
    assert (await claim(runs, max_machines=1)).run.id == "running"
    await runs.request_cancel("stop", "cancelled by ada")
    stopped = await claim(runs, max_machines=1)
    assert (stopped.run.id, stopped.run.cancel_reason) == ("stop", "cancelled by ada")
    assert await runs.claim("a", lease_s=60, max_machines=1) is None


async def test_no_more_runs_are_running_than_there_are_slots(runs: RunStore, queue: Queue, other: RunStore) -> None:
    await queue(*(new_run(f"r{number}") for number in range(5)))
    answers = await asyncio.gather(*((runs, other)[n % 2].claim(f"o{n}", lease_s=60, max_machines=3) for n in range(8)))
    claimed = [answer for answer in answers if answer is not None]
    assert sorted(one.run.id for one in claimed) == ["r0", "r1", "r2"]
    finisher = claimed[0]
    await runs.finish(finisher, Conclusion.SUCCESS, ())
    assert await claim_ids(runs, max_machines=3) == ["r3"]


async def test_one_run_of_a_group_is_running_and_groups_are_per_repository(runs: RunStore, queue: Queue) -> None:
    await queue(
        new_run("r1", group="deploy", number=1, cancel_in_progress=False),
        new_run("r2", group="deploy", number=1, repository=2, cancel_in_progress=False),
    )
    first = await claim(runs)
    await queue(new_run("r3", group="deploy", number=2, cancel_in_progress=False))
    assert await claim_ids(runs) == ["r2"]
    await runs.finish(first, Conclusion.SUCCESS, ())
    assert await claim_ids(runs) == ["r3"]


async def test_the_repository_with_the_fewest_running_runs_is_next(runs: RunStore, queue: Queue) -> None:
    await queue(*(new_run(f"busy{number}", repository=1) for number in range(3)), new_run("quiet", repository=2))
    assert await claim_ids(runs) == ["busy0", "quiet", "busy1", "busy2"]


async def test_among_equals_the_repository_that_waited_longest_is_next(runs: RunStore, queue: Queue) -> None:
    many = [new_run(f"{repository}.{number}", repository=repository) for repository in (1, 2, 3) for number in (1, 2)]
    await queue(*many)
    order = []
    for _ in many:
        claimed = await claim(runs, max_machines=1)
        order.append(claimed.run.id)
        await runs.finish(claimed, Conclusion.SUCCESS, ())
    assert order == ["1.1", "2.1", "3.1", "1.2", "2.2", "3.2"]


# Runs: what the holder of a claim can do


async def test_a_heartbeat_keeps_the_claim_and_returns_the_cancel_reason(
    runs: RunStore, queue: Queue, other: RunStore, clock: Clock
) -> None:
    await queue(new_run("r1"), new_run("r2"))
    claims = [await claim(runs), await claim(runs)]
    clock.advance(50)
    assert await runs.heartbeat(claims, lease_s=60) == {"r1": None, "r2": None}
    await other.request_cancel("r2", "cancelled by ada")
    clock.advance(50)
    assert await other.claim("b", lease_s=60, max_machines=10) is None
    assert await runs.heartbeat(claims, lease_s=60) == {"r1": None, "r2": "cancelled by ada"}
    assert await runs.heartbeat([], lease_s=60) == {}


async def test_a_lost_run_is_missing_from_the_heartbeat(runs: RunStore, queue: Queue, other: RunStore, clock: Clock) -> None:
    await queue(new_run("r1"), new_run("r2"))
    claims = [await claim(runs), await claim(runs)]
    clock.advance(60)
    taken = await claim(other, "b")
    assert set(await runs.heartbeat(claims, lease_s=60)) == {"r1", "r2"} - {taken.run.id}


async def test_a_released_run_can_be_claimed_by_any_owner_at_once(runs: RunStore, queue: Queue, other: RunStore) -> None:
    await queue(new_run("r1"))
    first = await claim(runs)
    await runs.save_machine(first, "gibil-r1", 1)
    await runs.release(first)
    run = await runs.get("r1")
    assert run is not None
    assert run.state is RunState.RUNNING
    with pytest.raises(ClaimLost):
        await runs.save_note(first, "too late")
    second = await claim(other, "b", max_machines=1)
    assert (second.run.id, second.run.machine, second.run.machine_attempt) == ("r1", "gibil-r1", 1)


async def test_an_expired_claim_can_write_if_there_is_no_newer_claim(runs: RunStore, queue: Queue, clock: Clock) -> None:
    await queue(new_run("r1"))
    claimed = await claim(runs)
    clock.advance(600)
    await runs.finish(claimed, Conclusion.SUCCESS, ())


async def test_the_machine_and_the_note_are_saved(runs: RunStore, queue: Queue, other: RunStore) -> None:
    await queue(new_run("r1"))
    claimed = await claim(runs)
    await runs.save_machine(claimed, "gibil-r1-1", 1)
    await runs.save_note(claimed, "the machine was lost and replaced")
    run = await other.get("r1")
    assert run is not None
    assert (run.machine, run.machine_attempt, run.note) == ("gibil-r1-1", 1, "the machine was lost and replaced")
    await runs.save_machine(claimed, None, 1)
    run = await other.get("r1")
    assert run is not None
    assert (run.machine, run.machine_attempt) == (None, 1)


async def test_the_plan_with_its_detected_tasks_is_what_the_next_process_continues(
    runs: RunStore, queue: Queue, other: RunStore
) -> None:
    await queue(new_run("r1"))
    claimed = await claim(runs)
    install = TaskPlan(name="install", run="npm ci", kind="prepare")
    test = TaskPlan(name="test", run="npm test")
    detected = DetectedProject(purpose="test", quotes=(Quote(command="npm t", path="ci", line=3),), suggestion="tasks: []\n")
    plan = replace(claimed.run.plan, tasks=(install, test), detected=detected)
    await runs.save_plan(claimed, plan)
    run = await other.get("r1")
    assert run is not None
    assert run.plan == plan
    await runs.release(claimed)
    assert (await claim(other, "b")).run.plan == plan


async def test_the_progress_of_commits_is_what_the_next_process_continues(
    runs: RunStore, queue: Queue, other: RunStore
) -> None:
    await queue(new_run("r1"))
    claimed = await claim(runs)
    assert claimed.run.commit is None
    progress = CommitProgress(
        phase="created", repository="o/p", branch="topic", expected="a" * 40, created="b" * 40, patch=True, commits=2,
        files=3, bytes=4, dropped=("x",), message="one was left out",
    )  # fmt: skip
    await runs.save_commit(claimed, replace(progress, phase="collected", created=None))
    await runs.save_commit(claimed, progress)
    run = await other.get("r1")
    assert run is not None
    assert run.commit == progress
    await runs.release(claimed)
    assert (await claim(other, "b")).run.commit == progress


async def test_task_results_are_replaced_and_listed_in_order_for_each_machine(
    runs: RunStore, queue: Queue, other: RunStore
) -> None:
    await queue(new_run("r1"))
    claimed = await claim(runs)
    moment = datetime(2026, 11, 23, 12, 0, 0, 5, tzinfo=UTC)
    running = TaskResult(index=1, machine_attempt=1, name="check", status=TaskStatus.RUNNING, started_at=moment)
    done = replace(
        running, status=TaskStatus.FAILURE, finished_at=moment, exit_status=3, summary="# ✗", tail="end", detail="why"
    )
    build = replace(done, index=0, name="build")
    second_machine = replace(done, machine_attempt=2)
    for result in (running, build, done, second_machine):
        await runs.save_task(claimed, result)
    assert await other.task_results("r1", 1) == [build, done]
    assert await other.task_results("r1", 2) == [second_machine]
    assert await other.task_results("r2", 1) == []


async def test_queued_and_unfinished_runs_are_listed_in_queue_order(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("b"), new_run("a", repository=2), new_run("c"))
    assert await queued(runs) == ["b", "a", "c"]
    await claim(runs)
    done = await claim(runs)
    assert await queued(runs) == ["c"]
    assert [run.id for run in await runs.unfinished()] == ["b", "a", "c"]
    await runs.finish(done, Conclusion.SUCCESS, ())
    found = await runs.unfinished()
    assert [run.id for run in found] == ["b", "c"]
    assert found[0].seq < found[1].seq


async def test_runs_of_a_repository_are_listed_newest_first_up_to_a_hundred(runs: RunStore, queue: Queue) -> None:
    many = [new_run(f"r{number}", number=number % 2, sha=f"{number % 3:040x}") for number in range(130)]
    await queue(*many, new_run("elsewhere", repository=2))
    newest_first = [f"r{number}" for number in range(129, -1, -1)]
    assert [run.id for run in await runs.of_repository(1)] == newest_first[:100]
    assert [run.id for run in await runs.of_repository(1, number=1)] == newest_first[::2]
    assert [run.id for run in await runs.of_repository(1, sha=f"{0:040x}")] == newest_first[::3]
    assert [run.id for run in await runs.of_repository(1, 1, f"{0:040x}")] == newest_first[::6]
    assert await runs.of_repository(3) == []


async def test_a_stale_claim_cannot_write(runs: RunStore, other: RunStore, queue: Queue, clock: Clock) -> None:
    await queue(new_run("r1"))
    stale = await claim(runs, "a")
    clock.advance(60)
    held = await claim(other, "a")  # the same owner name again: only the fence differs
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: runs.save_machine(stale, "gibil-x", 3),
        lambda: runs.save_note(stale, "a note"),
        lambda: runs.save_plan(stale, replace(held.run.plan, title="another")),
        lambda: runs.save_commit(stale, CommitProgress(phase="created")),
        lambda: runs.save_task(stale, TaskResult(index=0, machine_attempt=1, name="t", status=TaskStatus.RUNNING)),
        lambda: runs.bind_secrets(stale, "f"),
        lambda: runs.record(stale, [comment()]),
        lambda: runs.release(stale),
        lambda: runs.finish(stale, Conclusion.SUCCESS, [comment()]),
    ]
    for write in writes:
        with pytest.raises(ClaimLost):
            await write()
    assert await runs.get("r1") == held.run
    assert await runs.task_results("r1", 1) == []
    assert await other.heartbeat([held], lease_s=60) == {"r1": None}


async def test_finishing_records_time_and_conclusion_once(runs: RunStore, other: RunStore, queue: Queue, clock: Clock) -> None:
    await queue(new_run("r1"))
    claimed = await claim(runs)
    clock.advance(7)
    await runs.finish(claimed, Conclusion.FAILURE, [comment()])
    run = await other.get("r1")
    assert run is not None
    assert (run.state, run.conclusion, run.finished_at) == (RunState.FINISHED, Conclusion.FAILURE, clock.moment)
    clock.advance(DAY_S)
    assert await other.claim("b", lease_s=60, max_machines=10) is None
    with pytest.raises(ClaimLost):
        await runs.finish(claimed, Conclusion.SUCCESS, ())


async def test_secrets_may_change_only_until_a_machine_exists(runs: RunStore, queue: Queue) -> None:
    await queue(new_run("r1"))
    claimed = await claim(runs)
    assert await runs.bind_secrets(claimed, "one")
    assert await runs.bind_secrets(claimed, "two")
    await runs.save_machine(claimed, "gibil-r1-1", 1)
    assert await runs.bind_secrets(claimed, "two")
    assert not await runs.bind_secrets(claimed, "three")


async def test_a_waiter_is_woken_by_a_write_and_not_by_a_heartbeat(runs: RunStore, queue: Queue) -> None:
    signal = runs.changed()
    await queue(new_run("r1"))
    assert await signal.wait(0)
    claimed = await claim(runs)
    assert await signal.wait(0)
    await runs.heartbeat([claimed], lease_s=60)
    assert not await signal.wait(0)
    await runs.request_cancel("r1", "cancelled by ada")
    assert await signal.wait(0)
