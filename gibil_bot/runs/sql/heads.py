"""The SQL of the heads of pull requests: commits, who pushed them, approvals."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from gibil_bot.model import Approval, BranchPush, HeadHistory, HeadSeen, Person
from gibil_bot.runs.sql.connection import Connection

MOST_ROWS = 1000
"""Maximum number of rows of one pull request that a decision reads, newest first. A pull request with more pushes isn't
trusted.
"""

_HEAD = "repository_id, pull_request, sha, action, at, before_sha, pusher, pusher_is_bot, head_repository_id, head_owner"


async def record(db: Connection, observed: Sequence[HeadSeen | BranchPush | Approval], now: float) -> None:
    """Store observations. A repeated observation changes nothing, so a redelivery doesn't count as a second push."""
    # Another transaction may write some of them in another order, or delete the rest of a pull request.
    await db.lock(*{_lock(seen.repository_id) for seen in observed})
    for seen in observed:
        match seen:
            case HeadSeen():
                await db.run(
                    f"insert into heads ({_HEAD}, seen_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing",  # noqa: S608
                    (
                        seen.repository_id,
                        seen.number,
                        seen.sha,
                        seen.action,
                        seen.at.timestamp(),
                        seen.before,
                        seen.pusher.login if seen.pusher else None,
                        bool(seen.pusher and seen.pusher.is_bot),
                        seen.head_repository_id,
                        seen.head_owner,
                        now,
                    ),
                )
            case BranchPush():
                await db.run(
                    "insert into branch_pushes (repository_id, sha, branch, at, pusher, pusher_is_bot, seen_at) "
                    "values (?, ?, ?, ?, ?, ?, ?) on conflict do nothing",
                    (
                        seen.repository_id,
                        seen.sha,
                        seen.branch,
                        seen.at.timestamp(),
                        seen.pusher.login,
                        seen.pusher.is_bot,
                        now,
                    ),
                )
            case Approval():
                await db.run(
                    "insert into approvals (repository_id, pull_request, sha, approved_by, at, seen_at) "
                    "values (?, ?, ?, ?, ?, ?) on conflict do nothing",
                    (seen.repository_id, seen.number, seen.sha, seen.by, seen.at.timestamp(), now),
                )


async def history(db: Connection, repository_id: int, number: int, sha: str, fork_id: int | None) -> HeadHistory:
    heads = await db.rows(
        f"select {_HEAD} from heads where repository_id = ? and pull_request = ? order by at desc, seq desc limit ?",  # noqa: S608
        (repository_id, number, MOST_ROWS),
    )
    pushes = await db.rows(
        "select branch, at, pusher, pusher_is_bot from branch_pushes "
        "where repository_id = ? and sha = ? order by at, seq limit ?",
        (repository_id, sha, MOST_ROWS),
    )
    approvals = await db.rows(
        "select sha, approved_by, at from approvals "
        "where repository_id = ? and pull_request = ? order by at desc, seq desc limit ?",
        (repository_id, number, MOST_ROWS),
    )
    fork_pushes: list[tuple[Any, ...]] = []
    if fork_id is not None:
        fork_pushes = await db.rows(
            f"select {_HEAD} from heads where repository_id = ? and head_repository_id = ? and action = 'synchronize' "  # noqa: S608
            "order by at desc, seq desc limit ?",
            (repository_id, fork_id, MOST_ROWS),
        )
    return HeadHistory(
        heads=tuple(_head(row) for row in reversed(heads)),
        pushes=tuple(
            BranchPush(
                repository_id=repository_id,
                sha=sha,
                branch=branch,
                at=_time(at),
                pusher=Person(login=pusher, is_bot=bool(is_bot)),
            )
            for branch, at, pusher, is_bot in pushes
        ),
        approvals=tuple(
            Approval(repository_id=repository_id, number=number, sha=approved, by=by, at=_time(at))
            for approved, by, at in reversed(approvals)
        ),
        fork_pushes=tuple(_head(row) for row in reversed(fork_pushes)),
    )


async def prune(db: Connection, _: set[str], seen_before: float, limit: int) -> int:
    """Delete the heads and approvals of pull requests without any observation since then; return how many pull requests.

    Each one is deleted as a whole, because an incomplete history could be mistaken for a complete one.
    """
    select = (
        "select distinct repository_id, pull_request from heads h where seen_at < ? and not exists (select 1 from heads newer "
        "where newer.repository_id = h.repository_id and newer.pull_request = h.pull_request and newer.seen_at >= ?) limit ?"
    )
    found = await db.rows(select, (seen_before, seen_before, limit))
    await db.lock(*{_lock(repository_id) for repository_id, _ in found})
    locked = set(found)
    quiet = [row for row in await db.rows(select, (seen_before, seen_before, limit)) if row in locked]
    await db.run_many("delete from heads where repository_id = ? and pull_request = ?", quiet)
    await db.run_many("delete from approvals where repository_id = ? and pull_request = ?", quiet)
    return len(quiet)


def _lock(repository_id: int) -> str:
    return f"heads {repository_id}"


async def prune_pushes(db: Connection, _: set[str], seen_before: float, limit: int) -> int:
    """Delete pushes to branches, and approvals of pull requests without heads; return the number of pushes."""
    await db.run(
        "delete from approvals where seq in (select seq from approvals a where seen_at < ? and not exists "
        "(select 1 from heads h where h.repository_id = a.repository_id and h.pull_request = a.pull_request) limit ?)",
        (seen_before, limit),
    )
    return await db.run(
        "delete from branch_pushes where seq in (select seq from branch_pushes where seen_at < ? limit ?)", (seen_before, limit)
    )


def _head(row: tuple[Any, ...]) -> HeadSeen:
    repository_id, number, sha, action, at, before, pusher, is_bot, head_repository_id, head_owner = row
    return HeadSeen(
        repository_id=repository_id,
        number=number,
        sha=sha,
        action=action,
        at=_time(at),
        before=before,
        pusher=None if pusher is None else Person(login=pusher, is_bot=bool(is_bot)),
        head_repository_id=head_repository_id,
        head_owner=head_owner,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
