"""The contract of ports.Ledger, for every adapter. To test another one, add a parameter to `ledgers`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from gibil_bot.agent_task import Account, Balance, Limit, Measure, ModelCall, Scope, Spent, Usage
from gibil_bot.ports import Ledger
from gibil_bot.runs.ledger_rules import MOST_REFUSED, RESERVED_S
from gibil_bot.runs.sql.store import SqlStore
from tests.contracts.store_nouns import DAY_S, Clock
from tests.doubles.databases import DATABASES, empty_database, open_store
from tests.doubles.ledger import MemoryLedger
from tests.doubles.patience import patient

Open = Callable[[], Awaitable[Ledger]]
ZERO = Decimal(0)


@pytest.fixture(params=["memory", *DATABASES])
async def ledgers(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Open]:
    """Open ledgers with the same content, as several processes would."""
    if request.param == "memory":
        memory = MemoryLedger(clock)

        async def same() -> Ledger:
            return memory

        yield same
        return
    opened: list[SqlStore] = []
    async with empty_database(request.param, request) as url:

        async def open_one() -> Ledger:
            opened.append(await open_store(url, clock=clock))
            return opened[-1].ledger

        yield open_one
        for store in opened:
            await store.close()


@pytest.fixture
async def ledger(ledgers: Open) -> Ledger:
    return await ledgers()


@pytest.fixture
async def other(ledger: Ledger, ledgers: Open) -> Ledger:
    """The ledger of a second process."""
    return await ledgers()


def account(run: str = "run-1", task: int = 0, attempt: int = 0, person: str = "ada", repository: int = 1) -> Account:
    return Account(
        run_id=run, task=task, attempt=attempt, person=person, repository_id=repository, repository=f"ada/engine-{repository}"
    )


def limit(scope: Scope = "run", most: str = "1", measure: Measure = "usd") -> Limit:
    return Limit(scope=scope, measure=measure, most=Decimal(most), remedy="raise it")


def call(usd: str = "0.1", *, who: Account | None = None, usage: Usage | None = None, status: int = 200) -> ModelCall:
    who = who or account()
    return ModelCall(
        run_id=who.run_id,
        task=who.task,
        attempt=who.attempt,
        started_at=datetime(2026, 11, 27, 9, tzinfo=UTC),
        protocol="anthropic",
        model="claude-sonnet-4-5",
        status=status,
        usage=usage or Usage(input=10, cache_read=20, cache_write_5m=3, cache_write_1h=4, output=5),
        usd=Decimal(usd),
    )


async def reserve(
    ledger: Ledger,
    name: str,
    usd: str = "0.4",
    *,
    who: Account | None = None,
    limits: Sequence[Limit] = (),
    tokens: int = 100,
    seconds: float = 0.0,
) -> list[Balance]:
    return await ledger.reserve(
        name, who or account(), limits, usd=Decimal(usd), input_tokens=tokens // 2, output_tokens=tokens // 2, seconds=seconds
    )


async def test_a_call_is_reserved_and_booked(ledger: Ledger, other: Ledger) -> None:
    assert await reserve(ledger, "a", limits=[limit()]) == []
    (balance,) = await other.balances(account(), [limit()])
    assert (balance.spent, balance.reserved, balance.left) == (ZERO, Decimal("0.4"), Decimal("0.6"))
    assert await other.spent("run-1") == Spent()
    assert await other.calls("run-1") == []

    await ledger.book("a", account(), call())
    (balance,) = await other.balances(account(), [limit()])
    assert (balance.spent, balance.reserved) == (Decimal("0.1"), ZERO)
    assert await other.spent("run-1") == Spent(usd=Decimal("0.1"), usage=call().usage, calls=1)
    assert await other.calls("run-1") == [call()]


async def test_amounts_are_exact(ledger: Ledger) -> None:
    for number in range(10):
        await reserve(ledger, str(number))
        await ledger.book(str(number), account(), call("0.000000001"))
    assert (await ledger.spent("run-1")).usd == Decimal("0.00000001")


@pytest.mark.parametrize(
    ("scope", "counts", "doesnt_count"),
    [
        ("task", account(attempt=1, person="eve", repository=2), account(task=1)),
        ("run", account(task=1, attempt=1, person="eve", repository=2), account("run-2")),
        ("person", account("run-2", 1, 1, "Ada", 2), account(person="eve")),
        ("repository", account("run-2", 1, 1, "eve"), account(repository=2)),
    ],
)
async def test_what_a_limit_counts(ledger: Ledger, scope: Scope, counts: Account, doesnt_count: Account) -> None:
    await reserve(ledger, "a")
    await ledger.book("a", account(), call("0.7"))
    for who, fits in ((counts, False), (doesnt_count, True)):
        assert (await reserve(ledger, f"next of {who}", who=who, limits=[limit(scope)]) == []) is fits


@pytest.mark.parametrize(
    ("measure", "most", "exceeded"),
    [
        ("usd", "0.5", False),
        ("usd", "0.499999999", True),
        ("tokens", "142", False),
        ("tokens", "141", True),
        ("calls", "2", False),
        ("calls", "1", True),
        ("seconds", "30", False),
        ("seconds", "29.9", True),
    ],
)
async def test_what_is_measured(ledger: Ledger, measure: Measure, most: str, exceeded: bool) -> None:
    await reserve(ledger, "a", seconds=10)
    await ledger.book("a", account(), call())
    await ledger.add_time(account(), 20)
    found = await reserve(ledger, "b", limits=[limit("task", most, measure)])
    assert bool(found) is exceeded
    assert (await ledger.spent("run-1")).seconds == 30


async def test_only_the_exceeded_limits_are_returned_and_nothing_is_reserved(ledger: Ledger) -> None:
    await reserve(ledger, "a", "0.3")
    low, high = limit("run", "0.5"), limit("task", "5")
    (balance,) = await reserve(ledger, "b", "0.4", limits=[high, low])
    assert balance == Balance(limit=low, spent=Decimal(0), reserved=Decimal("0.3"), needed=Decimal("0.4"))
    assert not balance.is_final
    (balance,) = await ledger.balances(account(), [low])
    assert balance.reserved == Decimal("0.3")
    (balance,) = await reserve(ledger, "b", "0.6", limits=[low])
    assert balance.is_final


async def test_a_rejected_call_uses_machine_time(ledger: Ledger) -> None:
    assert await reserve(ledger, "a", limits=[limit("run", "0")], seconds=1.5)
    assert (await ledger.spent("run-1")).seconds == 1.5


async def test_calls_in_parallel_never_exceed_a_limit_together(ledger: Ledger, other: Ledger) -> None:
    limits = [limit("run", "2"), limit("repository", "1.05"), limit("task", "9")]
    most = 0

    async def one(number: int) -> bool:
        nonlocal most
        mine = (ledger, other)[number % 2]
        who = account(f"run-{number % 3}", attempt=number % 4)
        if await reserve(mine, f"call-{number}", "0.1", who=who, limits=limits):
            return False
        balances = await mine.balances(who, limits)
        most = max(most, *(int((each.spent + each.reserved) * 100) for each in balances if each.limit.scope == "repository"))
        return True

    async with asyncio.timeout(patient(30)):
        reserved = await asyncio.gather(*(one(number) for number in range(50)))
    assert sum(reserved) == 10
    assert most == 100
    await asyncio.gather(
        *(ledger.book(f"call-{number}", account(), call("0.05")) for number, done in enumerate(reserved) if done)
    )
    (balance,) = await ledger.balances(account(), [limits[1]])
    assert (balance.spent, balance.reserved) == (Decimal("0.5"), ZERO)


async def test_a_repeated_write_changes_nothing(ledger: Ledger) -> None:
    await reserve(ledger, "a")
    assert await reserve(ledger, "a", limits=[limit("run", "0")]) == []
    await ledger.book("a", account(), call())
    before = await ledger.spent("run-1")
    await ledger.book("a", account(), call("0.9"))
    await ledger.cancel("a")
    assert await reserve(ledger, "a") == []
    assert await ledger.spent("run-1") == before
    (balance,) = await ledger.balances(account(), [limit()])
    assert balance.reserved == 0


async def test_a_cancelled_reservation_leaves_nothing(ledger: Ledger) -> None:
    await reserve(ledger, "a")
    await ledger.cancel("a")
    await ledger.cancel("never reserved")
    (balance,) = await ledger.balances(account(), [limit()])
    assert (balance.spent, balance.reserved) == (ZERO, ZERO)
    assert await ledger.spent("run-1") == Spent()
    assert await ledger.calls("run-1") == []


async def test_a_call_without_a_reservation_is_booked(ledger: Ledger) -> None:
    await ledger.book("unknown", account(), call())
    assert (await ledger.spent("run-1")).usd == Decimal("0.1")


async def test_reservations_of_a_killed_process_are_booked_at_their_estimates(ledger: Ledger, other: Ledger) -> None:
    await reserve(ledger, "a")
    await reserve(ledger, "done")
    await ledger.book("done", account(), call())
    await reserve(ledger, "b", who=account("run-2"))

    assert await other.book_estimates("run-1") == 1
    assert await other.book_estimates("run-1") == 0
    expected = Spent(usd=Decimal("0.5"), usage=Usage(input=50, output=50, is_estimated=True) + call().usage, calls=2)
    assert await other.spent("run-1") == expected
    estimated, _ = await other.calls("run-1")
    assert (estimated.usd, estimated.usage.is_estimated, estimated.status) == (Decimal("0.4"), True, 0)
    (balance,) = await other.balances(account(), [limit("repository")])
    assert (balance.spent, balance.reserved) == (Decimal("0.5"), Decimal("0.4"))


async def test_a_call_that_ends_after_its_estimate_was_booked_replaces_the_estimate(ledger: Ledger, other: Ledger) -> None:
    await reserve(ledger, "a")
    await other.book_estimates("run-1")
    await ledger.book("a", account(), call())
    assert await other.spent("run-1") == Spent(usd=Decimal("0.1"), usage=call().usage, calls=1)
    assert await other.calls("run-1") == [call()]


async def test_an_old_reservation_is_booked_with_the_next_one(ledger: Ledger, other: Ledger, clock: Clock) -> None:
    await reserve(ledger, "a", "1")
    clock.advance(RESERVED_S - 1)
    await reserve(other, "b", who=account("run-2"))
    assert (await other.spent("run-1")).calls == 0
    clock.advance(1)
    await reserve(other, "c", who=account("run-2"))
    assert (await other.spent("run-1")).usd == 1


async def test_days_are_those_of_utc_when_the_call_was_reserved(ledger: Ledger, clock: Clock) -> None:
    clock.now = datetime(2026, 11, 27, 23, 59, 59, tzinfo=UTC).timestamp()
    await reserve(ledger, "a")
    clock.advance(2)
    await ledger.book("a", account(), call())
    await reserve(ledger, "b", "0.4")
    await ledger.book("b", account(), call("0.3"))
    (today,) = await ledger.balances(account(), [limit("person")])
    assert (today.spent, today.reserved) == (Decimal("0.3"), ZERO)
    assert (await ledger.spent_on(date(2026, 11, 27), "person"))["ada"].usd == Decimal("0.1")
    assert (await ledger.spent("run-1")).usd == Decimal("0.4")


async def test_spending_is_reported_by_run_task_attempt_person_and_repository(ledger: Ledger, clock: Clock) -> None:
    accounts = [account(), account(attempt=1), account(task=1), account("run-2", person="eve", repository=2)]
    for number, (who, usd) in enumerate(zip(accounts, ("0.1", "0.2", "0.4", "0.8"), strict=True)):
        await reserve(ledger, str(number), who=who)
        await ledger.book(str(number), who, call(usd, who=who))
    await ledger.refused(account(), call("0", status=402))
    spent = [await ledger.spent("run-1", 0, 0), await ledger.spent("run-1", 0), await ledger.spent("run-1")]
    assert [one.usd for one in spent] == [Decimal("0.1"), Decimal("0.3"), Decimal("0.7")]
    assert [(one.calls, one.refused) for one in spent] == [(1, 1), (2, 1), (3, 1)]
    today = clock.moment.date()
    assert {name: one.usd for name, one in (await ledger.spent_on(today, "person")).items()} == {
        "eve": Decimal("0.8"),
        "ada": Decimal("0.7"),
    }
    assert list(await ledger.spent_on(today, "repository")) == ["ada/engine-2", "ada/engine-1"]
    assert [(one.task, one.attempt, one.status) for one in await ledger.calls("run-1")] == [
        (0, 0, 200),
        (0, 1, 200),
        (1, 0, 200),
        (0, 0, 402),
    ]
    assert [one.task for one in await ledger.calls("run-1", 1)] == [1]


async def test_a_person_is_the_same_in_upper_and_lower_case(ledger: Ledger, clock: Clock) -> None:
    for name in ("Ada", "ada"):
        await reserve(ledger, name, who=account(person=name))
        await ledger.book(name, account(person=name), call())
    (spent,) = (await ledger.spent_on(clock.moment.date(), "person")).values()
    assert spent.usd == Decimal("0.2")


async def test_rejected_calls_are_all_counted_and_some_are_stored(ledger: Ledger) -> None:
    for _ in range(MOST_REFUSED + 5):
        await ledger.refused(account(), call("0", status=402))
    await ledger.refused(account(task=1), call("0", status=402))
    assert (await ledger.spent("run-1", 0)).refused == MOST_REFUSED + 5
    assert len(await ledger.calls("run-1")) == MOST_REFUSED + 1


async def test_a_waiter_wakes_when_a_call_is_booked(ledger: Ledger) -> None:
    await reserve(ledger, "a")
    changed = ledger.changed()
    await ledger.book("a", account(), call())
    assert await changed.wait(patient(10))
    assert not await changed.wait(0.001)


async def test_pruning_deletes_old_calls_and_keeps_the_sums_of_days(database_url: str, clock: Clock) -> None:
    store = await open_store(database_url, clock=clock)
    first = clock.moment.date()
    await reserve(store.ledger, "in progress", who=account("old"))
    for name, days in (("old", 0), ("new", 89)):
        clock.advance(days * DAY_S)
        await store.ledger.book(name, account(name), call(who=account(name)))
    clock.advance(2 * DAY_S)
    await store.prune()
    assert await store.ledger.calls("old") == []
    assert len(await store.ledger.calls("new")) == 1
    assert (await store.ledger.spent_on(first, "person"))["ada"].usd == Decimal("0.1")
    (balance,) = await store.ledger.balances(account("new"), [limit("run")])
    assert balance.spent == Decimal("0.1")
    assert await store.ledger.book_estimates("old") == 1, "a reservation isn't pruned"
    clock.advance(401 * DAY_S)
    await store.prune()
    assert await store.ledger.spent_on(first, "person") == {}
    assert sum((await store.prune()).values()) == 0
    await store.close()


async def test_a_bot_that_starts_alone_books_what_the_killed_one_had_reserved(tmp_path: Path, clock: Clock) -> None:
    url = f"sqlite:///{tmp_path / 'gibil.db'}"
    killed = await open_store(url, clock=clock)
    await reserve(killed.ledger, "a")
    store = await open_store(url, exclusive=True, clock=clock)
    assert (await store.ledger.spent("run-1")).usd == Decimal("0.4")
    await store.close()
    await killed.close()
