"""Store of runtimes: complete trees of `gibil-runtime`, which all machines see.

<local folder>/runtimes/NAME-VERSION/    manifest.json (path → digest)  tree/
<local folder>/runtimes/.filling-NAME    locked by the process that is adding a version of it
<local folder>/runtimes/.failed-NAME-VERSION    written when that failed
<local folder>/runtimes-DIGEST/          links to the trees of all entries: the lowest layer of the machines' overlays

A tree comes from a machine that ran nothing but `gibil-runtime` (runtime_fill.py). Machines have it read-only below their own
disk, so nothing that runs on one can change it. An entry appears by renaming a complete one, and its digests are checked when
it is linked for machines; a damaged entry is deleted. The least recently requested entries are deleted above the size limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import stat
import tarfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from gibil_bot.providers.local.rmtree import remove_tree

MOST_BYTES = 4 * 1024**3
"""Size of all entries."""
ENTRY_BYTES = 2 * 1024**3
ENTRY_FILES = 100_000
ENTRY = re.compile(r"[a-z][a-z-]{0,31}-[0-9][0-9A-Za-z.-]{0,39}", re.ASCII)
FILLING = "runtime-"
"""Begins the names, and ends the owners, of machines that fill the store. They end if another machine needs their memory."""
RETRY_S = 3600.0
"""A runtime that couldn't be stored isn't tried again for this time."""
_NEWEST = 2**32 - 1
"""The latest time of a file, in seconds: what every file system can store."""
_UNSURE_S = 1.0
"""A folder that changed so recently may change again without another modification time."""


class InvalidTree(Exception):
    """An archive contains something that a runtime's tree can't contain."""


class Entry(NamedTuple):
    """A complete entry."""

    name: str
    digest: str
    """Of its manifest."""


class StoredRuntime(NamedTuple):
    """An entry for people."""

    name: str
    """`node-22.1.0`"""
    size_mb: int
    used_at: datetime
    """When a run last needed it."""


class SharedTrees(NamedTuple):
    """The stored runtimes that a machine has."""

    folder: str
    """Name of the folder in the local folder that is the lowest layer of its overlay; empty without any."""
    entries: frozenset[str]
    """Name and digest of each."""


NO_TREES = SharedTrees("", frozenset())


class RuntimeStore:
    """The entries in one folder. Several processes may use it. All methods block."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self.folder, self._most_bytes = folder, most_bytes

    def entries(self) -> tuple[Entry, ...]:
        """Return the entries by name; their trees aren't checked."""
        found = []
        for manifest in sorted(self.folder.glob("*/manifest.json")):
            if ENTRY.fullmatch(manifest.parent.name):
                try:
                    found.append(Entry(manifest.parent.name, hashlib.sha256(manifest.read_bytes()).hexdigest()))
                except OSError:
                    continue  # deleted meanwhile
        return tuple(found)

    def request(self, name: str, version: str) -> str | None:
        """Return the name of an entry that satisfies, as `gibil-runtime` understands it, and mark it as requested now."""
        for entry in self.entries():
            runtime, _, found = entry.name.rpartition("-")
            if runtime == name and (not version or f"{found}.".startswith(f"{version}.")):
                try:
                    os.utime(self.folder / entry.name)
                except OSError:
                    continue  # deleted meanwhile
                return entry.name
        return None

    def add(self, name: str, archive: IO[bytes]) -> None:
        """Add the tree in a tar file, whose only top folder is `name`. An entry of that name stays as it is.

        Raises InvalidTree, OSError.
        """
        if not ENTRY.fullmatch(name):
            raise InvalidTree(f"{name!r} is not the name of a runtime's tree")
        self.folder.mkdir(mode=0o711, exist_ok=True)
        draft = self.folder / f".{name}.{secrets.token_hex(4)}"
        try:
            (draft / "tree").mkdir(mode=0o755, parents=True)
            try:
                manifest = _extract(archive, name, draft / "tree")
            except tarfile.TarError as error:
                raise InvalidTree(f"the archive of {name} can't be read: {error}") from error
            (draft / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))
            try:
                draft.rename(self.folder / name)
            except OSError:
                if not (self.folder / name / "manifest.json").exists():
                    raise
        finally:
            if draft.exists():
                remove_tree(draft)
        self._make_space(name)

    def _make_space(self, newest: str) -> None:
        aged = sorted((self.folder / entry.name for entry in self.entries()), key=lambda folder: folder.stat().st_mtime)
        sizes = {folder: _size(folder) for folder in aged}
        for folder in aged:
            if sum(sizes.values()) <= self._most_bytes:
                return
            if folder.name != newest:
                self._remove(folder.name)
                del sizes[folder]

    def _remove(self, name: str) -> None:
        gone = self.folder / f".{name}.{secrets.token_hex(4)}"
        (self.folder / name).rename(gone)
        remove_tree(gone)

    def usages(self) -> list[StoredRuntime]:
        """Return the entries, the last used first."""
        found = []
        for entry in self.entries():
            folder = self.folder / entry.name
            with contextlib.suppress(OSError):  # deleted meanwhile
                used_at = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
                found.append(StoredRuntime(entry.name, _size(folder) // 1024**2, used_at))
        return sorted(found, key=lambda each: each.used_at, reverse=True)

    def clear(self) -> list[StoredRuntime]:
        """Delete all entries; return them. Machines that exist keep what they have."""
        gone = self.usages()
        for each in gone:
            self._remove(each.name)
        return gone

    @contextlib.contextmanager
    def filling(self, name: str) -> Iterator[bool]:
        """Lock a runtime, in all its versions, while one is added; yields False if another process has locked it.

        The kernel unlocks what a killed process has locked. What such a process left is deleted by the next one.
        """
        self.folder.mkdir(mode=0o711, exist_ok=True)
        lock = os.open(self.folder / f".filling-{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            for draft in self.folder.glob(f".{name}-[0-9]*"):
                remove_tree(draft)
            yield True
        finally:
            os.close(lock)

    def has_failed(self, name: str, version: str) -> bool:
        """Return whether adding it has failed within the last hour."""
        try:
            return time.time() - self._failure(name, version).stat().st_mtime < RETRY_S
        except OSError:
            return False

    def note_failure(self, name: str, version: str) -> None:
        """Remember that it couldn't be added, and forget what is too old to matter."""
        with contextlib.suppress(OSError):
            for old in self.folder.glob(".failed-*"):
                if time.time() - old.stat().st_mtime >= RETRY_S:
                    old.unlink(missing_ok=True)
            self._failure(name, version).touch()

    def _failure(self, name: str, version: str) -> Path:
        return self.folder / f".failed-{name}-{version}"

    def populate(self, target: Path, entries: tuple[Entry, ...], verified: frozenset[Entry] = frozenset()) -> list[Entry]:
        """Link the trees of intact entries into `target`, and delete the others; return those that were linked.

        `verified`: entries whose digests have been checked.
        """
        linked = []
        for entry in entries:
            source, copy = self.folder / entry.name, target / entry.name
            try:
                manifest = (source / "manifest.json").read_bytes()
                if hashlib.sha256(manifest).hexdigest() != entry.digest:
                    continue  # replaced meanwhile
                _link(source / "tree", json.loads(manifest), copy, verify=entry not in verified)
                linked.append(entry)
            except (OSError, InvalidTree, ValueError):
                if copy.exists():
                    remove_tree(copy)
                if source.exists():
                    self._remove(entry.name)
        return linked


class RuntimeTrees:
    """The trees of a store as machines see them: a folder of links next to the store, replaced when the entries change."""

    def __init__(self, store: RuntimeStore) -> None:
        self._store = store
        self._linked: frozenset[Entry] = frozenset()
        self._trees: SharedTrees | None = None
        self._seen = 0

    def unchanged(self) -> SharedTrees | None:
        """Return the trees, or None if `link` has to be called because the store may have changed. Doesn't block."""
        return self._trees if self._trees is not None and self._modified() == self._seen else None

    def _modified(self) -> int:
        """Return when the store's folder last changed, 0 if there is none, or -1 if it may change without another time."""
        try:
            modified = os.stat(self._store.folder).st_mtime_ns
        except OSError:
            return 0
        return modified if time.time_ns() - modified > _UNSURE_S * 1e9 else -1

    def link(self) -> SharedTrees:
        """Link all intact entries; takes a second for each GB that is new. Blocking, once at a time. Raises OSError."""
        self._seen = self._modified()
        if self._seen == -1:
            self._seen = -2  # no later time is the same
        entries = self._store.entries()
        trees = self._folder_of(entries)
        if trees.folder and not (self._store.folder.parent / trees.folder).is_dir():
            draft = self._store.folder.parent / f".{trees.folder}.{os.getpid()}"
            remove_tree(draft)
            (draft / "opt/gibil").mkdir(parents=True)
            entries = tuple(self._store.populate(draft / "opt/gibil", entries, self._linked))
            trees = self._folder_of(entries)
            try:
                if trees.folder:
                    draft.rename(self._store.folder.parent / trees.folder)
            except OSError:
                if not (self._store.folder.parent / trees.folder).is_dir():
                    raise
            finally:
                if draft.exists():
                    remove_tree(draft)
        self._linked, self._trees = frozenset(entries), trees
        return trees

    @staticmethod
    def _folder_of(entries: tuple[Entry, ...]) -> SharedTrees:
        names = frozenset(f"{entry.name} {entry.digest}" for entry in entries)
        if not names:
            return NO_TREES
        return SharedTrees(f"runtimes-{hashlib.sha256(repr(sorted(names)).encode()).hexdigest()[:12]}", names)


def _extract(archive: IO[bytes], name: str, target: Path) -> dict[str, str]:
    """Extract below `target` what is below `name` in the archive; return path → kind, mode and digest.

    The archive is untrusted. A parent of each member has to be a folder that this extraction created, so no member is written
    through a link.
    """
    manifest: dict[str, str] = {}
    folders, size = {name}, 0
    with tarfile.open(fileobj=archive, mode="r|") as members:
        for member in members:
            path = PurePosixPath(member.name)
            size += member.size
            if len(manifest) > ENTRY_FILES or size > ENTRY_BYTES:
                raise InvalidTree(f"the tree of {name} is too large")
            if path.is_absolute() or ".." in path.parts or path.parts[:1] != (name,):
                raise InvalidTree(f"the tree of {name} has a member outside of it: {member.name!r}")
            if len(path.parts) == 1:
                if not member.isdir():
                    raise InvalidTree(f"the tree of {name} is not a folder")
                continue
            if str(path.parent) not in folders or str(path) in folders or (inside := "/".join(path.parts[1:])) in manifest:
                raise InvalidTree(f"the tree of {name} has an invalid member: {member.name!r}")
            file = target / inside
            if member.isdir():
                file.mkdir(mode=0o755)
                folders.add(str(path))
                manifest[inside] = "folder"
            elif member.issym():
                _check_link(name, path, member.linkname)
                file.symlink_to(member.linkname)
                manifest[inside] = f"link {member.linkname}"
            elif member.isreg() and (content := members.extractfile(member)) is not None:
                mode = 0o755 if member.mode & 0o100 else 0o644
                digest = hashlib.sha256()
                with open(file, "xb") as output:
                    while data := content.read(1024 * 1024):
                        digest.update(data)
                        output.write(data)
                file.chmod(mode)
                # Python's compiled code is valid for a source of this time.
                modified = int(member.mtime) if 0 <= member.mtime <= _NEWEST else 0
                os.utime(file, (modified, modified))
                manifest[inside] = f"{mode:o} {digest.hexdigest()}"
            else:
                raise InvalidTree(f"the tree of {name} has a member that is no file, folder or symbolic link: {member.name!r}")
    if ".gibil" not in manifest:
        raise InvalidTree(f"the tree of {name} is incomplete")
    return manifest


def _check_link(name: str, path: PurePosixPath, to: str) -> None:
    depth = len(path.parent.parts) - 1
    for part in PurePosixPath(to).parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or part == "/":
            raise InvalidTree(f"the tree of {name} has a link that leads out of it: {str(path)!r}")


def _link(source: Path, manifest: dict[str, str], copy: Path, *, verify: bool = True) -> None:
    """Hard-link the tree to `copy`. Raises InvalidTree if it differs from the manifest; `verify`: in content, too."""
    copy.mkdir(mode=0o755)
    for inside, expected in manifest.items():
        file = source / inside
        if expected == "folder":
            (copy / inside).mkdir(mode=0o755)
        elif expected.startswith("link "):
            os.symlink(expected[5:], copy / inside)
        else:
            status = file.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise InvalidTree(f"{file} is not a file")
            digest = expected.partition(" ")[2]
            if verify:
                with file.open("rb") as content:
                    digest = hashlib.file_digest(content, "sha256").hexdigest()
            if f"{stat.S_IMODE(status.st_mode):o} {digest}" != expected:
                raise InvalidTree(f"{file} is damaged")
            os.link(file, copy / inside, follow_symlinks=False)


def _size(folder: Path) -> int:
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))
