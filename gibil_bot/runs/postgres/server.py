"""The server: how it is connected to, its schema, and what its errors mean for an operator."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg

from gibil_bot.database_url import shown_url
from gibil_bot.errors import DatabaseFull, DatabaseUnreachable, StoreError
from gibil_bot.runs.sql.hosts import UNSEEN_S
from gibil_bot.runs.sql.migrations import migrations_of, require_not_newer

LIMIT_S = 4.0
"""Limit for each transaction and each query, with all that it waits for. GitHub expects an answer within 10 s."""
CONNECT_S = 3.0
_SETTINGS = (
    "set application_name = 'gibil-bot'; "
    # Of a bot that the network separated, or that was given up: it may hold a lock that all bots wait for.
    "set idle_in_transaction_session_timeout = '5s'; "
    # Its sessions end within minutes; by default they would occupy the server's connections for two hours.
    "set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3"
)
"""Of the server, for a pool's connections."""
_UNREACHABLE = "check that PostgreSQL runs and can be reached from here; a running bot continues by itself"
_SILENT = (
    "check that PostgreSQL runs and can be reached from here, and that no session locks its tables (pg_stat_activity); "
    "a running bot continues by itself"
)
_REMEDIES: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (
        (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError),
        "check the user and the password in GIBIL_DATABASE_URL (or in PGPASSWORD, or ~/.pgpass), and pg_hba.conf",
    ),
    (asyncpg.InvalidCatalogNameError, "create it: createdb, or `create database`"),
    (asyncpg.InsufficientPrivilegeError, "make this user the owner of the database"),
    (asyncpg.ReadOnlySQLTransactionError, "it is a standby, or read-only: write the address of the primary"),
    (asyncpg.TooManyConnectionsError, "raise max_connections: each bot needs up to 11"),
    (asyncpg.DiskFullError, "the server's disk is full: free some space, then a running bot continues by itself"),
    ((asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError), "its schema is older than this gibil: run gibil db migrate"),
    ((asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError), _UNREACHABLE),
    ((asyncpg.LockNotAvailableError,), "another session uses its tables: stop the other bots, or try again"),
    (TimeoutError, _SILENT),
    ((OSError, asyncpg.InterfaceError, asyncpg.InternalClientError), _UNREACHABLE),
)
LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TooManyConnectionsError,
)
"""The connection doesn't exist any more, or the server can't be connected to at present."""
FAILURES = (*LOST, TimeoutError, asyncpg.PostgresError)


def described(url: str) -> str:
    """Return a name of the database for messages, which never has the password."""
    return f"the database {shown_url(url)}"


def store_error(url: str, error: BaseException, limit_s: float = LIMIT_S) -> StoreError:
    """Describe an error of asyncpg in one line, with what to do."""
    remedy = next((each for types, each in _REMEDIES if isinstance(error, types)), "")
    reason = f"it didn't answer within {limit_s:g} s" if isinstance(error, TimeoutError) else _one_line(str(error))
    kind = StoreError
    if isinstance(error, (*LOST, TimeoutError)):
        kind = DatabaseUnreachable
    elif isinstance(error, asyncpg.DiskFullError):
        kind = DatabaseFull
    return kind(f"{described(url)}: {reason or type(error).__name__}" + (f"; {remedy}" if remedy else ""))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:300]


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Convert errors of asyncpg and of the network to StoreError."""
    try:
        yield
    except (ValueError, OverflowError) as error:  # also asyncpg.ClientConfigurationError, which is one of FAILURES, too
        # asyncpg repeats parts of the URL in these, which may be parts of the password.
        raise StoreError(
            f"{described(url)}: GIBIL_DATABASE_URL can't be read ({type(error).__name__}); write "
            "postgresql://user@host:5432/database, with parameters that libpq knows"
        ) from None
    except FAILURES as error:
        raise store_error(url, error) from error


@asynccontextmanager
async def answering(url: str, within_s: float) -> AsyncIterator[asyncio.Timeout]:
    """Limit what takes longer than a bot's calls. Raises StoreError. The limit can be moved while there is progress."""
    with translated(url):
        try:
            async with asyncio.timeout(within_s) as limit:
                yield limit
        except TimeoutError as error:
            raise store_error(url, error, within_s) from error


