"""The database file: its path, its lock, its schema version, and what SQLite's errors mean for an operator."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gibil_bot.errors import DatabaseFull, StoreError
from gibil_bot.runs.lock_file import Locked, hold
from gibil_bot.runs.sql.migrations import migrations_of, require_not_newer

BUSY_S = 4.0
"""How long a transaction waits for another process's transaction. A delivery may also have to wait for the one before it, and
GitHub expects an answer within 10 s: https://docs.github.com/webhooks/using-webhooks/best-practices-for-using-webhooks
"""

_PREFIX = "sqlite:///"
_REMEDIES = {
    sqlite3.SQLITE_FULL: "the disk is full: free some space, then gibil continues by itself",
    sqlite3.SQLITE_READONLY: "it can't be written: check its owner, its folder, and that the disk isn't mounted read-only",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened: check that its folder exists and that this user may write in it",
    sqlite3.SQLITE_BUSY: "another process keeps it locked: find the process that has the file open with fuser",
    sqlite3.SQLITE_LOCKED: "another process keeps it locked: find the process that has the file open with fuser",
    sqlite3.SQLITE_CORRUPT: "it is damaged: stop gibil, move the file away, and restore a backup or start with a new one",
    sqlite3.SQLITE_NOTADB: "it isn't a SQLite database: set GIBIL_DATABASE_URL to another file",
    sqlite3.SQLITE_IOERR: "reading or writing it failed: check the disk and its free space (see dmesg)",
}


def database_path(url: str) -> Path:
    """Return the file of `sqlite:///relative/path` or `sqlite:////absolute/path`. Raises StoreError for any other URL."""
    path = url.removeprefix(_PREFIX)
    if not url.startswith(_PREFIX) or not path or path.startswith(":"):
        raise StoreError("the database URL must be sqlite:/// followed by the path of a file")
    return Path(path).absolute()


def store_error(path: Path, error: sqlite3.Error) -> StoreError:
    """Describe a SQLite error in one line, with what to do."""
    code = getattr(error, "sqlite_errorcode", None)
    remedy = _REMEDIES.get(code & 0xFF) if isinstance(code, int) else None
    is_full = isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_FULL
    return (DatabaseFull if is_full else StoreError)(f"the database {path}: {error}" + (f"; {remedy}" if remedy else ""))


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Convert errors of SQLite and of the file system to StoreError."""
    try:
        yield
    except sqlite3.Error as error:
        raise store_error(path, error) from error
    except OSError as error:
        raise StoreError(
            f"the database {path}: {error.strerror or error} ({error.filename}); check the path and its owner"
        ) from error


def lock(path: Path) -> int:
    """Hold `<path>.lock` until the returned descriptor is closed or this process dies, however it dies.

    Raises StoreError, naming the holder, if another process holds it.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        return hold(lock_path)
    except Locked as error:
        raise StoreError(
            f"the database {path} is in use: another `gibil serve` ({error.holder}) holds {lock_path}; "
            "stop it first, or use another database"
        ) from None


def create_file(path: Path) -> None:
    """Create the file and its folder, readable only by their owner: they contain payloads of private repositories."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """Open a connection with explicit transactions, for one thread at a time.

    Every commit is on disk when it returns (synchronous=FULL). Only the checkpointer's thread checkpoints.
    """
    if sqlite3.sqlite_version_info < (3, 35):
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: this Python needs SQLite 3.35 or newer")
    db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        if _journal_mode(db) != "wal":
            raise StoreError(f"the database {path}: its file system doesn't support SQLite's WAL; use a local disk")
        db.execute("pragma synchronous = full")
        db.execute("pragma wal_autocheckpoint = 0")
        db.execute("pragma temp_store = memory")
        db.execute(f"pragma journal_size_limit = {64 << 20}")
        if readonly:
            db.execute("pragma query_only = on")
    except BaseException:
        db.close()
        raise
    return db


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Migrate the schema to this version, all steps in one transaction. Raises StoreError if the database is from a newer
    version.
    """
    steps = _migrations()
    if version(db) == steps[-1][0]:
        return
    db.execute("begin immediate")
    try:
        current = version(db)  # check again: another process may have migrated while this one waited for the lock
        require_not_newer(str(path), current, steps[-1][0])
        for number, script in steps:
            if number > current:
                for statement in _statements(script):
                    db.execute(statement)
                db.execute(f"pragma user_version = {number}")
        db.execute("commit")
    except BaseException:
        db.execute("rollback")
        raise


def version(db: sqlite3.Connection) -> int:
    """Return the version of the schema; 0: there is none."""
    return int(db.execute("pragma user_version").fetchone()[0])


def newest_version() -> int:
    return _migrations()[-1][0]


def _migrations() -> list[tuple[int, str]]:
    return migrations_of("gibil_bot.runs.sqlite.migrations")


def _statements(script: str) -> Iterator[str]:
    """Yield one statement at a time, because sqlite3's `executescript` commits before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _journal_mode(db: sqlite3.Connection) -> str:
    """Switch to WAL. SQLite doesn't wait for other connections here, so retry: two processes may be opening a new file."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return str(db.execute("pragma journal_mode = wal").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
