"""The SQL of runs: rows as model.Run, their states and reports, and which one is claimed next.

Limits, order and fairness of claims are decided together, in one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from gibil_bot.errors import ClaimLost
from gibil_bot.model import CancelRequest, Claim, Conclusion, NewRun, Notification, Plan, Run, RunState, Source, TaskResult
from gibil_bot.runs.signals import Subscription
from gibil_bot.runs.sqlite import outbox
from gibil_bot.runs.sqlite.threads import DatabaseThreads

_task_result = msgspec.json.Decoder(TaskResult)
_HELD = "id = ? and owner = ? and fence = ? and state = 'running'"


class SqliteRuns:
    """ports.RunStore."""

    def __init__(self, threads: DatabaseThreads) -> None:
        self._threads = threads

    async def claim(self, owner: str, *, lease_s: float, max_machines: int) -> Claim | None:
        now = self._threads.now()
        return await self._threads.write(partial(claim_run, owner=owner, now=now, lease_s=lease_s, max_machines=max_machines))

    async def heartbeat(self, claims: Sequence[Claim], *, lease_s: float) -> dict[str, str | None]:
        return await self._threads.write(partial(heartbeat, claims=claims, lease_until=self._threads.now() + lease_s))

    async def release(self, claim: Claim) -> None:
        await self._threads.write(partial(release, claim=claim))

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int) -> None:
        await self._threads.write(partial(save_machine, claim=claim, machine=machine, attempt=attempt))

    async def save_note(self, claim: Claim, note: str) -> None:
        await self._threads.write(partial(save_note, claim=claim, note=note))

    async def save_plan(self, claim: Claim, plan: Plan) -> None:
        await self._threads.write(partial(save_plan, claim=claim, plan=plan))

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        await self._threads.write(partial(save_task, claim=claim, result=result))

    async def bind_secrets(self, claim: Claim, fingerprint: str) -> bool:
        return await self._threads.write(partial(bind_secrets, claim=claim, fingerprint=fingerprint))

    async def record(self, claim: Claim, notifications: Sequence[Notification]) -> None:
        await self._threads.write(partial(record, claim=claim, notifications=notifications, now=self._threads.now()))

    async def finish(self, claim: Claim, conclusion: Conclusion, notifications: Sequence[Notification]) -> None:
        now = self._threads.now()
        job = partial(finish, claim=claim, conclusion=conclusion, notifications=notifications, now=now)
        await self._threads.write(job)

    async def request_cancel(self, run_id: str, reason: str) -> bool:
        return await self._threads.write(partial(request_cancel, run_id=run_id, reason=reason))

    async def get(self, run_id: str) -> Run | None:
        return await self._threads.read(partial(get, run_id=run_id))

    async def task_results(self, run_id: str, machine_attempt: int) -> list[TaskResult]:
        return await self._threads.read(partial(task_results, run_id=run_id, machine_attempt=machine_attempt))

    async def unfinished(self) -> list[Run]:
        return await self._threads.read(unfinished)

    async def of_repository(self, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
        return await self._threads.read(partial(of_repository, repository_id=repository_id, number=number, sha=sha))

    def changed(self) -> Subscription:
        return self._threads.changed("runs")


def queue(db: sqlite3.Connection, topics: set[str], new: NewRun, now: float, delivery_seq: int) -> None:
    """Queue a run, unless it exists, and supersede older unfinished runs of its concurrency group.

    Without `cancel_in_progress`, only runs that haven't started are superseded, as in GitHub Actions. The group "" means no
    group. If a later delivery has already cancelled such runs, this run is cancelled too and supersedes no other run.
    """
    source, plan = new.source, new.plan
    repository_id, group = source.repository.id, plan.concurrency_group
    inserted = db.execute(
        "insert into runs "
        "(id, delivery_guid, repository_id, pull_request, sha, concurrency_group, state, queued_at, source, plan) "
        "values (?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?) on conflict (id) do nothing",
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
    if not inserted.rowcount:
        return
    topics.add("runs")
    cancelled = db.execute(
        "select reason from cancellations where repository_id = ? and pull_request = ? and delivery_seq > ? "
        "and (workflow is null or workflow = ?) order by seq limit 1",
        (repository_id, source.pull_request.number, delivery_seq, plan.workflow),
    ).fetchone()
    if cancelled is not None:
        request_cancel(db, topics, new.id, cancelled[0])
    elif group:
        db.execute(  # without the index hint, SQLite would scan the repository's whole history
            "update runs indexed by runs_of_group set cancel_reason = ? where finished_at is null and cancel_reason is null "
            "and repository_id = ? and concurrency_group = ? and seq < ? and (state = 'queued' or ?)",
            (f"superseded by {source.sha[:7]}", repository_id, group, inserted.lastrowid, plan.cancel_in_progress),
        )


def request_cancel(db: sqlite3.Connection, topics: set[str], run_id: str, reason: str) -> bool:
    """Set the cancel reason, unless one is set. False if the run is finished or doesn't exist."""
    found = db.execute(
        "update runs set cancel_reason = coalesce(cancel_reason, ?) where id = ? and finished_at is null", (reason, run_id)
    )
    if found.rowcount:
        topics.add("runs")
    return bool(found.rowcount)


