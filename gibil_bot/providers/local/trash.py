"""Deletion of machines' folders in the background: they are renamed into one folder, which a child of the fork server empties.

Deleting the files of a project with its dependencies takes seconds to minutes, and no user should wait for that. The child is a
process with a low priority, because a thread would slow the daemon's event loop. What a daemon leaves, the next one deletes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

from gibil_bot.providers.local.rmtree import remove_tree

MOST_WAITING = 32
"""If more folders wait for their deletion, destroying a machine waits: machines must not end faster than disks are emptied."""


def discard(folder: Path, trash: Path) -> None:
    """Move a folder to the trash, on the same file system. Blocking, for less than a millisecond. Raises OSError."""
    try:
        trash.mkdir(mode=0o700, exist_ok=True)
        os.rename(folder, trash / f"{folder.name}.{secrets.token_hex(4)}")
    except OSError:  # a full disk may have no room for the entry
        remove_tree(folder)


def waiting(trash: Path) -> int:
    """Return how many folders wait for their deletion."""
    try:
        return len(os.listdir(trash))
    except OSError:
        return 0


def empty_trash(trash: Path) -> None:
    """Delete everything in the trash, the oldest first. Blocking. Raises OSError for the first folder that can't be deleted."""
    problem: OSError | None = None
    with contextlib.suppress(FileNotFoundError):
        for entry in sorted(os.scandir(trash), key=lambda entry: entry.stat(follow_symlinks=False).st_ctime_ns):
            try:
                remove_tree(Path(entry.path))
            except OSError as error:
                problem = problem or error
    if problem is not None:
        raise problem


class BackgroundDeletion:
    """Empties the trash. `empty` deletes everything that is in it now, and returns whether that succeeded."""

    def __init__(self, trash: Path, empty: Callable[[], Awaitable[bool]]) -> None:
        self._trash, self._empty = trash, empty
        self._deleting: asyncio.Task[None] | None = None
        self._requested = False

    @property
    def is_busy(self) -> bool:
        return self._deleting is not None and not self._deleting.done()

    def begin(self) -> None:
        """Delete what is in the trash, after what is being deleted now. Returns at once."""
        self._requested = True
        if not self.is_busy:
            self._deleting = asyncio.get_running_loop().create_task(self._run())

    async def wait(self, within_s: float) -> None:
        """Wait until everything is deleted, or that time is over."""
        if self._deleting is not None:
            await asyncio.wait([self._deleting], timeout=within_s)

    async def wait_for_room(self) -> None:
        """Wait if too many folders wait for their deletion."""
        if self._deleting is not None and waiting(self._trash) > MOST_WAITING:
            await asyncio.wait([self._deleting])

    async def stop(self) -> None:
        if self._deleting is not None:
            self._deleting.cancel()
            await asyncio.gather(self._deleting, return_exceptions=True)

    async def _run(self) -> None:
        while self._requested:
            self._requested = False
            if not await self._empty():
                message = f"some files of destroyed machines in {self._trash} couldn't be deleted; the next daemon tries again"
                asyncio.get_running_loop().call_exception_handler({"message": message})
