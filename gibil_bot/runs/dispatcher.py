"""Starts runs that may start, renews the leases of running ones, and passes cancellations to their runners.

The store decides which run is next (limits, order, fairness); this loop claims runs and supervises them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from gibil_bot.clock import passed_s
from gibil_bot.errors import ClaimLost, GibilError, StoreError
from gibil_bot.model import Claim, RunState
from gibil_bot.ports import RunStore
from gibil_bot.runs.queued_reports import queued_check_run
from gibil_bot.runs.runner import PUBLISH_EVERY_S, Runner, Tools

log = logging.getLogger("gibil.dispatcher")

LEASE_S = 30.0
POLL_S = 2.0
HELD = 5 / 6
"""The part of a lease after which this process stops, so that it has stopped when another one continues."""
_NO_LIMIT = 1_000_000


@dataclass
class _Active:
    """A run that this process has claimed."""

    claim: Claim
    renewed_at: float
    """Before the lease was renewed last, in seconds of clock.passed_s: it ends no sooner than a lease's length after that."""
    is_lost: bool = False
    """Another process may have claimed it: nothing may be written any more."""
    runner: Runner = field(init=False)
    task: asyncio.Task[None] = field(init=False)


class Dispatcher:
    """Call `run()` while the bot is running. Cancelling it stops gracefully: the next process continues the runs.

    With a store that other processes share, a run whose lease couldn't be renewed in time is stopped in the same way, but
    without a write: another process may continue it now.
    """

    def __init__(
        self,
        tools: Tools,
        runs: RunStore,
        process: str,
        *,
        away_s: float = math.inf,
        lease_s: float = LEASE_S,
    ) -> None:
        """`away_s`: after which a host counts as away (ports.RunStore.claim)."""
        self._tools = tools
        self._runs = runs
        self._process = process
        self._away_s, self._lease_s = away_s, lease_s
        self._active: dict[str, _Active] = {}
        """By run id."""
        self._tasks: set[asyncio.Task[None]] = set()
        """Of all runs, including those that are being stopped."""
        self._bots = 1
        self._is_lapsed = False
        """Whether other bots take this one for dead: they would end the lease of what it claims."""
        self._interrupted: Counter[str] = Counter()
        """By run id: how often the database didn't take a write of it."""
        self._positions: dict[str, int] = {}
        self._positions_published = 0.0

    async def run(self) -> None:
        signal = self._runs.changed()
        background = [asyncio.create_task(self._renew_leases())]
        if self._tools.is_shared:
            background.append(asyncio.create_task(self._stop_unrenewed()))
        try:
            while True:
                try:
                    await self._start_ready_runs()
                    await self._pass_on_cancellations()
                    await self._publish_positions()
                except StoreError as error:
                    log.error("database: %s", error.message)
                    await asyncio.sleep(POLL_S)
                for task in background:
                    if task.done():
                        task.result()
                await signal.wait(POLL_S)
        finally:
            tasks = [*background, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def share(self, bots: int) -> None:
        """Note how many bots run at present: the others see this one. Each one claims at most its part of the machines, so that
        no host has them all.
        """
        self._bots, self._is_lapsed = max(1, bots), False

    def stop_all(self) -> None:
        """Stop all runs without a write, because other processes may have claimed them. Nothing is claimed until `share`."""
        self._is_lapsed = True
        for active in self._active.values():
            self._lose(active)

    async def _start_ready_runs(self) -> None:
        most = _NO_LIMIT if self._tools.max_machines is None else self._tools.max_machines
        while not self._is_lapsed:
            began = passed_s()
            is_full = len(self._active) >= math.ceil(most / self._bots)
            claim = await self._runs.claim(
                self._process,
                lease_s=self._lease_s,
                max_machines=0 if is_full else most,  # runs that were claimed before, or are to be cancelled, don't wait
                host=self._tools.host,
                away_s=self._away_s,
            )
            if claim is None:
                return
            active = _Active(claim, began)
            active.runner = Runner(self._tools, claim, holds=partial(self._holds, active))
            before = self._active.get(claim.run.id)
            active.task = asyncio.create_task(self._supervise(active, before), name=f"run {claim.run.id}")
            self._tasks.add(active.task)
            active.task.add_done_callback(self._tasks.discard)
            self._active[claim.run.id] = active

    async def _supervise(self, active: _Active, before: _Active | None) -> None:
        """Work on a run. `before`: an earlier claim of it by this process, whose runner may still be stopping."""
        try:
            if before is not None:
                before.task.cancel()
                await asyncio.wait({before.task})
            await self._work(active)
        except asyncio.CancelledError:
            if not active.is_lost:
                with contextlib.suppress(GibilError):
                    await asyncio.shield(self._runs.release(active.claim))
            raise
        finally:
            if self._active.get(active.claim.run.id) is active:
                del self._active[active.claim.run.id]

    async def _work(self, active: _Active) -> None:
        run = active.claim.run
        log.info(
            "run %s: %s of %s#%s", run.id, run.plan.workflow, run.source.repository.full_name, run.source.pull_request.number
        )
        try:
            conclusion = await active.runner.run()
            log.info("run %s: %s", run.id, conclusion.value)
        except ClaimLost:
            log.warning("run %s: another process has claimed it", run.id)
        except StoreError as error:
            self._interrupted[run.id] += 1
            log.error("run %s: stopped until the database answers: %s", run.id, error.message)
            await self._release_later(active)
            return
        except Exception:
            log.exception("run %s: stopped by an internal error; it will be claimed again when its lease expires", run.id)
        del self._interrupted[run.id]

    async def _release_later(self, active: _Active) -> None:
        """End the lease once the database answers, so that the run is claimed again before that expires.

        The wait grows each time, in case that the database always rejects a write of the run.
        """
        wait_s = self._lease_s / 10 * 2 ** min(self._interrupted[active.claim.run.id] - 1, 10)
        while passed_s() + wait_s < active.renewed_at + self._lease_s:
            await asyncio.sleep(wait_s)
            try:
                await self._runs.release(active.claim)
            except StoreError:
                continue
            except ClaimLost:
                return
            return

    async def _renew_leases(self) -> None:
        """Renew the leases, and stop working on runs that another process has claimed, without any further write."""
        wait_s = self._lease_s / 3
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._lease_s / 3
            renewed = [active for active in self._active.values() if not active.is_lost and not active.task.done()]
            if not renewed:
                continue
            began = passed_s()
            try:
                reasons = await self._runs.heartbeat([active.claim for active in renewed], lease_s=self._lease_s)
            except StoreError as error:
                log.error("could not renew the leases: %s", error.message)
                wait_s = self._lease_s / 15
                continue
            for active in renewed:
                if active.claim.run.id in reasons:
                    active.renewed_at = began
                else:
                    self._lose(active)

    async def _stop_unrenewed(self) -> None:
        """Stop runs whose lease ends soon by our clock, which doesn't need the database."""
        while True:
            now = passed_s()
            for active in self._active.values():
                if not active.is_lost and not self._holds(active):
                    log.error(
                        "run %s: stopped here, because its lease couldn't be renewed for %.0f s; it is continued by a process "
                        "that reaches the database",
                        active.claim.run.id,
                        now - active.renewed_at,
                    )
                    self._lose(active)
            ends = (active.renewed_at + HELD * self._lease_s for active in self._active.values() if not active.is_lost)
            # A sleep goes on when the computer was suspended, so it is short.
            await asyncio.sleep(min(self._lease_s / 15, max(0.0, min(ends, default=math.inf) - now)))

    def _holds(self, active: _Active) -> bool:
        return not active.is_lost and passed_s() < active.renewed_at + HELD * self._lease_s

    @staticmethod
    def _lose(active: _Active) -> None:
        active.is_lost = True
        active.task.cancel()

    async def _pass_on_cancellations(self) -> None:
        if not self._active:
            return
        for run in await self._runs.unfinished():
            if run.cancel_reason is not None and run.id in self._active:
                self._active[run.id].runner.cancel(run.cancel_reason)

    async def _publish_positions(self) -> None:
        """Update the queue positions on the check runs of queued runs, at most as often as other progress."""
        if passed_s() - self._positions_published < PUBLISH_EVERY_S:
            return
        queued = [run for run in await self._runs.unfinished() if run.state is RunState.QUEUED]
        positions = {run.id: position for position, run in enumerate(queued, start=1)}
        moved = [run for run in queued if self._positions.get(run.id, positions[run.id]) != positions[run.id]]
        self._positions = positions
        if moved:
            self._positions_published = passed_s()
            await self._runs.record_queued(
                {run.id: queued_check_run(run, positions[run.id], self._tools.public_url) for run in moved}
            )
