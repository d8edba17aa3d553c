"""Cleans up after crashes and lost requests, at start and every minute.

In this order: destroy machines that no run owns, request deliveries that never arrived, delete old rows and logs. The
dispatcher continues runs whose process died, and the outbox publishes pending notifications, because both are stored.

Of several bots that share a database, each one deletes the files of its host and the machines that it reaches, but only one at
a time does what concerns all: GitHub's list of deliveries, and old rows.
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
from gibil_bot.runs.prepared import PreparedMachines

log = logging.getLogger("gibil.reaper")

EVERY_S = 60.0
DELIVERIES_EVERY_S = 300.0
DELIVERIES_BACK = timedelta(days=3)
"""GitHub keeps deliveries for that long: docs.github.com/webhooks/using-webhooks/redelivering-webhooks."""
AFTER_LOSS_S = 10.0
"""Delay before a delivery that couldn't be stored is requested again."""
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
        prepared: PreparedMachines | None = None,
    ) -> None:
        self._prepared = prepared
        self._max_logs_bytes = max_logs_bytes
        self._store = store
        self._factory = factory
        self._github = github
        self._owner = owner
        self._logs = logs
        self._asked: dict[str, int] = {}
        self._lost = asyncio.Event()

    def delivery_lost(self) -> None:
        """Note that a delivery couldn't be stored: it is requested again as soon as the database is writable."""
        self._lost.set()

    async def run(self) -> None:
        since_deliveries = DELIVERIES_EVERY_S
        first = True
        while True:
            await self._log_failures("destroy strays", self.destroy_strays())
            is_urgent = first or self._lost.is_set()
            if self._github is not None and (is_urgent or since_deliveries >= DELIVERIES_EVERY_S):
                since_deliveries = 0.0
                await self._log_failures("fetch lost deliveries", self.fetch_lost_deliveries(self._github, is_urgent=is_urgent))
            if first and (self._store.is_shared or not await self._store.runs.unfinished()):
                await self._log_failures("no machine can be created", self._probe_provider())
            if self._prepared is not None:
                await self._log_failures("delete prepared machines", self._prepared.maintain(whole=first))
            first = False
            await self._log_failures("delete old rows and logs", self._delete_old())
            since_deliveries += await self._pause()

    async def _pause(self) -> float:
        """Wait for the next round, which comes soon after a delivery was lost; return the seconds waited."""
        started = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EVERY_S):
                await self._lost.wait()
        if self._lost.is_set():
            await asyncio.sleep(AFTER_LOSS_S)
        return time.monotonic() - started

    async def _log_failures(self, duty: str, work: Awaitable[object]) -> None:
        """Await a duty and log its failure, so that the other duties still run."""
        try:
            await work
        except Unavailable as error:
            log.error("%s: %s", duty, "; or: ".join((error.message, *error.remedies)))
        except GibilError as error:
            log.warning("%s: %s", duty, error.message)
        except Exception:
            log.exception("%s", duty)

    async def _probe_provider(self) -> None:
        """Report at start, not at the first command, if no machine can be created. This also prepares the provider."""
        capabilities = await self._factory.provider.probe()
        log.info("%s machines can be created: tier %s", self._factory.provider.name, capabilities.tier)

    async def destroy_strays(self) -> list[str]:
        """Destroy every machine of this owner that no unfinished run owns; return their names."""
        destroyed = list(await self._factory.provider.sweep(self._owner))
        for machine in await self._factory.list(self._owner):
            run_id = machine.labels.get("run")
            if run_id is None:
                continue  # a user's machine: it exists until it expires
            run = await self._store.runs.get(run_id)
            # A runner stores its machine's name before it creates the machine, so a machine whose name isn't stored has no
            # owner. Machines of attempts side by side have that name and a number.
            own = run.machine if run is not None and run.state is not RunState.FINISHED else None
            if own is None or (machine.name != own and not machine.name.startswith(f"{own}-")):
                log.warning("destroying %s, which no run owns", machine.name)
                await asyncio.shield(self._factory.destroy(machine.name))
                destroyed.append(machine.name)
        return destroyed

    async def fetch_lost_deliveries(self, github: GitHub, *, is_urgent: bool = True) -> list[str]:
        """Ask GitHub to redeliver what never reached us or couldn't be stored; return the GUIDs.

        `is_urgent`: also if another bot did it just now.
        """
        if not await self._is_our_turn("lost deliveries", DELIVERIES_EVERY_S) and not is_urgent:
            return []
        if self._lost.is_set():
            await self._store.prune()  # raises StoreError while the database isn't writable: too early to request anything
            self._lost.clear()
            self._asked.clear()  # the losses were our failure, so they don't count as tries
        asked = []
        for number, guid in await github.failed_deliveries(now() - DELIVERIES_BACK):
            if self._asked.get(guid, 0) >= ASK_AGAIN_TIMES or await self._store.inbox.get(guid) is not None:
                continue
            self._asked[guid] = self._asked.get(guid, 0) + 1
            log.info("asking GitHub to redeliver %s", guid)
            await github.redeliver(number)
            asked.append(guid)
        return asked

    async def _is_our_turn(self, duty: str, every_s: float) -> bool:
        """Return whether no bot that shares the database has done that duty lately; then it is ours."""
        # A little less often than each bot asks, so that a single bot has every turn.
        turn = await self._store.inbox.spend(f"duty: {duty}", cost=1, capacity=1, per_s=1.1 / every_s)
        return turn.allowed

    async def _delete_old(self) -> None:
        if await self._is_our_turn("delete old rows", EVERY_S):
            await self._store.prune()
        await asyncio.to_thread(forget_old_logs, self._logs, KEEP_LOGS_S)
        unfinished = {run.id for run in await self._store.runs.unfinished()}
        deleted = await asyncio.to_thread(trim_logs, self._logs, self._max_logs_bytes, unfinished)
        if deleted:
            log.warning(
                "deleted the logs of %d old runs: they exceeded GIBIL_MAX_LOGS, or the disk is nearly full", len(deleted)
            )
