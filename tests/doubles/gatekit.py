"""An egress proxy on a loopback port, and servers behind it that record what they receive."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from gibil_bot.providers.local.egress_proxy import Destination, EgressProxy
from gibil_bot.providers.local.outbound import Outbound
from gibil_bot.providers.local.route import original_destination
from tests.doubles.patience import patient

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Sends `answer` on every connection, after recording the head and `body` bytes more."""

    def __init__(self, answer: bytes, body: int) -> None:
        self.answer, self.body = answer, body
        self.heard: list[bytes] = []
        self.port = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        head += await reader.readexactly(self.body)
        writer.write(self.answer)
        with contextlib.suppress(OSError):
            await writer.drain()
            writer.write_eof()
            head += await reader.read()  # whatever else arrives
        self.heard.append(head)


@contextlib.asynccontextmanager
async def listening(handler: Handler) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await handler(reader, writer)
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def http_server(answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n", body: int = 0) -> AsyncIterator[Server]:
    server = Server(answer, body)
    async with listening(server.handle) as port:
        server.port = port
        yield server


def egress_proxy(
    allow: tuple[str, ...],
    *,
    head_s: float = 30.0,
    idle_s: float = 900.0,
    destination: Destination = original_destination,
    **more: Any,
) -> EgressProxy:
    """`more`: keyword arguments of Outbound."""
    return EgressProxy(Outbound(allow, **more), head_s=head_s, idle_s=idle_s, destination=destination)


@contextlib.asynccontextmanager
async def proxy(*allow: str, **more: Any) -> AsyncIterator[int]:
    """Start an egress proxy; yield its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    serving = asyncio.create_task(egress_proxy(allow, **more).serve(listener))
    try:
        yield port
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        assert listener.fileno() == -1


@contextlib.asynccontextmanager
async def dial(port: int) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(port: int, request: bytes) -> bytes:
    """Send, and read until the proxy closes the connection."""
    async with asyncio.timeout(patient(10)), dial(port) as (reader, writer):
        writer.write(request)
        with contextlib.suppress(ConnectionError):
            return await reader.read()
        return b"(reset)"
