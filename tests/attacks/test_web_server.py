"""The cost of unsigned clients for the web server: bounded bytes and seconds, and no connection for long."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import os
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from gibil_bot.cli.serve import web_server
from gibil_bot.config import Secret, Settings
from gibil_bot.http_protocol import ServerLimits, ServerState
from gibil_bot.runs.sqlite.store import open_store
from gibil_bot.web.app import create_app
from gibil_bot.wiring import Bot
from tests.doubles.patience import patient

SECRET = "the secret of these tests"
FORGED = "sha256=" + "0" * 64
WITHIN_S = 20.0


class Connection:
    """A client that sends arbitrary bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(OSError):
            await self.writer.drain()

    async def answer(self) -> tuple[int, dict[str, str], str]:
        """Return the next response. Status 0 if the connection is closed instead."""
        async with asyncio.timeout(patient(WITHIN_S)):
            try:
                head = await self.reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, OSError):
                return 0, {}, ""
            first, *lines = head.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if line)
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return int(first.split()[1]), headers, body.decode()

    async def ended(self) -> bool:
        """Check that the server closes the connection and sends no more."""
        async with asyncio.timeout(patient(WITHIN_S)):
            try:
                return await self.reader.read(1) == b""
            except OSError:
                return True


class Server:
    def __init__(self, port: int, state: ServerState) -> None:
        self.port, self.state = port, state
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return Connection(reader, writer)

    async def ask(self, data: bytes) -> tuple[int, dict[str, str], str]:
        connection = await self.connect()
        await connection.send(data)
        return await connection.answer()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(patient(WITHIN_S)):
            while not condition():
                await asyncio.sleep(0.005)  # the server's own state: there is no event to wait for

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(folder: Path, **limits: float) -> AsyncIterator[Server]:
    """The bot's web application on its real server, in this process. At the end all memory reservations are released."""
    store = await open_store(f"sqlite:///{folder}/gibil.db")
    settings = Settings(data_dir=folder, database_url="", webhook_secrets=(Secret(SECRET),))
    state = ServerState(limits=ServerLimits(**limits))  # type: ignore[arg-type]
    server = web_server(create_app(Bot(settings=settings, store=store), state.rejected), state)
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    client = Server(listener.getsockname()[1], state)
    try:
        yield client
        await client.close()
        await client.until(lambda: state.open == 0)
        assert (state.body_bytes, len(state.waiting)) == (0, 0)
    finally:
        await client.close()
        server.should_exit = True
        await task
        await store.close()


def post(body: bytes, *, signature: str | None = None, length: int | None = None, more: str = "", guid: str = "g") -> bytes:
    signature = signature or "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    head = (
        f"POST /webhook HTTP/1.1\r\nHost: bot\r\nX-GitHub-Delivery: {guid}\r\nX-GitHub-Event: issue_comment\r\n"
        f"X-Hub-Signature-256: {signature}\r\nContent-Length: {len(body) if length is None else length}\r\n{more}\r\n"
    )
    return head.encode() + body


def chunked(signature: str) -> bytes:
    return (
        "POST /webhook HTTP/1.1\r\nHost: bot\r\nX-GitHub-Delivery: c\r\nX-GitHub-Event: issue_comment\r\n"
        f"X-Hub-Signature-256: {signature}\r\nTransfer-Encoding: chunked\r\n\r\n"
    ).encode()


# --- heads


