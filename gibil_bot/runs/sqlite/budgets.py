"""The SQL of token buckets: how much a person may still ask for."""

from __future__ import annotations

import sqlite3

from gibil_bot.model import Spending

TELL_AGAIN_S = 3600.0
"""The owner of an empty bucket gets at most one refusal in this time."""
_ROUNDING = 1e-6


def spend(db: sqlite3.Connection, _: set[str], key: str, cost: float, capacity: float, per_s: float, now: float) -> Spending:
    """Take `cost` tokens, or none. A bucket that was never used is full. A clock that was set back costs one refill at most."""
    row = db.execute("select full_at, refused_at from budgets where key = ?", (key,)).fetchone() or (now, 0.0)
    full_at, refused_at = min(max(row[0], now), now + capacity / per_s), row[1]
    missing = (full_at - now) * per_s + cost - capacity
    allowed = missing <= _ROUNDING
    first = not allowed and not now - TELL_AGAIN_S < refused_at <= now
    if allowed or first:
        db.execute(
            "insert into budgets (key, full_at, refused_at) values (?, ?, ?) "
            "on conflict (key) do update set full_at = excluded.full_at, refused_at = excluded.refused_at",
            (key, full_at + cost / per_s if allowed else full_at, refused_at if allowed else now),
        )
    return Spending(allowed=allowed, wait_s=0.0 if allowed else missing / per_s, first_refusal=first)


def prune(db: sqlite3.Connection, _: set[str], now: float, limit: int) -> int:
    """Delete buckets that are full and whose owner would get the next refusal; their number."""
    return db.execute(
        "delete from budgets where key in (select key from budgets where full_at <= ? and refused_at <= ? limit ?)",
        (now, now - TELL_AGAIN_S, limit),
    ).rowcount
