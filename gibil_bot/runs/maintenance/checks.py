"""What `gibil db check` looks for: rows that can't be decoded, work that no bot does, wrong sums. It only reads."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import msgspec

from gibil_bot.humanize import count, duration
from gibil_bot.model import Conclusion, Plan, RunState
from gibil_bot.runs import ledger_rules
from gibil_bot.runs.maintenance.database import Maintained, Problem
from gibil_bot.runs.maintenance.status import usable
from gibil_bot.runs.sql import hosts
from gibil_bot.runs.sql.connection import Connection
from gibil_bot.runs.sql.inbox import decode_event
from gibil_bot.runs.sql.ledger import decode_call
from gibil_bot.runs.sql.outbox import DECODERS, PENDING
from gibil_bot.runs.sql.runs import decode_commit, decode_plan, decode_result, decode_source
from gibil_bot.runs.sql.store import DAY_S, HISTORY_DAYS

PAGE = 200
"""Rows that one query reads."""
MOST_OF_A_KIND = 20
FAILURES = 3
"""Consecutive failures of a notification that are a problem: one may be an incident at GitHub."""
_NAMED = 5
"""How many of the rows that wait are named."""
_LONG_S = 900.0
"""A delivery that waits longer while a bot runs is a problem: it is retried, or something is in its way."""
_OVERTIME_S = 900.0
"""How much longer than its machine's time to live a run may take: for preparing, reporting and commits."""
_SUMMED_S = (HISTORY_DAYS - 2) * DAY_S
"""Calls since then are still stored, and so are all of their run and of their day."""

_UPGRADE = "if a newer gibil wrote it, upgrade"

Found = AsyncIterator[Problem]


async def check(database: Maintained) -> list[Problem]:
    """Return the problems, at most MOST_OF_A_KIND of each kind and one more that has the number of the others.

    Raises StoreError if the database can't be read, or isn't of this version.
    """
    await usable(database)
    problems = await database.integrity()
    if any(problem.kind == "damaged_file" for problem in problems):
        return problems
    others: dict[str, int] = {}
    for checked in (_waiting, _deliveries, _runs, _results, _notifications, _calls, _reservations, _sums):
        async for problem in checked(database):
            if sum(each.kind == problem.kind for each in problems) < MOST_OF_A_KIND:
                problems.append(problem)
            else:
                others[problem.kind] = others.get(problem.kind, 0) + 1
    for kind, number in others.items():
        last = next(each for each in reversed(problems) if each.kind == kind)
        subject = f"{number} more"
        problems.append(Problem(kind=kind, subject=subject, problem="the same as the ones before", remedy=last.remedy))
    return problems


def literal(value: str) -> str:
    """Return a text as a constant of SQL, for statements that people copy."""
    quoted = value.replace("'", "''")
    return f"'{quoted}'"


def deletion(table: str, column: str, value: str) -> str:
    return f"delete from {table} where {column} = {literal(value)}"  # noqa: S608


async def _pages(
    database: Maintained, columns: str, rows: str, key: Sequence[str] = ("seq",), *, first: Sequence[object] = (-1,)
) -> AsyncIterator[tuple[Any, ...]]:
    """Yield rows in the order of their unique key, without it. Each query reads a page, so that none takes long."""
    names, at = ", ".join(key), first
    query = (
        f"select {names}, {columns} from {rows} and ({names}) > ({', '.join('?' * len(key))}) "  # noqa: S608
        f"order by {names} limit {PAGE}"
    )

    async def page(db: Connection) -> list[tuple[Any, ...]]:
        return await db.rows(query, at)

    while found := await database.read(page):
        for row in found:
            yield row[len(key) :]
        at = found[-1][: len(key)]


def _undecodable(decode: Callable[[Any], object], content: object) -> str | None:
    """Return why it can't be decoded, in one line."""
    try:
        decode(content)
    except (msgspec.DecodeError, ValueError) as error:
        return " ".join(str(error).split())
    return None


class _Waiting(NamedTuple):
    """Rows on which a bot works."""

    kind: str
    names: tuple[str, str]
    """Of one, and of several."""
    id: str
    """The column that names a row."""
    since: tuple[str, str]
    """The column with the time since when it waits, and its meaning."""
    error: str
    rows: str


