"""`gibil db`: the database's state, its migration, its check, its old rows, and its export to PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cancellation import wait_uncancelled
from gibil_bot.cli.machine import run_async, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.config import load_settings
from gibil_bot.database_url import is_postgresql, problem_of, shown_url
from gibil_bot.errors import UsageError
from gibil_bot.humanize import count, duration, megabytes, visible

if TYPE_CHECKING:
    from gibil_bot.config import Settings
    from gibil_bot.runs.maintenance.database import Export, Maintained, Problem
    from gibil_bot.runs.maintenance.status import Oldest, Status

_PROGRESS_S = 1.0
_STEP_S = 60.0
"""Limit for one step of `prune` in PostgreSQL."""


def _opened(settings: Settings) -> AbstractAsyncContextManager[Maintained]:
    from gibil_bot.wiring import maintained

    return maintained(settings)


@click.group()
def db() -> None:
    """Show, migrate, check, prune and export the bot's database.

    It is the one of GIBIL_DATABASE_URL: a SQLite file, or a PostgreSQL database that several bots share. Leave the password of
    PostgreSQL out of the URL, and it is read from PGPASSWORD or ~/.pgpass. No command prints it.

    \b
    gibil db status
    gibil db check --json | jq -r '.problems[].remedy'
    gibil db export postgresql://gibil@db.example/gibil
    """


@db.command(short_help="Print what waits, for how long, and which bots use it.")
@json_option
def status(as_json: bool) -> None:
    """Print what waits in the database, for how long, and which bots use it.

    Changes nothing, and bots may run.

    \b
    gibil db status
    gibil db status --json | jq .oldest_delivery.age_s
    """
    sys.exit(run_async(_status(load_settings(), as_json)))


async def _status(settings: Settings, as_json: bool) -> int:
    from gibil_bot.runs.maintenance.status import status as read

    async with _opened(settings) as database:
        found = await read(database)
    if as_json:
        print_json(_status_view(found))
    else:
        _show_status(found)
    return 0


def _show_status(found: Status) -> None:
    lines = [("database", found.name), ("size", megabytes(found.size_bytes)), ("schema", _schema(found))]
    if found.export is not None:
        lines.append(("exported", f"{_exported(found.export)}; no bot starts on this file"))
    counts = found.counts
    if counts:
        waits = _oldest(found.oldest_delivery, found, "arrived")
        lines.append(
            ("deliveries", f"{counts['deliveries_unhandled']:,} to handle{waits}, {counts['deliveries_failed']:,} failed")
        )
        runs = (f"{counts[f'runs_{state}']:,} {state}" for state in ("queued", "running", "finished"))
        lines.append(("runs", ", ".join(runs)))
        waits = _oldest(found.oldest_notification, found, "due")
        failed = f"{counts['tellings_failed']:,} that GitHub doesn't accept"
        lines.append(("notifications", f"{counts['tellings_due']:,} to publish{waits}, {failed}"))
    paint = Paint(sys.stdout)
    print_text("".join(f"{paint.bold(f'{name:<14}')}{visible(text)}\n" for name, text in lines))
    if found.hosts:
        rows: list[tuple[str, ...]] = [("HOST", "ID", "BOT", "MACHINES", "URL")]
        for seen in found.hosts:
            ago = duration((found.now - seen.seen_at).total_seconds())
            bot = f"away, seen {ago} ago" if seen.is_away else "running"
            cells = (seen.host.name, seen.host.id, bot, str(seen.machines), seen.host.url or "-")
            rows.append(tuple(visible(cell) for cell in cells))
        _print_table(rows, paint)
    if found.leases:
        rows = [("WORKING", "DELIVERIES", "RUNS", "NOTIFICATIONS", "LEASE ENDS IN")]
        for lease in found.leases:
            left = duration((lease.until - found.now).total_seconds())
            rows.append((visible(lease.owner), str(lease.deliveries), str(lease.runs), str(lease.notifications), left))
        _print_table(rows, paint)


def _print_table(rows: list[tuple[str, ...]], paint: Paint) -> None:
    print_text("\n" + table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))


def _schema(found: Status) -> str:
    if found.version > found.newest_version:
        return f"version {found.version}, of a newer gibil: upgrade this one, which supports {found.newest_version}"
    if found.version < found.newest_version:
        have = f"version {found.version}" if found.version else "none yet"
        return f"{have}, and this gibil needs {found.newest_version}: run gibil db migrate"
    return f"version {found.version}"


def _exported(mark: Export) -> str:
    return f"to {mark.url}" if mark.finished else f"to {mark.url}, unfinished: run the same gibil db export again"


def _oldest(oldest: Oldest | None, found: Status, verb: str) -> str:
    """Return in parentheses since when the oldest waits; "" if none does."""
    if oldest is None:
        return ""
    seconds = (found.now - oldest.since).total_seconds()
    when = f"{verb} {duration(seconds)} ago" if seconds >= 0 else f"{verb} in {duration(-seconds)}"
    return f" (the oldest {when}{f': {oldest.error}' if oldest.error else ''})"


def _status_view(found: Status) -> dict[str, Any]:
    from gibil_bot.views import timestamp

    def oldest(each: Oldest | None) -> dict[str, Any] | None:
        if each is None:
            return None
        age_s = (found.now - each.since).total_seconds()
        return {"id": each.id, "since": timestamp(each.since), "age_s": round(age_s, 3), "error": each.error}

    mark = found.export
    return {
        "kind": found.kind,
        "database": found.name,
        "version": found.version,
        "newest_version": found.newest_version,
        "migration_due": found.version < found.newest_version,
        "size_bytes": found.size_bytes,
        "exported": None if mark is None else {"to": mark.url, "at": timestamp(mark.at), "finished": mark.finished},
        "counts": found.counts,
        "oldest_delivery": oldest(found.oldest_delivery),
        "oldest_notification": oldest(found.oldest_notification),
        "hosts": [
            {
                "id": seen.host.id,
                "name": seen.host.name,
                "url": seen.host.url,
                "seen_at": timestamp(seen.seen_at),
                "away": seen.is_away,
                "machines": seen.machines,
            }
            for seen in found.hosts
        ],
        "leases": [
            {
                "owner": lease.owner,
                "deliveries": lease.deliveries,
                "runs": lease.runs,
                "notifications": lease.notifications,
                "until": timestamp(lease.until),
            }
            for lease in found.leases
        ],
    }


@db.command(short_help="Create the schema, or migrate it to this version.")
@click.option("--force", is_flag=True, help="Also while bots use the PostgreSQL database: those of an older version may fail.")
@json_option
def migrate(force: bool, as_json: bool) -> None:
    """Create the schema, or migrate it to this version, without starting a bot.

    `gibil serve` does it at its start, too. Bots of an older version must be stopped first. Only --force migrates a PostgreSQL
    database while some run.

    \b
    gibil db migrate
    """
    sys.exit(run_async(_migrate(load_settings(), force, as_json)))


async def _migrate(settings: Settings, force: bool, as_json: bool) -> int:
    async with _opened(settings) as database:
        before, after = await database.migrate(force=force)
    if as_json:
        print_json({"database": database.name, "from_version": before, "to_version": after})
    elif before == after:
        print_message(f"{database.name} has version {after} already")
    elif before == 0:
        print_message(f"created version {after} in {database.name}")
    else:
        print_message(f"migrated {database.name} from version {before} to {after}")
    return 0


@db.command(short_help="Look for damage and unreadable rows; print what to do.")
@json_option
def check(as_json: bool) -> None:
    """Look for damage, rows that can't be read, and work that no bot does; print what to do.

    Changes nothing, and bots may run. Exit status 1 if there are problems.

    \b
    gibil db check
    gibil db check --json | jq '.problems | group_by(.kind) | map({(.[0].kind): length})'
    """
    sys.exit(run_async(_check(load_settings(), as_json)))


async def _check(settings: Settings, as_json: bool) -> int:
    from gibil_bot.runs.maintenance.checks import check as look

    async with _opened(settings) as database:
        problems = await look(database)
    if as_json:
        print_json({"database": database.name, "healthy": not problems, "problems": [_problem_view(each) for each in problems]})
    else:
        paint = Paint(sys.stdout)
        for each in problems:
            print_text(f"{paint.bad('FAIL')} {visible(each.subject)}: {visible(each.problem)}\n     → {visible(each.remedy)}\n")
        if not problems:
            print_text(f"{paint.good('ok  ')} {database.name}: no problem was found\n")
    return 1 if problems else 0


def _problem_view(problem: Problem) -> dict[str, str]:
    return {"kind": problem.kind, "subject": problem.subject, "problem": problem.problem, "remedy": problem.remedy}


@db.command(short_help="Delete rows that are too old to be needed.")
@json_option
def prune(as_json: bool) -> None:
    """Delete rows that are too old to be needed, as the bot does every minute.

    Payloads of handled deliveries after 7 days; deliveries, finished runs, calls of models, and what is known about inactive
    pull requests after 90; the daily sums of what agents spent after 400. Bots may run. New rows use the space of the deleted
    ones, so a SQLite file doesn't shrink: to return the space to the disk, stop the bot and run `sqlite3 FILE vacuum`, which
    needs twice the file's size for a moment.

    \b
    gibil db prune
    gibil db prune --json | jq .deleted.runs
    """
    sys.exit(run_async(_prune(load_settings(), as_json)))


async def _prune(settings: Settings, as_json: bool) -> int:
    from gibil_bot.runs.maintenance.status import usable
    from gibil_bot.wiring import open_store

    async with _opened(settings) as database:
        await usable(database)
        store = await open_store(settings, exclusive=False, limit_s=_STEP_S)
        try:
            async with _shown_steps() as on_step:
                deleted = await store.prune(on_step)
        finally:
            await store.close()
        free = await database.free_bytes()
    if as_json:
        print_json({"database": database.name, "deleted": deleted, "free_bytes": free})
        return 0
    for kind, number in deleted.items():
        if number:
            print_text(f"{number:>9,} {kind.replace('_', ' ')}\n")
    total = sum(deleted.values())
    print_message(
        f"deleted {count(total, 'row')}{f'; new rows use {megabytes(free)} that are free in the file' if free else ''}"
    )
    return 0


@contextlib.asynccontextmanager
async def _shown_steps() -> AsyncIterator[Callable[[str, int], None]]:
    """Print once a second which rows are being deleted, also while that waits for another program's lock."""
    step = ""

    def on_step(kind: str, deleted: int) -> None:
        nonlocal step
        step = f"deleting old {kind.replace('_', ' ')}{f', {deleted:,} until now' if deleted else ''}"

    async def show() -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            print_message(step)

    showing = asyncio.create_task(show())
    try:
        yield on_step
    finally:
        showing.cancel()
        await wait_uncancelled(showing)


