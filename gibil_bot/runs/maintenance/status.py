"""The state of the database, as `gibil db status` prints it: what waits, how long, and for whom."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from msgspec import Struct
from msgspec.structs import replace

from gibil_bot.errors import StoreError
from gibil_bot.model import HostSeen
from gibil_bot.runs.maintenance.database import Export, Maintained, read_mark
from gibil_bot.runs.sql import hosts
from gibil_bot.runs.sql.connection import Connection
from gibil_bot.runs.sql.migrations import require_not_newer
from gibil_bot.runs.sql.outbox import PENDING
from gibil_bot.runs.sql.store import counts


class Oldest(Struct, frozen=True, kw_only=True):
    """What waits longest."""

    id: str
    since: datetime
    error: str | None


class LeaseHolder(Struct, frozen=True, kw_only=True):
    """A process with leases that haven't expired."""

    owner: str
    deliveries: int
    runs: int
    notifications: int
    until: datetime
    """When the last of them expires, unless the process renews it."""


class Status(Struct, frozen=True, kw_only=True):
    kind: str
    name: str
    version: int
    """0: the database has no schema yet."""
    newest_version: int
    size_bytes: int
    now: datetime
    """By the database's clock."""
    counts: dict[str, int]
    """Like ports.Store.counts; empty if the schema has another version."""
    oldest_delivery: Oldest | None = None
    """Of those that aren't handled, by the time of arrival."""
    oldest_notification: Oldest | None = None
    """Of those that aren't published, by the time when it was or is due."""
    hosts: list[HostSeen] = []
    leases: list[LeaseHolder] = []
    export: Export | None = None


async def status(database: Maintained) -> Status:
    """Read the state. Of a database of another version, only what needs no schema. Raises StoreError."""
    version = await database.version()
    now = database.now()
    found = Status(
        kind=database.kind,
        name=database.name,
        version=version,
        newest_version=database.newest_version,
        size_bytes=await database.size_bytes(),
        now=datetime.fromtimestamp(now, UTC),
        counts={},
    )
    if version != database.newest_version:
        return found
    return await database.read(partial(_read, found=found, now=now))


async def usable(database: Maintained) -> None:
    """Raise StoreError unless the schema has this gibil's version."""
    version = await database.version()
    require_not_newer(database.name, version, database.newest_version)
    if version < database.newest_version:
        what = f"has version {version}, and this gibil needs {database.newest_version}" if version else "is empty"
        raise StoreError(f"the database {database.name} {what}: stop the bots, and run gibil db migrate")


async def _read(db: Connection, found: Status, now: float) -> Status:
    delivery = await db.row("select guid, received_at, error from deliveries where handled_at is null order by seq limit 1")
    notification = await db.row(
        f"select key, due_at, error from notifications where {PENDING} order by due_at, seq limit 1"  # noqa: S608
    )
    return replace(
        found,
        counts=await counts(db),
        oldest_delivery=_oldest(delivery),
        oldest_notification=_oldest(notification),
        hosts=await hosts.every(db, now),
        leases=await _leases(db, now),
        export=await read_mark(db),
    )


def _oldest(row: tuple[str, float, str | None] | None) -> Oldest | None:
    return None if row is None else Oldest(id=row[0], since=datetime.fromtimestamp(row[1], UTC), error=row[2])


async def _leases(db: Connection, now: float) -> list[LeaseHolder]:
    held: dict[str, list[int]] = {}
    until: dict[str, float] = {}
    claimed = ("deliveries where handled_at is null", "runs where finished_at is null", f"notifications where {PENDING}")
    for number, rows in enumerate(claimed):
        query = f"select owner, count(*), max(lease_until) from {rows} and lease_until > ? group by owner"  # noqa: S608
        for owner, count, last in await db.rows(query, (now,)):
            held.setdefault(owner, [0, 0, 0])[number] = count
            until[owner] = max(last, until.get(owner, 0.0))
    return [
        LeaseHolder(
            owner=owner,
            deliveries=deliveries,
            runs=runs,
            notifications=notifications,
            until=datetime.fromtimestamp(until[owner], UTC),
        )
        for owner, (deliveries, runs, notifications) in sorted(held.items())
    ]
