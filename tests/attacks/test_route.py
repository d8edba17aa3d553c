"""Attempts to reach hosts over a machine's route that it may not reach, to change the route, and to use up the daemon."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gibil_bot.providers.local import resolver as resolver_module
from gibil_bot.providers.local.outbound import Outbound
from gibil_bot.providers.local.resolver import Resolver
from tests.doubles.gatekit import Server, http_server, listening
from tests.doubles.machines import LocalLodging, guest_lodging
from tests.doubles.patience import patient
from tests.doubles.routed import NEIGHBOUR, Neighbours, client_hello, names, routed, split_records

pytestmark = pytest.mark.usefixtures("local_machines")

_CONNECT = """
def reached(address, port, first=b"", pause=0):
    with socket.socket() as tried:
        tried.settimeout(20)
        try:
            tried.connect((address, port))
            for at in range(0, len(first), pause or len(first) or 1):
                tried.sendall(first[at : at + (pause or len(first) or 1)])
            return tried.recv(1000)
        except OSError as error:
            return type(error).__name__.encode()
"""
_ALERT = b"\x15\x03\x03\x00\x02\x02\x31"
"""TLS: access denied."""
_GET = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n"


@pytest.fixture
async def victim() -> AsyncIterator[Server]:
    async with http_server(b"HTTP/1.1 200 OK\r\n\r\nsecret") as server:
        yield server


async def test_only_allowed_ports_of_an_allowed_name_are_reached(victim: Server) -> None:
    """The machine gets a placeholder for the name, and no address of the host's network."""
    async with routed(f"git.corp:{victim.port}", resolve=names({"git.corp": "127.0.0.1", "db.corp": "10.1.2.3"})) as inside:
        printed = await inside.python(
            _CONNECT
            + f"""
code, (git,) = look_up("git.corp")
print(reached(git, {victim.port}, {_GET % b"git.corp"!r}))
print(reached(git, 9, {_GET % b"git.corp"!r})[:12])
code, (db,) = look_up("db.corp")
print(reached(db, 5432, {client_hello("db.corp")!r}))
print(git.startswith("198.19."), db.startswith("198.19."), git != db, reached("198.19.77.77", 80))
"""
        )
        assert printed.splitlines() == [
            repr(b"HTTP/1.1 200 OK\r\n\r\nsecret"),
            repr(b"HTTP/1.1 403"),
            repr(_ALERT),
            f"True True True {b'ConnectionResetError'!r}",
        ]
        blocked = [("git.corp", 9), ("db.corp", 5432)]
        assert inside.refused() == blocked


@pytest.mark.parametrize(
    "first",
    [
        _GET % b"93.184.216.34",
        _GET % b"example.com",
        b"GET / HTTP/1.1\r\nHost: git.corp\r\nHost: example.com\r\n\r\n",
        client_hello("example.com"),
        split_records(client_hello("git.corp"), 5),
        client_hello(None),
        b"",
        b"SSH-2.0-x\r\n",
    ],
    ids=["http", "lying-http", "two-hosts", "lying-tls", "hello-in-crumbs", "tls-without-name", "silent", "ssh"],
)
async def test_no_first_bytes_make_a_blocked_address_reachable(first: bytes, victim: Server) -> None:
    """Neither with a name that the operator allows, nor with a public one."""
    known = {"git.corp": "127.0.0.1", "example.com": "93.184.216.34"}
    async with routed(f"git.corp:{victim.port}", resolve=names(known), host_network=Neighbours()) as inside:
        printed = await inside.python(_CONNECT + f"print(reached({NEIGHBOUR!r}, {victim.port}, {first!r})[:12])")
        assert inside.refused() == [(NEIGHBOUR, victim.port)]
    assert printed.strip() in (repr(b"ConnectionRe"), repr(b"HTTP/1.1 403"), repr(_ALERT))
    assert victim.heard == []


@pytest.mark.parametrize("pause", [0, 7])
async def test_an_allowed_name_leads_to_the_address_that_the_proxy_resolves(pause: int, victim: Server) -> None:
    """Never to the address that the machine chose."""
    request = _GET % b"git.corp"
    known = {"git.corp": "127.0.0.1"}
    async with routed(f"git.corp:{victim.port}", resolve=names(known), host_network=Neighbours()) as inside:
        printed = await inside.python(_CONNECT + f"print(reached({NEIGHBOUR!r}, {victim.port}, {request!r}, {pause}))")
        assert inside.refused() == []
    assert printed.strip() == repr(b"HTTP/1.1 200 OK\r\n\r\nsecret")
    assert victim.heard == [request]


