"""Serves an ASGI application on a free port of loopback, in the running event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Generator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_GRACE_S = 1.0
"""How long responses in progress may take when the server ends."""


class Protocol(HttpToolsProtocol):
    """Lets the application cut its connection, which ASGI doesn't support."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {"gibil": {"transport": self.transport}}


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ending = asyncio.Event()

    async def main_loop(self) -> None:
        """Wait for the end. uvicorn's own loop polls ten times a second, which would delay it."""
        while not self.ending.is_set():
            await self.on_tick(0)  # updates the header `Date`
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self.ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close connections. uvicorn's own method waits 100 ms before each check of the connections."""
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_S):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110  (uvicorn has no event for it)
                    await asyncio.sleep(0.002)
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave Ctrl-C to the caller."""
        yield


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, *, host: str = "127.0.0.1", port: int = 0, date_header: bool = True) -> AsyncIterator[str]:
    """Serve until the block ends, and yield the URL. Connections still open at the end are cut after a second.

    Without `date_header`, the application sends the header itself.
    """
    # The protocol must be given explicitly: asyncio disables Nagle's algorithm only for sockets whose protocol is TCP, and with
    # it every response waits 40 ms.
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
                raise RuntimeError("the server ended before it was listening")
            await asyncio.sleep(0.005)
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        server.ending.set()
        await asyncio.shield(task)
        listener.close()
