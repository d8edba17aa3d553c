"""Runs tool calls as tasks that are cancelled once and get time to clean up."""

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
"""How often a client gets a progress notification: many clients give up on a silent call."""


class ToolCalls:
    """The tool calls in progress. The protocol's library cancels a call repeatedly, which would also cancel its clean-up."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a call. When it is cancelled, its task is cancelled once and ends by itself; `finish` waits for that."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.debug("a call ended with %r", task.exception())

    async def finish(self, within_s: float) -> None:
        """Cancel the calls in progress and wait until they have cleaned up, for at most `within_s`."""
        if self._running:
            for task in self._running:
                task.cancel()
            _, late = await asyncio.wait(self._running, timeout=within_s)
            if late:
                log.warning("%d calls did not end in time", len(late))


@contextlib.asynccontextmanager
async def progress(context: Context[Any, Any], idle: Callable[[int], str]) -> AsyncIterator[Callable[[str], None]]:
    """Send progress to a client that asked for it, for the time of the block: the block's messages, or `idle` of the seconds
    passed."""
    messages: asyncio.Queue[str] = asyncio.Queue()

    async def report() -> None:
        loop = asyncio.get_running_loop()
        began, step = loop.time(), 0
        while True:
            try:
                async with asyncio.timeout(_EVERY_S):
                    message = await messages.get()
            except TimeoutError:
                message = idle(round(loop.time() - began))
            step += 1
            await context.report_progress(step, message=message)

    reporting = asyncio.create_task(report())
    try:
        yield messages.put_nowait
    finally:
        reporting.cancel()
        await asyncio.wait({reporting})
        if not reporting.cancelled() and reporting.exception() is not None:
            log.debug("progress could not be sent: %r", reporting.exception())
