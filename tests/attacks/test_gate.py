"""Attempts to reach services through the egress proxy that only the host may reach."""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from collections.abc import Callable

import pytest

from gibil_bot.model import Refusal, Refusals
from gibil_bot.providers.local.outbound import MOST_REFUSALS, RefusalLog
from tests.doubles.gatekit import Server, ask, dial, http_server, proxy
from tests.doubles.patience import patient


def get_request(server: Server, host: str) -> bytes:
    return f"GET http://{host}:{server.port}/ HTTP/1.1\r\n\r\n".encode()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "LOCALHOST.",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "0.0.0.0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "127.0.0.1%00.example.com",
        "127.0.0.1\\.example.com",
        "example.com@127.0.0.1",
    ],
)
async def test_no_spelling_of_loopback_is_allowed(host: str) -> None:
    async with http_server() as server, proxy() as port:
        for request in (get_request(server, host), f"CONNECT {host}:{server.port} HTTP/1.1\r\n\r\n".encode()):
            answer = await ask(port, request)
            assert answer[:12] in (b"HTTP/1.1 403", b"HTTP/1.1 400", b"HTTP/1.1 502"), answer
            # This remedy isn't offered, because it would only open the host's own services.
            assert b"GIBIL_EGRESS_ALLOW" not in answer
            assert answer[:12] != b"HTTP/1.1 403" or b"is this machine itself" in answer
        assert server.heard == []


