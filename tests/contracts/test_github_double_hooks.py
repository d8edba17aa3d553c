"""The double's webhooks: signed, shaped as documented, sent once, logged, and redelivered only on request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

from gibil_bot.demo import hooks
from tests.contracts.double_kit import REPOSITORY, SECRET, App, Receiver, receiving, signed_in


async def payload_of(app: App, receiver: Receiver, event: str, action: str) -> dict[str, Any]:
    await app.github.webhooks_sent()
    for headers, body in reversed(receiver.got):
        payload: dict[str, Any] = json.loads(body)
        if headers["x-github-event"] == event and payload.get("action") == action:
            return payload
    raise AssertionError(f"no {event} {action} among {receiver.events()}")


async def test_a_comment_is_delivered_with_signature_and_all_fields(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob", fork=True, title="A wheel")
        comment = app.github.comment(REPOSITORY, 1, "ada", "/gibil test")
        payload = await payload_of(app, receiver, "issue_comment", "created")
        headers, body = next(each for each in receiver.got if each[0]["x-github-event"] == "issue_comment")
        signed = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert headers["x-hub-signature-256"] == f"sha256={signed}"
        assert headers["user-agent"].startswith("GitHub-Hookshot/")
        assert headers["content-type"] == "application/json"
        assert len(headers["x-github-delivery"]) == 36
        assert payload["comment"] | {"reactions": None} == payload["comment"] | {"id": comment.id, "reactions": None}
        assert payload["comment"]["body"] == "/gibil test"
        assert payload["comment"]["user"] == payload["sender"]
        assert payload["issue"]["number"] == 1
        assert payload["issue"]["pull_request"]["url"].endswith("/pulls/1")
        assert payload["repository"]["clone_url"] == f"{app.github.url}/{REPOSITORY}.git"
        assert payload["installation"]["id"] == app.github.installation(REPOSITORY).id


async def test_a_comment_on_an_issue_has_no_pull_request(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        issue = app.github.open_issue(REPOSITORY, "bob")
        app.github.comment(REPOSITORY, issue.number, "bob", "/gibil test")
        assert "pull_request" not in (await payload_of(app, receiver, "issue_comment", "created"))["issue"]


async def test_every_change_of_a_pull_request_is_delivered(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        opened = await payload_of(app, receiver, "pull_request", "opened")
        assert opened["pull_request"]["head"]["sha"] == app.github.head_sha(REPOSITORY, 1)
        before = app.github.head_sha(REPOSITORY, 1)
        after = await app.github.push(REPOSITORY, 1, {"a": "2"})
        moved = await payload_of(app, receiver, "pull_request", "synchronize")
        assert (moved["before"], moved["after"], moved["pull_request"]["head"]["sha"]) == (before, after, after)
        app.github.close_pull_request(REPOSITORY, 1)
        assert (await payload_of(app, receiver, "pull_request", "closed"))["pull_request"]["state"] == "closed"
        app.github.reopen_pull_request(REPOSITORY, 1)
        assert (await payload_of(app, receiver, "pull_request", "reopened"))["number"] == 1
        requested = await payload_of(app, receiver, "check_suite", "requested")
        assert requested["check_suite"]["head_sha"] == after


async def test_review_comments_and_reruns_are_delivered(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        sha = app.github.head_sha(REPOSITORY, 1)
        app.github.review_comment(REPOSITORY, 1, "bob", "/gibil test", path="a")
        review = await payload_of(app, receiver, "pull_request_review_comment", "created")
        assert (review["comment"]["path"], review["pull_request"]["number"]) == ("a", 1)
        body = {"name": "gibil / test", "head_sha": sha, "external_id": "run 7"}
        made = await app.ask("POST", f"/repos/{REPOSITORY}/check-runs", token=await app.token(), json=body)
        app.github.rerequest_check_run(made.json()["id"], "ada")
        again = await payload_of(app, receiver, "check_run", "rerequested")
        assert again["check_run"]["external_id"] == "run 7"
        assert again["check_run"]["app"]["id"] == app.github.app_id
        assert again["check_run"]["check_suite"]["head_sha"] == sha
        assert again["sender"]["login"] == "ada"
        assert app.github.check_runs(REPOSITORY)[0].status == "queued"  # the run itself is not changed
        app.github.rerequest_suite(REPOSITORY, sha, "ada")
        assert (await payload_of(app, receiver, "check_suite", "rerequested"))["check_suite"]["head_sha"] == sha


async def test_nothing_is_delivered_without_installation_or_subscription(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url, events=("pull_request",)) as app:
        await app.github.add_repository("eve/garden", {"a": "1"}, installed=False)
        await app.github.open_pull_request("eve/garden", "topic", {"a": "2"}, "eve")
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        app.github.comment(REPOSITORY, 1, "ada", "/gibil test")
        await app.github.webhooks_sent()
        assert receiver.events() == ["pull_request"]


async def test_a_failed_delivery_stays_in_the_log_until_it_is_redelivered(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        await app.github.webhooks_sent()
        receiver.status = 500
        app.github.comment(REPOSITORY, 1, "ada", "first")
        await app.github.webhooks_sent()
        app.github.fail_deliveries(1)
        app.github.comment(REPOSITORY, 1, "ada", "second")
        await app.github.webhooks_sent()
        before = len(receiver.got)
        failed = (await app.as_app("GET", "/app/hook/deliveries", params={"status": "failure"})).json()
        assert [(each["event"], each["status_code"], each["redelivery"]) for each in failed] == [
            ("issue_comment", 502, False),
            ("issue_comment", 500, False),
        ]
        receiver.status = 202
        again = await app.as_app("POST", f"/app/hook/deliveries/{failed[0]['id']}/attempts")
        assert again.status_code == 202
        await app.github.webhooks_sent()
        assert len(receiver.got) == before + 1
        assert receiver.got[-1][0]["x-github-delivery"] == failed[0]["guid"]
        assert json.loads(receiver.got[-1][1])["comment"]["body"] == "second"
        newest = (await app.as_app("GET", "/app/hook/deliveries")).json()[0]
        assert (newest["guid"], newest["redelivery"], newest["status"]) == (failed[0]["guid"], True, "OK")
        detail = (await app.as_app("GET", f"/app/hook/deliveries/{newest['id']}")).json()
        assert detail["request"]["payload"]["comment"]["body"] == "second"
        assert (await app.as_app("POST", "/app/hook/deliveries/5/attempts")).status_code == 404


async def test_the_delivery_log_has_a_cursor_and_is_deleted_after_three_days(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        app.github.open_issue(REPOSITORY, "bob")
        for number in range(5):
            app.github.comment(REPOSITORY, 1, "ada", str(number))
        await app.github.webhooks_sent()
        seen: list[int] = []
        answer = await app.as_app("GET", "/app/hook/deliveries", params={"per_page": 2})
        for _ in range(3):
            seen += [each["id"] for each in answer.json()]
            if "next" not in answer.links:
                break
            assert "cursor=" in answer.links["next"]["url"]
            answer = await app.as_app("GET", answer.links["next"]["url"])
        assert len(seen) == 5
        assert seen == sorted(seen, reverse=True)
        app.github.advance(3 * 86400 + 1)
        assert (await app.as_app("GET", "/app/hook/deliveries")).json() == []


async def test_a_delivery_fails_if_the_receiver_does_not_respond_in_time(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(hooks, "ANSWER_WITHIN_S", 0.2)
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        receiver.silent = asyncio.Event()
        app.github.open_issue(REPOSITORY, "bob")
        app.github.comment(REPOSITORY, 1, "ada", "hello")
        await app.github.webhooks_sent()
        receiver.silent.set()
        assert [(each.status, each.status_code, each.succeeded) for each in app.github.deliveries] == [
            ("timed out", 504, False)
        ]
        app.github.webhook_url = "http://127.0.0.1:1/"
        app.github.comment(REPOSITORY, 1, "ada", "hello?")
        await app.github.webhooks_sent()
        assert app.github.deliveries[-1].status == "failed to connect to host"


async def test_any_payload_can_be_sent(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        guid = app.github.deliver("ping", b"{not json", guid="0" * 36)
        await app.github.webhooks_sent()
        assert (guid, receiver.got[0][1]) == ("0" * 36, b"{not json")
        assert app.github.deliver("ping", b"x" * (hooks.LARGEST_PAYLOAD + 1)) is None


async def test_a_push_names_its_pusher_with_or_without_a_pull_request(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        app.github.add_user("robot[bot]", "Bot")
        sha = await app.github.push(REPOSITORY, "topic", {"a.txt": "1"}, author="robot[bot]")
        payload = await payload_of(app, receiver, "check_suite", "requested")
        assert payload["sender"]["login"] == "robot[bot]"
        assert (payload["check_suite"]["head_sha"], payload["check_suite"]["head_branch"]) == (sha, "topic")
        await app.github.open_from(REPOSITORY, REPOSITORY, "topic", "bob")
        await app.github.webhooks_sent()
        assert receiver.events() == ["check_suite", "pull_request"]


async def test_a_review_names_its_commit_and_its_edits_are_separate_events(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        review = app.github.review(REPOSITORY, number, "ada", "LGTM", state="approved")
        submitted = await payload_of(app, receiver, "pull_request_review", "submitted")
        assert submitted["review"]["commit_id"] == app.github.head_sha(REPOSITORY, number)
        assert (submitted["review"]["state"], submitted["review"]["body"]) == ("approved", "LGTM")
        assert submitted["pull_request"]["updated_at"] == submitted["review"]["submitted_at"]
        app.github.edit_review(REPOSITORY, review, "LGTM!")
        edited = await payload_of(app, receiver, "pull_request_review", "edited")
        assert (edited["review"]["id"], edited["review"]["body"]) == (review.id, "LGTM!")


async def test_pushes_and_comments_have_different_timestamps(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        moments = []
        for index in range(3):
            moments.append(app.github.comment(REPOSITORY, number, "ada", "hello").created_at)
            await app.github.push(REPOSITORY, number, {"a": str(index)})
            moved = await payload_of(app, receiver, "pull_request", "synchronize")
            assert moved["pull_request"]["updated_at"] == moved["pull_request"]["head"]["repo"]["pushed_at"]
            moments.append(app.github.pull_request(REPOSITORY, number).updated_at)
        seconds = [int(moment.timestamp()) for moment in moments]
        assert seconds == sorted(set(seconds))


async def test_a_merge_queue_requests_the_checks_of_its_commit(tmp_path: Path) -> None:
    async with receiving() as receiver, signed_in(tmp_path, webhook_url=receiver.url) as app:
        number = await app.github.open_pull_request(REPOSITORY, "topic", {"a": "1"}, "bob")
        sha = await app.github.queue_merge(REPOSITORY, number)
        asked = await payload_of(app, receiver, "merge_group", "checks_requested")
        assert (asked["merge_group"]["head_sha"], asked["merge_group"]["base_ref"]) == (sha, "refs/heads/main")
        assert sha != app.github.head_sha(REPOSITORY, number)
