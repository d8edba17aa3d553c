"""Tool calls as tasks of their own: cancelled once, and given the time to clean up behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from mcp.server.mcpserver import Context

T = TypeVar("T")
log = logging.getLogger("gibil.mcp")

_EVERY_S = 5.0
"""How often a client is told that a call goes on: many give up on one that says nothing."""


class ToolCalls:
    """The protocol's library cancels a call again and again until it has ended, which would cut its cleanup off, too."""

    def __init__(self) -> None:
        self._going: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Await it. Cancelled, it is cancelled, and ends by itself; `settle` waits for that."""
        task = asyncio.create_task(work)
        self._going.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._going.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a call ended with %r", task.exception())

    async def settle(self, within_s: float) -> None:
        """Until the calls that were broken off have cleaned up."""
        if self._going:
            for task in self._going:
                task.cancel()
            _, late = await asyncio.wait(self._going, timeout=within_s)
            if late:
                log.warning("%d calls did not end in time", len(late))


@contextlib.asynccontextmanager
async def progress(context: Context[Any, Any], idle: Callable[[int], str]) -> AsyncIterator[Callable[[str], None]]:
    """For as long as the block lasts a client that asked for it is told what happens: what the block says, and else `idle`
    with the seconds that have passed."""
    said: asyncio.Queue[str] = asyncio.Queue()

    async def tell() -> None:
        loop = asyncio.get_running_loop()
        began, step = loop.time(), 0
        while True:
            try:
                async with asyncio.timeout(_EVERY_S):
                    message = await said.get()
            except TimeoutError:
                message = idle(round(loop.time() - began))
            step += 1
            await context.report_progress(step, message=message)

    telling = asyncio.create_task(tell())
    try:
        yield said.put_nowait
    finally:
        telling.cancel()
        await asyncio.wait({telling})
        if not telling.cancelled() and telling.exception() is not None:
            log.debug("progress could not be told: %r", telling.exception())
