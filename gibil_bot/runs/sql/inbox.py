"""The inbox: deliveries, and what they reveal about the heads of pull requests. The class is the interface, the functions its
SQL.

Every function is one transaction, or one read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from gibil_bot.errors import ClaimLost
from gibil_bot.model import (
    BranchPush,
    CommentCreated,
    Delivery,
    Event,
    HeadHistory,
    HeadSeen,
    Ignored,
    PullRequestChanged,
    RunRequested,
    Spending,
)
from gibil_bot.ports import Decision, DeliveryOutcome
from gibil_bot.runs.signals import Subscription
from gibil_bot.runs.sql import heads, outbox, runs
from gibil_bot.runs.sql.connection import Connection, Database

_COLUMNS = "d.guid, d.event, d.content, p.payload, d.digest, d.cancels, d.received_at, d.attempts"
_encode = msgspec.json.Encoder().encode
decode_event = msgspec.json.Decoder(Event).decode
_PAYLOAD = "left join payloads p on p.seq = d.seq"
_CLAIMS = "claims of deliveries"
"""The lock of what decides about the order of a repository's deliveries."""
_IN_ORDER = (
    "and (d.repository_id is null or d.repository_id not in ("
    "select repository_id from deliveries indexed by deliveries_claimed where handled_at is null and cancels = 0 "
    "and repository_id is not null and lease_until > 0 and lease_until > ? and owner <> ?)) "
)
"""No other process works on a delivery of the same repository."""


