"""Gives queued runs their turn, keeps the leases of those that run, and passes on the wish to stop.

Who is next is the store's decision (limits, order, fair turns); this loop only asks, and supervises what it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from gibil_bot.errors import ClaimLost, GibilError, StoreError
from gibil_bot.model import Claim, RunState
from gibil_bot.ports import Outbox, RunStore
from gibil_bot.runs.queued_reports import queued_check_run
from gibil_bot.runs.runner import PUBLISH_EVERY_S, Runner, Tools

log = logging.getLogger("gibil.dispatcher")

LEASE_S = 30.0
HEARTBEAT_S = LEASE_S / 3
POLL_S = 2.0


class Dispatcher:
    """`run()` for as long as the bot lives. Cancelling it is the graceful stop: runs are left for the next process."""

    def __init__(self, tools: Tools, runs: RunStore, outbox: Outbox, process: str, max_machines: int) -> None:
        self._tools = tools
        self._runs = runs
        self._outbox = outbox
        self._process = process
        self._max_machines = max_machines
        self._active: dict[str, tuple[Claim, Runner, asyncio.Task[None]]] = {}
        self._places: dict[str, int] = {}
        self._places_published = 0.0

    async def run(self) -> None:
        signal = self._runs.changed()
        heart = asyncio.create_task(self._beat())
        try:
            while True:
                try:
                    await self._start_what_may_start()
                    await self._pass_on_cancellations()
                    await self._publish_places()
                except StoreError as error:
                    log.error("the database: %s", error.message)
                    await asyncio.sleep(POLL_S)
                if heart.done():
                    heart.result()
                await signal.wait(POLL_S)
        finally:
            heart.cancel()
            tasks = [task for _, _, task in self._active.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(heart, *tasks, return_exceptions=True)

    async def _start_what_may_start(self) -> None:
        while claim := await self._runs.claim(self._process, lease_s=LEASE_S, max_machines=self._max_machines):
            runner = Runner(self._tools, claim)
            task = asyncio.create_task(self._supervise(claim, runner), name=f"run {claim.run.id}")
            self._active[claim.run.id] = (claim, runner, task)

    async def _supervise(self, claim: Claim, runner: Runner) -> None:
        run = claim.run
        log.info(
            "run %s: %s of %s#%s", run.id, run.plan.workflow, run.source.repository.full_name, run.source.pull_request.number
        )
        try:
            conclusion = await runner.run()
            log.info("run %s: %s", run.id, conclusion.value)
        except ClaimLost:
            log.warning("run %s: another process works on it now", run.id)
        except asyncio.CancelledError:
            with contextlib.suppress(GibilError):
                await asyncio.shield(self._runs.release(claim))
            raise
        except StoreError as error:
            # Nothing can be written: the lease runs out and the run is taken up again, here or elsewhere.
            log.error("run %s: %s", run.id, error.message)
        except Exception:
            log.exception("run %s: stopped by a fault of ours; it is taken up again", run.id)
        finally:
            active = self._active.get(run.id)
            if active is not None and active[0].fence == claim.fence:
                del self._active[run.id]

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            claims = [claim for claim, _, _ in self._active.values()]
            if not claims:
                continue
            try:
                reasons = await self._runs.heartbeat(claims, lease_s=LEASE_S)
            except StoreError as error:
                log.error("the leases could not be renewed: %s", error.message)
                continue
            for claim in claims:
                active = self._active.get(claim.run.id)
                if claim.run.id not in reasons and active is not None and active[0].fence == claim.fence:
                    active[2].cancel()

    async def _pass_on_cancellations(self) -> None:
        if not self._active:
            return
        for run in await self._runs.unfinished():
            if run.cancel_reason is not None and run.id in self._active:
                self._active[run.id][1].cancel(run.cancel_reason)

    async def _publish_places(self) -> None:
        """Keep the place in the queue true on the check runs of those that wait, at the pace of all progress."""
        if time.monotonic() - self._places_published < PUBLISH_EVERY_S:
            return
        queued = [run for run in await self._runs.unfinished() if run.state is RunState.QUEUED]
        places = {run.id: place for place, run in enumerate(queued, start=1)}
        moved = [run for run in queued if self._places.get(run.id, places[run.id]) != places[run.id]]
        self._places = places
        if moved:
            self._places_published = time.monotonic()
            await self._outbox.record([queued_check_run(run, places[run.id], self._tools.public_url) for run in moved])