async def prepare(connection: asyncpg.Connection, limit_s: float = LIMIT_S) -> None:
    """Set up a new connection. A client's call has ended after `limit_s`."""
    await connection.execute(f"{_SETTINGS}; set statement_timeout = '{limit_s + 1:.0f}s'")


async def connect(url: str) -> asyncpg.Connection:
    """Open one connection, without a limit for its statements. Raises as asyncpg does."""
    return await asyncpg.connect(url, timeout=CONNECT_S, server_settings={"application_name": "gibil-bot"})


async def migrate(url: str, *, host_id: str = "", force: bool = False) -> tuple[int, int]:
    """Create the schema, or migrate it to this version, all steps in one transaction; return the versions before and after.

    Raises StoreError, also if the database is from a newer version, and unless `force` if bots use its older version. The bot
    of the host `host_id` doesn't count: the caller holds the lock of its data directory.
    """
    steps = migrations()
    with translated(url):
        connection = await connect(url)
        try:
            async with connection.transaction():
                # Without them, other bots would wait behind this one, or this one behind a paused one.
                await connection.execute("set local lock_timeout = '3s'; set local idle_in_transaction_session_timeout = '60s'")
                # Another bot may be doing the same.
                await connection.execute("select pg_advisory_xact_lock(hashtextextended('gibil migrations', 0))")
                await connection.execute(
                    "create table if not exists schema_version "
                    "(number bigint primary key, applied_at timestamptz not null default now())"
                )
                current = await connection.fetchval("select coalesce(max(number), 0) from schema_version")
                newest = steps[-1][0]
                require_not_newer(shown_url(url), current, newest)
                if current < newest and not force and (hosts := await _running(connection, host_id)):
                    raise StoreError(
                        f"{described(url)} has version {current}, and this gibil needs {newest}, but bots of the older version "
                        f"use it on {', '.join(hosts)}, or did {UNSEEN_S:g} s ago, and a migration may stop their work: stop "
                        "them first, then try again; `gibil db migrate --force` doesn't wait for them"
                    )
                if (encoding := await connection.fetchval("show server_encoding")) != "UTF8":
                    raise StoreError(
                        f"{described(url)} has the encoding {encoding}, which can't store every text: "
                        "create another one, with createdb -E UTF8 -T template0"
                    )
                for number, script in steps:
                    if number > current:
                        await connection.execute(script)
                        await connection.execute("insert into schema_version (number) values ($1)", number)
        finally:
            await closed(connection)
    return current, newest


async def _running(connection: asyncpg.Connection, host_id: str) -> list[str]:
    """Return the names of the other hosts where a bot was seen. Databases of the first version don't know."""
    if not await connection.fetchval("select to_regclass('processes') is not null"):
        return []
    rows = await connection.fetch(
        "select distinct coalesce(h.name, p.host) from processes p left join hosts h on h.id = p.host "
        "where p.host <> $1 and p.seen_at > extract(epoch from clock_timestamp()) - $2::float8 order by 1",
        host_id,
        UNSEEN_S,
    )
    return [row[0] for row in rows]


async def server_now(connection: asyncpg.Connection) -> float:
    """Return the server's time, in seconds since the epoch."""
    return float(await connection.fetchval("select extract(epoch from clock_timestamp())::float8"))


async def version(connection: asyncpg.Connection) -> int:
    """Return the version of the schema; 0: there is none."""
    if not await connection.fetchval("select to_regclass('schema_version') is not null"):
        return 0
    return int(await connection.fetchval("select coalesce(max(number), 0) from schema_version"))


def migrations() -> list[tuple[int, str]]:
    """Return the number and the SQL of each migration, in order."""
    return migrations_of("gibil_bot.runs.postgres.migrations")


async def closed(connection: asyncpg.Connection) -> None:
    """Close a connection, in a second or abruptly."""
    try:
        await asyncio.shield(connection.close(timeout=1.0))
    except FAILURES:
        connection.terminate()
