"""What the SQL of the store needs from a database. `sqlite/` and `postgres/` implement it.

A query has the placeholders `?`, or `?1`, `?2` … Two parts of a query concern one database, and the other one ignores them:
`indexed by <index>` is for SQLite, whose planner sometimes needs it, and `for update …` for PostgreSQL, whose transactions run
side by side. Values are str, bytes, int, float, bool (stored as 0 and 1) and None.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from gibil_bot.runs.signals import Subscription

T = TypeVar("T")


class Connection(Protocol):
    """A connection inside a transaction. Only for the function that received it."""

    async def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of the query."""

    async def row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """Return the first row of the query."""

    async def run(self, query: str, values: Sequence[object] = ()) -> int:
        """Return how many rows the query wrote."""

    async def run_many(self, query: str, each: Iterable[Sequence[object]]) -> None:
        """Run the query once for each sequence of values."""

    async def lock(self, *names: str) -> None:
        """Wait until no other transaction holds one of the names, and hold them to the end of this one.

        Names are locked in alphabetical order. SQLite does nothing: its transactions run one after another.
        """


Job = Callable[[Connection, set[str]], Coroutine[Any, Any, T]]
"""Runs in one transaction. Adds the topics that it wrote to to the set. It has no other side effects: it may be rolled back and
called again.
"""
Query = Callable[[Connection], Coroutine[Any, Any, T]]


class Database(Protocol):
    """Runs functions of a connection without blocking the event loop. Used from the loop that created it."""

    is_shared: bool
    """Whether other processes may use it."""
    room_bytes: int
    """How much has to be stored to know that there is room. 0: a row, because a server's disk is checked by its operator."""

    def now(self) -> float:
        """Return the time in seconds since the epoch. All processes that share the database have the same."""

    async def write(self, job: Job[T]) -> T:
        """Return the result of the job once it is committed. It is completed even if the caller is cancelled.

        Raises StoreError, and what the job raises; then nothing is written.
        """

    async def read(self, query: Query[T]) -> T:
        """Query committed data, without a transaction. Raises StoreError."""

    def changed(self, topic: str) -> Subscription:
        """Return a subscription to what this process writes, and as far as the database tells it, others."""

    async def close(self) -> None:
        """Wait for submitted writes. Safe to repeat."""
