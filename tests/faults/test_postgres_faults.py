"""PostgreSQL restarts, is unreachable, or answers no longer: calls end soon, and what was acknowledged happened once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest

from gibil_bot.cli import db
from gibil_bot.config import load_settings
from gibil_bot.errors import ClaimLost, DatabaseUnreachable, StoreError
from gibil_bot.model import Conclusion
from gibil_bot.ports import DeliveryOutcome, Store
from tests.contracts.store_nouns import comment, delivery, new_run, queue
from tests.doubles.cable import Relay, relay
from tests.doubles.databases import open_store
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster


@pytest.fixture
async def line(postgres: Cluster) -> AsyncIterator[Relay]:
    """The network between a bot and the database."""
    async with relay(postgres.port) as it:
        yield it


@pytest.fixture
async def database(postgres: Cluster) -> AsyncIterator[str]:
    async with postgres.lend_database() as name:
        yield name


@pytest.fixture
async def store(postgres: Cluster, database: str, line: Relay) -> AsyncIterator[Store]:
    """The store of a bot behind the network."""
    opened = await open_store(postgres.url(database, port=line.port))
    yield opened
    line.mend()
    await opened.close()


@pytest.fixture
async def near(postgres: Cluster, database: str) -> AsyncIterator[Store]:
    """The store of a bot with a direct connection."""
    opened = await open_store(postgres.url(database))
    yield opened
    await opened.close()


async def eventually(call: Awaitable[object]) -> object:
    return await asyncio.wait_for(call, patient(30))


async def works_again(store: Store) -> None:
    """Wait until the store answers."""
    async with asyncio.timeout(patient(30)):
        while True:
            try:
                await store.counts()
            except StoreError:
                continue
            return


async def test_every_call_ends_in_less_than_5_s_when_the_database_is_silent(
    store: Store, line: Relay, postgres: Cluster, database: str
) -> None:
    await queue(store, new_run("r1"))
    claim = await store.runs.claim("a", lease_s=60, max_machines=9)
    assert claim is not None
    line.silence()
    begun = time.monotonic()
    calls = [
        *(store.inbox.accept(delivery(f"guid-{number}")) for number in range(20)),  # more than there are connections
        store.runs.finish(claim, Conclusion.SUCCESS, [comment()]),
        store.runs.heartbeat([claim], lease_s=60),
        store.counts(),
        open_store(postgres.url(database, port=line.port)),
    ]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert time.monotonic() - begun < patient(5)
    assert {type(error) for error in errors} == {DatabaseUnreachable}
    assert {"a running bot continues by itself" in str(error) for error in errors} == {True}
    line.mend()
    await works_again(store)
    answers = await asyncio.gather(*(store.inbox.accept(delivery(f"guid-{number}")) for number in range(20)))
    assert len(answers) == 20
    assert (await store.counts())["deliveries_unhandled"] == 20


@pytest.mark.parametrize("arrives", [False, True])
async def test_after_a_connection_is_lost_in_a_commit_the_write_is_repeated_without_a_second_effect(
    store: Store, line: Relay, arrives: bool
) -> None:
    committing = line.at(b"COMMIT", "lose the answer" if arrives else "lose")
    with pytest.raises(StoreError):
        await store.inbox.accept(delivery())
    assert committing.is_set()
    assert await store.inbox.accept(delivery()) is not arrives
    assert (await store.counts())["deliveries_unhandled"] == 1


async def test_a_write_is_repeated_if_its_connection_is_lost_before_the_commit(store: Store, line: Relay) -> None:
    await store.inbox.accept(delivery("before"))
    writing = line.at(b"insert into deliveries", "lose the answer")
    line.reset()  # so that the statement is prepared again
    assert await store.inbox.accept(delivery())
    assert writing.is_set()
    assert (await store.counts())["deliveries_unhandled"] == 2


async def test_a_bot_that_is_cut_off_in_a_claim_delays_the_others_by_seconds_and_writes_nothing_later(
    store: Store, near: Store, line: Relay
) -> None:
    await queue(near, new_run("r1"), new_run("r2"))
    lost = line.at(b"COMMIT", "silence")
    claiming = asyncio.create_task(store.runs.claim("cut off", lease_s=60, max_machines=9))
    await eventually(lost.wait())
    async with asyncio.timeout(patient(9)):
        while True:
            try:
                claims = [await near.runs.claim("near", lease_s=60, max_machines=9) for _ in range(3)]
                break
            except StoreError:  # the server still waits for the commit of the other claim
                continue
    assert [claim.fence for claim in claims if claim is not None] == [1, 1]
    with pytest.raises(StoreError):
        await claiming
    line.mend()
    await works_again(store)
    assert await store.runs.claim("cut off", lease_s=60, max_machines=9) is None
    assert [claim and await near.runs.heartbeat([claim], lease_s=60) for claim in claims] == [{"r1": None}, {"r2": None}, None]


async def test_a_bot_that_lost_its_lease_during_a_partition_writes_nothing_more(store: Store, near: Store, line: Relay) -> None:
    await queue(near, new_run("r1"))
    stale = await store.runs.claim("cut off", lease_s=0.01, max_machines=9)
    assert stale is not None
    line.silence()
    writing = asyncio.create_task(store.runs.finish(stale, Conclusion.FAILURE, [comment()]))
    async with asyncio.timeout(patient(10)):
        while (held := await near.runs.claim("near", lease_s=60, max_machines=9)) is None:
            await asyncio.sleep(0.01)
    line.mend()
    with pytest.raises((ClaimLost, StoreError)):
        await writing
    with pytest.raises(ClaimLost):
        await store.runs.save_note(stale, "late")
    await near.runs.finish(held, Conclusion.SUCCESS, ())
    run = await store.runs.get("r1")
    assert run is not None
    assert (run.conclusion, run.note) == (Conclusion.SUCCESS, None)
    assert await near.outbox.get(comment().key) is None


async def test_calls_fail_in_less_than_5_s_while_nothing_listens_and_waiters_wake_afterwards(
    store: Store, near: Store, line: Relay
) -> None:
    line.cut()
    begun = time.monotonic()
    with pytest.raises(StoreError, match="check that PostgreSQL runs and can be reached"):
        await store.inbox.accept(delivery())
    assert time.monotonic() - begun < patient(5)
    waiting = store.inbox.changed()
    assert await near.inbox.accept(delivery("during the cut"))
    line.mend()
    assert await waiting.wait(patient(30)), "a notice may be lost, so all waiters are woken"
    assert await near.inbox.accept(delivery("after the cut"))
    assert await waiting.wait(patient(30))
    assert (await store.counts())["deliveries_unhandled"] == 2


async def test_a_notice_that_is_lost_with_its_connection_is_sent_again(store: Store, near: Store, line: Relay) -> None:
    waiting = near.inbox.changed()
    lost = line.at(b"pg_notify", "lose")
    assert await store.inbox.accept(delivery())
    assert await waiting.wait(patient(10))
    assert lost.is_set()


async def test_calls_wait_for_a_connection_when_the_server_accepts_no_more(
    near: Store, postgres: Cluster, database: str
) -> None:
    await postgres.execute(f"alter database {database} connection limit 3")
    try:
        assert all(await asyncio.gather(*(near.inbox.accept(delivery(f"guid-{number}")) for number in range(20))))
        with pytest.raises(StoreError, match="; raise max_connections: each bot needs up to 1"):
            await open_store(postgres.url(database))
    finally:
        await postgres.execute(f"alter database {database} connection limit -1")


async def test_what_an_administrator_ends_is_repeated_or_reported(near: Store, postgres: Cluster, database: str) -> None:
    async def accept(number: int) -> bool | None:
        try:
            return await near.inbox.accept(delivery(f"guid-{number}"))
        except StoreError:
            return None

    answers = []
    for round_ in range(5):
        calls = [asyncio.create_task(accept(10 * round_ + number)) for number in range(10)]
        await postgres.end_sessions(database)
        answers += await asyncio.gather(*calls)
    again = await asyncio.gather(*(accept(number) for number in range(50)))
    assert [answer for answer, repeated in zip(answers, again, strict=True) if answer and repeated is not False] == []
    assert (await near.counts())["deliveries_unhandled"] == 50


@pytest.fixture
async def stores(own_postgres: Cluster) -> AsyncIterator[list[Store]]:
    """Three stores on a server that the test may restart."""
    url = own_postgres.url(await own_postgres.create_database())
    opened: list[Store] = [await open_store(url) for _ in range(3)]
    yield opened
    await asyncio.gather(*(store.close() for store in opened))


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_what_was_acknowledged_exists_and_is_handled_once_when_the_database_restarts(
    own_postgres: Cluster, stores: list[Store], how: str
) -> None:
    acknowledged: list[str] = []
    accepting = {0, 1, 2}
    stopping = asyncio.Event()
    busy, busy_again = asyncio.Event(), asyncio.Event()

    async def accept(number: int, store: Store) -> None:
        count = 0
        while not stopping.is_set():
            guid = f"{number}-{count}"
            try:
                await store.inbox.accept(delivery(guid))
            except StoreError:
                continue  # GitHub would send it again
            acknowledged.append(guid)
            count += 1
            (busy_again if has_restarted else busy).set()
        accepting.discard(number)

    async def handle(owner: str, store: Store) -> None:
        attempts = 0
        while True:
            try:
                for one in await store.inbox.claim(owner, limit=5, lease_s=1):
                    attempts += 1
                    run = new_run(f"{owner}, {attempts}", guid=one.guid)
                    await store.inbox.complete(owner, one.guid, DeliveryOutcome(runs=[run]))
                if not accepting and not (await store.counts())["deliveries_unhandled"]:
                    return
            except (StoreError, ClaimLost):
                continue

    has_restarted = False
    async with asyncio.timeout(patient(60)), asyncio.TaskGroup() as tasks:
        for number, store in enumerate(stores):
            tasks.create_task(accept(number, store))
            tasks.create_task(handle(f"bot {number}", store))
        await busy.wait()
        if how == "kill":
            await asyncio.to_thread(own_postgres.kill)
            await asyncio.to_thread(own_postgres.start)
        else:
            await asyncio.to_thread(own_postgres.restart)
        has_restarted = True
        await busy_again.wait()
        stopping.set()
    runs = [run.delivery_guid for run in await stores[0].runs.unfinished()]
    assert len(runs) == len(set(runs)), "a delivery was handled twice"
    assert set(acknowledged) <= set(runs)


async def test_a_command_that_is_interrupted_does_not_wait_for_its_long_limit(postgres: Cluster, database: str) -> None:
    pruning = await open_store(postgres.url(database), limit_s=60.0)
    other, looking_on = await postgres.connect(database), await postgres.connect(database)
    async with other.transaction():
        await other.execute("lock table deliveries")
        call = asyncio.create_task(pruning.prune())
        blocked = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        async with asyncio.timeout(patient(20)):
            while not await looking_on.fetchval(blocked):
                await asyncio.sleep(0.01)  # another session's state: there is no event to wait for
        call.cancel()
        async with asyncio.timeout(30):
            await pruning.close()
    await asyncio.gather(call, return_exceptions=True)
    await other.close()
    await looking_on.close()


async def test_pruning_behind_a_lock_says_what_it_waits_for(
    postgres: Cluster, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "_PROGRESS_S", 0.05)
    await (await open_store(postgres.url(database))).close()
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path), "GIBIL_DATABASE_URL": postgres.url(database)})
    other, shown = await postgres.connect(database), ""
    async with other.transaction():
        await other.execute("lock table deliveries")
        pruning = asyncio.create_task(db._prune(settings, False))
        async with asyncio.timeout(patient(20)):
            while "gibil: deleting old payloads\n" not in shown:
                assert not pruning.done(), shown
                await asyncio.sleep(0.01)  # what is printed: there is no event to wait for
                shown += capsys.readouterr().err
    assert await pruning == 0
    assert capsys.readouterr().err.endswith("gibil: deleted 0 rows\n")
    await other.close()


async def test_a_wrong_parameter_of_the_address_is_no_reason_to_wait_for_the_server(postgres: Cluster, database: str) -> None:
    url = f"{postgres.url(database)}?target_session_attrs=bogus"
    with pytest.raises(StoreError, match="GIBIL_DATABASE_URL can't be read") as caught:
        await open_store(url)
    assert not isinstance(caught.value, DatabaseUnreachable)
