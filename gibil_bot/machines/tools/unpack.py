"""Unpacks a tar archive that a machine sends into a local directory. The machine is untrusted, so every entry is checked.

No entry is written outside the directory: directories are opened one by one without following links, and a link is only created
if its target is within the directory. Files replace what has their name, links included, only when they are complete. Nothing
is created but directories, regular files and links, with the nine permission bits. Memory is bounded, whatever the archive has.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

from gibil_bot.commits.paths import is_git_folder
from gibil_bot.errors import GibilError
from gibil_bot.machines.tools.copy_report import CopyReport
from gibil_bot.machines.tools.local_targets import OUR_ERRORS
from gibil_bot.ssh.answers import printable

_BLOCK = 256 * 1024
_HEADER_BYTES = 64 * 1024
"""The largest extended header (a path or a link's target). tarfile reads one whole into memory."""
_PATH_BYTES = 4096
_NAME_BYTES = 255
_PERMISSIONS = 0o777
_LATEST = 2**40
"""Larger times are rejected by some file systems."""
_EXTENDED = frozenset(
    (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
)
Omit = Callable[[tuple[str, ...]], str | None]
"""Returns the reason why the entry with these names (directories, then its own) isn't copied; None: it is."""


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class BadArchive(GibilError):
    """The machine's answer isn't an archive, or has no end."""

    code = "ARCHIVE"


class _Skipped(Exception):
    """An entry that isn't created, with the reason."""


class _BoundedInfo(tarfile.TarInfo):
    """An entry whose extended headers are bounded.

    GNU tar sends no header for all entries, and no sparse file, unless it's asked to: tarfile would collect them in memory.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in _EXTENDED and self.size > _HEADER_BYTES:
            raise tarfile.ReadError(f"an entry's header has more than {_HEADER_BYTES // 1024} KiB")
        if self.type == tarfile.XGLTYPE:
            raise tarfile.ReadError("a header concerns all entries")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found

    def _no_sparse(self, *arguments: object) -> NoReturn:
        raise tarfile.ReadError("an entry is a sparse file")

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _no_sparse


def unpack(stream: Readable, folder: str, report: CopyReport, omit: Omit | None = None) -> None:
    """Unpack a stream into an existing directory, overwriting files. Reads the stream to the archive's end.

    Raises BadArchive, UsageError above the report's limits, and OSError with the path if the disk is full or read-only.
    """
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _Unpacking(root, folder, report, omit or (lambda parts: None)).run(stream)
    finally:
        os.close(root)


class _Unpacking:
    def __init__(self, root: int, folder: str, report: CopyReport, omit: Omit) -> None:
        self._root = root
        self._folder = folder
        self._report = report
        self._omit = omit
        self._parent: tuple[tuple[str, ...], int] = ((), root)
        """The directory that was opened last; entries of a directory usually follow each other."""
        self._repositories: set[tuple[str, ...]] = set()
        """The .git of repositories that didn't exist here before."""
        self._omitted: tuple[str, ...] = ()
        self._created: list[tuple[tuple[str, ...], int, float]] = []
        """The directories above the last entry that were created here, with the permissions and times that they get when all
        their entries have been created."""

    def run(self, stream: Readable) -> None:
        try:
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_BoundedInfo) as archive:  # type: ignore[call-overload]
                for entry in archive:
                    archive.members = []  # in order not to store every entry in memory
                    self._report.add_entry()
                    try:
                        self._create(archive, entry)
                    except _Skipped as skipped:
                        self._report.leave_out(entry.name, str(skipped))
                    except OSError as error:
                        if error.errno in OUR_ERRORS:
                            raise OSError(
                                error.errno, os.strerror(error.errno or 0), os.path.join(self._folder, entry.name)
                            ) from error
                        self._report.leave_out(entry.name, _reason(error))
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise BadArchive(f"the machine's archive can't be read: {printable(str(error))}") from error
        finally:
            self._finish(())
            self._forget()

    def _create(self, archive: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        parts = _parts(entry.name)
        if not parts:  # the directory itself
            return
        if self._omitted and parts[: len(self._omitted)] == self._omitted:  # reported with its directory
            return
        if reason := self._omit(parts):
            self._omitted = parts
            raise _Skipped(reason)
        self._finish(parts)
        self._check_repository(parts)
        parent = self._open(parts[:-1])
        name = parts[-1]
        if entry.isdir():
            self._make_directory(parent, parts, entry)
        elif entry.issparse():
            raise _Skipped("it is stored as a sparse file")
        elif entry.isreg():
            with self._replacing(parent, name) as temporary:
                self._write(archive, entry, parent, temporary)
            self._report.files += 1
        elif entry.issym():
            target = _checked_target(entry.linkname, len(parts) - 1)
            with self._replacing(parent, name) as temporary:
                os.symlink(target, temporary, dir_fd=parent)
            self._report.files += 1
        elif entry.islnk():
            self._link(parent, name, _parts(entry.linkname))
            self._report.files += 1
        else:
            raise _Skipped("it is neither a file, a directory nor a link")

    def _check_repository(self, parts: tuple[str, ...]) -> None:
        """Raise _Skipped for a file of a repository that exists here: git obeys its settings and runs its hooks."""
        length = next((number for number, name in enumerate(parts, 1) if is_git_folder(name)), 0)
        if not length or parts[:length] in self._repositories:
            return
        try:
            os.stat(parts[length - 1], dir_fd=self._open(parts[: length - 1]), follow_symlinks=False)
        except FileNotFoundError:
            self._repositories.add(parts[:length])
        else:
            raise _Skipped("it belongs to a git repository that exists here; use gibil push for its commits")

    def _make_directory(self, parent: int, parts: tuple[str, ...], entry: tarfile.TarInfo) -> None:
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(parts[-1], dir_fd=parent, follow_symlinks=False).st_mode):
                raise _Skipped("a file or a link with this name exists here") from None
            return
        self._created.append((parts, entry.mode & _PERMISSIONS, _time(entry)))

    def _write(self, archive: tarfile.TarFile, entry: tarfile.TarInfo, parent: int, name: str) -> None:
        content = archive.extractfile(entry)
        assert content is not None
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=parent)
        with open(descriptor, "wb", buffering=0) as file:
            left = entry.size
            while left > 0:
                block = content.read(min(_BLOCK, left))
                if not block:
                    raise tarfile.ReadError("it ends within a file")
                view = memoryview(block)
                while view:
                    view = view[file.write(view) :]
                left -= len(block)
                self._report.add_bytes(len(block))
            os.fchmod(descriptor, entry.mode & _PERMISSIONS)
            os.utime(descriptor, (_time(entry), _time(entry)))

    def _link(self, parent: int, name: str, source: tuple[str, ...]) -> None:
        if not source:
            raise _Skipped("it is a link to a directory")
        there = os.dup(parent)
        try:
            origin = self._open(source[:-1])
            if not stat.S_ISREG(os.stat(source[-1], dir_fd=origin, follow_symlinks=False).st_mode):
                raise _Skipped("it is a link to something other than a file")
            with self._replacing(there, name) as temporary:
                os.link(source[-1], temporary, src_dir_fd=origin, dst_dir_fd=there, follow_symlinks=False)
        finally:
            os.close(there)

    @contextlib.contextmanager
    def _replacing(self, parent: int, name: str) -> Iterator[str]:
        """Yield a temporary name in the directory; at the end, rename it to `name`."""
        temporary = f".gibil-{secrets.token_hex(8)}"
        try:
            yield temporary
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise

    def _open(self, parts: tuple[str, ...]) -> int:
        """Open a directory below the copied one, without following links. Raises _Skipped."""
        known, descriptor = self._parent
        if parts == known:
            return descriptor
        current = self._root
        try:
            for name in parts:
                try:
                    following = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
                except OSError as error:
                    if error.errno in OUR_ERRORS:
                        raise
                    raise _Skipped("its directory doesn't exist here, or is a link") from None
                finally:
                    if current != self._root:
                        os.close(current)
                        current = self._root
                current = following
        except BaseException:
            self._forget()
            raise
        self._forget()
        self._parent = (parts, current)
        return current

    def _forget(self) -> None:
        if self._parent[1] != self._root:
            os.close(self._parent[1])
        self._parent = ((), self._root)

    def _finish(self, parts: tuple[str, ...]) -> None:
        """Complete the created directories that this entry isn't in: GNU tar sends a directory's entries together."""
        while self._created and parts[: len(self._created[-1][0])] != self._created[-1][0]:
            directory, mode, time = self._created.pop()
            with contextlib.suppress(_Skipped, OSError):
                descriptor = self._open(directory)
                os.fchmod(descriptor, mode)
                os.utime(descriptor, (time, time))


