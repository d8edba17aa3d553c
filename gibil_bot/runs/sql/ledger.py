"""The SQL of the ledger: reservations, calls of models, and their sums. The class is the interface, the functions its SQL.

Every function is one transaction, or one read.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import msgspec

from gibil_bot.agent_task import Account, Balance, Limit, ModelCall, Spent, Usage
from gibil_bot.runs import ledger_rules as rules
from gibil_bot.runs.ledger_rules import Amounts, SumKey, SumScope
from gibil_bot.runs.signals import Subscription
from gibil_bot.runs.sql.connection import Connection, Database

_encode = msgspec.json.Encoder(decimal_format="string").encode
decode_call = msgspec.json.Decoder(ModelCall).decode

_COUNTS = "input, cache_read, cache_write_5m, cache_write_1h, output"
_ACCOUNT = "run_id, task, attempt, person, repository_id, repository"
_SUMS = f"usd, {_COUNTS}, estimated, calls, refused, milliseconds, reserved_usd, reserved_tokens, reserved_calls"
_ADDED = ", ".join(f"{name} = model_sums.{name} + excluded.{name}" for name in _SUMS.split(", "))
_EXPIRED_STEP = 100
"""Maximum number of expired reservations that one reservation books."""


class SqlLedger:
    """ports.Ledger."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
        job = partial(
            reserve,
            reservation=reservation,
            account=account,
            limits=limits,
            usd=usd,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            seconds=seconds,
            now=self._database.now(),
        )
        return await self._database.write(job)

    async def book(self, reservation: str, account: Account, call: ModelCall) -> None:
        await self._database.write(partial(book, reservation=reservation, account=account, call=call, now=self._database.now()))

    async def cancel(self, reservation: str) -> None:
        await self._database.write(partial(cancel, reservation=reservation, now=self._database.now()))

    async def refused(self, account: Account, call: ModelCall) -> None:
        await self._database.write(partial(refused, account=account, call=call, now=self._database.now()))

    async def add_time(self, account: Account, seconds: float) -> None:
        await self._database.write(partial(add_time, account=account, seconds=seconds, now=self._database.now()))

    async def book_estimates(self, run_id: str) -> int:
        return await self._database.write(partial(book_estimates, now=self._database.now(), run_id=run_id))

    async def balances(self, account: Account, limits: Sequence[Limit]) -> list[Balance]:
        day = rules.day_of(self._database.now())
        return await self._database.read(partial(balances, account=account, limits=limits, day=day))

    async def spent(self, run_id: str, task: int | None = None, attempt: int | None = None) -> Spent:
        return await self._database.read(partial(spent, key=rules.spent_key(run_id, task, attempt)))

    async def spent_on(self, day: date, scope: Literal["person", "repository"]) -> dict[str, Spent]:
        return await self._database.read(partial(spent_on, day=day.isoformat(), scope=scope))

    async def calls(self, run_id: str, task: int | None = None) -> list[ModelCall]:
        return await self._database.read(partial(calls, run_id=run_id, task=task))

    def changed(self) -> Subscription:
        return self._database.changed("ledger")


async def reserve(
    db: Connection,
    topics: set[str],
    reservation: str,
    account: Account,
    limits: Sequence[Limit],
    usd: Decimal,
    input_tokens: int,
    output_tokens: int,
    seconds: float,
    now: float,
) -> list[Balance]:
    expired = await db.rows(
        f"select {_ACCOUNT}, id from model_calls where state = 'reserved' and at <= ? order by at limit ?",  # noqa: S608
        (now - rules.RESERVED_S, _EXPIRED_STEP),
    )
    await _lock(db, account, *(_account(row) for row in expired))
    if await _row(db, reservation) is not None:
        return []
    for row in expired:
        await _book_estimate(db, topics, row[-1], now)
    if seconds > 0:
        await _add(db, topics, account, rules.day_of(now), _machine_time(seconds), now)
    day = rules.day_of(now)
    needed = rules.balances(
        limits, await _sums(db, account, limits, day), usd=usd, tokens=input_tokens + output_tokens, calls=1
    )  # fmt: skip
    if exceeded := [balance for balance in needed if balance.is_exceeded]:
        return exceeded
    amount = rules.nanos(usd)
    await db.run(
        f"insert into model_calls (id, state, {_ACCOUNT}, day, usd, input, output, at) "  # noqa: S608
        "values (?, 'reserved', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (reservation, *_account_values(account), day, amount, input_tokens, output_tokens, now),
    )
    await _add(db, topics, account, day, rules.reserved(amount, input_tokens + output_tokens), now)
    return []


