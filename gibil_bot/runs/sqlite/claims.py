"""Which run is claimed next: limits, order and fairness are decided together, in one transaction."""

from __future__ import annotations

import sqlite3

from gibil_bot.model import Claim
from gibil_bot.runs.sqlite.rows import COLUMNS, to_run


def claim_run(
    db: sqlite3.Connection, topics: set[str], owner: str, now: float, lease_s: float, max_machines: int
) -> Claim | None:
    """The rules are written on ports.RunStore.claim. Runs of the group "" wait for no other run."""
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
    """It counts as running already: a machine may exist for it."""
    return _first(
        db,
        "select seq from runs where finished_at is null and state = 'running' and lease_until <= ? order by seq limit 1",
        now,
    )


def _to_cancel(db: sqlite3.Connection) -> int | None:
    """It needs no machine, so `max_machines` doesn't matter."""
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