def _parts(path: str) -> tuple[str, ...]:
    """Return the names of an entry's path, () for the directory itself. Raises _Skipped for a path that leaves it."""
    if path.startswith("/"):
        raise _Skipped("its path is absolute")
    if "\0" in path or len(os.fsencode(path)) > _PATH_BYTES:
        raise _Skipped("its path is too long, or contains a NUL byte")
    parts = tuple(name for name in path.split("/") if name not in ("", "."))
    if ".." in parts:
        raise _Skipped("its path contains '..'")
    if any(len(os.fsencode(name)) > _NAME_BYTES for name in parts):
        raise _Skipped("its name is too long")
    return parts


def _checked_target(target: str, depth: int) -> str:
    """Return the target of a link that is `depth` directories below the copied one. Raises _Skipped if it may lead outside.

    `..` is allowed at the beginning only: after a name that may be a link itself, its meaning depends on that link.
    """
    names = [name for name in target.split("/") if name not in ("", ".")]
    ups = next((number for number, name in enumerate(names) if name != ".."), len(names))
    if not target or "\0" in target or target.startswith("/") or ups > depth or ".." in names[ups:]:
        raise _Skipped("it is a link to something outside of the copied directory")
    return target


def _time(entry: tarfile.TarInfo) -> float:
    return min(max(0.0, float(entry.mtime)), _LATEST)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else printable(str(error))
