"""DNS for machines: messages, and which addresses a machine gets."""

from __future__ import annotations

import asyncio
import socket
import struct
from ipaddress import IPv4Address
from typing import Any

import pytest

from gibil_bot.providers.local import dns_message as dns
from gibil_bot.providers.local.outbound import Outbound
from gibil_bot.providers.local.resolver import MOST_AT_A_TIME, MOST_NAMES, Resolver
from gibil_bot.providers.local.route import PLACEHOLDERS
from tests.doubles.routed import Neighbours, names


def question(name: str, kind: int = dns.A, *, flags: int = 0x100, counts: tuple[int, ...] = (1, 0, 0, 0)) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 7, flags, *counts) + labels + struct.pack(">BHH", 0, kind, 1)


def read(response: bytes | None) -> tuple[int, list[str]]:
    """Return the code and the addresses of a response to a question of type A."""
    assert response is not None
    assert len(response) <= 512
    number, flags, _questions, answers, _, _ = struct.unpack_from(">HHHHHH", response)
    assert number == 7
    records = response[len(response) - 16 * answers :]
    return flags & 15, [str(IPv4Address(records[16 * at + 12 : 16 * at + 16])) for at in range(answers)]


def resolver(known: dict[str, str], *allow: str) -> Resolver:
    return Resolver(Outbound(allow, own_name="box", resolve=names(known), host_network=Neighbours()))


async def ask(known: dict[str, str], name: str, *allow: str, kind: int = dns.A) -> tuple[int, list[str]]:
    return read(await resolver(known, *allow).answer(question(name, kind)))


async def test_a_machine_gets_the_addresses_that_it_may_reach() -> None:
    known = {"a.example": "93.184.216.34 10.0.0.1 93.184.216.35", "b.example": "10.0.0.1"}
    assert await ask(known, "A.Example") == (0, ["93.184.216.34", "93.184.216.35"])
    assert await ask(known, "b.example", "10.0.0.0/8") == (0, ["10.0.0.1"])


@pytest.mark.parametrize(
    ("addresses", "allow"),
    [
        ("10.0.0.1", ()),
        ("20.0.0.1", ()),
        ("2606:4700::1111", ()),
        ("10.0.0.1", ("x.example",)),
        ("127.0.0.1", ("x.example:80",)),
        ("10.0.0.1", ("10.0.0.1:80",)),
        ("169.254.169.254", ("169.254.169.254:80",)),
    ],
)
async def test_other_addresses_are_replaced_by_a_placeholder(addresses: str, allow: tuple[str, ...]) -> None:
    server = resolver({"x.example": addresses, "y.example": "10.9.9.9"}, *allow)
    code, (address,) = read(await server.answer(question("x.example")))
    assert code == 0
    assert IPv4Address(address) in PLACEHOLDERS
    assert server.name_of(address) == "x.example"
    assert read(await server.answer(question("y.example"))) != (0, [address])


async def test_loopback_is_the_machine_itself() -> None:
    assert await ask({"lvh.example": "127.0.0.1"}, "lvh.example") == (0, ["127.0.0.1"])
    assert await ask({}, "deep.app.localhost") == (0, ["127.0.0.1"])
    assert await ask({}, "box") == (0, ["127.0.1.1"])
    aaaa = await resolver({}).answer(question("app.localhost", dns.AAAA))
    assert aaaa is not None
    assert aaaa.endswith(socket.inet_pton(socket.AF_INET6, "::1"))


async def test_missing_names_and_failures_are_distinguished() -> None:
    async def fail(host: str, port: int) -> list[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_AGAIN, "no server answers")

    assert await ask({}, "missing.example") == (dns.NAME_ERROR, [])
    assert await ask({}, "x.onion") == (dns.NAME_ERROR, [])
    assert await ask({"a.example": "93.184.216.34"}, "a.example", kind=dns.AAAA) == (0, [])
    assert await ask({}, "7.0.0.127.in-addr.arpa", kind=dns.PTR) == (dns.NAME_ERROR, [])
    failing = Resolver(Outbound((), resolve=fail, host_network=Neighbours()))
    assert read(await failing.answer(question("a.example"))) == (dns.SERVER_FAILURE, [])


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"", None),
        (b"\0" * 11, None),
        (question("a.example", flags=0x8000), None),
        (question("a.example") + b"\0" * 1024, None),
        (question("a.example", flags=0x2800), dns.NOT_IMPLEMENTED),
        (question("a.example", counts=(2, 0, 0, 0)), dns.FORMAT_ERROR),
        (question("a.example", counts=(0, 0, 0, 0)), dns.FORMAT_ERROR),
        (question("a.example")[:-3], dns.FORMAT_ERROR),
        (struct.pack(">HHHHHH", 7, 0, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1", dns.FORMAT_ERROR),
        (question(".".join(["a" * 63] * 4)), dns.FORMAT_ERROR),
        (question("a b.example"), dns.NAME_ERROR),
        (question("a/b.example"), dns.NAME_ERROR),
    ],
)
async def test_malformed_questions_cost_nothing(message: bytes, code: int | None) -> None:
    async def never(host: str, port: int) -> list[tuple[Any, ...]]:
        raise AssertionError(host)

    response = await Resolver(Outbound((), resolve=never, host_network=Neighbours())).answer(message)
    assert response is None if code is None else read(response) == (code, [])


async def test_a_name_is_resolved_once_for_many_questions() -> None:
    asked = []

    async def count(host: str, port: int) -> list[tuple[Any, ...]]:
        asked.append(host)
        await asyncio.sleep(0)
        return [("93.184.216.34", port)]

    server = Resolver(Outbound((), resolve=count, host_network=Neighbours()))
    for _ in range(2):
        await asyncio.gather(*(server.answer(question("a.example", kind)) for kind in (dns.A, dns.AAAA) * 5))
    assert asked == ["a.example"]


async def test_names_that_never_resolve_leave_room_for_an_error() -> None:
    async def never(host: str, port: int) -> list[tuple[Any, ...]]:
        await asyncio.Event().wait()
        return []

    server = Resolver(Outbound((), resolve=never, host_network=Neighbours()))
    waiting = [asyncio.create_task(server.answer(question(f"n{number}.example"))) for number in range(MOST_AT_A_TIME)]
    await asyncio.sleep(0)
    assert read(await server.answer(question("one-more.example"))) == (dns.SERVER_FAILURE, [])
    for task in (*waiting, *server._pending.values()):
        task.cancel()
    await asyncio.gather(*waiting, *server._pending.values(), return_exceptions=True)


def test_placeholders_are_bounded_and_not_soon_used_again() -> None:
    server = resolver({})
    first = server._placeholder("first.example")
    later = {server._placeholder(f"n{number}.example") for number in range(MOST_NAMES)}
    assert len(later) == MOST_NAMES
    assert first not in later
    assert server.name_of(str(first)) is None
    assert len(server._placeholders) == MOST_NAMES
