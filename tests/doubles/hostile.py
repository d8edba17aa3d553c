"""Misbehaving SSH servers: an honest login, followed by whatever the test defines; or bytes that aren't SSH."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncssh
from asyncssh.connection import SSHConnection

from gibil_bot.model import Endpoint
from gibil_bot.ssh.client import SSHShell, connect
from tests.doubles.sshd import new_key

Process = asyncssh.SSHServerProcess[bytes]
Handler = Callable[[Process], Awaitable[None]]


class _AnyKey(asyncssh.SSHServer):
    def __init__(self, key: str) -> None:
        self._key = asyncssh.import_public_key(key)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key == self._key


@contextlib.asynccontextmanager
async def hostile_shell(handler: Handler, server_version: str = "") -> AsyncIterator[SSHShell]:
    """Open a Shell to a server that answers every command with `handler(process)`."""
    client_key, client_public = new_key()
    host_key, host_public = new_key()
    connections: set[SSHConnection] = set()

    async def command(process: Process) -> None:
        connections.add(process.channel.get_connection())
        with contextlib.suppress(asyncssh.Error, OSError):
            await handler(process)

    with tempfile.TemporaryDirectory(prefix="gibil-", dir="/tmp") as folder:
        path = str(Path(folder) / "sshd.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(path)
        listener.listen(16)
        acceptor = await asyncssh.listen(
            sock=listener,
            server_factory=lambda: _AnyKey(client_public),
            server_host_keys=[asyncssh.import_private_key(host_key)],
            process_factory=command,
            server_version=server_version,
            encoding=None,
            line_editor=False,
            compression_algs=None,
        )
        try:
            shell = await connect(Endpoint(host_key=host_public, unix_path=path), client_key)
            try:
                yield shell
            finally:
                await shell.close()
        finally:
            acceptor.close()
            for connection in connections:
                connection.abort()
            await acceptor.wait_closed()


@contextlib.asynccontextmanager
async def speaker(speak: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[Endpoint]:
    """Serve something other than SSH on a loopback TCP port."""
    _, host_public = new_key()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                await speak(reader, writer)
        except asyncio.CancelledError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield Endpoint(host_key=host_public, host="127.0.0.1", port=port)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