async def book(db: Connection, topics: set[str], reservation: str, account: Account, call: ModelCall, now: float) -> None:
    await _lock(db, account)
    row = await _row(db, reservation)
    if row is None:
        await _insert(db, reservation, "booked", account, rules.day_of(now), call, now)
        await _add(db, topics, account, rules.day_of(now), rules.booked(call), now)
    elif row.state != "booked":
        before = rules.reserved(row.usd, row.tokens) if row.state == "reserved" else rules.booked(row.call)
        await _end(db, reservation, "booked", call)
        await _add(db, topics, row.account, row.day, rules.booked(call) - before, now)


async def cancel(db: Connection, topics: set[str], reservation: str, now: float) -> None:
    found = await db.row(f"select {_ACCOUNT} from model_calls where id = ?", (reservation,))  # noqa: S608
    if found is None:
        return
    await _lock(db, _account(found))
    row = await _row(db, reservation)
    if row is not None and row.state == "reserved":
        await db.run("delete from model_calls where id = ?", (reservation,))
        await _add(db, topics, row.account, row.day, Amounts() - rules.reserved(row.usd, row.tokens), now)


async def refused(db: Connection, topics: set[str], account: Account, call: ModelCall, now: float) -> None:
    day = rules.day_of(now)
    await _lock(db, account)
    if (await _sum(db, rules.sum_keys(account, day)["task"])).refused < rules.MOST_REFUSED:
        await _insert(db, secrets.token_hex(16), "refused", account, day, call, now)
    await _add(db, topics, account, day, Amounts(refused=1), now)


async def add_time(db: Connection, topics: set[str], account: Account, seconds: float, now: float) -> None:
    await _lock(db, account)
    await _add(db, topics, account, rules.day_of(now), _machine_time(seconds), now)


async def book_estimates(db: Connection, topics: set[str], now: float, run_id: str | None = None) -> int:
    """Book the reservations of a run, or all of them, at their estimates; return their number."""
    found = await db.rows(
        f"select {_ACCOUNT}, id from model_calls where state = 'reserved' and (cast(?1 as text) is null or run_id = ?1)",  # noqa: S608
        (run_id,),
    )
    await _lock(db, *(_account(row) for row in found))
    return sum([await _book_estimate(db, topics, row[-1], now) for row in found])


async def balances(db: Connection, account: Account, limits: Sequence[Limit], day: str) -> list[Balance]:
    return rules.balances(limits, await _sums(db, account, limits, day))


async def spent(db: Connection, key: SumKey) -> Spent:
    return (await _sum(db, key)).spent


async def spent_on(db: Connection, day: str, scope: str) -> dict[str, Spent]:
    rows = await db.rows(
        f"select name, {_SUMS} from model_sums where day = ? and scope = ? order by usd desc, name",  # noqa: S608
        (day, scope),
    )
    found: dict[str, Spent] = {}
    for name, *amounts in rows:
        found[name] = found.get(name, Spent()) + _amounts(amounts).spent
    return found


async def calls(db: Connection, run_id: str, task: int | None) -> list[ModelCall]:
    rows = await db.rows(
        "select call from model_calls where run_id = ?1 and (cast(?2 as bigint) is null or task = ?2) and state <> 'reserved' "
        "order by seq limit ?3",
        (run_id, task, rules.MOST_CALLS),
    )
    return [decode_call(row[0]) for row in rows]


async def prune(db: Connection, _: set[str], used_before: float, limit: int) -> int:
    """Delete calls that ended before that; return their number. The sums stay."""
    return await db.run(
        "delete from model_calls where seq in (select seq from model_calls where state <> 'reserved' and at < ? limit ?)",
        (used_before, limit),
    )


async def prune_sums(db: Connection, _: set[str], used_before: float, days_before: float, limit: int) -> int:
    """Delete sums of runs that nothing was added to since `used_before`, and daily ones since `days_before`."""
    return await db.run(
        "delete from model_sums where (scope, key, day) in "
        "(select scope, key, day from model_sums where at < ? and (day = '' or at < ?) limit ? for update skip locked)",
        (used_before, days_before, limit),
    )


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    state: str
    account: Account
    day: str
    usd: int
    input: int
    output: int
    content: bytes | None
    at: float

    @property
    def tokens(self) -> int:
        """Of a reservation."""
        return self.input + self.output

    @property
    def call(self) -> ModelCall:
        assert self.content is not None
        return decode_call(self.content)


async def _lock(db: Connection, *accounts: Account) -> None:
    """Lock the sums of all accounts that the transaction adds to, so that no two transactions wait for each other.

    The lock comes before those of rows.
    """
    people = {f"spending of person {account.person}" for account in accounts}
    await db.lock(*people, *{f"spending of repository {account.repository_id}" for account in accounts})


