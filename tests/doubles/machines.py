"""Local machines for tests: providers in separate folders, keys generated at run time, connections by plain asyncssh."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import socketserver
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncssh
import msgspec
import pytest

from gibil_bot.model import Machine, MachineSpec
from gibil_bot.ports import Provider
from gibil_bot.providers.local import base_tree, daemon_start
from gibil_bot.providers.local.paths import LocalPaths, locked, own_privilege, read_daemon, write_daemon
from gibil_bot.providers.local.provider import LocalProvider
from tests.doubles.patience import patient
from tests.doubles.postmaster import children_of as children_of

_SHARED = "standing"
"""The data directory, in a worker's folder, whose daemon its tests share."""


@dataclass
class Lodging:
    """A provider and the keys of its machines."""

    provider: Provider
    key: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))
    host_key: asyncssh.SSHKey = field(default_factory=lambda: asyncssh.generate_private_key("ssh-ed25519"))

    def spec(self, name: str, *, ttl_s: int = 120, **more: Any) -> MachineSpec:
        words: dict[str, Any] = {
            "name": name,
            "owner": "tests",
            "ttl_s": ttl_s,
            "authorized_key": public(self.key),
            "host_key": self.host_key.export_private_key().decode(),
        }
        return MachineSpec(**{**words, **more})

    @contextlib.asynccontextmanager
    async def connect(self, machine: Machine) -> AsyncIterator[asyncssh.SSHClientConnection]:
        connection = await open_connection(machine, self.key)
        try:
            yield connection
        finally:
            connection.abort()
            await connection.wait_closed()

    async def run(self, machine: Machine, command: str, **more: Any) -> asyncssh.SSHCompletedProcess:
        """Run one command on a new connection, for at most a minute."""
        async with self.connect(machine) as connection, asyncio.timeout(patient(60)):
            return await connection.run(command, **more)


@dataclass
class LocalLodging(Lodging):
    """Local machines, and the pids of the processes that manage them."""

    data_dir: Path = Path()

    @property
    def paths(self) -> LocalPaths:
        return LocalPaths(self.data_dir.absolute())

    def daemon_pid(self) -> int:
        daemon = read_daemon(self.paths)
        assert daemon is not None
        return daemon.pid

    def fork_server_pid(self) -> int:
        (fork_server,) = children_of(self.daemon_pid())
        return fork_server

    def init_pid(self, name: str) -> int:
        """Return the host pid of the machine's PID 1."""
        return int((self.paths.machine(name) / "lock").read_text().split()[0])