class SqlInbox:
    """ports.Inbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def accept(
        self, delivery: Delivery, *, handled: bool = False, observed: Sequence[HeadSeen | BranchPush] = ()
    ) -> bool:
        now = self._database.now()
        job = partial(accept, delivery=delivery, handled_at=now if handled else None, observed=observed, now=now)
        return await self._database.write(job)

    async def claim(
        self, owner: str, *, limit: int, cancels: int = 0, lease_s: float, held: Collection[str] | None = None
    ) -> list[Delivery]:
        now = self._database.now()
        job = partial(claim, owner=owner, limit=limit, cancels=cancels, now=now, lease_s=lease_s, held=held)
        return await self._database.write(job)

    async def complete(self, owner: str, guid: str, outcome: DeliveryOutcome) -> None:
        await self._database.write(partial(complete, owner=owner, guid=guid, outcome=outcome, now=self._database.now()))

    async def postpone(self, owner: str, guid: str, error: str, *, delay_s: float) -> None:
        due_at = self._database.now() + delay_s
        await self._database.write(partial(postpone, owner=owner, guid=guid, error=error, due_at=due_at))

    async def decision(self, guid: str) -> Decision | None:
        return await self._database.read(partial(decision, guid=guid))

    async def get(self, guid: str) -> tuple[Delivery, bool, str | None] | None:
        return await self._database.read(partial(get, guid=guid))

    async def has_earlier(self, guid: str, repository_id: int, number: int) -> bool:
        return await self._database.read(partial(has_earlier, guid=guid, repository_id=repository_id, number=number))

    async def head_history(self, repository_id: int, number: int, sha: str, fork_id: int | None = None) -> HeadHistory:
        query = partial(heads.history, repository_id=repository_id, number=number, sha=sha, fork_id=fork_id)
        return await self._database.read(query)

    async def spend(self, key: str, *, cost: float, capacity: float, per_s: float) -> Spending:
        job = partial(spend, key=key, cost=cost, capacity=capacity, per_s=per_s, now=self._database.now())
        return await self._database.write(job)

    def changed(self) -> Subscription:
        return self._database.changed("deliveries")


async def accept(
    db: Connection,
    topics: set[str],
    delivery: Delivery,
    handled_at: float | None = None,
    observed: Sequence[HeadSeen | BranchPush] = (),
    now: float = 0.0,
) -> bool:
    """Store a delivery. The hot path: one insert, and a second one for a push or an unreadable payload."""
    inserted = await db.row(
        "insert into deliveries "
        "(guid, event, received_at, attempts, handled_at, content, digest, repository_id, pull_request, cancels) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict (guid) do nothing returning seq",
        (
            delivery.guid,
            delivery.event_name,
            delivery.received_at.timestamp(),
            delivery.attempts,
            handled_at,
            None if delivery.event is None else _encode(delivery.event),
            delivery.digest,
            *_subject(delivery.event),
            delivery.cancels,
        ),
    )
    if inserted is None:
        return False
    if delivery.event is None:
        await db.run("insert into payloads (seq, payload) values (?, ?)", (inserted[0], delivery.payload))
    await heads.record(db, observed, now)
    if handled_at is None:
        topics.add("deliveries")
    return True


async def claim(
    db: Connection,
    _: set[str],
    owner: str,
    limit: int,
    now: float,
    lease_s: float,
    cancels: int = 0,
    held: Collection[str] | None = None,
) -> list[Delivery]:
    """Claim deliveries. No subscriber waits for a lease, so no topic is named."""
    await db.lock(_CLAIMS)
    is_free = "d.lease_until <= ?"
    free: list[object] = [now]
    if held is not None:
        padded = [*held, *[""] * (16 - len(held) % 16)]  # few different statements, as each one is prepared
        is_free = f"(d.lease_until <= ? or d.owner = ?) and d.guid not in ({', '.join('?' * len(padded))})"
        free = [now, owner, *padded]
    found = []
    for is_cancel, most, condition, values in ((1, cancels, "", ()), (0, limit, _IN_ORDER, (now, owner))):
        found += await db.rows(
            f"select d.seq, {_COLUMNS} from deliveries d {_PAYLOAD} "  # noqa: S608
            f"where d.handled_at is null and d.cancels = {is_cancel} and {is_free} and d.due_at <= ? {condition}"
            "order by d.seq limit ? for update of d skip locked",
            (*free, now, *values, most),
        )
    await db.run_many(
        "update deliveries set owner = ?, lease_until = ?, attempts = attempts + 1 where seq = ?",
        [(owner, now + lease_s, row[0]) for row in found],
    )
    return [_delivery((*row[1:-1], row[-1] + 1)) for row in found]


async def has_earlier(db: Connection, guid: str, repository_id: int, number: int) -> bool:
    """Return whether an earlier unhandled delivery may be about this pull request. Re-runs and unreadable ones may be."""
    found = await db.row(
        "select 1 from deliveries where handled_at is null and cancels = 0 "
        "and seq < (select seq from deliveries where guid = ?) "
        "and (repository_id is null or (repository_id = ? and (pull_request is null or pull_request = ?))) limit 1",
        (guid, repository_id, number),
    )
    return found is not None


async def complete(db: Connection, topics: set[str], owner: str, guid: str, outcome: DeliveryOutcome, now: float) -> None:
    seq = await _claimed_seq(db, owner, guid)
    if seq is None:
        return
    # A run and a cancellation that is to stop it may be decided by two processes: one sees what the other one has written.
    concerned = {new.source.repository.id for new in outcome.runs} | {each.repository_id for each in outcome.cancel_earlier}
    await db.lock(*(f"repository {each}" for each in concerned))
    await db.run(
        "update deliveries set handled_at = ?, error = ?, rejection = ?, lease_until = 0 where seq = ?",
        (now, outcome.error, outcome.refusal, seq),
    )
    topics.add("deliveries")
    for new in outcome.runs:
        await runs.queue(db, topics, new, now, seq)
    for run_id, reason in sorted(outcome.cancel):
        await runs.request_cancel(db, topics, run_id, reason)
    for request in outcome.cancel_earlier:
        await runs.cancel_earlier(db, topics, request, seq)
    await outbox.record(db, topics, outcome.notifications, now)
    await heads.record(db, outcome.observed, now)


async def postpone(db: Connection, topics: set[str], owner: str, guid: str, error: str, due_at: float) -> None:
    seq = await _claimed_seq(db, owner, guid)
    if seq is not None:
        await db.run(
            "update deliveries set owner = '', lease_until = 0, due_at = ?, error = ? where seq = ?", (due_at, error, seq)
        )
        topics.add("deliveries")


async def decision(db: Connection, guid: str) -> Decision | None:
    row = await db.row("select error, rejection from deliveries where guid = ? and handled_at is not null", (guid,))
    if row is None:
        return None
    queued = await db.rows("select id from runs where delivery_guid = ? order by seq", (guid,))
    return Decision(run_ids=tuple(run_id for (run_id,) in queued), error=row[0], rejection=row[1])


async def get(db: Connection, guid: str) -> tuple[Delivery, bool, str | None] | None:
    row = await db.row(
        f"select {_COLUMNS}, d.handled_at is not null, d.error from deliveries d {_PAYLOAD} where d.guid = ?",  # noqa: S608
        (guid,),
    )
    return None if row is None else (_delivery(row[:8]), bool(row[8]), row[9])


async def prune_payloads(db: Connection, _: set[str], handled_before: float, failed_before: float, limit: int) -> int:
    """Delete payloads of handled deliveries, later for failed ones; return their number."""
    return await db.run(
        "delete from payloads where seq in (select d.seq from deliveries d join payloads p on p.seq = d.seq "
        "where d.handled_at is not null and d.handled_at < ? and (d.error is null or d.handled_at < ?) limit ?)",
        (handled_before, failed_before, limit),
    )


async def prune(db: Connection, _: set[str], handled_before: float, limit: int) -> int:
    """Delete handled deliveries without a payload; return their number. GitHub can redeliver for three days only."""
    return await db.run(
        "delete from deliveries where seq in (select seq from deliveries d where handled_at is not null and handled_at < ? "
        "and not exists (select 1 from payloads p where p.seq = d.seq) limit ?)",
        (handled_before, limit),
    )


async def prune_cancellations(db: Connection, _: set[str], limit: int) -> int:
    """Delete cancellations that no unhandled delivery precedes; return their number."""
    return await db.run(
        "delete from cancellations where seq in (select seq from cancellations c where not exists "
        "(select 1 from deliveries d where d.handled_at is null and d.seq < c.delivery_seq) limit ?)",
        (limit,),
    )


def _subject(event: Event | None) -> tuple[int | None, int | None]:
    """Return the repository id and pull request number."""
    match event:
        case None | Ignored():
            return None, None
        case CommentCreated() | RunRequested():
            return event.repository.id, event.number
        case PullRequestChanged():
            return event.repository.id, event.pull_request.number
        case _:
            return event.repository.id, None


def _event(content: bytes | None) -> Event | None:
    """Decode an event. None also if another version wrote it in an unknown form: it must not block the deliveries after it."""
    try:
        return None if content is None else decode_event(content)
    except msgspec.ValidationError:
        return None


async def _claimed_seq(db: Connection, owner: str, guid: str) -> int | None:
    """Return the delivery's `seq`; None if it is handled already. Raises ClaimLost unless `owner` has claimed it."""
    row = await db.row("select seq, owner, handled_at from deliveries where guid = ? for update", (guid,))
    if row is not None and row[2] is not None:
        return None
    if row is None or row[1] != owner:
        raise ClaimLost(f"delivery {guid} is no longer claimed by {owner}: leave it to the process that has it")
    return int(row[0])


