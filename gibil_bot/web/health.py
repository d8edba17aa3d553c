"""Whether the database answers and can be written, for `/healthz` and `/metrics`: soon, and without load by many requests.

A load balancer asks every few seconds, several of them ask more often, and usually they wait for a second or a few. So all
requests share what is asked, and none waits for the database's own limits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gibil_bot.clock import passed_s
from gibil_bot.errors import DatabaseFull, StoreError
from gibil_bot.ports import Store

log = logging.getLogger("gibil.web")
T = TypeVar("T")

ANSWER_S = 2.0
"""How long a request waits for the database."""
FAILING_S = 0.5
"""How long it waits after the last failure, which is the answer otherwise."""
WRITE_EVERY_S = 1.0

UNREADABLE = "the database doesn't answer; the bot's log has the reason"
UNWRITABLE = "deliveries can't be stored; the bot's log has the reason"
FULL = "deliveries can't be stored: the database's disk is full; free some space, then the bot continues by itself"


class Unhealthy(Exception):
    """`reason`: what anyone may know, which isn't where the database is."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Health:
    """The state of the store, for all requests together."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts = _Shared(self._count, UNREADABLE)
        self._writes = _Shared(self._write, UNWRITABLE)
        self._written_at = -WRITE_EVERY_S
        self._write_error: StoreError | None = None
        self._known: dict[str, str] = {}
        """The errors that were logged and last, by what failed."""

    async def counts(self) -> dict[str, int]:
        """Return the store's numbers, as of now or later. Raises Unhealthy if the database can't be read."""
        return await self._counts.result()

    async def check(self) -> dict[str, int]:
        """As `counts`; raises Unhealthy also if a delivery couldn't be stored."""
        counts, written = await asyncio.gather(self._counts.result(), self._writes.result(), return_exceptions=True)
        for outcome in (counts, written):
            if isinstance(outcome, BaseException):
                raise outcome
        assert isinstance(counts, dict)
        return counts

    def failed(self, what: str, error: StoreError) -> None:
        """Log an error once, as long as it lasts."""
        is_known = error.message in self._known.values()
        self._known[what] = error.message
        if not is_known:
            log.error("%s: %s", what, error.message)

    async def _count(self) -> dict[str, int]:
        what = "a page can't be answered"
        try:
            counts = await self._store.counts()
        except StoreError as error:
            self.failed(what, error)
            raise Unhealthy(UNREADABLE) from None
        self._known.pop(what, None)
        return counts

    async def _write(self) -> None:
        """Try to write, at most once a second."""
        what = "deliveries can't be stored"
        if passed_s() - self._written_at >= WRITE_EVERY_S:
            try:
                await self._store.check_writable()
            except StoreError as error:
                self.failed(what, error)
                self._write_error = error
            else:
                self._known.pop(what, None)
                self._write_error = None
            self._written_at = passed_s()
        if self._write_error is not None:
            raise Unhealthy(FULL if isinstance(self._write_error, DatabaseFull) else UNWRITABLE)


class _Shared(Generic[T]):
    """Awaits an action for all callers: at most one at a time, and the next one for all who came after it began.

    So a result is never older than its request, and however many requests there are, they occupy one connection.
    """

    def __init__(self, action: Callable[[], Awaitable[T]], silence: str) -> None:
        """`silence`: the reason if the action takes too long."""
        self._action = action
        self._silence = silence
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None
        self._reason = ""
        """Of the last failure, until the action succeeds."""

    async def result(self) -> T:
        """Raises Unhealthy, after ANSWER_S at the latest."""
        task = self._joined()
        done, _ = await asyncio.wait({task}, timeout=FAILING_S if self._reason else ANSWER_S)
        if done:
            return task.result()
        self._reason = self._reason or self._silence
        raise Unhealthy(self._reason)

    def _joined(self) -> asyncio.Task[T]:
        """Return the action that begins now or later."""
        if self._next is not None:
            return self._next
        if self._running is not None and not self._running.done():
            self._next = self._started(self._running)
            return self._next
        self._running = self._started(None)
        return self._running

    def _started(self, before: asyncio.Task[T] | None) -> asyncio.Task[T]:
        task = asyncio.create_task(self._act(before))
        task.add_done_callback(_seen)
        return task

    async def _act(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait({before})
            self._running, self._next = self._next, None
        try:
            result = await self._action()
        except Unhealthy as error:
            self._reason = error.reason
            raise
        self._reason = ""
        return result


def _seen(task: asyncio.Task[T]) -> None:
    """Take note of the exception: all requests that waited for it may have been answered before."""
    if not task.cancelled():
        task.exception()
