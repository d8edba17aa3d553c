"""Removing a folder that a machine could write to, whatever its depth and modes."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

_DEEP = 48


def remove_tree(folder: Path) -> None:
    """Remove `folder` and everything in it, if it exists. Links are removed, never followed.

    A tree can be deeper than recursion, a path or the table of open files allows, so deep folders are moved to the top and
    removed from there. Another process may remove the same folder at the same time.
    """
    try:
        if not stat.S_ISDIR(os.lstat(folder).st_mode):
            os.unlink(folder)
            return
    except FileNotFoundError:
        return
    try:
        top = _open_directory(str(folder), None)
    except FileNotFoundError:
        return
    try:
        moved = [0]
        _empty(top, top, 0, moved)
        while moved[0]:  # folders that were moved up in this pass may be deep as well
            moved[0] = 0
            _empty(top, top, 0, moved)
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder)


def _open_directory(name: str, parent: int | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode & 0o700 != 0o700:
            os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def _empty(directory: int, top: int, depth: int, moved: list[int]) -> None:
    with os.scandir(directory) as entries:
        listing = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listing:
        try:
            _remove(name, is_directory, directory, top, depth, moved)
        except FileNotFoundError:
            continue


def _remove(name: str, is_directory: bool, directory: int, top: int, depth: int, moved: list[int]) -> None:
    if not is_directory:
        os.unlink(name, dir_fd=directory)
    elif depth >= _DEEP:
        moved[0] += 1
        os.chmod(name, 0o700, dir_fd=directory)  # moving a directory rewrites its "..", which needs write access
        os.rename(name, f".removing-{os.getpid()}-{moved[0]}-{os.urandom(4).hex()}", src_dir_fd=directory, dst_dir_fd=top)
    else:
        child = _open_directory(name, directory)
        try:
            _empty(child, top, depth + 1, moved)
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=directory)
