"""Moving bytes between sockets: an accept loop with independent connections, and a relay with half-close."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

BLOCK = 64 * 1024
_MAX_CONNECTIONS = 512
"""Open connections per listener; more wait in its backlog, so that one machine can't use up the daemon's file descriptors."""


async def forward(listener: socket.socket, host: str, port: int) -> None:
    """Relay every connection to one loopback endpoint until cancelled; then the listener and all connections are closed."""

    async def connection(client: Streams) -> None:
        try:
            async with asyncio.timeout(20):
                server = await asyncio.open_connection(host, port, limit=BLOCK)
        except OSError:
            return  # the client sees its connection end, as it would see a closed port
        try:
            await relay(client, server, None)
        finally:
            await close(server[1])

    await accept(listener, connection)


async def accept(listener: socket.socket, handle: Callable[[Streams], Awaitable[None]]) -> None:
    """Handle each connection in its own task, so that none can end another."""
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    room = asyncio.Semaphore(_MAX_CONNECTIONS)
    tasks: set[asyncio.Task[None]] = set()

    async def connection(sock: socket.socket) -> None:
        try:
            async with _opened(sock) as client:
                await handle(client)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side closed the connection, so it can't be notified
        finally:
            room.release()

    try:
        while True:
            await room.acquire()
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:
                room.release()
                if error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    return  # the listener was closed
                await asyncio.sleep(
                    0.05
                )  # out of descriptors or memory (EMFILE, ENOBUFS), or the client has closed the connection
                continue
            except BaseException:
                room.release()
                raise
            task = asyncio.create_task(connection(sock))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _opened(sock: socket.socket) -> AsyncIterator[Streams]:
    try:
        client = await streams(sock)
    except BaseException:
        sock.close()
        raise
    try:
        yield client
    except BaseException:
        client[1].transport.abort()
        raise
    await close(client[1])


async def streams(sock: socket.socket) -> Streams:
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return await asyncio.open_connection(sock=sock, limit=BLOCK)


async def close(writer: asyncio.StreamWriter) -> None:
    """Send buffered data for a bounded time, then close."""
    writer.close()
    try:
        async with asyncio.timeout(5):
            await writer.wait_closed()
    except OSError:
        pass
    finally:
        writer.transport.abort()


async def readable(sock: socket.socket) -> None:
    """Wait until there is something to read. uvloop has no sock_recvfrom."""
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def report() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock.fileno(), report)
    try:
        await ready
    finally:
        loop.remove_reader(sock.fileno())


def reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with an error (RST), so that the other side doesn't take the data as complete."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def relay(left: Streams, right: Streams, idle_s: float | None) -> None:
    """Relay both directions until both have ended. The end of one direction is forwarded while the other continues.

    When one side fails, or both are silent for `idle_s`, the other is reset, so that incomplete data doesn't look complete.
    """
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(idle_s) as idle, asyncio.TaskGroup() as tasks:

            def alive() -> None:
                if idle_s is not None:
                    idle.reschedule(loop.time() + idle_s)

            tasks.create_task(pump(left[0], right[1], alive))
            tasks.create_task(pump(right[0], left[1], alive))
    except* OSError:
        reset(left[1])
        reset(right[1])


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alive: Callable[[], None]) -> None:
    while data := await reader.read(BLOCK):
        alive()
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        if writer.can_write_eof():
            writer.write_eof()
