"""Where a copy goes on this computer: names, temporary files and directories, errors."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator

from gibil_bot.errors import GibilError, UsageError

OUR_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE))
"""Errors that concern every further file, too."""


def name_of(source: str) -> str | None:
    """Return the name of a local file or directory; that of `.` and `..` is the directory's."""
    name = os.path.basename(source.rstrip("/"))
    return (os.path.basename(os.path.realpath(source)) if name in (".", "..") else name) or None


def target_of(destination: str, name: str, *, is_directory: bool, as_cp: bool) -> str:
    """Return where a copy goes, in an existing directory under `name`; see transfer.py. Raises UsageError, OSError."""
    target = destination
    if os.path.isdir(destination):
        if as_cp or not is_directory:
            target = os.path.join(destination, name)
    elif destination.endswith("/") and as_cp:
        raise UsageError(f"there is no directory {destination}", code="NOT_A_FOLDER")
    parent = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(parent):
        raise UsageError(f"there is no directory {parent}", code="NOT_A_FOLDER")
    if is_directory and os.path.lexists(target) and not os.path.isdir(target):
        raise UsageError(f"{target} is a file, and the source is a directory", code="NOT_A_FOLDER")
    if not is_directory and os.path.isdir(target):
        raise UsageError(f"{target} is a directory, and the source is a file", code="NOT_A_FILE")
    return target


class FileTarget:
    """An open file with a temporary name next to the target, which it becomes when it is complete."""

    def __init__(self, target: str, mode: int, *, devices: bool, overwrite: bool) -> None:
        """`mode`: for a new file. `devices`: an existing device or pipe is written directly. Raises UsageError, OSError."""
        self._target = os.path.realpath(target)
        self._overwrite = overwrite
        self._temporary: str | None = None
        if os.path.lexists(self._target):
            mode = os.stat(self._target).st_mode
            if not stat.S_ISREG(mode):
                if not devices:
                    raise UsageError(f"{self._target} is neither a regular file nor a directory", code="LOCAL_FILE")
                try:  # without O_NONBLOCK, it would wait for a reader
                    self.descriptor = os.open(self._target, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                except OSError as error:
                    if error.errno == errno.ENXIO:
                        raise UsageError(f"no process reads the pipe {self._target}", code="LOCAL_FILE") from None
                    raise
                os.set_blocking(self.descriptor, True)
                return
        self._mode = stat.S_IMODE(mode) & 0o777
        self._temporary = _temporary_name(self._target)
        self.descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def commit(self) -> None:
        """Raises UsageError (LOCAL_FILE_EXISTS), OSError."""
        if self._temporary is None:
            return
        os.fchmod(self.descriptor, self._mode)
        if self._overwrite:
            os.rename(self._temporary, self._target)
            return
        try:
            os.link(self._temporary, self._target)
        except FileExistsError:
            raise UsageError(f"{self._target} exists", code="LOCAL_FILE_EXISTS") from None

    def close(self) -> None:
        os.close(self.descriptor)
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary)


class NewDirectory:
    """A directory with a temporary name next to the target, which it becomes when it is complete."""

    def __init__(self, target: str) -> None:
        """`target` must not exist or be an empty directory. Raises UsageError, OSError."""
        self._target = os.path.realpath(target)
        if os.path.isdir(self._target) and os.listdir(self._target):
            raise self._exists()
        self.path = _temporary_name(self._target)
        os.mkdir(self.path)

    def commit(self) -> None:
        """Raises UsageError, OSError."""
        try:
            os.rename(self.path, self._target)  # replaces an empty directory
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise self._exists() from error
            raise

    def close(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _exists(self) -> UsageError:
        return UsageError(f"{self._target} already exists, and isn't an empty directory", code="LOCAL_FILE")


def make_directory(path: str) -> str:
    """Create a directory unless it exists; return its path."""
    if not os.path.isdir(path):
        os.mkdir(path)
    return path


@contextlib.contextmanager
def local_errors(path: str, verb: str) -> Iterator[None]:
    """Convert an error of this computer's files. A reader that has closed a pipe isn't one."""
    try:
        yield
    except (BrokenPipeError, TimeoutError):
        raise
    except OSError as error:
        where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else path
        message = f"{where} can't be {verb}: {error.strerror or error}"
        kind = GibilError if error.errno in OUR_ERRORS else UsageError
        raise kind(message, code="LOCAL_FILE") from error


def _temporary_name(target: str) -> str:
    return os.path.join(os.path.dirname(target), f".gibil-{secrets.token_hex(8)}")
