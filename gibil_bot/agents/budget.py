"""Budgets: which limits an agent task has, and what the proxy asks before each call of a model, and tells after it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from msgspec.structs import replace

from gibil_bot.agent_task import Account, AgentPlan, Balance, Limit, Measure, ModelCall, Price, Scope, Spent, Usage
from gibil_bot.agents.prices import Prices, affordable_output, cost, worst_cost
from gibil_bot.errors import BudgetExceeded
from gibil_bot.humanize import dollars, duration
from gibil_bot.model import Source
from gibil_bot.model_settings import Budgets, ModelSettings
from gibil_bot.ports import Ledger

CALLS_OF_RUN = 5000
"""Maximum number of calls in one run. Calls that fail cost nothing, and a program may repeat them forever."""
WAIT_S = 120.0
"""How long a call waits for what calls in progress have reserved."""
_POLL_S = 1.0
"""How often a waiting call looks for the writes of other processes."""
_WORTHWHILE_TOKENS = 4096
"""A call whose output would have to be shorter than this waits for calls in progress instead."""
_MOST_TOKENS, _MOST_USD = 10**12, Decimal(10**6)
"""Of one call. A gateway may report any number."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What a call may use."""

    id: str
    max_output_tokens: int


class TaskBudget(Protocol):
    """The budget of one agent task (or of one attempt of it). The smallest of all limits that concern it decides.

    The proxy calls `reserve` before a call goes to the vendor, and exactly one of `book` and `release` afterwards, also if
    the call is cancelled. Several calls may be open at a time.
    """

    async def reserve(
        self, model: str, *, input_tokens: int, max_output_tokens: int, least_output_tokens: int = 1
    ) -> Reservation:
        """Reserve the price of a call at its worst, durably, with as much of the output as fits into the budget.

        The proxy lowers a request's limit to it, so that a budget isn't exhausted by output that a call will never have. Waits
        for calls in progress if only what they reserved, and may not use, is missing. Raises BudgetExceeded with the limit's
        name, its number and what was spent if less than `least_output_tokens` fit; UnknownModelPrice if the model has no price.
        """

    async def book(self, reservation: Reservation, call: ModelCall) -> Decimal:
        """Replace the reservation by what the call used, durably; return its price. `call.usd` is ignored."""

    async def release(self, reservation: Reservation, call: ModelCall) -> None:
        """End a reservation whose call cost nothing, and store the record of the call."""

    async def refused(self, call: ModelCall) -> None:
        """Store the record of a call that never went to the vendor."""


