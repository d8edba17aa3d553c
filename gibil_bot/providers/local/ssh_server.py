"""SSH server of one machine, on an AF_UNIX socket: one key may log in, as root, to run commands, and to listen on ports of
the machine's loopback interface.

The daemon runs it outside the machine, so a machine needs no sshd, port or route, and clients use the same SSH code as for
remote machines.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

from gibil_bot.errors import ProviderError
from gibil_bot.providers.local.detached_jobs import Jobs
from gibil_bot.providers.local.init_client import InitClient
from gibil_bot.providers.local.relay import Streams, accept, relay
from gibil_bot.providers.local.ssh_session import Session
from gibil_bot.ssh.job_requests import SERVER_VERSION
from gibil_bot.ssh.lean_asyncssh import asyncssh

_WINDOW = 32 * 1024 * 1024
_PACKET = 128 * 1024
_CIPHERS = ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"]

_LOOPBACK = ("127.0.0.1", "localhost")
_MOST_LISTENERS = 16
"""Ports of one machine that are forwarded at a time."""
_MOST_FORWARDED = 32
"""Open connections of one of these ports; more wait in its backlog. Below remote_forwarding.MOST_CONNECTIONS, since a
connection that has ended here may not have ended there."""
_FORWARDED_WINDOW = 256 * 1024


def new_key() -> tuple[str, str]:
    """Generate a key: the private half as OpenSSH PEM and the public half as one line."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode(), key.export_public_key().decode().strip()


class MachineSSHServer:
    """The SSH server and sessions of one machine."""

    def __init__(self, init_client: InitClient) -> None:
        self._init_client = init_client
        self._jobs = Jobs(init_client)
        self._authorized = b""
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self.connections: set[asyncssh.SSHServerConnection] = set()
        self.sessions: set[Session] = set()
        self.listeners: set[_Listener] = set()
        self._path = ""

    async def open(self, path: str, host_key: str, authorized_key: str) -> str:
        """Listen at `path`, which only this user may open; return the public host key as a line.

        Raises ValueError for bad keys.
        """
        private = asyncssh.import_private_key(host_key)
        self._authorized = asyncssh.import_public_key(authorized_key).public_data
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(path)
            os.chmod(path, 0o600)
            listener.listen(128)
            self._path = path
            self._acceptor = await asyncssh.listen(
                sock=listener,
                server_factory=lambda: _Server(self),
                server_host_keys=[private],
                encryption_algs=_CIPHERS,
                compression_algs=None,
                gss_host=None,  # otherwise it resolves our own host name
                agent_forwarding=False,
                x11_forwarding=False,
                allow_scp=False,
                line_editor=False,
                login_timeout=30,
                server_version=SERVER_VERSION,
            )
        except BaseException:
            listener.close()
            raise
        return private.export_public_key().decode().strip()

    def close(self) -> None:
        """Stop listening and close all connections."""
        if self._acceptor is not None:
            self._acceptor.close()
            os.unlink(self._path)
            self._acceptor = None
        for connection in tuple(self.connections):
            connection.abort()

    def say(self, text: str) -> None:
        for session in tuple(self.sessions):
            session.say(text)

    def new_session(self) -> Session:
        session = Session(self._init_client, self.sessions.discard, self._jobs)
        self.sessions.add(session)
        return session

    async def listen(self, connection: asyncssh.SSHServerConnection, host: str, port: int) -> asyncssh.SSHListener | bool:
        """Listen on the machine; False if that isn't possible."""
        if host not in _LOOPBACK or not 0 <= port <= 65535 or len(self.listeners) >= _MOST_LISTENERS:
            return False
        try:
            listening = await self._init_client.listen(port)
        except (OSError, ProviderError):
            return False
        listener = _Listener(self, connection, listening, host)
        if connection.is_closed():
            listener.close()
        return listener

    def may_enter(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == "root" and key.public_data == self._authorized


class _Server(asyncssh.SSHServer):
    def __init__(self, server: MachineSSHServer) -> None:
        self._server = server
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._server.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._server.connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return self._server.may_enter(username, key)

    async def server_requested(self, listen_host: str, listen_port: int) -> asyncssh.SSHListener | bool:
        """Answer a request to forward a port of the machine (RFC 4254, 7.1)."""
        assert self._connection is not None
        return await self._server.listen(self._connection, listen_host, listen_port)

    def session_requested(self) -> Any:
        assert self._connection is not None
        channel = self._connection.create_server_channel(encoding=None, window=_WINDOW, max_pktsize=_PACKET)
        return channel, self._server.new_session()


class _Listener(asyncssh.SSHListener):
    """A port on a machine's loopback interface: each connection becomes a channel of the client that asked for it."""

    def __init__(
        self, server: MachineSSHServer, connection: asyncssh.SSHServerConnection, listening: socket.socket, host: str
    ) -> None:
        super().__init__()
        self._server, self._connection, self._listening = server, connection, listening
        self._host, self._port = host, int(listening.getsockname()[1])
        server.listeners.add(self)
        self._task = asyncio.create_task(accept(listening, self._forward, most=_MOST_FORWARDED))

    def get_port(self) -> int:
        return self._port

    def close(self) -> None:
        """Stop listening at once, and close all connections."""
        self._server.listeners.discard(self)
        if not self._task.done():
            with contextlib.suppress(OSError):  # it is closed already
                self._listening.shutdown(socket.SHUT_RDWR)  # the answer to the client must not come before this
            self._task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.wait({self._task})

    async def _forward(self, client: Streams) -> None:
        origin = client[1].get_extra_info("peername")
        try:
            reader, writer = await self._connection.open_connection(
                self._host, self._port, *origin[:2], encoding=None, window=_FORWARDED_WINDOW
            )
        except asyncssh.Error:
            client[1].transport.abort()
            return
        try:
            await relay(client, (reader, writer), None)  # type: ignore[arg-type]  # asyncssh's streams have the same methods
            writer.close()
            await writer.wait_closed()
        except asyncssh.Error:
            pass  # the client's connection has ended
        finally:
            writer.channel.abort()
