"""Checkpoints the write-ahead log into the database file, on a separate thread and connection.

Without it, the writer would have to stop for checkpoints. If the log keeps growing because writes never pause, the writer
restarts the log between two batches, when few pages are left.
"""

from __future__ import annotations

import sqlite3
import threading

from gibil_bot.runs.sqlite.database import BUSY_S

PAUSE_S, SHORT_PAUSE_S = 0.1, 0.02
"""Pauses between two passes. A large pass delays the writer's own syncs, so a pass follows sooner when much was written."""
LARGE_PASS = 1 << 20
"""Bytes copied in one pass above which the next pass follows sooner."""
LARGE_LOG = 64 << 20
"""Log size in bytes above which the writer is asked to restart the log."""


class Checkpointer:
    """Owns the connection that it is given, and closes it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._written = threading.Event()
        self._stop = threading.Event()
        self._restart_wanted = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gibil-store-checkpointer", daemon=True)
        self._thread.start()

    def after_batch(self, db: sqlite3.Connection) -> None:
        """Restart the log if requested. Called by the writer on its thread, outside any transaction."""
        if self._restart_wanted.is_set():
            try:
                db.execute("pragma busy_timeout = 200")  # callers must not wait for a slow reader
                db.execute("pragma wal_checkpoint(restart)").fetchone()
            except sqlite3.Error:
                pass  # the next commit meets the same problem and reports it to its caller
            finally:
                db.execute(f"pragma busy_timeout = {BUSY_S * 1000:.0f}")
            self._restart_wanted.clear()
        self._written.set()

    def close(self) -> None:
        """End the thread; blocks until it has ended."""
        self._stop.set()
        self._written.set()
        self._thread.join()

    def _work(self) -> None:
        db = self._db
        try:
            page_size = int(db.execute("pragma page_size").fetchone()[0])
            copied_before = 0
            while not self._stop.is_set():
                self._written.wait()
                self._written.clear()
                pages, copied = self._checkpoint()
                if pages * page_size > LARGE_LOG:
                    # A second pass for what was written meanwhile: the writer has to copy the rest, and callers wait for it.
                    self._checkpoint()
                    self._restart_wanted.set()
                new = copied - copied_before if copied >= copied_before else copied
                copied_before = copied
                self._stop.wait(SHORT_PAUSE_S if new * page_size > LARGE_PASS else PAUSE_S)
        finally:
            db.close()

    def _checkpoint(self) -> tuple[int, int]:
        """Checkpoint; return the number of pages in the log, and how many of them are in the database file now."""
        try:
            _busy, pages, copied = self._db.execute("pragma wal_checkpoint(passive)").fetchone()
        except sqlite3.Error:
            return 0, 0  # the log stays, and the next write tries again
        return pages, copied
