"""The SQL of runs: rows as model.Run, their states and reports, and which one is claimed next.

Limits, order and fairness of claims are decided together, in one transaction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from gibil_bot.errors import ClaimLost
from gibil_bot.model import (
    CancelRequest,
    Claim,
    CommitProgress,
    Conclusion,
    NewRun,
    Notification,
    Plan,
    Run,
    RunState,
    Source,
    TaskResult,
)
from gibil_bot.runs.signals import Subscription
from gibil_bot.runs.sql import outbox
from gibil_bot.runs.sql.connection import Connection, Database

decode_result = msgspec.json.Decoder(TaskResult).decode
_HELD = "id = ? and owner = ? and fence = ? and state = 'running'"


class SqlRuns:
    """ports.RunStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(
        self, owner: str, *, lease_s: float, max_machines: int, host: str = "", away_s: float = math.inf
    ) -> Claim | None:
        now = self._database.now()
        job = partial(
            claim_run, owner=owner, now=now, lease_s=lease_s, max_machines=max_machines, host=host, away_s=away_s
        )  # fmt: skip
        return await self._database.write(job)

    async def heartbeat(self, claims: Sequence[Claim], *, lease_s: float) -> dict[str, str | None]:
        return await self._database.write(partial(heartbeat, claims=claims, lease_until=self._database.now() + lease_s))

    async def release(self, claim: Claim) -> None:
        await self._database.write(partial(release, claim=claim))

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int, host: str | None = None) -> None:
        await self._database.write(partial(save_machine, claim=claim, machine=machine, attempt=attempt, host=host))

    async def count_copies(self, claim: Claim, copies: int, *, max_machines: int | None = None) -> bool:
        return await self._database.write(partial(count_copies, claim=claim, copies=copies, max_machines=max_machines))

    async def save_note(self, claim: Claim, note: str) -> None:
        await self._database.write(partial(save_note, claim=claim, note=note))

    async def save_plan(self, claim: Claim, plan: Plan) -> None:
        await self._database.write(partial(save_plan, claim=claim, plan=plan))

    async def save_commit(self, claim: Claim, progress: CommitProgress) -> None:
        await self._database.write(partial(save_commit, claim=claim, progress=progress))

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        await self._database.write(partial(save_task, claim=claim, result=result))

    async def bind_secrets(self, claim: Claim, fingerprint: str) -> bool:
        return await self._database.write(partial(bind_secrets, claim=claim, fingerprint=fingerprint))

    async def record(self, claim: Claim, notifications: Sequence[Notification]) -> None:
        await self._database.write(partial(record, claim=claim, notifications=notifications, now=self._database.now()))

    async def finish(self, claim: Claim, conclusion: Conclusion, notifications: Sequence[Notification]) -> None:
        now = self._database.now()
        job = partial(finish, claim=claim, conclusion=conclusion, notifications=notifications, now=now)
        await self._database.write(job)

    async def record_queued(self, reports: Mapping[str, Notification]) -> None:
        await self._database.write(partial(record_queued, reports=reports, now=self._database.now()))

    async def request_cancel(self, run_id: str, reason: str) -> bool:
        return await self._database.write(partial(request_cancel, run_id=run_id, reason=reason))

    async def get(self, run_id: str) -> Run | None:
        return await self._database.read(partial(get, run_id=run_id))

    async def task_results(self, run_id: str, machine_attempt: int) -> list[TaskResult]:
        return await self._database.read(partial(task_results, run_id=run_id, machine_attempt=machine_attempt))

    async def unfinished(self) -> list[Run]:
        return await self._database.read(unfinished)

    async def of_repository(self, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
        return await self._database.read(partial(of_repository, repository_id=repository_id, number=number, sha=sha))

    def changed(self) -> Subscription:
        return self._database.changed("runs")


async def queue(db: Connection, topics: set[str], new: NewRun, now: float, delivery_seq: int) -> None:
    """Queue a run, unless it exists, and supersede older unfinished runs of its concurrency group.

    Without `cancel_in_progress`, only runs that haven't started are superseded, as in GitHub Actions. The group "" means no
    group. If a later delivery has already cancelled such runs, this run is cancelled too and supersedes no other run.
    """
    source, plan = new.source, new.plan
    repository_id, group = source.repository.id, plan.concurrency_group
    inserted = await db.row(
        "insert into runs "
        "(id, delivery_guid, repository_id, pull_request, sha, concurrency_group, state, queued_at, source, plan) "
        "values (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?) on conflict (id) do nothing returning seq",
        (
            new.id,
            new.delivery_guid,
            repository_id,
            source.pull_request.number,
            source.sha,
            group,
            now,
            msgspec.json.encode(source),
            msgspec.json.encode(plan),
        ),
    )
    if inserted is None:
        return
    topics.add("runs")
    cancelled = await db.row(
        "select reason from cancellations where repository_id = ? and pull_request = ? and delivery_seq > ? "
        "and (workflow is null or workflow = ?) order by seq limit 1",
        (repository_id, source.pull_request.number, delivery_seq, plan.workflow),
    )
    if cancelled is not None:
        await request_cancel(db, topics, new.id, cancelled[0])
    elif group:
        await db.run(  # without the index hint, SQLite would scan the repository's whole history
            "update runs indexed by runs_of_group set cancel_reason = ? where finished_at is null and cancel_reason is null "
            "and repository_id = ? and concurrency_group = ? and seq < ? and (state = 'queued' or ? = 1)",
            (f"superseded by {source.sha[:7]}", repository_id, group, inserted[0], plan.cancel_in_progress),
        )


async def request_cancel(db: Connection, topics: set[str], run_id: str, reason: str) -> bool:
    """Set the cancel reason, unless one is set. False if the run is finished or doesn't exist."""
    found = await db.run(
        "update runs set cancel_reason = coalesce(cancel_reason, ?) where id = ? and finished_at is null", (reason, run_id)
    )
    if found:
        topics.add("runs")
    return bool(found)


async def cancel_earlier(db: Connection, topics: set[str], request: CancelRequest, delivery_seq: int) -> None:
    """Cancel the runs of earlier deliveries. Runs of later deliveries that were handled first continue."""
    found = await db.rows(
        "select id, plan from runs indexed by runs_of_group where finished_at is null and repository_id = ? "
        "and pull_request = ? and not exists (select 1 from deliveries d where d.guid = delivery_guid and d.seq >= ?)",
        (request.repository_id, request.number, delivery_seq),
    )
    for run_id, plan in sorted(found):
        if request.workflow is None or decode_plan(plan).workflow == request.workflow:
            await request_cancel(db, topics, run_id, request.reason)
    await db.run(
        "insert into cancellations (delivery_seq, repository_id, pull_request, workflow, reason) "
        "select ?1, ?2, ?3, ?4, ?5 where exists (select 1 from deliveries where handled_at is null and seq < ?1)",
        (delivery_seq, request.repository_id, request.number, request.workflow, request.reason),
    )


async def heartbeat(db: Connection, _: set[str], claims: Sequence[Claim], lease_until: float) -> dict[str, str | None]:
    """Renew leases. No subscriber waits for a lease, so no topic is named."""
    answers: dict[str, str | None] = {}
    for claim in sorted(claims, key=lambda claim: claim.run.id):  # as a cancellation does, so that neither waits for the other
        renewed = await db.rows(
            f"update runs set lease_until = ? where {_HELD} returning cancel_reason",  # noqa: S608
            (lease_until, claim.run.id, claim.owner, claim.fence),
        )
        if renewed:
            answers[claim.run.id] = renewed[0][0]
    return answers


async def release(db: Connection, topics: set[str], claim: Claim) -> None:
    await _write(db, topics, claim, "owner = '', lease_until = 0")


async def save_machine(
    db: Connection, topics: set[str], claim: Claim, machine: str | None, attempt: int, host: str | None
) -> None:
    host = host if machine is not None else None
    await _write(db, topics, claim, "machine = ?, machine_attempt = ?, machine_host = ?", machine, attempt, host)


async def count_copies(db: Connection, topics: set[str], claim: Claim, copies: int, max_machines: int | None) -> bool:
    """Store the number of copies of the run's machine, unless that makes more than one copy and `max_machines`."""
    await db.lock(_CLAIMS)
    await check(db, claim)
    if max_machines is not None:
        row = await db.row(
            "select cast(coalesce(sum(case when id = ? then 0 else copies end), 0) as bigint), count(*) from runs "
            "where finished_at is null and state = 'running'",
            (claim.run.id,),
        )
        assert row is not None
        all_copies, running = row[0] + copies, row[1]
        if all_copies > 1 and all_copies + running > max_machines:
            return False
    await _write(db, topics, claim, "copies = ?", copies)
    return True


async def save_note(db: Connection, topics: set[str], claim: Claim, note: str) -> None:
    await _write(db, topics, claim, "note = ?", note)


async def save_plan(db: Connection, topics: set[str], claim: Claim, plan: Plan) -> None:
    await _write(db, topics, claim, "plan = ?", msgspec.json.encode(plan))


async def save_commit(db: Connection, topics: set[str], claim: Claim, progress: CommitProgress) -> None:
    await _write(db, topics, claim, "commit_progress = ?", msgspec.json.encode(progress))


async def save_task(db: Connection, topics: set[str], claim: Claim, result: TaskResult) -> None:
    await check(db, claim)
    await db.run(
        "insert into task_results (run_id, machine_attempt, task_index, result) values (?, ?, ?, ?) "
        "on conflict (run_id, machine_attempt, task_index) do update set result = excluded.result",
        (claim.run.id, result.machine_attempt, result.index, msgspec.json.encode(result)),
    )
    topics.add("runs")


async def bind_secrets(db: Connection, _: set[str], claim: Claim, fingerprint: str) -> bool:
    """Return True until a machine was created for the run, and then as long as the fingerprint stays the same."""
    await check(db, claim)
    await db.run(
        "insert into run_secrets (run_id, fingerprint) values (?, ?) on conflict (run_id) do update "
        "set fingerprint = excluded.fingerprint where (select machine_attempt from runs where id = excluded.run_id) = 0",
        (claim.run.id, fingerprint),
    )
    bound = await db.row("select fingerprint from run_secrets where run_id = ?", (claim.run.id,))
    return bound == (fingerprint,)


async def finish(
    db: Connection,
    topics: set[str],
    claim: Claim,
    conclusion: Conclusion,
    notifications: Sequence[Notification],
    now: float,
) -> None:
    await _write(
        db, topics, claim, "state = 'finished', finished_at = ?, conclusion = ?, lease_until = 0", now, conclusion.value
    )
    await outbox.record(db, topics, notifications, now)


async def record(db: Connection, topics: set[str], claim: Claim, notifications: Sequence[Notification], now: float) -> None:
    await check(db, claim)
    await outbox.record(db, topics, notifications, now)


async def record_queued(db: Connection, topics: set[str], reports: Mapping[str, Notification], now: float) -> None:
    await db.lock(_CLAIMS)  # none of them is claimed meanwhile
    queued = {run_id for (run_id,) in await db.rows("select id from runs where finished_at is null and state = 'queued'")}
    still = [notification for run_id, notification in reports.items() if run_id in queued]
    await outbox.record(db, topics, still, now)


async def get(db: Connection, run_id: str) -> Run | None:
    row = await db.row(f"select {COLUMNS} from runs where id = ?", (run_id,))  # noqa: S608
    return None if row is None else to_run(row)


async def task_results(db: Connection, run_id: str, machine_attempt: int) -> list[TaskResult]:
    rows = await db.rows(
        "select result from task_results where run_id = ? and machine_attempt = ? order by task_index",
        (run_id, machine_attempt),
    )
    return [decode_result(row[0]) for row in rows]


async def unfinished(db: Connection) -> list[Run]:
    return await _select(db, "finished_at is null order by seq")


async def of_repository(db: Connection, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
    condition, values = "repository_id = ?", [repository_id, *(value for value in (number, sha) if value is not None)]
    if number is not None:
        condition += " and pull_request = ?"
    if sha is not None:
        condition += " and sha = ?"
    return await _select(db, condition + " order by seq desc limit 100", *values)


async def prune(db: Connection, _: set[str], finished_before: float, limit: int) -> int:
    """Delete runs that finished before that, with their results; return their number."""
    gone = await db.rows(
        "select seq, id from runs where finished_at is not null and finished_at < ? limit ?", (finished_before, limit)
    )
    await db.run_many("delete from task_results where run_id = ?", [(run_id,) for _, run_id in gone])
    await db.run_many("delete from run_secrets where run_id = ?", [(run_id,) for _, run_id in gone])
    await db.run_many("delete from runs where seq = ?", [(seq,) for seq, _ in gone])
    return len(gone)


async def check(db: Connection, claim: Claim) -> None:
    """Raise ClaimLost unless the claim still holds."""
    held = await db.row(f"select 1 from runs where {_HELD} for update", (claim.run.id, claim.owner, claim.fence))  # noqa: S608
    if held is None:
        raise _lost(claim)


async def _write(db: Connection, topics: set[str], claim: Claim, assignment: str, *values: object) -> None:
    """Update the run. Raises ClaimLost unless the claim still holds."""
    written = await db.run(
        f"update runs set {assignment} where {_HELD}",  # noqa: S608
        (*values, claim.run.id, claim.owner, claim.fence),
    )
    if not written:
        raise _lost(claim)
    topics.add("runs")


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(f"run {claim.run.id} is no longer claimed by {claim.owner} (fence {claim.fence}): stop working on it")


async def _select(db: Connection, condition: str, *values: object) -> list[Run]:
    return [to_run(row) for row in await db.rows(f"select {COLUMNS} from runs where {condition}", values)]  # noqa: S608


COLUMNS = (
    "id, seq, delivery_guid, source, plan, state, queued_at, started_at, finished_at, conclusion, cancel_reason, "
    "machine, machine_attempt, note, commit_progress, machine_host, hosts"
)
decode_source = msgspec.json.Decoder(Source).decode
decode_plan = msgspec.json.Decoder(Plan).decode
decode_commit = msgspec.json.Decoder(CommitProgress).decode


def to_run(row: tuple[Any, ...]) -> Run:
    """Decode a row of the columns COLUMNS."""
    (
        run_id, seq, guid, source, plan, state, queued_at, started_at, finished_at, conclusion, cancel_reason,
        machine, machine_attempt, note, commit, machine_host, hosts,
    ) = row  # fmt: skip
    return Run(
        id=run_id,
        seq=seq,
        delivery_guid=guid,
        source=decode_source(source),
        plan=decode_plan(plan),
        state=RunState(state),
        queued_at=datetime.fromtimestamp(queued_at, UTC),
        started_at=_time(started_at),
        finished_at=_time(finished_at),
        conclusion=None if conclusion is None else Conclusion(conclusion),
        cancel_reason=cancel_reason,
        machine=machine,
        machine_attempt=machine_attempt,
        note=note,
        commit=None if commit is None else decode_commit(commit),
        machine_host=machine_host,
        hosts=tuple(hosts.split()),
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


_CLAIMS = "claims of runs"
"""The lock of what decides about the number of machines."""
CANCELLED_AWAY_S = 60.0
"""A run that is to be cancelled doesn't wait longer for the host of its machine."""


async def claim_run(
    db: Connection,
    topics: set[str],
    owner: str,
    now: float,
    lease_s: float,
    max_machines: int,
    host: str = "",
    away_s: float = math.inf,
) -> Claim | None:
    """Claim a run by the rules in ports.RunStore.claim. Runs of the group "" wait for no other run."""
    await db.lock(_CLAIMS)
    seq = await _abandoned(db, now, host, away_s) or await _to_cancel(db) or await _next_in_turn(db, max_machines)
    if seq is None:
        return None
    row = await db.row(
        "update runs set state = 'running', owner = ?1, fence = fence + 1, lease_until = ?2, "  # noqa: S608
        "copies = case when machine_host is null or machine_host = ?3 then copies else 0 end, "
        # A host that returns moves to the end: its files are the newest.
        "hosts = case when ?3 = '' then hosts "
        "else ltrim(trim(replace(' ' || hosts || ' ', ' ' || ?3 || ' ', ' ')) || ' ' || ?3) end, "
        f"started_at = coalesce(started_at, ?4) where seq = ?5 returning fence, {COLUMNS}",
        (owner, now + lease_s, host, now, seq),
    )
    assert row is not None
    topics.add("runs")
    return Claim(run=to_run(row[1:]), owner=owner, fence=row[0])


async def _abandoned(db: Connection, now: float, host: str, away_s: float) -> int | None:
    """Find a run with an expired lease. It already counts as running, because a machine may exist for it.

    If only another host reaches its machine, that host has to be away.
    """
    return await _first(
        db,
        "select seq from runs where finished_at is null and state = 'running' and lease_until <= ?1 "
        "and (machine_host is null or machine_host = ?2 or not exists (select 1 from hosts h where h.id = machine_host "
        "and (cancel_reason is null and h.seen_at > ?3 or cancel_reason is not null and h.seen_at > ?4))) "
        "order by seq limit 1 for update skip locked",
        now,
        host,
        max(now - away_s, 0.0),
        max(now - min(away_s, CANCELLED_AWAY_S), 0.0),
    )


async def _to_cancel(db: Connection) -> int | None:
    """Find a queued run that is to be cancelled. It needs no machine, so `max_machines` doesn't matter."""
    return await _first(
        db,
        "select seq from runs where finished_at is null and cancel_reason is not null and state = 'queued' "
        "order by seq limit 1 for update skip locked",
    )


async def _next_in_turn(db: Connection, max_machines: int) -> int | None:
    running = await db.rows(
        "select repository_id, count(*), cast(sum(copies) as bigint) from runs "
        "where finished_at is null and state = 'running' group by repository_id"
    )
    if sum(count + copies for _, count, copies in running) >= max_machines:
        return None
    busy: dict[int, int] = {repository_id: count for repository_id, count, _ in running}
    waiting = await db.rows(
        "select q.repository_id, coalesce(t.turn, 0), q.seq from (select repository_id, min(seq) as seq from runs "
        "where finished_at is null and state = 'queued' group by repository_id) q "
        "left join turns t on t.repository_id = q.repository_id"
    )
    waiting.sort(key=lambda row: (busy.get(row[0], 0), row[1], row[2]))
    for repository_id, _, _ in waiting:
        seq = await _first(
            db,
            "select r.seq from runs r where r.finished_at is null and r.state = 'queued' and r.repository_id = ? "
            "and (r.concurrency_group = '' or not exists ("
            "  select 1 from runs o where o.finished_at is null and o.repository_id = r.repository_id"
            "  and o.concurrency_group = r.concurrency_group and o.state = 'running'"
            ") and not exists ("
            "  select 1 from runs o where o.finished_at is null and o.repository_id = r.repository_id"
            "  and o.concurrency_group = r.concurrency_group and o.state = 'queued'"
            "  and o.pull_request = r.pull_request and o.seq < r.seq"
            ")) order by r.seq limit 1 for update of r skip locked",
            repository_id,
        )
        if seq is not None:
            await db.run(
                "insert into turns (repository_id, turn) values (?, (select coalesce(max(turn), 0) + 1 from turns)) "
                "on conflict (repository_id) do update set turn = excluded.turn",
                (repository_id,),
            )
            return seq
    return None


async def _first(db: Connection, query: str, *values: object) -> int | None:
    row = await db.row(query, values)
    return None if row is None else int(row[0])
