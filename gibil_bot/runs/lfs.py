"""Replaces the pointers of Git LFS in a checkout on a machine by their objects.

This computer downloads the objects, checks them by size and SHA-256, and streams them to the machine, so no credentials and no
signed addresses are ever on the machine, which needs no git-lfs either.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gibil_bot.errors import MachineLost, SSHError
from gibil_bot.git import GitError
from gibil_bot.lfs.pointers import Pointer, server_of
from gibil_bot.ports import Shell
from gibil_bot.scripts import lfs as scripts
from gibil_bot.scripts.lfs import LfsRepository
from gibil_bot.ssh.answers import last_line

LIST_TIMEOUT_S = 120.0
TIMEOUT_S = 1800.0
_BLOCK = 256 * 1024
_TAR_BLOCK = 512


class LfsFailed(GitError):
    """The files of Git LFS couldn't be fetched; the message is one sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectSources:
    """Where the objects of one repository come from: folders like .git/lfs/objects, then the LFS server of a git remote."""

    remote: str
    """The URL of the git remote; empty if there is none."""
    stores: tuple[Path, ...] = ()
    authorize: Callable[[], Awaitable[str | None]] | None = None
    """As in LfsServer."""
    is_private: bool = False


async def fetch_lfs(shell: Shell, sources: Callable[[LfsRepository], ObjectSources], *, submodules: bool) -> None:
    """Replace the pointers of the commit in WORKSPACE, and those of its submodules. Raises LfsFailed, MachineLost.

    Safe to repeat.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            for repository in await _listed(shell, submodules):
                await _fetch(shell, repository, sources(repository))
    except TimeoutError:
        raise LfsFailed(f"The files of Git LFS couldn't be fetched within {TIMEOUT_S / 60:.0f} minutes.") from None


async def _listed(shell: Shell, submodules: bool) -> list[LfsRepository]:
    script = scripts.list_script(submodules=submodules)
    try:
        result = await shell.run(script, timeout_s=LIST_TIMEOUT_S, most_bytes=scripts.OUTPUT_BYTES)
        if result.exit_status != 0:
            raise LfsFailed(f"The files of Git LFS can't be listed: {last_line(result.stderr)}")
        return scripts.parse_listing(result.stdout)
    except MachineLost:
        raise
    except SSHError as error:
        raise LfsFailed(f"The files of Git LFS can't be listed: {error.message}") from None
    except ValueError as error:
        raise LfsFailed(f"The files of Git LFS can't be fetched: {error}.") from None


async def _fetch(shell: Shell, repository: LfsRepository, sources: ObjectSources) -> None:
    with tempfile.TemporaryDirectory(prefix="gibil-lfs-") as scratch:
        async with contextlib.aclosing(_archive(repository, sources, Path(scratch))) as archive:
            await _run(shell, scripts.store_script(repository.folder), archive)
    paths = b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in repository.files)
    await _run(shell, scripts.checkout_script(repository.folder), paths)


async def _run(shell: Shell, script: str, stdin: bytes | AsyncIterator[bytes]) -> None:
    result = await shell.run(script, stdin=stdin, timeout_s=TIMEOUT_S)
    if result.exit_status != 0:
        raise LfsFailed(f"The files of Git LFS can't be written on the machine: {last_line(result.stderr)}")


async def _archive(repository: LfsRepository, sources: ObjectSources, scratch: Path) -> AsyncGenerator[bytes, None]:
    """Yield a tar archive of the repository's objects. Raises LfsFailed before its end if one of them is missing."""
    missing = []
    for pointer in repository.pointers:
        file = await asyncio.to_thread(_open_stored, sources.stores, pointer)
        if file is None:
            missing.append(pointer)
            continue
        with file:
            async for data in _member(pointer, file):
                yield data
    if missing:
        async with contextlib.aclosing(_downloaded(repository, missing, sources, scratch)) as downloads:
            async for pointer, path in downloads:
                with await asyncio.to_thread(path.open, "rb") as opened:
                    async for data in _member(pointer, opened):
                        yield data
                await asyncio.to_thread(path.unlink)
    yield bytes(2 * _TAR_BLOCK)


async def _downloaded(
    repository: LfsRepository, missing: Sequence[Pointer], sources: ObjectSources, scratch: Path
) -> AsyncGenerator[tuple[Pointer, Path], None]:
    from gibil_bot.lfs.client import LfsError, LfsServer  # httpx takes 100 ms, and few commits have such files

    count = f"{len(missing)} of them" if len(missing) > 1 else _example(repository, missing)
    try:
        url = server_of(sources.remote, repository.lfs_url)
        async with (
            LfsServer(url, sources.authorize, is_private=sources.is_private) as server,
            contextlib.aclosing(server.download(missing, scratch)) as downloads,
        ):
            async for found in downloads:
                yield found
    except ValueError as error:
        raise LfsFailed(f"The files of Git LFS can't be fetched ({count}): {error}.") from None
    except LfsError as error:
        named = next((path for path, each in repository.files.items() if each.oid[:12] in error.message), None)
        which = scripts.shown(named) if named is not None else count
        raise LfsFailed(f"The files of Git LFS can't be fetched ({which}): {error.message}.") from None


def _example(repository: LfsRepository, missing: Sequence[Pointer]) -> str:
    return next(scripts.shown(path) for path, each in repository.files.items() if each == missing[0])


def _open_stored(stores: Sequence[Path], pointer: Pointer) -> BinaryIO | None:
    """Return the object's file in a store of git-lfs; None if none has it. The folder may be anyone's."""
    for store in stores:
        path = store / pointer.oid[:2] / pointer.oid[2:4] / pointer.oid
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            continue
        file = os.fdopen(fd, "rb")
        facts = os.fstat(fd)
        if stat.S_ISREG(facts.st_mode) and facts.st_size == pointer.size and _digest(file) == pointer.oid:
            file.seek(0)
            return file
        file.close()
    return None


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while data := file.read(_BLOCK):
        digest.update(data)
    return digest.hexdigest()


async def _member(pointer: Pointer, file: BinaryIO) -> AsyncIterator[bytes]:
    """Yield an object as a member of a tar archive. Raises LfsFailed if the file's content isn't that object."""
    import tarfile  # few commits have such files

    header = tarfile.TarInfo(pointer.oid)
    header.size, header.mode = pointer.size, 0o644
    yield header.tobuf(tarfile.GNU_FORMAT)
    digest, left = hashlib.sha256(), pointer.size
    while left > 0 and (data := await asyncio.to_thread(file.read, min(_BLOCK, left))):
        left -= len(data)
        digest.update(data)
        yield data
    if left > 0 or digest.hexdigest() != pointer.oid:
        raise LfsFailed(f"The object {pointer.oid[:12]} of Git LFS was changed while it was sent.")
    yield bytes(-pointer.size % _TAR_BLOCK)