async def test_an_endless_head_is_answered_431_after_64_kib(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        connection = await server.connect()
        await connection.send(b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 65_000)
        await connection.send(b"a" * 65_000)
        status, headers, text = await connection.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert "64 KiB" in text


async def test_a_large_head_that_arrives_at_once_is_answered_431(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert (await server.ask(b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n"))[0] == 431
        assert (await server.ask(b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"))[0] == 431
        assert (await server.ask(b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 60_000 + b"\r\n\r\n"))[0] == 200


async def test_thousands_of_short_header_fields_are_answered_431(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert (await server.ask(b"GET /healthz HTTP/1.1\r\n" + b"a:\r\n" * 10_000 + b"\r\n"))[0] == 431
        assert (await server.ask(b"GET /healthz HTTP/1.1\r\n" + b"a:\r\n" * 100 + b"\r\n"))[0] == 200


async def test_a_second_large_head_on_the_same_connection_is_answered_431(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        connection = await server.connect()
        await connection.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await connection.answer())[0] == 200
        await connection.send(b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000)
        assert (await connection.answer())[0] == 431
        assert await connection.ended()


async def test_a_head_that_does_not_end_in_time_is_answered_408_while_bytes_still_arrive(tmp_path: Path) -> None:
    async with serving(tmp_path, head_s=0.3) as server:
        connection = await server.connect()
        await connection.send(b"GET /healthz HTTP/1.1\r\n")
        answer = asyncio.create_task(connection.answer())
        begun = time.monotonic()
        while not answer.done() and time.monotonic() - begun < patient(WITHIN_S):
            await connection.send(b"a: b\r\n")
            await asyncio.wait({answer}, timeout=0.05)
        assert (await answer)[0] == 408


async def test_a_connection_that_sends_nothing_is_closed(tmp_path: Path) -> None:
    async with serving(tmp_path, head_s=0.2) as server:
        connection = await server.connect()
        assert await connection.ended()


async def test_an_incomplete_second_head_does_not_delay_the_first_request(tmp_path: Path) -> None:
    async with serving(tmp_path, head_s=0.2, linger_s=0.2) as server:
        connection = await server.connect()
        await connection.send(b"GET /healthz HTTP/1.1\r\n\r\nGET /healthz HT")
        assert (await connection.answer())[0] == 200
        assert (await connection.answer())[0] in (408, 0)
        assert await connection.ended()


# --- connections


async def test_incomplete_heads_on_every_connection_leave_room_for_a_delivery(tmp_path: Path) -> None:
    async with serving(tmp_path, connections=20, replaceable_s=0.0) as server:
        for _ in range(60):
            await (await server.connect()).send(b"POST /webhook HTTP/1.1\r\nX-Half: ")
        assert (await server.ask(post(b"{}")))[0] == 202
        await server.until(lambda: server.state.open <= 21)


async def test_idle_connections_and_slow_bodies_are_replaced_by_new_ones(tmp_path: Path) -> None:
    async with serving(tmp_path, connections=20, replaceable_s=0.0) as server:
        for _ in range(15):
            connection = await server.connect()
            await connection.send(b"GET /healthz HTTP/1.1\r\n\r\n")
            assert (await connection.answer())[0] == 200
        for _ in range(15):
            await (await server.connect()).send(post(b"{", signature=FORGED, length=1000))
        assert (await server.ask(post(b"{}")))[0] == 202


async def test_thousands_of_new_connections_a_second_leave_room_for_a_delivery(tmp_path: Path) -> None:
    limits = ServerLimits()
    assert limits.connections / limits.replaceable_s >= 10_000
    async with serving(tmp_path, connections=20) as server:
        for _ in range(20):
            await server.connect()
        await server.until(lambda: server.state.open == 20)
        async with asyncio.timeout(WITHIN_S):
            while (await server.ask(post(b"{}")))[0] != 202:  # like GitHub, until the others are old enough
                pass


async def test_above_the_limit_a_new_connection_is_rejected_while_the_others_are_new(tmp_path: Path) -> None:
    async with serving(tmp_path, connections=3, replaceable_s=60.0) as server:
        for _ in range(3):
            await server.connect()
        await server.until(lambda: server.state.open == 3)
        connection = await server.connect()
        assert (await connection.answer())[0] == 503
        assert await connection.ended()
        assert server.state.rejected == {503: 1}


# --- bodies


async def test_an_unsigned_request_is_rejected_before_its_body_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for signature in ("sha256=00", "sha1=" + "0" * 40, "SHA256=" + "0" * 64, "sha256=" + "g" * 64, "x"):
            connection = await server.connect()
            await connection.send(post(b"", signature=signature, length=24 << 20))
            status, headers, text = await connection.answer()
            assert (status, headers["connection"]) == (401, "close")
            assert "compare the App's webhook secret" in text


async def test_a_declared_length_above_the_limit_is_413_which_the_client_can_read_while_it_sends(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        connection = await server.connect()
        await connection.send(post(b"", signature=FORGED, length=26 << 20))
        for _ in range(26):
            await connection.send(bytes(1 << 20))
        status, headers, _ = await connection.answer()
        assert (status, headers["connection"]) == (413, "close")


@pytest.mark.parametrize("zeros", [1, 5000, 50_000])
async def test_a_declared_length_may_have_leading_zeros(tmp_path: Path, zeros: int) -> None:
    async with serving(tmp_path) as server:
        padded = b"Content-Length: " + b"0" * zeros
        assert (await server.ask(post(b"{}").replace(b"Content-Length: ", padded)))[0] == 202
        assert (await server.ask(post(b"", signature=FORGED, length=26 << 20).replace(b"Content-Length: ", padded)))[0] == 413


async def test_a_rejected_request_gets_no_100_continue(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        status, _, _ = await server.ask(post(b"", signature="none", length=1000, more="Expect: 100-continue\r\n"))
        assert status == 401
        connection = await server.connect()
        await connection.send(post(b"", signature=FORGED, length=2, more="Expect: 100-continue\r\n"))
        assert (await connection.answer())[0] == 100


async def test_a_chunked_body_above_the_limit_is_413(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        connection = await server.connect()
        await connection.send(chunked(FORGED))
        for _ in range(26):
            await connection.send(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
        assert (await connection.answer())[0] == 413


async def test_a_chunked_delivery_is_accepted_and_its_trailers_are_ignored(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        signature = "sha256=" + hmac.new(SECRET.encode(), b'{"a": 1}', hashlib.sha256).hexdigest()
        body = b'4;ext=1\r\n{"a"\r\n4\r\n: 1}\r\n0\r\nX-Hub-Signature-256: none\r\n\r\n'
        assert (await server.ask(chunked(signature) + body))[0] == 202


@pytest.mark.parametrize(
    "piece",
    [b"1;" + b"x" * 4000 + b"\r\na\r\n", b"0\r\nX: " + b"a" * 4000, b"0\r\n" + b"a: b\r\n" * 700],
    ids=["chunk-extensions", "endless-trailer", "many-trailers"],
)
async def test_endless_framing_is_rejected(tmp_path: Path, piece: bytes) -> None:
    async with serving(tmp_path, framing_bytes=100_000) as server:
        connection = await server.connect()
        await connection.send(chunked(FORGED) + piece)
        rest = piece if piece.startswith(b"1") else piece.removeprefix(b"0\r\n").removeprefix(b"X: ")
        for _ in range(100):
            await connection.send(rest)
        assert (await connection.answer())[0] == 400
        assert await connection.ended()


@pytest.mark.parametrize("path", ["/webhook", "/healthz"])
async def test_a_body_that_does_not_end_in_time_ends_the_connection(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path, body_s=0.3, linger_s=0.2) as server:
        connection = await server.connect()
        await connection.send(post(b"{", signature=FORGED, length=1000).replace(b"/webhook", path.encode()))
        assert (await connection.answer())[0] == {"/webhook": 408, "/healthz": 405}[path]
        assert await connection.ended()
        assert (await server.ask(post(b"{}")))[0] == 202


async def test_a_get_with_an_endless_body_is_answered_and_closed(tmp_path: Path) -> None:
    async with serving(tmp_path, body_s=0.3, linger_s=0.2) as server:
        connection = await server.connect()
        await connection.send(b"GET /healthz HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
        assert (await connection.answer())[0] == 200
        assert await connection.ended()


async def test_parallel_large_bodies_share_a_budget_and_ordinary_deliveries_still_pass(tmp_path: Path) -> None:
    async with serving(tmp_path, bodies_bytes=4 << 20) as server:
        connections = [await server.connect() for _ in range(6)]
        for connection in connections:
            await connection.send(post(bytes(1 << 20), signature=FORGED, length=2 << 20))
        answers = [asyncio.create_task(connection.answer()) for connection in connections]
        async with asyncio.timeout(patient(WITHIN_S)):
            done, _ = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result()[0] for task in done} == {503}
        assert server.state.body_bytes <= 4 << 20
        ordinary = b'{"a": "' + b"x" * 60_000 + b'"}'
        assert (await server.ask(post(ordinary)))[0] == 202
        for task in answers:
            task.cancel()
        await asyncio.gather(*answers, return_exceptions=True)


async def test_a_handled_large_delivery_releases_its_part_of_the_budget(tmp_path: Path) -> None:
    async with serving(tmp_path, bodies_bytes=4 << 20) as server:
        connection = await server.connect()
        for number in range(4):
            await connection.send(post(b'{"a": "' + b"x" * (3 << 20) + b'"}', guid=f"g{number}"))
            assert (await connection.answer())[0] == 202


# --- pipelining


async def test_pipelined_deliveries_are_answered_in_order(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        connection = await server.connect()
        await connection.send(post(b"{}") + b"GET /nowhere HTTP/1.1\r\n\r\n" + post(b"{}"))
        answers = [await connection.answer() for _ in range(3)]
        assert [(status, text.strip()[:15]) for status, _, text in answers] == [
            (202, "accepted"), (404, '{"error":"page '), (202, "accepted before"),
        ]  # fmt: skip


async def test_requests_that_arrive_together_are_not_counted_as_one_large_head(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        connection = await server.connect()
        large = b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 40_000 + b"\r\n\r\n"
        await connection.send(large * 6)
        assert [(await connection.answer())[0] for _ in range(6)] == [200] * 6


async def test_thousands_of_pipelined_requests_are_not_held_in_memory(tmp_path: Path) -> None:
    async with serving(tmp_path, linger_s=0.2) as server:
        connection = await server.connect()
        await connection.send(b"GET /healthz HTTP/1.1\r\n\r\n" * 5000)
        answered = 0
        while (await connection.answer())[0] == 200:
            answered += 1
        assert 1 <= answered <= 17 * 5
        assert await connection.ended()


async def test_invalid_bytes_behind_a_request_are_not_answered_before_it(tmp_path: Path) -> None:
    async with serving(tmp_path, linger_s=0.2) as server:
        connection = await server.connect()
        await connection.send(post(b"{}") + b"\x00\x01garbage\r\n\r\n")
        assert (await connection.answer())[0] == 202
        assert await connection.ended()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /webhook HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /webhook HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /webhook HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"CONNECT bot:1 HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
    ],
)
async def test_a_request_that_is_not_http_is_answered_400_and_closed(tmp_path: Path, data: bytes) -> None:
    async with serving(tmp_path, linger_s=0.2) as server:
        connection = await server.connect()
        await connection.send(data)
        assert (await connection.answer())[0] in (400, 401, 405)
        assert await connection.ended()


async def test_an_upgrade_request_is_ignored_and_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(tmp_path, head_s=0.5, linger_s=0.2) as server:
        for protocol in (b"websocket", b"h2c"):
            head = b"GET /healthz HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: " + protocol + b"\r\n\r\n"
            assert (await server.ask(head))[0] == 200
        assert (await server.ask(b"not http\r\n\r\n"))[0] == 400
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []


async def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    async with serving(tmp_path, unread_s=0.2) as server:
        connection = await server.connect()
        await connection.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await connection.answer())[0] == 200
        (protocol,) = server.state.waiting
        protocol.pause_writing()  # as the transport does when its buffer is full
        protocol.resume_writing()
        await connection.send(b"GET /healthz HTTP/1.1\r\n\r\n")
        assert (await connection.answer())[0] == 200
        protocol.pause_writing()
        assert await connection.ended()


# --- the process


class Process:
    def __init__(self, process: subprocess.Popen[bytes], port: int, data_dir: Path) -> None:
        self.process, self.port, self.data_dir = process, port, data_dir

    def resident_mb(self) -> float:
        match = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text())
        assert match is not None
        return int(match[1]) / 1024

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN_S)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Process]:
    """Run `gibil serve`. Neither GitHub nor the provider answers, so no run needs to be waited for."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GIBIL_DATA_DIR": str(tmp_path / "data"),
        "GIBIL_PROVIDER": "hetzner",
        "HCLOUD_TOKEN": "none",
        "HCLOUD_ENDPOINT": "http://127.0.0.1:9/v1",
        "GIBIL_GITHUB_URL": "http://127.0.0.1:9",
        "GIBIL_GITHUB_APP_ID": "1",
        "GIBIL_GITHUB_PRIVATE_KEY": key.decode(),
        "GIBIL_GITHUB_WEBHOOK_SECRET": SECRET,
    }
    (tmp_path / "data").mkdir(mode=0o755)
    command = [sys.executable, "-m", "gibil_bot", "serve", "--port", "0", "--json"]
    with (
        (tmp_path / "bot.log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            assert first, (tmp_path / "bot.log").read_text()
            yield Process(process, json.loads(first)["port"], tmp_path / "data")
        finally:
            process.terminate()
            process.wait(patient(WITHIN_S))


def _refused(connections: list[socket.socket], enough: int) -> int:
    """Return how many connections were answered with 503, up to this number."""
    refused = 0
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ, connection)
        while refused < enough and (ready := selector.select(patient(10))):
            for key, _ in ready:
                selector.unregister(key.fileobj)
                with contextlib.suppress(OSError):
                    refused += key.data.recv(12).endswith(b"503")
    return min(refused, enough)


def test_hundreds_of_megabytes_of_unsigned_uploads_leave_memory_bounded_and_the_webhook_reachable(served: Process) -> None:
    assert served.data_dir.stat().st_mode & 0o777 == 0o700  # it was 0755 before the start
    before = served.resident_mb()
    stop = threading.Event()

    def upload(connection: socket.socket, signature: str) -> None:
        """Upload the announced 24 MiB except for the last byte."""
        with contextlib.suppress(OSError):
            connection.sendall(post(b"", signature=signature, length=24 << 20))
            for _ in range(23):
                connection.sendall(bytes(1 << 20))
            connection.sendall(bytes((1 << 20) - 1))
        stop.wait(WITHIN_S)

    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(served.connect()) for _ in range(24)]
        threads = [threading.Thread(target=upload, args=(each, FORGED)) for each in connections]
        for thread in threads:
            thread.start()
        try:
            assert _refused(connections, 8) == 8  # 256 of 576 MiB are held
            begun = time.monotonic()
            answer = httpx.post(
                f"http://127.0.0.1:{served.port}/webhook",
                content=b"{}",
                headers={
                    "X-GitHub-Delivery": "ordinary",
                    "X-GitHub-Event": "ping",
                    "X-Hub-Signature-256": "sha256=" + hmac.new(SECRET.encode(), b"{}", hashlib.sha256).hexdigest(),
                },
            )
            assert answer.status_code == 202
            assert time.monotonic() - begun < patient(5)
            assert served.resident_mb() - before < 400
        finally:
            stop.set()
            for thread in threads:
                thread.join()
