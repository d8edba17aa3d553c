"""Serving an ASGI application on loopback, in the event loop that is there, on a port that the system picks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_GRACE_S = 1.0
"""How long answers that are being written may take when the server ends."""


class Protocol(HttpToolsProtocol):
    """Lets the application cut its own connection, which ASGI has no word for."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"gibil": {"transport": self.transport}}


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        """uvicorn's own looks ten times a second whether it should end, and nobody wants to wait for that look."""
        while not self.ending.is_set():
            await self.on_tick(0)  # the time in the header `Date`
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own waits 100 ms before it looks whether anything is open, and as long between two looks."""
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  (uvicorn tells nobody)
                    await asyncio.sleep(0.002)
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Ctrl-C belongs to whoever started us."""
        yield


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, date_header: bool = True) -> AsyncIterator[str]:
    """The address while it listens. Connections that are still open at the end are cut after a second.

    Without `date_header`, the application sends the header itself.
    """
    # The protocol has to be named: asyncio turns Nagle's algorithm off only for a socket that says it is TCP, and with it
    # on every answer waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(512)
    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=date_header,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="double's server")
    try:
        while not server.started:
            if task.done():
                task.result()
                raise RuntimeError("the server ended before it listened")
            await asyncio.sleep(0.005)
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.ending.set()
        await asyncio.shield(task)
        listener.close()
