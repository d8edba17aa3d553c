"""Messages of MCP over stdin and stdout, one JSON value a line.

The library's own transport reads stdin in a thread that it joins: a SIGTERM would take effect with the client's next line. The
threads here are daemons, which aren't joined, and read pipes, sockets, terminals and files alike. While the server is running,
descriptor 0 is empty and 1 is stderr, so that a stray print can't break the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import re
import select
import threading
from collections.abc import AsyncIterator

import anyio
import mcp_types as types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage

_BLOCK = 256 * 1024
_FLUSH_S = 1.0
_PARSE_ERROR, _INVALID_REQUEST = -32700, -32600
"""JSON-RPC 2.0, section 5.1: https://www.jsonrpc.org/specification#error_object."""
_SURROGATE = re.compile("[\ud800-\udfff]")

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
        asyncio.create_task(_read(lines, incoming_writer, writer)),
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


async def _read(lines: _Lines, to: MemoryObjectSendStream[SessionMessage | Exception], writer: _Writer) -> None:
    with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with to:
            while (line := await lines.next()) is not None:
                if not line.strip():
                    continue
                try:
                    await to.send(SessionMessage(read_message(line)))
                except InvalidMessage as invalid:
                    if invalid.answer is not None:  # the library would not answer, and the client would wait
                        await writer.write(json.dumps(invalid.answer).encode() + b"\n")


class InvalidMessage(Exception):
    """A line that isn't a message. `answer` is the response to it; None for a notification."""

    def __init__(self, code: int, message: str, value: object = None) -> None:
        super().__init__(message)
        request = value if isinstance(value, dict) else {}
        is_notification = isinstance(request.get("method"), str) and "id" not in request
        number = request.get("id")
        self.answer: dict[str, object] | None = None
        if not is_notification:
            known = number if isinstance(number, str | int) and not isinstance(number, bool) else None
            self.answer = {"jsonrpc": "2.0", "id": known, "error": {"code": code, "message": message}}


def read_message(line: bytes) -> types.JSONRPCMessage:
    """Return the message of a line. Raises InvalidMessage.

    Half of a surrogate pair becomes U+FFFD: clients in JavaScript send it for an emoji that was cut in two.
    """
    try:
        return types.jsonrpc_message_adapter.validate_json(line, by_name=False)
    except ValueError:
        pass
    try:
        value = json.loads(line.decode("utf-8", "replace"))
        text = _SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        raise InvalidMessage(_PARSE_ERROR, "a line is not one JSON value") from None
    try:
        return types.jsonrpc_message_adapter.validate_json(text, by_name=False)
    except ValueError:
        raise InvalidMessage(_INVALID_REQUEST, "a JSON value is not a message of JSON-RPC 2.0", value) from None


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
