"""The computers behind the Hetzner double: local machines of tier `root` that boot with Debian's own cloud-init and sshd.

What the vendor's image brings is brought here: cloud-init's datasource (NoCloud), and as much of `systemctl` as a first boot
uses, as nothing in a local machine is systemd. Everything else is the real thing. A server's address is one of 127.0.77.0/24,
where every connection gets an `sshd -i` of its own in the machine; the port is not 22, which the box's own sshd may hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import asyncssh

from gibil_bot.machines.local.home import locked
from tests.doubles.machines import Lodging, local_lodging, open_connection

_NETWORK = "127.0.77"
PACKAGES = ("cloud-init", "openssh-server")

_IMAGE_CONFIG = """\
datasource_list: [NoCloud, None]
network: {config: disabled}
locale: false
resize_rootfs: false
growpart: {mode: 'off'}
preserve_hostname: true
"""

_SYSTEMCTL = r"""#!/bin/sh
# The init system of this image: as much of systemctl as a first boot uses.
echo "$*" >>/run/systemctl.log
start() {
    command=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/$1")
    test -n "$command" || exit 5
    setsid -f sh -c "while :; do $command; sleep 1; done" </dev/null >>"/var/log/$1.log" 2>&1
}
case $1 in
    poweroff) echo off >/run/power ;;
    enable) for unit; do :; done; echo "$unit" >>/etc/systemd/enabled; start "$unit" ;;
    boot) sort -u /etc/systemd/enabled 2>/dev/null | while read -r unit; do start "$unit"; done ;;