@db.command(short_help="Move a SQLite file's rows to PostgreSQL.")
@click.argument("url", required=False, metavar="postgresql://…")
@click.option("--undo", is_flag=True, help="Make an exported SQLite file usable again.")
@json_option
def export(url: str | None, undo: bool, as_json: bool) -> None:
    """Move the SQLite file's rows to an empty PostgreSQL database, runs in progress included.

    Stop the bot first. All rows are copied in one transaction, with their numbers, and compared. Then the file is marked, and
    no bot starts on it any more; it stays as a backup. Set GIBIL_DATABASE_URL and start the bot: it continues its runs on their
    machines. Keep the data directory, which has keys, logs and machines. An interrupted export can be repeated.

    \b
    createdb -O gibil gibil
    gibil db export postgresql://gibil@db.example/gibil
    GIBIL_DATABASE_URL=postgresql://gibil@db.example/gibil gibil serve
    """
    if (url is None) != undo:
        raise UsageError("write the address of the new database: gibil db export postgresql://user@host/database; or --undo")
    if url is not None and not is_postgresql(url):
        raise UsageError(
            f"{shown_url(url)!r} isn't the address of a PostgreSQL database; write postgresql://user@host/database"
        )
    if url is not None and (problem := problem_of(url)) is not None:
        raise UsageError(problem)
    settings = load_settings()
    if is_postgresql(settings.database_url):
        raise UsageError(
            f"GIBIL_DATABASE_URL is {shown_url(settings.database_url)} already: unset it, or name the SQLite file to export"
        )
    sys.exit(run_async(_export(settings, url, as_json) if url is not None else _undo(settings, as_json)))


