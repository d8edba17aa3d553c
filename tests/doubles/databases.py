"""The databases of a store, for tests that run over all of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from gibil_bot.runs.postgres.server import LIMIT_S
from gibil_bot.runs.sql.store import SqlStore
from tests.doubles.postgres import Cluster

DATABASES = ("sqlite", "postgresql")


@contextlib.asynccontextmanager
async def empty_database(kind: str, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Yield the URL of a database without rows, for this test only. Skip if there is no PostgreSQL."""
    if kind == "sqlite":
        folder: Path = request.getfixturevalue("tmp_path")
        yield f"sqlite:///{folder / 'gibil.db'}"
    else:
        cluster: Cluster = request.getfixturevalue("postgres")
        async with cluster.lend_database() as name:
            yield cluster.url(name)


@pytest.fixture(params=DATABASES)
async def database_url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of a database without rows. Folders whose tests need it import it in their conftest.py."""
    async with empty_database(request.param, request) as url:
        yield url


async def open_store(
    url: str, *, exclusive: bool = False, clock: Callable[[], float] = time.time, limit_s: float = LIMIT_S
) -> SqlStore:
    """Open the store as a process would. `exclusive`: no other process may use it; only in SQLite. `limit_s`: of PostgreSQL."""
    if url.startswith("sqlite:"):
        from gibil_bot.runs.sqlite.store import open_store as open_sqlite

        return await open_sqlite(url, exclusive=exclusive, clock=clock)
    from gibil_bot.runs.postgres.store import open_store as open_postgres

    return await open_postgres(url, clock=clock, limit_s=limit_s)
