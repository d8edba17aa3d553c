"""Reads objects that came from a machine, with bounded memory, time and output.

A few kilobytes of a pack can describe gigabytes: trees that contain themselves many times, deltas, endless names. Every git
here has limits (git.FOREIGN), and each list has a maximum number of records and of bytes.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gibil_bot import git
from gibil_bot.errors import GibilError
from gibil_bot.git import FOREIGN, GitError, Limits, TooExpensive
from gibil_bot.scripts import commits as scripts

INCOMING = "refs/gibil/incoming"
"""The unpacked head, in our repository."""
OUTGOING = scripts.OUTGOING
"""The head in a bundle, whatever its name was on the machine."""
MOST_NAME_BYTES = 8 * 1024 * 1024
"""Limit for all paths, and for all messages of commits."""
MOST_READ_BYTES = 8 * 1024 * 1024
"""How many bytes of files are read at once."""
PATH_BYTES = 4096
"""Maximum length of a symbolic link's target (PATH_MAX)."""

SUBMODULE = "160000"
SYMLINK = "120000"
FOLDER = "040000"

_DIFFERENCE = Limits(memory_bytes=96 * 1024**2)
"""Enough for about 200,000 paths."""
_CHECK_S = 300.0
_MOST_TREE_BYTES = 256 * 1024 * 1024
"""Limit for all paths of one commit: some projects have a million files."""
_MOST_LINKS = 10_000
"""Of one commit."""
_MISSING = "0" * 40
_MOST_HEADER_BYTES = 1024 * 1024
"""Limit for the header of a bundle."""
_FSCK = re.compile(r"^error: object ([0-9a-f]{40}): (\w+): ", re.MULTILINE)


def environment() -> dict[str, str | None]:
    """Return additions for reads of foreign objects: without the caller's configuration, which could relax git's checks
    (`fetch.fsck.hasDotgit`) or change its output (`format.*`); nothing is fetched.
    """
    return {**git.anonymous_environment(), **git.NO_FETCH, "GIT_ALLOW_PROTOCOL": "file"}


class TooMany(GibilError):
    """A list of objects is longer than its limit."""

    code = "TOO_LARGE"


class Malformed(GitError):
    """git found an object that isn't valid. `rule`: the id of its message, such as `hasDotgit`."""

    def __init__(self, error: GitError, rule: str) -> None:
        super().__init__(error.message, stderr=error.stderr)
        self.rule = rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    sha: str
    tree: str
    parents: tuple[str, ...]
    message: str
    """Complete, without trailing blank lines. Bytes that aren't UTF-8 are replaced."""

    @property
    def subject(self) -> str:
        """The first line."""
        return self.message.partition("\n")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A difference between two trees at one path. A moved file is two changes. Modes as in git: `100644`; None: no file."""

    path: str
    """Bytes that aren't UTF-8 are surrogates."""
    old_mode: str | None
    old: str | None
    """The object before."""
    mode: str | None
    new: str | None
    """The object after."""


async def unpack(repository: Path, bundle: Path, *, base: str, head: str, name: str) -> None:
    """Unpack a machine's bundle; INCOMING is then `head`. git checks every object, and that none is missing.

    Raises Malformed, GitError; also if the bundle doesn't contain `head`. `git fetch` isn't used, because it checks the objects
    of bundles only since 2.47 (transport: pass fsck options to unbundle), and reads the other refs.
    """
    opened, offset = await asyncio.to_thread(_open_pack, bundle, head, name)
    try:
        await asyncio.to_thread(os.lseek, opened, offset, os.SEEK_SET)
        await git.run(
            "index-pack", "--stdin", "--fix-thin", "--strict", git_dir=repository, limits=FOREIGN, within_s=_CHECK_S,
            extra=environment(), stdin=opened,
        )  # fmt: skip
    except TooExpensive:
        raise
    except GitError as error:
        if found := _FSCK.search(error.stderr):
            raise Malformed(error, found[2]) from error
        raise
    finally:
        os.close(opened)
    # Rejects a head that isn't a commit, and missing objects that index-pack has no link to.
    await git.run(
        "rev-list", "--objects", "--quiet", f"{head}^{{commit}}", f"^{base}", git_dir=repository, limits=FOREIGN,
        within_s=_CHECK_S, extra=environment(),
    )  # fmt: skip
    await git.run("update-ref", INCOMING, head, git_dir=repository, limits=FOREIGN, extra=environment())


def _open_pack(bundle: Path, head: str, name: str) -> tuple[int, int]:
    """Open a bundle that contains `head` as OUTGOING; return its descriptor and where its pack begins. Raises GitError.

    https://git-scm.com/docs/gitformat-bundle
    """
    opened = os.open(bundle, os.O_RDONLY | os.O_CLOEXEC)
    header = os.read(opened, _MOST_HEADER_BYTES)
    end = header.find(b"\n\n")
    if end < 0 or not header.startswith(b"# v2 git bundle\n"):
        os.close(opened)
        raise GitError(f"what {name} sent isn't a git bundle")
    if f"{head} {OUTGOING}".encode() not in header[:end].split(b"\n"):
        os.close(opened)
        raise GitError(f"the bundle from {name} doesn't contain its HEAD, perhaps because of a concurrent commit; try again")
    return opened, end + 2


