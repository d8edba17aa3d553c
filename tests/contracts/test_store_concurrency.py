"""Eight processes that use one database at the same moment: together they exceed no limit, and no work is done twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal

import pytest
from msgspec.structs import replace

from gibil_bot.agent_task import Account, Limit
from gibil_bot.model import CancelRequest, Claim, Conclusion, HeadSeen, Host, NewRun, RunState
from gibil_bot.ports import DeliveryOutcome, Store
from tests.contracts.store_nouns import DAY_S, RECEIVED_AT, Clock, command, comment, delivery, new_run, queue
from tests.doubles.databases import open_store
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster

PROCESSES = 8
PROCESSES_OF_A_FILE = 3
"""SQLite has no queue for its lock: with more processes, one of them may wait longer than the limit."""


@pytest.fixture
def no_deadlock(database_url: str, request: pytest.FixtureRequest) -> Iterator[None]:
    """PostgreSQL resolves a deadlock after a second, and the transaction is repeated: it is only slow."""
    if database_url.startswith("sqlite:"):
        yield
        return
    cluster: Cluster = request.getfixturevalue("postgres")
    before = cluster.log().count("deadlock detected")
    yield
    assert cluster.log().count("deadlock detected") == before, cluster.log()[-4000:]


@pytest.fixture
async def stores(database_url: str, clock: Clock, no_deadlock: None) -> AsyncIterator[list[Store]]:
    limit_s = patient(20)  # on a busy computer these calls, which wait for one another, take longer than a bot's
    opened: list[Store] = [await open_store(database_url, clock=clock, limit_s=limit_s)]
    count = PROCESSES_OF_A_FILE if database_url.startswith("sqlite:") else PROCESSES
    opened += await asyncio.gather(*(open_store(database_url, clock=clock, limit_s=limit_s) for _ in range(count - 1)))
    yield [opened[number % count] for number in range(PROCESSES)]
    await asyncio.gather(*(store.close() for store in opened))


async def claim_all(store: Store, owner: str, most: int) -> list[Claim]:
    claims = []
    while (claimed := await store.runs.claim(owner, lease_s=60, max_machines=most)) is not None:
        claims.append(claimed)
    return claims


async def claim_at_once(stores: list[Store], most: int) -> list[Claim]:
    """Claim in all processes until none is left to claim."""
    found = await asyncio.gather(*(claim_all(store, f"bot {number}", most) for number, store in enumerate(stores)))
    return [claim for claims in found for claim in claims]


# Runs


async def test_claims_never_exceed_the_machines_and_each_repository_gets_its_share(stores: list[Store]) -> None:
    await queue(stores[0], *(new_run(f"r{number}", repository=number % 4) for number in range(24)))
    claims = await claim_at_once(stores, 8)
    assert len({claim.run.id for claim in claims}) == len(claims) == 8
    assert Counter(claim.run.source.repository.id for claim in claims) == {0: 2, 1: 2, 2: 2, 3: 2}


async def test_runs_that_are_finished_and_claimed_all_the_time_are_each_done_once(stores: list[Store]) -> None:
    runs = [new_run(f"r{number}", repository=number % 3) for number in range(40)]
    await queue(stores[0], *runs)
    working: set[str] = set()
    done: list[str] = []

    async def work(store: Store, owner: str) -> None:
        while len(done) < len(runs):
            claimed = await store.runs.claim(owner, lease_s=60, max_machines=5)
            if claimed is None:
                await asyncio.sleep(0)
                continue
            run = claimed.run
            working.add(run.id)
            assert len(working) <= 5
            await store.runs.heartbeat([claimed], lease_s=60)
            working.remove(run.id)  # before it is finished, so that what remains is running without doubt
            await store.runs.finish(claimed, Conclusion.SUCCESS, [comment(f"comment:{run.id}")])
            done.append(run.id)

    async def watch() -> None:
        while len(done) < len(runs):
            assert (await stores[0].counts())["runs_running"] <= 5
            await asyncio.sleep(0)

    async with asyncio.timeout(patient(60)), asyncio.TaskGroup() as tasks:
        tasks.create_task(watch())
        for number, store in enumerate(stores):
            tasks.create_task(work(store, f"bot {number}"))
    assert sorted(done) == sorted(run.id for run in runs)


async def test_one_run_of_a_concurrency_group_is_claimed_at_a_time(stores: list[Store]) -> None:
    held: list[Claim] = []
    for number in range(5):
        run = new_run(f"r{number}", group="deploy", cancel_in_progress=False)
        finishing = [stores[-1].runs.finish(each, Conclusion.SUCCESS, ()) for each in held]
        await queue(stores[0], run)
        *_, found = await asyncio.gather(*finishing, claim_at_once(stores, 9))
        held = found or await claim_at_once(stores, 9)
        assert [claim.run.id for claim in held] == [run.id]


async def test_a_run_whose_process_died_is_claimed_by_one_of_the_others(stores: list[Store], clock: Clock) -> None:
    await queue(stores[0], *(new_run(f"r{number}") for number in range(4)))
    assert len(await claim_all(stores[0], "dead", 4)) == 4
    clock.advance(60)
    claims = await claim_at_once(stores[1:], 4)
    assert sorted(claim.run.id for claim in claims) == ["r0", "r1", "r2", "r3"]
    assert {claim.fence for claim in claims} == {2}


async def test_the_work_of_a_dead_process_is_released_by_all_others_at_once(stores: list[Store], clock: Clock) -> None:
    hosts = [Host(id=f"{number:016x}", name=f"host-{number}", url="") for number in range(PROCESSES)]
    await stores[0].hosts.start(hosts[0], "dead")
    await queue(stores[0], *(new_run(f"r{number}") for number in range(20)))
    for number in range(20):
        await stores[0].inbox.accept(delivery(f"guid-{number}", command(number=number)))
    await claim_all(stores[0], "dead", 20)
    await stores[0].inbox.claim("dead", limit=20, lease_s=9999)
    clock.advance(40)

    async def take_over(number: int) -> tuple[list[str], list[str]]:
        store, owner = stores[number], f"bot {number}"
        await store.hosts.start(hosts[number], owner)
        await store.hosts.present(hosts[number], owner)
        runs = [claim.run.id for claim in await claim_all(store, owner, 20)]
        return runs, [one.guid for one in await store.inbox.claim(owner, limit=20, lease_s=9999)]

    found = await asyncio.gather(*(take_over(number) for number in range(1, PROCESSES)))
    assert sorted(run for runs, _ in found for run in runs) == sorted(f"r{number}" for number in range(20))
    guids = [guid for _, guids in found for guid in guids]
    guids += [one.guid for one in await stores[1].inbox.claim("bot 1", limit=20, lease_s=9999)]
    assert len(guids) == len(set(guids))


async def test_leases_are_renewed_while_the_runs_are_cancelled(stores: list[Store]) -> None:
    await queue(stores[0], *(new_run(f"r{number}") for number in range(12)))
    claims = await claim_all(stores[0], "a", 12)
    for guid in ("cancel 1", "cancel 2"):
        await stores[0].inbox.accept(delivery(guid))
    await stores[0].inbox.claim("a", limit=9, lease_s=60)
    stop = DeliveryOutcome(cancel=[(claim.run.id, "cancelled by ada") for claim in claims])
    stop_all = DeliveryOutcome(
        cancel_earlier=[CancelRequest(repository_id=1, number=7, workflow=None, reason="cancelled by ada")]
    )
    renewed = [store.runs.heartbeat(claims if number % 2 else claims[::-1], lease_s=60) for number, store in enumerate(stores)]
    await asyncio.gather(
        *renewed, stores[1].inbox.complete("a", "cancel 1", stop), stores[2].inbox.complete("a", "cancel 2", stop_all)
    )
    assert await stores[0].runs.heartbeat(claims, lease_s=60) == {claim.run.id: "cancelled by ada" for claim in claims}


async def test_copies_of_machines_and_claims_exceed_the_machines_not_even_together(stores: list[Store]) -> None:
    await queue(stores[0], *(new_run(f"r{number}") for number in range(12)))
    claims = await claim_all(stores[0], "a", 4)

    async def copies(numbers: list[int]) -> list[bool]:
        counting = zip(stores, claims, numbers, strict=False)
        return await asyncio.gather(*(each.runs.count_copies(claim, count, max_machines=8) for each, claim, count in counting))

    taken, claimed = await asyncio.gather(copies([1] * 4), claim_at_once(stores, 8))
    assert 4 + sum(taken) + len(claimed) == 8
    numbers = [int(each) for each in taken]
    numbers[taken.index(True)] = 0
    assert await stores[0].runs.count_copies(claims[taken.index(True)], 0)
    assert sum(await copies([number + 1 for number in numbers])) == 1


async def test_of_runs_that_are_queued_at_once_the_last_one_supersedes_all_others(stores: list[Store]) -> None:
    guids = [f"guid-{number}" for number in range(PROCESSES)]
    for guid in guids:
        await stores[0].inbox.accept(delivery(guid))
    await stores[0].inbox.claim("a", limit=99, lease_s=60)
    outcomes = [DeliveryOutcome(runs=[new_run(f"of {guid}", group="test", guid=guid)]) for guid in guids]
    await asyncio.gather(
        *(store.inbox.complete("a", guid, outcome) for store, guid, outcome in zip(stores, guids, outcomes, strict=True))
    )
    runs = await stores[0].runs.unfinished()
    assert len(runs) == PROCESSES
    assert [run.cancel_reason is None for run in runs] == [False] * (PROCESSES - 1) + [True]


async def test_a_cancellation_stops_the_runs_of_deliveries_that_are_handled_at_the_same_moment(stores: list[Store]) -> None:
    for round_ in range(6):
        earlier = [f"{round_}-{number}" for number in range(PROCESSES - 1)]
        cancelling = f"{round_}-cancel"
        for guid in (*earlier, cancelling):
            await stores[0].inbox.accept(delivery(guid))
        await stores[0].inbox.claim("a", limit=99, lease_s=60)
        stop = CancelRequest(repository_id=1, number=7, workflow=None, reason=f"cancelled in {round_}")
        outcomes = [DeliveryOutcome(runs=[new_run(f"of {guid}", guid=guid)]) for guid in earlier]
        await asyncio.gather(
            *(stores[number].inbox.complete("a", guid, outcomes[number]) for number, guid in enumerate(earlier)),
            stores[-1].inbox.complete("a", cancelling, DeliveryOutcome(cancel_earlier=[stop])),
        )
        for guid in earlier:
            run = await stores[0].runs.get(f"of {guid}")
            assert run is not None
            assert run.cancel_reason == f"cancelled in {round_}"


# The schema


async def test_processes_that_start_at_once_create_the_schema_once(postgres: Cluster) -> None:
    name = await postgres.create_database()
    opened = await asyncio.gather(*(open_store(postgres.url(name)) for _ in range(PROCESSES)))
    assert [await store.inbox.accept(delivery()) for store in opened] == [True] + [False] * (PROCESSES - 1)
    await asyncio.gather(*(store.close() for store in opened))
    await postgres.drop_database(name)


# Deliveries and notifications


async def test_each_delivery_is_claimed_by_one_process(stores: list[Store]) -> None:
    async def accept(number: int) -> bool:
        guid = f"guid-{number % 100}"  # each one arrives twice
        return await stores[number % PROCESSES].inbox.accept(replace(delivery(guid), cancels=number % 5 == 0))

    assert sum(await asyncio.gather(*(accept(number) for number in range(200)))) == 100

    async def claim(store: Store, owner: str) -> list[str]:
        found: list[str] = []
        while claimed := await store.inbox.claim(owner, limit=3, cancels=2, lease_s=60):
            assert len(claimed) <= 5
            for one in claimed:
                await store.inbox.complete(owner, one.guid, DeliveryOutcome(runs=[new_run(f"of {one.guid}", guid=one.guid)]))
            found += [one.guid for one in claimed]
        return found

    found = await asyncio.gather(*(claim(store, f"bot {number}") for number, store in enumerate(stores)))
    assert sorted(guid for guids in found for guid in guids) == sorted(f"guid-{number}" for number in range(100))
    assert len(await stores[0].runs.unfinished()) == 100


async def test_each_notification_is_claimed_by_one_process(stores: list[Store]) -> None:
    await stores[0].outbox.record([comment(f"comment:{number}") for number in range(60)])

    async def claim(store: Store, owner: str) -> list[str]:
        keys: list[str] = []
        while due := await store.outbox.claim(owner, limit=4, lease_s=60):
            assert len(due) <= 4
            for one in due:
                await store.outbox.published(owner, one, 5)
            keys += [one.notification.key for one in due]
        return keys

    found = await asyncio.gather(*(claim(store, f"bot {number}") for number, store in enumerate(stores)))
    assert sorted(key for keys in found for key in keys) == sorted(f"comment:{number}" for number in range(60))


async def test_states_that_are_recorded_at_once_are_each_a_revision(stores: list[Store]) -> None:
    states = [[comment("one", f"{number}"), comment("two", f"{number}")] for number in range(PROCESSES)]
    orders = [state if number % 2 else state[::-1] for number, state in enumerate(states)]
    await asyncio.gather(*(store.outbox.record(order) for store, order in zip(stores, orders, strict=True)))
    due = await stores[0].outbox.claim("a", limit=9, lease_s=60)
    assert [one.revision for one in due] == [PROCESSES] * 2
    assert due[0].notification.update == due[1].notification.update


async def test_observations_that_arrive_at_once_are_stored_once(stores: list[Store]) -> None:
    seen = [
        HeadSeen(
            repository_id=1,
            number=7,
            sha=sha * 40,
            action="opened",
            at=RECEIVED_AT,
            before=None,
            pusher=None,
            head_repository_id=5,
            head_owner="ann",
        )
        for sha in "abcd"
    ]
    await asyncio.gather(
        *(
            store.inbox.accept(delivery(f"guid-{number}"), observed=seen if number % 2 else seen[::-1])
            for number, store in enumerate(stores)
        )
    )
    assert len((await stores[0].inbox.head_history(1, 7, "a" * 40)).heads) == 4


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
async def test_what_one_process_writes_wakes_the_waiters_of_all_others(stores: list[Store]) -> None:
    waiting = [store.inbox.changed() for store in stores]
    others = [store.outbox.changed() for store in stores]
    for number, store in enumerate(stores[:2]):
        assert await store.inbox.accept(delivery(f"guid-{number}"))
        assert all(await asyncio.gather(*(waiter.wait(patient(10)) for waiter in waiting)))
    assert not any([await waiter.wait(0) for waiter in others])


# Budgets


async def test_a_bucket_is_never_overdrawn_and_reports_its_first_rejection_once(stores: list[Store]) -> None:
    found = await asyncio.gather(
        *(store.inbox.spend("key", cost=1, capacity=10, per_s=0.001) for store in stores for _ in range(3))
    )
    assert sum(spending.allowed for spending in found) == 10
    assert sum(spending.first_refusal for spending in found) == 1


async def test_calls_of_many_runs_exceed_no_limit_of_what_they_share(stores: list[Store]) -> None:
    """Persons and repositories overlap in every combination."""
    people = [Limit(scope="person", measure="usd", most=Decimal("0.5"), remedy="")]
    repositories = [Limit(scope="repository", measure="usd", most=Decimal("0.9"), remedy="")]

    async def reserve(number: int) -> bool:
        account = Account(
            run_id=f"run-{number % 5}",
            task=0,
            person=("ada", "bob", "eve")[number % 3],
            repository_id=number % 2,
            repository=f"ada/engine-{number % 2}",
        )
        ledger = stores[number % PROCESSES].ledger
        exceeded = await ledger.reserve(
            f"call {number}", account, people + repositories, usd=Decimal("0.1"), input_tokens=1, output_tokens=1
        )
        return not exceeded

    reserved = await asyncio.gather(*(reserve(number) for number in range(60)))
    by_person = Counter(number % 3 for number, fits in enumerate(reserved) if fits)
    by_repository = Counter(number % 2 for number, fits in enumerate(reserved) if fits)
    assert sum(reserved) in range(13, 16), "as many as fit"
    assert max(by_person.values()) == 5
    assert max(by_repository.values()) <= 9


async def test_estimates_are_booked_while_other_tasks_of_the_run_spend(stores: list[Store]) -> None:
    def of_task(task: int) -> Account:
        return Account(run_id="run", task=task, person="ada", repository_id=1, repository="ada/engine")

    for number in range(20):
        await stores[0].ledger.reserve(f"{number}", of_task(number % 4), [], usd=Decimal(1), input_tokens=1, output_tokens=1)
    spending = [stores[number % PROCESSES].ledger.add_time(of_task(3 - number % 4), 1) for number in range(24)]
    found = await asyncio.gather(*(store.ledger.book_estimates("run") for store in stores), *spending)
    assert sum(number for number in found if number is not None) == 20
    spent = await stores[0].ledger.spent("run")
    assert spent.usd == 20
    assert (spent.calls, spent.seconds) == (20, 24)


async def test_expired_reservations_are_booked_once_by_those_who_reserve(stores: list[Store], clock: Clock) -> None:
    def account(number: int) -> Account:
        people, repository = ("ada", "bob", "eve"), number % 2
        return Account(
            run_id=f"run-{number % 5}",
            task=0,
            person=people[number % 3],
            repository_id=repository,
            repository=f"x/{repository}",
        )

    async def reserve(number: int, name: str) -> None:
        ledger = stores[number % PROCESSES].ledger
        assert not await ledger.reserve(name, account(number), [], usd=Decimal(1), input_tokens=1, output_tokens=1, seconds=1)

    await asyncio.gather(*(reserve(number, f"old {number}") for number in range(30)))
    clock.advance(DAY_S / 2)
    await asyncio.gather(*(reserve(29 - number, f"new {number}") for number in range(30)))
    spent = [await stores[0].ledger.spent(f"run-{number}") for number in range(5)]
    assert sum(each.usd for each in spent) == sum(each.calls for each in spent) == 30
    limits = [Limit(scope="run", measure="usd", most=Decimal(99), remedy="")]
    assert [(await stores[0].ledger.balances(account(number), limits))[0].reserved for number in range(5)] == [6] * 5


async def test_pruning_in_all_processes_at_once_deletes_everything_once(stores: list[Store], clock: Clock) -> None:
    runs: list[NewRun] = [new_run(f"r{number}") for number in range(20)]
    await queue(stores[0], *runs)
    for claimed in await claim_all(stores[0], "a", 99):
        await stores[0].runs.finish(claimed, Conclusion.SUCCESS, ())
    clock.advance(100 * DAY_S)
    deleted = await asyncio.gather(*(store.prune() for store in stores))
    assert sum(sum(each.values()) for each in deleted) >= 2 * len(runs)
    assert (await stores[0].counts())["runs_finished"] == 0
    assert await stores[0].inbox.get("for r0") is None
    assert RunState.FINISHED not in {run.state for run in await stores[0].runs.of_repository(1)}


async def test_what_changes_while_it_is_pruned_stays(postgres: Cluster, clock: Clock) -> None:
    async with postgres.lend_database() as name:
        store = await open_store(postgres.url(name), clock=clock)
        await store.outbox.record([replace(comment(), key="reply:1")])
        (due,) = await store.outbox.claim("a", limit=1, lease_s=60)
        await store.outbox.published("a", due, 1)
        await store.inbox.spend("ada", cost=1, capacity=1, per_s=1)
        clock.advance(100 * DAY_S)
        other = await postgres.connect(name)
        changing = other.transaction()
        await changing.start()
        await other.execute("update notifications set revision = revision + 1")
        await other.execute("update budgets set full_at = full_at + 1e9")
        deleted = await store.prune()  # waits for neither
        await changing.commit()
        await other.close()
        assert sum(deleted.values()) == 0
        found = await store.outbox.get("reply:1")
        assert found is not None
        assert not found[1]
        await store.close()
