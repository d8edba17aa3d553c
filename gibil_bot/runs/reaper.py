"""Cleans up after crashes and lost requests: at start, and every minute.

In this order: destroy machines that no run owns, ask GitHub for deliveries that never arrived, delete old rows and logs. Runs
whose process died are continued by the dispatcher, and pending notifications are published by the outbox: both are stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable
from datetime import timedelta
from pathlib import Path

from gibil_bot.clock import now
from gibil_bot.config import GIB
from gibil_bot.errors import GibilError, Unavailable
from gibil_bot.model import RunState
from gibil_bot.ports import GitHub, Store
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.runs.logs import forget_old_logs, trim_logs

log = logging.getLogger("gibil.reaper")

EVERY_S = 60.0
DELIVERIES_EVERY_S = 300.0
DELIVERIES_BACK = timedelta(days=3)
"""GitHub keeps them that long: docs.github.com/webhooks/using-webhooks/redelivering-webhooks."""
AFTER_LOSS_S = 10.0
"""How soon GitHub is asked for a delivery that could not be stored."""
ASK_AGAIN_TIMES = 3
KEEP_LOGS_S = 30 * 86400.0


class Reaper:
    def __init__(
        self,
        store: Store,
        factory: MachineFactory,
        github: GitHub | None,
        owner: str,
        logs: Path,
        max_logs_bytes: int = 10 * GIB,
    ) -> None:
        self._max_logs_bytes = max_logs_bytes
        self._store = store
        self._factory = factory
        self._github = github
        self._owner = owner
        self._logs = logs
        self._asked: dict[str, int] = {}
        self._lost = asyncio.Event()

    def delivery_lost(self) -> None:
        """A delivery could not be stored: ask GitHub for it as soon as the database can be written again."""
        self._lost.set()

    async def run(self) -> None:
        since_deliveries = DELIVERIES_EVERY_S
        first = True
        while True:
            await self._carefully("destroy strays", self.destroy_strays())
            if self._github is not None and (self._lost.is_set() or since_deliveries >= DELIVERIES_EVERY_S):
                since_deliveries = 0.0
                await self._carefully("fetch lost deliveries", self.fetch_lost_deliveries(self._github))
            if first and not await self._store.runs.unfinished():
                await self._carefully("no machine can be created here", self._probe_once())
            first = False
            await self._carefully("delete what is old", self._delete_old())
            since_deliveries += await self._pause()

    async def _pause(self) -> float:
        """Wait for the next round, which comes soon after a delivery was lost; the seconds."""
        begun = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVERY_S):
                await self._lost.wait()
        if self._lost.is_set():
            await asyncio.sleep(AFTER_LOSS_S)
        return time.monotonic() - begun

    async def _carefully(self, what: str, work: Awaitable[object]) -> None:
        """A failing duty must not keep the others from running."""
        try:
            await work
        except Unavailable as error:
            log.error("%s: %s", what, "; or: ".join((error.message, *error.remedies)))
        except GibilError as error:
            log.warning("%s: %s", what, error.message)
        except Exception:
            log.exception("%s", what)

    async def _probe_once(self) -> None:
        """Report at the start, and not at the first command, if no machine can be created. It also prepares the provider."""
        able = await self._factory.provider.probe()
        log.info("%s machines can be created here: tier %s", self._factory.provider.name, able.tier)

    async def destroy_strays(self) -> list[str]:
        """Destroy every machine of this owner that no unfinished run owns; their names."""
        destroyed = list(await self._factory.provider.sweep(self._owner))
        for machine in await self._factory.list(self._owner):
            run_id = machine.labels.get("run")
            if run_id is None:
                continue  # a user's machine: it lives until it expires
            run = await self._store.runs.get(run_id)
            # A runner stores its machine's name before it creates the machine, so one without a name in the store has no owner.
            if run is None or run.state is RunState.FINISHED or run.machine != machine.name:
                log.warning("destroying %s, which no run owns", machine.name)
                await asyncio.shield(self._factory.destroy(machine.name))
                destroyed.append(machine.name)
        return destroyed

    async def fetch_lost_deliveries(self, github: GitHub) -> list[str]:
        """Ask GitHub to redeliver what never reached us, or could not be stored; the GUIDs."""
        if self._lost.is_set():
            await self._store.prune()  # raises StoreError while nothing can be written: too early then
            self._lost.clear()
            self._asked.clear()  # that they were lost was our failure
        asked = []
        for number, guid in await github.failed_deliveries(now() - DELIVERIES_BACK):
            if self._asked.get(guid, 0) >= ASK_AGAIN_TIMES or await self._store.inbox.get(guid) is not None:
                continue
            self._asked[guid] = self._asked.get(guid, 0) + 1
            log.info("asking GitHub for delivery %s again", guid)
            await github.redeliver(number)
            asked.append(guid)
        return asked

    async def _delete_old(self) -> None:
        await self._store.prune()
        await asyncio.to_thread(forget_old_logs, self._logs, KEEP_LOGS_S)
        unfinished = {run.id for run in await self._store.runs.unfinished()}
        gone = await asyncio.to_thread(trim_logs, self._logs, self._max_logs_bytes, unfinished)
        if gone:
            log.warning("deleted the logs of %d old runs: more than GIBIL_MAX_LOGS, or the disk is nearly full", len(gone))
