"""maintenance.database.Maintained on a SQLite file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import quote

from gibil_bot.errors import StoreError
from gibil_bot.runs.maintenance.database import Problem
from gibil_bot.runs.sql.connection import Query
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.connection import SqliteConnection, completed

T = TypeVar("T")

_MOST_PROBLEMS = 20
_DAMAGED = (
    "stop gibil, move the file away, and restore a backup, or let sqlite3's .recover write what is readable to a new file"
)


class MaintainedFile:
    """For one caller at a time. Reads on threads, and doesn't create the file unless it migrates."""

    kind: Literal["sqlite"] = "sqlite"

    def __init__(self, url: str) -> None:
        self.path = database.database_path(url)
        self.newest_version = database.newest_version()
        self._db: sqlite3.Connection | None = None

    @property
    def name(self) -> str:
        return str(self.path)

    def now(self) -> float:
        return time.time()

    async def version(self) -> int:
        return await asyncio.to_thread(self._version)

    async def size_bytes(self) -> int:
        """Return the size of the file and its log."""
        files = [self.path, self.path.with_name(f"{self.path.name}-wal")]
        return await asyncio.to_thread(lambda: sum(file.stat().st_size for file in files if file.exists()))

    async def read(self, query: Query[T]) -> T:
        return await asyncio.to_thread(self._read, query)

    async def integrity(self) -> list[Problem]:
        return await asyncio.to_thread(self._integrity)

    async def migrate(self, *, force: bool = False) -> tuple[int, int]:
        return await asyncio.to_thread(self._migrate)

    async def free_bytes(self) -> int:
        return await asyncio.to_thread(self._free_bytes)

    async def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            if not self.path.exists():
                raise StoreError(f"the database {self.path} doesn't exist yet: gibil serve creates it, or gibil db migrate")
            db = sqlite3.connect(
                f"file:{quote(str(self.path))}?mode=rw",
                uri=True,
                timeout=database.BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            db.execute("pragma query_only = on")
            self._db = db
        return self._db

    def _version(self) -> int:
        with database.translated(self.path):
            return database.version(self._opened()) if self.path.exists() else 0

    def _read(self, query: Query[T]) -> T:
        with database.translated(self.path):
            return completed(query(SqliteConnection(self._opened())))

    def _free_bytes(self) -> int:
        with database.translated(self.path):
            free, size = (self._opened().execute(f"pragma {name}").fetchone()[0] for name in ("freelist_count", "page_size"))
        return int(free) * int(size)

    def _integrity(self) -> list[Problem]:
        with database.translated(self.path):
            db = self._opened()
            try:
                damages = [row[0] for row in db.execute(f"pragma integrity_check({_MOST_PROBLEMS})")]
            except sqlite3.DatabaseError as error:  # the first page is damaged
                damages = [str(error)]
            problems = [
                Problem(kind="damaged_file", subject=self.name, problem=" ".join(str(each).split()), remedy=_DAMAGED)
                for each in damages
                if each != "ok"
            ]
            if problems:
                return problems
            return [
                Problem(
                    kind="missing_reference",
                    subject=f"{table} {row}",
                    problem=f"it belongs to a row of {parent} that doesn't exist",
                    remedy=f"delete it: delete from {table} where rowid = {row}",  # noqa: S608
                )
                for table, row, parent, _ in db.execute("pragma foreign_key_check").fetchmany(_MOST_PROBLEMS)
            ]

    def _migrate(self) -> tuple[int, int]:
        if self._version() == self.newest_version:
            return self.newest_version, self.newest_version
        with database.translated(self.path), locked(self.path) as db:
            before = database.version(db)
            database.migrate(db, self.path)
            return before, database.version(db)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[sqlite3.Connection]:
    """Hold the file's lock during the block, with a connection that writes. Creates the file. Raises StoreError."""
    database.create_file(path)
    lock = database.lock(path)
    try:
        db = database.connect(path)
        try:
            yield db
            with contextlib.suppress(sqlite3.Error):  # the log is durable, and checkpointed later
                db.execute("pragma wal_checkpoint(truncate)").fetchone()
        finally:
            db.close()
    finally:
        os.close(lock)