async def commits(repository: Path, head: str, base: str, *, most: int, too_many: str) -> tuple[Commit, ...]:
    """Return the commits of `head` that `base` doesn't have, parents first. Raises TooMany, GitError."""
    found = await records(
        repository, "rev-list", "--topo-order", f"--max-count={most + 1}", "--encoding=UTF-8",
        "--format=%H %T %P%n%B%x00", head, f"^{base}",
        most=most, limits=FOREIGN, what="the commits' messages are", too_many=too_many,
    )  # fmt: skip
    parsed = []
    for record in reversed(found):
        # `commit SHA`, then the format
        names, _, message = record.lstrip("\n").partition("\n")[2].partition("\n")
        sha, tree, *parents = names.split(" ")
        text = message.rstrip("\n").encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        parsed.append(Commit(sha=sha, tree=tree, parents=tuple(parent for parent in parents if parent), message=text))
    return tuple(parsed)


async def changes(
    repository: Path, pairs: Sequence[tuple[str, str]], *, most: int, too_many: str
) -> dict[tuple[str, str], tuple[Change, ...]]:
    """Return how the second commit of each pair differs from the first, folders included. Raises TooMany, GitError.

    The first is empty for a commit without parents. No two pairs have the same second commit.
    """
    given = "".join(f"{after} {before}".rstrip() + "\n" for before, after in pairs)
    try:
        found = await records(
            repository, "diff-tree", "--stdin", "--root", "-r", "-t", "-z", "--raw", "--no-abbrev", "--no-renames",
            "--no-ext-diff", "--no-textconv", "--ignore-submodules=none",
            most=3 * most + len(pairs), limits=_DIFFERENCE, what="the paths that the commits change are", too_many=too_many,
            stdin=given.encode(),
        )  # fmt: skip
    except TooExpensive as error:  # git collects all paths before it prints the first
        raise TooMany(too_many) from error
    by_commit: dict[str, list[Change]] = {after: [] for _, after in pairs}
    for sha, (old_mode, mode, old, new, _), path in _differences(found):
        by_commit[sha].append(
            Change(
                path=path,
                old_mode=None if old == _MISSING else old_mode,
                old=None if old == _MISSING else old,
                mode=None if new == _MISSING else mode,
                new=None if new == _MISSING else new,
            )
        )
    if sum(change.mode != FOLDER and change.old_mode != FOLDER for each in by_commit.values() for change in each) > most:
        raise TooMany(too_many)
    return {pair: tuple(by_commit[pair[1]]) for pair in pairs}


def _differences(found: Iterable[str]) -> Iterator[tuple[str, list[str], str]]:
    """Yield the commit, the words and the path of each difference that `diff-tree --stdin -z --raw` prints."""
    sha, fields = "", iter(found)
    for field in fields:
        if field.startswith(":"):
            yield sha, field.lstrip(":").split(" "), next(fields)
        else:
            sha = field


