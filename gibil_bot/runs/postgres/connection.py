"""sql.connection.Connection on asyncpg."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import count
from typing import Any

import asyncpg


class PostgresConnection:
    """One connection of the pool, for one function at a time."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._connection.fetch(translated(query), *_encoded(values))]

    async def row(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        found = await self._connection.fetchrow(translated(query), *_encoded(values))
        return None if found is None else tuple(found)

    async def run(self, query: str, values: Sequence[object] = ()) -> int:
        # The command tag ends with the number of rows: postgresql.org/docs/15/protocol-message-formats.html, CommandComplete.
        tag: str = await self._connection.execute(translated(query), *_encoded(values))
        return int(tag.rpartition(" ")[2])

    async def run_many(self, query: str, each: Iterable[Sequence[object]]) -> None:
        values = [tuple(_encoded(one)) for one in each]
        if values:
            await self._connection.executemany(translated(query), values)

    async def lock(self, *names: str) -> None:
        if names:
            await self._connection.execute(
                "select pg_advisory_xact_lock(hashtextextended(name, 0)) from unnest($1::text[]) name",
                [f"gibil {name}" for name in sorted(names)],
            )


_OF_SQLITE = re.compile(r" indexed by \w+")
_PLACEHOLDER = re.compile(r"\?(\d*)")


@cache
def translated(query: str) -> str:
    """Return the query with PostgreSQL's placeholders, and without what concerns SQLite."""
    numbers = count(1)
    return _PLACEHOLDER.sub(lambda match: f"${match[1] or next(numbers)}", _OF_SQLITE.sub("", query))


def _encoded(values: Sequence[object]) -> Iterator[object]:
    """Yield the values as columns store them."""
    for value in values:
        yield int(value) if isinstance(value, bool) else storable(value)


def storable(value: object) -> object:
    """Return the value without the character NUL, which texts can't contain in PostgreSQL."""
    if isinstance(value, str) and "\0" in value:
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value
