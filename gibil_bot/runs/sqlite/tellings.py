"""The SQL of what GitHub has still to be told. A telling is a row that is overwritten; its revision says what is new."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from gibil_bot.model import DueTelling, Telling, TellingKind

_NOUN = "key, kind, installation_id, repository, body, revision, remote_id, attempts"
_UNTOLD = "revision > told_revision and revision > refused_revision"  # word for word the index's condition
_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, object]).decode


def wish(db: sqlite3.Connection, topics: set[str], tellings: Sequence[Telling], now: float) -> None:
    """The same body again changes nothing. A new body keeps the place and the patience of one that still waits."""
    for telling in tellings:
        written = db.execute(
            "insert into tellings (key, kind, installation_id, repository, body, due_at) values (?, ?, ?, ?, ?, ?) "  # noqa: S608
            "on conflict (key) do update set kind = excluded.kind, installation_id = excluded.installation_id, "
            "repository = excluded.repository, body = excluded.body, revision = revision + 1, "
            f"due_at = case when {_UNTOLD} then due_at else excluded.due_at end where body <> excluded.body",
            (
                telling.key,
                telling.kind.value,
                telling.installation_id,
                telling.repository,
                _encode(telling.body),
                now,
            ),
        )
        if written.rowcount:
            topics.add("tellings")


def claim(
    db: sqlite3.Connection, _: set[str], owner: str, limit: int, now: float, lease_s: float, not_keys: Sequence[str]
) -> list[DueTelling]:
    """A lease is nothing that anybody waits for, so that no topic is named."""
    found = db.execute(
        f"select seq, {_NOUN} from tellings where {_UNTOLD} and due_at <= ? and lease_until <= ? "  # noqa: S608
        "and key not in (select value from json_each(?)) order by due_at, seq limit ?",
        (now, now, _encode(list(not_keys)).decode(), limit),
    ).fetchall()
    db.executemany(
        "update tellings set owner = ?, lease_until = ?, attempts = attempts + 1 where seq = ?",
        [(owner, now + lease_s, row[0]) for row in found],
    )
    return [_noun(row[1:]) for row in found]


def told(db: sqlite3.Connection, topics: set[str], owner: str, due: DueTelling, remote_id: int | None, now: float) -> None:
    """Learning what GitHub knows is right even when the lease is somebody else's by now; ending the lease is not."""
    db.execute(
        "update tellings set told_revision = max(told_revision, ?), remote_id = coalesce(?, remote_id), told_at = ? "
        "where key = ?",
        (due.revision, remote_id, now, due.telling.key),
    )
    db.execute(
        "update tellings set owner = '', lease_until = 0, error = null, "
        "due_at = case when revision > ? then ? else due_at end where key = ? and owner = ?",
        (due.revision, now, due.telling.key, owner),
    )
    topics.add("tellings")


def untold(
    db: sqlite3.Connection, topics: set[str], owner: str, due: DueTelling, error: str, now: float, retry_s: float | None
) -> None:
    """Says nothing when the lease is somebody else's by now."""
    db.execute(
        "update tellings set owner = '', lease_until = 0, error = ?, due_at = ?, "
        "refused_revision = max(refused_revision, ?) where key = ? and owner = ?",
        (error, now + (retry_s or 0), due.revision if retry_s is None else 0, due.telling.key, owner),
    )
    topics.add("tellings")


def get(db: sqlite3.Connection, key: str) -> tuple[DueTelling, bool, str | None] | None:
    row = db.execute(f"select {_NOUN}, told_revision >= revision, error from tellings where key = ?", (key,)).fetchone()  # noqa: S608
    return None if row is None else (_noun(row[:8]), bool(row[8]), row[9])


def prune(db: sqlite3.Connection, _: set[str], told_before: float, limit: int) -> int:
    """Forget check runs, reactions and replies that GitHub knows for long. A workflow's comment is kept: without its id a
    later run of the same pull request would write a second one. How many went."""
    return db.execute(
        "delete from tellings where seq in (select seq from tellings where told_at is not null and told_at < ? "
        "and told_revision >= revision and key not like 'comment:%' limit ?)",
        (told_before, limit),
    ).rowcount


def _noun(row: tuple[str, str, int, str, bytes, int, int | None, int]) -> DueTelling:
    key, kind, installation_id, repository, body, revision, remote_id, attempts = row
    telling = Telling(
        key=key, kind=TellingKind(kind), installation_id=installation_id, repository=repository, body=_decode(body)
    )
    return DueTelling(telling=telling, revision=revision, remote_id=remote_id, attempts=attempts)
