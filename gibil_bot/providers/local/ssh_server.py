"""SSH server of one machine, on an AF_UNIX socket: one key may log in, as root, to run commands and nothing else.

The daemon runs it outside the machine, so a machine needs no sshd, port or route, and clients use the same SSH code as for
remote machines.
"""

from __future__ import annotations

import os
import socket
from typing import Any

from gibil_bot.providers.local.detached_jobs import Jobs
from gibil_bot.providers.local.init_client import InitClient
from gibil_bot.providers.local.ssh_session import Session
from gibil_bot.ssh.job_requests import SERVER_VERSION
from gibil_bot.ssh.lean_asyncssh import asyncssh

_WINDOW = 32 * 1024 * 1024
_PACKET = 128 * 1024
_CIPHERS = ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes128-ctr"]


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

    def session_requested(self) -> Any:
        assert self._connection is not None
        channel = self._connection.create_server_channel(encoding=None, window=_WINDOW, max_pktsize=_PACKET)
        return channel, self._server.new_session()
