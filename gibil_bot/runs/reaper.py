"""Puts right what a crash, a lost request or a bad minute left behind: at start, and every minute.

In this order: burn what nobody owns, forget what is old, and ask GitHub for the deliveries that never arrived. Runs whose
process died are taken up by the dispatcher, and what GitHub was not told by the teller: both are kept in the store.
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
        self, store: Store, forge: MachineFactory, github: GitHub | None, owner: str, logs: Path, max_logs_bytes: int = 10 * GIB
    ) -> None:
        self._max_logs_bytes = max_logs_bytes
        self._store = store
        self._forge = forge
        self._github = github
        self._owner = owner
        self._logs = logs
        self._asked: dict[str, int] = {}
        self._lost = asyncio.Event()

    def delivery_lost(self) -> None:
        """A delivery came and could not be stored: look for it soon, as soon as the database can be written again."""
        self._lost.set()

    async def run(self) -> None:
        since_deliveries = DELIVERIES_EVERY_S
        first = True
        while True:
            await self._carefully("burn strays", self.burn_strays())
            if self._github is not None and (self._lost.is_set() or since_deliveries >= DELIVERIES_EVERY_S):
                since_deliveries = 0.0
                await self._carefully("fetch lost deliveries", self.fetch_lost_deliveries(self._github))
            if first and not await self._store.runs.unfinished():
                await self._carefully("no machine can be forged here", self._forge_once())
            first = False
            await self._carefully("forget what is old", self._forget())
            since_deliveries += await self._pause()

    async def _pause(self) -> float:
        """Until the next round, which comes soon after a delivery was lost. The seconds."""
        begun = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVERY_S):
                await self._lost.wait()
        if self._lost.is_set():
            await asyncio.sleep(AFTER_LOSS_S)
        return time.monotonic() - begun

    async def _carefully(self, what: str, work: Awaitable[object]) -> None:
        """One failing duty must not keep the others from being done."""
        try:
            await work
        except Unavailable as error:
            log.error("%s: %s", what, "; or: ".join((error.message, *error.remedies)))
        except GibilError as error:
            log.warning("%s: %s", what, error.message)
        except Exception:
            log.exception("%s", what)

    async def _forge_once(self) -> None:
        """Say at the start, and not at the first command, when no machine can be forged; and have everything ready."""
        able = await self._forge.provider.probe()
        log.info("%s machines can be forged here: tier %s", self._forge.provider.name, able.tier)

    async def burn_strays(self) -> list[str]:
        """Burn every machine of ours that no unfinished run owns; the names."""
        burned = list(await self._forge.provider.sweep(self._owner))
        for machine in await self._forge.list(self._owner):
            run_id = machine.labels.get("run")
            if run_id is None:
                continue  # a person's machine: its TTL burns it
            run = await self._store.runs.get(run_id)
            # A runner names its machine in the store before it forges it, so an unnamed one is nobody's.
            if run is None or run.state is RunState.FINISHED or run.machine != machine.name:
                log.warning("burning %s, which no run owns", machine.name)
                await asyncio.shield(self._forge.destroy(machine.name))
                burned.append(machine.name)
        return burned

    async def fetch_lost_deliveries(self, github: GitHub) -> list[str]:
        """Ask GitHub to send again what never reached us, or could not be stored; the GUIDs."""
        if self._lost.is_set():
            await self._store.prune()  # raises StoreError while nothing can be written: then it is no use yet
            self._lost.clear()
            self._asked.clear()  # it was our fault that they did not get through
        asked = []
        for number, guid in await github.failed_deliveries(now() - DELIVERIES_BACK):
            if self._asked.get(guid, 0) >= ASK_AGAIN_TIMES or await self._store.inbox.get(guid) is not None:
                continue
            self._asked[guid] = self._asked.get(guid, 0) + 1
            log.info("asking GitHub for delivery %s again", guid)
            await github.redeliver(number)
            asked.append(guid)
        return asked

    async def _forget(self) -> None:
        await self._store.prune()
        await asyncio.to_thread(forget_old_logs, self._logs, KEEP_LOGS_S)
        unfinished = {run.id for run in await self._store.runs.unfinished()}
        gone = await asyncio.to_thread(trim_logs, self._logs, self._max_logs_bytes, unfinished)
        if gone:
            log.warning("the logs of %d old runs are removed: more than GIBIL_MAX_LOGS, or the disk is nearly full", len(gone))
