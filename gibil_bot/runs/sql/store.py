"""ports.Store over a database that `connection.py` describes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from gibil_bot.errors import StoreError
from gibil_bot.runs.sql import agreements, heads, inbox, ledger, outbox, runs
from gibil_bot.runs.sql.connection import Connection, Database
from gibil_bot.runs.sql.hosts import SqlHosts
from gibil_bot.runs.sql.inbox import SqlInbox
from gibil_bot.runs.sql.ledger import SqlLedger
from gibil_bot.runs.sql.outbox import SqlOutbox
from gibil_bot.runs.sql.runs import SqlRuns

DAY_S = 86400.0
PAYLOAD_DAYS, HISTORY_DAYS, DAILY_SUM_DAYS = 7, 90, 400
PRUNE_STEP = 500
"""Maximum number of rows that one transaction of `prune` removes."""


class SqlStore:
    """ports.Store. Used from the event loop that opened the database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.is_shared = database.is_shared
        self.inbox = SqlInbox(database)
        self.runs = SqlRuns(database)
        self.outbox = SqlOutbox(database)
        self.ledger = SqlLedger(database)
        self.hosts = SqlHosts(database)

    async def agree(self, name: str, value: str, *, replace: bool = False) -> str:
        if replace:
            await self.database.write(partial(agreements.replace, name=name, value=value))
            return value
        return await self.database.write(partial(agreements.agree, name=name, value=value))

    async def check_writable(self) -> None:
        await self.database.write(partial(_fill, size=self.database.room_bytes))
        await self.database.write(_clear)

    async def counts(self) -> dict[str, int]:
        return await self.database.read(counts)

    async def prune(self, on_step: Callable[[str, int], None] | None = None) -> dict[str, int]:
        """Delete old rows as ports.Store describes, in steps, so that other writes can run in between.

        Payloads of failed deliveries are stored as long as history. A kind that fails doesn't stop the others, whose rows may
        be what the database has no room for. Then StoreError is raised at the end; at once if the database can't be reached.
        """
        now = self.database.now()
        week, quarter = now - PAYLOAD_DAYS * DAY_S, now - HISTORY_DAYS * DAY_S
        years = now - DAILY_SUM_DAYS * DAY_S
        steps: dict[str, Callable[[Connection, set[str]], Coroutine[Any, Any, int]]] = {
            "payloads": partial(inbox.prune_payloads, handled_before=week, failed_before=quarter, limit=PRUNE_STEP),
            "deliveries": partial(inbox.prune, handled_before=quarter, limit=PRUNE_STEP),
            "cancellations": partial(inbox.prune_cancellations, limit=PRUNE_STEP),
            "runs": partial(runs.prune, finished_before=quarter, limit=PRUNE_STEP),
            "notifications": partial(outbox.prune, published_before=quarter, limit=PRUNE_STEP),
            "pull_requests": partial(heads.prune, seen_before=quarter, limit=PRUNE_STEP),
            "branch_pushes": partial(heads.prune_pushes, seen_before=quarter, limit=PRUNE_STEP),
            "rate_limits": partial(inbox.prune_budgets, now=now, limit=PRUNE_STEP),
            "model_calls": partial(ledger.prune, used_before=quarter, limit=PRUNE_STEP),
            "model_sums": partial(ledger.prune_sums, used_before=quarter, days_before=years, limit=PRUNE_STEP),
        }
        total = dict.fromkeys(steps, 0)
        failed: StoreError | None = None
        for kind, step in steps.items():
            deleted = PRUNE_STEP
            try:
                while deleted == PRUNE_STEP:
                    if on_step is not None:
                        on_step(kind, total[kind])
                    deleted = await self.database.write(step)
                    total[kind] += deleted
            except StoreError as error:
                await self.database.read(_answers)
                failed = failed or StoreError(f"old {kind.replace('_', ' ')} can't be deleted: {error.message}")
        if failed is not None:
            raise failed
        return total

    async def close(self) -> None:
        """Wait for submitted writes, which continue even if the caller is cancelled. Safe to repeat."""
        await self.database.close()


_CHECK = "check of writing"
"""The name of a row in the table agreements that exists for a moment."""


async def _fill(db: Connection, _: set[str], size: int) -> None:
    """Changing a row isn't enough: SQLite would reuse the space of its earlier version, also on a full disk."""
    await db.run(
        "insert into agreements (name, value) values (?, ?) on conflict (name) do update set value = excluded.value",
        (_CHECK, "x" * size),
    )


async def _clear(db: Connection, _: set[str]) -> None:
    await db.run("delete from agreements where name = ?", (_CHECK,))


async def _answers(db: Connection) -> None:
    await db.row("select 1")


async def counts(db: Connection) -> dict[str, int]:
    """As ports.Store.counts."""
    counted = {
        "deliveries_unhandled": "deliveries where handled_at is null",
        "deliveries_failed": "deliveries indexed by deliveries_failed where handled_at is not null and error is not null",
        "runs_queued": "runs where finished_at is null and state = 'queued'",
        "runs_running": "runs where finished_at is null and state = 'running'",
        "runs_finished": "runs where finished_at is not null",
        "tellings_due": f"notifications where {outbox.PENDING}",
        "tellings_failed": "notifications where revision > published_revision and revision <= rejected_revision",
    }
    columns = ", ".join(f"(select count(*) from {rows})" for rows in counted.values())  # noqa: S608
    row = await db.row(f"select {columns}")
    assert row is not None
    return dict(zip(counted, row, strict=True))
