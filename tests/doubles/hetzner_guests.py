"""The computers behind the Hetzner double: local machines of tier `root` that boot with Debian's own cloud-init and sshd.

hetzner_computer.py switches them on, and they boot hetzner_image.py: cloud-init reads the user-data from the metadata
address with its Hetzner datasource, sshd is started as Debian's unit says, and both and their children have all
capabilities. A server's address is one of 127.0.77.0/24; the port is not 22, which the host's own sshd may use.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.doubles.hetzner_computer import Computer, Done, kill
from tests.doubles.hetzner_image import PACKAGES, PREPARE, START_DOCKER, Image, image_for_tests
from tests.doubles.machines import LocalLodging, local_lodging
from tests.doubles.patience import patient

__all__ = ["PACKAGES", "Image", "LocalGuests", "image_for_tests", "local_guests"]

_NETWORK = "127.0.77"
_INIT = """set -e
cloud-init init --local
cloud-init init
systemctl start ssh.service
while ! test -s /run/sshd.pid; do sleep 0.01; done
systemctl boot
"""

_REST = """
cloud-init modules --mode=config
cloud-init modules --mode=final
"""


@dataclass(eq=False)
class _Guest:
    name: str
    address: str
    serial: str
    user_data: str
    keys: list[str]
    computer: Computer
    server: asyncio.Server | None = None
    running: asyncio.Task[None] | None = None
    sessions: set[asyncio.Task[None]] = field(default_factory=set)
    log: str = ""
    booted: asyncio.Event = field(default_factory=asyncio.Event)

    def metadata(self, path: str) -> str | None:
        """https://docs.hetzner.cloud/reference/cloud#server-metadata"""
        described = {
            "hostname": self.name,
            "instance-id": int(self.serial),
            "public-ipv4": self.address,
            "public-keys": self.keys,
            "network-config": {"version": 1, "config": []},
        }
        answers = {
            "userdata": self.user_data,
            "metadata": json.dumps(described),  # which is YAML
            **{f"metadata/{key}": str(value) for key, value in described.items()},
        }
        return answers.get(path.removeprefix("/hetzner/v1/"))


