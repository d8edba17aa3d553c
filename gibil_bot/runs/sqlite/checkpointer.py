"""Checkpoints the write-ahead log into the database file, on its own thread and connection.

Otherwise the writer would stop for it. If the log keeps growing because writing never pauses, the writer truncates it between
two batches, when few pages are left.
"""

from __future__ import annotations

import sqlite3
import threading

from gibil_bot.runs.sqlite.database import BUSY_S

PAUSE_S, SHORT_PAUSE_S = 0.1, 0.02
"""Between two passes. A large one keeps the writer's own syncs waiting for the disk, so that much writing is carried often."""
MUCH = 1 << 20
"""Bytes that one pass carried."""
LONGEST_LOG = 64 << 20
"""Bytes of log above which the writer is asked to cut it."""


class Checkpointer:
    """Owns the connection that it is given, and closes it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._written = threading.Event()
        self._stop = threading.Event()
        self._cut_wanted = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gibil-store-checkpointer", daemon=True)
        self._thread.start()

    def after_batch(self, db: sqlite3.Connection) -> None:
        """Called by the writer on its thread, outside of any transaction."""
        if self._cut_wanted.is_set():
            try:
                db.execute("pragma busy_timeout = 200")  # a reader that stays in our way is no reason to keep callers waiting
                db.execute("pragma wal_checkpoint(restart)").fetchone()
            except sqlite3.Error:
                pass  # the next commit meets the same problem, and reports it to its caller
            finally:
                db.execute(f"pragma busy_timeout = {BUSY_S * 1000:.0f}")
            self._cut_wanted.clear()
        self._written.set()

    def close(self) -> None:
        """End the thread; blocks until it has."""
        self._stop.set()
        self._written.set()
        self._thread.join()

    def _work(self) -> None:
        db = self._db
        try:
            page_size = int(db.execute("pragma page_size").fetchone()[0])
            carried_before = 0
            while not self._stop.is_set():
                self._written.wait()
                self._written.clear()
                pages, carried = self._carry()
                if pages * page_size > LONGEST_LOG:
                    # Once more, for what was written meanwhile: the writer has to carry what is left, and callers wait for it.
                    self._carry()
                    self._cut_wanted.set()
                new = carried - carried_before if carried >= carried_before else carried
                carried_before = carried
                self._stop.wait(SHORT_PAUSE_S if new * page_size > MUCH else PAUSE_S)
        finally:
            db.close()

    def _carry(self) -> tuple[int, int]:
        """Pages in the log, and how many of them are in the database file now."""
        try:
            _busy, pages, carried = self._db.execute("pragma wal_checkpoint(passive)").fetchone()
        except sqlite3.Error:
            return 0, 0  # the log is kept and tried again after the next write
        return pages, carried
