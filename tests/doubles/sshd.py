"""Two SSH servers on this host for tests of the Shell: one inside the test's process, one real OpenSSH.

Both log in the user who runs the tests and execute real commands with bash, in a temporary home folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import asyncssh

from gibil_bot.model import Endpoint
from tests.doubles.patience import patient


@dataclass(frozen=True)
class Server:
    """The server's address, the key that it accepts, and the home folder of its commands."""

    endpoint: Endpoint
    client_key: str
    home: Path


Pair = tuple[str, str]


def new_key() -> Pair:
    """Return a new ed25519 pair: the private key in OpenSSH's PEM form, the public key as one line."""
    key = asyncssh.generate_private_key("ssh-ed25519")
    return key.export_private_key().decode(), key.export_public_key().decode().strip()


class _OneKey(asyncssh.SSHServer):
    def __init__(
        self, public_key: str, on_login: Callable[[str], None], connections: set[asyncssh.SSHServerConnection]
    ) -> None:
        self._key = asyncssh.import_public_key(public_key)
        self._on_login = on_login
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connections.add(conn)

    def begin_auth(self, username: str) -> bool:
        self._on_login(username)
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key == self._key

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return listen_host == "127.0.0.1"


@contextlib.asynccontextmanager
async def inside(home: Path, *, on_login: Callable[[str], None] = lambda user: None) -> AsyncIterator[Server]:
    """Run asyncssh as the server, on a Unix socket. Like the daemon, it kills a command's session when its channel closes.

    `on_login(user)` is called at the start of each login.
    """
    client_key, client_public = new_key()
    host_key, host_public = new_key()
    sessions: dict[int, asyncio.Task[None] | None] = {}
    connections: set[asyncssh.SSHServerConnection] = set()

    async def command(process: asyncssh.SSHServerProcess[bytes]) -> None:
        environ = {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        # Not asyncio's subprocess: its wait() also waits for the pipes, which a background process may hold open.
        child = subprocess.Popen(
            ["bash", "-c", process.command or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environ,
            cwd=home,
            start_new_session=True,
        )
        sessions[child.pid] = asyncio.current_task()
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(_feed(process.stdin, child.stdin))
            outputs = [
                tasks.create_task(_drain(child.stdout, process.stdout)),
                tasks.create_task(_drain(child.stderr, process.stderr)),
            ]
            exited = tasks.create_task(_exit(child))
            closed = tasks.create_task(process.channel.wait_closed())
            try:
                await asyncio.wait({exited, closed}, return_when=asyncio.FIRST_COMPLETED)
                if exited.done():
                    await asyncio.wait(outputs, timeout=0.5)
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
                del sessions[child.pid]

    path = home.parent / "sshd.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    acceptor = await asyncssh.listen(
        sock=listener,
        server_factory=lambda: _OneKey(client_public, on_login, connections),
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
        for pid in sessions:
            _kill_session(pid)
        handlers = [task for task in sessions.values() if task is not None]
        if handlers:
            await asyncio.wait(handlers, timeout=patient(5))
        for connection in connections:
            connection.abort()
            await connection.wait_closed()


async def _exit(child: subprocess.Popen[bytes]) -> int:
    """Reap the process; return -N for signal N."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    descriptor = os.pidfd_open(child.pid)

    def ended() -> None:
        if not gone.done():
            gone.set_result(None)

    loop.add_reader(descriptor, ended)
    try:
        await asyncio.shield(gone)
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return child.wait()


async def _feed(source: asyncssh.SSHReader[bytes], pipe: IO[bytes] | None) -> None:
    assert pipe is not None
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    sink = asyncio.StreamWriter(transport, protocol, None, loop)
    try:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await source.read(262144):
                sink.write(data)
                await sink.drain()
    finally:
        sink.close()


async def _drain(pipe: IO[bytes] | None, sink: asyncssh.SSHWriter[bytes]) -> None:
    assert pipe is not None
    source = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(source), pipe)
    try:
        with contextlib.suppress(OSError, asyncssh.Error):
            while data := await source.read(262144):
                sink.write(data)
                await sink.drain()
    finally:
        transport.close()


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def why_no_openssh() -> str | None:
    """Return None if a real sshd can run here, otherwise the reason."""
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
async def openssh(
    home: Path, *, max_sessions: int = 200, port: int | None = None, keys: tuple[Pair, Pair] | None = None
) -> AsyncIterator[Server]:
    """A real sshd in the foreground on a loopback port, as the user who runs the tests. `keys`: the client's, the host's."""
    (client_key, client_public), (host_key, host_public) = keys or (new_key(), new_key())
    port = port or free_port()
    folder = home.parent / "sshd"
    folder.mkdir(mode=0o700)
    (folder / "host_key").write_text(host_key)
    (folder / "host_key").chmod(0o600)
    (folder / "authorized_keys").write_text(client_public + "\n")
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
    try:
        await _answers(port)
        yield Server(Endpoint(host_key=host_public, username=user_name(), host="127.0.0.1", port=port), client_key, home)
    finally:
        with contextlib.suppress(ProcessLookupError):
            sshd.terminate()
        await sshd.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def user_name() -> str:
    return pwd.getpwuid(os.geteuid()).pw_name


async def _answers(port: int) -> None:
    async with asyncio.timeout(patient(10)):
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
