"""Files that machines sent, stored in the data directory without being read: opaque bytes with a digest and a description.

<folder>/NAME/     data  manifest.json

A file is complete or doesn't exist: it is written in a folder whose name begins with a dot, synced, and renamed. A process that
was killed leaves such a folder, and a lock on it that the kernel released, by which the next process knows that it is garbage.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import queue
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from gibil_bot.durable_files import sync_folder
from gibil_bot.errors import GibilError, SSHError
from gibil_bot.ports import Shell
from gibil_bot.ssh.answers import last_line, size_text

log = logging.getLogger("gibil.runner")

NAME = re.compile(r"[0-9a-f]{8,64}")

_FORMAT = 1
_MANIFEST = "manifest.json"
_DATA = "data"
_BACKLOG_BYTES = 64 * 1024**2
"""Most bytes that wait in memory for this computer's disk."""
_BLOCK = 1024 * 1024
_NEW_S = 60.0


class NotStored(GibilError):
    """A file wasn't stored; nothing of it is left."""


class Damaged(GibilError):
    """A stored file isn't what was stored."""


class OpaqueFile(msgspec.Struct, frozen=True, kw_only=True):
    """Content of a manifest.json."""

    format: int
    name: str
    size: int
    digest: str
    """SHA-256."""
    created_at: datetime
    facts: dict[str, str]
    """What its owner has to know."""


class OpaqueFiles:
    """The files of one folder. Several processes may use it at once.

    `most_bytes`: the largest file. `reserve_bytes`: what has to stay free on the disk, which the bot's database is on, too.
    """

    def __init__(self, folder: Path, *, most_bytes: int, reserve_bytes: int = 1024**3) -> None:
        self._folder, self._most_bytes, self._reserve_bytes = folder, most_bytes, reserve_bytes

    async def files(self) -> list[OpaqueFile]:
        """Return the complete files, oldest first, and delete what killed processes left."""
        return await asyncio.to_thread(self._read_all)

    async def delete(self, name: str) -> bool:
        """Delete a file; False if it doesn't exist. A process that is reading it reads it to its end."""
        return await asyncio.to_thread(self._delete, name)

    async def receive(self, shell: Shell, script: str, name: str, facts: dict[str, str], *, timeout_s: float) -> OpaqueFile:
        """Store what the script prints, if it succeeds. A file of that name is replaced.

        Raises NotStored, and MachineLost as `Shell.run` does.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a valid name of a file")
        try:
            draft = await asyncio.to_thread(_Draft, self._folder, name, self._most_bytes, self._reserve_bytes)
        except OSError as error:
            raise NotStored(f"cannot write to {self._folder}: {error.strerror or error}") from None
        writing = asyncio.create_task(asyncio.to_thread(draft.write))
        problem = b""

        def on_output(stream: str, data: bytes) -> None:
            nonlocal problem
            if stream == "stdout":
                draft.put(data)
            else:
                problem = (problem + data)[-4096:]

        try:
            done = await shell.run(script, timeout_s=timeout_s, on_output=on_output, keep_output=False)
            draft.end()
            await asyncio.shield(writing)
            if done.exit_status != 0:
                raise NotStored(last_line(problem, f"the machine's script ended with status {done.exit_status}"))
            return await asyncio.to_thread(draft.commit, facts)
        except OSError as error:  # a TimeoutError, too
            reason = f"it takes longer than {timeout_s:.0f} s" if isinstance(error, TimeoutError) else error.strerror or error
            raise NotStored(str(reason)) from None
        except SSHError as error:
            raise NotStored(error.message) from None
        finally:
            draft.end()
            await asyncio.shield(_close(draft, writing))

    async def verified(self, name: str) -> OpaqueFile:
        """Return a file after comparing its content with its digest. Raises Damaged, also if it doesn't exist."""
        return await asyncio.to_thread(self._verify, name)

    async def content(self, name: str) -> AsyncIterator[bytes]:
        """Yield the content. Raises Damaged if it doesn't exist."""
        try:
            file = await asyncio.to_thread((self._folder / name / _DATA).open, "rb")
        except OSError as error:
            raise Damaged(f"{name} can't be read: {error.strerror}") from None
        with file:
            try:
                while block := await asyncio.to_thread(file.read, _BLOCK):
                    yield block
            except OSError as error:  # when some of it may have been sent
                raise SSHError(f"{name} can't be read: {error.strerror}") from None

    # --- in threads ---

    def _read_all(self) -> list[OpaqueFile]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for folder in sorted(self._folder.iterdir()):
                if (manifest := self._read(folder)) is not None:
                    found.append(manifest)
                elif not _is_in_use(folder):
                    shutil.rmtree(folder, ignore_errors=True)
        return sorted(found, key=lambda manifest: (manifest.created_at, manifest.name))

    def _read(self, folder: Path) -> OpaqueFile | None:
        try:
            manifest = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=OpaqueFile)
            complete = (folder / _DATA).stat().st_size == manifest.size
        except (OSError, msgspec.DecodeError):
            return None
        return manifest if complete and manifest.format == _FORMAT and manifest.name == folder.name else None

    def _delete(self, name: str) -> bool:
        if not NAME.fullmatch(name):
            return False
        away = self._folder / f".{name}.{secrets.token_hex(8)}"
        try:
            (self._folder / name).rename(away)
        except FileNotFoundError:
            return False
        shutil.rmtree(away, ignore_errors=True)
        return True

    def _verify(self, name: str) -> OpaqueFile:
        manifest = self._read(self._folder / name) if NAME.fullmatch(name) else None
        if manifest is None:
            raise Damaged(f"{name} doesn't exist")
        try:
            with (self._folder / name / _DATA).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise Damaged(f"{name} can't be read: {error.strerror}") from None
        if digest != manifest.digest:
            raise Damaged(f"the content of {name} has changed since it was stored")
        return manifest