def _delivery(row: tuple[Any, ...]) -> Delivery:
    guid, event_name, content, payload, digest, cancels, received_at, attempts = row
    return Delivery(
        guid=guid,
        event_name=event_name,
        event=_event(content),
        payload=payload or b"",
        digest=digest,
        cancels=bool(cancels),
        received_at=datetime.fromtimestamp(received_at, UTC),
        attempts=attempts,
    )


REJECTION_EVERY_S = 3600.0
"""The owner of an empty bucket gets at most one rejection message in this time."""
_ROUNDING = 1e-6


async def spend(db: Connection, _: set[str], key: str, cost: float, capacity: float, per_s: float, now: float) -> Spending:
    """Take `cost` tokens, or none. An unused bucket is full. If the clock was set back, that costs one refill at most."""
    await db.lock(f"budget {key}")
    row = await db.row("select full_at, refused_at from budgets where key = ?", (key,)) or (now, 0.0)
    full_at, refused_at = min(max(row[0], now), now + capacity / per_s), row[1]
    missing = (full_at - now) * per_s + cost - capacity
    allowed = missing <= _ROUNDING
    first = not allowed and not now - REJECTION_EVERY_S < refused_at <= now
    if allowed or first:
        await db.run(
            "insert into budgets (key, full_at, refused_at) values (?, ?, ?) "
            "on conflict (key) do update set full_at = excluded.full_at, refused_at = excluded.refused_at",
            (key, full_at + cost / per_s if allowed else full_at, refused_at if allowed else now),
        )
    return Spending(allowed=allowed, wait_s=0.0 if allowed else missing / per_s, first_refusal=first)


async def prune_budgets(db: Connection, _: set[str], now: float, limit: int) -> int:
    """Delete buckets that are full and whose owner would get the next rejection message; return their number."""
    return await db.run(
        "delete from budgets where key in "
        "(select key from budgets where full_at <= ? and refused_at <= ? limit ? for update skip locked)",
        (now, now - REJECTION_EVERY_S, limit),
    )
