"""Opens the PostgreSQL store, which several bots on several hosts share."""

from __future__ import annotations

from collections.abc import Callable

from gibil_bot.runs.postgres.database import open_database
from gibil_bot.runs.postgres.server import LIMIT_S, migrate
from gibil_bot.runs.sql.store import SqlStore


async def open_store(
    database_url: str, *, clock: Callable[[], float] | None = None, limit_s: float = LIMIT_S, host_id: str = ""
) -> SqlStore:
    """Connect to the database of `postgresql://…`, and create or migrate its schema. Raises StoreError with what to do.

    `clock`: instead of the server's time. `limit_s`: for each transaction and each query. `host_id`: whose bot opens it;
    if bots of other hosts use an older schema, it isn't migrated.
    """
    await migrate(database_url, host_id=host_id)
    return SqlStore(await open_database(database_url, clock, limit_s=limit_s))
