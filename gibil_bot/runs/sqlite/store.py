"""The SQLite store: ports.Store in one file. Writes are durable when a method returns, and none blocks the event loop.

One thread does all writes and commits the waiting ones together. Reads use a separate connection, see committed data, and never
wait for the disk. `inbox`, `runs` and `outbox` each have a file with their SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gibil_bot.errors import StoreError
from gibil_bot.runs.sqlite import database, heads, inbox, outbox, runs
from gibil_bot.runs.sqlite.inbox import SqliteInbox
from gibil_bot.runs.sqlite.outbox import SqliteOutbox
from gibil_bot.runs.sqlite.runs import SqliteRuns
from gibil_bot.runs.sqlite.threads import Connections, DatabaseThreads

DAY_S = 86400.0
PAYLOAD_DAYS, HISTORY_DAYS = 7, 90
PRUNE_STEP = 500
"""Maximum number of rows that one transaction of `prune` removes."""


class SqliteStore:
    """ports.Store. Created by `open_store`; used from the event loop that opened it."""

    def __init__(self, threads: DatabaseThreads) -> None:
        self._threads = threads
        self.inbox = SqliteInbox(threads)
        self.runs = SqliteRuns(threads)
        self.outbox = SqliteOutbox(threads)

    async def counts(self) -> dict[str, int]:
        return await self._threads.read(_counts)

    async def prune(self) -> int:
        """Delete old rows as ports.Store describes, in steps, so that other writes can run in between.

        Payloads of failed deliveries are stored as long as history.
        """
        now = self._threads.now()
        week, quarter = now - PAYLOAD_DAYS * DAY_S, now - HISTORY_DAYS * DAY_S
        steps: list[Callable[[sqlite3.Connection, set[str]], int]] = [
            partial(inbox.prune_payloads, handled_before=week, failed_before=quarter, limit=PRUNE_STEP),
            partial(inbox.prune, handled_before=quarter, limit=PRUNE_STEP),
            partial(inbox.prune_cancellations, limit=PRUNE_STEP),
            partial(runs.prune, finished_before=quarter, limit=PRUNE_STEP),
            partial(outbox.prune, published_before=quarter, limit=PRUNE_STEP),
            partial(heads.prune, seen_before=quarter, limit=PRUNE_STEP),
            partial(heads.prune_pushes, seen_before=quarter, limit=PRUNE_STEP),
            partial(inbox.prune_budgets, now=now, limit=PRUNE_STEP),
        ]
        total = 0
        for step in steps:
            deleted = PRUNE_STEP
            while deleted == PRUNE_STEP:
                deleted = await self._threads.write(step)
                total += deleted
        return total

    async def close(self) -> None:
        """Wait for submitted writes, which continue even if the caller is cancelled. Safe to repeat."""
        await self._threads.close()


async def open_store(database_url: str, *, exclusive: bool = True, clock: Callable[[], float] = time.time) -> SqliteStore:
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
    return SqliteStore(DatabaseThreads(path, parts, lock, clock))


def _open(path: Path, exclusive: bool) -> tuple[Connections, int | None]:
    lock: int | None = None
    with database.translated(path):
        try:
            database.create_file(path)
            lock = database.lock(path) if exclusive else None
            parts = Connections(path)
            if exclusive:
                _end_all_leases(parts.writer)
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


def _end_all_leases(db: sqlite3.Connection) -> None:
    db.execute("begin immediate")
    db.execute("update deliveries set lease_until = 0, owner = '' where handled_at is null and lease_until > 0")
    db.execute("update runs set lease_until = 0, owner = '' where finished_at is null and state = 'running'")
    db.execute("update tellings set lease_until = 0, owner = '' where lease_until > 0")
    db.execute("commit")


def _counts(db: sqlite3.Connection) -> dict[str, int]:
    counted = {
        "deliveries_unhandled": "deliveries where handled_at is null",
        "deliveries_failed": "deliveries indexed by deliveries_failed where handled_at is not null and error is not null",
        "runs_queued": "runs where finished_at is null and state = 'queued'",
        "runs_running": "runs where finished_at is null and state = 'running'",
        "runs_finished": "runs where finished_at is not null",
        "tellings_due": "tellings where revision > told_revision and revision > refused_revision",
        "tellings_failed": "tellings where revision > told_revision and revision <= refused_revision",
    }
    columns = ", ".join(f"(select count(*) from {rows})" for rows in counted.values())  # noqa: S608
    return dict(zip(counted, db.execute(f"select {columns}").fetchone(), strict=True))
