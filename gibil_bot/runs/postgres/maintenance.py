"""maintenance.database.Maintained on a PostgreSQL database."""

from __future__ import annotations

import time
from typing import Literal, TypeVar

import asyncpg

from gibil_bot.database_url import shown_url
from gibil_bot.errors import StoreError
from gibil_bot.runs.maintenance.database import NUMBERED, Problem
from gibil_bot.runs.postgres import server
from gibil_bot.runs.postgres.connection import PostgresConnection
from gibil_bot.runs.sql.connection import Connection, Query
from gibil_bot.runs.sql.hosts import UNSEEN_S

T = TypeVar("T")

_ANSWER_S = 60.0
"""Limit for one query, which may read a whole table."""


class MaintainedServer:
    """Connects for the first query. For one caller at a time."""

    kind: Literal["postgresql"] = "postgresql"

    def __init__(self, url: str) -> None:
        self._url = url
        self.name = shown_url(url)
        self.newest_version = server.migrations()[-1][0]
        self._connection: asyncpg.Connection | None = None
        self._offset = 0.0

    def now(self) -> float:
        """Return the server's time, once a query was answered."""
        return time.time() + self._offset

    async def version(self) -> int:
        async with server.answering(self._url, _ANSWER_S):
            return await server.version(await self._connected())

    async def size_bytes(self) -> int:
        return int(await self.read(_size))

    async def read(self, query: Query[T]) -> T:
        async with server.answering(self._url, _ANSWER_S):
            return await query(PostgresConnection(await self._connected()))

    async def integrity(self) -> list[Problem]:
        """Check what the rows of an export need: numbers that were never given out."""
        return await self.read(_sequences)

    async def migrate(self, *, force: bool = False) -> tuple[int, int]:
        if not force and await self.version() < self.newest_version and (hosts := await self.read(_running)):
            raise StoreError(
                f"bots that use the database {self.name} run on {', '.join(hosts)}, or ran there {UNSEEN_S:g} s ago, and a "
                "migration may stop bots of an older version: stop them first, or write --force"
            )
        return await server.migrate(self._url)

    async def free_bytes(self) -> None:
        return None

    async def close(self) -> None:
        if self._connection is not None:
            await server.closed(self._connection)
            self._connection = None

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None:
            self._connection = await server.connect(self._url)
            self._offset = await server.server_now(self._connection) - time.time()
        return self._connection


async def _size(db: Connection) -> int:
    row = await db.row("select pg_database_size(current_database())")
    assert row is not None
    return int(row[0])


async def _running(db: Connection) -> list[str]:
    """Return the names of hosts where a bot was seen. Databases of the first version don't know."""
    known = await db.row("select to_regclass('processes') is not null")
    if known != (True,):
        return []
    rows = await db.rows(
        "select distinct coalesce(h.name, p.host) from processes p left join hosts h on h.id = p.host "
        "where p.seen_at > extract(epoch from clock_timestamp()) - ? order by 1",
        (UNSEEN_S,),
    )
    return [name for (name,) in rows]


async def _sequences(db: Connection) -> list[Problem]:
    problems = []
    for table in NUMBERED:
        row = await db.row(
            f"select pg_get_serial_sequence('{table}', 'seq'), coalesce(max(seq), 0) from {table}"  # noqa: S608
        )
        assert row is not None
        sequence, highest = row
        state = await db.row(f"select case when is_called then last_value else last_value - 1 end from {sequence}")  # noqa: S608
        assert state is not None
        if state[0] < highest:
            problems.append(
                Problem(
                    kind="sequence_behind",
                    subject=f"table {table}",
                    problem=f"its highest number is {highest}, and its sequence is at {state[0]}: no row can be added",
                    remedy=f"select setval('{sequence}', {highest})",
                )
            )
    return problems
