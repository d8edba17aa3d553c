"""The threads that work on the database: one writes, one reads, one checkpoints. The four stores share them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from gibil_bot.errors import StoreError
from gibil_bot.runs.maintenance.database import exported_error, read_mark
from gibil_bot.runs.signals import Signals, Subscription
from gibil_bot.runs.sql.connection import Job, Query
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.checkpointer import Checkpointer
from gibil_bot.runs.sqlite.connection import SqliteConnection, completed
from gibil_bot.runs.sqlite.writer import Writer

T = TypeVar("T")


class Connections:
    """One connection per thread, all to the same file."""

    def __init__(self, path: Path) -> None:
        opened: list[sqlite3.Connection] = []
        try:
            for readonly in (False, True, False):
                opened.append(database.connect(path, readonly=readonly))
            database.migrate(opened[0], path)
            if (mark := completed(read_mark(SqliteConnection(opened[0])))) is not None:
                raise exported_error(str(path), mark)
        except BaseException:
            for db in opened:
                db.close()
            raise
        self.writer, self.reader, self.checkpointer = opened

    def close(self) -> None:
        """Checkpoint the log, so that a copy of the file alone is complete, and close the connections."""
        self.reader.close()
        with contextlib.suppress(sqlite3.Error):  # the log is durable, and checkpointed at the next start
            self.writer.execute("pragma wal_checkpoint(truncate)").fetchone()
        self.writer.close()


class DatabaseThreads:
    """sql.connection.Database on one file."""

    room_bytes = 64 * 1024

    def __init__(self, path: Path, connections: Connections, lock: int | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._path = path
        self._connections = connections
        self._lock = lock
        self.is_shared = lock is None
        self._signals = Signals()
        self._checkpointer = Checkpointer(connections.checkpointer)
        self._writer = Writer(connections.writer, path, on_commit=self._signals.notify, between=self._checkpointer.after_batch)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="gibil-store-reader")
        self._closing: asyncio.Task[None] | None = None

    def now(self) -> float:
        return self._clock()

    async def write(self, job: Job[T]) -> T:
        return await self._writer.submit(job)

    async def read(self, query: Query[T]) -> T:
        """Doesn't wait for the writer."""
        if self._closing is not None:
            raise StoreError(f"the database {self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._query, query)

    def changed(self, topic: str) -> Subscription:
        return self._signals.subscribe(topic)

    async def close(self) -> None:
        """Wait for submitted jobs, which continue even if the caller is cancelled. Safe to repeat."""
        if self._closing is None:
            self._writer.stop()
            self._closing = asyncio.create_task(asyncio.to_thread(self._close))
        await asyncio.shield(self._closing)

    def _close(self) -> None:
        self._writer.join()
        self._checkpointer.close()
        self._reader.shutdown(wait=True)
        self._connections.close()
        if self._lock is not None:
            os.close(self._lock)

    def _query(self, query: Query[T]) -> T:
        with database.translated(self._path):
            return completed(query(SqliteConnection(self._connections.reader)))
