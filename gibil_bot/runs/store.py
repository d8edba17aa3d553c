"""The SQLite store: ports.Store on one file, durable when a method returns, never blocking the event loop.

All writes go through one thread that commits what waits together; reads have a connection of their own, see what is
committed, and never wait for a disk. The SQL is in `runs/sqlite/`, one file per kind of row.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from gibil_bot.errors import StoreError
from gibil_bot.model import (
    BranchPush,
    Claim,
    Conclusion,
    Delivery,
    DueNotification,
    HeadHistory,
    HeadSeen,
    Notification,
    Priority,
    Run,
    Spending,
    TaskResult,
)
from gibil_bot.ports import Settlement
from gibil_bot.runs.sqlite import budgets, claims, database, deliveries, heads, runs
from gibil_bot.runs.sqlite import outbox as tellings
from gibil_bot.runs.sqlite.checkpointer import Checkpointer
from gibil_bot.runs.sqlite.signals import Signals, Subscription
from gibil_bot.runs.sqlite.writer import Writer

T = TypeVar("T")

DAY_S = 86400.0
PAYLOAD_DAYS, HISTORY_DAYS = 7, 90
PRUNE_STEP = 500
"""Rows that one transaction of `prune` removes at most."""


class SqliteStore:
    """ports.Store. Made by `open_store`, used from the event loop that opened it."""

    def __init__(self, path: Path, parts: _Connections, lock: int | None, clock: Callable[[], float]) -> None:
        self._path = path
        self._parts = parts
        self._lock = lock
        self._clock = clock
        self._signals = Signals()
        self._checkpointer = Checkpointer(parts.checkpointer)
        self._writer = Writer(parts.writer, path, on_commit=self._signals.notify, between=self._checkpointer.after_batch)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="gibil-store-reader")
        self._closing: asyncio.Task[None] | None = None

    # Deliveries

    async def accept(
        self, delivery: Delivery, *, handled: bool = False, observed: Sequence[HeadSeen | BranchPush] = ()
    ) -> bool:
        now = self._clock()
        job = partial(deliveries.accept, delivery=delivery, handled_at=now if handled else None, observed=observed, now=now)
        return await self._writer.submit(job)

    async def claim_deliveries(self, owner: str, *, limit: int, cancels: int = 0, lease_s: float) -> list[Delivery]:
        job = partial(deliveries.claim, owner=owner, limit=limit, cancels=cancels, now=self._clock(), lease_s=lease_s)
        return await self._writer.submit(job)

    async def settle(self, owner: str, guid: str, settlement: Settlement) -> None:
        job = partial(deliveries.settle, owner=owner, guid=guid, settlement=settlement, now=self._clock())
        await self._writer.submit(job)

    async def has_earlier(self, guid: str, repository_id: int, number: int) -> bool:
        return await self._read(partial(deliveries.has_earlier, guid=guid, repository_id=repository_id, number=number))

    async def postpone(self, owner: str, guid: str, error: str, *, delay_s: float) -> None:
        job = partial(deliveries.postpone, owner=owner, guid=guid, error=error, due_at=self._clock() + delay_s)
        await self._writer.submit(job)

    async def delivery(self, guid: str) -> tuple[Delivery, bool, str | None] | None:
        """A payload that was pruned is empty."""
        return await self._read(partial(deliveries.get, guid=guid))

    # Runs

    async def claim_run(self, owner: str, *, lease_s: float, max_machines: int) -> Claim | None:
        job = partial(claims.claim_run, owner=owner, now=self._clock(), lease_s=lease_s, max_machines=max_machines)
        return await self._writer.submit(job)

    async def heartbeat(self, claims: Sequence[Claim], *, lease_s: float) -> dict[str, str | None]:
        return await self._writer.submit(partial(runs.heartbeat, claims=claims, lease_until=self._clock() + lease_s))

    async def release(self, claim: Claim) -> None:
        await self._writer.submit(partial(runs.release, claim=claim))

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int) -> None:
        await self._writer.submit(partial(runs.save_machine, claim=claim, machine=machine, attempt=attempt))

    async def save_note(self, claim: Claim, note: str) -> None:
        await self._writer.submit(partial(runs.save_note, claim=claim, note=note))

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        await self._writer.submit(partial(runs.save_task, claim=claim, result=result))

    async def finish(self, claim: Claim, conclusion: Conclusion, tellings: Sequence[Notification]) -> None:
        job = partial(runs.finish, claim=claim, conclusion=conclusion, tellings=tellings, now=self._clock())
        await self._writer.submit(job)

    async def tell(self, claim: Claim | None, tellings: Sequence[Notification]) -> None:
        await self._writer.submit(partial(runs.tell, claim=claim, tellings=tellings, now=self._clock()))

    async def request_cancel(self, run_id: str, reason: str) -> bool:
        return await self._writer.submit(partial(runs.request_cancel, run_id=run_id, reason=reason))

    async def run(self, run_id: str) -> Run | None:
        return await self._read(partial(runs.get, run_id=run_id))

    async def task_results(self, run_id: str, machine_attempt: int) -> list[TaskResult]:
        return await self._read(partial(runs.task_results, run_id=run_id, machine_attempt=machine_attempt))

    async def queued(self) -> list[Run]:
        return await self._read(runs.queued)

    async def unfinished(self) -> list[Run]:
        return await self._read(runs.unfinished)

    async def runs_of(self, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
        return await self._read(partial(runs.of_repository, repository_id=repository_id, number=number, sha=sha))

    async def bind_secrets(self, claim: Claim, fingerprint: str) -> bool:
        return await self._writer.submit(partial(runs.bind_secrets, claim=claim, fingerprint=fingerprint))

    # Who put a commit there

    async def head_history(self, repository_id: int, number: int, sha: str, fork_id: int | None = None) -> HeadHistory:
        return await self._read(partial(heads.history, repository_id=repository_id, number=number, sha=sha, fork_id=fork_id))

    # What GitHub has still to be told

    async def claim_tellings(
        self,
        owner: str,
        *,
        limit: int,
        lease_s: float,
        not_keys: Sequence[str] = (),
        up_to: Priority = Priority.REACTION,
    ) -> list[DueNotification]:
        job = partial(
            tellings.claim, owner=owner, limit=limit, now=self._clock(), lease_s=lease_s, not_keys=not_keys, up_to=up_to
        )
        return await self._writer.submit(job)

    async def told(self, owner: str, due: DueNotification, remote_id: int | None) -> None:
        await self._writer.submit(partial(tellings.told, owner=owner, due=due, remote_id=remote_id, now=self._clock()))

    async def untold(self, owner: str, due: DueNotification, error: str, *, retry_s: float | None, failed: bool = True) -> None:
        job = partial(tellings.untold, owner=owner, due=due, error=error, now=self._clock(), retry_s=retry_s, failed=failed)
        await self._writer.submit(job)

    async def telling(self, key: str) -> tuple[DueNotification, bool, str | None] | None:
        return await self._read(partial(tellings.get, key=key))

    # Beside

    async def spend(self, key: str, *, cost: float, capacity: float, per_s: float) -> Spending:
        job = partial(budgets.spend, key=key, cost=cost, capacity=capacity, per_s=per_s, now=self._clock())
        return await self._writer.submit(job)

    async def counts(self) -> dict[str, int]:
        return await self._read(_counts)

    def changed(self, topic: str) -> Subscription:
        """Renewing a lease is no write that wakes: nobody can do more than before."""
        return self._signals.subscribe(topic)

    async def prune(self) -> int:
        """Forget what is old, in steps that others' writes come between: payloads of deliveries handled a week ago (three
        months for those that failed, which are kept for replay); after three months their GUIDs too, finished runs, what
        GitHub was told, and the heads of pull requests at which nothing happened since. How many rows went."""
        week = self._clock() - PAYLOAD_DAYS * DAY_S
        quarter = self._clock() - HISTORY_DAYS * DAY_S
        steps: list[Callable[[sqlite3.Connection, set[str]], int]] = [
            partial(deliveries.prune_payloads, handled_before=week, failed_before=quarter, limit=PRUNE_STEP),
            partial(deliveries.prune, handled_before=quarter, limit=PRUNE_STEP),
            partial(deliveries.prune_cancellations, limit=PRUNE_STEP),
            partial(runs.prune, finished_before=quarter, limit=PRUNE_STEP),
            partial(tellings.prune, told_before=quarter, limit=PRUNE_STEP),
            partial(heads.prune, seen_before=quarter, limit=PRUNE_STEP),
            partial(heads.prune_pushes, seen_before=quarter, limit=PRUNE_STEP),
            partial(budgets.prune, now=self._clock(), limit=PRUNE_STEP),
        ]
        total = 0
        for step in steps:
            gone = PRUNE_STEP
            while gone == PRUNE_STEP:
                gone = await self._writer.submit(step)
                total += gone
        return total

    async def close(self) -> None:
        """Waits for what was submitted, also when the caller is cancelled: then it goes on by itself. Safe to repeat."""
        if self._closing is None:
            self._writer.stop()
            self._closing = asyncio.create_task(asyncio.to_thread(self._close))
        await asyncio.shield(self._closing)

    def _close(self) -> None:
        self._writer.join()
        self._checkpointer.close()
        self._reader.shutdown(wait=True)
        self._parts.close()
        if self._lock is not None:
            os.close(self._lock)

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        if self._closing is not None:
            raise StoreError(f"the database {self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._query, query)

    def _query(self, query: Callable[[sqlite3.Connection], T]) -> T:
        with database.translated(self._path):
            return query(self._parts.reader)


class _Connections:
    """One for each thread, all to the same file."""

    def __init__(self, path: Path) -> None:
        opened: list[sqlite3.Connection] = []
        try:
            for readonly in (False, True, False):
                opened.append(database.connect(path, readonly=readonly))
            database.migrate(opened[0], path)
        except BaseException:
            for db in opened:
                db.close()
            raise
        self.writer, self.reader, self.checkpointer = opened

    def close(self) -> None:
        """The log is carried over, so that the file alone is a whole copy."""
        self.reader.close()
        with contextlib.suppress(sqlite3.Error):  # what stays in the log is safe there, and carried over at the next start
            self.writer.execute("pragma wal_checkpoint(truncate)").fetchone()
        self.writer.close()


async def open_store(database_url: str, *, exclusive: bool = True, clock: Callable[[], float] = time.time) -> SqliteStore:
    """Open, and create or migrate, the database of `sqlite:///path`. Raises StoreError with what to do.

    `exclusive`: no other process may use it, which `<file>.lock` ensures; so every lease in it is a dead process's and ends
    at once, and work goes on right after a crash. Without it several stores share the file, and leases end by time.
    """
    path = database.database_path(database_url)
    opening = asyncio.create_task(asyncio.to_thread(_open, path, exclusive))
    try:
        parts, lock = await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(StoreError):  # the thread cannot be stopped, so that what it opens is closed
            parts, lock = await opening
            await asyncio.to_thread(_abandon, parts, lock)
        raise
    return SqliteStore(path, parts, lock, clock)


def _open(path: Path, exclusive: bool) -> tuple[_Connections, int | None]:
    lock: int | None = None
    with database.translated(path):
        try:
            database.create_file(path)
            lock = database.lock(path) if exclusive else None
            parts = _Connections(path)
            if exclusive:
                _end_all_leases(parts.writer)
            return parts, lock
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise


def _abandon(parts: _Connections, lock: int | None) -> None:
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
