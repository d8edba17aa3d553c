"""Messages of MCP over stdin and stdout, one JSON value a line.

The library's own transport reads stdin in a thread that it joins: a SIGTERM would take effect with the client's next line. The
threads here are daemons, which aren't joined, and read pipes, sockets, terminals and files alike. While the server is running,
descriptor 0 is empty and 1 is stderr, so that a stray print can't break the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import threading
from collections.abc import AsyncIterator

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

_BLOCK = 256 * 1024
_FLUSH_S = 1.0

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]


@contextlib.asynccontextmanager
async def standard_streams() -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Return the streams (from the client, to the client). The first one ends when the client disconnects."""
    source, sink = _claim()
    incoming_writer, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, outgoing_reader = anyio.create_memory_object_stream[SessionMessage](0)
    lines = _Lines(source)
    writer = _Writer(sink)
    pumps = [
        asyncio.create_task(_read(lines, incoming_writer)),
        asyncio.create_task(_write(writer, outgoing_reader)),
    ]
    try:
        yield incoming, outgoing
        outgoing.close()
        await asyncio.wait({pumps[1]}, timeout=_FLUSH_S)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.wait(pumps)
        for stream in (incoming_writer, incoming, outgoing, outgoing_reader):
            stream.close()


def _claim() -> tuple[int, int]:
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return source, sink


async def _read(lines: _Lines, to: MemoryObjectSendStream[SessionMessage | Exception]) -> None:
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with to:
            while (line := await lines.next()) is not None:
                if not line.strip():
                    continue
                try:
                    message: SessionMessage | Exception = SessionMessage(
                        types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                    )
                except ValueError as error:
                    message = error
                await to.send(message)


async def _write(writer: _Writer, messages: MemoryObjectReceiveStream[SessionMessage]) -> None:
    async with messages:
        async for each in messages:
            text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
            if not await writer.write(text.encode("utf-8", "replace") + b"\n"):
                return  # the client is gone: later messages of the session raise


class _Lines:
    """Lines of a descriptor, read by a thread, not faster than they are consumed."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = threading.Semaphore(64)
        threading.Thread(target=self._pump, args=(descriptor,), daemon=True, name="gibil-mcp-stdin").start()

    async def next(self) -> bytes | None:
        """Return the next line, or None at the end."""
        line = await self._lines.get()
        self._room.release()
        return line

    def _pump(self, descriptor: int) -> None:
        with contextlib.suppress(OSError, RuntimeError):  # the loop is closed
            parts: list[bytes] = []
            while block := os.read(descriptor, _BLOCK):
                *whole, rest = block.split(b"\n")
                for line in whole:
                    self._put(b"".join((*parts, line)))
                    parts.clear()
                parts.append(rest)
            if any(parts):
                self._put(b"".join(parts))
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lines.put_nowait, None)

    def _put(self, line: bytes) -> None:
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._lines.put_nowait, line)


class _Writer:
    """Writes to a descriptor in a thread: a client that doesn't read must not block anything else."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._blocks: queue.SimpleQueue[tuple[bytes, asyncio.Future[bool]]] = queue.SimpleQueue()
        threading.Thread(target=self._pump, args=(descriptor,), daemon=True, name="gibil-mcp-stdout").start()

    async def write(self, data: bytes) -> bool:
        """Write all of it. Returns False if that fails."""
        done: asyncio.Future[bool] = self._loop.create_future()
        self._blocks.put((data, done))
        return await done

    def _pump(self, descriptor: int) -> None:
        while True:
            data, done = self._blocks.get()
            written = _write_all(descriptor, memoryview(data))
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_finish, done, written)


def _write_all(descriptor: int, view: memoryview) -> bool:
    try:
        while view:
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:  # another process has made the pipe non-blocking
                select.select([], [descriptor], [])
    except OSError:
        return False
    return True


def _finish(done: asyncio.Future[bool], written: bool) -> None:
    if not done.done():
        done.set_result(written)
