"""Two SSH servers on this box for the tests of the Shell: one inside the test's process, one real OpenSSH.

Both log in the user who runs the tests and execute real commands with bash, in a home folder of the test's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncssh

from gibil_bot.model import Endpoint


@dataclass(frozen=True)
class Server:
    """Where it answers, the key that it accepts, and the home folder of its commands."""

    endpoint: Endpoint
    client_key: str
    home: Path


def new_key() -> tuple[str, str]:
    """A fresh ed25519 pair: (private key in OpenSSH's PEM form, public key as one line)."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode(), key.export_public_key().decode().strip()


class _OneKey(asyncssh.SSHServer):
    def __init__(self, public_key: str) -> None:
        self._key = asyncssh.import_public_key(public_key)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key == self._key


@contextlib.asynccontextmanager
async def inside(home: Path) -> AsyncIterator[Server]:
    """asyncssh as the server, on a Unix socket. As the keeper does, it kills a command's session when its channel closes."""
    client_key, client_public = new_key()
    host_key, host_public = new_key()
    sessions: set[int] = set()

    async def command(process: asyncssh.SSHServerProcess[bytes]) -> None:
        environ = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        child = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            process.command or "",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environ,
            cwd=home,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        sessions.add(child.pid)
        feeding = asyncio.create_task(_feed(process.stdin, child.stdin))
        outputs = [
            asyncio.create_task(_drain(child.stdout, process.stdout)),
            asyncio.create_task(_drain(child.stderr, process.stderr)),
        ]
        exited = asyncio.create_task(child.wait())
        closed = asyncio.create_task(process.channel.wait_closed())
        try:
            await asyncio.wait({exited, closed}, return_when=asyncio.FIRST_COMPLETED)
            if exited.done():
                await asyncio.wait(outputs, timeout=5)
                status = exited.result()
                if status < 0:
                    process.exit_with_signal(signal.Signals(-status).name[3:])
                else:
                    process.exit(status)
        finally:
            _kill_session(child.pid)
            await exited
            for task in (feeding, closed, *outputs):
                task.cancel()
            await asyncio.gather(feeding, closed, *outputs, return_exceptions=True)
            child.stdin.close()
            sessions.discard(child.pid)

    path = home.parent / "sshd.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    acceptor = await asyncssh.listen(
        sock=listener,
        server_factory=lambda: _OneKey(client_public),
        server_host_keys=[asyncssh.import_private_key(host_key)],
        process_factory=command,
        encoding=None,
        compression_algs=None,
        line_editor=False,
    )
    try:
        yield Server(Endpoint(host_key=host_public, username="root", unix_path=str(path)), client_key, home)
    finally:
        acceptor.close()
        await acceptor.wait_closed()
        for pid in list(sessions):
            _kill_session(pid)


async def _feed(source: asyncssh.SSHReader[bytes], sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(262144):
            sink.write(data)
            await sink.drain()
    sink.close()


async def _drain(source: asyncio.StreamReader, sink: asyncssh.SSHWriter[bytes]) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(262144):
            sink.write(data)
            await sink.drain()


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def why_no_openssh() -> str | None:
    """None when a real sshd can run here; else the reason why not."""
    if not Path("/usr/sbin/sshd").exists():
        return "no /usr/sbin/sshd on this box (Debian: openssh-server)"
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        return "sshd logs in users with a name, this uid has none"
    if os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        try:
            Path("/run/sshd").mkdir(mode=0o755)
        except OSError as error:
            return f"sshd needs /run/sshd: {error}"
    return None


@contextlib.asynccontextmanager
async def openssh(home: Path, *, max_sessions: int = 200) -> AsyncIterator[Server]:
    """A real sshd in the foreground on a loopback port, as the user who runs the tests."""
    client_key, client_public = new_key()
    host_key, host_public = new_key()
    folder = home.parent / "sshd"
    folder.mkdir(mode=0o700)
    (folder / "host_key").write_text(host_key)
    (folder / "host_key").chmod(0o600)
    (folder / "authorized_keys").write_text(client_public + "\n")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "config").write_text(
        f"""Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
MaxSessions {max_sessions}
MaxStartups 100
PrintMotd no
SetEnv HOME={home}
"""
    )
    sshd = await asyncio.create_subprocess_exec(
        shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config"), stderr=asyncio.subprocess.DEVNULL
    )
    user = pwd.getpwuid(os.geteuid()).pw_name
    try:
        await _answers(port)
        yield Server(Endpoint(host_key=host_public, username=user, host="127.0.0.1", port=port), client_key, home)
    finally:
        with contextlib.suppress(ProcessLookupError):
            sshd.terminate()
        await sshd.wait()


async def _answers(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            return
