"""Budgets of agent tasks: which limits a task has, how an exceeded one is reported, and what the ledger has afterwards."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from msgspec import convert
from msgspec.structs import replace

from gibil_bot.agent_task import Account, AgentPlan, Balance, Limit, Measure, ModelCall, Price, Rates, Scope, Spent, Usage
from gibil_bot.agents.budget import CALLS_OF_RUN, LedgerBudget, Reservation, describe, limits_of, open_budget, refusal
from gibil_bot.agents.prices import Prices
from gibil_bot.errors import BudgetExceeded, UnknownModelPrice
from gibil_bot.model_settings import Budgets, ModelSettings
from gibil_bot.runs import ledger_rules
from tests.doubles.ledger import MemoryLedger
from tests.doubles.patience import patient

ADA = Account(run_id="run-1", task=2, person="ada", repository_id=1, repository="ada/engine")
FLAT = Price(base=Rates(**dict.fromkeys(("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"), Decimal(1000))))
"""0.001 USD per token."""


def limit(most: str = "1", scope: Scope = "run", measure: Measure = "usd", remedy: str = "raise it") -> Limit:
    return Limit(scope=scope, measure=measure, most=Decimal(most), remedy=remedy)


class Counted(MemoryLedger):
    """Counts how often it is asked."""

    asked = 0

    async def reserve(self, *args: object, **kwargs: object) -> list[Balance]:
        self.asked += 1
        return await super().reserve(*args, **kwargs)  # type: ignore[arg-type]


class Seconds:
    """A monotonic clock that moves only when a test advances it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def flat(model: str) -> Price:
    return FLAT


def budget(
    ledger: MemoryLedger, *limits: Limit, who: Account = ADA, wait_s: float = 0.0, clock: Seconds | None = None
) -> LedgerBudget:
    return LedgerBudget(ledger, who, limits or (limit(),), flat, wait_s=wait_s, clock=clock or Seconds())


def call(**usage: int) -> ModelCall:
    return ModelCall(
        run_id="not this one",
        task=99,
        started_at=datetime(2026, 11, 27, tzinfo=UTC),
        protocol="anthropic",
        model="m",
        status=200,
        usage=convert(usage, Usage),
        usd=Decimal(99),
    )


NONE = Budgets(task_usd=None, run_usd=None, person_usd=None, day_usd=None, run_tokens=None, day_seconds=None)


@pytest.mark.parametrize(
    ("asked", "allowed", "most", "remedy"),
    [
        (None, None, None, ""),
        (None, "2", "2", "the operator can raise GIBIL_BUDGET_TASK"),
        ("1.50", "2", "1.50", "raise `budget:` in the workflow, up to GIBIL_BUDGET_TASK (2.00 USD)"),
        ("2", "2", "2", "the operator can raise GIBIL_BUDGET_TASK"),
        ("9", "2", "2", "the operator can raise GIBIL_BUDGET_TASK"),
        ("9", None, "9", "raise `budget:` in the workflow"),
        ("0", "2", "0", "raise `budget:` in the workflow, up to GIBIL_BUDGET_TASK (2.00 USD)"),
    ],
)
def test_the_smaller_budget_of_a_task_wins(asked: str | None, allowed: str | None, most: str | None, remedy: str) -> None:
    agent = AgentPlan(engine="claude", prompt="fix", budget_usd=Decimal(asked) if asked else None)
    budgets = Budgets(task_usd=Decimal(allowed) if allowed else None)
    found = [one for one in limits_of(budgets, agent) if (one.scope, one.measure) == ("task", "usd")]
    assert found == ([limit(most, "task", remedy=remedy)] if most else [])


def test_the_limits_of_a_task() -> None:
    agent = AgentPlan(engine="claude", prompt="fix", max_tokens=1000)
    assert [(one.scope, one.measure, int(one.most)) for one in limits_of(Budgets(), agent)] == [
        ("task", "usd", 2),
        ("task", "tokens", 1000),
        ("run", "usd", 5),
        ("run", "tokens", 20_000_000),
        ("run", "calls", CALLS_OF_RUN),
        ("person", "usd", 20),
        ("repository", "usd", 50),
        ("repository", "seconds", 8 * 3600),
    ]
    assert [(one.scope, one.measure) for one in limits_of(NONE, AgentPlan(engine="claude", prompt="fix"))] == [("run", "calls")]