@pytest.mark.parametrize("host", ["box", "BOX", "box.", "localhost", "app.localhost", "a.b.localhost"])
async def test_a_machines_own_names_mean_itself_whatever_they_resolve_to(host: str) -> None:
    async def clash(name: str, port: int) -> list[tuple[object, ...]]:
        if "app" in name:
            raise OSError("no such name")
        return [("10.0.0.5", port), ("93.184.216.34", port)]  # as a search domain of the host may resolve it

    async with proxy(own_name="box", resolve=clash) as port:
        answer = await ask(port, f"CONNECT {host}:80 HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"is this machine itself" in answer
        assert b"GIBIL_EGRESS_ALLOW" not in answer


async def test_blocked_endpoints_are_reported_in_the_status_line_and_recorded_once() -> None:
    log = RefusalLog()
    async with proxy(refusals=log) as port:
        for _ in range(3):
            answer = await ask(port, b"CONNECT 10.0.0.1:443 HTTP/1.1\r\n\r\n")
            assert answer.splitlines()[0] == (
                b"HTTP/1.1 403 10.0.0.1:443 is not a public address, so machines may not reach it; "
                b"the operator can allow it with GIBIL_EGRESS_ALLOW=10.0.0.1:443"
            )
        assert log.since(0).refused == (Refusal(host="10.0.0.1", port=443),)
        moment = time.monotonic()
        await ask(port, b"GET http://[fd00::1]:8000/ HTTP/1.1\r\n\r\n")
        await ask(port, b"GET http://127.0.0.2/ HTTP/1.1\r\n\r\n")
        await ask(port, b"nonsense\r\n\r\n")
    expected = (Refusal(host="fd00::1", port=8000), Refusal(host="127.0.0.2", port=80, itself=True))
    assert log.since(moment).refused == expected
    assert log.since(time.monotonic()) == Refusals()


def test_endless_rejections_use_bounded_memory() -> None:
    log = RefusalLog()
    for number in range(10_000):
        log.add(Refusal(host=f"host-{number}.example", port=443))
    seen = log.since(0)
    assert (len(seen.refused), seen.more) == (MOST_REFUSALS, True)
    assert seen.refused[-1].host == "host-9999.example"
    moment = time.monotonic()
    log.add(Refusal(host="last.example", port=1))
    later = log.since(moment)
    assert (later.refused, later.more) == ((Refusal(host="last.example", port=1),), False)


async def test_a_name_whose_address_changes_gains_nothing() -> None:
    """DNS rebinding: public when it is checked, loopback a moment later."""
    answers = [[("93.184.216.34", 80)], [("127.0.0.1", 80)]]
    asked = 0

    async def liar(host: str, port: int) -> list[tuple[object, ...]]:
        nonlocal asked
        asked += 1
        return [(address, port) for address, _ in answers[min(asked, 2) - 1]]

    async with http_server() as server, proxy(resolve=liar, connect_s=0.3) as port:
        await ask(port, get_request(server, "rebind.example"))
        assert asked == 1  # one answer is used for the check and the connection
        assert (await ask(port, get_request(server, "rebind.example"))).startswith(b"HTTP/1.1 403")
        assert server.heard == []


async def test_a_private_address_among_public_ones_is_not_tried() -> None:
    async def mixed(host: str, port: int) -> list[tuple[object, ...]]:
        return [("127.0.0.1", port), ("::1", port, 0, 0), ("::ffff:127.0.0.1", port, 0, 0), ("240.0.0.1", port)]

    async with http_server() as server, proxy(resolve=mixed) as port:
        assert (await ask(port, get_request(server, "mixed.example"))).startswith(b"HTTP/1.1 403")
        assert server.heard == []


async def test_an_allowed_name_does_not_open_its_address_to_other_names_or_ports() -> None:
    async def both(host: str, port: int) -> list[tuple[object, ...]]:
        return [("127.0.0.1", port)]

    async with http_server() as server, http_server() as other:
        async with proxy(f"git.corp:{server.port}", resolve=both) as port:
            assert (await ask(port, get_request(server, "git.corp"))).startswith(b"HTTP/1.1 204")
            assert (await ask(port, get_request(server, "evil.example"))).startswith(b"HTTP/1.1 403")
            assert (await ask(port, get_request(server, "127.0.0.1"))).startswith(b"HTTP/1.1 403")
            assert (await ask(port, get_request(other, "git.corp"))).startswith(b"HTTP/1.1 403")
        assert other.heard == []


async def test_the_hosts_own_address_is_not_public() -> None:
    """The host's firewall blocks the outside, but would allow connections from the host itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this host has no route to the internet, and therefore no address")
        own = probe.getsockname()[0]
    from gibil_bot.providers.local import outbound as module
    from gibil_bot.providers.local.egress_policy import parse_address

    assert module._is_this_host(parse_address(own))
    assert module._is_this_host(parse_address("127.0.0.1"))
    assert not module._is_this_host(parse_address("93.184.216.34"))


Smuggling = Callable[[Server, Server], bytes]


@pytest.mark.parametrize(
    "attack",
    [
        # A second request behind the first, to a host that isn't allowed.
        lambda ok, no: get_request(ok, "127.0.0.1") + get_request(no, "localhost"),
        # The same right after the declared body.
        lambda ok, no: (
            f"POST http://127.0.0.1:{ok.port}/ HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
            f"GET http://localhost:{no.port}/ HTTP/1.1\r\n\r\n"
        ).encode(),
        # Both a length and chunks.
        lambda ok, no: (
            f"POST http://127.0.0.1:{ok.port}/ HTTP/1.1\r\nContent-Length: 4\r\n"
            "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nSMUGGLED"
        ).encode(),
        # A Host that differs from the address.
        lambda ok, no: f"GET http://127.0.0.1:{ok.port}/ HTTP/1.1\r\nHost: localhost:{no.port}\r\n\r\n".encode(),
        # Bare line feeds as line ends.
        lambda ok, no: f"GET http://127.0.0.1:{ok.port}/ HTTP/1.1\nX: SMUGGLED\r\n\r\n".encode(),
        # Chunks that two parsers could count differently.
        lambda ok, no: (
            f"POST http://127.0.0.1:{ok.port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x4\r\nSMUGGLED\r\n0\r\n\r\n"
        ).encode(),
        lambda ok, no: (
            f"POST http://127.0.0.1:{ok.port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabSMUGGLED\r\n0\r\n\r\n"
        ).encode(),
    ],
)
async def test_no_request_can_be_smuggled_behind_another(attack: Smuggling) -> None:
    async with http_server() as allowed, http_server() as forbidden, proxy("127.0.0.1") as port:
        await ask(port, attack(allowed, forbidden))
        assert forbidden.heard == []
        for heard in allowed.heard:
            assert b"SMUGGLED" not in heard
            assert heard.count(b" HTTP/1.1") == 1
            assert f"Host: 127.0.0.1:{allowed.port}".encode() in heard
            assert heard.count(b"Host:") == 1


async def test_a_slow_request_times_out_and_delays_no_other() -> None:
    async with http_server() as server, proxy("127.0.0.1", head_s=0.5) as port, asyncio.timeout(patient(20)):

        async def slowloris() -> bytes:
            async with dial(port) as (reader, writer):
                writer.write(b"GET http://127.0.0.1/ HTTP/1.1\r\n")
                for number in range(100):
                    writer.write(f"X-{number}: 1\r\n".encode())
                    try:
                        async with asyncio.timeout(0.02):
                            return await reader.readline()
                    except TimeoutError:
                        continue
                return b"still open"

        slow = [asyncio.create_task(slowloris()) for _ in range(50)]
        assert (await ask(port, get_request(server, "127.0.0.1"))).startswith(b"HTTP/1.1 204")
        for answer in await asyncio.gather(*slow):
            assert answer.startswith(b"HTTP/1.1 408")


async def test_an_endless_head_is_bounded() -> None:
    async with proxy() as port:
        answer = await ask(port, b"GET http://x/ HTTP/1.1\r\nA: " + b"a" * 10_000_000)
        assert answer.startswith(b"HTTP/1.1 431") or answer == b"(reset)"
        assert (await ask(port, b"GET http://10.0.0.1/ HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 403")


async def test_connections_above_the_limit_wait_and_are_served() -> None:
    """A machine may have 512 connections at a time; others wait in the backlog, so that the daemon keeps free descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # client and proxy are both in this process
    async with http_server() as server, proxy("127.0.0.1", head_s=1.0) as port:
        idle = []
        for _ in range(540):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            idle.append(writer)
        async with asyncio.timeout(patient(20)):
            assert (await ask(port, get_request(server, "127.0.0.1"))).startswith(b"HTTP/1.1 204")
        for writer in idle:
            writer.transport.abort()
        await asyncio.sleep(0)
