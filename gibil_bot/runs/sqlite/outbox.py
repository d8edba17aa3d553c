"""The SQL of what GitHub has still to be told. A telling is a row that is overwritten; its revision says what is new."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from gibil_bot.model import DueNotification, Notification, NotificationKind, Priority

_NOUN = "key, kind, installation_id, repository, body, revision, remote_id, attempts, failures, priority"
_UNTOLD = "revision > told_revision and revision > refused_revision"  # word for word the index's condition
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, object]).decode


def wish(db: sqlite3.Connection, topics: set[str], tellings: Sequence[Notification], now: float) -> None:
    """The same body again changes nothing. A new body keeps the place and the patience of one that still waits, unless it
    is the result of a run: that is published at once. A check run that GitHub does not show yet has a result's priority."""
    for telling in tellings:
        priority = _priority(telling)
        written = db.execute(
            "insert into tellings (key, kind, installation_id, repository, body, due_at, priority) "  # noqa: S608
            "values (?1, ?2, ?3, ?4, ?5, ?6, case ?7 when 1 then 0 else ?7 end) "
            "on conflict (key) do update set kind = excluded.kind, installation_id = excluded.installation_id, "
            "repository = excluded.repository, body = excluded.body, revision = revision + 1, "
            "priority = case when ?7 = 1 and told_revision = 0 then 0 else ?7 end, "
            f"due_at = case when {_UNTOLD} and ?7 > 0 then due_at else excluded.due_at end where body <> excluded.body",
            (
                telling.key,
                telling.kind.value,
                telling.installation_id,
                telling.repository,
                _encode(telling.body),
                now,
                priority.value,
            ),
        )
        if written.rowcount:
            topics.add("tellings")


def _priority(telling: Notification) -> Priority:
    """Of a change to what GitHub shows already."""
    match telling.kind:
        case NotificationKind.CHECK_RUN:
            return Priority.RESULT if telling.body.get("status") == "completed" else Priority.PROGRESS
        case NotificationKind.COMMENT:
            return Priority.COMMENT
        case NotificationKind.REACTION:
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
    """By priority; of one priority the repository that has the fewest under way, so that much of one delays no other.

    No subscriber waits for a lease, so no topic is named.
    """
    found = db.execute(
        f"select seq, {_NOUN} from tellings join ("  # noqa: S608
        "  select seq as due_seq, coalesce(busy.number, 0)"
        "    + row_number() over (partition by priority, tellings.repository order by due_at, seq) as turn"
        "  from tellings left join ("
        f"   select repository, count(*) as number from tellings where {_UNTOLD} and lease_until > ?1 group by repository"
        "  ) busy on busy.repository = tellings.repository"
        f" where {_UNTOLD} and priority <= ?2 and due_at <= ?1 and lease_until <= ?1"
        "  and key not in (select value from json_each(?3))"
        ") on due_seq = seq order by priority, turn, due_at, seq limit ?4",
        (now, int(up_to), _encode(list(not_keys)).decode(), limit),
    ).fetchall()
    db.executemany(
        "update tellings set owner = ?, lease_until = ?, attempts = attempts + 1 where seq = ?",
        [(owner, now + lease_s, row[0]) for row in found],
    )
    return [_noun(row[1:]) for row in found]


def told(db: sqlite3.Connection, topics: set[str], owner: str, due: DueNotification, remote_id: int | None, now: float) -> None:
    """Learning what GitHub knows is right even when the lease is somebody else's by now; ending the lease is not."""
    db.execute(
        "update tellings set told_revision = max(told_revision, ?), remote_id = coalesce(?, remote_id), told_at = ? "
        "where key = ?",
        (due.revision, remote_id, now, due.telling.key),
    )
    db.execute(
        "update tellings set owner = '', lease_until = 0, error = null, failures = 0, "
        "due_at = case when revision > ? then ? else due_at end where key = ? and owner = ?",
        (due.revision, now, due.telling.key, owner),
    )
    topics.add("tellings")


def untold(
    db: sqlite3.Connection,
    topics: set[str],
    owner: str,
    due: DueNotification,
    error: str,
    now: float,
    retry_s: float | None,
    failed: bool = True,
) -> None:
    """Says nothing when the lease is somebody else's by now."""
    db.execute(
        "update tellings set owner = '', lease_until = 0, error = ?, failures = failures + ?, "
        "due_at = case when priority = 0 and revision > ? then ? else ? end, "  # a result came meanwhile
        "refused_revision = max(refused_revision, ?) where key = ? and owner = ?",
        (
            error,
            failed,
            due.revision,
            now,
            now + (retry_s or 0),
            due.revision if retry_s is None else 0,
            due.telling.key,
            owner,
        ),
    )
    topics.add("tellings")


def get(db: sqlite3.Connection, key: str) -> tuple[DueNotification, bool, str | None] | None:
    row = db.execute(f"select {_NOUN}, told_revision >= revision, error from tellings where key = ?", (key,)).fetchone()  # noqa: S608
    return None if row is None else (_noun(row[:10]), bool(row[10]), row[11])


def prune(db: sqlite3.Connection, _: set[str], told_before: float, limit: int) -> int:
    """Forget check runs, reactions and replies that GitHub knows for long. A workflow's comment is kept: without its id a
    later run of the same pull request would write a second one. How many went."""
    return db.execute(
        "delete from tellings where seq in (select seq from tellings where told_at is not null and told_at < ? "
        "and told_revision >= revision and key not like 'comment:%' limit ?)",
        (told_before, limit),
    ).rowcount


def _noun(row: tuple[str, str, int, str, bytes, int, int | None, int, int, int]) -> DueNotification:
    key, kind, installation_id, repository, body, revision, remote_id, attempts, failures, priority = row
    telling = Notification(
        key=key, kind=NotificationKind(kind), installation_id=installation_id, repository=repository, body=_decode(body)
    )
    return DueNotification(
        telling=telling,
        revision=revision,
        remote_id=remote_id,
        attempts=attempts,
        failures=failures,
        priority=Priority(priority),
    )