@pytest.mark.parametrize(
    ("balance", "text"),
    [
        (
            Balance(limit=limit("2", remedy="raise GIBIL_X"), spent=Decimal("1.97"), needed=Decimal("0.25")),
            "the budget of this run is 2.00 USD, 1.97 USD are spent, and the next call may use 0.25 USD; raise GIBIL_X",
        ),
        (
            Balance(limit=limit("2", "task"), spent=Decimal("2.0000001"), needed=Decimal("0.25")),
            "the budget of this task is 2.00 USD, and 2.00 USD are spent; raise it",
        ),
        (
            Balance(limit=limit("20", "person"), spent=Decimal("0.0042"), reserved=Decimal("19.99"), needed=Decimal("0.1")),
            "the budget of @ada today (UTC) is 20.00 USD, 0.0042 USD are spent, calls in progress may use 19.99 USD, "
            "and the next call may use 0.10 USD; raise it",
        ),
        (
            Balance(limit=limit("1000000", "run", "tokens"), spent=Decimal(990_000), needed=Decimal(20_000)),
            "the budget of this run is 1,000,000 tokens, 990,000 are used, and the next call may use 20,000 tokens; raise it",
        ),
        (
            Balance(limit=limit("1", "run", "calls"), spent=Decimal(1), needed=Decimal(1)),
            "the budget of this run is 1 call of a model, and 1 is made; raise it",
        ),
        (
            Balance(limit=limit("28800", "repository", "seconds"), spent=Decimal(28_860)),
            "the budget of ada/engine today (UTC) is 8 h 0 min of machine time, and 8 h 1 min is used; raise it",
        ),
    ],
)
def test_an_exceeded_budget_is_reported_with_its_numbers_and_what_to_do(balance: Balance, text: str) -> None:
    assert describe(balance, ADA) == text


def test_the_limit_that_decides_is_the_one_with_the_least_left_that_waiting_doesnt_help_against() -> None:
    half = Balance(limit=limit("10", "person"), spent=Decimal(5), needed=Decimal(6))
    full = Balance(limit=limit("100", "run", "tokens"), spent=Decimal(99), needed=Decimal(6))
    waits = Balance(limit=limit("1", "task"), spent=Decimal("0.999"), reserved=Decimal(1), needed=Decimal("0.001"))
    error = refusal([waits, half, full], ADA)
    assert (error.limit, error.code) == ("run: tokens", "BUDGET")
    assert refusal([waits], ADA).limit == "task: USD"


async def test_the_budget_of_a_task_has_the_prices_of_its_vendor() -> None:
    agent = AgentPlan(engine="claude", prompt="fix", budget_usd=Decimal("0.01"))
    mine = open_budget(MemoryLedger(), ModelSettings(), Prices(), ADA, agent, "anthropic")
    reservation = await mine.reserve("claude-sonnet-4-5", input_tokens=100, max_output_tokens=100)
    assert await mine.book(reservation, call(input=100, output=100)) == Decimal("0.0018")
    assert next(each.spent for each in await mine.balances() if each.limit.scope == "task") == Decimal("0.0018")


async def test_a_call_is_paid_at_its_price() -> None:
    ledger = MemoryLedger()
    mine = budget(ledger)
    reservation = await mine.reserve("m", input_tokens=100, max_output_tokens=200)
    assert (await mine.balances())[0].reserved == Decimal("0.3")
    assert await mine.book(reservation, call(input=10, output=20)) == Decimal("0.03")
    assert await mine.spent() == Spent(usd=Decimal("0.03"), usage=Usage(input=10, output=20), calls=1)
    (stored,) = await ledger.calls("run-1", 2)
    assert (stored.run_id, stored.task, stored.usd) == ("run-1", 2, Decimal("0.03"))


async def test_a_call_that_failed_costs_nothing() -> None:
    mine = budget(MemoryLedger())
    reservation = await mine.reserve("m", input_tokens=100, max_output_tokens=200)
    await mine.release(reservation, replace(call(input=10), status=529))
    await mine.refused(replace(call(), status=402, refused="budget"))
    assert await mine.spent() == Spent(calls=1, refused=1)
    assert (await mine.balances())[0].reserved == 0


