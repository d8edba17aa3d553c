"""sql.connection.Database on a pool of connections. Whatever the network does, a call ends within LIMIT_S, or another limit."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import asyncpg

from gibil_bot.errors import StoreError
from gibil_bot.runs.postgres.connection import PostgresConnection
from gibil_bot.runs.postgres.listener import Listener
from gibil_bot.runs.postgres.server import CONNECT_S, FAILURES, LIMIT_S, LOST, described, prepare, store_error, translated
from gibil_bot.runs.signals import Signals, Subscription
from gibil_bot.runs.sql.connection import Job, Query

T = TypeVar("T")

MOST_CONNECTIONS = 10
_AGAIN_S = 0.05
_RELEASE_S = 1.0
_COLLISIONS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.InvalidCachedStatementError,  # another bot has migrated the schema
)
"""The transaction is rolled back, and succeeds when it is repeated."""


class PostgresDatabase:
    """Created by `open_database`."""

    is_shared = True
    room_bytes = 0

    def __init__(self, url: str, pool: asyncpg.Pool, clock: Callable[[], float] | None, limit_s: float) -> None:
        self._url = url
        self._pool = pool
        self._limit_s = limit_s
        self._signals = Signals()
        self._listener = Listener(url, self._signals)
        self._clock = clock or self._listener.server_time
        self._calls: set[asyncio.Task[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait until the server's time is known."""
        await self._listener.start()

    def now(self) -> float:
        return self._clock()

    def changed(self, topic: str) -> Subscription:
        return self._signals.subscribe(topic)

    async def write(self, job: Job[T]) -> T:
        """If the connection is lost before the commit, the job is repeated on another one, as long as the limit allows.

        After a StoreError it is unknown whether the job is committed if the connection was lost during the commit: callers
        repeat what they wrote, or find it.
        """
        return await self._completed(self._write(job))

    async def read(self, query: Query[T]) -> T:
        return await self._completed(self._read(query))

    async def _completed(self, call: Coroutine[Any, Any, T]) -> T:
        """Await a call, which isn't interrupted when the caller is cancelled."""
        if self._closing is not None:
            call.close()
            raise StoreError(f"{described(self._url)} is closed")
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # marks it as seen: the caller may be cancelled

    async def _write(self, job: Job[T]) -> T:
        end = asyncio.get_running_loop().time() + self._limit_s
        while True:
            topics: set[str] = set()
            committing = False
            try:
                async with self._connection(end) as connection:
                    transaction = connection.transaction()
                    await transaction.start()
                    try:
                        result = await job(PostgresConnection(connection), topics)
                    except Exception:
                        with contextlib.suppress(*FAILURES):
                            await transaction.rollback()
                        raise
                    committing = True
                    await transaction.commit()
            except _COLLISIONS as error:
                if not await _may_repeat(end):
                    raise store_error(self._url, error, self._limit_s) from error
            except FAILURES as error:
                if committing or not isinstance(error, LOST) or not await _may_repeat(end):
                    raise store_error(self._url, error, self._limit_s) from error
            else:
                if topics:
                    self._signals.notify(topics)
                    self._listener.publish(topics)
                return result

    async def _read(self, query: Query[T]) -> T:
        end = asyncio.get_running_loop().time() + self._limit_s
        while True:
            try:
                async with self._connection(end) as connection:
                    return await query(PostgresConnection(connection))
            except FAILURES as error:
                if not isinstance(error, LOST) or not await _may_repeat(end):
                    raise store_error(self._url, error, self._limit_s) from error

    @contextlib.asynccontextmanager
    async def _connection(self, end: float) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection until the given time of the loop. If its query doesn't end by then, it is cut off.

        asyncpg would wait for the server, also while it gives up.
        """
        connection = None
        try:
            async with asyncio.timeout_at(end):
                connection = await self._pool.acquire()
                yield connection
        except BaseException as error:
            if connection is not None and (isinstance(error, (*LOST, TimeoutError)) or not isinstance(error, Exception)):
                connection.terminate()
            raise
        finally:
            if connection is not None:
                with contextlib.suppress(*FAILURES):
                    await self._pool.release(connection, timeout=_RELEASE_S)

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._calls:
            await asyncio.wait(self._calls, timeout=LIMIT_S + _RELEASE_S)
        for call in self._calls:  # of a command, whose user doesn't wait longer
            call.cancel()
        await self._listener.close()
        try:
            async with asyncio.timeout(_RELEASE_S):
                await self._pool.close()
        except FAILURES:
            self._pool.terminate()


async def _may_repeat(end: float) -> bool:
    """Wait a moment; return whether there is time for another try."""
    await asyncio.sleep(_AGAIN_S * (1 + random.random()))
    return asyncio.get_running_loop().time() < end - _AGAIN_S


async def open_database(url: str, clock: Callable[[], float] | None = None, *, limit_s: float = LIMIT_S) -> PostgresDatabase:
    """Connect to the database, whose schema is current. `clock`: instead of the server's. `limit_s`: for each transaction and
    each query. Raises StoreError.
    """
    with translated(url):
        pool = await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=MOST_CONNECTIONS,
            timeout=CONNECT_S,
            init=partial(prepare, limit_s=limit_s),
            reset=_keep,
            max_inactive_connection_lifetime=60.0,
        )
    database = PostgresDatabase(url, pool, clock, limit_s)
    try:
        await database.start()
    except BaseException:
        await database.close()
        raise
    return database


async def _keep(connection: asyncpg.Connection) -> None:
    """Leave a connection as it is: nothing in it belongs to one transaction."""
