"""Hostile traffic to the model proxy: from machines that have a token, and from clients that have none."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gibil_bot.agents.proxy import app
from gibil_bot.agents.proxy.app import Patience
from gibil_bot.http_protocol import ServerLimits
from tests.doubles.models import CountingBudget, Machine, proxied, request
from tests.doubles.patience import patient

WITHIN_S = 20.0
BODY = json.dumps(request("anthropic")).encode()


class Raw:
    """A client that sends arbitrary bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def status(self) -> int:
        """Return the next answer's status; 0 if the connection is closed instead."""
        async with asyncio.timeout(patient(WITHIN_S)):
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                head = await self.reader.readuntil(b"\r\n\r\n")
                return int(head.split()[1])
        return 0

    async def rest(self) -> bytes:
        """Return what comes until the end of the connection."""
        async with asyncio.timeout(patient(WITHIN_S)):
            with contextlib.suppress(OSError):
                return await self.reader.read()
        return b""


@contextlib.asynccontextmanager
async def connected(machine: Machine, data: bytes) -> AsyncIterator[Raw]:
    reader, writer = await asyncio.open_connection("127.0.0.1", machine.proxy.port)
    try:
        writer.write(data)
        with contextlib.suppress(OSError):
            await writer.drain()
        yield Raw(reader, writer)
    finally:
        writer.transport.abort()


def post(
    machine: Machine, body: bytes = BODY, *, path: str = "/v1/messages", more: str = "", length: int | None = None
) -> bytes:
    token = machine.access.token.reveal()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: proxy\r\nx-api-key: {token}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body) if length is None else length}\r\n{more}\r\n"
    )
    return head.encode() + body


# --- bodies that mean two things


async def test_of_a_name_that_occurs_twice_the_vendor_gets_the_value_that_was_checked() -> None:
    async with proxied("anthropic") as machine:
        body = BODY[:-1] + b', "model": "claude-opus-4-1"}'
        assert (await machine.post(body)).status_code == 400
        body = b'{"model": "claude-opus-4-1", "tools": [{"type": "web_search_20250305"}], ' + BODY[1:]
        assert (await machine.post(body)).status_code == 200
        (call,) = machine.double.calls
        assert call.body["model"] == "claude-sonnet-4-5"
        assert [tool["name"] for tool in call.body["tools"]] == ["Bash"]
        assert "max_tokens" in call.body


@pytest.mark.parametrize("protocol", ["anthropic", "responses", "chat", "gemini"])
async def test_names_in_another_spelling_are_not_sent(protocol: str) -> None:
    async with proxied(protocol) as machine:
        more: dict[str, Any] = {
            "Tools": [{"type": "web_search"}],
            "tools ": [{"type": "mcp"}],
            "mcp_servers\u200b": [{"url": "x"}],
        }
        assert (await machine.post(request(protocol, **more))).status_code == 200
        assert not set(more) & set(machine.double.calls[0].body)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b'"x"', b"1", b"{", BODY[:-1], BODY + b"{}", b"\xff\xfe{}", b'{"model": "\xff"}',
        b"\xef\xbb\xbf" + BODY, b'{"model": NaN}', b'{"model": "\\ud800"}', b'{"a":' * 100_000, b"[" * 5_000_000,
        b'{"model": 1e999999}', b'{"x": ' + b"9" * 100_000 + b"}", b"# comment\n" + BODY,
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
async def test_bodies_that_are_no_json_object_are_rejected(body: bytes) -> None:
    async with proxied("anthropic") as machine:
        answer = await machine.post(body)
        assert answer.status_code in (400, 413)
        assert machine.double.requests == []
        assert (await machine.post()).status_code == 200


async def test_a_small_body_that_would_need_much_memory_is_rejected_before_it_is_parsed() -> None:
    async with proxied("anthropic") as machine:
        answer = await machine.post(b'{"messages": [' + b"{}," * 150_000 + b"{}]}")
        assert (answer.status_code, "too many members" in answer.text) == (413, True)