def public(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode().strip()


async def open_connection(machine: Machine, key: asyncssh.SSHKey, **more: Any) -> asyncssh.SSHClientConnection:
    endpoint = machine.endpoint
    where: dict[str, Any] = {"host": endpoint.host or "machine", "port": endpoint.port}
    if endpoint.unix_path:
        raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        raw.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(raw, endpoint.unix_path)
        except BaseException:
            raw.close()
            raise
        where = {"host": "machine", "sock": raw}
    words: dict[str, Any] = {
        "username": endpoint.username,
        "client_keys": [key],
        "known_hosts": ([asyncssh.import_public_key(endpoint.host_key)], [], []),
        "agent_path": None,
        "config": None,
        "compression_algs": None,
    }
    return await asyncssh.connect(**{**where, **words, **more})


@contextlib.asynccontextmanager
async def local_lodging(data_dir: Path, shared: Path) -> AsyncIterator[LocalLodging]:
    """A local provider in `data_dir`; at the end its daemon is gone, and no machine is left."""
    await asyncio.to_thread(lend_base_tree, data_dir, shared)
    provider = LocalProvider(data_dir, daemon_idle_s=60)
    lodging = LocalLodging(provider, data_dir=data_dir)
    try:
        yield lodging
    finally:
        await provider.close()
        await end_daemon(lodging.paths)
        await provider.sweep("tests")  # a killed daemon leaves its control groups


@contextlib.asynccontextmanager
async def guest_lodging(factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    """A local provider for tests that may share a daemon: all tests of a worker use one.

    At the end no machine is left; the daemon stays for the next test, until `end_shared_daemon`.
    """
    data_dir = _shared_data_dir(factory)
    if not data_dir.exists():
        await asyncio.to_thread(lend_base_tree, data_dir, shared_folder(factory))
    provider = LocalProvider(data_dir, daemon_idle_s=600)
    try:
        yield LocalLodging(provider, data_dir=data_dir)
    finally:
        await destroy_all(provider)


async def end_shared_daemon(factory: pytest.TempPathFactory) -> None:
    if _shared_data_dir(factory).exists():
        await end_daemon(LocalPaths(_shared_data_dir(factory)))


def _shared_data_dir(factory: pytest.TempPathFactory) -> Path:
    return factory.getbasetemp() / _SHARED


def lend_base_tree(data_dir: Path, shared: Path) -> None:
    """Link the base tree that all tests of a run share, because building one takes seconds."""
    paths = LocalPaths(data_dir)
    paths.prepare()
    layout = base_tree.survey(own_privilege())
    name = base_tree.name_of(own_privilege(), layout)
    shared.mkdir(exist_ok=True)
    with locked(shared / "lock", wait_s=60) as mine:
        assert mine
        if not (shared / name).is_dir():
            base_tree.build(shared / name, own_privilege(), layout)
    with contextlib.suppress(FileExistsError):
        (paths.local / name).symlink_to(shared / name)


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all workers of this test run share."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "skeletons"


@contextlib.asynccontextmanager
async def lent_data_dir(test_folder: Path, *, own_daemon: bool = False) -> AsyncIterator[Path]:
    """A data directory in a test's folder, for processes that create machines; see `lend` and `take_back`."""
    data_dir = test_folder / "data"
    await lend(data_dir, own_daemon=own_daemon)
    try:
        yield data_dir
    finally:
        await take_back(data_dir, own_daemon=own_daemon)


async def lend(data_dir: Path, base_trees: Path | None = None, *, own_daemon: bool = False) -> None:
    """Create a data directory, two folders below the worker's own, in which machines can be created.

    Starting a daemon takes longer than creating a machine. Without `own_daemon`, one daemon manages the machines of all tests
    of a worker, in a folder `local` that their data directories share.
    """
    base = data_dir.parent.parent
    base_trees = base_trees or (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "skeletons"
    if own_daemon:
        await asyncio.to_thread(lend_base_tree, data_dir, base_trees)
    else:
        await asyncio.to_thread(lend_base_tree, base / _SHARED, base_trees)
        await asyncio.to_thread(daemon_start.start, LocalPaths(base / _SHARED), 600.0)
        data_dir.mkdir(mode=0o700)
        (data_dir / "local").symlink_to(base / _SHARED / "local")


async def take_back(data_dir: Path, *, own_daemon: bool = False) -> None:
    """Check that no machine is left, and no daemon except the shared one."""
    if own_daemon:
        await end_daemon(LocalPaths(data_dir))
        await asyncio.to_thread(shutil.rmtree, data_dir / "local", True)
    else:
        await destroy_all(LocalProvider(data_dir, daemon_idle_s=600))


async def destroy_all(provider: LocalProvider) -> None:
    """Destroy all machines and close the provider."""
    try:
        for machine in await provider.list_machines():
            await provider.destroy(machine.name)
    finally:
        await provider.close()


@contextlib.contextmanager
def older_daemon(paths: LocalPaths) -> Iterator[None]:
    """During the block, the running daemon is one that doesn't support the verb `usage`."""
    daemon = read_daemon(paths)
    assert daemon is not None
    real = daemon.socket

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            request = msgspec.json.decode(self.rfile.readline())
            if request["verb"] == "usage":
                request["verb"] = "verb-of-a-later-version"  # the real control server's answer to an unknown verb
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as onward:
                onward.connect(real)
                onward.sendall(msgspec.json.encode(request) + b"\n")
                with onward.makefile("rb") as answers:
                    self.wfile.write(answers.readline())

    path = f"{real}.old"
    with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            write_daemon(paths, msgspec.structs.replace(daemon, socket=path, version="older"))
            yield
        finally:
            write_daemon(paths, daemon)
            server.shutdown()
            thread.join()
            Path(path).unlink()


async def end_daemon(paths: LocalPaths) -> None:
    daemon = read_daemon(paths)
    if daemon is None:
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon.pid, signal.SIGTERM)
    await until(lambda: not alive(daemon.pid), "the daemon ended")
    await asyncio.to_thread(shutil.rmtree, Path(daemon.socket).parent, True)


def alive(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def provider_of(lodging: LocalLodging) -> LocalProvider:
    assert isinstance(lodging.provider, LocalProvider)
    return lodging.provider


async def output(lodging: LocalLodging, machine: Machine, command: str) -> str:
    """Return what a command that has to succeed printed."""
    result = await lodging.run(machine, command)
    assert result.exit_status == 0, result.stderr
    return str(result.stdout)


def processes_with(mark: str) -> list[int]:
    """Return the host pids of living processes whose command line contains the mark."""
    found = []
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in cmdline.read_bytes() and alive(int(cmdline.parent.name)):
                found.append(int(cmdline.parent.name))
    return found


async def until(condition: Callable[[], bool], what: str, *, within_s: float = 20.0) -> None:
    """Wait for a condition of another process that sends no event."""
    loop = asyncio.get_running_loop()
    within_s = patient(within_s)
    deadline = loop.time() + within_s
    while not condition():
        assert loop.time() < deadline, f"not within {within_s:.0f} s: {what}"
        await asyncio.sleep(0.01)
