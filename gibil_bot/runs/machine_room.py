"""How many copies of its machine a run may have, on which attempts of agents work: GIBIL_MAX_MACHINES counts them, too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from gibil_bot.errors import ClaimLost, GibilError, StoreError
from gibil_bot.model import Claim
from gibil_bot.ports import RunRecorder

POLL_S = 2.0
"""How often a copy that waits asks again, because another process may have destroyed a machine."""


class MachineRoom:
    """The copies of one claimed run, by name. Those of all processes that share the database are counted in it."""

    def __init__(self, runs: RunRecorder, claim: Claim, most: int | None) -> None:
        """`most`: GIBIL_MAX_MACHINES; None: any number."""
        self._runs, self._claim, self._most = runs, claim, most
        self._copies: set[str] = set()
        self._writing = asyncio.Lock()
        self._repeating: asyncio.Task[None] | None = None

    async def found(self, copies: Iterable[str]) -> None:
        """Note which copies exist, also those that an earlier process created. Raises ClaimLost, StoreError."""
        self._copies = set(copies)
        if self._most is not None:
            await self._store()

    async def acquire(self, copy: str) -> None:
        """Wait until this copy may exist, too. `release` ends it. Raises ClaimLost, StoreError."""
        if self._most is None or copy in self._copies:
            return
        signal = self._runs.changed()
        while True:
            taking = asyncio.create_task(self._take(copy, self._most))
            try:
                is_taken = await asyncio.shield(taking)
            except asyncio.CancelledError:
                # The write may be committed although its caller is cancelled.
                with contextlib.suppress(GibilError):
                    await taking
                await self._release(copy)
                raise
            if is_taken:
                return
            await signal.wait(POLL_S)

    async def release(self, copy: str) -> None:
        """Note that the copy doesn't exist any more. If that can't be stored, it is repeated."""
        if copy in self._copies:
            await asyncio.shield(self._release(copy))

    async def _take(self, copy: str, most: int) -> bool:
        async with self._writing:
            is_taken = await self._runs.count_copies(self._claim, len(self._copies) + 1, max_machines=most)
            if is_taken:
                self._copies.add(copy)
            return is_taken

    async def _release(self, copy: str) -> None:
        self._copies.discard(copy)
        try:
            await self._store()
        except ClaimLost:
            return
        except StoreError:
            if self._repeating is None or self._repeating.done():
                self._repeating = asyncio.create_task(self._repeat())

    async def _store(self) -> None:
        async with self._writing:
            await self._runs.count_copies(self._claim, len(self._copies))

    async def _repeat(self) -> None:
        """Store the number once the database answers: other runs may wait for it, maybe for hours."""
        while True:
            await asyncio.sleep(POLL_S)
            with contextlib.suppress(StoreError):
                with contextlib.suppress(ClaimLost):
                    await self._store()
                return
