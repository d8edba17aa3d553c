"""The request to stop a run, seen by everything that works on the run."""

from __future__ import annotations

import asyncio
import contextlib


class Cancellation:
    """`reason` is None until the run should stop. A later request doesn't replace the first reason."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        self._event = asyncio.Event()
        if reason is not None:
            self._event.set()

    def request(self, reason: str) -> None:
        if self.reason is None:
            self.reason = reason
            self._event.set()

    async def wait(self) -> str:
        """Wait until the run should stop; return the reason."""
        await self._event.wait()
        assert self.reason is not None
        return self.reason

    async def wait_at_most(self, timeout_s: float) -> None:
        """Wait until the run should stop, or until the timeout."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