_DELIVERIES = _Waiting(
    "delivery", ("delivery", "deliveries"), "guid", ("received_at", "arrived"), "error", "deliveries where handled_at is null"
)
_WAITING = (
    _DELIVERIES,
    _Waiting(
        "run", ("run", "runs"), "id", ("queued_at", "was queued"), "null", "runs where finished_at is null and state = 'queued'"
    ),
    _Waiting(
        "notification",
        ("notification", "notifications"),
        "key",
        ("due_at", "was due"),
        "error",
        f"notifications where {PENDING}",
    ),
)


async def _waiting(database: Maintained) -> Found:
    """Find what waits although no bot runs, and deliveries that wait for long although one does."""
    now = database.now()
    if any(not seen.is_away for seen in await database.read(partial(hosts.every, now=now))):
        number, oldest = await database.read(partial(_oldest, what=_DELIVERIES, before=now - _LONG_S))
        if number:
            error = " ".join((oldest[0][2] or "").split()) or "no error is stored"
            yield _that_waits(_DELIVERIES, number, oldest, now, "a bot runs", f": {error}", f"see its log for {oldest[0][0]}")
        return
    for what in _WAITING:
        number, oldest = await database.read(partial(_oldest, what=what, before=math.inf))
        if number:
            yield _that_waits(what, number, oldest, now, "no bot runs", "", "start gibil serve")


_Row = tuple[str, float, str | None]
"""Its name, since when it waits, and its last error."""


async def _oldest(db: Connection, what: _Waiting, before: float) -> tuple[int, list[_Row]]:
    """Return how many rows wait since before that moment, and those that wait longest."""
    since, waiting = what.since[0], f"{what.rows} and {what.since[0]} <= ?"
    (counted,) = await db.rows(f"select count(*) from {waiting}", (before,))  # noqa: S608
    oldest = await db.rows(
        f"select {what.id}, {since}, {what.error} from {waiting} order by {since}, seq limit {_NAMED}",  # noqa: S608
        (before,),
    )
    return int(counted[0]), [(name, at, error) for name, at, error in oldest]


def _that_waits(what: _Waiting, number: int, oldest: list[_Row], now: float, why: str, error: str, remedy: str) -> Problem:
    shown = ", ".join(name for name, _, _ in oldest) + (f" and {number - len(oldest):,} more" if number > len(oldest) else "")
    age = f"the oldest {what.since[1]} {duration(now - oldest[0][1])} ago"
    return Problem(
        kind=f"waiting_{what.kind}",
        subject=f"{number:,} {what.names[number > 1]}",
        problem=f"{why}, and {'they wait' if number > 1 else 'it waits'}: {shown}; {age}{error}",
        remedy=remedy,
    )


async def _deliveries(database: Maintained) -> Found:
    rows = "deliveries where content is not null"
    async for guid, content, is_handled in _pages(database, "guid, content, handled_at is not null", rows):
        if (why := _undecodable(decode_event, content)) is not None:
            remedy = "nothing: it was handled, and is deleted after 90 days" if is_handled else f"{_UPGRADE}; else redeliver it"
            yield Problem(
                kind="undecodable_event",
                subject=f"delivery {guid}",
                problem=f"its event can't be decoded: {why}",
                remedy=remedy,
            )


