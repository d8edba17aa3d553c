"""The outbox: one row per GitHub object that we report to, overwritten by each new state. Its revision counts the states.

The class is the interface, the functions its SQL. Stored names are older than the code's: the table `tellings` has the
notifications, `told` means published, and `refused` means permanently rejected by GitHub.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial

import msgspec

from gibil_bot.model import (
    CheckRunUpdate,
    CommentUpdate,
    DueNotification,
    Notification,
    NotificationUpdate,
    Priority,
    ReactionUpdate,
)
from gibil_bot.runs.signals import Subscription
from gibil_bot.runs.sqlite.threads import DatabaseThreads

_COLUMNS = "key, kind, installation_id, repository, body, revision, remote_id, attempts, failures, priority"
_PENDING = "revision > told_revision and revision > refused_revision"  # must equal the condition of the index
_encode = msgspec.json.Encoder(order="sorted").encode  # sorted keys, as in stored rows: equal states are equal bytes
_KINDS: dict[str, type[NotificationUpdate]] = {
    "check_run": CheckRunUpdate,
    "comment": CommentUpdate,
    "reaction": ReactionUpdate,
}
"""Maps the column `kind` to the type of `body`."""
_KIND_OF = {update: kind for kind, update in _KINDS.items()}
_DECODERS = {kind: msgspec.json.Decoder(update) for kind, update in _KINDS.items()}


class SqliteOutbox:
    """ports.Outbox."""

    def __init__(self, threads: DatabaseThreads) -> None:
        self._threads = threads

    async def record(self, notifications: Sequence[Notification]) -> None:
        await self._threads.write(partial(record, notifications=notifications, now=self._threads.now()))

    async def claim(
        self,
        owner: str,
        *,
        limit: int,
        lease_s: float,
        not_keys: Sequence[str] = (),
        up_to: Priority = Priority.REACTION,
    ) -> list[DueNotification]:
        now = self._threads.now()
        job = partial(claim, owner=owner, limit=limit, now=now, lease_s=lease_s, not_keys=not_keys, up_to=up_to)
        return await self._threads.write(job)

    async def published(self, owner: str, due: DueNotification, remote_id: int | None) -> None:
        await self._threads.write(partial(published, owner=owner, due=due, remote_id=remote_id, now=self._threads.now()))

    async def not_published(
        self, owner: str, due: DueNotification, error: str, *, retry_s: float | None, failed: bool = True
    ) -> None:
        now = self._threads.now()
        job = partial(not_published, owner=owner, due=due, error=error, now=now, retry_s=retry_s, failed=failed)
        await self._threads.write(job)

    async def get(self, key: str) -> tuple[DueNotification, bool, str | None] | None:
        return await self._threads.read(partial(get, key=key))

    def changed(self) -> Subscription:
        return self._threads.changed("tellings")


def record(db: sqlite3.Connection, topics: set[str], notifications: Sequence[Notification], now: float) -> None:
    """Store the desired state of these objects. An unchanged body doesn't create a revision.

    A new body keeps the due time of a pending one, unless it is the result of a run, which is published at once. A check run
    that GitHub doesn't show yet has the priority of a result.
    """
    for notification in notifications:
        priority = _priority(notification)
        written = db.execute(
            "insert into tellings (key, kind, installation_id, repository, body, due_at, priority) "  # noqa: S608
            "values (?1, ?2, ?3, ?4, ?5, ?6, case ?7 when 1 then 0 else ?7 end) "
            "on conflict (key) do update set kind = excluded.kind, installation_id = excluded.installation_id, "
            "repository = excluded.repository, body = excluded.body, revision = revision + 1, "
            "priority = case when ?7 = 1 and told_revision = 0 then 0 else ?7 end, "
            f"due_at = case when {_PENDING} and ?7 > 0 then due_at else excluded.due_at end where body <> excluded.body",
            (
                notification.key,
                _KIND_OF[type(notification.update)],
                notification.installation_id,
                notification.repository,
                _encode(notification.update),
                now,
                priority.value,
            ),
        )
        if written.rowcount:
            topics.add("tellings")


def _priority(notification: Notification) -> Priority:
    """Return the priority of a change to an object that GitHub shows already."""
    match notification.update:
        case CheckRunUpdate(status="completed"):
            return Priority.RESULT
        case CheckRunUpdate():
            return Priority.PROGRESS
        case CommentUpdate():
            return Priority.COMMENT
        case ReactionUpdate():
            return Priority.REACTION


def claim(
    db: sqlite3.Connection,
    _: set[str],
    owner: str,
    limit: int,
    now: float,
    lease_s: float,
    not_keys: Sequence[str] = (),
    up_to: int = Priority.REACTION,
) -> list[DueNotification]:
    """Claim by priority; within one priority, first for the repository with the fewest in progress, so that busy ones don't
    delay others.

    No subscriber waits for a lease, so no topic is named.
    """
    found = db.execute(
        f"select seq, {_COLUMNS} from tellings join ("  # noqa: S608
        "  select seq as due_seq, coalesce(busy.number, 0)"
        "    + row_number() over (partition by priority, tellings.repository order by due_at, seq) as turn"
        "  from tellings left join ("
        f"   select repository, count(*) as number from tellings where {_PENDING} and lease_until > ?1 group by repository"
        "  ) busy on busy.repository = tellings.repository"
        f" where {_PENDING} and priority <= ?2 and due_at <= ?1 and lease_until <= ?1"
        "  and key not in (select value from json_each(?3))"
        ") on due_seq = seq order by priority, turn, due_at, seq limit ?4",
        (now, int(up_to), _encode(list(not_keys)).decode(), limit),
    ).fetchall()
    db.executemany(
        "update tellings set owner = ?, lease_until = ?, attempts = attempts + 1 where seq = ?",
        [(owner, now + lease_s, row[0]) for row in found],
    )
    due = []
    for row in found:
        try:
            due.append(_due(row[1:]))
        except msgspec.ValidationError as error:  # another version wrote it: it must not block the others
            db.execute("update tellings set refused_revision = revision, error = ? where seq = ?", (str(error), row[0]))
    return due


def published(
    db: sqlite3.Connection, topics: set[str], owner: str, due: DueNotification, remote_id: int | None, now: float
) -> None:
    """Record what GitHub has, even if another process has the lease by now; only the owner's lease is ended."""
    db.execute(
        "update tellings set told_revision = max(told_revision, ?), remote_id = coalesce(?, remote_id), told_at = ? "
        "where key = ?",
        (due.revision, remote_id, now, due.notification.key),
    )
    db.execute(
        "update tellings set owner = '', lease_until = 0, error = null, failures = 0, "
        "due_at = case when revision > ? then ? else due_at end where key = ? and owner = ?",
        (due.revision, now, due.notification.key, owner),
    )
    topics.add("tellings")