def cancel_earlier(db: sqlite3.Connection, topics: set[str], request: CancelRequest, delivery_seq: int) -> None:
    """Cancel the runs of earlier deliveries. Runs of later deliveries that were handled first continue."""
    found = db.execute(
        "select id, plan from runs indexed by runs_of_group where finished_at is null and repository_id = ? "
        "and pull_request = ? and not exists (select 1 from deliveries d where d.guid = delivery_guid and d.seq >= ?)",
        (request.repository_id, request.number, delivery_seq),
    ).fetchall()
    for run_id, plan in found:
        if request.workflow is None or decode_plan(plan).workflow == request.workflow:
            request_cancel(db, topics, run_id, request.reason)
    db.execute(
        "insert into cancellations (delivery_seq, repository_id, pull_request, workflow, reason) "
        "select ?1, ?2, ?3, ?4, ?5 where exists (select 1 from deliveries where handled_at is null and seq < ?1)",
        (delivery_seq, request.repository_id, request.number, request.workflow, request.reason),
    )


def heartbeat(db: sqlite3.Connection, _: set[str], claims: Sequence[Claim], lease_until: float) -> dict[str, str | None]:
    """Renew leases. No subscriber waits for a lease, so no topic is named."""
    answers: dict[str, str | None] = {}
    for claim in claims:
        renewed = db.execute(
            f"update runs set lease_until = ? where {_HELD} returning cancel_reason",  # noqa: S608
            (lease_until, claim.run.id, claim.owner, claim.fence),
        ).fetchall()
        if renewed:
            answers[claim.run.id] = renewed[0][0]
    return answers


def release(db: sqlite3.Connection, topics: set[str], claim: Claim) -> None:
    _write(db, topics, claim, "owner = '', lease_until = 0")


def save_machine(db: sqlite3.Connection, topics: set[str], claim: Claim, machine: str | None, attempt: int) -> None:
    _write(db, topics, claim, "machine = ?, machine_attempt = ?", machine, attempt)


def save_note(db: sqlite3.Connection, topics: set[str], claim: Claim, note: str) -> None:
    _write(db, topics, claim, "note = ?", note)


def save_plan(db: sqlite3.Connection, topics: set[str], claim: Claim, plan: Plan) -> None:
    _write(db, topics, claim, "plan = ?", msgspec.json.encode(plan))


def save_task(db: sqlite3.Connection, topics: set[str], claim: Claim, result: TaskResult) -> None:
    check(db, claim)
    db.execute(
        "insert into task_results (run_id, machine_attempt, task_index, result) values (?, ?, ?, ?) "
        "on conflict (run_id, machine_attempt, task_index) do update set result = excluded.result",
        (claim.run.id, result.machine_attempt, result.index, msgspec.json.encode(result)),
    )
    topics.add("runs")


