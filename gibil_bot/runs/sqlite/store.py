"""Opens the SQLite store: ports.Store in one file. Writes are durable when a method returns, and none blocks the event loop.

One thread does all writes and commits the waiting ones together. Reads use a separate connection, see committed data, and never
wait for the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from gibil_bot.errors import StoreError
from gibil_bot.runs.sql import ledger
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.connection import SqliteConnection, completed
from gibil_bot.runs.sqlite.threads import Connections, DatabaseThreads


async def open_store(database_url: str, *, exclusive: bool = True, clock: Callable[[], float] = time.time) -> SqlStore:
    """Open, and create or migrate, the database of `sqlite:///path`. Raises StoreError with what to do.

    `exclusive`: no other process may use it, which `<file>.lock` ensures. Every lease in it then belongs to a dead process and
    ends at once, so work continues right after a crash. Otherwise several stores share the file, and leases end by time.
    """
    path = database.database_path(database_url)
    opening = asyncio.create_task(asyncio.to_thread(_open, path, exclusive))
    try:
        parts, lock = await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(StoreError):  # the thread can't be stopped, so close what it opens
            parts, lock = await opening
            await asyncio.to_thread(_abandon, parts, lock)
        raise
    return SqlStore(DatabaseThreads(path, parts, lock, clock))


def _open(path: Path, exclusive: bool) -> tuple[Connections, int | None]:
    lock: int | None = None
    with database.translated(path):
        try:
            database.create_file(path)
            lock = database.lock(path) if exclusive else None
            parts = Connections(path)
            if exclusive:
                end_all_leases(parts.writer)
            return parts, lock
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise


def _abandon(parts: Connections, lock: int | None) -> None:
    parts.checkpointer.close()
    parts.close()
    if lock is not None:
        os.close(lock)


def end_all_leases(db: sqlite3.Connection) -> None:
    """End the leases of dead processes. The caller holds the file's lock."""
    db.execute("begin immediate")
    db.execute("update deliveries set lease_until = 0, owner = '' where handled_at is null and lease_until > 0")
    db.execute("update runs set lease_until = 0, owner = '' where finished_at is null and state = 'running'")
    db.execute("update notifications set lease_until = 0, owner = '' where lease_until > 0")
    completed(ledger.book_estimates(SqliteConnection(db), set(), time.time()))
    db.execute("commit")
