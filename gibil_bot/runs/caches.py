"""Caches: archives of files that runs leave for later runs, and which of them another run may unpack.

<data dir>/caches/ID.json       one entry for each archive; its modification time is when it was last used
<data dir>/caches/ID.archive    the bytes that a machine sent; this process never unpacks them

Trust decides who reads what, as for prepared machines (runs/prepared.py): trusted runs of a repository share a scope, an
untrusted run reads that and writes only the scope of its pull request and commit, and a run with secrets writes none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import msgspec
from msgspec.structs import replace

from gibil_bot.errors import GibilError
from gibil_bot.model import CacheEntry
from gibil_bot.runs.prepared import TRUSTED, Scope

log = logging.getLogger("gibil.runner")

FORMAT = 1
"""Increased when entries of earlier versions can't be used any more."""
MB = 1024**2
ENTRY_MB = 1024
REPOSITORY_MB = 3 * 1024
TOTAL_MB = 12 * 1024
FREE_MB = 1024
"""Storing a cache leaves this much of the disk free, because the database and the logs need it more."""
_BLOCK = 1024 * 1024
_ABANDONED_AFTER_S = 3600.0
"""An archive without an entry is deleted after this time: the process that wrote it was killed."""
_NAME = re.compile(r"([0-9a-f]{16})\.json")
_PART = re.compile(r"[0-9a-f]{16}\.(archive|draft)|\.[0-9a-f]{16}\.json")


class CacheDamaged(GibilError):
    """The archive of an entry isn't the one that was stored. The entry is deleted."""

    code = "CACHE_DAMAGED"


class CacheNotStored(GibilError):
    """The archive is too large, or the disk can't store it."""

    code = "CACHE_NOT_STORED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A cache that a run would use, with its keys evaluated."""

    kind: str
    paths: tuple[str, ...]
    """Absolute paths and patterns on the machine."""
    key: str
    restore_keys: tuple[str, ...]
    compression: str

    @property
    def version(self) -> str:
        return version_of(self.kind, self.paths, self.compression)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheUsage:
    """An entry and when it was last used."""

    entry: CacheEntry
    used_at: datetime


def version_of(kind: str, paths: Sequence[str], compression: str) -> str:
    """Return `CacheEntry.version`."""
    return hashlib.sha256(msgspec.json.encode([FORMAT, kind, paths, compression])).hexdigest()


def find(entries: Iterable[CacheEntry], request: Request, scope: Scope) -> CacheEntry | None:
    """Return the entry to restore. It is an exact hit if its key is the request's.

    In the order of https://docs.github.com/en/actions/reference/workflows-and-actions/dependency-caching#cache-key-matching:
    the key itself, the newest entry whose key begins with it, then with each of the restore keys; first in the run's own scope,
    then in the one that it only reads.
    """
    readable = [each for each in entries if each.repository == scope.repository and each.version == request.version]
    for name in reversed(scope.reads):
        its = sorted(
            (each for each in readable if each.scope == name), key=lambda each: (each.created_at, each.id), reverse=True
        )
        exact = next((each for each in its if each.key == request.key), None)
        if exact is not None:
            return exact
        for beginning in (request.key, *request.restore_keys):
            for each in its:
                if each.key.startswith(beginning):
                    return each
    return None


def excess(usages: Sequence[CacheUsage], *, repository_bytes: int, total_bytes: int) -> list[CacheEntry]:
    """Return the entries to delete until the limits hold: those of untrusted runs first, then those used longest ago.

    So untrusted code, which may store as often as it likes, can't displace what trusted runs need.
    """
    usages = sorted(usages, key=lambda usage: (usage.entry.scope == TRUSTED, usage.used_at, usage.entry.id))
    gone: list[CacheEntry] = []
    sizes: dict[str, int] = {}
    for usage in usages:
        sizes[usage.entry.repository] = sizes.get(usage.entry.repository, 0) + usage.entry.size_bytes
    for usage in usages:
        entry = usage.entry
        if sizes[entry.repository] > repository_bytes or sum(sizes.values()) > total_bytes:
            sizes[entry.repository] -= entry.size_bytes
            gone.append(entry)
    return gone


