"""Limits, order and fairness of claims hold together in random histories, reproducible by seed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from gibil_bot.errors import ClaimLost
from gibil_bot.model import Claim, Conclusion, Run, RunState
from gibil_bot.ports import RunStore
from tests.contracts.store_nouns import Clock, Queue, RunStoreAdapter, new_run, run_store_adapter
from tests.doubles.databases import DATABASES

LEASE_S = 60.0
SLOTS = 3
REPOSITORIES = 4


@pytest.fixture(params=[*DATABASES, "memory"])
async def adapter(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[RunStoreAdapter]:
    async with run_store_adapter(request.param, request, clock) as opened:
        yield opened


@pytest.fixture
async def stores(adapter: RunStoreAdapter) -> list[RunStore]:
    """The stores of three processes, with the same runs."""
    return [await adapter.open() for _ in range(3)]


class World:
    """Three owners who queue, claim, renew, release, cancel and finish at random, and sometimes let a lease expire."""

    def __init__(self, stores: list[RunStore], queue: Queue, clock: Clock, seed: int) -> None:
        self.stores, self.queue_all, self.clock, self.dice = stores, queue, clock, random.Random(seed)
        self.queued_count = 0
        self.held: list[tuple[int, Claim]] = []
        """(owner, claim) that the owner believes to be valid."""
        self.finished: list[str] = []
        self.fences: dict[str, int] = {}

    async def step(self) -> None:
        act = self.dice.choices(
            (self.queue, self.claim, self.finish, self.pass_time, self.release, self.cancel), (3, 6, 4, 2, 1, 1)
        )[0]
        await act()
        await self.check_limits()

    async def queue(self) -> None:
        runs = []
        for _ in range(self.dice.randint(1, 3)):
            self.queued_count += 1
            runs.append(
                new_run(
                    f"r{self.queued_count}",
                    repository=self.dice.randint(1, REPOSITORIES),
                    number=self.dice.randint(1, 3),
                    group=self.dice.choice(["", "deploy", "test/1", "test/2"]),
                    cancel_in_progress=self.dice.random() < 0.5,
                )
            )
        await self.queue_all(*runs)

    async def claim(self) -> None:
        owner = self.dice.randrange(3)
        before = await self.stores[0].unfinished()
        claim = await self.stores[owner].claim(f"owner-{owner}", lease_s=LEASE_S, max_machines=SLOTS)
        if claim is None:
            assert not self.claimable(before), "a run could have been claimed"
            return
        assert claim.fence > self.fences.get(claim.run.id, 0)
        self.fences[claim.run.id] = claim.fence
        self.held.append((owner, claim))
        self.check_choice(claim.run, before)

    async def finish(self) -> None:
        if not self.held:
            return
        owner, claim = self.held.pop(self.dice.randrange(len(self.held)))
        try:
            await self.stores[owner].finish(claim, Conclusion.SUCCESS, ())
        except ClaimLost:
            assert self.fences[claim.run.id] > claim.fence or claim.run.id in self.finished or self.released(claim)
        else:
            self.finished.append(claim.run.id)

    async def pass_time(self) -> None:
        """Let time pass; some claims are renewed and some expire."""
        self.clock.advance(LEASE_S / 2)
        for owner, store in enumerate(self.stores):
            mine = [claim for holder, claim in self.held if holder == owner and self.dice.random() < 0.8]
            await store.heartbeat(mine, lease_s=LEASE_S)
        self.clock.advance(LEASE_S / 2)

    async def release(self) -> None:
        if self.held:
            owner, claim = self.held.pop(self.dice.randrange(len(self.held)))
            try:
                await self.stores[owner].release(claim)
            except ClaimLost:
                assert self.fences[claim.run.id] > claim.fence or claim.run.id in self.finished

    async def cancel(self) -> None:
        if self.queued_count:
            await self.stores[1].request_cancel(f"r{self.dice.randint(1, self.queued_count)}", "cancelled by ada")

    def released(self, claim: Claim) -> bool:
        return all(other.run.id != claim.run.id for _, other in self.held)

    def claimable(self, unfinished: list[Run]) -> list[Run]:
        """Return queued runs that may start now, without abandoned and cancelled ones."""
        running = [run for run in unfinished if run.state is RunState.RUNNING]
        if len(running) >= SLOTS:
            return []
        found = []
        for run in unfinished:
            rivals = [other for other in unfinished if run.plan.concurrency_group and group(other) == group(run)]
            blocked = any(
                other.state is RunState.RUNNING or (other.seq < run.seq and number(other) == number(run))
                for other in rivals
                if other is not run
            )
            if run.state is RunState.QUEUED and not blocked:
                found.append(run)
        return found

    def check_choice(self, chosen: Run, before: list[Run]) -> None:
        was = next(run for run in before if run.id == chosen.id)
        if was.state is RunState.RUNNING:
            return  # abandoned: it already holds a slot
        to_cancel = [run for run in before if run.state is RunState.QUEUED and run.cancel_reason]
        if to_cancel:
            assert chosen.id == to_cancel[0].id
            return
        allowed = self.claimable(before)
        assert was in allowed
        running = [run.source.repository.id for run in before if run.state is RunState.RUNNING]
        assert running.count(repository(was)) == min(running.count(repository(run)) for run in allowed)
        assert was == next(run for run in allowed if repository(run) == repository(was)), "not the oldest of its repository"

    async def check_limits(self) -> None:
        unfinished = await self.stores[2].unfinished()
        working = [run for run in unfinished if run.state is RunState.RUNNING and not run.cancel_reason]
        assert len(working) <= SLOTS
        groups = [group(run) for run in working if run.plan.concurrency_group]
        assert len(groups) == len(set(groups))

    async def drain(self) -> None:
        """Finish all runs, without faults."""
        self.held.clear()
        self.clock.advance(LEASE_S)
        while (claim := await self.stores[0].claim("last", lease_s=LEASE_S, max_machines=SLOTS)) is not None:
            await self.stores[0].finish(claim, Conclusion.SUCCESS, ())
            self.finished.append(claim.run.id)


def repository(run: Run) -> int:
    return run.source.repository.id


def number(run: Run) -> int:
    return run.source.pull_request.number


def group(run: Run) -> tuple[int, str]:
    return repository(run), run.plan.concurrency_group


@pytest.mark.parametrize("seed", range(6))
async def test_limits_order_and_single_finish_hold_in_any_history(
    stores: list[RunStore], adapter: RunStoreAdapter, clock: Clock, seed: int
) -> None:
    world = World(stores, adapter.queue, clock, seed)
    for _ in range(150):
        await world.step()
    await world.drain()
    assert sorted(world.finished) == sorted(f"r{index + 1}" for index in range(world.queued_count))
    assert await stores[1].unfinished() == []


@pytest.mark.parametrize("seed", range(3))
async def test_a_repository_waits_at_most_one_turn_of_each_other(
    stores: list[RunStore], adapter: RunStoreAdapter, seed: int
) -> None:
    """One repository queues forty runs, others few and later. Between two turns of a waiting one, each other has one turn."""
    dice = random.Random(seed)
    store = stores[0]
    busy = [new_run(f"busy-{index}", repository=1) for index in range(40)]
    await adapter.queue(*busy)
    waiting = {1: 40}
    turns: list[int] = []
    passed_over: dict[int, list[int]] = {}
    for step in range(90):
        if dice.random() < 0.3:
            late = dice.randint(2, 6)
            await adapter.queue(new_run(f"late-{step}", repository=late))
            waiting[late] = waiting.get(late, 0) + 1
        claim = await store.claim("a", lease_s=LEASE_S, max_machines=1)
        if claim is None:
            break
        chosen = repository(claim.run)
        turns.append(chosen)
        waiting[chosen] -= 1
        passed_over[chosen] = []
        for patient, count in waiting.items():
            if patient != chosen and count:
                passed_over.setdefault(patient, []).append(chosen)
                assert len(set(passed_over[patient])) == len(passed_over[patient]), f"{patient} was skipped twice: {turns}"
            elif not count:
                passed_over[patient] = []
        await store.finish(claim, Conclusion.SUCCESS, ())
    assert len(set(turns)) > 3
