"""Copies a SQLite file to PostgreSQL, so that its bot continues there: all rows in one transaction, with their numbers.

The file is marked before the copy is committed, and the mark is finished afterwards. A process that ends in between leaves a
mark that isn't finished: no bot starts on the file, and the same export finds out whether the rows were committed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import replace

from gibil_bot.errors import StoreError
from gibil_bot.model import Host
from gibil_bot.runs.maintenance.database import EXPORTED_TO, TABLES, Export, exported_error

Row = Sequence[Any]

_PROGRESS_ROWS = 500


class Source(Protocol):
    """The file, of this version. No bot uses it as long as it is open, and no lease in it holds."""

    @property
    def name(self) -> str: ...

    async def mark(self) -> Export | None: ...

    async def set_mark(self, mark: Export | None) -> None:
        """Write the mark, or delete it. It is on disk when this returns."""

    async def hosts(self) -> dict[str, str]:
        """Return id → name of the hosts that used the file."""

    async def agreement(self, name: str) -> str | None:
        """Return a value of runs.agreements."""

    async def columns(self, table: str) -> list[str]: ...

    async def count(self, table: str) -> int: ...

    def rows(self, table: str) -> AsyncGenerator[Row, None]:
        """Yield the rows, all of one moment, a bounded number at a time in memory."""


class Copy(Protocol):
    """A transaction on the target, during which no other process writes to it."""

    async def origin(self) -> str | None:
        """Return the id of the export that filled the database."""

    async def columns(self, table: str) -> list[str]: ...

    async def count(self, table: str) -> int: ...

    async def copy(self, table: str, columns: Sequence[str], rows: AsyncIterable[Row]) -> None: ...

    async def agree(self, name: str, value: str) -> None:
        """Store a value of runs.agreements, unless one of that name was copied."""

    async def know(self, host: Host) -> None:
        """Record the host as seen at this moment."""

    async def finish(self, export_id: str) -> None:
        """Let new rows have higher numbers than all copied ones, and record the export's id as the database's origin."""

    async def commit(self) -> None:
        """Raises StoreError; then it is unknown whether the copy was committed."""


class Target(Protocol):
    """The PostgreSQL database, of this version."""

    @property
    def name(self) -> str:
        """Its URL without a password."""

    def copying(self) -> AbstractAsyncContextManager[Copy]:
        """Begin a transaction, which is rolled back unless it is committed in the block."""


class Exported(Struct, frozen=True, kw_only=True):
    rows: Mapping[str, int]
    """By table; empty if an earlier export had copied them."""
    was_copied_before: bool
    """An earlier export had copied the rows. This one has at most finished the file's mark."""


ChangeOf = Callable[[str, Sequence[str]], Callable[[Row], Row | None]]
OnProgress = Callable[[str, int, int], None]
"""Called with the table, the rows copied so far, and all rows."""


async def require_exportable(source: Source, name: str, host: Host) -> None:
    """Raise StoreError if the file was exported to another database than that of this name, or is another host's."""
    mark = await source.mark()
    if mark is not None and mark.url != name:
        raise exported_error(source.name, mark)
    known = await source.hosts()
    if known and host.id not in known:
        raise StoreError(
            f"the database {source.name} belongs to a bot with another data directory, with the host.id "
            f"{' or '.join(known)} ({', '.join(known.values())}): export it with the bot's settings, GIBIL_DATA_DIR included"
        )


