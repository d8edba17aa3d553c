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


class Connections:
    """The connections of a listener, each in its own task."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    async def end(self) -> None:
        """End all that are open now. What they have received and not sent yet is dropped."""
        tasks = tuple(self.tasks)
        await asyncio.sleep(0)  # all have begun then; a task that is cancelled before wouldn't close its socket
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def forward(
    listener: socket.socket,
    host: str,
    port: int,
    *,
    connections: Connections | None = None,
    is_allowed: Callable[[], bool] = lambda: True,
) -> None:
    """Relay every connection to one loopback endpoint until cancelled; then the listener and all connections are closed."""

    async def connection(client: Streams) -> None:
        if not is_allowed():
            return
        try:
            async with asyncio.timeout(20):
                server = await asyncio.open_connection(host, port, limit=BLOCK)
        except OSError:
            return  # the client sees its connection end, as it would see a closed port
        async with closing(server):
            await relay(client, server, None)

    await accept(listener, connection, connections)


async def accept(
    listener: socket.socket,
    handle: Callable[[Streams], Awaitable[None]],
    connections: Connections | None = None,
    *,
    most: int = _MAX_CONNECTIONS,
) -> None:
    """Handle each connection in its own task, so that none can end another. `most` are open at a time."""
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    room = asyncio.Semaphore(most)
    open_connections = connections or Connections()
    tasks = open_connections.tasks

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
        await open_connections.end()


@contextlib.asynccontextmanager
async def _opened(sock: socket.socket) -> AsyncIterator[Streams]:
    try:
        client = await streams(sock)
    except BaseException:
        sock.close()
        raise
    async with closing(client):
        yield client


@contextlib.asynccontextmanager
async def closing(side: Streams) -> AsyncIterator[None]:
    """Send what is buffered at the end of the block; if it failed or was cancelled, reset the connection."""
    try:
        yield
    except BaseException:
        reset(side[1])
        raise
    await close(side[1])


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


class Replayed(asyncio.StreamReader):
    """A reader that returns some bytes again before those of `source`. `read`, `readexactly` and `readuntil` work."""

    def __init__(self, again: bytes, source: asyncio.StreamReader) -> None:
        super().__init__()
        self._again, self._source = again, source

    async def read(self, n: int = -1) -> bytes:
        return self._take(n) if self._again and n > 0 else await self._source.read(n)

    async def readexactly(self, n: int) -> bytes:
        taken = self._take(n)
        return taken + await self._source.readexactly(n - len(taken)) if len(taken) < n else taken

    async def readuntil(self, separator: bytes = b"\n") -> bytes:  # type: ignore[override]
        while (at := self._again.find(separator)) < 0:
            if len(self._again) > BLOCK:
                raise asyncio.LimitOverrunError("the separator is not found within the limit", len(self._again))
            more = await self._source.read(BLOCK)
            if not more:
                raise asyncio.IncompleteReadError(self._take(len(self._again)), None)
            self._again += more
        return self._take(at + len(separator))

    def _take(self, n: int) -> bytes:
        taken, self._again = self._again[:n], self._again[n:]
        return taken


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
