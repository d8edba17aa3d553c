"""An armed fault of the double affects only the next matching requests; every change wakes waiting callers."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contracts.double_kit import REPOSITORY, App, signed_in
from tests.doubles.patience import patient

COMMENTS = f"/repos/{REPOSITORY}/issues/1/comments"


async def post(app: App, token: str, body: str = "hello") -> httpx.Response:
    return await app.ask("POST", COMMENTS, token=token, json={"body": body})


@pytest.mark.parametrize(
    ("kind", "status", "written"),
    [
        ("error_before", 502, 0),
        ("error_after", 502, 1),
        ("unauthorized", 401, 0),
        ("primary_limit", 403, 0),
        ("secondary_limit", 403, 0),
        ("secondary_limit_bare", 403, 0),
    ],
)
async def test_an_armed_failure_responds_with_or_without_taking_effect(
    tmp_path: Path, kind: str, status: int, written: int
) -> None:
    async with signed_in(tmp_path) as app:
        app.github.open_issue(REPOSITORY, "bob")
        token = await app.token()
        app.github.fault("POST", r"/comments$", kind, times=2, seconds=30)
        answers = [await post(app, token) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [status, status, 201]
        assert len(app.github.comments(REPOSITORY, 1)) == 2 * written + 1
        assert [record.fault for record in app.github.requests[-3:]] == [kind, kind, None]
        limited = answers[0].headers
        assert limited.get("retry-after") == ("30" if kind == "secondary_limit" else None)
        if kind == "primary_limit":
            assert limited["x-ratelimit-remaining"] == "0"
            assert 25 <= int(limited["x-ratelimit-reset"]) - time.time() <= 31
        if kind == "secondary_limit_bare":
            assert "secondary rate limit" in answers[0].json()["message"]
            assert "x-ratelimit-remaining" not in limited


@pytest.mark.parametrize(("kind", "written"), [("drop_before", 0), ("drop_after", 1)])
async def test_a_dropped_connection_sends_no_response(tmp_path: Path, kind: str, written: int) -> None:
    async with signed_in(tmp_path) as app:
        app.github.open_issue(REPOSITORY, "bob")
        token = await app.token()
        app.github.fault("*", r"/comments$", kind)
        with pytest.raises(httpx.RemoteProtocolError):
            await post(app, token)
        await app.github.wait_for(lambda: app.github.requests[-1].fault == kind)
        assert len(app.github.comments(REPOSITORY, 1)) == written
        assert (await post(app, token)).status_code == 201


@pytest.mark.parametrize(("kind", "written"), [("hang", 0), ("hang_after", 1)])
async def test_a_hanging_request_sends_nothing(tmp_path: Path, kind: str, written: int) -> None:
    async with signed_in(tmp_path) as app:
        app.github.open_issue(REPOSITORY, "bob")
        token = await app.token()
        app.github.fault("POST", r"/comments$", kind, seconds=60)
        with pytest.raises(httpx.ReadTimeout):
            await app.ask("POST", COMMENTS, token=token, json={"body": "x"}, timeout=0.3)
        await app.github.wait_for(lambda: app.github.requests[-1].fault == kind, 5)
        assert len(app.github.comments(REPOSITORY, 1)) == written


async def test_the_double_stops_while_a_request_hangs(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.fault("GET", r"^/rate_limit$", "hang", seconds=600)
        waiting = asyncio.create_task(app.ask("GET", "/rate_limit", timeout=60))
        await asyncio.wait([waiting], timeout=0.3)
        assert not waiting.done()
        begun = time.monotonic()
    assert time.monotonic() - begun < patient(5)
    with pytest.raises(httpx.HTTPError):
        await waiting


async def test_a_slow_body_arrives_unchanged(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.fault("GET", r"^/repos/", "slow_body", seconds=0.3)
        begun = time.monotonic()
        answer = await app.ask("GET", f"/repos/{REPOSITORY}")
        assert answer.json()["full_name"] == REPOSITORY
        assert time.monotonic() - begun >= 0.3


async def test_faults_apply_in_the_order_of_arming_and_can_be_disarmed(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.fault("GET", r"^/rate_limit$", "error_before", status=500)
        app.github.fault("GET", r"^/rate_limit$", "error_before", status=503)
        app.github.fault("POST", r".*", "unauthorized", times=99)
        assert [(await app.ask("GET", "/rate_limit")).status_code for _ in range(3)] == [500, 503, 200]
        app.github.clear_faults()
        assert (await app.as_app("POST", "/app/installations/1/access_tokens")).status_code == 404
        with pytest.raises(ValueError):
            app.github.fault("GET", "x", "no such kind")


async def test_waiting_ends_with_a_change_or_a_timeout(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        app.github.open_issue(REPOSITORY, "bob")

        async def say() -> None:
            await post(app, await app.token(), "here I am")

        saying = asyncio.create_task(say())
        found = await app.github.wait_for(lambda: [each.body for each in app.github.comments(REPOSITORY, 1)])
        assert found == ["here I am"]
        await saying
        with pytest.raises(TimeoutError):
            await app.github.wait_for(lambda: False, 0.05)


async def test_every_request_is_logged(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        token = await app.token()
        await app.ask("GET", f"/repos/{REPOSITORY}", token=token, params={"x": "1"})
        await app.ask("GET", "/app", token="ghs_wrong")
        await app.ask("GET", "/rate_limit")
        seen = [(each.method, each.path, each.query, each.status, each.caller) for each in app.github.requests]
        number = app.github.installation(REPOSITORY).id
        assert seen == [
            ("POST", f"/app/installations/{number}/access_tokens", "", 201, "app"),
            ("GET", f"/repos/{REPOSITORY}", "x=1", 200, "installation"),
            ("GET", "/app", "", 401, "refused"),
            ("GET", "/rate_limit", "", 200, "anonymous"),
        ]
        assert token not in repr(app.github.requests) + repr(app.github.state.tokens[token])


async def test_curl_can_comment_push_close_and_rerun(tmp_path: Path) -> None:
    async with signed_in(tmp_path) as app:
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        base = f"/_double/repos/{REPOSITORY}"

        async def do(path: str, body: dict[str, Any]) -> httpx.Response:
            return await app.ask("POST", base + path, json=body)

        assert (await do("/pulls/1/comments", {"body": "/gibil test", "author": "ada"})).status_code == 201
        assert (await do("/pulls/1/comments", {"body": "mine"})).json()["user"]["login"] == "bob"
        pushed = await do("/pulls/1/push", {"files": {"a": "2", "README.md": None}})
        assert pushed.json()["sha"] == app.github.head_sha(REPOSITORY, 1)
        assert (await do("/pulls/1/state", {"state": "closed"})).json() == {"state": "closed"}
        assert (await do("/pulls/9/comments", {"body": "x"})).status_code == 404
        assert (await do("/pulls/1/push", {"files": {}})).status_code == 422
        assert (await do("/check-runs/1/rerequest", {})).status_code == 404
        state = (await app.ask("GET", "/_double/state")).json()
        seen = state["repositories"][REPOSITORY]
        assert [each["state"] for each in seen["pull_requests"]] == ["closed"]
        assert [each["body"] for each in seen["comments"]] == ["/gibil test", "mine"]