@pytest.mark.parametrize("size", [0, 100])
async def test_the_name_in_tls_is_read_from_a_split_hello_too(size: int) -> None:
    heard = bytearray()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(5))
        writer.write(b"reached")
        await writer.drain()

    hello = split_records(client_hello("git.corp"), size) if size else client_hello("git.corp")
    async with listening(record) as port:
        known = names({"git.corp": "127.0.0.1"})
        async with routed(f"git.corp:{port}", resolve=known, host_network=Neighbours()) as inside:
            script = f"print(reached({NEIGHBOUR!r}, {port}, {hello!r}, 50))"
            assert (await inside.python(_CONNECT + script)).strip() == repr(b"reached")
    assert heard == hello[:5]


async def test_a_blocked_address_is_reported_by_the_name_that_belongs_to_it() -> None:
    known = {"shop.example": NEIGHBOUR, "bank.example": "93.184.216.34"}
    async with routed(resolve=names(known), host_network=Neighbours()) as inside:
        script = f"""
for name, first in ({client_hello("shop.example")!r}, 443), ({client_hello("bank.example")!r}, 444):
    print(reached({NEIGHBOUR!r}, first, name))
"""
        assert (await inside.python(_CONNECT + script)).splitlines() == [repr(_ALERT)] * 2
        assert inside.refused() == [("shop.example", 443), (NEIGHBOUR, 444)]


async def test_a_name_that_changes_its_address_gains_nothing(victim: Server) -> None:
    """DNS rebinding: public when it is asked for, private when it is used; and the reverse."""
    answers = iter(["93.184.216.34"] + ["127.0.0.1"] * 9)

    async def liar(host: str, port: int) -> list[tuple[Any, ...]]:
        return [(next(answers) if host == "evil.example" else host, port)]

    async with routed(resolve=liar, connect_s=0.3) as inside:
        printed = await inside.python(
            _CONNECT
            + f"""
code, addresses = look_up("evil.example")
print(addresses, reached(addresses[0], {victim.port}, b"GET / HTTP/1.1\\r\\nHost: evil.example\\r\\n\\r\\n"))
"""
        )
    assert printed.startswith("['93.184.216.34'] ")
    assert victim.heard == []


async def test_private_addresses_are_silent_and_reported() -> None:
    script = """
for address in ("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "192.0.0.192"):
    with socket.socket() as tried:
        tried.settimeout(0.2)
        try:
            tried.connect((address, 80))
            print("reached", address)
        except TimeoutError:
            pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    sender.settimeout(0.2)
    sender.sendto(b"x", ("8.8.8.8", 123))
    try:
        print(sender.recv(9))
    except TimeoutError:
        print("silent")
try:
    socket.create_connection(("2606:4700::1", 80), 5)
except OSError as error:
    print(error.strerror)
"""
    async with routed() as inside:
        assert (await inside.python(script)).splitlines() == ["silent", "Network is unreachable"]
        private = ("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200", "192.0.0.192")
        assert inside.refused() == [(address, 80) for address in private]


async def test_questions_to_every_dns_server_get_the_same_answer() -> None:
    known = {"one.example": "93.184.216.34 10.0.0.1", "six.example": "2606:4700::1111", "loop.example": "127.0.0.1"}
    script = """
for server in ("192.0.0.53", "8.8.8.8", "10.0.0.53"):
    print(look_up("one.example", server))
print(look_up("missing.example"), look_up("x.invalid"), look_up("one.example", kind=28), look_up("one.example", kind=16))
print(look_up("six.example")[1][0].startswith("198.19."), look_up("loop.example"), look_up("a.localhost"))
with socket.create_connection(("1.1.1.1", 53), 10) as stream:
    for number in range(2):
        asked = question("one.example")
        stream.sendall(len(asked).to_bytes(2, "big") + asked)
        size = int.from_bytes(stream.recv(2), "big")
        print(answered(stream.recv(size)))
"""
    async with routed(resolve=names(known)) as inside:
        first, second, third, missing, others, *streamed = (await inside.python(script)).splitlines()
    public = "(0, ['93.184.216.34'])"
    assert first == second == third == public
    assert missing == "(3, []) (3, []) (0, []) (0, [])"
    assert others == "True (0, ['127.0.0.1']) (0, ['127.0.0.1'])"
    assert streamed == [public] * 2


