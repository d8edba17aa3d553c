"""The SQL of the hosts and processes that share the database. The class is the interface, the functions its SQL."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

from gibil_bot.model import Host, HostSeen
from gibil_bot.runs.sql.connection import Connection, Database
from gibil_bot.runs.sql.outbox import PENDING

UNSEEN_S = 30.0
"""The leases of a process end when it wasn't seen for that long."""
KEPT_S = 7 * 86400.0
"""Hosts and processes that weren't seen for that long are forgotten."""


class SqlHosts:
    """ports.Hosts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def start(self, host: Host, process: str) -> None:
        await self._database.write(partial(start, host=host, process=process, now=self._database.now()))

    async def present(self, host: Host, process: str) -> None:
        await self._database.write(partial(present, host=host, process=process, now=self._database.now()))

    async def leave(self, process: str) -> None:
        await self._database.write(partial(leave, process=process))

    async def all(self) -> list[HostSeen]:
        return await self._database.read(partial(every, now=self._database.now()))


async def start(db: Connection, topics: set[str], host: Host, process: str, now: float) -> None:
    """End the leases of earlier processes of the host: it has one at a time."""
    await _end_leases(db, topics, "host = ? and owner <> ?", host.id, process)
    await db.run("delete from processes where host = ? and owner <> ?", (host.id, process))
    await present(db, topics, host, process, now)


async def see(db: Connection, host: Host, now: float) -> None:
    """Record a host as seen at that moment."""
    await db.run(
        "insert into hosts (id, name, url, seen_at) values (?, ?, ?, ?) "
        "on conflict (id) do update set name = excluded.name, url = excluded.url, seen_at = excluded.seen_at",
        (host.id, host.name, host.url, now),
    )


async def present(db: Connection, topics: set[str], host: Host, process: str, now: float) -> None:
    await see(db, host, now)
    await db.run(
        "insert into processes (owner, host, started_at, seen_at) values (?1, ?2, ?3, ?3) "
        "on conflict (owner) do update set seen_at = excluded.seen_at",
        (process, host.id, now),
    )
    await _end_leases(db, topics, "seen_at <= ?", now - UNSEEN_S)
    await db.run("delete from processes where seen_at < ?", (now - KEPT_S,))
    await db.run(
        "delete from hosts where seen_at < ? and not exists "
        "(select 1 from runs where finished_at is null and machine_host = hosts.id)",
        (now - KEPT_S,),
    )


async def leave(db: Connection, topics: set[str], process: str) -> None:
    """Forget a process that ends in order, with its leases."""
    await _end_leases(db, topics, "owner = ?", process)
    await db.run("delete from processes where owner = ?", (process,))


async def every(db: Connection, now: float) -> list[HostSeen]:
    rows = await db.rows(
        "select id, name, url, seen_at, (select count(*) from processes p where p.host = hosts.id and p.seen_at > ?), "
        "(select count(*) from runs where finished_at is null and state = 'running' and machine_host = hosts.id) "
        "from hosts order by name, id",
        (now - UNSEEN_S,),
    )
    return [
        HostSeen(
            host=Host(id=host_id, name=name, url=url),
            seen_at=datetime.fromtimestamp(seen_at, UTC),
            bots=processes,
            machines=machines,
        )
        for host_id, name, url, seen_at, processes, machines in rows
    ]


async def _end_leases(db: Connection, topics: set[str], condition: str, *values: object) -> None:
    """End the leases of some processes. Until others claim their work, what they still write counts."""
    if await db.row(f"select 1 from processes where {condition} limit 1", values) is None:  # noqa: S608
        return
    owners = f"owner in (select owner from processes where {condition})"  # noqa: S608
    ended = {
        "deliveries": "deliveries set lease_until = 0 where handled_at is null",
        "runs": "runs set lease_until = 0 where finished_at is null and state = 'running'",
        "notifications": f"notifications set lease_until = 0 where {PENDING}",
    }
    for topic, update in ended.items():
        if await db.run(f"update {update} and lease_until > 0 and {owners}", values):
            topics.add(topic)
