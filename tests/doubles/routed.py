"""A network namespace with a machine's route, whose connections a real egress proxy in this process serves.

Cheaper than a machine, and the test chooses what names resolve to.

    async with routed("git.corp:443", resolve=names({"git.corp": "127.0.0.1"})) as inside:
        printed = await inside.python("import socket; …")
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from gibil_bot.providers.local.egress_policy import allowed_networks
from gibil_bot.providers.local.egress_proxy import EgressProxy
from gibil_bot.providers.local.host_network import HostLinks, HostNetwork
from gibil_bot.providers.local.outbound import RefusalLog
from tests.doubles.gatekit import egress_proxy
from tests.doubles.patience import patient

NEIGHBOUR = "20.0.0.1"

_REPOSITORY = Path(__file__).resolve().parents[2]

# The program that runs inside: it sets the route up, sends the sockets, and becomes the test's script.
_SETUP = """
import json, os, socket, sys
from gibil_bot.providers.local import route, spawn, syscalls
control = socket.socket(fileno=int(sys.argv[1]))
spawn.become_owner(syscalls.CLONE_NEWNET)
syscalls.loopback_up()
listener = spawn._listen(*route.PROXY)
routed = route.set_up(json.loads(sys.argv[2]))
socket.send_fds(control, [b"up"], [each.fileno() for each in (listener, *routed)])
for each in (listener, *routed): each.close()
control.recv(1)
exec(sys.stdin.read())
"""

# What a script may use: DNS without the host's resolv.conf.
PRELUDE = """
import socket, struct, time
def question(name, kind=1, number=7):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, kind, 1)
def answered(response):
    _number, flags, _questions, answers, _, _ = struct.unpack_from(">HHHHHH", response)
    kept = response[len(response) - 16 * answers:]
    return flags & 15, [socket.inet_ntoa(kept[16 * at + 12 : 16 * at + 16]) for at in range(answers)]
def look_up(name, server="192.0.0.53", kind=1):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(20)
        asker.connect((server, 53))
        asker.send(question(name, kind))
        return answered(asker.recv(1000))
"""


class Inside:
    def __init__(
        self, process: asyncio.subprocess.Process, control: socket.socket, refusals: RefusalLog, proxy: EgressProxy
    ) -> None:
        self._process, self._control, self.refusals, self.proxy = process, control, refusals, proxy

    async def python(self, script: str) -> str:
        """Run a script inside, once, and return what it printed."""
        await asyncio.get_running_loop().sock_sendall(self._control, b"1")
        async with asyncio.timeout(patient(60)):
            out, err = await self._process.communicate((PRELUDE + script).encode())
        assert self._process.returncode == 0, err.decode()
        return out.decode()

    def refused(self) -> list[tuple[str, int]]:
        return [(refusal.host, refusal.port) for refusal in self.refusals.since(0).refused]


class Neighbours(HostNetwork):
    """The networks of a host with one neighbour, which has a public address."""

    async def links(self) -> HostLinks:
        return HostLinks(neighbours=frozenset((ip_network(NEIGHBOUR),)))


def names(addresses: Mapping[str, str]) -> Callable[[str, int], Awaitable[list[tuple[Any, ...]]]]:
    """Return a resolver that knows these names, each with addresses separated by spaces, and all addresses."""

    async def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
        if host in addresses:
            return [(address, port) for address in addresses[host].split()]
        with contextlib.suppress(OSError):
            socket.inet_aton(host)
            return [(host, port)]
        raise socket.gaierror(socket.EAI_NONAME, "unknown name")

    return resolve


@contextlib.asynccontextmanager
async def routed(*allow: str, **more: Any) -> AsyncIterator[Inside]:
    """`more`: keyword arguments of egress_proxy."""
    import json

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    arguments = [str(theirs.fileno()), json.dumps(allowed_networks(allow))]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _SETUP,
        *arguments,
        stdin=-1,
        stdout=-1,
        stderr=-1,
        pass_fds=[theirs.fileno()],
        env={**os.environ, "PYTHONPATH": str(_REPOSITORY)},
    )
    theirs.close()
    refusals = RefusalLog()
    serving: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(patient(30)):
            sockets = await _received(ours, process)
        proxy = egress_proxy(allow, refusals=refusals, **more)
        serving = asyncio.create_task(proxy.serve(*sockets))
        yield Inside(process, ours, refusals, proxy)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        ours.close()
        if serving is not None:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def _received(control: socket.socket, process: asyncio.subprocess.Process) -> list[socket.socket]:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()

    def report() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(control, report)
    try:
        await ready
    finally:
        loop.remove_reader(control)
    message, fds, _flags, _address = socket.recv_fds(control, 16, 3)
    if message != b"up":
        _out, err = await process.communicate()
        raise AssertionError(err.decode())
    return [socket.socket(fileno=fd) for fd in fds]


def client_hello(name: str | None) -> bytes:
    """Return a real ClientHello, with this server name or none."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def split_records(hello: bytes, size: int) -> bytes:
    """Return the same handshake in records of at most `size` bytes."""
    body = hello[5:]
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(struct.pack(">BHH", 22, 0x0301, len(part)) + part for part in parts)