esac
"""

_PREPARE = """set -e
mkdir -p /run/sshd /etc/systemd/system
test -p /run/power || mkfifo /run/power
chmod 755 /usr/local/sbin/systemctl
"""

_INIT = """set -e
cloud-init init --local
cloud-init init
systemctl boot
"""

_REST = """
cloud-init modules --mode=config
cloud-init modules --mode=final
cloud-init status --long
"""


@dataclass(eq=False)
class _Guest:
    name: str
    address: str
    connection: asyncssh.SSHClientConnection
    """The hypervisor's own way in: not through the machine's sshd."""
    server: asyncio.Server | None = None
    running: asyncio.Task[None] | None = None
    sessions: set[asyncio.Task[None]] = field(default_factory=set)
    log: str = ""
    booted: asyncio.Event = field(default_factory=asyncio.Event)


class Image:
    """Packages that the box does not have, installed once by apt through the egress gate and kept as a tar file."""

    def __init__(self, folder: Path) -> None:
        self._tar = folder / "image.tar"

    @property
    def tar(self) -> Path | None:
        return self._tar if self._tar.exists() and self._tar.stat().st_size else None

    async def build(self, lodging: Lodging) -> str | None:
        """None: there it is. Else why it cannot be built here."""
        spec = lodging.spec("template", ttl_s=300, egress_allow=_mirrors(), tethered=True)
        machine = await lodging.provider.create(spec)
        try:
            there = await lodging.run(machine, "command -v cloud-init && test -x /usr/sbin/sshd")
            if there.exit_status == 0:
                self._tar.touch()
                return None
            async with lodging.connect(machine) as connection, asyncio.timeout(240):
                done = await connection.run(
                    "touch /root/.before && sleep 0.05 && export DEBIAN_FRONTEND=noninteractive && apt-get -q update && "
                    f"apt-get -q -y --no-install-recommends install {' '.join(PACKAGES)}"
                )
                if done.exit_status != 0:
                    return f"apt-get cannot install {' and '.join(PACKAGES)} here: {str(done.stderr).strip()[-300:]}"
                changed = "find / /usr -xdev -cnewer /root/.before ! -type d"
                not_these = " ".join(f"! -path '{path}/*'" for path in ("/proc", "/tmp", "/run", "/var/cache", "/var/lib/apt"))
                packed = await connection.run(f"{changed} {not_these} -print0 | tar -c --null -T - -f -", encoding=None)
                assert packed.exit_status == 0, packed.stderr
                assert isinstance(packed.stdout, bytes)
                draft = self._tar.with_suffix(".draft")
                await asyncio.to_thread(draft.write_bytes, packed.stdout)
                draft.rename(self._tar)
        finally:
            await lodging.provider.destroy(machine.name)
        return None


class LocalGuests:
    """Implements hetzner_state.Guests. `port` is where SSH answers on every address."""

    def __init__(self, lodging: Lodging, image: Image, port: int = 0) -> None:
        self._lodging = lodging
        self._image = image
        self._guests: dict[str, _Guest] = {}
        self._claims: dict[str, socket.socket] = {}
        self.port = port
        self.egress: tuple[str, ...] = ()
        """Of machines forged from now on: where they get beyond public addresses, as `127.0.0.1:PORT`."""

    async def open(self) -> None:
        """Choose the port, if none was asked for: one that is free on the first address, and so most likely on all."""
        self._claims.pop(await self.address()).close()

    async def address(self) -> str:
        """A free one; ours until the end."""
        for number in range(1, 255):
            address = f"{_NETWORK}.{number}"
            if address not in self._claims:
                with contextlib.suppress(OSError):
                    self.port = _free_port(address, self.port)
                    self._claims[address] = _claim(f"{address}:{self.port}")
                    return address
        raise RuntimeError(f"port {self.port} is free on no address of {_NETWORK}.0/24")

    async def booted(self, name: str) -> str:
        """Waits until cloud-init has done everything; what it printed."""
        guest = self._guests[name]
        async with asyncio.timeout(60):
            await guest.booted.wait()
        return guest.log

    async def run(self, name: str, script: str) -> asyncssh.SSHCompletedProcess:
        """As the hypervisor may: in the machine, past its sshd."""
        return await self._guests[name].connection.run(script)

    def cut(self, name: str) -> int:
        """Every SSH connection of a guest ends at once, as when a router forgets them; how many there were."""
        sessions = tuple(self._guests[name].sessions)
        for session in sessions:
            session.cancel()
        return len(sessions)

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
            guest = self._guests[name] = await self._forge(name, address, user_data, keys)
        guest.running = asyncio.create_task(self._run(guest, powered_off))

    async def switch_off(self, name: str) -> None:
        guest = self._guests.get(name)
        if guest is not None:
            await self._stop(guest)

    async def remove(self, name: str) -> None:
        guest = self._guests.pop(name, None)
        if guest is not None:
            await self._stop(guest)
            guest.connection.abort()
            await guest.connection.wait_closed()
            await self._lodging.provider.destroy(name)

    async def close(self) -> None:
        for name in tuple(self._guests):
            await self.remove(name)
        for claim in self._claims.values():
            claim.close()

    async def _forge(self, name: str, address: str, user_data: str, keys: list[str]) -> _Guest:
        machine = await self._lodging.provider.create(
            self._lodging.spec(name, ttl_s=600, tethered=True, egress_allow=self.egress)
        )
        guest = _Guest(name, address, await open_connection(machine, self._lodging.key))
        if self._image.tar is not None:
            await self._must(guest, "tar -x -C / -f -", await asyncio.to_thread(self._image.tar.read_bytes))
        metadata = f"instance-id: {name}-{os.urandom(4).hex()}\nlocal-hostname: {name}\npublic-keys: {keys!r}\n"
        for path, text in (
            ("/var/lib/cloud/seed/nocloud/user-data", user_data),
            ("/var/lib/cloud/seed/nocloud/meta-data", metadata),
            ("/etc/cloud/cloud.cfg.d/99-image.cfg", _IMAGE_CONFIG),
            ("/usr/local/sbin/systemctl", _SYSTEMCTL),
        ):
            await self._must(guest, f"mkdir -p {os.path.dirname(path)} && cat >{path}", text.encode())
        return guest

    async def _run(self, guest: _Guest, powered_off: Callable[[], None]) -> None:
        """sshd answers when cloud-init's `init` stage is over, as its unit comes after it; the rest goes on behind."""
        await self._must(guest, _PREPARE)
        async with guest.connection.create_process("cat /run/power") as power:
            for number, stage in enumerate((_INIT, _REST)):
                done = await guest.connection.run(stage)
                guest.log += str(done.stdout) + str(done.stderr)
                if number == 0:
                    guest.server = await self._listen(guest)
            guest.booted.set()
            await power.stdout.read()
        guest.running = None
        await self._stop(guest)
        powered_off()

    async def _listen(self, guest: _Guest) -> asyncio.Server:
        return await asyncio.start_server(
            lambda reader, writer: self._serve(guest, reader, writer), guest.address, self.port, reuse_address=True
        )

    async def _serve(self, guest: _Guest, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: bytes to and from an sshd of its own."""
        task = asyncio.current_task()
        assert task is not None
        guest.sessions.add(task)
        task.add_done_callback(guest.sessions.discard)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, asyncssh.Error, asyncio.CancelledError):
            async with guest.connection.create_process("exec /usr/sbin/sshd -i", encoding=None) as sshd:
                up = asyncio.create_task(_pump(reader, sshd.stdin))
                try:
                    await _pump(sshd.stdout, writer)
                finally:
                    up.cancel()
                    await asyncio.gather(up, return_exceptions=True)
        writer.close()

    async def _stop(self, guest: _Guest) -> None:
        """As if the power had gone: nothing listens, nothing runs, the disk stays."""
        if guest.server is not None:
            guest.server.close()
            guest.server = None
        tasks = guest.sessions | ({guest.running} if guest.running else set())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        guest.running = None
        with contextlib.suppress(asyncssh.Error):
            await guest.connection.run("kill -KILL -1", timeout=10)

    async def _must(self, guest: _Guest, script: str, stdin: bytes = b"") -> None:
        done = await guest.connection.run(script, input=stdin, encoding=None)
        assert done.exit_status == 0, done.stderr


def _free_port(address: str, port: int) -> int:
    """That port, or any for 0. Raises OSError when somebody listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
        probe.listen(1)
        return int(probe.getsockname()[1])


def _claim(where: str) -> socket.socket:
    """Among test runs: a name that one process can have, and that goes with it. Raises OSError when another has it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0gibil-hetzner-double {where}")
    except OSError:
        claim.close()
        raise
    return claim


class _Source(Protocol):
    async def read(self, count: int, /) -> bytes: ...


class _Sink(Protocol):
    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...

    def write_eof(self) -> None: ...


async def _pump(source: _Source, sink: _Sink) -> None:
    with contextlib.suppress(OSError, asyncssh.Error):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.write_eof()


def _mirrors() -> tuple[str, ...]:
    """The hosts that this box's apt asks; they may have an address that is not public."""
    hosts: set[str] = set()
    for path in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        with contextlib.suppress(OSError):
            hosts |= set(re.findall(r"https?://([A-Za-z0-9.-]+)", path.read_text()))
    return tuple(sorted(f"{host}:{port}" for host in hosts for port in (80, 443)))


@contextlib.asynccontextmanager
async def local_guests(data_dir: Path, shared: Path, image: Image, port: int = 0) -> AsyncIterator[LocalGuests]:
    """Guests on a local provider of their own; at the end its keeper is gone. RuntimeError: that port is not free."""
    async with local_lodging(data_dir, shared) as lodging:
        guests = LocalGuests(lodging, image, port)
        await guests.open()
        try:
            yield guests
        finally:
            await guests.close()


def image_for_tests(folder: Path, skeletons: Path) -> Image | str:
    """The image that all workers of a test run share, built by the first; or why there is none, in one line."""
    if os.geteuid() != 0:
        return "servers of the Hetzner double are local machines of tier root: run these tests as root"
    folder.mkdir(exist_ok=True)
    image, reason = Image(folder), folder / "reason"

    async def build() -> None:
        async with local_lodging(folder / "data", skeletons) as lodging:
            reason.write_text(await image.build(lodging) or "")

    with locked(folder / "lock", wait_s=300) as mine:
        assert mine
        if not reason.exists():
            asyncio.run(build())
    return reason.read_text() or image