async def test_a_flood_of_questions_delays_the_daemon_little() -> None:
    """The event loop of the daemon serves all machines."""
    asked = []

    async def count(host: str, port: int) -> list[tuple[Any, ...]]:
        asked.append(host)
        return [("93.184.216.34", port)]

    script = """
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
    flood.connect(("192.0.0.53", 53))
    until, sent = time.monotonic() + 2, 0
    while time.monotonic() < until:
        for _ in range(100):
            flood.send(question(f"{'a' * 60}{sent}.example"))
            sent += 1
print(sent)
"""
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    async with routed(resolve=count) as inside:
        watching = asyncio.create_task(watch())
        sent = int(await inside.python(script))
        watching.cancel()
    assert sent > 1000
    assert len(asked) <= resolver_module.NAMES_BURST + patient(10) * resolver_module.NAMES_PER_S
    assert longest < patient(1)


async def test_the_volume_that_names_can_carry_out_is_bounded() -> None:
    asked = []

    async def count(host: str, port: int) -> list[tuple[Any, ...]]:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "unknown name")

    outbound = Outbound((), resolve=count, host_network=Neighbours())
    resolver = Resolver(outbound)
    for number in range(2000):
        label = f"{number:060d}".encode()
        await resolver.answer(b"\0\1\1\0\0\1\0\0\0\0\0\0" + bytes([len(label)]) + label + b"\0\0\1\0\1")
    outbound.close()
    assert resolver_module.NAMES_BURST <= len(asked) <= resolver_module.NAMES_BURST + 100


async def test_slow_first_bytes_are_cut_off() -> None:
    script = """
began = time.monotonic()
with socket.create_connection(("20.0.0.1", 443), 20) as slow:
    try:
        while True:
            slow.sendall(b"\\x16\\x03\\x01\\x40\\x00"[:1])
            time.sleep(0.05)
    except OSError:
        print(time.monotonic() - began < 15)
"""
    async with routed(host_network=Neighbours()) as inside:
        assert (await inside.python(script)).strip() == "True"


async def test_connections_to_the_listener_itself_are_ordinary_proxy_requests(victim: Server) -> None:
    request = f"CONNECT 127.0.0.1:{victim.port} HTTP/1.1\r\n\r\n".encode()
    async with routed() as inside:
        printed = await inside.python(_CONNECT + f"print(reached('127.0.0.1', 3128, {request!r})[:12])")
        assert printed.strip() == repr(b"HTTP/1.1 403")


async def test_a_server_that_answers_first_is_relayed() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hello")
        await writer.drain()
        await reader.read()

    async with listening(greet) as port, routed("mail.corp", resolve=names({"mail.corp": "127.0.0.1"})) as inside:
        printed = await inside.python(
            f"s = socket.create_connection((look_up('mail.corp')[1][0], {port}), 20); print(s.recv(99))"
        )
        assert printed.strip() == repr(b"220 hello")


@pytest.fixture
async def lodging(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    async with guest_lodging(tmp_path_factory) as lodging:
        yield lodging


async def test_jobs_cannot_change_route_rules_or_addresses(lodging: LocalLodging) -> None:
    """Nothing would be reachable without them, but a job could listen to others' connections."""
    machine = await lodging.provider.create(lodging.spec("changer"))
    script = r"""
import socket, struct
def ask(protocol, kind, body):
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol) as link:
            link.send(struct.pack("=IHHII", len(body) + 16, kind, 0x1 | 0x4 | 0x400, 1, 0) + body)
            return struct.unpack_from("=i", link.recv(4096), 16)[0]
    except OSError as error:
        return -error.errno
index = socket.if_nametoindex("lo")
address = socket.inet_aton("10.0.0.9")
attribute = lambda kind, value: struct.pack("=HH", len(value) + 4, kind) + value
print(ask(0, 20, struct.pack("=BBBBI", 2, 32, 0, 0, index) + attribute(2, address) + attribute(1, address)))
out = attribute(4, struct.pack("=I", index))
print(ask(0, 24, struct.pack("=BBBBBBBBI", 2, 8, 0, 0, 254, 4, 0, 1, 0) + attribute(1, address) + out))
print(ask(0, 25, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 0, 0)))
print(ask(0, 16, struct.pack("=BBHiII", 0, 0, 0, index, 0, 1)))
print(ask(12, 0xA02, b"\2\0\0\0"))
"""
    printed = (await lodging.run(machine, "python3 - 2>&1", input=script)).stdout
    assert str(printed).split() == ["-1", "-1", "-1", "-1", "-93"], "EPERM, and EPROTONOSUPPORT for the packet filter"
    commands = "ip link add d type dummy || ip addr add 10.0.0.9/8 dev lo || nft flush ruleset || iptables -t nat -F"
    assert (await lodging.run(machine, f"({commands}) 2>/dev/null && echo changed")).stdout == ""
