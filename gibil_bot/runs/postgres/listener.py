"""LISTEN and NOTIFY: publishes what this process wrote to the others, and wakes its waiters for what they wrote.

One NOTIFY for all that was written meanwhile, on a separate connection: a NOTIFY inside each transaction would make the
commits of a whole server wait for one another. A notice may be lost with its connection; then all waiters are woken, and they
poll in any case. Documentation: postgresql.org/docs/15/sql-notify.html.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable

import asyncpg

from gibil_bot.clock import passed_s
from gibil_bot.errors import StoreError
from gibil_bot.runs.postgres.server import CONNECT_S, FAILURES, closed, connect, server_now, store_error
from gibil_bot.runs.signals import TOPICS, Signals

log = logging.getLogger("gibil.database")

_CHANNEL = "gibil"
_PING_S = 10.0
"""How often the connection and the server's time are checked."""
_AGAIN_S = 1.0
_EXACT_S = 0.5
"""A measurement of the server's time that took longer isn't used if there is another one."""


class Listener:
    """Call `start`, and `close` at the end."""

    def __init__(self, url: str, signals: Signals) -> None:
        self._url = url
        self._signals = signals
        self._written: set[str] = set()
        self._wake = asyncio.Event()
        self._offset = time.time() - passed_s()
        self._is_measured = False
        self._task: asyncio.Task[None] | None = None

    def server_time(self) -> float:
        """Return the server's time, in seconds since the epoch. Clocks of hosts differ, and they may be set."""
        return passed_s() + self._offset

    def publish(self, topics: Iterable[str]) -> None:
        """Notify the other processes soon."""
        self._written.update(topics)
        self._wake.set()

    async def start(self) -> None:
        """Connect for the first time. Raises StoreError."""
        try:
            connection = await self._connected()
        except FAILURES as error:
            raise store_error(self._url, error) from error
        self._task = asyncio.create_task(self._work(connection), name="listener of the database")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _connected(self) -> asyncpg.Connection:
        connection = await connect(self._url)
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._measure(connection)
                await connection.add_listener(_CHANNEL, self._heard)
                connection.add_termination_listener(lambda _: self._wake.set())
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _work(self, connection: asyncpg.Connection | None) -> None:
        is_known = True
        while True:
            try:
                if connection is None:
                    connection = await self._connected()
                    if not is_known:
                        log.warning("the database answers again")
                    is_known = True
                    self._signals.notify(TOPICS)
                await self._serve(connection)
            except (*FAILURES, StoreError) as error:
                if is_known:
                    log.error("%s", store_error(self._url, error).message)
                is_known = False
                if connection is not None:
                    connection.terminate()
                connection = None
                await asyncio.sleep(_AGAIN_S)
            except BaseException:
                if connection is not None:
                    await closed(connection)
                raise

    async def _serve(self, connection: asyncpg.Connection) -> None:
        """Send what was written, and check the connection. Returns never; raises when the connection is lost."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_S):
                    await self._wake.wait()
            self._wake.clear()
            topics, self._written = self._written, set()
            try:
                async with asyncio.timeout(CONNECT_S):
                    if topics:
                        await connection.execute("select pg_notify($1, $2)", _CHANNEL, ",".join(sorted(topics)))
                    else:
                        await self._measure(connection)
            except FAILURES:
                if topics:
                    self.publish(topics)  # on the next connection
                raise

    async def _measure(self, connection: asyncpg.Connection) -> None:
        before = passed_s()
        seconds = await server_now(connection)
        after = passed_s()
        if not self._is_measured or after - before < _EXACT_S:
            self._offset, self._is_measured = seconds - (before + after) / 2, True

    def _heard(self, connection: asyncpg.Connection, pid: int, channel: str, payload: object) -> None:
        if pid != connection.get_server_pid():
            self._signals.notify(set(str(payload).split(",")) & set(TOPICS))
