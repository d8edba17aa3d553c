"""sql.connection.Connection on SQLite. Nothing in it ever waits for anything but SQLite, on the thread that calls it."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Coroutine, Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


class SqliteConnection:
    """For one thread at a time."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    async def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._db.execute(_translated(query), values).fetchall()

    async def row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        found = self._db.execute(_translated(query), values).fetchall()
        return found[0] if found else None

    async def run(self, query: str, values: Sequence[object] = ()) -> int:
        return self._db.execute(_translated(query), values).rowcount

    async def run_many(self, query: str, each: Iterable[Sequence[object]]) -> None:
        self._db.executemany(_translated(query), each)

    async def lock(self, *names: str) -> None:
        """Do nothing: a transaction that writes has the whole database."""


def completed(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing but a SqliteConnection."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    work.close()
    raise RuntimeError("a transaction may only wait for its database")


_ROW_LOCK = re.compile(r" for update( of \w+)?( skip locked)?")


@cache
def _translated(query: str) -> str:
    return _ROW_LOCK.sub("", query)
