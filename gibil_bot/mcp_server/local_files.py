"""Files on the user's computer that tools may read and write: those below one folder, with limits.

An agent chooses the paths, and a machine chooses the content of what is downloaded, so neither may reach the user's keys or
code that the user's tools run by themselves.
"""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

from gibil_bot.commits.paths import PROTECTED, is_git_folder, is_protected
from gibil_bot.errors import UsageError
from gibil_bot.machines.tools.unpack import Omit

_OBEYED = (
    "**/.vscode/**", "**/.idea/**", "**/.envrc", "**/.husky/**", "**/.gitattributes", "**/.gitmodules", "**/.lfsconfig",
)  # fmt: skip
"""Files from which editors, shells and git run programs, in addition to those that commits can't change."""
_NAMES = tuple(each for each in (*PROTECTED, *_OBEYED) if each.startswith("**/") and "/" not in each[3:].removesuffix("/**"))
"""Those that concern one name in any directory, and what is below it."""
_PATHS = tuple(each for each in (*PROTECTED, *_OBEYED) if each not in _NAMES)
_BARE = frozenset(("head", "objects", "refs"))
"""A directory with these entries is a repository for git, whose config it obeys."""


class LocalFiles:
    """`root`: the folder that relative paths start from, and that no path may leave. `without`: a folder that is excluded."""

    def __init__(self, root: Path, without: Path) -> None:
        self._root = root.resolve()
        self._without = without.expanduser().resolve()
        home = Path.home().resolve()
        self._hides = self._root in (home, *home.parents)

    def open(self, path: str) -> tuple[Path, int]:
        """Return the path of a regular file or a directory, and a descriptor for reading it. Raises UsageError."""
        file = self._checked(path)
        try:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise UsageError(f"there is no file {path!r} below {self._root}", code="LOCAL_FILE_NOT_FOUND") from None
        except OSError as error:
            raise UsageError(f"{path!r} can't be read: {error.strerror}", code="LOCAL_FILE") from None
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            os.close(descriptor)
            raise UsageError(f"{path!r} is neither a regular file nor a directory", code="LOCAL_FILE")
        return file, descriptor

    def unreadable(self, directory: Path) -> Omit:
        """Return the check for what a copy of a directory leaves out: entries that `open` rejects, too."""

        def reason(names: tuple[str, ...]) -> str | None:
            if directory.joinpath(*names) == self._without:
                return "it is gibil's data directory, which contains keys"
            return "it is hidden" if self._hides and names[-1].startswith(".") else None

        return reason

    def writable(self, path: str, *, overwrite: bool) -> Path:
        """Return where a file or a new directory may be written. Raises UsageError, also if a file may not be replaced."""
        try:
            return self._writable(path, overwrite)
        except OSError as error:  # such as a name that is too long
            raise UsageError(f"{path!r} can't be written: {error.strerror}", code="LOCAL_FILE") from None

    def _writable(self, path: str, overwrite: bool) -> Path:
        file = self._checked(path)
        if reason := _obeyed(file.relative_to(self._root).as_posix()):
            raise UsageError(f"{path!r} {reason}", code="LOCAL_FILE")
        if not file.parent.is_dir():
            raise UsageError(f"{path!r}: its directory doesn't exist on the user's computer", code="LOCAL_FILE")
        if file.is_symlink() or (file.exists() and not file.is_file() and not file.is_dir()):
            raise UsageError(f"{path!r} exists and is not a regular file", code="LOCAL_FILE")
        if file.is_dir():
            raise UsageError(f"{path!r} is a directory: choose a name that doesn't exist in it", code="LOCAL_FILE_EXISTS")
        if file.exists() and not overwrite:
            raise UsageError(f"{path!r} exists; pass overwrite=true to replace it", code="LOCAL_FILE_EXISTS")
        return file

    def unwritable(self, directory: Path) -> Omit:
        """Return the check for entries of a downloaded directory: those that `writable` rejects, and repositories.

        It is for one directory, since it remembers names.
        """
        within = directory.relative_to(self._root).parts
        bare: dict[tuple[str, ...], set[str]] = {}

        def reason(names: tuple[str, ...]) -> str | None:
            if obeyed := _obeyed("/".join((*within, *names))):
                return f"it {obeyed}"
            if self._hides and any(name.startswith(".") for name in names):
                return "it is hidden"
            name = names[-1].casefold()
            if name in _BARE:
                found = bare.setdefault(tuple(each.casefold() for each in names[:-1]), set())
                if found | {name} == _BARE:
                    return "git would take its directory for a repository, and obey it"
                found.add(name)
            return None

        return reason

    def _checked(self, path: str) -> Path:
        if not path or "\0" in path:
            raise UsageError(f"{path!r} is not a path", code="LOCAL_FILE")
        try:
            joined = self._root / Path(path).expanduser()
            file = joined.parent.resolve() / joined.name  # the last part must not be a link
        except (OSError, RuntimeError) as error:
            raise UsageError(f"{path!r} can't be resolved: {error}", code="LOCAL_FILE") from None
        if file.name in ("", ".", "..") or not file.is_relative_to(self._root):
            raise UsageError(
                f"{path!r} is outside {self._root}, the directory in which gibil mcp was started", code="LOCAL_FILE"
            )
        if file.is_relative_to(self._without) or (self._without.is_relative_to(file) and not file.exists()):
            raise UsageError(f"{path!r} is inside gibil's data directory, which contains keys", code="LOCAL_FILE")
        if self._hides and any(part.startswith(".") for part in file.relative_to(self._root).parts):
            raise UsageError(
                f"{path!r} is hidden; hidden files are available only if gibil mcp was started in a project's directory",
                code="LOCAL_FILE",
            )
        return file


def _obeyed(path: str) -> str | None:
    """Return why a machine may not write the file with this path from the root, None if it may."""
    if is_git_folder(path):
        return "is inside .git, whose files git executes or obeys"
    if is_protected(path, _PATHS) or any(map(_is_protected_name, path.split("/"))):
        return "has instructions or settings that agents and tools obey, which a machine may not write"
    return None


@functools.lru_cache(maxsize=4096)
def _is_protected_name(name: str) -> bool:
    """Cached because the names of directories are checked with each of their entries."""
    return is_protected(name, _NAMES)