def not_published(
    db: sqlite3.Connection,
    topics: set[str],
    owner: str,
    due: DueNotification,
    error: str,
    now: float,
    retry_s: float | None,
    failed: bool = True,
) -> None:
    """Record a failure. Changes nothing if another process has the lease by now."""
    db.execute(
        "update tellings set owner = '', lease_until = 0, error = ?, failures = failures + ?, "
        "due_at = case when priority = 0 and revision > ? then ? else ? end, "  # a result was recorded meanwhile
        "refused_revision = max(refused_revision, ?) where key = ? and owner = ?",
        (
            error,
            failed,
            due.revision,
            now,
            now + (retry_s or 0),
            due.revision if retry_s is None else 0,
            due.notification.key,
            owner,
        ),
    )
    topics.add("tellings")


def get(db: sqlite3.Connection, key: str) -> tuple[DueNotification, bool, str | None] | None:
    row = db.execute(f"select {_COLUMNS}, told_revision >= revision, error from tellings where key = ?", (key,)).fetchone()  # noqa: S608
    return None if row is None else (_due(row[:10]), bool(row[10]), row[11])


def prune(db: sqlite3.Connection, _: set[str], published_before: float, limit: int) -> int:
    """Delete check runs, reactions and replies that were published before that; return their number.

    A workflow's comment stays: without its id, a later run of the same pull request would create a second one.
    """
    return db.execute(
        "delete from tellings where seq in (select seq from tellings where told_at is not null and told_at < ? "
        "and told_revision >= revision and key not like 'comment:%' limit ?)",
        (published_before, limit),
    ).rowcount


def _due(row: tuple[str, str, int, str, bytes, int, int | None, int, int, int]) -> DueNotification:
    key, kind, installation_id, repository, body, revision, remote_id, attempts, failures, priority = row
    notification = Notification(
        key=key, installation_id=installation_id, repository=repository, update=_DECODERS[kind].decode(body)
    )
    return DueNotification(
        notification=notification,
        revision=revision,
        remote_id=remote_id,
        attempts=attempts,
        failures=failures,
        priority=Priority(priority),
    )
