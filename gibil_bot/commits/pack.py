"""Packs commits of a repository on this host into an archive that is unpacked into another repository's `.git` folder.

Packs are copied with their indexes, so the receiver doesn't have to compute the name of every object, as it has to for a git
bundle.
"""

from __future__ import annotations

import asyncio
import contextlib
import tarfile
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from pathlib import Path

from gibil_bot import git
from gibil_bot.commits.local_repository import packed_refs

_BLOCK = 256 * 1024


@contextlib.asynccontextmanager
async def packed(
    repository: Path, sha: str, refs: Mapping[str, str], known: Iterable[str] = ()
) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """Yield a tar archive of all objects that the commit and the refs (ref → object) can reach, and of `packed-refs`.

    Objects that can be reached from one of `known` are left out, and `gibil-known` lists these ids; without those that the
    repository doesn't have. Raises GitError.
    """
    known = await _existing(repository, known)
    wanted = [sha, *refs.values(), *(f"^{each}" for each in known)]
    with tempfile.TemporaryDirectory(prefix="gibil-pack-") as scratch:
        revisions = "".join(f"{each}\n" for each in wanted).encode()
        await git.run(
            "pack-objects", "--quiet", "--revs", "--non-empty", "--delta-base-offset", f"{scratch}/pack",
            git_dir=repository, stdin=revisions,
        )  # fmt: skip
        more = {"packed-refs": packed_refs(refs)}
        if known:
            more["gibil-known"] = "".join(f"{each}\n" for each in known).encode()
        archive = _tar(Path(scratch), more)
        async with contextlib.aclosing(archive):
            yield archive


async def _existing(repository: Path, ids: Iterable[str]) -> list[str]:
    """Return those that are commits or tags of the repository."""
    names = "".join(f"{each}\n" for each in ids).encode()
    if not names:
        return []
    answer = await git.text(
        "cat-file", "--batch-check=%(objectname) %(objecttype)", git_dir=repository, stdin=names, extra=git.NO_FETCH
    )
    lines = [line.partition(" ") for line in answer.split("\n")]
    return [name for name, _, kind in lines if kind in ("commit", "tag")]


async def _tar(folder: Path, more: Mapping[str, bytes]) -> AsyncGenerator[bytes, None]:
    """Yield an archive of the packs in `folder`, and of `more` files."""
    files = await asyncio.to_thread(lambda: [(path, path.stat().st_size) for path in sorted(folder.iterdir())])
    for path, size in files:
        if path.suffix not in (".pack", ".idx"):
            continue
        yield _header(f"objects/pack/{path.name}", size, 0o444)
        with path.open("rb") as file:
            while data := await asyncio.to_thread(file.read, _BLOCK):
                yield data
        yield bytes(-size % tarfile.BLOCKSIZE)
    for name, content in more.items():
        yield _header(name, len(content), 0o644) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int, mode: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, mode
    return entry.tobuf(tarfile.GNU_FORMAT)