async def test_a_call_that_doesnt_fit_is_rejected() -> None:
    mine = budget(MemoryLedger())
    await mine.book(await mine.reserve("m", input_tokens=400, max_output_tokens=400), call(input=400, output=400))
    with pytest.raises(BudgetExceeded) as caught:
        await mine.reserve("m", input_tokens=200, max_output_tokens=100)
    assert caught.value.message == (
        "the budget of this run is 1.00 USD, 0.80 USD are spent, and the next call may use 0.20 USD; raise it"
    )
    assert caught.value.limit == "run: USD"
    with pytest.raises(BudgetExceeded):
        await mine.reserve("m", input_tokens=190, max_output_tokens=100, least_output_tokens=11)
    assert (await mine.reserve("m", input_tokens=190, max_output_tokens=100, least_output_tokens=10)).max_output_tokens == 10


async def test_a_model_without_a_price_is_rejected() -> None:
    prices = Prices()

    async def price_of(model: str) -> Price:
        return await prices.of("anthropic", model)

    mine = LedgerBudget(MemoryLedger(), ADA, (limit(),), price_of)
    with pytest.raises(UnknownModelPrice, match="'claude-unknown' has no known price"):
        await mine.reserve("claude-unknown", input_tokens=1, max_output_tokens=1)


async def test_50_calls_of_parallel_attempts_never_exceed_the_budget_together() -> None:
    ledger = MemoryLedger()
    attempts = [budget(ledger, who=replace(ADA, attempt=index), wait_s=60) for index in range(5)]
    answered = refused = 0

    async def one(mine: LedgerBudget) -> None:
        nonlocal answered, refused
        try:
            reservation = await mine.reserve("m", input_tokens=60, max_output_tokens=40)
        except BudgetExceeded:
            refused += 1
            return
        (balance,) = await mine.balances()
        assert balance.spent + balance.reserved <= 1
        await asyncio.sleep(0)
        await mine.book(reservation, call(input=50, output=10))
        answered += 1

    async with asyncio.timeout(patient(30)):
        await asyncio.gather(*(one(attempts[number % 5]) for number in range(50)))
    assert (answered, refused) == (16, 34)  # 15 · 0.06 + 0.1 fit into 1 USD
    assert (await ledger.spent("run-1", 2)).usd == Decimal("0.96")


async def test_a_call_waits_for_what_another_one_reserved() -> None:
    mine = budget(MemoryLedger(), wait_s=60)
    first = await mine.reserve("m", input_tokens=500, max_output_tokens=400)
    second = asyncio.create_task(mine.reserve("m", input_tokens=500, max_output_tokens=400))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not second.done()
    await mine.book(first, call(input=50))
    async with asyncio.timeout(patient(10)):
        assert await second


async def test_a_waiting_call_asks_again_only_after_a_change() -> None:
    ledger = Counted()
    mine = LedgerBudget(ledger, ADA, (limit(),), flat, wait_s=60)
    await mine.reserve("m", input_tokens=500, max_output_tokens=400)
    waiting = asyncio.create_task(mine.reserve("m", input_tokens=500, max_output_tokens=400))
    for _ in range(100):
        await asyncio.sleep(0)
    assert ledger.asked <= 3  # its own machine time wakes it once
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await mine.close()


async def test_waiting_ends() -> None:
    clock = Seconds()
    ledger = MemoryLedger()
    mine = budget(ledger, wait_s=5, clock=clock)
    await mine.reserve("m", input_tokens=500, max_output_tokens=400)
    second = asyncio.create_task(mine.reserve("m", input_tokens=500, max_output_tokens=400))
    await asyncio.sleep(0)
    clock.now += 5
    await ledger.add_time(ADA, 1)  # wakes it
    with pytest.raises(BudgetExceeded, match=r"0\.00 USD are spent, calls in progress may use 0\.90 USD"):
        async with asyncio.timeout(patient(10)):
            await second


async def test_a_cancelled_call_leaves_no_reservation() -> None:
    class Slow(MemoryLedger):
        """Reserves although its caller has been cancelled, as a database's thread does."""

        def __init__(self) -> None:
            super().__init__()
            self.asked, self.go_on = asyncio.Event(), asyncio.Event()

        async def reserve(self, *args: object, **kwargs: object) -> list[Balance]:
            self.asked.set()
            await self.go_on.wait()
            return await super().reserve(*args, **kwargs)  # type: ignore[arg-type]

    ledger = Slow()
    mine = budget(ledger)
    asking = asyncio.create_task(mine.reserve("m", input_tokens=100, max_output_tokens=100))
    await ledger.asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    ledger.go_on.set()
    assert await mine.close() == Spent(seconds=0.0)
    assert (await mine.balances())[0].reserved == 0
    assert await ledger.calls("run-1") == []