def bind_secrets(db: sqlite3.Connection, _: set[str], claim: Claim, fingerprint: str) -> bool:
    """Return True until a machine was created for the run, and then as long as the fingerprint stays the same."""
    check(db, claim)
    db.execute(
        "insert into run_secrets (run_id, fingerprint) values (?, ?) on conflict (run_id) do update "
        "set fingerprint = excluded.fingerprint where (select machine_attempt from runs where id = excluded.run_id) = 0",
        (claim.run.id, fingerprint),
    )
    (bound,) = db.execute("select fingerprint from run_secrets where run_id = ?", (claim.run.id,)).fetchone()
    return bool(bound == fingerprint)


def finish(
    db: sqlite3.Connection,
    topics: set[str],
    claim: Claim,
    conclusion: Conclusion,
    notifications: Sequence[Notification],
    now: float,
) -> None:
    _write(db, topics, claim, "state = 'finished', finished_at = ?, conclusion = ?, lease_until = 0", now, conclusion.value)
    outbox.record(db, topics, notifications, now)


def record(db: sqlite3.Connection, topics: set[str], claim: Claim, notifications: Sequence[Notification], now: float) -> None:
    check(db, claim)
    outbox.record(db, topics, notifications, now)


def get(db: sqlite3.Connection, run_id: str) -> Run | None:
    row = db.execute(f"select {COLUMNS} from runs where id = ?", (run_id,)).fetchone()  # noqa: S608
    return None if row is None else to_run(row)


def task_results(db: sqlite3.Connection, run_id: str, machine_attempt: int) -> list[TaskResult]:
    rows = db.execute(
        "select result from task_results where run_id = ? and machine_attempt = ? order by task_index",
        (run_id, machine_attempt),
    )
    return [_task_result.decode(row[0]) for row in rows]


def unfinished(db: sqlite3.Connection) -> list[Run]:
    return _select(db, "finished_at is null order by seq")


def of_repository(db: sqlite3.Connection, repository_id: int, number: int | None = None, sha: str | None = None) -> list[Run]:
    condition, values = "repository_id = ?", [repository_id, *(value for value in (number, sha) if value is not None)]
    if number is not None:
        condition += " and pull_request = ?"
    if sha is not None:
        condition += " and sha = ?"
    return _select(db, condition + " order by seq desc limit 100", *values)


def prune(db: sqlite3.Connection, _: set[str], finished_before: float, limit: int) -> int:
    """Delete runs that finished before that, with their results; return their number."""
    gone = db.execute(
        "select seq, id from runs where finished_at is not null and finished_at < ? limit ?", (finished_before, limit)
    ).fetchall()
    db.executemany("delete from task_results where run_id = ?", [(run_id,) for _, run_id in gone])
    db.executemany("delete from run_secrets where run_id = ?", [(run_id,) for _, run_id in gone])
    db.executemany("delete from runs where seq = ?", [(seq,) for seq, _ in gone])
    return len(gone)


def check(db: sqlite3.Connection, claim: Claim) -> None:
    """Raise ClaimLost unless the claim still holds."""
    held = db.execute(f"select 1 from runs where {_HELD}", (claim.run.id, claim.owner, claim.fence)).fetchone()  # noqa: S608
    if held is None:
        raise _lost(claim)


def _write(db: sqlite3.Connection, topics: set[str], claim: Claim, assignment: str, *values: object) -> None:
    """Update the run. Raises ClaimLost unless the claim still holds."""
    written = db.execute(
        f"update runs set {assignment} where {_HELD}",  # noqa: S608
        (*values, claim.run.id, claim.owner, claim.fence),
    )
    if not written.rowcount:
        raise _lost(claim)
    topics.add("runs")


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(f"run {claim.run.id} is no longer claimed by {claim.owner} (fence {claim.fence}): stop working on it")


def _select(db: sqlite3.Connection, condition: str, *values: object) -> list[Run]:
    return [to_run(row) for row in db.execute(f"select {COLUMNS} from runs where {condition}", values)]  # noqa: S608


