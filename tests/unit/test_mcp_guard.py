"""What a request to /mcp needs before anything else reads it: Host, Origin, and a token with a scope."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from gibil_bot.access_tokens import FILE, AccessTokens
from gibil_bot.config import load_settings
from gibil_bot.mcp_server.http import MOST_SESSIONS, TOKEN, Guard, Transport, machine_endpoint
from tests.doubles.patience import patient

HOST = "bot.example"
READ = ("runs:read",)


class Served:
    """A guard in front of an application that answers 200 and records whose token it got."""

    def __init__(self, folder: Path) -> None:
        self.tokens = AccessTokens(folder)
        self.logins: list[str] = []
        self.guard = Guard(self._app, self.tokens, [HOST], [f"https://{HOST}"], frozenset({"runs:read", "runs:write"}))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.logins.append(scope[TOKEN].login)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def ask(self, *headers: tuple[str, str], host: str | None = HOST) -> tuple[int, dict[bytes, bytes]]:
        given = [*([("host", host)] if host is not None else []), *headers]
        scope = {
            "type": "http", "path": "/mcp", "client": ("192.0.2.1", 1),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in given],
        }  # fmt: skip
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            raise AssertionError("the body was read")

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        await self.guard(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    def bearer(self, login: str = "ada", scopes: tuple[str, ...] = READ) -> tuple[str, str]:
        return ("authorization", f"Bearer {self.tokens.create(login, scopes, 3600)[1]}")


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


async def test_a_valid_token_reaches_the_application_as_its_person(served: Served) -> None:
    assert (await served.ask(served.bearer("ada")))[0] == 200
    assert (await served.ask(("authorization", served.bearer("bob")[1].replace("Bearer", "bearer"))))[0] == 200
    assert served.logins == ["ada", "bob"]


async def test_a_request_without_a_valid_token_learns_only_that(served: Served) -> None:
    status, headers = await served.ask()
    assert (status, headers[b"www-authenticate"]) == (401, b"Bearer")
    _, token = served.bearer()
    for wrong in (token[:-1], f"{token}0", token.replace("Bearer", "Basic"), "Bearer", "Bearer " + "x" * 100_000):
        status, headers = await served.ask(("authorization", wrong))
        assert (status, headers[b"www-authenticate"]) == (401, b'Bearer error="invalid_token"')
        assert headers[b"connection"] == b"close"
    assert (await served.ask(("authorization", token), ("authorization", token)))[0] == 401
    assert served.logins == []


async def test_a_revoked_token_is_rejected_from_the_next_request_on(served: Served) -> None:
    header = served.bearer()
    assert (await served.ask(header))[0] == 200
    served.tokens.revoke(served.tokens.all()[0].id)
    assert (await served.ask(header))[0] == 401


async def test_a_revoked_token_ends_a_stream_that_is_open(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def stream(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    tokens = AccessTokens(tmp_path)
    record, token = tokens.create("ada", READ, 3600)
    guard = Guard(stream, tokens, [HOST], [], frozenset(READ), verify_every_s=0.01)
    scope = {
        "type": "http",
        "path": "/mcp",
        "headers": [(b"host", HOST.encode()), (b"authorization", f"Bearer {token}".encode())],
    }
    started = asyncio.Event()

    async def send(message: MutableMapping[str, Any]) -> None:
        started.set()

    async def receive() -> MutableMapping[str, Any]:
        raise AssertionError("the body was read")

    asking = asyncio.create_task(guard(scope, receive, send))
    async with asyncio.timeout(patient(10.0)):
        await started.wait()
        await asyncio.sleep(0.05)  # several verifications
        assert not ended.is_set()
        tokens.revoke(record.id)
        await ended.wait()
        await asking


async def test_a_token_with_another_scope_is_not_enough(served: Served) -> None:
    status, headers = await served.ask(served.bearer(scopes=("machines",)))
    assert (status, headers[b"www-authenticate"]) == (403, b'Bearer error="insufficient_scope"')


@pytest.mark.parametrize("host", ["evil.example", f"{HOST}:8080", f"{HOST}.evil.example", "", None])
async def test_a_request_for_another_host_is_rejected_even_with_a_token(served: Served, host: str | None) -> None:
    assert (await served.ask(served.bearer(), host=host))[0] == 421


@pytest.mark.parametrize("origin", ["https://evil.example", f"http://{HOST}", "null", "", f"https://{HOST}.evil.example"])
async def test_a_request_from_another_origin_is_rejected_even_with_a_token(served: Served, origin: str) -> None:
    assert (await served.ask(served.bearer(), ("origin", origin)))[0] == 403


async def test_a_request_from_the_own_origin_is_accepted(served: Served) -> None:
    assert (await served.ask(served.bearer(), ("origin", f"https://{HOST}")))[0] == 200


async def test_wrong_tokens_are_limited_and_do_not_lock_out_valid_ones(served: Served) -> None:
    answers = [(await served.ask(("authorization", "Bearer x"))) for _ in range(30)]
    assert {status for status, _ in answers} == {401, 429}
    status, headers = answers[-1]
    assert status == 429
    assert int(headers[b"retry-after"]) >= 1
    assert (await served.ask(served.bearer()))[0] == 200


async def test_one_token_has_a_limit_of_requests(served: Served) -> None:
    header = served.bearer()
    assert {(await served.ask(header))[0] for _ in range(200)} == {200, 429}
    assert (await served.ask(served.bearer("bob")))[0] == 200


async def test_no_token_is_logged_and_a_flood_is_one_line(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    _, valid = served.bearer()
    wrong = f"{valid[:-4]}0000"
    for _ in range(50):
        await served.ask(("authorization", wrong))
    await served.ask(("authorization", valid))
    lines = [record.getMessage() for record in caplog.records if record.name == "gibil.mcp"]
    assert lines == ["rejected 1 requests to /mcp without a valid token"]
    assert valid.split("_")[2][:16] not in caplog.text


async def test_an_unreadable_file_of_tokens_rejects_every_request(served: Served, tmp_path: Path) -> None:
    header = served.bearer()
    (tmp_path / FILE).write_text("{")
    assert (await served.ask(header))[0] == 503


async def test_a_transport_that_can_not_start_is_tried_again_by_the_next_request() -> None:
    tries = 0

    def build() -> Any:
        nonlocal tries
        tries += 1
        raise OSError("no memory")

    transport = Transport(build, stateless=True, body_bytes=1000)

    async def unused(*_: object) -> Any: ...

    for _ in range(2):
        with pytest.raises(OSError, match="no memory"):
            await transport({"type": "http"}, unused, unused)
    assert tries == 2
    await transport.close()


async def test_the_sessions_of_a_token_take_no_room_from_another_token(tmp_path: Path) -> None:
    tokens = AccessTokens(tmp_path)
    ada, grace = (tokens.create(login, ("machines",), 3600)[1] for login in ("ada", "grace"))
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    opening = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path)})
    async with (
        machine_endpoint(settings, "127.0.0.1", 80) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:80") as client,
    ):

        async def opens(token: str) -> int:
            headers = {
                "Host": "127.0.0.1:80",
                "Authorization": f"Bearer {token}",
                "Accept": "application/json, text/event-stream",
            }
            return (await client.post("/mcp", json=opening, headers=headers)).status_code

        assert [await opens(ada) for _ in range(MOST_SESSIONS + 1)] == [200] * MOST_SESSIONS + [503]
        assert await opens(grace) == 200