async def export(
    source: Source, target: Target, host: Host, progress: OnProgress, *, provider: str, keyring: str | None
) -> Exported:
    """Copy the file's rows to a target that `require_exportable` allows.

    For a file that doesn't know them, because no bot of this version used it: `provider`, the configured one (only this host
    reaches machines of `local`), and `keyring`, the check value of the bot's key. Otherwise a bot with another key could start
    first, and decide.

    Raises StoreError if the target has other rows, or can't be written; then the file is as before.
    """
    mark = await source.mark()
    new = Export(id=secrets.token_hex(8), url=target.name, at=datetime.now(UTC), finished=False)
    async with target.copying() as copy:
        if mark is not None and mark.id == await copy.origin():
            if not mark.finished:
                await source.set_mark(replace(mark, finished=True))
            return Exported(rows={}, was_copied_before=True)
        if mark is not None and mark.finished:
            raise exported_error(source.name, mark)
        await _require_empty(copy, target.name)
        has_machines = (await source.agreement("provider") or provider).startswith("local")
        await source.set_mark(new)
        try:
            copied = await _copy_all(source, copy, _change(host, has_machines), progress)
            if keyring is not None:
                await copy.agree("keyring", keyring)
            await copy.know(host)
            await copy.finish(new.id)
        except BaseException:
            await asyncio.shield(source.set_mark(None))
            raise
        await copy.commit()
    await source.set_mark(replace(new, finished=True))
    return Exported(rows=copied, was_copied_before=False)


async def _require_empty(copy: Copy, name: str) -> None:
    found = {table: number for table in TABLES if (number := await copy.count(table))}
    if found:
        rows = ", ".join(f"{number} in {table}" for table, number in found.items())
        raise StoreError(f"the database {name} isn't empty: it has rows ({rows}); export to another one (createdb creates it)")


async def _copy_all(source: Source, copy: Copy, change_of: ChangeOf, progress: OnProgress) -> dict[str, int]:
    expected = {table: await source.count(table) for table in TABLES}
    copied: dict[str, int] = {}
    done, total = 0, sum(expected.values())
    for table in TABLES:
        columns = await source.columns(table)
        if sorted(columns) != sorted(await copy.columns(table)):
            raise StoreError(f"internal error: the table {table} has other columns in the two databases")
        rows = _Rows(source.rows(table), change_of(table, columns), partial(_shifted, progress, table, done, total))
        await copy.copy(table, columns, rows)
        copied[table] = await copy.count(table)
        if copied[table] != expected[table] - rows.left_out:
            raise StoreError(
                f"the table {table} has {expected[table]} rows in {source.name}, and {copied[table]} were copied; nothing was "
                "exported: stop the programs that write to the file, and try again"
            )
        done += expected[table]
    return copied


def _shifted(progress: OnProgress, table: str, before: int, total: int, number: int) -> None:
    progress(table, before + number, total)


class _Rows:
    """The rows of a table as the target stores them."""

    def __init__(
        self, rows: AsyncGenerator[Row, None], change: Callable[[Row], Row | None], progress: Callable[[int], None]
    ) -> None:
        self._rows = rows
        self._change = change
        self._progress = progress
        self.left_out = 0

    async def __aiter__(self) -> AsyncIterator[Row]:
        number = 0
        async with aclosing(self._rows) as rows:
            async for row in rows:
                changed = self._change(row)
                if changed is None:
                    self.left_out += 1
                else:
                    yield changed
                number += 1
                if number % _PROGRESS_ROWS == 0:
                    self._progress(number)


def _change(host: Host, has_machines: bool) -> ChangeOf:
    """Return a function of a table and its columns, whose result adapts a row to its new database. None leaves it out."""

    def of_table(table: str, columns: Sequence[str]) -> Callable[[Row], Row | None]:
        if table == "agreements":
            name = columns.index("name")
            return lambda row: None if row[name] == EXPORTED_TO else row
        if table == "runs":
            return partial(_adapt_run, columns=columns, host_id=host.id, has_machines=has_machines)
        return lambda row: row

    return of_table


def _adapt_run(row: Row, columns: Sequence[str], host_id: str, has_machines: bool) -> Row:
    run = dict(zip(columns, row, strict=True))
    if has_machines and run["state"] == "running" and run["machine"] is not None and run["machine_host"] is None:
        run["machine_host"] = host_id
    if run["started_at"] is not None and not run["hosts"]:
        run["hosts"] = host_id  # its log is here
    return tuple(run.values())