COLUMNS = (
    "id, seq, delivery_guid, source, plan, state, queued_at, started_at, finished_at, conclusion, cancel_reason, "
    "machine, machine_attempt, note"
)
decode_source = msgspec.json.Decoder(Source).decode
decode_plan = msgspec.json.Decoder(Plan).decode


def to_run(row: tuple[Any, ...]) -> Run:
    """Decode a row of the columns COLUMNS."""
    (
        run_id, seq, guid, source, plan, state, queued_at, started_at, finished_at, conclusion, cancel_reason,
        machine, machine_attempt, note,
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
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def claim_run(
    db: sqlite3.Connection, topics: set[str], owner: str, now: float, lease_s: float, max_machines: int
) -> Claim | None:
    """Claim a run by the rules in ports.RunStore.claim. Runs of the group "" wait for no other run."""
    seq = _abandoned(db, now) or _to_cancel(db) or _next_in_turn(db, max_machines)
    if seq is None:
        return None
    row = db.execute(
        "update runs set state = 'running', owner = ?, fence = fence + 1, lease_until = ?, "  # noqa: S608
        f"started_at = coalesce(started_at, ?) where seq = ? returning fence, {COLUMNS}",
        (owner, now + lease_s, now, seq),
    ).fetchall()[0]
    topics.add("runs")
    return Claim(run=to_run(row[1:]), owner=owner, fence=row[0])


def _abandoned(db: sqlite3.Connection, now: float) -> int | None:
    """Find a run with an expired lease. It already counts as running, because a machine may exist for it."""
    return _first(
        db,
        "select seq from runs where finished_at is null and state = 'running' and lease_until <= ? order by seq limit 1",
        now,
    )


def _to_cancel(db: sqlite3.Connection) -> int | None:
    """Find a queued run that is to be cancelled. It needs no machine, so `max_machines` doesn't matter."""
    return _first(
        db,
        "select seq from runs where finished_at is null and cancel_reason is not null and state = 'queued' "
        "order by seq limit 1",
    )


def _next_in_turn(db: sqlite3.Connection, max_machines: int) -> int | None:
    running = db.execute(
        "select repository_id, count(*) from runs where finished_at is null and state = 'running' group by repository_id"
    ).fetchall()
    if sum(count for _, count in running) >= max_machines:
        return None
    busy: dict[int, int] = dict(running)
    waiting = db.execute(
        "select q.repository_id, coalesce(t.turn, 0), q.seq from (select repository_id, min(seq) as seq from runs "
        "where finished_at is null and state = 'queued' group by repository_id) q "
        "left join turns t on t.repository_id = q.repository_id"
    ).fetchall()
    waiting.sort(key=lambda row: (busy.get(row[0], 0), row[1], row[2]))
    for repository_id, _, _ in waiting:
        seq = _first(
            db,
            "select r.seq from runs r where r.finished_at is null and r.state = 'queued' and r.repository_id = ? "
            "and (r.concurrency_group = '' or not exists ("
            "  select 1 from runs o where o.finished_at is null and o.repository_id = r.repository_id"
            "  and o.concurrency_group = r.concurrency_group and o.state = 'running'"
            ") and not exists ("
            "  select 1 from runs o where o.finished_at is null and o.repository_id = r.repository_id"
            "  and o.concurrency_group = r.concurrency_group and o.state = 'queued'"
            "  and o.pull_request = r.pull_request and o.seq < r.seq"
            ")) order by r.seq limit 1",
            repository_id,
        )
        if seq is not None:
            db.execute(
                "insert into turns (repository_id, turn) values (?, (select coalesce(max(turn), 0) + 1 from turns)) "
                "on conflict (repository_id) do update set turn = excluded.turn",
                (repository_id,),
            )
            return seq
    return None


def _first(db: sqlite3.Connection, query: str, *values: object) -> int | None:
    row = db.execute(query, values).fetchone()
    return None if row is None else int(row[0])
