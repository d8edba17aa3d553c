"""Creation journal: a record in the data directory for each creation in progress, so that an abandoned machine is found.

The creating process holds a lock on its record, <data dir>/makings/CREATION, as long as it runs. A record that can be locked
belongs to a creation whose process was killed. A record is deleted when the machine was reported, used or destroyed. The
machine's label has CREATION, too, so another machine of the same name is never mistaken for it.

Call `begin_all` and `abandoned` in a thread. Each function that ends a creation needs one system call, so it can't be cancelled
halfway. Nothing is synced to the disk: if a power failure loses a record, the machine exists until it expires. There are no
records if the data directory isn't writable.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

FOLDER = "makings"
LOCK = "makings.lock"

_CREATION = re.compile(r"[0-9a-f]{16}")
_CREATE_S = 60.0
"""How long after a killed process's request its machine may still appear at the provider."""


class CreationRecord:
    """The record of one creation. `finish` and `mark_failed` are safe to call at any time."""

    def __init__(self, data_dir: Path, *, provider: str, name: str, made_by: str, ttl_s: int) -> None:
        self.creation = secrets.token_hex(8)
        self.name = name
        self._path = data_dir / FOLDER / self.creation
        self._content = {"provider": provider, "name": name, "made_by": made_by, "until": time.time() + ttl_s}
        self._fd: int | None = None

    def begin(self) -> None:
        """Write the record, locked from the start. Call it before any request to the provider."""
        draft = self._path.with_name(f".{self.creation}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_APPEND, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._fd, json.dumps(self._content).encode() + b"\n")
            draft.rename(self._path)

    def mark_ready(self) -> None:
        """Record that the machine is ready: from now on, recovery keeps it."""
        self._note(b"made\n")

    def mark_failed(self) -> None:
        """Record that the creation failed and the machine was destroyed. If that failed, too, recovery destroys it."""
        self._note(b"undone\n")
        self.release()

    def finish(self) -> None:
        """Delete the record: the user knows the machine."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Unlock the record, so that a later command recovers the creation."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _note(self, line: bytes) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, line)


def begin_all(data_dir: Path, records: Sequence[CreationRecord]) -> list[tuple[str, str]]:
    """Begin all these creations; return (provider, name) of the other creations in progress. Blocking.

    Holds a lock, so that of two concurrent callers exactly one sees the other's records.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a data directory that can't be written has no records
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(data_dir / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        others = _in_progress(data_dir)
        for record in records:
            record.begin()
        return others


def _in_progress(data_dir: Path) -> list[tuple[str, str]]:
    """Return (provider, name) of each record whose process runs."""
    found = []
    for path in _records(data_dir):
        if (record := _lock(path)) is not None:
            record.release()
            continue
        try:
            content = json.loads(path.read_bytes().partition(b"\n")[0])
            found.append((str(content["provider"]), str(content["name"])))
        except (OSError, ValueError, KeyError, TypeError):  # the creation has just ended, or the disk was full
            continue
    return found


class AbandonedCreation:
    """A creation whose process was killed. Locked for this process until `remove` or `release`."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path, self._fd = path, fd
        self.creation = path.name
        first, *notes = os.pread(fd, 65536, 0).decode(errors="replace").splitlines() or [""]
        try:
            content = json.loads(first)
        except ValueError:  # the disk was full
            content = {}
        self.provider, self.name = str(content.get("provider", "")), str(content.get("name", ""))
        self.made_by = str(content.get("made_by", ""))
        self.is_ready = "made" in notes and "undone" not in notes
        """False: the creation was interrupted or failed."""
        age_s = time.time() - os.fstat(fd).st_mtime
        self.may_still_appear = not notes and 0 <= age_s < _CREATE_S
        self.has_expired = not content or float(content.get("until", 0)) < time.time()
        """The machine has expired, so the provider's sweep destroys it."""

    def remove(self) -> None:
        """Delete the record."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Unlock the record for a later command."""
        os.close(self._fd)


def abandoned(data_dir: Path, provider: str) -> list[AbandonedCreation]:
    """Lock and return the abandoned creations of a provider. Deletes the records of expired machines."""
    found = []
    for path in _records(data_dir):
        record = _lock(path)
        if record is None:
            continue
        if record.has_expired:
            record.remove()
        elif record.provider == provider:
            found.append(record)
        else:
            record.release()
    return found


def forget(data_dir: Path, creation: str) -> None:
    """Delete the record of a creation whose machine is in use."""
    if _CREATION.fullmatch(creation):
        with contextlib.suppress(OSError):
            os.unlink(data_dir / FOLDER / creation)


def forget_names(data_dir: Path, provider: str, names: Collection[str]) -> None:
    """Delete the records of destroyed machines. Records of creations in progress are locked, and remain."""
    for record in abandoned(data_dir, provider):
        if record.name in names:
            record.remove()
        else:
            record.release()


def _records(data_dir: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in sorted((data_dir / FOLDER).iterdir()):
            if _CREATION.fullmatch(path.name):
                yield path
            elif time.time() - path.lstat().st_mtime > _CREATE_S:
                path.unlink()  # a draft whose writer was killed


def _lock(path: Path) -> AbandonedCreation | None:
    """Lock a record; None if its creator or another process holds the lock, or it was deleted."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            return AbandonedCreation(path, fd)
    except OSError:
        pass
    os.close(fd)
    return None