@pytest.mark.parametrize(
    ("limits", "asked", "fits"),
    [
        ((limit("1"),), 800, 800),
        ((limit("1"),), 5000, 900),
        ((limit("100"), limit("0.5", "task")), 5000, 400),
        ((limit("0.05"),), 5000, 0),
        ((limit("150", measure="tokens"),), 5000, 50),
        ((limit("1", measure="calls"),), 5000, 5000),
        ((limit("0", measure="calls"),), 5000, 0),
    ],
)
async def test_how_much_output_a_budget_affords(limits: tuple[Limit, ...], asked: int, fits: int) -> None:
    ledger = Counted()
    mine = budget(ledger, *limits)
    if fits:
        assert (await mine.reserve("m", input_tokens=100, max_output_tokens=asked)).max_output_tokens == fits
        assert ledger.asked == (1 if fits == asked else 2)
        assert sum(each.is_exceeded for each in await mine.balances()) == 0
    else:
        with pytest.raises(BudgetExceeded):
            await mine.reserve("m", input_tokens=100, max_output_tokens=asked)
        assert (await mine.balances())[0].reserved == 0


async def test_a_call_rather_waits_than_is_cut_short_by_calls_in_progress() -> None:
    mine = budget(MemoryLedger(), limit("10"), wait_s=60)
    first = await mine.reserve("m", input_tokens=1000, max_output_tokens=1000)
    cut_short = await mine.reserve("m", input_tokens=1000, max_output_tokens=32_000)
    assert cut_short.max_output_tokens == 7000
    waiting = asyncio.create_task(mine.reserve("m", input_tokens=1000, max_output_tokens=32_000))
    for _ in range(20):
        await asyncio.sleep(0)
    await mine.book(first, call(input=100))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    await mine.book(cut_short, call(input=100))
    async with asyncio.timeout(patient(10)):
        assert (await waiting).max_output_tokens == 8800


async def test_numbers_from_a_gateway_are_bounded() -> None:
    mine = budget(MemoryLedger())
    for usage in ({"input": 10**30}, {"input": -5, "output": -(10**30)}):
        known = usage["input"] > 0
        reservation = await mine.reserve("m", input_tokens=0, max_output_tokens=0) if known else Reservation("another", 0)
        assert await mine.book(reservation, call(**usage)) == (Decimal(10**6) if usage["input"] > 0 else 0)
    assert (await mine.spent()).usd == 10**6


async def test_machine_time_is_counted_with_each_call_and_at_the_end() -> None:
    ledger, clock = MemoryLedger(), Seconds()
    mine = budget(ledger, limit("60", "repository", "seconds"), clock=clock)
    other = budget(ledger, limit("60", "repository", "seconds"), who=replace(ADA, attempt=1), clock=clock)
    assert await mine.seconds_left() == 60
    clock.now += 10
    await mine.reserve("m", input_tokens=0, max_output_tokens=0)
    clock.now += 10
    assert await mine.seconds_left() == 40
    assert (await mine.close()).seconds == 20
    assert (await mine.close()).seconds == 20
    assert (await other.close()).seconds == 20
    clock.now += 30
    with pytest.raises(BudgetExceeded, match="1 min 0 s of machine time, and 1 min 10 s is used"):
        await mine.reserve("m", input_tokens=0, max_output_tokens=0)


async def test_a_free_model_is_limited_by_its_tokens() -> None:
    async def free(model: str) -> Price:
        return Price(base=Rates(**dict.fromkeys(Rates.__struct_fields__, Decimal(0))))

    mine = LedgerBudget(MemoryLedger(), ADA, (limit("0"), limit("100", measure="tokens")), free, wait_s=0)
    await mine.book(await mine.reserve("m", input_tokens=50, max_output_tokens=50), call(input=50, output=50))
    with pytest.raises(BudgetExceeded) as caught:
        await mine.reserve("m", input_tokens=1, max_output_tokens=0)
    assert caught.value.limit == "run: tokens"


def test_each_local_checkout_has_its_own_sum_of_the_day() -> None:
    one, other = (
        Account(run_id="r", task=0, person="ada", repository_id=0, repository=name) for name in ("ada/engine", "ada/other")
    )
    keys = {ledger_rules.sum_keys(each, "2026-11-27")["repository"] for each in (one, other)}
    assert len(keys) == 2
