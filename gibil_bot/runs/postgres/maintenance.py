"""maintenance.database.Maintained on a PostgreSQL database."""

from __future__ import annotations

import time
from typing import Literal, TypeVar

import asyncpg

from gibil_bot.database_url import shown_url
from gibil_bot.runs.maintenance.database import NUMBERED, Problem
from gibil_bot.runs.postgres import server
from gibil_bot.runs.postgres.connection import PostgresConnection
from gibil_bot.runs.sql.connection import Connection, Query

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
        return await server.migrate(self._url, force=force)

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
