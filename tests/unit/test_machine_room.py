"""How many copies of machines exist at a time next to the machines of runs."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from gibil_bot.errors import StoreError
from gibil_bot.model import Claim
from gibil_bot.runs.machine_room import MachineRoom
from gibil_bot.runs.memory import MemoryRuns
from tests.contracts.store_nouns import new_run
from tests.doubles.patience import patient


async def _turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def _claims(runs: MemoryRuns, number: int) -> list[Claim]:
    runs.queue(*(new_run(f"r{each}", repository=each) for each in range(number)))
    claims = [await runs.claim(f"p{each}", lease_s=60, max_machines=number) for each in range(number)]
    return [claim for claim in claims if claim is not None]


async def test_copies_wait_until_fewer_machines_exist() -> None:
    runs = MemoryRuns()
    claims = await _claims(runs, 2)
    rooms = [MachineRoom(runs, claim, 4) for claim in claims]
    copies = [asyncio.create_task(rooms[each % 2].acquire(f"m{each}")) for each in range(4)]
    await _turn()
    assert sum(copy.done() for copy in copies) == 2
    runs.queue(new_run("r9", repository=9))
    assert await runs.claim("p9", lease_s=60, max_machines=4) is None
    await rooms[0].release("m0")
    await _turn()
    assert sum(copy.done() for copy in copies) == 3
    await rooms[1].release("m1")
    await asyncio.wait_for(asyncio.gather(*copies), patient(5))


async def test_one_copy_may_always_exist_so_that_runs_with_all_machines_go_on() -> None:
    runs = MemoryRuns()
    claims = await _claims(runs, 2)
    rooms = [MachineRoom(runs, claim, 2) for claim in claims]
    first, second = (asyncio.create_task(room.acquire("m")) for room in rooms)
    await _turn()
    assert (first.done(), second.done()) == (True, False)
    await rooms[0].release("m")
    await asyncio.wait_for(second, patient(5))


async def test_copies_that_an_earlier_process_left_are_counted_without_waiting() -> None:
    runs = MemoryRuns()
    claims = await _claims(runs, 2)
    rooms = [MachineRoom(runs, claim, 2) for claim in claims]
    await rooms[0].acquire("m0")
    await asyncio.wait_for(rooms[1].found(["m1"]), patient(5))
    await asyncio.wait_for(rooms[1].acquire("m1"), patient(5))
    await rooms[0].release("m0")
    waiting = asyncio.create_task(rooms[0].acquire("m0"))
    await _turn()
    assert not waiting.done()
    await rooms[1].release("m1")
    await asyncio.wait_for(waiting, patient(5))


class Slow(MemoryRuns):
    """Counts at once, and answers when `go_on` is set. `failures`: how many calls fail that count no copy."""

    def __init__(self) -> None:
        super().__init__()
        self.taken, self.go_on = asyncio.Event(), asyncio.Event()
        self.failures = 0

    async def count_copies(self, claim: Claim, copies: int, *, max_machines: int | None = None) -> bool:
        if self.failures and copies == 0:
            self.failures -= 1
            raise StoreError("the database is restarted")
        is_taken = await super().count_copies(claim, copies, max_machines=max_machines)
        self.taken.set()
        await self.go_on.wait()
        return is_taken


async def test_a_copy_that_is_not_wanted_any_more_is_not_counted() -> None:
    runs = Slow()
    first, second = await _claims(runs, 2)
    room = MachineRoom(runs, first, 2)
    cancelled = asyncio.create_task(room.acquire("m0"))
    await runs.taken.wait()
    cancelled.cancel()
    await _turn()
    runs.go_on.set()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelled
    assert cancelled.cancelled()
    await asyncio.wait_for(MachineRoom(runs, second, 2).acquire("m1"), patient(5))


async def test_a_copy_that_ended_during_an_outage_is_not_counted_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gibil_bot.runs.machine_room.POLL_S", 0.01)
    runs = Slow()
    runs.go_on.set()
    first, second = await _claims(runs, 2)
    room = MachineRoom(runs, first, 2)
    await room.acquire("m0")
    runs.failures = 3
    await room.release("m0")
    await asyncio.wait_for(MachineRoom(runs, second, 2).acquire("m1"), patient(5))


async def test_without_a_limit_no_copy_waits() -> None:
    runs = MemoryRuns()
    (claim,) = await _claims(runs, 1)
    room = MachineRoom(runs, claim, None)
    for each in range(50):
        await room.acquire(f"m{each}")
    await room.release("m0")
