"""Runs in memory, for `gibil try`: the database's rules for a single process, without an outbox."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from msgspec.structs import replace

from gibil_bot.errors import ClaimLost
from gibil_bot.model import (
    Claim,
    CommitProgress,
    Conclusion,
    NewRun,
    Notification,
    Plan,
    ReviewUpdate,
    Run,
    RunState,
    TaskResult,
)
from gibil_bot.runs.signals import Signals, Subscription


@dataclass(kw_only=True)
class _Entry:
    run: Run
    owner: str = ""
    fence: int = 0
    lease_until: float = 0.0
    copies: int = 0
    results: dict[tuple[int, int], TaskResult] = field(default_factory=dict)
    fingerprint: str | None = None

    @property
    def group(self) -> tuple[int, str] | None:
        """The concurrency group; None: the run waits for no other."""
        plan = self.run.plan
        return (self.repository_id, plan.concurrency_group) if plan.concurrency_group else None

    @property
    def repository_id(self) -> int:
        return self.run.source.repository.id


class MemoryRuns:
    """ports.RunStore for one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}
        """In order of queueing."""
        self._turns: dict[int, int] = {}
        self._signals = Signals()
        self.reviews: list[ReviewUpdate] = []
        """What the agents of runs would have submitted."""

    def queue(self, *new_runs: NewRun) -> None:
        """Queue runs by the rules of Inbox.complete."""
        for new in new_runs:
            if new.id in self._entries:
                continue
            run = Run(
                id=new.id,
                seq=len(self._entries) + 1,
                delivery_guid=new.delivery_guid,
                source=new.source,
                plan=new.plan,
                state=RunState.QUEUED,
                queued_at=self._moment(),
            )
            entry = _Entry(run=run)
            for older in self._unfinished():
                is_superseded = older.run.state is RunState.QUEUED or new.plan.cancel_in_progress
                if entry.group is not None and older.group == entry.group and is_superseded:
                    self._cancel(older, f"superseded by {new.source.sha[:7]}")
            self._entries[new.id] = entry
        self._changed()

    async def claim(
        self, owner: str, *, lease_s: float, max_machines: int, host: str = "", away_s: float = math.inf
    ) -> Claim | None:
        """As in the protocol; one process has one host."""
        entry = self._abandoned() or self._to_cancel() or self._next_in_turn(max_machines)
        if entry is None:
            return None
        entry.owner, entry.fence, entry.lease_until = owner, entry.fence + 1, self._clock() + lease_s
        started_at = entry.run.started_at or self._moment()
        entry.run = replace(entry.run, state=RunState.RUNNING, started_at=started_at)
        self._changed()
        return Claim(run=entry.run, owner=owner, fence=entry.fence)

    def _abandoned(self) -> _Entry | None:
        now = self._clock()
        return next((one for one in self._unfinished(RunState.RUNNING) if one.lease_until <= now), None)

    def _to_cancel(self) -> _Entry | None:
        return next((one for one in self._unfinished(RunState.QUEUED) if one.run.cancel_reason is not None), None)

    def _next_in_turn(self, max_machines: int) -> _Entry | None:
        running, queued = self._unfinished(RunState.RUNNING), self._unfinished(RunState.QUEUED)
        if len(running) + sum(one.copies for one in running) >= max_machines:
            return None
        busy = Counter(one.repository_id for one in running)
        busy_groups = {one.group for one in running if one.group is not None}
        first: dict[int, _Entry] = {}
        """The oldest queued run of each repository: a tie-breaker for repositories that had their turn at the same time."""
        ready: dict[int, _Entry] = {}
        queued_before: set[tuple[object, int]] = set()
        for one in queued:
            first.setdefault(one.repository_id, one)
            group_and_pull = (one.group, one.run.source.pull_request.number)
            if one.group is None or (one.group not in busy_groups and group_and_pull not in queued_before):
                ready.setdefault(one.repository_id, one)
            queued_before.add(group_and_pull)
        in_turn = sorted(ready, key=lambda each: (busy[each], self._turns.get(each, 0), first[each].run.seq))
        if not in_turn:
            return None
        self._turns[in_turn[0]] = max(self._turns.values(), default=0) + 1
        return ready[in_turn[0]]

    async def heartbeat(self, claims: Sequence[Claim], *, lease_s: float) -> dict[str, str | None]:
        reasons: dict[str, str | None] = {}
        for claim in claims:
            entry = self._entries.get(claim.run.id)
            if entry is not None and _holds(entry, claim):
                entry.lease_until = self._clock() + lease_s
                reasons[claim.run.id] = entry.run.cancel_reason
        return reasons

    async def release(self, claim: Claim) -> None:
        entry = self._held(claim)
        entry.owner, entry.lease_until = "", 0.0
        self._changed()

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int, host: str | None = None) -> None:
        entry = self._held(claim)
        entry.run = replace(entry.run, machine=machine, machine_attempt=attempt, machine_host=host if machine else None)
        self._changed()

    async def count_copies(self, claim: Claim, copies: int, *, max_machines: int | None = None) -> bool:
        entry, running = self._held(claim), self._unfinished(RunState.RUNNING)
        all_copies = copies + sum(one.copies for one in running if one is not entry)
        if max_machines is not None and all_copies > 1 and all_copies + len(running) > max_machines:
            return False
        entry.copies = copies
        self._changed()
        return True

    async def save_note(self, claim: Claim, note: str) -> None:
        entry = self._held(claim)
        entry.run = replace(entry.run, note=note)
        self._changed()

    async def save_plan(self, claim: Claim, plan: Plan) -> None:
        entry = self._held(claim)
        entry.run = replace(entry.run, plan=plan)
        self._changed()

    async def save_commit(self, claim: Claim, progress: CommitProgress) -> None:
        entry = self._held(claim)
        entry.run = replace(entry.run, commit=progress)
        self._changed()

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        self._held(claim).results[result.machine_attempt, result.index] = result
        self._changed()

    async def task_results(self, run_id: str, machine_attempt: int) -> list[TaskResult]:
        entry = self._entries.get(run_id)
        results = sorted(entry.results.items()) if entry is not None else []
        return [result for (attempt, _), result in results if attempt == machine_attempt]

    async def bind_secrets(self, claim: Claim, fingerprint: str) -> bool:
        entry = self._held(claim)
        if entry.fingerprint is None or entry.run.machine_attempt == 0:
            entry.fingerprint = fingerprint
        return entry.fingerprint == fingerprint

    async def record(self, claim: Claim, notifications: Sequence[Notification]) -> None:
        """There is no GitHub to publish to, so reviews are only stored."""
        self._held(claim)
        self.reviews += [each.update for each in notifications if isinstance(each.update, ReviewUpdate)]

    async def finish(self, claim: Claim, conclusion: Conclusion, notifications: Sequence[Notification]) -> None:
        entry = self._held(claim)
        entry.run = replace(entry.run, state=RunState.FINISHED, finished_at=self._moment(), conclusion=conclusion)
        self._changed()

    async def record_queued(self, reports: Mapping[str, Notification]) -> None:
        """There is no GitHub to publish to."""

    async def request_cancel(self, run_id: str, reason: str) -> bool:
        entry = self._entries.get(run_id)
        if entry is None or entry.run.state is RunState.FINISHED:
            return False
        self._cancel(entry, reason)
        self._changed()
        return True

    async def get(self, run_id: str) -> Run | None:
        entry = self._entries.get(run_id)
        return entry.run if entry is not None else None

    async def unfinished(self) -> list[Run]:
        return [entry.run for entry in self._unfinished()]

    async def of_repository(self, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
        found = [
            entry.run
            for entry in self._entries.values()
            if entry.repository_id == repository_id
            and number in (None, entry.run.source.pull_request.number)
            and sha in (None, entry.run.source.sha)
        ]
        return found[::-1][:100]

    def changed(self) -> Subscription:
        return self._signals.subscribe("runs")

    def _unfinished(self, *states: RunState) -> list[_Entry]:
        wanted = states or (RunState.QUEUED, RunState.RUNNING)
        return [entry for entry in self._entries.values() if entry.run.state in wanted]

    def _held(self, claim: Claim) -> _Entry:
        """Return the claimed entry. Raises ClaimLost unless the claim still holds."""
        entry = self._entries.get(claim.run.id)
        if entry is None or not _holds(entry, claim):
            raise ClaimLost(
                f"run {claim.run.id} is no longer claimed by {claim.owner} (fence {claim.fence}): stop working on it"
            )
        return entry

    def _cancel(self, entry: _Entry, reason: str) -> None:
        """Set the cancel reason, unless one is set already."""
        entry.run = replace(entry.run, cancel_reason=entry.run.cancel_reason or reason)

    def _moment(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _changed(self) -> None:
        self._signals.notify(["runs"])


def _holds(entry: _Entry, claim: Claim) -> bool:
    return entry.run.state is RunState.RUNNING and (entry.owner, entry.fence) == (claim.owner, claim.fence)
