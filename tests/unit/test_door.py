"""The webhook server answers every request as documented and never with a 5xx, and loses no accepted delivery."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gibil_bot.config import Secret, Settings
from gibil_bot.model import CommentCreated, Ignored
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store
from gibil_bot.web.app import BODY_LIMIT_BYTES, create_app
from gibil_bot.wiring import Bot

SECRETS = ("the-old-secret-of-the-webhook", "the-new-secret-of-the-webhook")


@contextlib.asynccontextmanager
async def server(folder: Path, rejected: dict[int, int] | None = None) -> AsyncIterator[tuple[httpx.AsyncClient, SqlStore]]:
    store = await open_store(f"sqlite:///{folder}/server.db")
    known = Settings(data_dir=folder, database_url="", webhook_secrets=tuple(Secret(secret) for secret in SECRETS))
    app = create_app(Bot(settings=known, store=store), rejected)
    try:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot") as client:
            yield client, store
    finally:
        await store.close()


def headers(body: bytes, guid: str = "1", event: str = "issue_comment", secret: str = SECRETS[0]) -> dict[str, str]:
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": guid, "X-GitHub-Event": event}


async def post(client: httpx.AsyncClient, body: bytes, **words: str) -> int:
    return (await client.post("/webhook", content=body, headers=headers(body, **words))).status_code


async def test_a_signed_delivery_is_stored_before_the_response_and_a_repetition_changes_nothing(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, store):
        assert await post(client, b'{"action": "created"}', guid="g") == 202
        found = await store.inbox.get("g")
        assert found is not None
        assert (found[0].event, found[0].payload) == (None, b'{"action": "created"}')  # its payload can't be parsed
        assert await post(client, b'{"a": 2}', guid="g") == 202
        assert await store.inbox.get("g") == found


def comment(text: str, owner: str = "ada") -> bytes:
    """Return an issue_comment payload with far more fields than are used."""
    user = {"login": "ada", "type": "User", "site_admin": False}
    repository = {"id": 1, "full_name": f"{owner}/engine", "clone_url": "https://github.example/e.git", "topics": ["x"] * 2000}
    place = {"action": "created", "repository": repository, "installation": {"id": 99}, "sender": user}
    written = {"id": 5, "user": user, "body": text, "created_at": "2026-11-23T12:30:15Z"}
    return json.dumps(place | {"comment": written, "issue": {"number": 7, "pull_request": {"url": "x"}}}).encode()


async def test_a_delivery_is_stored_as_its_event_and_without_its_payload(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, store):
        body = comment("/gibil test")
        assert await post(client, body, guid="g") == 202
        found = await store.inbox.get("g")
        assert found is not None
        stored, handled, _ = found
        assert isinstance(stored.event, CommentCreated)
        assert (stored.event.body, stored.event.repository.full_name, stored.event.number) == ("/gibil test", "ada/engine", 7)
        assert (stored.payload, stored.digest, handled) == (b"", hashlib.sha256(body).digest(), False)
    with contextlib.closing(sqlite3.connect(tmp_path / "server.db")) as db:
        assert db.execute("select count(*) from payloads").fetchone() == (0,)
        ((size,),) = db.execute("select length(content) from deliveries").fetchall()
        assert size < 600 < len(body)


async def test_a_delivery_without_consequences_is_stored_as_handled(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, store):
        for guid, body, event in (("c", comment("thanks"), "issue_comment"), ("p", b"{}", "ping"), ("s", b"{}", "star")):
            assert await post(client, body, guid=guid, event=event) == 202
            found = await store.inbox.get(guid)
            assert found is not None
            assert (type(found[0].event), found[1]) == (Ignored, True)
        assert await post(client, b"no JSON", guid="n", event="star") == 400


async def test_both_secrets_are_accepted_during_rotation(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, _):
        assert [await post(client, b"{}", guid=secret[:8], secret=secret) for secret in SECRETS] == [202, 202]


@pytest.mark.parametrize(
    "signature",
    [None, "", "sha256=", "sha256=00", "sha1=" + "0" * 40, "sha256=" + "0" * 64, "SHA256=" + "0" * 64, "sha256=é"],
)
async def test_a_missing_or_wrong_signature_is_401_and_stores_nothing(tmp_path: Path, signature: str | None) -> None:
    async with server(tmp_path) as (client, store):
        given_headers = {b"X-GitHub-Delivery": b"g", b"X-GitHub-Event": b"ping"}
        if signature is not None:
            given_headers[b"X-Hub-Signature-256"] = signature.encode()
        answer = await client.post("/webhook", content=b"{}", headers=given_headers)
        assert answer.status_code == 401
        assert await store.inbox.get("g") is None


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"a": ', b"[]", b"null", b'"text"', b"\xff\xfe{}", b'{"a": "\xff"}', b"payload=%7B%7D"]
)
async def test_a_signed_body_that_is_not_a_json_object_is_400(tmp_path: Path, body: bytes) -> None:
    async with server(tmp_path) as (client, store):
        assert await post(client, body, guid="g") == 400
        assert await store.inbox.get("g") is None


async def test_a_body_of_25_mib_and_one_byte_is_413_with_and_without_its_length(tmp_path: Path) -> None:
    async def in_chunks(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // (1 << 20)):
            yield bytes(1 << 20)
        yield bytes(size % (1 << 20))

    async with server(tmp_path) as (client, _):
        body = bytes(BODY_LIMIT_BYTES + 1)
        assert await post(client, body) == 413
        answer = await client.post("/webhook", content=in_chunks(len(body)), headers=headers(b""))
        assert answer.status_code == 413


async def test_a_body_of_exactly_25_mib_is_accepted(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, _):
        body = b'{"a": "' + b"x" * (BODY_LIMIT_BYTES - 9) + b'"}'
        assert len(body) == BODY_LIMIT_BYTES
        assert await post(client, body) == 202


async def test_deep_nesting_never_crashes(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, _):
        body = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
        assert await post(client, body) in (202, 400)


async def test_missing_headers_are_400(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, _):
        for missing in ("X-GitHub-Delivery", "X-GitHub-Event"):
            given_headers = headers(b"{}")
            del given_headers[missing]
            assert (await client.post("/webhook", content=b"{}", headers=given_headers)).status_code == 400


async def test_other_methods_are_rejected_with_the_allowed_ones(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, _):
        answer = await client.get("/webhook")
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert (await client.get("/elsewhere")).status_code == 404


async def test_health_metrics_and_unknown_runs(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, _):
        await post(client, b'{"action": "created"}')
        assert (await client.get("/healthz")).json()["deliveries_unhandled"] == 1
        metrics = (await client.get("/metrics")).text
        assert 'gibil_webhook_answers_total{status="202"} 1' in metrics
        assert "gibil_deliveries_unhandled 1" in metrics
        assert (await client.get("/runs/0123456789abcdef")).status_code == 404


async def test_pages_do_not_reveal_where_the_database_is_when_it_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with server(tmp_path) as (client, store):
        await store.close()
        for path in ("/healthz", "/metrics", "/runs/0123456789abcdef", "/healthz"):
            answer = await client.get(path)
            assert answer.status_code == 503
            assert "the database doesn't answer" in answer.text
            assert str(tmp_path) not in answer.text
    assert [record.getMessage() for record in caplog.records if record.name == "gibil.web"] == [
        f"a page can't be answered: the database {tmp_path}/server.db is closed"
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.binary(max_size=300) | JSON.map(lambda value: json.dumps(value).encode())
EVENTS = st.sampled_from(["issue_comment", "pull_request", "check_run", "check_suite", "ping", "never_heard_of"])
LATIN = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=40)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, event=EVENTS | LATIN, guid=LATIN, signed=st.booleans())
async def test_any_webhook_request_is_answered_with_202_400_or_401(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, event: str, guid: str, signed: bool
) -> None:
    async with server(tmp_path_factory.mktemp("server")) as (client, store):
        secret = SECRETS[0] if signed else "somebody-else"
        status = await post(client, body, guid=guid, event=event, secret=secret)
        if not signed:
            assert status == 401
            return
        try:
            is_object = isinstance(json.loads(body.decode("utf-8"), parse_constant=_refuse), dict)
        except ValueError:
            is_object = False
        assert status == (202 if is_object else 400)
        assert (await store.inbox.get(guid) is not None) == is_object


def _refuse(constant: str) -> None:
    """Reject NaN and Infinity, which Python accepts but JSON doesn't have."""
    raise ValueError(constant)