async def test_bodies_that_block_the_event_loop_leave_most_of_its_time_to_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(body: bytes) -> Any:
        time.sleep(0.01)
        return parse(body)

    parse = app._parse
    monkeypatch.setattr(app, "_parse", slow)
    async with proxied("anthropic") as machine:
        started = time.perf_counter()
        answers = await asyncio.gather(*(machine.post(body) for body in (b"{}", BODY, b"[]", b"{")))
        assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
        assert time.perf_counter() - started >= 4 * 0.05, "one body after another, with a rest after each"


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"}, {"content-type": "application/x-www-form-urlencoded"}, {"content-type": ""},
        {"content-type": "multipart/form-data; boundary=application/json"}, {"content-encoding": "gzip"},
        {"content-encoding": "zstd"}, {"content-encoding": "identity, gzip"},
    ],
    ids=str,
)  # fmt: skip
async def test_other_forms_of_bodies_are_rejected_unread(headers: dict[str, str]) -> None:
    async with proxied("anthropic") as machine:
        answer = await machine.post(gzip.compress(BODY), headers=headers)
        assert (answer.status_code, answer.headers["connection"]) == (415, "close")
        assert machine.double.requests == []


@pytest.mark.parametrize(
    "path",
    [
        "//v1/messages", "/v1//messages", "/v1/./messages", "/v1/files/../messages", "/v1/%6dessages", "/v1/messages%2e",
        "/v1/messages%00", "/v1/messages;x", "/v1/messages/%2e%2e/files", "/%2e%2e/v1/messages", "/v1/files",
        "/v1/messages/batches",
        "/V1/messages", "/v1\\messages", "/", "/v1/messages#x",
    ],
)  # fmt: skip
async def test_other_spellings_of_a_path_do_not_exist(path: str) -> None:
    async with proxied("anthropic") as machine, connected(machine, post(machine, path=path)) as client:
        assert await client.status() in (400, 404) or path == "/v1/messages#x"
        assert [call.path for call in machine.double.requests] in ([], ["/v1/messages"])


async def test_a_url_with_a_host_reaches_the_vendor_only() -> None:
    async with proxied("anthropic") as machine:
        target = "http://169.254.169.254/v1/messages"
        async with connected(machine, post(machine, path=target, more="x-forwarded-host: evil\r\n")) as client:
            assert await client.status() == 200
        assert machine.double.calls[0].headers["host"] == machine.double.url.removeprefix("http://")


@pytest.mark.parametrize(
    "more",
    [
        "transfer-encoding: chunked\r\n",
        "transfer-encoding: xchunked\r\n",
        "content-length: 5\r\n",
        "x-api-key: another\r\n",
        "authorization: Bearer another\r\n",
        "content-type: text/plain\r\n",
        "anthropic-beta: a\r\nanthropic-beta: b\r\n",
    ],
)
async def test_headers_that_contradict_each_other_are_rejected(more: str) -> None:
    async with proxied("anthropic") as machine, connected(machine, post(machine, more=more)) as client:
        assert await client.status() in (400, 403)
        assert machine.double.requests == []


async def test_line_breaks_in_a_header_do_not_reach_the_vendor() -> None:
    async with proxied("anthropic") as machine:
        more = "anthropic-version: 2023-06-01\x0bx: y\r\nanthropic-beta: a\tb, ok-1,\u00e4\r\n"
        async with connected(machine, post(machine, more=more)) as client:
            assert await client.status() in (200, 400)
        for call in machine.double.requests:
            assert (call.headers["anthropic-version"], call.headers.get("anthropic-beta")) == ("2023-06-01", "ok-1")


