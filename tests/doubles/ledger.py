"""ports.Ledger in memory, by the rules of the database's."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal

from gibil_bot.agent_task import Account, Balance, Limit, ModelCall, Spent
from gibil_bot.runs import ledger_rules as rules
from gibil_bot.runs.ledger_rules import Amounts, SumKey, SumScope
from gibil_bot.runs.signals import Signals, Subscription


@dataclass(kw_only=True)
class _Call:
    account: Account
    day: str
    at: float
    state: Literal["reserved", "estimated", "booked", "refused"] = "reserved"
    usd: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    call: ModelCall | None = None

    @property
    def counted(self) -> Amounts:
        """What it adds to the sums at present."""
        if self.call is None:
            return rules.reserved(self.usd, self.input_tokens + self.output_tokens)
        return Amounts(refused=1) if self.state == "refused" else rules.booked(self.call)


class MemoryLedger:
    """ports.Ledger for one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._calls: dict[str, _Call] = {}
        """By reservation, in the order of their beginning."""
        self._sums: dict[SumKey, Amounts] = {}
        self._names: dict[SumKey, str] = {}
        self._signals = Signals()

    async def reserve(
        self,
        reservation: str,
        account: Account,
        limits: Sequence[Limit],
        *,
        usd: Decimal,
        input_tokens: int,
        output_tokens: int,
        seconds: float = 0.0,
    ) -> list[Balance]:
        if reservation in self._calls:
            return []
        now = self._clock()
        for one in self._calls.values():
            if one.state == "reserved" and one.at <= now - rules.RESERVED_S:
                self._book_estimate(one)
        if seconds > 0:
            await self.add_time(account, seconds)
        tokens = input_tokens + output_tokens
        needed = rules.balances(limits, self._of_account(account), usd=usd, tokens=tokens, calls=1)
        if exceeded := [balance for balance in needed if balance.is_exceeded]:
            return exceeded
        self._calls[reservation] = one = _Call(
            account=account,
            day=rules.day_of(now),
            at=now,
            usd=rules.nanos(usd),
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        self._add(account, one.day, one.counted)
        return []

    async def book(self, reservation: str, account: Account, call: ModelCall) -> None:
        one = self._calls.get(reservation)
        if one is None:
            now = self._clock()
            self._calls[reservation] = one = _Call(account=account, day=rules.day_of(now), at=now, state="booked", call=call)
            self._add(account, one.day, one.counted)
        elif one.state != "booked":
            self._end(one, "booked", call)

    async def cancel(self, reservation: str) -> None:
        one = self._calls.get(reservation)
        if one is not None and one.state == "reserved":
            del self._calls[reservation]
            self._add(one.account, one.day, Amounts() - one.counted)

    async def refused(self, account: Account, call: ModelCall) -> None:
        now = self._clock()
        one = _Call(account=account, day=rules.day_of(now), at=now, state="refused", call=call)
        if self._of_account(account)["task"].refused < rules.MOST_REFUSED:
            self._calls[secrets.token_hex(16)] = one
        self._add(account, one.day, one.counted)

    async def add_time(self, account: Account, seconds: float) -> None:
        self._add(account, rules.day_of(self._clock()), Amounts(milliseconds=round(seconds * 1000)))

    async def book_estimates(self, run_id: str) -> int:
        found = [one for one in self._calls.values() if one.state == "reserved" and one.account.run_id == run_id]
        for one in found:
            self._book_estimate(one)
        return len(found)

    async def balances(self, account: Account, limits: Sequence[Limit]) -> list[Balance]:
        return rules.balances(limits, self._of_account(account))

    async def spent(self, run_id: str, task: int | None = None, attempt: int | None = None) -> Spent:
        return self._sums.get(rules.spent_key(run_id, task, attempt), Amounts()).spent

    async def spent_on(self, day: date, scope: Literal["person", "repository"]) -> dict[str, Spent]:
        found: dict[str, Spent] = {}
        for key, sums in self._sums.items():
            if key.scope == scope and key.day == day.isoformat():
                found[self._names[key]] = found.get(self._names[key], Spent()) + sums.spent
        return dict(sorted(found.items(), key=lambda item: (-item[1].usd, item[0])))

    async def calls(self, run_id: str, task: int | None = None) -> list[ModelCall]:
        found = [
            one.call
            for one in self._calls.values()
            if one.call is not None and one.account.run_id == run_id and task in (None, one.account.task)
        ]
        return found[: rules.MOST_CALLS]

    def changed(self) -> Subscription:
        return self._signals.subscribe("ledger")

    def _of_account(self, account: Account) -> dict[SumScope, Amounts]:
        keys = rules.sum_keys(account, rules.day_of(self._clock()))
        return {scope: self._sums.get(key, Amounts()) for scope, key in keys.items()}

    def _book_estimate(self, one: _Call) -> None:
        self._end(one, "estimated", rules.estimated_call(one.account, one.at, one.usd, one.input_tokens, one.output_tokens))

    def _end(self, one: _Call, state: Literal["estimated", "booked"], call: ModelCall) -> None:
        before = one.counted
        one.state, one.call = state, call
        self._add(one.account, one.day, one.counted - before)

    def _add(self, account: Account, day: str, amounts: Amounts) -> None:
        for scope, key in rules.sum_keys(account, day).items():
            self._sums[key] = self._sums.get(key, Amounts()) + amounts
            self._names[key] = rules.name_of(account, scope)
        self._signals.notify(["ledger"])
