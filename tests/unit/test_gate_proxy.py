"""The egress proxy forwards requests unchanged, and one connection never affects another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

import pytest

from gibil_bot.errors import ConfigurationError
from gibil_bot.providers.local.relay import forward, reset
from tests.doubles.gatekit import ask, dial, egress_proxy, http_server, listening, proxy
from tests.doubles.patience import patient


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"end")
    writer.write_eof()
    await writer.drain()


async def test_a_request_and_its_response_are_forwarded() -> None:
    async with http_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", body=4) as server, proxy("127.0.0.1") as port:
        answer = await ask(port, f"POST http://127.0.0.1:{server.port}/x HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody".encode())
    assert answer == b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi"
    (heard,) = server.heard
    assert heard.startswith(f"POST /x HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n".encode())
    assert heard.endswith(b"\r\n\r\nbody")


async def test_chunks_and_interim_responses_are_forwarded() -> None:
    answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    async with http_server(answer) as server, proxy("127.0.0.1") as port:
        request = f"POST http://127.0.0.1:{server.port}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        got = await ask(port, request.encode() + b"3;ext=1\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n")
    assert got.endswith(b"2\r\nhi\r\n0\r\n\r\n")
    assert server.heard[0].endswith(b"\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n")
    assert b"Expect: 100-continue" in server.heard[0]


async def test_a_tunnel_is_exact_in_both_directions_and_can_be_half_closed() -> None:
    content = os.urandom(3_000_000)
    async with listening(echo) as far, proxy(f"localhost:{far}") as port, dial(port) as (reader, writer):
        writer.write(f"CONNECT localhost:{far} HTTP/1.1\r\n\r\n".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"

        async def send() -> None:
            writer.write(content)
            await writer.drain()
            writer.write_eof()

        async with asyncio.timeout(patient(20)):
            _, received = await asyncio.gather(send(), reader.read())
        assert received == content + b"end"


async def test_a_slow_reader_stops_the_sender() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536

    async with listening(flood) as far, proxy("127.0.0.1") as port, dial(port) as (_, writer):
        writer.write(f"CONNECT 127.0.0.1:{far} HTTP/1.1\r\n\r\n".encode())
        before = -1
        async with asyncio.timeout(patient(20)):
            while before != sent:  # until it blocks
                before = sent
                await asyncio.sleep(0.2)
        assert sent < 64 * 1024 * 1024  # the kernel's buffers, and not the proxy's memory
        writer.transport.abort()


async def test_an_incomplete_response_does_not_look_complete() -> None:
    async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\npart")
        await writer.drain()
        reset(writer)

    async with listening(breaks_off) as far, proxy("127.0.0.1") as port, dial(port) as (reader, writer):
        writer.write(f"GET http://127.0.0.1:{far}/ HTTP/1.1\r\n\r\n".encode())
        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.parametrize(
    ("request_line", "status", "words"),
    [
        ("GET http://10.1.2.3/ HTTP/1.1", 403, "gibil: 10.1.2.3:80 is not a public address"),
        ("CONNECT 169.254.169.254:80 HTTP/1.1", 403, "GIBIL_EGRESS_ALLOW=169.254.169.254:80"),
        ("GET http://no-such-host.invalid/ HTTP/1.1", 502, "gibil: cannot resolve no-such-host.invalid"),
        ("GET http://127.0.0.1:{closed}/ HTTP/1.1", 502, "gibil: cannot connect to 127.0.0.1:{closed}: Connection refused"),
        ("GET /x HTTP/1.1", 400, "gibil: use the absolute URL"),
        ("nonsense", 400, "gibil: not an HTTP/1.1 proxy request"),
    ],
)
async def test_rejected_requests_get_the_reason_in_one_line(request_line: str, status: int, words: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = str(probe.getsockname()[1])
        async with proxy(f"127.0.0.1:{closed}") as port:
            answer = (await ask(port, request_line.replace("{closed}", closed).encode() + b"\r\n\r\n")).decode()
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert words.replace("{closed}", closed) in answer
    assert answer.partition("\r\n\r\n")[2].count("\n") == 1


async def test_a_server_that_does_not_speak_http_is_a_bad_gateway() -> None:
    for nonsense in (b"SSH-2.0-OpenSSH\r\n\r\n", b"", b"x" * 200_000):
        async with http_server(nonsense) as server, proxy("127.0.0.1") as port:
            answer = await ask(port, f"GET http://127.0.0.1:{server.port}/ HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 502 ")


async def test_a_name_that_does_not_resolve_in_time_is_a_timeout() -> None:
    async def never(host: str, port: int) -> list[tuple[object, ...]]:
        await asyncio.Event().wait()
        raise AssertionError

    async with proxy(resolve=never, connect_s=0.1) as port:
        assert (await ask(port, b"CONNECT slow.example:443 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 504 ")


async def test_the_next_address_is_tried_after_a_failure() -> None:
    async with http_server() as server:

        async def two(host: str, port: int) -> list[tuple[object, ...]]:
            return [("127.0.0.2", port), ("127.0.0.1", port)]

        async with proxy("127.0.0.0/8", resolve=two) as port:
            answer = await ask(port, f"GET http://two.example:{server.port}/ HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 204 ")


async def test_an_idle_tunnel_is_closed() -> None:
    async with listening(echo) as far, proxy("127.0.0.1", idle_s=0.2) as port:
        async with asyncio.timeout(patient(5)):
            assert await ask(port, f"CONNECT 127.0.0.1:{far} HTTP/1.1\r\n\r\n".encode()) in (
                b"HTTP/1.1 200 Connection established\r\n\r\n",
                b"(reset)",
            )


async def test_stopping_closes_every_connection() -> None:
    async with listening(echo) as far, contextlib.AsyncExitStack() as clients:
        async with proxy("127.0.0.1") as port:
            reader, writer = await clients.enter_async_context(dial(port))
            writer.write(f"CONNECT 127.0.0.1:{far} HTTP/1.1\r\n\r\nhello".encode())
            assert (await reader.readexactly(44))[-5:] == b"hello"
        async with asyncio.timeout(patient(5)):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""


async def test_an_invalid_list_is_reported_at_once() -> None:
    with pytest.raises(ConfigurationError, match="GIBIL_EGRESS_ALLOW"):
        egress_proxy(("http://nonsense",))


async def test_forward_relays_to_its_only_endpoint() -> None:
    async with listening(echo) as far:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        forwarding = asyncio.create_task(forward(listener, "127.0.0.1", far))
        for content in (b"one", b"two"):
            async with dial(port) as (reader, writer):
                writer.write(content)
                writer.write_eof()
                assert await reader.read() == content + b"end"
        forwarding.cancel()
        await asyncio.gather(forwarding, return_exceptions=True)
        assert listener.fileno() == -1
