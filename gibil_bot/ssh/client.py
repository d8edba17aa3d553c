"""Login to a machine with one client key, to a host that presents exactly the expected host key."""

from __future__ import annotations

import asyncio
import getpass
import os
import socket
import time
from typing import Any

from gibil_bot.errors import AnotherHost, MachineLost, SSHError
from gibil_bot.model import Endpoint
from gibil_bot.ssh.connection import QUICKACK, Connection, reason_of
from gibil_bot.ssh.lean_asyncssh import asyncssh
from gibil_bot.ssh.shell import SSHShell

__all__ = ["SSHShell", "connect"]


async def connect(endpoint: Endpoint, client_key: str, *, timeout_s: float = 30.0) -> SSHShell:
    """Log in with a private key (OpenSSH PEM text) after checking that the host presents `endpoint.host_key`.

    Retries until `timeout_s` while nothing answers: the machine may be booting. Raises AnotherHost for another host key,
    SSHError when the host rejects the login, MachineLost when it doesn't answer.
    """
    where = f"{endpoint.host}:{endpoint.port}" if endpoint.unix_path is None else "the machine"  # a socket's path is internal
    try:
        options = _options(endpoint, client_key)
    except (asyncssh.KeyImportError, ValueError) as error:
        raise SSHError(f"cannot connect to {where}: a key is unreadable: {error}") from None
    deadline = time.monotonic() + timeout_s
    # A machine's socket file exists as soon as the machine does, so a longer wait for a missing socket is pointless.
    retry_until = deadline if endpoint.unix_path is None else min(deadline, time.monotonic() + 2.0)
    while True:
        try:
            async with asyncio.timeout(max(0.01, deadline - time.monotonic())):
                return SSHShell(Connection(await _connect_once(endpoint, options), where))
        except asyncssh.HostKeyNotVerifiable:
            raise AnotherHost(
                f"the host key of {where} isn't the machine's: it's another host, or the creation was interrupted; "
                "destroy the machine"
            ) from None
        except asyncssh.PermissionDenied:
            raise SSHError(f"{where} rejects the key of user {endpoint.username}") from None
        except asyncssh.KeyExchangeFailed as error:
            raise SSHError(f"{where}: key exchange failed: {error.reason}") from None
        except (OSError, asyncssh.Error) as error:
            if time.monotonic() + 0.2 > retry_until:
                raise MachineLost(f"{where} does not answer SSH: {reason_of(error)}") from None
        await asyncio.sleep(0.1)


def _options(endpoint: Endpoint, client_key: str) -> dict[str, Any]:
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ.setdefault("LOGNAME", "gibil")  # asyncssh fails for a uid without a name, and never sends the name
    host_key = asyncssh.import_public_key(endpoint.host_key)
    return {
        "username": endpoint.username,
        "client_keys": [asyncssh.import_private_key(client_key)],
        "known_hosts": ([host_key], [], []),
        "preferred_auth": "publickey",
        "agent_path": None,
        "config": None,
        "gss_host": None,
        "keepalive_interval": 5,
        "keepalive_count_max": 3,
        "compression_algs": None,
        "kex_algs": ["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"],
        "encryption_algs": ["aes256-gcm@openssh.com", "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr"],
    }


async def _connect_once(endpoint: Endpoint, options: dict[str, Any]) -> asyncssh.SSHClientConnection:
    sock = await _open_socket(endpoint)
    try:
        return await asyncssh.connect(endpoint.host or "machine", endpoint.port, sock=sock, **options)
    except BaseException:
        sock.close()
        raise


async def _open_socket(endpoint: Endpoint) -> socket.socket:
    loop = asyncio.get_running_loop()
    if endpoint.unix_path is not None:
        candidates: list[tuple[int, Any]] = [(socket.AF_UNIX, endpoint.unix_path)]
    else:
        infos = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        candidates = [(info[0], info[4]) for info in infos]
    problem: OSError = OSError("no address")
    for family, address in candidates:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            problem = error
            continue
        except BaseException:
            sock.close()
            raise
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if QUICKACK is not None:
                sock.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
        return sock
    raise problem
