"""Store of runtimes: complete trees of `gibil-runtime`, which the base tree of machines contains.

<local folder>/runtimes/NAME-VERSION/    manifest.json (path → digest)  tree/

A tree comes from a machine that ran nothing but `gibil-runtime` (runtime_fill.py). Machines see it through the base tree, the
lowest layer of their overlay, so nothing that runs on one can change it. An entry appears by renaming a complete one, and its
digests are checked whenever a base tree is built; a damaged entry is deleted. The least recently requested entries are deleted
above the size limit.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from gibil_bot.providers.local.rmtree import remove_tree

MOST_BYTES = 4 * 1024**3
"""Size of all entries."""
ENTRY_BYTES = 2 * 1024**3
ENTRY_FILES = 100_000
ENTRY = re.compile(r"[a-z][a-z-]{0,31}-[0-9][0-9A-Za-z.-]{0,39}", re.ASCII)


class InvalidTree(Exception):
    """An archive contains something that a runtime's tree can't contain."""


class Entry(NamedTuple):
    """A complete entry."""

    name: str
    digest: str
    """Of its manifest."""


class RuntimeStore:
    """The entries in one folder. Several processes may use it. All methods block."""

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_bytes = folder, most_bytes

    def entries(self) -> tuple[Entry, ...]:
        """Return the entries by name; their trees aren't checked."""
        found = []
        for manifest in sorted(self._folder.glob("*/manifest.json")):
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
                    os.utime(self._folder / entry.name)
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
        self._folder.mkdir(mode=0o711, exist_ok=True)
        draft = self._folder / f".{name}.{secrets.token_hex(4)}"
        try:
            (draft / "tree").mkdir(mode=0o755, parents=True)
            try:
                manifest = _extract(archive, name, draft / "tree")
            except tarfile.TarError as error:
                raise InvalidTree(f"the archive of {name} can't be read: {error}") from error
            (draft / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))
            try:
                draft.rename(self._folder / name)
            except OSError:
                if not (self._folder / name / "manifest.json").exists():
                    raise
        finally:
            if draft.exists():
                remove_tree(draft)
        self._make_space(name)

    def _make_space(self, newest: str) -> None:
        aged = sorted((self._folder / entry.name for entry in self.entries()), key=lambda folder: folder.stat().st_mtime)
        sizes = {folder: _size(folder) for folder in aged}
        for folder in aged:
            if sum(sizes.values()) <= self._most_bytes:
                return
            if folder.name != newest:
                self._remove(folder.name)
                del sizes[folder]

    def _remove(self, name: str) -> None:
        gone = self._folder / f".{name}.{secrets.token_hex(4)}"
        (self._folder / name).rename(gone)
        remove_tree(gone)

    def populate(self, target: Path, entries: tuple[Entry, ...]) -> None:
        """Link the trees of intact entries into `target`, and delete the others."""
        for entry in entries:
            source, copy = self._folder / entry.name, target / entry.name
            try:
                manifest = (source / "manifest.json").read_bytes()
                if hashlib.sha256(manifest).hexdigest() != entry.digest:
                    continue  # replaced meanwhile
                _link(source / "tree", json.loads(manifest), copy)
            except (OSError, InvalidTree, ValueError):
                if copy.exists():
                    remove_tree(copy)
                if source.exists():
                    self._remove(entry.name)


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


def _link(source: Path, manifest: dict[str, str], copy: Path) -> None:
    """Hard-link the tree to `copy`. Raises InvalidTree if it differs from the manifest."""
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
            with file.open("rb") as content:
                found = f"{stat.S_IMODE(status.st_mode):o} {hashlib.file_digest(content, 'sha256').hexdigest()}"
            if found != expected:
                raise InvalidTree(f"{file} is damaged")
            os.link(file, copy / inside, follow_symlinks=False)


def _size(folder: Path) -> int:
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*"))
