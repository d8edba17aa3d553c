"""OpenSSH as the peer: a real sshd on a loopback port, and a master connection of its client."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from gibil_bot.model import Endpoint
from tests.benchmarks.comparison import LeftOut
from tests.benchmarks.servers import free_port


@dataclass(frozen=True, kw_only=True)
class Sshd:
    """The server's address, and the private key that it accepts, in OpenSSH's PEM form."""

    endpoint: Endpoint
    client_key: str
    folder: Path


@contextlib.asynccontextmanager
async def sshd(folder: Path) -> AsyncIterator[Sshd]:
    """Run sshd in the foreground, for the user who runs the benchmark. Raises LeftOut if it can't run."""
    program = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
    if program is None or shutil.which("ssh") is None:
        raise LeftOut("OpenSSH is not installed (Debian: openssh-server, openssh-client)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise LeftOut("sshd lets in users with a name, this one has only a number") from None
    folder.mkdir(parents=True, exist_ok=True)
    client, host = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    port = free_port()
    (folder / "home").mkdir()
    _write(folder / "host_key", host.export_private_key())
    _write(folder / "client_key", client.export_private_key())
    _write(folder / "authorized_keys", client.export_public_key())
    _write(folder / "known_hosts", f"[127.0.0.1]:{port} ".encode() + host.export_public_key())
    _write(
        folder / "config",
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host_key\nAuthorizedKeysFile {folder}/authorized_keys\n"
        "PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n"
        # An empty home: the shell must not read the user's start-up files.
        f"MaxSessions 200\nMaxStartups 100\nPrintMotd no\nSetEnv HOME={folder}/home\n".encode(),
    )
    process = await asyncio.create_subprocess_exec(
        program, "-D", "-e", "-f", str(folder / "config"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(10):
            while not _answers(port):
                await asyncio.sleep(0.02)
        endpoint = Endpoint(host_key=host.export_public_key().decode().strip(), username=user, host="127.0.0.1", port=port)
        yield Sshd(endpoint=endpoint, client_key=client.export_private_key().decode(), folder=folder)
    finally:
        process.terminate()
        await process.wait()


def login(server: Sshd, *options: str) -> list[str]:
    """Return the arguments of an `ssh` call that logs in; the last one is the target."""
    return [
        "ssh", "-F", "none", *options, "-p", str(server.endpoint.port), "-i", str(server.folder / "client_key"),
        "-o", f"UserKnownHostsFile={server.folder}/known_hosts", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
        f"{server.endpoint.username}@127.0.0.1",
    ]  # fmt: skip


@contextlib.contextmanager
def master(server: Sshd) -> Iterator[list[str]]:
    """Return the arguments of an `ssh` call that uses an open master connection."""
    *words, target = login(server, "-S", str(server.folder / "ctl"))
    quiet: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([*words, "-M", "-o", "ControlPersist=yes", target, "true"], check=True, timeout=20, **quiet)
    try:
        yield [*words, target]
    finally:
        subprocess.run([*words, "-O", "exit", target], check=False, timeout=20, **quiet)


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