async def changes_of_merges(
    repository: Path, commits: Sequence[str], *, most: int, too_many: str
) -> dict[str, tuple[Change, ...]]:
    """Return the files of each merge that differ from those of all its parents, as if they were new.

    Raises TooMany, GitError.
    """
    if not commits:
        return {}
    found = await records(
        repository, "diff-tree", "--stdin", "-c", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", "--no-ext-diff",
        "--no-textconv",
        most=2 * most + len(commits), limits=_DIFFERENCE, what="the paths that the merges change are", too_many=too_many,
        stdin="".join(f"{each}\n" for each in commits).encode(),
    )  # fmt: skip
    by_commit: dict[str, list[Change]] = {each: [] for each in commits}
    for sha, words, path in _differences(found):
        # the modes and then the objects of the parents and the merge, the status
        mode, new = words[len(words) // 2 - 1], words[-2]
        if new != _MISSING:
            by_commit[sha].append(Change(path=path, old_mode=None, old=None, mode=mode, new=new))
    return {sha: tuple(each) for sha, each in by_commit.items()}


async def not_on_branches(repository: Path, head: str, base: str) -> frozenset[str]:
    """Return the commits of `head` that neither `base` nor a branch or tag of the repository has. Raises GitError."""
    listed = await git.text(
        "rev-list", head, f"^{base}", "--not", "--branches", "--tags", git_dir=repository, limits=FOREIGN, within_s=_CHECK_S,
        extra=environment(),
    )  # fmt: skip
    return frozenset(listed.split())


async def sizes(repository: Path, objects: Sequence[str]) -> dict[str, int]:
    """Return the size of each object that the repository has, in bytes. Raises GitError."""
    if not objects:
        return {}
    answer = await git.text(
        "cat-file", "--batch-check=%(objectname) %(objectsize)", git_dir=repository, limits=FOREIGN, within_s=_CHECK_S,
        stdin="".join(f"{each}\n" for each in objects).encode(), extra=environment(),
    )  # fmt: skip
    lines = (line.split(" ", 1) for line in answer.split("\n"))
    return {sha: int(size) for sha, size in lines if size.isdigit()}


async def contents(repository: Path, given: Sequence[tuple[str, int]]) -> AsyncIterator[tuple[str, bytes]]:
    """Yield the content of each object (name, size), in order. Raises GitError.

    At most MOST_READ_BYTES are held at once, and one object.
    """
    group: list[tuple[str, int]] = []
    total = 0
    for each in given:
        if group and total + each[1] > MOST_READ_BYTES:
            for pair in await _read(repository, group):
                yield pair
            group, total = [], 0
        group.append(each)
        total += each[1]
    if group:
        for pair in await _read(repository, group):
            yield pair


async def _read(repository: Path, group: Sequence[tuple[str, int]]) -> list[tuple[str, bytes]]:
    data = await git.run(
        "cat-file", "--batch=", git_dir=repository, limits=FOREIGN, within_s=_CHECK_S, extra=environment(),
        stdin="".join(f"{sha}\n" for sha, _ in group).encode(), most_bytes=sum(size + 2 for _, size in group),
    )  # fmt: skip
    found = []
    position = 0
    for sha, size in group:
        # an empty header line, the content, a line feed
        found.append((sha, data[position + 1 : position + 1 + size]))
        position += size + 2
    return found


async def links(repository: Path, commit: str) -> dict[str, str]:
    """Return the symbolic links of a commit whose targets are in its tree: paths from the root → those of the targets.

    A target may not exist. Raises TooMany, GitError.
    """
    found: dict[str, str] = {}
    size = 0
    rest = b""

    def collect(data: bytes) -> None:
        nonlocal size, rest
        size += len(data)
        if size > _MOST_TREE_BYTES:
            raise TooMany(f"the paths of {commit[:7]} are longer than {_MOST_TREE_BYTES // 1024**2} MiB")
        *whole, rest = (rest + data).split(b"\0")
        for record in whole:
            if record.startswith(b"120000 "):
                attributes, _, path = record.partition(b"\t")
                found[path.decode("utf-8", "surrogateescape")] = attributes.split(b" ")[2].decode()
        if len(found) > _MOST_LINKS:
            raise TooMany(f"{commit[:7]} has more than {_MOST_LINKS:,} symbolic links")

    await git.feed(
        collect, "ls-tree", "-r", "-z", commit, git_dir=repository, limits=FOREIGN, within_s=_CHECK_S, extra=environment()
    )
    known = {sha: size for sha, size in (await sizes(repository, sorted(set(found.values())))).items() if size <= PATH_BYTES}
    targets = {sha: data.decode("utf-8", "surrogateescape") async for sha, data in contents(repository, list(known.items()))}
    resolved = {path: _resolved(path, targets[sha]) for path, sha in found.items() if sha in targets}
    return {path: target for path, target in resolved.items() if target is not None}


def _resolved(link: str, target: str) -> str | None:
    """Return the path from the root that a link means; None if it is out of the tree."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(link), target))
    return None if path.startswith(("/", "../")) or path in (".", "..") else path


def names_in_tree(data: bytes) -> list[str]:
    """Return the names in a tree object. https://git-scm.com/book/en/v2/Git-Internals-Git-Objects#_tree_objects"""
    names = []
    position = 0
    while position < len(data):
        end = data.index(b"\0", position)
        names.append(data[position:end].partition(b" ")[2].decode("utf-8", "surrogateescape"))
        position = end + 21
    return names


async def records(
    repository: Path, *arguments: str, most: int, limits: Limits, what: str, too_many: str, stdin: bytes = b""
) -> list[str]:
    """Return git's output as records that end with a NUL byte.

    Raises TooMany above `most` records (`too_many`) and above MOST_NAME_BYTES (`what` … longer), GitError.
    """
    found: list[bytes] = []
    size = 0
    rest = b""

    def collect(data: bytes) -> None:
        nonlocal size, rest
        size += len(data)
        if size > MOST_NAME_BYTES:
            raise TooMany(f"{what} longer than {MOST_NAME_BYTES // 1024**2} MiB: push them from another clone")
        *whole, rest = (rest + data).split(b"\0")
        found.extend(whole)
        if len(found) > most:
            raise TooMany(too_many)

    await git.feed(collect, *arguments, git_dir=repository, limits=limits, within_s=_CHECK_S, stdin=stdin, extra=environment())
    return [record.decode("utf-8", "surrogateescape") for record in found]