class Caches:
    """The entries of one data directory. Several processes may use it at once."""

    def __init__(
        self, folder: Path, *, entry_mb: float = ENTRY_MB, repository_mb: float = REPOSITORY_MB, total_mb: float = TOTAL_MB
    ) -> None:
        self._folder = folder
        self.entry_bytes = int(entry_mb * MB)
        self._repository_bytes, self._total_bytes = int(repository_mb * MB), int(total_mb * MB)

    async def usages(self) -> list[CacheUsage]:
        """Return all complete entries, the last used first."""
        return await asyncio.to_thread(self._read_all)

    async def used(self, entry: CacheEntry) -> None:
        """Record that a run has unpacked this entry."""
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(os.utime, self._folder / f"{entry.id}.json")

    async def read(self, entry: CacheEntry) -> AsyncGenerator[bytes, None]:
        """Yield the archive. Raises CacheDamaged after the last block if it isn't the one that was stored, or at once if it
        can't be read.

        An entry that is deleted meanwhile is read to its end.
        """
        digest, size = hashlib.sha256(), 0
        try:
            file = await asyncio.to_thread((self._folder / f"{entry.id}.archive").open, "rb")
        except OSError as error:
            raise CacheDamaged(f"the cache {entry.id} can't be read: {error.strerror}") from error
        try:
            while block := await asyncio.to_thread(file.read, _BLOCK):
                digest.update(block)
                size += len(block)
                if size > entry.size_bytes:
                    break
                yield block
        except OSError as error:
            raise CacheDamaged(f"the cache {entry.id} can't be read: {error.strerror}") from error
        finally:
            file.close()
        if size != entry.size_bytes or digest.hexdigest() != entry.digest:
            await self.delete(entry)
            raise CacheDamaged(f"the archive of the cache {entry.id} was changed or is incomplete; it is deleted")

    async def save(self, entry: CacheEntry, archive: AsyncIterator[bytes]) -> CacheEntry | None:
        """Store an archive under a new id and return the complete entry; None if the scope has one of the same key.

        Nothing is stored if `archive` raises, or this is cancelled. Raises CacheNotStored.
        """
        name = secrets.token_hex(8)
        draft = self._folder / f"{name}.draft"
        digest, size = hashlib.sha256(), 0
        try:
            file = await asyncio.to_thread(self._create, draft)
            try:
                async for block in archive:
                    size += len(block)
                    if size > self.entry_bytes:
                        raise CacheNotStored(f"it is larger than {self.entry_bytes // MB} MB")
                    digest.update(block)
                    await asyncio.to_thread(self._append, file, block)
                await asyncio.to_thread(os.fsync, file.fileno())
            finally:
                file.close()
            entry = replace(entry, format=FORMAT, id=name, digest=digest.hexdigest(), size_bytes=size)
            if not await asyncio.to_thread(self._complete, entry, draft):
                return None
            await self.evict()
        except OSError as error:
            raise CacheNotStored(f"the disk of the bot can't store it: {error.strerror}") from error
        finally:
            draft.unlink(missing_ok=True)
        return entry

    async def evict(self) -> list[CacheEntry]:
        """Delete what exceeds the limits, and files that killed processes left; return the deleted entries."""
        usages = await self.usages()
        gone = excess(usages, repository_bytes=self._repository_bytes, total_bytes=self._total_bytes)
        for entry in gone:
            await self.delete(entry)
        await asyncio.to_thread(self._delete_abandoned, usages, _ABANDONED_AFTER_S)
        return gone

    async def clear(self, repository: str | None = None) -> list[CacheEntry]:
        """Delete all entries, or those of the repository of that name; return them. A run that reads one isn't disturbed."""
        usages = await self.usages()
        gone = [usage.entry for usage in usages if repository in (None, usage.entry.repository_name)]
        for entry in gone:
            await self.delete(entry)
        if repository is None:
            await asyncio.to_thread(self._delete_abandoned, usages, _ABANDONED_AFTER_S)
        return gone

    async def delete(self, entry: CacheEntry) -> None:
        await asyncio.to_thread(self._forget, entry.id)

    # --- files ---

    def _create(self, path: Path) -> IO[bytes]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb", buffering=0)

    def _append(self, file: IO[bytes], block: bytes) -> None:
        if shutil.disk_usage(self._folder).free < FREE_MB * MB + len(block):
            raise CacheNotStored(f"less than {FREE_MB} MB of the bot's disk would be free")
        view = memoryview(block)
        while view:
            view = view[file.write(view) :]

    def _complete(self, entry: CacheEntry, draft: Path) -> bool:
        same = (entry.repository, entry.scope, entry.version, entry.key)
        for usage in self._read_all():
            its = usage.entry
            if (its.repository, its.scope, its.version, its.key) == same:
                return False  # another run has stored it meanwhile
        draft.rename(self._folder / f"{entry.id}.archive")
        described = self._folder / f".{entry.id}.json"
        with self._create(described) as file:
            file.write(msgspec.json.encode(entry))
            os.fsync(file.fileno())
        described.rename(self._folder / f"{entry.id}.json")
        return True

    def _read_all(self) -> list[CacheUsage]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                usage = self._read(path)
                if usage is not None:
                    found.append(usage)
        return sorted(found, key=lambda usage: (usage.used_at, usage.entry.id), reverse=True)

    def _read(self, path: Path) -> CacheUsage | None:
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=CacheEntry)
            used_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
            size = path.with_suffix(".archive").stat().st_size
        except (OSError, msgspec.DecodeError):
            return None
        complete = entry.format == FORMAT and entry.id == match[1] and entry.size_bytes == size
        return CacheUsage(entry=entry, used_at=used_at) if complete else None

    def _forget(self, name: str) -> None:
        for ending in ("json", "archive"):
            (self._folder / f"{name}.{ending}").unlink(missing_ok=True)

    def _delete_abandoned(self, usages: Iterable[CacheUsage], after_s: float) -> None:
        """Delete files of none of these complete entries that nothing has written to for that time."""
        known = {f"{usage.entry.id}.{ending}" for usage in usages for ending in ("json", "archive")}
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                if path.name in known or not (_PART.fullmatch(path.name) or _NAME.fullmatch(path.name)):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > after_s:
                        path.unlink()