async def test_read_only_paths_allow_only_get_and_head(tmp_path: Path) -> None:
    async with server(tmp_path) as (client, _):
        for path in ("/", "/healthz", "/metrics", "/runs/0123456789abcdef", "/nothing", "/healthz/", "/runs/", "/webhook/x"):
            for method in ("POST", "PUT", "OPTIONS"):
                posted = await client.request(method, path, content=b"x")
                assert posted.status_code == 405
                assert posted.headers["allow"] == "GET, HEAD"
        for path in ("/", "/healthz/", "/webhook/", "/metrics/x", "/a%0ab"):
            assert (await client.get(path)).status_code == 404
        assert (await client.head("/healthz")).status_code == 200
        nothing = await client.get("/nothing")
        assert (nothing.status_code, nothing.json()["code"]) == (404, "NOT_FOUND")


EXPOSED = {
    "gibil_deliveries_failed": "gauge",
    "gibil_deliveries_unhandled": "gauge",
    "gibil_http_rejected_total": "counter",
    "gibil_max_machines": "gauge",
    "gibil_runs_finished": "gauge",
    "gibil_runs_queued": "gauge",
    "gibil_runs_running": "gauge",
    "gibil_start_time_seconds": "gauge",
    "gibil_tellings_due": "gauge",
    "gibil_tellings_failed": "gauge",
    "gibil_webhook_answers_total": "counter",
}


async def test_metrics_keep_their_names_types_and_labels(tmp_path: Path) -> None:
    """Dashboards and alerts of operators refer to them."""
    async with server(tmp_path, rejected={431: 2, 408: 1}) as (client, _):
        await post(client, b"{}", guid="g")
        await client.get("/webhook")
        answer = await client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        families = list(text_string_to_metric_families(answer.text))
        types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", answer.text, re.MULTILINE))
        assert types == EXPOSED
        samples = {(each.name, each.labels.get("status")): each.value for family in families for each in family.samples}
        assert {name for name, _ in samples} == set(EXPOSED)
        counted = {name: value for name, value in samples.items() if name[1] is not None}
        assert counted == {
            ("gibil_webhook_answers_total", "202"): 1,
            ("gibil_webhook_answers_total", "405"): 1,
            ("gibil_http_rejected_total", "408"): 1,
            ("gibil_http_rejected_total", "431"): 2,
        }
        assert {len(each.labels) for family in families for each in family.samples} == {0, 1}