async def _runs(database: Maintained) -> Found:
    now = database.now()
    known = {seen.host.id: seen for seen in await database.read(partial(hosts.every, now=now))}
    decoders: tuple[tuple[str, Callable[[Any], object]], ...] = (
        ("source", decode_source),
        ("plan", decode_plan),
        ("commit_progress", lambda content: content is None or decode_commit(content)),
        ("state", RunState),
        ("conclusion", lambda text: text is None or Conclusion(text)),
    )
    columns = (
        "id, source, plan, commit_progress, state, conclusion, "
        "finished_at, started_at, lease_until, machine_attempt, machine_host"
    )
    async for row in _pages(database, columns, "runs where true"):
        run_id, _, plan, _, state, _, finished_at, started_at, lease_until, attempt, machine_host = row
        subject = f"run {run_id}"
        for (name, decode), value in zip(decoders, row[1:6], strict=True):
            if (why := _undecodable(decode, value)) is not None:
                effect = "" if finished_at is not None else "; no run can be claimed as long as it exists"
                yield Problem(
                    kind=f"undecodable_{name}",
                    subject=subject,
                    problem=f"its {name} can't be decoded: {why}{effect}",
                    remedy=f"{_UPGRADE}; else stop the bots, and delete it: {deletion('runs', 'id', run_id)}",
                )
        if finished_at is not None:
            continue
        if machine_host is not None and machine_host not in known:
            yield Problem(
                kind="unknown_host",
                subject=subject,
                problem=f"its machine is on the host {machine_host}, which the database doesn't know",
                remedy="nothing if a bot runs: the run starts again on another machine",
            )
        if state != RunState.RUNNING.value:
            continue
        if machine_host in known and known[machine_host].is_away:
            seen = known[machine_host]
            ago = duration(now - seen.seen_at.timestamp())
            yield Problem(
                kind="host_away",
                subject=subject,
                problem=f"its machine is on the host {seen.host.name}, where no bot runs; one was seen {ago} ago",
                remedy=f"start gibil serve on {seen.host.name}; after GIBIL_HOST_AWAY another bot starts the run again",
            )
        elif lease_until <= now:
            yield Problem(
                kind="no_lease",
                subject=subject,
                problem="it is running, but no bot works on it",
                remedy="start gibil serve, which continues it; if one runs, its log tells why it doesn't",
            )
        if started_at is not None and (most_s := _most_s(plan, attempt)) is not None and now - started_at > most_s:
            yield Problem(
                kind="overtime",
                subject=subject,
                problem=f"it has been running for {duration(now - started_at)}, longer than its machine may exist",
                remedy=f"see the bot's log for {run_id}; /gibil cancel in the pull request ends it",
            )


def _most_s(plan: bytes, machine_attempt: int) -> float | None:
    """Return how long the run may take; None if its plan can't be decoded."""
    if _undecodable(decode_plan, plan) is not None:
        return None
    decoded: Plan = decode_plan(plan)
    return decoded.machine.ttl_s * max(machine_attempt, 1) + _OVERTIME_S


async def _results(database: Maintained) -> Found:
    key = ("run_id", "machine_attempt", "task_index")
    columns = "run_id, task_index, result"
    async for run_id, index, result in _pages(database, columns, "task_results where true", key, first=("", -1, -1)):
        if (why := _undecodable(decode_result, result)) is not None:
            yield Problem(
                kind="undecodable_result",
                subject=f"task {index} of run {run_id}",
                problem=f"its result can't be decoded: {why}",
                remedy=f"{_UPGRADE}; else delete it: {deletion('task_results', 'run_id', run_id)}",
            )


async def _notifications(database: Maintained) -> Found:
    columns = "key, kind, body, revision > published_revision, revision <= rejected_revision, failures, error"
    async for key, kind, body, is_pending, is_rejected, failures, error in _pages(
        database, columns, "notifications where true"
    ):
        subject, why = f"notification {key}", " ".join((error or "").split()) or "no reason is stored"
        known = DECODERS.get(kind)
        undecodable = f"the kind {kind!r} is unknown" if known is None else _undecodable(known.decode, body)
        if undecodable is not None:
            remedy = f"{_UPGRADE}; else delete it: {deletion('notifications', 'key', key)}"
            yield Problem(
                kind="undecodable_notification", subject=subject, problem=f"it can't be decoded: {undecodable}", remedy=remedy
            )
        elif is_pending and is_rejected:
            yield Problem(
                kind="rejected_notification",
                subject=subject,
                problem=f"GitHub doesn't accept it, so it isn't published: {why}",
                remedy="check the App's permissions with gibil doctor; the object's next change is tried again",
            )
        elif is_pending and failures >= FAILURES:
            yield Problem(
                kind="failing_notification",
                subject=subject,
                problem=f"publishing it failed {count(failures, 'time')} in a row: {why}",
                remedy="the bot goes on trying; gibil doctor checks the connection to GitHub",
            )


async def _calls(database: Maintained) -> Found:
    async for call_id, run_id, call in _pages(database, "id, run_id, call", "model_calls where state <> 'reserved'"):
        if (why := _undecodable(decode_call, call)) is not None:
            yield Problem(
                kind="undecodable_call",
                subject=f"call {call_id} of run {run_id}",
                problem=f"it can't be decoded: {why}",
                remedy=f"{_UPGRADE}; else delete it: {deletion('model_calls', 'id', call_id)} (the sums stay)",
            )


