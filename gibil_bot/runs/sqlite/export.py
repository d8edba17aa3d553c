"""maintenance.export.Source: the file whose rows are exported."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gibil_bot.errors import StoreError
from gibil_bot.runs.maintenance.database import EXPORTED_TO, Export, read_mark
from gibil_bot.runs.maintenance.export import Row
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.connection import SqliteConnection, completed
from gibil_bot.runs.sqlite.maintenance import locked
from gibil_bot.runs.sqlite.store import end_all_leases

T = TypeVar("T")

_AT_ONCE = 200
"""Rows in memory. The payload of a delivery has up to 25 MB, so of those it is one."""


@contextlib.asynccontextmanager
async def open_source(url: str) -> AsyncIterator[ExportedFile]:
    """Lock and migrate the file, and end its leases. Raises StoreError if a bot is running, or there is no file."""
    path = database.database_path(url)
    if not path.exists():
        raise StoreError(f"the database {path} doesn't exist, so there is nothing to export")
    with database.translated(path), locked(path) as db:
        await asyncio.to_thread(database.migrate, db, path)
        await asyncio.to_thread(end_all_leases, db)
        reader = database.connect(path, readonly=True)
        try:
            yield ExportedFile(path, db, reader)
        finally:
            reader.close()


class ExportedFile:
    """Reads the rows as they were at the first read."""

    def __init__(self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader

    @property
    def name(self) -> str:
        return str(self._path)

    async def mark(self) -> Export | None:
        return await self._in_thread(lambda: completed(read_mark(SqliteConnection(self._writer))))

    async def set_mark(self, mark: Export | None) -> None:
        def write() -> None:
            self._writer.execute("begin immediate")
            self._writer.execute("delete from agreements where name = ?", (EXPORTED_TO,))
            if mark is not None:
                text = msgspec.json.encode(mark).decode()
                self._writer.execute("insert into agreements (name, value) values (?, ?)", (EXPORTED_TO, text))
            self._writer.execute("commit")

        await self._in_thread(write)

    async def hosts(self) -> dict[str, str]:
        return dict(await self._in_thread(lambda: self._writer.execute("select id, name from hosts").fetchall()))

    async def agreement(self, name: str) -> str | None:
        query = "select value from agreements where name = ?"
        found: list[tuple[str]] = await self._in_thread(lambda: self._writer.execute(query, (name,)).fetchall())
        return found[0][0] if found else None

    async def columns(self, table: str) -> list[str]:
        rows = await self._rows_of(f"select name from pragma_table_info('{table}')")  # noqa: S608
        return [name for (name,) in rows]

    async def count(self, table: str) -> int:
        return int((await self._rows_of(f"select count(*) from {table}"))[0][0])  # noqa: S608

    async def rows(self, table: str) -> AsyncGenerator[Row, None]:
        cursor = await self._in_thread(lambda: self._begun().execute(f"select * from {table}"))  # noqa: S608
        try:
            number = 1 if table == "payloads" else _AT_ONCE
            while found := await self._in_thread(lambda: cursor.fetchmany(number)):
                for row in found:
                    yield row
        finally:
            cursor.close()

    def _begun(self) -> sqlite3.Connection:
        if not self._reader.in_transaction:
            self._reader.execute("begin")
        return self._reader

    async def _rows_of(self, query: str) -> list[tuple[Any, ...]]:
        return await self._in_thread(lambda: self._begun().execute(query).fetchall())

    async def _in_thread(self, call: Callable[[], T]) -> T:
        """Wait for the call even if the caller is cancelled: a connection has one user at a time."""

        def translated() -> T:
            with database.translated(self._path):
                return call()

        running = asyncio.ensure_future(asyncio.to_thread(translated))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            with contextlib.suppress(StoreError):
                await running
            raise
