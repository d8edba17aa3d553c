"""Passes bytes from the event loop on to a reader in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable

_AHEAD = 4 * 1024 * 1024
"""How many bytes may wait for the reader before the writer has to wait."""


class Feed:
    """A pipe whose writer is on the event loop, which it never blocks, and whose reader is in a thread."""

    class ReaderEnded(Exception):
        """The reader has ended before the content; its own exception has the reason."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._blocks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._unread = 0
        self._room: asyncio.Future[None] | None = None
        self._rest = memoryview(b"")
        self._is_at_end = False
        self._has_reader = True

    def write(self, data: bytes) -> asyncio.Future[None] | None:
        """Pass on a block; return what to wait for before the next one, if anything. Raises ReaderEnded."""
        if not data:
            return None
        with self._lock:
            if not self._has_reader:
                raise Feed.ReaderEnded
            self._unread += len(data)
            if self._unread > _AHEAD and self._room is None:
                self._room = self._loop.create_future()
            room = self._room
        self._blocks.put(data)
        return room

    def end(self) -> None:
        """Mark the end of the content."""
        self._blocks.put(b"")

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, b"" at the end. Only for the thread."""
        if not self._rest and not self._is_at_end:
            block = self._blocks.get()
            self._is_at_end = not block
            self._rest = memoryview(block)
            with self._lock:
                self._unread -= len(block)
                if self._unread <= _AHEAD // 2:
                    self._release()
        data, self._rest = bytes(self._rest[:size]), self._rest[size:]
        return data

    def serve(self, work: Callable[[Feed], None]) -> None:
        """Run the reader. Only for the thread."""
        try:
            work(self)
        finally:
            with self._lock:
                self._has_reader = False
                self._release()

    def _release(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(_resolve, room)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
