"""maintenance.export.Target: the PostgreSQL database that gets the rows of a file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence

import asyncpg

from gibil_bot.database_url import shown_url
from gibil_bot.errors import StoreError
from gibil_bot.model import Host
from gibil_bot.runs.maintenance.database import EXPORTED_FROM, NUMBERED, TABLES
from gibil_bot.runs.maintenance.export import Row
from gibil_bot.runs.postgres import server
from gibil_bot.runs.postgres.connection import PostgresConnection, storable
from gibil_bot.runs.sql import agreements, hosts

_ANSWER_S = 120.0
"""Limit for a statement, and for a time without progress in copying a table."""
_ROLLBACK_S = 3.0
_SETTINGS = (
    "set local lock_timeout = '10s'; "
    # The server's may be short, for its other clients.
    "set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0"
)


@contextlib.asynccontextmanager
async def open_target(url: str) -> AsyncIterator[ExportTarget]:
    """Connect to the database, and create or migrate its schema. Raises StoreError."""
    await server.migrate(url)
    with server.translated(url):
        connection = await server.connect(url)
    try:
        yield ExportTarget(url, connection)
    finally:
        await server.closed(connection)


class ExportTarget:
    def __init__(self, url: str, connection: asyncpg.Connection) -> None:
        self._url = url
        self._connection = connection
        self.name = shown_url(url)

    @contextlib.asynccontextmanager
    async def copying(self) -> AsyncIterator[CopyTransaction]:
        transaction = self._connection.transaction()
        async with server.answering(self._url, _ANSWER_S):
            await transaction.start()
        copy = CopyTransaction(self._url, self._connection, transaction)
        try:
            async with server.answering(self._url, _ANSWER_S):
                await self._connection.execute(_SETTINGS)
                # Others may read. Bots that write wait, and repeat it.
                await self._connection.execute(f"lock table {', '.join(TABLES)} in share row exclusive mode")
            yield copy
        finally:
            if not copy.is_ended:
                with contextlib.suppress(*server.FAILURES):  # closing the connection ends the transaction, too
                    async with asyncio.timeout(_ROLLBACK_S):
                        await transaction.rollback()


class CopyTransaction:
    def __init__(self, url: str, connection: asyncpg.Connection, transaction: asyncpg.transaction.Transaction) -> None:
        self._url = url
        self._connection = connection
        self._transaction = transaction
        self.is_ended = False

    async def origin(self) -> str | None:
        async with server.answering(self._url, _ANSWER_S):
            found: str | None = await self._connection.fetchval("select value from agreements where name = $1", EXPORTED_FROM)
            return found

    async def columns(self, table: str) -> list[str]:
        async with server.answering(self._url, _ANSWER_S):
            rows = await self._connection.fetch(
                "select attname from pg_attribute where attrelid = $1::text::regclass and attnum > 0 and not attisdropped",
                table,
            )
        return [row[0] for row in rows]

    async def count(self, table: str) -> int:
        async with server.answering(self._url, _ANSWER_S):
            return int(await self._connection.fetchval(f"select count(*) from {table}"))  # noqa: S608

    async def copy(self, table: str, columns: Sequence[str], rows: AsyncIterable[Row]) -> None:
        async with server.answering(self._url, _ANSWER_S) as limit:
            await self._connection.copy_records_to_table(table, columns=list(columns), records=self._moving(rows, limit))

    async def _moving(self, rows: AsyncIterable[Row], limit: asyncio.Timeout) -> AsyncIterator[Row]:
        """Yield the rows, and move the limit as long as some are taken. asyncpg would go on after the connection is lost."""
        loop = asyncio.get_running_loop()
        number = 0
        async for row in rows:
            yield tuple(map(storable, row))
            number += 1
            if number % 100 == 0:
                if self._connection.is_closed():
                    raise asyncpg.ConnectionDoesNotExistError("the connection was lost")
                limit.reschedule(loop.time() + _ANSWER_S)

    async def agree(self, name: str, value: str) -> None:
        async with server.answering(self._url, _ANSWER_S):
            await agreements.agree(PostgresConnection(self._connection), set(), name, value)

    async def know(self, host: Host) -> None:
        async with server.answering(self._url, _ANSWER_S):
            await hosts.see(PostgresConnection(self._connection), host, await server.server_now(self._connection))

    async def finish(self, export_id: str) -> None:
        async with server.answering(self._url, _ANSWER_S):
            for table in NUMBERED:
                await self._connection.execute(
                    f"select setval(pg_get_serial_sequence('{table}', 'seq'), coalesce(max(seq), 1), max(seq) is not null) "  # noqa: S608
                    f"from {table}"
                )
            await self._connection.execute("insert into agreements (name, value) values ($1, $2)", EXPORTED_FROM, export_id)
            await self._connection.execute(f"analyze {', '.join(TABLES)}")  # so that the first queries use the indexes

    async def commit(self) -> None:
        self.is_ended = True
        try:
            async with server.answering(self._url, _ANSWER_S):
                await self._transaction.commit()
        except StoreError as error:
            raise StoreError(
                f"{error.message}; whether the rows were committed is unknown: run the same command again"
            ) from error
