"""Creations that are under way: a record of each in the data directory, so that a machine whose maker was killed is found.

<data dir>/makings/CREATION holds what is being made, and its lock is held for as long as the maker lives: a record that can be
locked is of a creation that nobody goes on with. A record is removed when the machine was reported, used or destroyed.
CREATION is what the machine is labelled with, so another machine of the same name is never taken for it.

Beginning and looking belong in a thread; what ends a creation is one system call, so that no cancellation comes between.
Nothing is synced to the disk: a record that a power failure takes along costs a machine its time to live, as before. A data
directory that cannot be written has no records.
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
_SETTLES_S = 60.0
"""A maker that was killed has asked for its machine: so long it may take until it is there."""


class CreationRecord:
    """One creation. `finished` and `undone` are safe to call at any time."""

    def __init__(self, data_dir: Path, *, provider: str, name: str, made_by: str, ttl_s: int) -> None:
        self.creation = secrets.token_hex(8)
        self.name = name
        self._path = data_dir / FOLDER / self.creation
        self._content = {"provider": provider, "name": name, "made_by": made_by, "until": time.time() + ttl_s}
        self._fd: int | None = None

    def begin(self) -> None:
        """Before anything is asked of a provider. The record appears locked."""
        draft = self._path.with_name(f".{self.creation}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_APPEND, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(self._fd, json.dumps(self._content).encode() + b"\n")
            draft.rename(self._path)

    def made(self) -> None:
        """The machine is ready to be used: from now on it is worth something."""
        self._note(b"made\n")

    def undone(self) -> None:
        """It failed, and what there was is burned; if that failed, too, somebody will see."""
        self._note(b"undone\n")
        self.let_go()

    def finished(self) -> None:
        """Somebody knows of the machine."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Leave it to whoever comes next."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _note(self, line: bytes) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.write(self._fd, line)


def begin_together(data_dir: Path, begun: Sequence[CreationRecord]) -> list[tuple[str, str]]:
    """Begin all of them; (provider, name) of the other creations that are under way. Blocking.

    Under a lock, so that of two callers exactly one sees the other's records.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a data directory that can't be written has no records
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(data_dir / LOCK, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, lock)
            fcntl.flock(lock, fcntl.LOCK_EX)
        others = _under_way(data_dir)
        for making in begun:
            making.begin()
        return others


def _under_way(data_dir: Path) -> list[tuple[str, str]]:
    """(provider, name) of each record whose maker lives."""
    found = []
    for path in _records(data_dir):
        if (record := _take(path)) is not None:
            record.leave()
            continue
        try:
            content = json.loads(path.read_bytes().partition(b"\n")[0])
            found.append((str(content["provider"]), str(content["name"])))
        except (OSError, ValueError, KeyError, TypeError):  # it has ended meanwhile, or the disk was full
            continue
    return found


class AbandonedCreation:
    """A creation that nobody goes on with. It is ours to settle until `drop` or `leave`."""

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
        self.made = "made" in notes and "undone" not in notes
        """Else its making was broken off in the middle."""
        age_s = time.time() - os.fstat(fd).st_mtime
        self.may_still_come = not notes and 0 <= age_s < _SETTLES_S
        self.is_over = not content or float(content.get("until", 0)) < time.time()
        """Its machine is beyond its time, and burned without us."""

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        os.close(self._fd)


def abandoned(data_dir: Path, provider: str) -> list[AbandonedCreation]:
    """Those of that provider."""
    found = []
    for path in _records(data_dir):
        record = _take(path)
        if record is None:
            continue
        if record.is_over:
            record.drop()
        elif record.provider == provider:
            found.append(record)
        else:
            record.leave()
    return found


def forget(data_dir: Path, creation: str) -> None:
    """Somebody uses the machine of that creation."""
    if _CREATION.fullmatch(creation):
        with contextlib.suppress(OSError):
            os.unlink(data_dir / FOLDER / creation)


def forget_names(data_dir: Path, provider: str, names: Collection[str]) -> None:
    """These machines are burned. Creations that go on have records of their own, and keep them."""
    for record in abandoned(data_dir, provider):
        if record.name in names:
            record.drop()
        else:
            record.leave()


def _records(data_dir: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        for path in sorted((data_dir / FOLDER).iterdir()):
            if _CREATION.fullmatch(path.name):
                yield path
            elif time.time() - path.lstat().st_mtime > _SETTLES_S:
                path.unlink()  # a draft whose writer was killed


def _take(path: Path) -> AbandonedCreation | None:
    """None: its maker lives, or somebody else is settling it, or has."""
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