async def _row(db: Connection, reservation: str) -> _Row | None:
    row = await db.row(
        f"select {_ACCOUNT}, state, day, usd, input, output, call, at from model_calls where id = ? for update",  # noqa: S608
        (reservation,),
    )
    if row is None:
        return None
    state, day, usd, input_tokens, output, content, at = row[6:]
    return _Row(state=state, account=_account(row), day=day, usd=usd, input=input_tokens, output=output, content=content, at=at)


def _machine_time(seconds: float) -> Amounts:
    return Amounts(milliseconds=round(seconds * 1000))


def _account(row: Sequence[Any]) -> Account:
    """Decode a row that begins with the columns _ACCOUNT."""
    run_id, task, attempt, person, repository_id, repository = row[:6]
    return Account(run_id=run_id, task=task, attempt=attempt, person=person, repository_id=repository_id, repository=repository)


async def _book_estimate(db: Connection, topics: set[str], reservation: str, now: float) -> bool:
    """Return False if another transaction has ended the reservation meanwhile."""
    row = await _row(db, reservation)
    if row is None or row.state != "reserved":
        return False
    call = rules.estimated_call(row.account, row.at, row.usd, row.input, row.output)
    await _end(db, reservation, "estimated", call)
    await _add(db, topics, row.account, row.day, rules.booked(call) - rules.reserved(row.usd, row.tokens), now)
    return True


async def _insert(
    db: Connection, reservation: str, state: str, account: Account, day: str, call: ModelCall, now: float
) -> None:
    await db.run(
        f"insert into model_calls (id, state, {_ACCOUNT}, day, usd, {_COUNTS}, call, at) "  # noqa: S608
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            reservation,
            state,
            *_account_values(account),
            day,
            rules.nanos(call.usd),
            *_counts(call.usage),
            _encode(call),
            now,
        ),
    )


async def _end(db: Connection, reservation: str, state: str, call: ModelCall) -> None:
    await db.run(
        "update model_calls set state = ?, usd = ?, input = ?, cache_read = ?, cache_write_5m = ?, cache_write_1h = ?, "
        "output = ?, call = ? where id = ?",
        (state, rules.nanos(call.usd), *_counts(call.usage), _encode(call), reservation),
    )


async def _add(db: Connection, topics: set[str], account: Account, day: str, amounts: Amounts, now: float) -> None:
    """Add to the sums of the account, which is locked."""
    topics.add("ledger")
    values = (
        amounts.usd, *_counts(amounts.usage), amounts.estimated, amounts.calls, amounts.refused, amounts.milliseconds,
        amounts.reserved_usd, amounts.reserved_tokens, amounts.reserved_calls,
    )  # fmt: skip
    await db.run_many(
        f"insert into model_sums (scope, key, day, name, {_SUMS}, at) "  # noqa: S608
        f"values (?, ?, ?, ?, {', '.join('?' * len(values))}, ?) "
        f"on conflict (scope, key, day) do update set {_ADDED}, name = excluded.name, at = excluded.at",
        [
            (scope, key.key, key.day, rules.name_of(account, scope), *values, now)
            for scope, key in rules.sum_keys(account, day).items()
        ],
    )


async def _sums(db: Connection, account: Account, limits: Sequence[Limit], day: str) -> dict[SumScope, Amounts]:
    """Return the sums that the limits compare."""
    keys = rules.sum_keys(account, day)
    return {scope: await _sum(db, keys[scope]) for scope in {limit.scope for limit in limits}}


async def _sum(db: Connection, key: SumKey) -> Amounts:
    row = await db.row(
        f"select {_SUMS} from model_sums where scope = ? and key = ? and day = ?",  # noqa: S608
        (key.scope, key.key, key.day),
    )
    return Amounts() if row is None else _amounts(row)


def _amounts(row: Sequence[Any]) -> Amounts:
    usd, input_tokens, cache_read, write_5m, write_1h, output, *rest = row
    estimated, calls, refused, milliseconds, reserved_usd, reserved_tokens, reserved_calls = rest
    return Amounts(
        usd=usd,
        usage=Usage(input=input_tokens, cache_read=cache_read, cache_write_5m=write_5m, cache_write_1h=write_1h, output=output),
        estimated=estimated,
        calls=calls,
        refused=refused,
        milliseconds=milliseconds,
        reserved_usd=reserved_usd,
        reserved_tokens=reserved_tokens,
        reserved_calls=reserved_calls,
    )


def _account_values(account: Account) -> tuple[Any, ...]:
    return (
        account.run_id, account.task, account.attempt, account.person, account.repository_id, account.repository,
    )  # fmt: skip


def _counts(usage: Usage) -> tuple[int, ...]:
    return usage.input, usage.cache_read, usage.cache_write_5m, usage.cache_write_1h, usage.output
