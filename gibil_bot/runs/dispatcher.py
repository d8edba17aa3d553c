"""Starts runs that may start, renews the leases of running ones, and passes cancellations to their runners.

The store decides which run is next (limits, order, fairness); this loop claims runs and supervises them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from gibil_bot.errors import ClaimLost, GibilError, StoreError
from gibil_bot.model import Claim, RunState
from gibil_bot.ports import Outbox, RunStore
from gibil_bot.runs.queued_reports import queued_check_run
from gibil_bot.runs.runner import PUBLISH_EVERY_S, Runner, Tools

log = logging.getLogger("gibil.dispatcher")

LEASE_S = 30.0
HEARTBEAT_S = LEASE_S / 3
POLL_S = 2.0


@dataclass(frozen=True)
class _Active:
    """A run that this process has claimed."""

    claim: Claim
    runner: Runner
    task: asyncio.Task[None]


class Dispatcher:
    """Call `run()` while the bot is running. Cancelling it stops gracefully: the next process continues the runs."""

    def __init__(self, tools: Tools, runs: RunStore, outbox: Outbox, process: str, max_machines: int) -> None:
        self._tools = tools
        self._runs = runs
        self._outbox = outbox
        self._process = process
        self._max_machines = max_machines
        self._active: dict[str, _Active] = {}
        """By run id."""
        self._positions: dict[str, int] = {}
        self._positions_published = 0.0

    async def run(self) -> None:
        signal = self._runs.changed()
        renewing = asyncio.create_task(self._renew_leases())
        try:
            while True:
                try:
                    await self._start_ready_runs()
                    await self._pass_on_cancellations()
                    await self._publish_positions()
                except StoreError as error:
                    log.error("database: %s", error.message)
                    await asyncio.sleep(POLL_S)
                if renewing.done():
                    renewing.result()
                await signal.wait(POLL_S)
        finally:
            renewing.cancel()
            tasks = [active.task for active in self._active.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(renewing, *tasks, return_exceptions=True)

    async def _start_ready_runs(self) -> None:
        while claim := await self._runs.claim(self._process, lease_s=LEASE_S, max_machines=self._max_machines):
            runner = Runner(self._tools, claim)
            task = asyncio.create_task(self._supervise(claim, runner), name=f"run {claim.run.id}")
            self._active[claim.run.id] = _Active(claim, runner, task)

    async def _supervise(self, claim: Claim, runner: Runner) -> None:
        run = claim.run
        log.info(
            "run %s: %s of %s#%s", run.id, run.plan.workflow, run.source.repository.full_name, run.source.pull_request.number
        )
        try:
            conclusion = await runner.run()
            log.info("run %s: %s", run.id, conclusion.value)
        except ClaimLost:
            log.warning("run %s: another process has claimed it", run.id)
        except asyncio.CancelledError:
            with contextlib.suppress(GibilError):
                await asyncio.shield(self._runs.release(claim))
            raise
        except StoreError as error:
            # Nothing can be written: the lease expires, and this or another process claims the run again.
            log.error("run %s: %s", run.id, error.message)
        except Exception:
            log.exception("run %s: stopped by an internal error; it will be claimed again when its lease expires", run.id)
        finally:
            active = self._active.get(run.id)
            if active is not None and active.claim.fence == claim.fence:
                del self._active[run.id]

    async def _renew_leases(self) -> None:
        """Renew the leases, and stop working on runs that another process has claimed, without any further write."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            claims = [active.claim for active in self._active.values()]
            if not claims:
                continue
            try:
                reasons = await self._runs.heartbeat(claims, lease_s=LEASE_S)
            except StoreError as error:
                log.error("could not renew the leases: %s", error.message)
                continue
            for claim in claims:
                active = self._active.get(claim.run.id)
                if claim.run.id not in reasons and active is not None and active.claim.fence == claim.fence:
                    active.task.cancel()

    async def _pass_on_cancellations(self) -> None:
        if not self._active:
            return
        for run in await self._runs.unfinished():
            if run.cancel_reason is not None and run.id in self._active:
                self._active[run.id].runner.cancel(run.cancel_reason)

    async def _publish_positions(self) -> None:
        """Update the queue positions on the check runs of queued runs, at most as often as other progress."""
        if time.monotonic() - self._positions_published < PUBLISH_EVERY_S:
            return
        queued = [run for run in await self._runs.unfinished() if run.state is RunState.QUEUED]
        positions = {run.id: position for position, run in enumerate(queued, start=1)}
        moved = [run for run in queued if self._positions.get(run.id, positions[run.id]) != positions[run.id]]
        self._positions = positions
        if moved:
            self._positions_published = time.monotonic()
            await self._outbox.record([queued_check_run(run, positions[run.id], self._tools.public_url) for run in moved])
