"""The only thread that writes. It commits waiting jobs together, so that one fsync serves many callers.

A failing job doesn't affect others: the batch is rolled back and repeated with each job
in a savepoint. After the commit, one call into the event loop wakes all callers of a batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gibil_bot.errors import StoreError
from gibil_bot.runs.sql.connection import Job
from gibil_bot.runs.sqlite.connection import SqliteConnection, completed
from gibil_bot.runs.sqlite.database import store_error

T = TypeVar("T")

_Waiting = tuple[Job[Any], "asyncio.Future[Any]"]
_Outcome = tuple["asyncio.Future[Any]", Any, BaseException | None]

BATCH = 512
"""Maximum number of jobs in one transaction, which bounds how long the first of them waits for the last."""


class Writer:
    """Owns the connection from its start to `close`. `on_commit(topics)` is called on the loop before the callers continue."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        *,
        on_commit: Callable[[set[str]], None],
        between: Callable[[sqlite3.Connection], None],
    ) -> None:
        """`between(connection)` runs on the writer's thread after each batch, outside any transaction."""
        self._db = db
        self._connection = SqliteConnection(db)
        self._path = path
        self._on_commit = on_commit
        self._between = between
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="gibil-store-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job[T]) -> asyncio.Future[T]:
        """Queue a job. The future is done when the job is committed; cancelling it doesn't cancel the job.

        Raises StoreError once the store is closed.
        """
        if self._closed:
            raise StoreError(f"the database {self._path} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((job, future))
        return future

    def stop(self) -> None:
        """Accept no more jobs. Called on the loop, so that no job is queued after the marker that ends the thread."""
        self._closed = True
        self._queue.put(None)

    def join(self) -> None:
        """Block until the jobs submitted before `stop` are committed and the thread has ended. The connection stays open."""
        self._thread.join()

    def _work(self) -> None:
        running = True
        while running:
            batch: list[_Waiting] = []
            waiting = self._queue.get()
            while waiting is not None:
                batch.append(waiting)
                if len(batch) == BATCH:
                    break
                try:
                    waiting = self._queue.get_nowait()
                except queue.Empty:
                    break
            running = waiting is not None
            if batch:
                outcomes, topics = self._commit(batch)
                self._wake(outcomes, topics)
            self._between(self._db)

    def _commit(self, batch: list[_Waiting]) -> tuple[list[_Outcome], set[str]]:
        try:
            return self._commit_all(batch) or self._commit_each(batch)
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("rollback")
            return [(future, None, store_error(self._path, error)) for _, future in batch], set()

    def _commit_all(self, batch: list[_Waiting]) -> tuple[list[_Outcome], set[str]] | None:
        """Return None, with nothing changed, if a job failed, which is rare. Raises sqlite3.Error if SQLite can't commit."""
        db, topics = self._db, set[str]()
        db.execute("begin immediate")
        try:
            outcomes: list[_Outcome] = [(future, completed(job(self._connection, topics)), None) for job, future in batch]
        except Exception:  # any exception concerns one caller only
            if db.in_transaction:
                db.execute("rollback")
            return None
        db.execute("commit")
        return outcomes, topics

    def _commit_each(self, batch: list[_Waiting]) -> tuple[list[_Outcome], set[str]]:
        """Commit the jobs that succeed; each other job's exception goes to its caller."""
        db, topics = self._db, set[str]()
        db.execute("begin immediate")
        outcomes = [self._run(job, future, topics) for job, future in batch]
        db.execute("commit")
        return outcomes, topics

    def _run(self, job: Job[Any], future: asyncio.Future[Any], topics: set[str]) -> _Outcome:
        """Run one job in a savepoint. Raises sqlite3.Error only if SQLite has rolled back the whole transaction."""
        db = self._db
        db.execute("savepoint job")
        try:
            result = completed(job(self._connection, topics))
        except Exception as error:  # any exception goes to the caller, and this thread continues
            if not db.in_transaction:
                raise error if isinstance(error, sqlite3.Error) else sqlite3.OperationalError(str(error)) from error
            db.execute("rollback to job")
            db.execute("release job")
            return future, None, store_error(self._path, error) if isinstance(error, sqlite3.Error) else error
        db.execute("release job")
        return future, result, None

    def _wake(self, outcomes: list[_Outcome], topics: set[str]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: no caller waits, and what is committed stays committed
            self._loop.call_soon_threadsafe(self._resolve, outcomes, topics)

    def _resolve(self, outcomes: list[_Outcome], topics: set[str]) -> None:
        if topics:
            self._on_commit(topics)
        for future, result, error in outcomes:
            if future.done():
                continue  # the caller was cancelled
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