async def test_websockets_are_rejected_at_once() -> None:
    async with proxied("responses") as machine:
        head = (
            f"GET /v1/responses HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {machine.access.token.reveal()}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        async with connected(machine, head.encode()) as client:
            assert await client.status() == 426
        assert (await machine.client.get("/v1/responses", headers=machine.headers)).status_code == 405


# --- clients that cost


async def test_nothing_of_a_body_is_read_without_a_token() -> None:
    async with proxied("anthropic") as machine:
        data = post(machine, b"", length=30 << 20).replace(machine.access.token.reveal().encode(), b"gibil-" + b"A" * 43)
        async with connected(machine, data) as client:
            assert await client.status() == 403
            assert b"not the token" in await client.rest()


async def test_a_body_above_the_limit_is_rejected_by_its_length_and_by_its_bytes() -> None:
    async with proxied("anthropic") as machine:
        async with connected(machine, post(machine, b"", length=33 << 20)) as client:
            assert await client.status() == 413
        head = post(machine, b"").replace(b"content-length: 0", b"transfer-encoding: chunked")
        async with connected(machine, head) as client:
            for _ in range(33):
                client.writer.write(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                with contextlib.suppress(OSError):
                    await client.writer.drain()
            assert await client.status() == 413
        assert (await machine.post()).status_code == 200


async def test_large_bodies_of_one_task_share_a_limit() -> None:
    async with proxied("anthropic") as machine:
        async with contextlib.AsyncExitStack() as stack:
            partly = post(machine, bytes(25 << 20), length=30 << 20)
            clients = [await stack.enter_async_context(connected(machine, partly)) for _ in range(2)]
            waiting = {asyncio.create_task(client.status()) for client in clients}
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=patient(WITHIN_S))
            assert {task.result() for task in done} == {413}
            for task in waiting:
                task.cancel()
        assert (await machine.post()).status_code == 200


async def test_endless_heads_and_many_headers_are_rejected() -> None:
    async with proxied("anthropic") as machine:
        for more in ("x: " + "a" * 100_000 + "\r\n", "x: y\r\n" * 300):
            async with connected(machine, post(machine, more=more)) as client:
                assert await client.status() == 431


async def test_slow_heads_and_bodies_end() -> None:
    limits = ServerLimits(head_s=0.2, body_s=0.3, linger_s=0.1)
    async with proxied("anthropic", limits=limits) as machine:
        async with connected(machine, b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-a") as client:
            assert await client.status() == 408
        async with connected(machine, post(machine, b"{", length=100)) as client:
            assert await client.status() in (0, 408)
        assert (await machine.post()).status_code == 200


async def test_a_slow_body_does_not_delay_the_end_of_its_task() -> None:
    async with proxied("anthropic") as machine, connected(machine, post(machine, b"{", length=100)) as client:
        while not await _is_handled(machine):
            await asyncio.sleep(0.005)  # the proxy's own state: there is no event to wait for
        async with asyncio.timeout(patient(4)):
            await machine.proxy.close(machine.access.token)
        assert await client.status() == 0


async def _is_handled(machine: Machine) -> bool:
    answer = await machine.client.get("/v1/models", headers=machine.headers)
    assert answer.status_code == 200
    return any(access.handled for access in machine.proxy._tokens.all())


async def test_requests_that_are_sent_before_an_answer_end_the_connection_after_it() -> None:
    async with proxied("anthropic") as machine, connected(machine, post(machine) * 3) as client:
        assert await client.status() == 200
        assert (await client.rest()).endswith(b"0\r\n\r\n")
        assert len(machine.double.calls) == 1


async def test_a_client_that_does_not_read_is_disconnected_and_its_call_recorded() -> None:
    limits = ServerLimits(unread_s=0.2)
    patience = Patience(drain_s=0.1)
    budget = CountingBudget()
    async with proxied("anthropic", _long(), budget=budget, limits=limits, patience=patience) as machine:
        async with connected(machine, post(machine)):
            async with asyncio.timeout(patient(WITHIN_S)):
                while not budget.billed:
                    await asyncio.sleep(0.01)  # the budget's own state: there is no event to wait for
        assert budget.reserved == {}
        assert budget.billed[0].status == 200


def _long() -> Any:
    from gibil_bot.demo.model_script import Say, Script

    return Script(steps=(Say("x" * (24 << 20)),))


async def test_many_connections_of_one_machine_do_not_shut_out_others() -> None:
    limits = ServerLimits(connections=20, replaceable_s=0.0)
    async with proxied("anthropic", limits=limits) as machine, contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            await stack.enter_async_context(connected(machine, b"POST /v1"))
        assert (await machine.post()).status_code == 200