async def _export(settings: Settings, url: str, as_json: bool) -> int:
    from gibil_bot.wiring import export_database

    began = time.monotonic()
    exported = await export_database(settings, url, _Progress())
    seconds = round(time.monotonic() - began, 3)
    name = shown_url(url)
    if as_json:
        print_json({
            "database": shown_url(settings.database_url),
            "to": name,
            "rows": exported.rows,
            "was_copied_before": exported.was_copied_before,
            "seconds": seconds,
        })  # fmt: skip
        return 0
    if exported.was_copied_before:
        print_message(f"an earlier export has copied all rows to {name}")
    else:
        number = sum(exported.rows.values())
        print_message(f"copied {number:,} rows to {name} in {duration(seconds)}")
    print_message(f"no bot starts on the file any more; set GIBIL_DATABASE_URL={name} and start gibil serve")
    return 0


async def _undo(settings: Settings, as_json: bool) -> int:
    from gibil_bot.wiring import undo_export

    mark = await undo_export(settings)
    name = shown_url(settings.database_url)
    if as_json:
        print_json({"database": name, "undone": None if mark is None else mark.url})
    elif mark is None:
        print_message(f"{name} isn't exported")
    else:
        print_message(f"bots can use {name} again; let none run on {mark.url}, where the same runs are")
    return 0


class _Progress:
    """Prints how many rows are copied, at most once a second, and nothing in the first one."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _PROGRESS_S

    def __call__(self, table: str, copied: int, total: int) -> None:
        if (now := time.monotonic()) >= self._next:
            self._next = now + _PROGRESS_S
            print_message(f"copied {copied:,} of {total:,} rows ({table})")