async def _reservations(database: Maintained) -> Found:
    async def old(db: Connection) -> list[tuple[Any, ...]]:
        return await db.rows(
            "select id, run_id, at from model_calls where state = 'reserved' and at < ? order by at limit 1000",
            (database.now() - ledger_rules.RESERVED_S,),
        )

    for call_id, run_id, at in await database.read(old):
        yield Problem(
            kind="old_reservation",
            subject=f"call {call_id} of run {run_id}",
            problem=f"it was reserved at {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC, and never booked",
            remedy="nothing: the next call of an agent, or the start of a bot, books it at its estimate",
        )


_SUMMED = {
    "usd": "sum(case when state = 'reserved' then 0 else usd end)",
    "input": "sum(case when state = 'reserved' then 0 else input end)",
    "cache_read": "sum(cache_read)",
    "cache_write_5m": "sum(cache_write_5m)",
    "cache_write_1h": "sum(cache_write_1h)",
    "output": "sum(case when state = 'reserved' then 0 else output end)",
    "calls": "sum(case when state = 'reserved' then 0 else 1 end)",
    "reserved_usd": "sum(case when state = 'reserved' then usd else 0 end)",
    "reserved_tokens": "sum(case when state = 'reserved' then input + output else 0 end)",
    "reserved_calls": "sum(case when state = 'reserved' then 1 else 0 end)",
}
"""The columns of a sum that its calls determine. Rejected calls and machine time are only counted."""
_KEYS = {
    "attempt": "run_id || '/' || task || '/' || attempt",
    "task": "run_id || '/' || task",
    "run": "run_id",
    "person": "lower(person)",
    "repository": "case when repository_id <> 0 then cast(repository_id as text) else repository end",
}
"""ledger_rules.sum_keys in SQL."""


async def _sums(database: Maintained) -> Found:
    since = database.now() - _SUMMED_S
    for scope in _KEYS:
        for key, day, *amounts in await database.read(partial(_wrong_sums, scope=scope, since=since)):
            pairs = zip(_SUMMED, amounts[: len(_SUMMED)], amounts[len(_SUMMED) :], strict=True)
            wrong = {name: (stored, counted) for name, stored, counted in pairs if stored != counted}
            shown = ", ".join(f"{name} is {stored} instead of {counted}" for name, (stored, counted) in wrong.items())
            values = ", ".join(f"{name} = {counted}" for name, (_, counted) in wrong.items())
            where = f"scope = {literal(scope)} and key = {literal(key)} and day = {literal(day)}"
            yield Problem(
                kind="wrong_sum",
                subject=f"{scope} {key}{f' on {day}' if day else ''}",
                problem=f"the sum of its calls of models is wrong: {shown}",
                remedy=f"budgets use the sum; to correct it: update model_sums set {values} where {where}",  # noqa: S608
            )


async def _wrong_sums(db: Connection, scope: str, since: float) -> list[tuple[Any, ...]]:
    """Return key, day, the stored and the counted values of sums that differ. One statement, so that both are of one moment.

    Of a run, sums without any call since then aren't compared, and of persons and repositories those of days before.
    """
    by_day = scope in ("person", "repository")
    calls = ", ".join(f"cast({formula} as bigint) as {name}" for name, formula in _SUMMED.items())
    stored = ", ".join(f"s.{name}" for name in _SUMMED)
    counted = ", ".join(f"coalesce(c.{name}, 0)" for name in _SUMMED)
    differs = " or ".join(f"s.{name} <> coalesce(c.{name}, 0)" for name in _SUMMED)
    return await db.rows(
        f"select s.key, s.day, {stored}, {counted} from model_sums s left join ("  # noqa: S608
        f"select {_KEYS[scope]} as called_key, {'day' if by_day else repr('')} as called_day, max(at) as last_at, {calls} "
        "from model_calls where state in ('reserved', 'estimated', 'booked') group by 1, 2) c "
        "on called_key = s.key and called_day = s.day "
        f"where s.scope = '{scope}' and {'s.day > ?' if by_day else 'last_at > ?'} and ({differs}) "
        "order by s.key, s.day limit 1000",
        (ledger_rules.day_of(since) if by_day else since,),
    )
