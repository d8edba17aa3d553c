"""The outbox: one row per GitHub object that we report to, overwritten by each new state. Its revision counts the states.

The class is the interface, the functions its SQL. A rejected revision is one that GitHub will never accept.
"""

from __future__ import annotations

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
    ReviewUpdate,
)
from gibil_bot.runs.signals import Subscription
from gibil_bot.runs.sql.connection import Connection, Database

_COLUMNS = "key, kind, installation_id, repository, body, revision, remote_id, attempts, failures, priority"
PENDING = (
    "notifications.revision > notifications.published_revision and notifications.revision > notifications.rejected_revision"
)
"""A condition, as in the index."""
_encode = msgspec.json.Encoder(order="sorted").encode  # sorted keys, as in stored rows: equal states are equal bytes
_KINDS: dict[str, type[NotificationUpdate]] = {
    "check_run": CheckRunUpdate,
    "comment": CommentUpdate,
    "reaction": ReactionUpdate,
    "review": ReviewUpdate,
}
"""Maps the column `kind` to the type of `body`."""
_KIND_OF = {update: kind for kind, update in _KINDS.items()}
DECODERS = {kind: msgspec.json.Decoder(update) for kind, update in _KINDS.items()}


class SqlOutbox:
    """ports.Outbox."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def record(self, notifications: Sequence[Notification]) -> None:
        await self._database.write(partial(record, notifications=notifications, now=self._database.now()))

    async def claim(
        self,
        owner: str,
        *,
        limit: int,
        lease_s: float,
        not_keys: Sequence[str] = (),
        up_to: Priority = Priority.REACTION,
    ) -> list[DueNotification]:
        now = self._database.now()
        job = partial(claim, owner=owner, limit=limit, now=now, lease_s=lease_s, not_keys=not_keys, up_to=up_to)
        return await self._database.write(job)

    async def published(self, owner: str, due: DueNotification, remote_id: int | None) -> None:
        await self._database.write(partial(published, owner=owner, due=due, remote_id=remote_id, now=self._database.now()))

    async def not_published(
        self, owner: str, due: DueNotification, error: str, *, retry_s: float | None, failed: bool = True
    ) -> None:
        now = self._database.now()
        job = partial(not_published, owner=owner, due=due, error=error, now=now, retry_s=retry_s, failed=failed)
        await self._database.write(job)

    async def get(self, key: str) -> tuple[DueNotification, bool, str | None] | None:
        return await self._database.read(partial(get, key=key))

    def changed(self) -> Subscription:
        return self._database.changed("notifications")


async def record(db: Connection, topics: set[str], notifications: Sequence[Notification], now: float) -> None:
    """Store the desired state of these objects. An unchanged body doesn't create a revision.

    A new body keeps the due time of a pending one, unless it is the result of a run, which is published at once. A check run
    that GitHub doesn't show yet has the priority of a result.
    """
    if len(notifications) > 1:  # another transaction may write some of them in another order
        await db.lock(*(f"notification {notification.key}" for notification in notifications))
    for notification in notifications:
        priority = _priority(notification)
        written = await db.run(
            "insert into notifications (key, kind, installation_id, repository, body, due_at, priority) "  # noqa: S608
            "values (?1, ?2, ?3, ?4, ?5, ?6, case when ?7 = 1 then 0 else ?7 end) "
            "on conflict (key) do update set kind = excluded.kind, installation_id = excluded.installation_id, "
            "repository = excluded.repository, body = excluded.body, revision = notifications.revision + 1, "
            "priority = case when ?7 = 1 and notifications.published_revision = 0 then 0 else ?7 end, "
            f"due_at = case when {PENDING} and ?7 > 0 then notifications.due_at else excluded.due_at end "
            "where notifications.body <> excluded.body",
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
        if written:
            topics.add("notifications")


def _priority(notification: Notification) -> Priority:
    """Return the priority of a change to an object that GitHub shows already."""
    match notification.update:
        case CheckRunUpdate(status="completed"):
            return Priority.RESULT
        case CheckRunUpdate():
            return Priority.PROGRESS
        case CommentUpdate() | ReviewUpdate():
            return Priority.COMMENT
        case ReactionUpdate():
            return Priority.REACTION


async def claim(
    db: Connection,
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
    free = f"{PENDING} and priority <= ?2 and due_at <= ?1 and lease_until <= ?1"
    if not_keys:
        free += f" and key not in ({', '.join(f'?{number}' for number in range(4, 4 + len(not_keys)))})"
    found = await db.rows(
        f"select seq, {_COLUMNS} from notifications join ("  # noqa: S608
        "  select seq as due_seq, coalesce(busy.number, 0)"
        "    + row_number() over (partition by priority, notifications.repository order by due_at, seq) as turn"
        "  from notifications left join ("
        f"   select repository, count(*) as number from notifications where {PENDING} and lease_until > ?1 group by repository"
        "  ) busy on busy.repository = notifications.repository"
        f" where {free}"
        # The conditions again: PostgreSQL checks only these of a row that another transaction changed meanwhile.
        f") turns on due_seq = seq where {free} order by priority, turn, due_at, seq limit ?3 "
        "for update of notifications skip locked",
        (now, int(up_to), limit, *not_keys),
    )
    await db.run_many(
        "update notifications set owner = ?, lease_until = ?, attempts = attempts + 1 where seq = ?",
        [(owner, now + lease_s, row[0]) for row in found],
    )
    due = []
    for row in found:
        try:
            due.append(_due(row[1:]))
        except msgspec.ValidationError as error:  # another version wrote it: it must not block the others
            await db.run("update notifications set rejected_revision = revision, error = ? where seq = ?", (str(error), row[0]))
    return due


async def published(
    db: Connection, topics: set[str], owner: str, due: DueNotification, remote_id: int | None, now: float
) -> None:
    """Record what GitHub has, even if another process has the lease by now; only the owner's lease is ended.

    If another process has published a newer revision meanwhile, GitHub may have received this one last: the newest becomes a
    further revision, which is published again.
    """
    await db.run(
        "update notifications set revision = case when published_revision > ?1 then revision + 1 else revision end, "
        "published_revision = case when published_revision < ?1 then ?1 else published_revision end, "
        "remote_id = coalesce(?2, remote_id), published_at = ?3 where key = ?4",
        (due.revision, remote_id, now, due.notification.key),
    )
    await db.run(
        "update notifications set owner = '', lease_until = 0, error = null, failures = 0, "
        "due_at = case when revision > ? then ? else due_at end where key = ? and owner = ?",
        (due.revision, now, due.notification.key, owner),
    )
    topics.add("notifications")


async def not_published(
    db: Connection,
    topics: set[str],
    owner: str,
    due: DueNotification,
    error: str,
    now: float,
    retry_s: float | None,
    failed: bool = True,
) -> None:
    """Record a failure. Changes nothing if another process has the lease by now."""
    await db.run(
        "update notifications set owner = '', lease_until = 0, error = ?1, failures = failures + ?2, "
        "due_at = case when priority = 0 and revision > ?3 "  # a result was recorded meanwhile
        "then cast(?4 as double precision) else ?5 end, "
        "rejected_revision = case when rejected_revision < ?6 then ?6 else rejected_revision end where key = ?7 and owner = ?8",
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
    topics.add("notifications")


async def get(db: Connection, key: str) -> tuple[DueNotification, bool, str | None] | None:
    row = await db.row(f"select {_COLUMNS}, published_revision >= revision, error from notifications where key = ?", (key,))  # noqa: S608
    return None if row is None else (_due(row[:10]), bool(row[10]), row[11])


async def prune(db: Connection, _: set[str], published_before: float, limit: int) -> int:
    """Delete check runs, reactions and replies that were published before that; return their number.

    A workflow's comment stays: without its id, a later run of the same pull request would create a second one.
    """
    return await db.run(
        "delete from notifications where seq in (select seq from notifications where published_at is not null "
        "and published_at < ? and published_revision >= revision and key not like 'comment:%' limit ? for update skip locked)",
        (published_before, limit),
    )


def _due(row: tuple[str, str, int, str, bytes, int, int | None, int, int, int]) -> DueNotification:
    key, kind, installation_id, repository, body, revision, remote_id, attempts, failures, priority = row
    notification = Notification(
        key=key, installation_id=installation_id, repository=repository, update=DECODERS[kind].decode(body)
    )
    return DueNotification(
        notification=notification,
        revision=revision,
        remote_id=remote_id,
        attempts=attempts,
        failures=failures,
        priority=Priority(priority),
    )