class LocalGuests:
    """Implements hetzner_state.Guests. `port` is where SSH answers on every address."""

    def __init__(self, lodging: LocalLodging, image: Image, port: int = 0) -> None:
        self._lodging = lodging
        self._image = image
        self._guests: dict[str, _Guest] = {}
        self._claims: dict[str, socket.socket] = {}
        self.port = port
        self.egress: tuple[str, ...] = ()
        """Addresses that machines created from now on may reach in addition to public ones, such as `127.0.0.1:PORT`."""
        self.containers: Path | None = None
        """The container images of machines created from now on, which need no registry (containers.py)."""

    async def open(self) -> None:
        """Choose a port, if none was given, that is free on the first address, and so probably on all."""
        self._claims.pop(await self.address()).close()

    async def address(self) -> str:
        """Return a free address, reserved until the end."""
        for number in range(1, 255):
            address = f"{_NETWORK}.{number}"
            if address not in self._claims:
                with contextlib.suppress(OSError):
                    self.port = _free_port(address, self.port)
                    self._claims[address] = _claim(f"{address}:{self.port}")
                    return address
        raise RuntimeError(f"port {self.port} is free on no address of {_NETWORK}.0/24")

    async def booted(self, name: str) -> str:
        """Wait until cloud-init has finished; return its output."""
        guest = self._guests[name]
        async with asyncio.timeout(patient(60)):
            await guest.booted.wait()
        return guest.log

    async def run(self, name: str, script: str) -> Done:
        """Run a script in the machine without its sshd, as the hypervisor can."""
        return await self._guests[name].computer.run(script)

    async def start_docker(self, name: str) -> None:
        """Start dockerd in place of podman, with the same images."""
        async with asyncio.timeout(patient(60)):
            done = await self._guests[name].computer.run(START_DOCKER, delegated=True)
        assert done.exit_status == 0, done.stderr

    def metadata_read(self, name: str) -> list[str]:
        """Return the paths of the metadata service that were read since the computer was switched on."""
        return self._guests[name].computer.read

    def cut(self, name: str) -> int:
        """Close every SSH connection of a guest at once, as when a router loses its state; return their number."""
        sessions = tuple(self._guests[name].sessions)
        for session in sessions:
            session.cancel()
        return len(sessions)

    async def cut_next(self, name: str) -> None:
        """Like `cut`, as soon as a connection exists."""
        async with asyncio.timeout(patient(30)):
            while not self.cut(name):
                await asyncio.sleep(0.005)  # another process connects

    async def unplug(self, name: str) -> None:
        guest = self._guests[name]
        assert guest.server is not None
        guest.server.close()
        self.cut(name)

    async def plug_in(self, name: str) -> None:
        self._guests[name].server = await self._listen(self._guests[name])

    async def boot(self, name: str, address: str, user_data: str, keys: list[str], powered_off: Callable[[], None]) -> None:
        guest = self._guests.get(name)
        if guest is None:
            guest = self._guests[name] = await self._create(name, address, user_data, keys)
        guest.running = asyncio.create_task(self._run(guest, powered_off))

    async def switch_off(self, name: str) -> None:
        guest = self._guests.get(name)
        if guest is not None:
            await self._stop(guest)

    async def remove(self, name: str) -> None:
        guest = self._guests.pop(name, None)
        if guest is not None:
            await self._stop(guest)
            await self._lodging.provider.destroy(name)
            await guest.computer.close()

    async def close(self) -> None:
        for name in tuple(self._guests):
            await self.remove(name)
        for claim in self._claims.values():
            claim.close()

    async def _create(self, name: str, address: str, user_data: str, keys: list[str]) -> _Guest:
        spec = self._lodging.spec(name, ttl_s=600, tethered=True, egress_allow=self.egress)
        await self._lodging.provider.create(spec)
        serial = str(secrets.randbelow(10**8))
        computer = Computer(self._lodging.init_pid(name), lambda path: guest.metadata(path))
        guest = _Guest(name, address, serial, user_data, keys, computer)
        if self.containers is not None:
            await asyncio.to_thread(_remove_packet_rules, self._lodging.init_pid(name))
        await self._image.install(computer, serial, self.containers)
        return guest

    async def _run(self, guest: _Guest, powered_off: Callable[[], None]) -> None:
        """Boot. sshd starts after cloud-init's `init` stage, as its unit says; the remaining stages run in the background."""
        guest.booted.clear()
        guest.log = ""
        await guest.computer.plug_in()
        await guest.computer.must(PREPARE)
        power = await guest.computer.start("cat /run/power")
        try:
            for number, stage in enumerate((_INIT, _REST)):
                done = await guest.computer.run(stage)
                guest.log += done.stdout + done.stderr
                if number == 0:
                    guest.server = await self._listen(guest)
            guest.booted.set()
            await power.communicate()
        finally:
            await kill(power)
        guest.running = None
        await self._stop(guest)
        powered_off()

    async def _listen(self, guest: _Guest) -> asyncio.Server:
        return await asyncio.start_server(
            lambda reader, writer: self._carry(guest, reader, writer), guest.address, self.port, reuse_address=True
        )

    async def _carry(self, guest: _Guest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay one connection from outside to the computer's port 22."""
        task = asyncio.current_task()
        assert task is not None
        guest.sessions.add(task)
        task.add_done_callback(guest.sessions.discard)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            inner_reader, inner_writer = await guest.computer.connect(22)
            up = asyncio.create_task(_pump(reader, inner_writer))
            try:
                await _pump(inner_reader, writer)
            finally:
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)
                inner_writer.close()
        writer.close()

    async def _stop(self, guest: _Guest) -> None:
        """Cut the power: nothing listens or runs, and the disk remains."""
        if guest.server is not None:
            guest.server.close()
            guest.server = None
        tasks = guest.sessions | ({guest.running} if guest.running else set())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        guest.running = None
        await guest.computer.run("kill -KILL -1")
        await guest.computer.unplug()


def _free_port(address: str, port: int) -> int:
    """Return this port, or a free one for 0. Raises OSError if it is in use."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen(1)
        return int(probe.getsockname()[1])


def _claim(where: str) -> socket.socket:
    """Reserve an address among test runs, by a name that only one process can hold. Raises OSError if another holds it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0gibil-hetzner-double {where}")
    except OSError:
        claim.close()
        raise
    return claim


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.write_eof()


@contextlib.asynccontextmanager
async def local_guests(data_dir: Path, shared: Path, image: Image, port: int = 0) -> AsyncIterator[LocalGuests]:
    """Guests on a separate local provider; its daemon ends with the block. Raises RuntimeError if the port is in use."""
    async with local_lodging(data_dir, shared) as lodging:
        guests = LocalGuests(lodging, image, port)
        await guests.open()
        try:
            yield guests
        finally:
            await guests.close()


def _remove_packet_rules(pid: int) -> None:
    """Delete the rules of a local machine's route: they don't track loopback connections, which published ports need."""
    code = (
        "from gibil_bot.providers.local import nf_tables as n; m = n._transaction(); "
        "m.add(n._SUBSYSTEM << 8 | 2, n._attribute(1, 'gibil'), flags=n._ACKNOWLEDGE); n._commit(m)"
    )
    command = ["nsenter", "-t", str(pid), "-n", sys.executable, "-c", code]
    subprocess.run(command, check=True, timeout=patient(20))
