"""Connections that a test can cut: a cable between an SSH client and a machine, and a relay between a bot and its database."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from gibil_bot.model import Endpoint

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""For SO_LINGER: the other side receives a reset, not an end of its input."""


class _Line:
    """Connections, each relayed to a further one that `connect` opens."""

    def __init__(self, connect: Callable[[], Awaitable[Stream]]) -> None:
        self._connect = connect
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._works = asyncio.Event()
        self._works.set()
        self._marker: bytes | None = None
        self._at_marker: Literal["silence", "lose", "lose the answer"] = "silence"
        self._reached = asyncio.Event()
        self._answer_is_lost = False

    def reset(self) -> None:
        """Close every connection at once, on both sides. What wasn't delivered is lost."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError):  # closed already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
            writer.transport.abort()

    def silence(self) -> None:
        """Deliver nothing more, in both directions: no bytes, no ends. Each side can send, and receives no answer."""
        self._works.clear()

    def at(self, marker: bytes, then: Literal["silence", "lose", "lose the answer"]) -> asyncio.Event:
        """As soon as a client sends these bytes: go silent, or reset all connections, before they arrive or at their answer.

        The event is set when the client has sent them.
        """
        self._marker, self._at_marker, self._reached = marker, then, asyncio.Event()
        return self._reached

    def _pass_marker(self) -> None:
        self._marker = None
        self._reached.set()
        match self._at_marker:
            case "silence":
                self.silence()
            case "lose":
                self.reset()
            case "lose the answer":
                self._answer_is_lost = True

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay an accepted connection."""
        self._writers.add(writer)
        await self._works.wait()
        try:
            far_reader, far_writer = await self._connect()
        except OSError:
            self._writers.discard(writer)
            writer.transport.abort()
            return
        self._spawn(self._pump(reader, far_writer, from_client=True))
        self._spawn(self._pump(far_reader, writer))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reset()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool = False) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    if from_client and self._marker is not None and self._marker in data:
                        self._pass_marker()
                    elif not from_client and self._answer_is_lost:
                        self._answer_is_lost = False
                        self.reset()
                        break
                    await self._works.wait()
                    writer.write(data)
                    await writer.drain()
            await self._works.wait()
        finally:
            self._writers.discard(writer)
            writer.close()


class Cable(_Line):
    """`endpoint` is the near end. `cut` closes every connection at once."""

    def __init__(self, connect: Callable[[], Awaitable[Stream]], endpoint: Endpoint) -> None:
        super().__init__(connect)
        self.endpoint = endpoint

    def cut(self) -> None:
        self.reset()


@contextlib.asynccontextmanager
async def cable(far: Endpoint, folder: Path) -> AsyncIterator[Cable]:
    near = folder / "cable.sock"

    async def connect() -> Stream:
        if far.unix_path is not None:
            return await asyncio.open_unix_connection(far.unix_path)
        return await asyncio.open_connection(far.host, far.port)

    it = Cable(connect, replace(far, host=None, unix_path=str(near)))
    server = await asyncio.start_unix_server(it.relay, str(near))
    try:
        yield it
    finally:
        server.close()
        await server.wait_closed()
        await it.close()


class Relay(_Line):
    """A port on the loopback interface that leads to another one.

    `cut`: all connections are reset, and nothing listens any more. `silence`: a partition; nothing arrives, nothing is closed.
    `mend` ends both. What was sent during a silence then arrives, late, as after a partition that TCP survives; after
    `reset` or `cut` it never does.
    """

    def __init__(self, port: int) -> None:
        super().__init__(lambda: asyncio.open_connection("127.0.0.1", port))
        # Bound, so that no other process receives the port while nothing listens on it.
        self._port_holder = self._bound(0)
        self.port = int(self._port_holder.getsockname()[1])
        self._listener: socket.socket | None = None
        self.mend()

    def cut(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        self.reset()

    def mend(self) -> None:
        self._works.set()
        if self._listener is None:
            self._listener = self._bound(self.port)
            self._listener.listen(128)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def close(self) -> None:
        self.cut()
        await super().close()
        self._port_holder.close()

    @staticmethod
    def _bound(port: int) -> socket.socket:
        bound = socket.socket()
        bound.setblocking(False)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
        return bound

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            self._spawn(self._accepted(listener.accept()[0]))

    async def _accepted(self, near: socket.socket) -> None:
        await self.relay(*await asyncio.open_connection(sock=near))


@contextlib.asynccontextmanager
async def relay(port: int) -> AsyncIterator[Relay]:
    it = Relay(port)
    try:
        yield it
    finally:
        await it.close()