class _Draft:
    """A file that is being written by one thread, which `put` and `end` of the event loop feed."""

    def __init__(self, folder: Path, name: str, most_bytes: int, reserve_bytes: int) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._target, self._name = folder / name, name
        self._most_bytes, self._reserve_bytes = most_bytes, reserve_bytes
        self._folder = folder / f".{name}.{secrets.token_hex(8)}"
        self._folder.mkdir(mode=0o700)
        self._lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._file = os.open(self._folder / _DATA, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._received = 0
        self._written = 0
        self._digest = hashlib.sha256()
        self._problem: OSError | None = None

    def put(self, data: bytes) -> None:
        """Raises OSError, NotStored."""
        if self._problem is not None:
            raise self._problem
        self._received += len(data)
        if self._received > self._most_bytes:
            raise NotStored(f"it is larger than {size_text(self._most_bytes)}")
        if self._received - self._written > _BACKLOG_BYTES:
            raise NotStored("this computer's disk is too slow for it")
        self._blocks.put(data)

    def end(self) -> None:
        self._blocks.put(b"")

    def write(self) -> None:
        checked = 0
        while data := self._blocks.get():
            if self._problem is not None:
                continue
            try:
                if self._written >= checked:
                    free = os.fstatvfs(self._file)
                    if free.f_bavail * free.f_frsize < self._reserve_bytes:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    checked = self._written + 16 * 1024**2
                view = memoryview(data)
                while view:
                    view = view[os.write(self._file, view) :]
            except OSError as error:
                self._problem = error
            self._digest.update(data)
            self._written += len(data)

    def commit(self, facts: dict[str, str]) -> OpaqueFile:
        if self._problem is not None:
            raise self._problem
        os.fsync(self._file)
        manifest = OpaqueFile(
            format=_FORMAT, name=self._name, size=self._written, digest=self._digest.hexdigest(),
            created_at=datetime.now(UTC), facts=facts,
        )  # fmt: skip
        with (self._folder / _MANIFEST).open("xb") as file:
            file.write(msgspec.json.encode(manifest))
            file.flush()
            os.fsync(file.fileno())
        if self._target.exists():
            shutil.rmtree(self._target)
        self._folder.rename(self._target)
        sync_folder(self._target.parent)
        return manifest

    def close(self) -> None:
        """Delete the draft, unless it was committed."""
        if self._lock < 0:
            return
        os.close(self._file)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


async def _close(draft: _Draft, writing: asyncio.Task[None]) -> None:
    await asyncio.wait({writing})
    await asyncio.to_thread(draft.close)


def _is_in_use(folder: Path) -> bool:
    """Return whether a process writes it, or has just created it and will lock it."""
    try:
        if time.time() - folder.stat().st_mtime < _NEW_S:
            return True
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False