class LedgerBudget:
    """TaskBudget over a ledger. It also counts machine time, from its creation to `close`."""

    def __init__(
        self,
        ledger: Ledger,
        account: Account,
        limits: Sequence[Limit],
        price_of: Callable[[str], Awaitable[Price]],
        *,
        wait_s: float = WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`price_of(model)` raises UnknownModelPrice."""
        self._ledger, self._account, self._limits, self._price_of = ledger, account, tuple(limits), price_of
        self._wait_s, self._clock = wait_s, clock
        self._counted_to = clock()
        self._prices: dict[str, Price] = {}
        """Of the open reservations."""
        self._undoing: set[asyncio.Task[None]] = set()

    async def reserve(
        self, model: str, *, input_tokens: int, max_output_tokens: int, least_output_tokens: int = 1
    ) -> Reservation:
        price = await self._price_of(model)
        reservation = secrets.token_hex(16)
        changed = self._ledger.changed()
        until = self._clock() + self._wait_s
        seconds = self._uncounted()
        output = max_output_tokens
        # All of the output is tried first, because it usually fits, and then one transaction of the ledger is enough.
        while exceeded := await self._reserve(reservation, price, input_tokens, output, seconds):
            seconds = 0.0  # once, because each write wakes the waiting calls, this one included
            fits = max(least_output_tokens, _fitting(exceeded, price, input_tokens, max_output_tokens))
            if fits < output:
                output = fits
                continue
            left_s = until - self._clock()
            if left_s <= 0 or any(balance.is_final for balance in exceeded):
                raise refusal(exceeded, self._account)
            await changed.wait(min(left_s, _POLL_S))
        self._prices[reservation] = price
        return Reservation(reservation, output)

    async def book(self, reservation: Reservation, call: ModelCall) -> Decimal:
        price = self._prices.pop(reservation.id, None) or await self._price_of(call.model)
        usage = _bounded(call.usage)
        usd = min(cost(price, usage), _MOST_USD)
        await asyncio.shield(self._ledger.book(reservation.id, self._account, self._of_account(call, usage, usd)))
        return usd

    async def release(self, reservation: Reservation, call: ModelCall) -> None:
        self._prices.pop(reservation.id, None)
        await asyncio.shield(self._ledger.book(reservation.id, self._account, self._of_account(call, Usage(), Decimal(0))))

    async def refused(self, call: ModelCall) -> None:
        await self._ledger.refused(self._account, self._of_account(call, Usage(), Decimal(0)))

    async def balances(self) -> list[Balance]:
        """Return how much of each limit is used, for a report while the task runs."""
        return await self._ledger.balances(self._account, self._limits)

    async def spent(self) -> Spent:
        """Return what this attempt spent."""
        return await self._ledger.spent(self._account.run_id, self._account.task, self._account.attempt)

    async def seconds_left(self) -> float | None:
        """Return how much machine time is left; None: there is no limit."""
        left = [float(each.left) for each in await self.balances() if each.limit.measure == "seconds"]
        return max(0.0, min(left) - (self._clock() - self._counted_to)) if left else None

    async def close(self) -> Spent:
        """Book the machine time since the last call; return what this attempt spent. Safe to repeat."""
        if self._undoing:
            await asyncio.wait(self._undoing)
        await asyncio.shield(self._ledger.add_time(self._account, self._uncounted()))
        return await self.spent()

    async def _reserve(
        self, reservation: str, price: Price, input_tokens: int, output_tokens: int, seconds: float
    ) -> list[Balance]:
        """Reserve once. If it is cancelled, what was reserved nevertheless is cancelled as well."""
        usd = min(worst_cost(price, input_tokens=input_tokens, max_output_tokens=output_tokens), _MOST_USD)
        reserving = asyncio.ensure_future(
            self._ledger.reserve(
                reservation,
                self._account,
                self._limits,
                usd=usd,
                input_tokens=input_tokens,
                output_tokens=output_tokens,
                seconds=seconds,
            )
        )
        try:
            return await asyncio.shield(reserving)
        except asyncio.CancelledError:
            undoing = asyncio.create_task(self._undo(reserving, reservation))
            self._undoing.add(undoing)
            undoing.add_done_callback(self._undoing.discard)
            raise

    async def _undo(self, reserving: asyncio.Future[list[Balance]], reservation: str) -> None:
        with contextlib.suppress(Exception):  # without an effect, there is nothing to undo
            await reserving
        await self._ledger.cancel(reservation)

    def _uncounted(self) -> float:
        """Return the machine time that isn't booked yet; from now on it counts as booked."""
        now = self._clock()
        seconds, self._counted_to = now - self._counted_to, now
        return seconds

    def _of_account(self, call: ModelCall, usage: Usage, usd: Decimal) -> ModelCall:
        account = self._account
        return replace(call, run_id=account.run_id, task=account.task, attempt=account.attempt, usage=usage, usd=usd)


class WatchedBudget:
    """A budget that tells when it is used, and when it is exceeded."""

    def __init__(self, budget: TaskBudget, on_change: Callable[[], None]) -> None:
        self._budget = budget
        self._on_change = on_change
        self.exceeded = asyncio.Event()
        self.limit = ""
        """The message of the first call that was rejected for a budget, also by an earlier process."""
        self.spent = Spent()
        """Since this process works on the task."""

    async def reserve(
        self, model: str, *, input_tokens: int, max_output_tokens: int, least_output_tokens: int = 1
    ) -> Reservation:
        try:
            return await self._budget.reserve(
                model,
                input_tokens=input_tokens,
                max_output_tokens=max_output_tokens,
                least_output_tokens=least_output_tokens,
            )
        except BudgetExceeded as error:
            self.limit = self.limit or error.message
            self.exceeded.set()
            raise

    async def book(self, reservation: Reservation, call: ModelCall) -> Decimal:
        usd = await self._budget.book(reservation, call)
        self._add(Spent(usd=usd, usage=call.usage, calls=1))
        return usd

    async def release(self, reservation: Reservation, call: ModelCall) -> None:
        await self._budget.release(reservation, call)

    async def refused(self, call: ModelCall) -> None:
        await self._budget.refused(call)
        self._add(Spent(refused=1))

    def _add(self, spent: Spent) -> None:
        self.spent += spent
        self._on_change()


def limits_of(budgets: Budgets, agent: AgentPlan, *, counts_turns: bool = False) -> tuple[Limit, ...]:
    """Return the limits of an agent task: the operator's, and those of the workflow that are smaller. Attempts share them.

    `counts_turns`: its program doesn't count its turns, so that its calls are limited instead.
    """
    limits: list[Limit] = []

    def add(scope: Scope, measure: Measure, most: Decimal | int | None, remedy: str) -> None:
        if most is not None:
            limits.append(Limit(scope=scope, measure=measure, most=Decimal(most), remedy=remedy))

    asked, allowed = agent.budget_usd, budgets.task_usd
    if asked is not None and (allowed is None or asked < allowed):
        up_to = f", up to GIBIL_BUDGET_TASK ({dollars(allowed)})" if allowed is not None else ""
        add("task", "usd", asked, f"raise `budget:` in the workflow{up_to}")
    else:
        add("task", "usd", allowed, "the operator can raise GIBIL_BUDGET_TASK")
    add("task", "tokens", agent.max_tokens, "raise `max-tokens:` in the workflow")
    if counts_turns:
        add("task", "calls", agent.max_turns * agent.rounds * agent.attempts, "raise `max-turns:` in the workflow")
    add("run", "usd", budgets.run_usd, "the operator can raise GIBIL_BUDGET_RUN")
    add("run", "tokens", budgets.run_tokens, "the operator can raise GIBIL_BUDGET_TOKENS")
    add("run", "calls", CALLS_OF_RUN, "split the work into several runs")
    add("person", "usd", budgets.person_usd, "try again tomorrow, or the operator can raise GIBIL_BUDGET_PERSON")
    add("repository", "usd", budgets.day_usd, "try again tomorrow, or the operator can raise GIBIL_BUDGET_DAY")
    add("repository", "seconds", budgets.day_seconds, "try again tomorrow, or the operator can raise GIBIL_BUDGET_TIME")
    return tuple(limits)


def summary_of(limits: Sequence[Limit]) -> str:
    """Return the limits of money and of tokens of a task and its run in words: 2.00 USD (task), 5.00 USD (run)."""
    shown = [limit for limit in limits if limit.measure in ("usd", "tokens") and limit.scope in ("task", "run")]
    return ", ".join(f"{_amount(limit.most, limit.measure)} ({limit.scope})" for limit in shown)


def account_of(run_id: str, source: Source, task: int, attempt: int = 0) -> Account:
    """Return who spends: the requester of the run, in its repository."""
    return Account(
        run_id=run_id,
        task=task,
        attempt=attempt,
        person=source.actor,
        repository_id=source.repository.id,
        repository=source.repository.full_name,
    )


def open_budget(
    ledger: Ledger,
    models: ModelSettings,
    prices: Prices,
    account: Account,
    agent: AgentPlan,
    vendor: str,
    *,
    counts_turns: bool = False,
) -> LedgerBudget:
    """Return the budget of a task or of one attempt. `vendor`: whose key pays, as in Engine.provider."""

    async def price_of(model: str) -> Price:
        return await prices.of(vendor, model, url=models.urls[vendor])

    return LedgerBudget(ledger, account, limits_of(models.budgets, agent, counts_turns=counts_turns), price_of)


def refusal(exceeded: Sequence[Balance], account: Account) -> BudgetExceeded:
    """Return the error for the limit that decides: of those that waiting doesn't help against, the one with the least left."""
    final = [balance for balance in exceeded if balance.is_final] or list(exceeded)
    decisive = min(final, key=_share_left)
    return BudgetExceeded(describe(decisive, account), limit=f"{decisive.limit.scope}: {_NOUNS[decisive.limit.measure]}")


def describe(balance: Balance, account: Account) -> str:
    """Return one sentence: the limit's name, its number, what was spent, and what to do."""
    limit = balance.limit
    parts = [f"the budget of {_subject(limit, account)} is {_amount(limit.most, limit.measure)}", _spent(balance)]
    if balance.reserved and not balance.is_final:
        parts.append(f"calls in progress may use {_amount(balance.reserved, limit.measure)}")
    if balance.needed and limit.measure != "calls" and balance.spent < limit.most:
        parts.append(f"the next call may use {_amount(balance.needed, limit.measure)}")
    return f"{', '.join(parts[:-1])}, and {parts[-1]}; {limit.remedy}"


def _subject(limit: Limit, account: Account) -> str:
    return {
        "task": "this task",
        "run": "this run",
        "person": f"@{account.person} today (UTC)",
        "repository": f"{account.repository} today (UTC)",
    }[limit.scope]


_NOUNS: dict[Measure, str] = {"usd": "USD", "tokens": "tokens", "calls": "calls", "seconds": "machine time"}


def _spent(balance: Balance) -> str:
    measure = balance.limit.measure
    verb = {"usd": "spent", "tokens": "used", "calls": "made", "seconds": "used"}[measure]
    shown = {"seconds": duration(float(balance.spent)), "usd": dollars(balance.spent)}.get(measure, f"{int(balance.spent):,}")
    return f"{shown} {'is' if shown == '1' or measure == 'seconds' else 'are'} {verb}"


def _amount(amount: Decimal, measure: Measure) -> str:
    match measure:
        case "usd":
            return dollars(amount)
        case "seconds":
            return f"{duration(float(amount))} of machine time"
        case "tokens":
            return f"{int(amount):,} tokens"
        case "calls":
            return "1 call of a model" if amount == 1 else f"{int(amount):,} calls of a model"


def _share_left(balance: Balance) -> tuple[Decimal, Decimal]:
    """Sort limits of different measures by the share that is left."""
    left = balance.limit.most - balance.spent
    return (left / balance.limit.most if balance.limit.most else Decimal(0), left)


def _fitting(exceeded: Sequence[Balance], price: Price, input_tokens: int, max_output_tokens: int) -> int:
    """Return how much output fits into the limits that a call would exceed; negative if its input doesn't."""

    def least(left: Callable[[Balance], Decimal]) -> int:
        return min(_output_that_fits(each, left(each), price, input_tokens, max_output_tokens) for each in exceeded)

    fits = least(lambda each: each.left)
    if fits >= min(_WORTHWHILE_TOKENS, max_output_tokens):
        return fits
    return least(lambda each: each.left + each.reserved)


def _output_that_fits(balance: Balance, left: Decimal, price: Price, input_tokens: int, max_output_tokens: int) -> int:
    match balance.limit.measure:
        case "usd":
            fits = affordable_output(price, left, input_tokens=input_tokens)
            return max_output_tokens if fits is None else min(max_output_tokens, fits)
        case "tokens":
            return min(max_output_tokens, int(left) - input_tokens)
        case "calls" | "seconds":
            return max_output_tokens if left > 0 else -1


def _bounded(usage: Usage) -> Usage:
    def bounded(count: int) -> int:
        return min(max(count, 0), _MOST_TOKENS)

    return Usage(
        input=bounded(usage.input),
        cache_read=bounded(usage.cache_read),
        cache_write_5m=bounded(usage.cache_write_5m),
        cache_write_1h=bounded(usage.cache_write_1h),
        output=bounded(usage.output),
        is_estimated=usage.is_estimated,
    )
