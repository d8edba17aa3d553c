"""Passes stdin to a command on a machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
from collections.abc import AsyncIterator

from gibil_bot.cli.output import print_message

_STDIN = 0
_BLOCK = 256 * 1024
_BLOCKS = 8
"""Number of blocks that are read ahead of the machine."""
FIRST_BYTE_S = 10.0
"""Agents, CI and daemons start commands with a pipe as stdin that is never written to or closed. A command that reads its input
would wait until its timeout, so such a pipe counts as empty after this time.
"""


def forward(wanted: bool | None) -> AsyncIterator[bytes] | None:
    """Return the blocks of stdin for a command, or None if it gets none.

    A pipe, a socket or a file is passed on. A terminal isn't, so that keys typed while a command runs reach the shell. `wanted`
    False: never pass it on; True: even if the first byte takes longer than FIRST_BYTE_S.
    """
    if wanted is False:
        return None
    kind = os.fstat(_STDIN)  # it is always open: cli._fill_closed_streams
    if os.isatty(_STDIN) or _is_null(kind):
        return None
    waits = stat.S_ISFIFO(kind.st_mode) or stat.S_ISSOCK(kind.st_mode)
    return blocks(FIRST_BYTE_S if waits and not wanted else None)


def _is_null(kind: os.stat_result) -> bool:
    try:
        return stat.S_ISCHR(kind.st_mode) and kind.st_rdev == os.stat(os.devnull).st_rdev
    except OSError:
        return False


async def blocks(first_byte_s: float | None = None) -> AsyncIterator[bytes]:
    """Yield the blocks of stdin, which counts as empty if it is silent for the first `first_byte_s` seconds.

    They are read in a thread that isn't awaited, because a read of a pipe can't be cancelled.
    """
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[bytes] = asyncio.Queue()
    room = threading.Semaphore(_BLOCKS)

    def pump() -> None:
        data = b"?"
        while data:
            room.acquire()
            try:
                data = os.read(_STDIN, _BLOCK)
            except BlockingIOError:  # another program has left it non-blocking
                import select

                select.select([_STDIN], [], [])
                room.release()
                continue
            except OSError as error:
                data = b""
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(print_message, f"stdin can't be read: {error.strerror}")
            try:
                loop.call_soon_threadsafe(blocks.put_nowait, data)
            except RuntimeError:  # the loop is closed: the command has ended
                return

    threading.Thread(target=pump, daemon=True, name="gibil-stdin").start()
    try:
        async with asyncio.timeout(first_byte_s):
            data = await blocks.get()
    except TimeoutError:
        print_message(
            f"stdin has been silent for {first_byte_s:g} s, so the command gets no input; --stdin waits for it, "
            "</dev/null skips this wait"
        )
        return
    while data:
        yield data
        room.release()
        data = await blocks.get()
