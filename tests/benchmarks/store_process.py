"""`python -m tests.benchmarks.store_process KIND URL NUMBER`: one of the bots that load a database at the same time.

The password of the URL is in PGPASSWORD. For each line `ACTION COUNT` on its standard input it prints the seconds that COUNT of
these took: `deliver` (deliveries acknowledged, with 50 callers at once), `claim` (runs claimed and finished, with 4), or
`insert` (a bare insert of the same bytes and its commit, without gibil, with 50).
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import uvloop

from gibil_bot.model import Conclusion, Delivery
from gibil_bot.runs.postgres.store import open_store as open_database
from gibil_bot.runs.sqlite.store import open_store as open_file
from tests.benchmarks.store import CALLERS, COMMAND

CLAIMERS = 4
BARE = "create table if not exists bare (seq integer primary key, guid text not null unique, content {bytes} not null)"
_CONTENT = msgspec.json.encode(COMMAND)


async def main(kind: str, url: str, number: str) -> None:
    store = await open_file(url, exclusive=False) if kind == "sqlite" else await open_database(url)
    insert = await _bare(kind, url)
    numbers = iter(range(10**9))
    claimed = 0

    async def deliver() -> None:
        guid = f"{number}-{next(numbers)}"
        await store.inbox.accept(Delivery(guid=guid, event_name="issue_comment", event=COMMAND, received_at=datetime.now(UTC)))

    async def claim() -> None:
        nonlocal claimed
        claim = await store.runs.claim(number, lease_s=60, max_machines=10**6)
        if claim is not None:
            claimed += 1
            await store.runs.finish(claim, Conclusion.SUCCESS, ())

    async def bare() -> None:
        await insert(f"{number}-{next(numbers)}", _CONTENT)

    actions = {"deliver": deliver, "claim": claim, "insert": bare}
    for action, count in _orders():
        claimed = 0
        took = await _timed(actions[action], count, CLAIMERS if action == "claim" else CALLERS)
        print(took, claimed, flush=True)
    await store.close()


def _orders() -> Iterator[tuple[str, int]]:
    print("ready", flush=True)
    for line in sys.stdin:
        action, count = line.split()
        yield action, int(count)


async def _bare(kind: str, url: str) -> Callable[[str, bytes], Awaitable[Any]]:
    """Return the shortest way to a durable row: one statement, one commit, the same number of connections."""
    if kind == "sqlite":
        db = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        db.execute("pragma synchronous = full")
        db.execute(BARE.format(bytes="blob"))

        async def insert(guid: str, content: bytes) -> None:
            db.execute("insert into bare (guid, content) values (?, ?) on conflict do nothing", (guid, content))

        return insert
    pool = await asyncpg.create_pool(url, min_size=10, max_size=10)
    sequence = BARE.format(bytes="bytea").replace("integer primary key", "bigint generated always as identity primary key")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("select pg_advisory_xact_lock(1)")  # the other bots create it at the same moment
        await connection.execute(sequence)

    async def insert_there(guid: str, content: bytes) -> None:
        await pool.execute("insert into bare (guid, content) values ($1, $2) on conflict do nothing", guid, content)

    return insert_there


async def _timed(action: Callable[[], Awaitable[None]], count: int, callers: int) -> float:
    left = iter(range(count))

    async def caller() -> None:
        for _ in left:
            await action()

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - start


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
