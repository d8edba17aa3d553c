"""Local machines for the benchmarks: a data directory with a warm daemon, and plain asyncssh connections."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh

from gibil_bot.config import Settings
from gibil_bot.errors import Unavailable
from gibil_bot.model import Endpoint, Machine, MachineSpec
from gibil_bot.ports import Shell
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.providers.local.control_protocol import ControlConnection, Request, Unanswered
from gibil_bot.providers.local.paths import LocalPaths, read_daemon
from gibil_bot.wiring import open_factory
from tests.benchmarks.comparison import LeftOut

TTL_S = 600


class Yard:
    """Machines of one data directory."""

    def __init__(self, factory: MachineFactory) -> None:
        self.factory = factory
        self.owner = factory.keyring.machine_owner()
        self._numbers = itertools.count()

    def new_name(self) -> str:
        return f"bench-{next(self._numbers)}"

    async def create(self) -> tuple[Machine, Shell]:
        """Create a machine as the runner does."""
        return await self.factory.create(self.new_name(), self.owner, TTL_S)

    async def create_by_hand(self, egress_allow: tuple[str, ...] = ()) -> Machine:
        """Create a machine with the provider alone, with prepared keys."""
        name = self.new_name()
        keyring = self.factory.keyring
        return await self.factory.provider.create(
            MachineSpec(
                name=name,
                owner=self.owner,
                ttl_s=TTL_S,
                authorized_key=keyring.client_public(name),
                host_key=keyring.host_key(name),
                egress_allow=egress_allow,
            )
        )

    async def connect_by_hand(self, machine: Machine) -> asyncssh.SSHClientConnection:
        return await connect_by_hand(machine.endpoint, self.factory.keyring.client_key(machine.name))


async def connect_by_hand(endpoint: Endpoint, client_key: str) -> asyncssh.SSHClientConnection:
    """Connect with asyncssh as its documentation shows, with the host key pinned."""
    where: dict[str, Any] = {"host": endpoint.host, "port": endpoint.port}
    if endpoint.unix_path is not None:
        sock = socket.socket(socket.AF_UNIX)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, endpoint.unix_path)
        where = {"host": "machine", "sock": sock}
    return await asyncssh.connect(
        **where,
        username=endpoint.username,
        client_keys=[asyncssh.import_private_key(client_key)],
        known_hosts=([asyncssh.import_public_key(endpoint.host_key)], [], []),
        agent_path=None,
        config=None,
    )


@contextlib.asynccontextmanager
async def yard(data_dir: Path) -> AsyncIterator[Yard]:
    """Raises LeftOut if no local machine can be created. At the end all machines are destroyed, and the daemon ends."""
    data_dir.mkdir(parents=True, exist_ok=True)
    factory = open_factory(Settings(data_dir=data_dir, database_url=""))
    it = Yard(factory)
    try:
        try:
            await factory.provider.probe()
        except Unavailable as error:
            raise LeftOut(error.message) from None
        yield it
    finally:
        for machine in await factory.list():
            await factory.destroy(machine.name)
        await factory.close()
        await end_daemon(data_dir)


async def end_daemon(data_dir: Path) -> None:
    """End the daemon without waiting for its idle timeout; return when it has ended. A daemon that has machines is an error."""
    daemon = await asyncio.to_thread(read_daemon, LocalPaths(data_dir.absolute()))
    if daemon is None:
        return
    with contextlib.suppress(Unanswered):
        line = await ControlConnection.open(daemon.socket)
        answer = await line.ask(Request(verb="quit"))
        await line.close()
        assert answer.done, "the daemon still has machines"
    async with asyncio.timeout(20):
        while Path(f"/proc/{daemon.pid}").exists():
            await asyncio.sleep(0.005)
