"""Work that has to be complete although its caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")


async def uncancelled(work: Awaitable[T]) -> T:
    """Run work to its end and return its result. If the caller is cancelled, even repeatedly, CancelledError is raised then."""
    task = asyncio.ensure_future(work)
    try:
        await wait_uncancelled(task)
    except asyncio.CancelledError as cancelled:
        raise cancelled from (None if task.cancelled() else task.exception())
    return task.result()


async def wait_uncancelled(task: asyncio.Future[Any]) -> None:
    """Wait for the end of a task in the same way; its result and its exception aren't retrieved."""
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
