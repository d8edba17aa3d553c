"""Deliveries in GitHub's documented form become events; everything else raises InvalidDelivery."""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import suppress
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.errors import InvalidDelivery
from gibil_bot.github.webhook import EVENTS, narrow, verify
from gibil_bot.model import (
    BranchPushed,
    CommentCreated,
    Event,
    Ignored,
    MergeGroupChecked,
    Person,
    PullRequestChanged,
    Repository,
    RerunRequested,
)

SHA = "0123456789abcdef0123456789abcdef01234567"
BASE = "fedcba9876543210fedcba9876543210fedcba98"

USER: dict[str, Any] = {"login": "ada", "id": 7, "type": "User", "site_admin": False, "url": "https://api.github.com/users/ada"}
REPOSITORY: dict[str, Any] = {
    "id": 1296269,
    "node_id": "MDEwOlJlcG9zaXRvcnkxMjk2MjY5",
    "name": "hello",
    "full_name": "octo/hello",
    "private": True,
    "owner": {"login": "Octo", "id": 1, "type": "Organization"},
    "clone_url": "https://github.com/octo/hello.git",
    "default_branch": "trunk",
    "fork": False,
}
PULL: dict[str, Any] = {
    "number": 12,
    "state": "open",
    "title": "Faster greetings",
    "user": USER,
    "draft": False,
    "maintainer_can_modify": True,
    "head": {"label": "ada:fast", "ref": "fast", "sha": SHA, "user": USER, "repo": {**REPOSITORY, "full_name": "ada/hello"}},
    "base": {"label": "octo:trunk", "ref": "trunk", "sha": BASE, "user": USER, "repo": REPOSITORY},
    "labels": [{"id": 1, "name": "bug"}],
}
PLACE: dict[str, Any] = {
    "repository": REPOSITORY,
    "organization": {"login": "Octo"},
    "sender": USER,
    "installation": {"id": 99, "node_id": "x"},
}
PAYLOADS: dict[str, dict[str, Any]] = {
    "issue_comment": {
        "action": "created",
        "issue": {
            "number": 12,
            "title": "Faster",
            "state": "open",
            "pull_request": {"url": "https://api.github.com/…/pulls/12"},
        },
        "comment": {"id": 501, "user": USER, "body": "/gibil test", "author_association": "MEMBER"},
        **PLACE,
    },
    "pull_request_review_comment": {
        "action": "created",
        "comment": {"id": 502, "user": USER, "body": "/gibil test", "path": "a.py", "diff_hunk": "@@"},
        "pull_request": PULL,
        **PLACE,
    },
    "pull_request": {"action": "opened", "number": 12, "pull_request": PULL, **PLACE},
    "check_run": {
        "action": "rerequested",
        "check_run": {"id": 4, "head_sha": SHA, "external_id": "00ff", "name": "gibil / test", "pull_requests": []},
        **PLACE,
    },
    "pull_request_review": {
        "action": "submitted",
        "review": {
            "id": 503,
            "user": USER,
            "body": "LGTM\n\n/gibil test",
            "state": "approved",
            "commit_id": SHA,
            "submitted_at": "2026-11-20T10:00:00Z",
        },
        "pull_request": PULL,
        **PLACE,
    },
    "merge_group": {
        "action": "checks_requested",
        "merge_group": {
            "head_sha": SHA,
            "head_ref": "refs/heads/gh-readonly-queue/trunk/pr-12-0",
            "base_sha": BASE,
            "base_ref": "refs/heads/trunk",
        },
        **PLACE,
    },
    "check_suite": {"action": "rerequested", "check_suite": {"id": 5, "head_sha": SHA, "pull_requests": []}, **PLACE},
    "ping": {"zen": "Keep it logically awesome.", "hook_id": 1},
}
OCTO = Repository(
    id=1296269, full_name="octo/hello", clone_url="https://github.com/octo/hello.git", default_branch="trunk", private=True
)


def changed(event: str, path: str, value: object) -> bytes:
    payload = deepcopy(PAYLOADS[event])
    *parents, last = path.split(".")
    place = payload
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return json.dumps(payload).encode()


def read(event: str) -> Event:
    return narrow(event, json.dumps(PAYLOADS[event]).encode())


def signature(body: bytes, secret: str, algorithm: str = "sha256") -> str:
    return f"{algorithm}=" + hmac.new(secret.encode(), body, algorithm).hexdigest()


def test_the_signature_documented_by_github_is_accepted() -> None:
    # https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries#testing-the-webhook-payload-validation
    documented = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert verify(b"Hello, World!", documented, ["It's a Secret to Everybody"])


def test_each_of_several_secrets_is_valid_during_rotation() -> None:
    assert verify(b"x", signature(b"x", "old"), ["new", "old"])
    assert verify(b"x", signature(b"x", "new"), ["new", "old"])
    assert not verify(b"x", signature(b"x", "other"), ["new", "old"])


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "sha256=",
        signature(b"x", "s", "sha1"),
        signature(b"y", "s"),
        signature(b"x", "s").upper(),
        signature(b"x", "s") + " ",
        signature(b"x", "s").removeprefix("sha256="),
        hashlib.sha256(b"x").hexdigest(),
        "sha256=\u00fc",
    ],
)
def test_any_other_signature_is_rejected(header: str | None) -> None:
    assert not verify(b"x", header, ["s"])


def test_no_signature_is_valid_without_a_secret() -> None:
    assert not verify(b"x", signature(b"x", ""), [])
    assert not verify(b"x", signature(b"x", ""), [""])


def test_a_comment_on_a_pull_request() -> None:
    assert read("issue_comment") == CommentCreated(
        installation_id=99,
        repository=OCTO,
        number=12,
        comment_id=501,
        event_name="issue_comment",
        author=Person(login="ada"),
        body="/gibil test",
    )


def test_a_comment_on_a_line_of_the_diff() -> None:
    event = read("pull_request_review_comment")
    assert isinstance(event, CommentCreated)
    assert (event.number, event.comment_id, event.is_review_comment) == (12, 502, True)


def test_a_command_in_a_review_has_its_event_and_its_commit() -> None:
    event = read("pull_request_review")
    assert isinstance(event, CommentCreated)
    assert (event.event_name, event.number, event.comment_id, event.commit_sha) == ("pull_request_review", 12, 503, SHA)
    assert event.created_at == datetime(2026, 11, 20, 10, tzinfo=UTC)
    comment = read("pull_request_review_comment")
    assert isinstance(comment, CommentCreated)
    assert (comment.event_name, comment.commit_sha) == ("pull_request_review_comment", None)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("2026-11-20T10:00:00Z", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T11:00:00+01:00", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        (1795168800, datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
        (None, None),
        (True, None),
        (10**30, None),
        ("9999-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00Z", None),
        ([], None),
    ],
)
def test_a_malformed_time_is_ignored_and_rejects_nothing(value: object, read: datetime | None) -> None:
    event = narrow("issue_comment", changed("issue_comment", "comment.created_at", value))
    assert isinstance(event, CommentCreated)
    assert event.created_at == read


@pytest.mark.parametrize("event", ["issue_comment", "pull_request_review", "pull_request_review_comment"])
def test_an_edited_comment_is_not_a_command(event: str) -> None:
    assert isinstance(narrow(event, changed(event, "action", "edited")), Ignored)


def test_a_requested_check_suite_names_the_pusher() -> None:
    suite = {"head_sha": SHA, "head_branch": "fast", "created_at": "2026-11-20T10:00:00Z"}
    robot = {"login": "renovate[bot]", "type": "Bot"}
    payload = {**PAYLOADS["check_suite"], "action": "requested", "check_suite": suite, "sender": robot}
    event = narrow("check_suite", json.dumps(payload).encode())
    assert isinstance(event, BranchPushed)
    assert (event.branch, event.sha, event.pusher) == ("fast", SHA, Person(login="renovate[bot]", is_bot=True))


def test_a_merge_queue_requests_the_checks_of_a_commit() -> None:
    event = read("merge_group")
    assert isinstance(event, MergeGroupChecked)
    assert (event.head_sha, event.base_ref) == (SHA, "trunk")


def test_a_changed_pull_request() -> None:
    event = read("pull_request")
    assert isinstance(event, PullRequestChanged)
    pull = event.pull_request
    assert (event.action, pull.number, pull.head_sha, pull.base_sha) == ("opened", 12, SHA, BASE)
    assert (pull.head_repository, pull.head_ref, pull.base_ref) == ("ada/hello", "fast", "trunk")
    assert (pull.is_open, pull.is_draft, pull.maintainer_can_modify) == (True, False, True)


@pytest.mark.parametrize("action", ["opened", "synchronize", "reopened", "closed"])
def test_the_four_relevant_actions_of_a_pull_request(action: str) -> None:
    event = narrow("pull_request", changed("pull_request", "action", action))
    assert isinstance(event, PullRequestChanged)
    assert event.action == action


def test_a_rerun_of_one_check_and_of_all() -> None:
    one, everything = read("check_run"), read("check_suite")
    assert isinstance(one, RerunRequested)
    assert isinstance(everything, RerunRequested)
    assert (one.external_id, one.head_sha, one.sender.login) == ("00ff", SHA, "ada")
    assert everything.external_id is None


@pytest.mark.parametrize(
    ("event", "path", "value"),
    [
        ("issue_comment", "action", "edited"),
        ("issue_comment", "action", "deleted"),
        ("issue_comment", "issue.pull_request", ...),
        ("issue_comment", "issue.pull_request", None),
        ("issue_comment", "comment.user", None),
        ("issue_comment", "comment.user", {"login": "robot", "type": "Bot"}),
        ("issue_comment", "comment.user", {"login": "robot[bot]"}),
        ("pull_request_review_comment", "action", "edited"),
        ("pull_request_review_comment", "comment.user.type", "Bot"),
        ("pull_request", "action", "labeled"),
        ("check_run", "action", "created"),
        ("check_run", "external_id", ""),
        ("check_suite", "action", "requested"),
        ("ping", "zen", "x"),
    ],
)
def test_irrelevant_deliveries_are_ignored_with_a_reason(event: str, path: str, value: object) -> None:
    if (event, path) == ("check_run", "external_id"):
        path = "check_run.external_id"
    result = narrow(event, changed(event, path, value))
    assert isinstance(result, Ignored)
    assert result.reason


def test_an_unused_event_is_not_parsed() -> None:
    assert isinstance(narrow("star", b"not json"), Ignored)


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ("issue_comment", "comment.body"),
        ("issue_comment", "comment.user.type"),
        ("issue_comment", "repository.private"),
        ("issue_comment", "repository.default_branch"),
        ("issue_comment", "sender"),
        ("pull_request", "pull_request.title"),
        ("pull_request", "pull_request.user"),
        ("pull_request", "pull_request.draft"),
        ("pull_request", "pull_request.state"),
        ("pull_request", "pull_request.maintainer_can_modify"),
        ("pull_request", "pull_request.head.repo"),
        ("pull_request", "sender"),
        ("check_run", "sender"),
        ("check_suite", "sender"),
    ],
)
def test_an_optional_field_may_be_missing(event: str, path: str) -> None:
    assert not isinstance(narrow(event, changed(event, path, ...)), Ignored)


@pytest.mark.parametrize("path", ["pull_request.user", "pull_request.head.repo", "pull_request.draft", "sender"])
def test_an_optional_field_may_be_null(path: str) -> None:
    event = narrow("pull_request", changed("pull_request", path, None))
    assert isinstance(event, PullRequestChanged)


@pytest.mark.parametrize(
    ("event", "path", "field"),
    [
        ("issue_comment", "installation", "installation"),
        ("issue_comment", "repository", "repository"),
        ("issue_comment", "comment", "comment"),
        ("issue_comment", "comment.id", "id"),
        ("issue_comment", "issue.number", "number"),
        ("issue_comment", "repository.clone_url", "clone_url"),
        ("pull_request", "pull_request.head", "head"),
        ("pull_request", "pull_request.head.sha", "sha"),
        ("pull_request", "pull_request.base.sha", "sha"),
        ("check_run", "check_run.head_sha", "head_sha"),
        ("check_suite", "check_suite", "check_suite"),
    ],
)
def test_a_missing_required_field_is_named(event: str, path: str, field: str) -> None:
    with pytest.raises(InvalidDelivery, match=field) as caught:
        narrow(event, changed(event, path, ...))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("event", "path", "value"),
    [
        ("issue_comment", "comment.id", "501"),
        ("issue_comment", "comment.id", 2**63),
        ("issue_comment", "comment.id", -1),
        ("issue_comment", "comment.id", True),
        ("issue_comment", "installation.id", None),
        ("issue_comment", "comment.body", 5),
        ("issue_comment", "repository.full_name", "no-slash"),
        ("issue_comment", "repository.full_name", "octo/.."),
        ("issue_comment", "repository.full_name", "a/b/c"),
        ("issue_comment", "repository.full_name", "octo/hello\n"),
        ("issue_comment", "repository.clone_url", "ext::sh -c id"),
        ("issue_comment", "repository.clone_url", "--upload-pack=id"),
        ("issue_comment", "repository.clone_url", "https://x/\ny"),
        ("pull_request", "pull_request.head.sha", "main"),
        ("pull_request", "pull_request.head.sha", SHA + "\n"),
        ("pull_request", "pull_request.head.sha", SHA.upper()),
        ("check_run", "check_run.head_sha", "--help"),
    ],
)
def test_an_impossible_value_is_rejected(event: str, path: str, value: object) -> None:
    with pytest.raises(InvalidDelivery, match=path.rpartition(".")[2]):
        narrow(event, changed(event, path, value))


@pytest.mark.parametrize("payload", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'"x"', b'{"action": "\xff"}', b"[" * 200_000])
@pytest.mark.parametrize("event", EVENTS)
def test_a_body_that_is_no_payload_is_invalid(event: str, payload: bytes) -> None:
    with pytest.raises(InvalidDelivery):
        narrow(event, payload)


def test_deep_nesting_is_rejected_and_does_not_crash() -> None:
    deep = b'{"action":"created","x":' + b'{"a":' * 500_000
    with pytest.raises(InvalidDelivery):
        narrow("issue_comment", deep)


def test_an_error_message_never_repeats_the_value() -> None:
    with pytest.raises(InvalidDelivery) as caught:
        narrow("issue_comment", changed("issue_comment", "repository.clone_url", "ssh://user:hunter2@host/x"))
    assert "hunter2" not in str(caught.value)


def test_nul_characters_are_rejected() -> None:
    event = narrow("issue_comment", changed("issue_comment", "comment.body", "/gibil\0 test"))
    assert isinstance(event, CommentCreated)
    assert event.body == "/gibil test"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["action", "id", "user", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(event=st.sampled_from([*EVENTS, "ping", "star"]), payload=_JSON | st.binary(max_size=40))
def test_any_json_is_an_event_or_invalid(event: str, payload: object) -> None:
    with suppress(InvalidDelivery):
        assert isinstance(
            narrow(event, payload if isinstance(payload, bytes) else json.dumps(payload).encode()), get_args(Event)
        )


@given(data=st.data(), event=st.sampled_from(EVENTS), value=_JSON)
def test_any_value_at_any_position_is_an_event_or_invalid(data: st.DataObject, event: str, value: object) -> None:
    payload: Any = deepcopy(PAYLOADS[event])
    place = payload
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or not place[key] or data.draw(st.booleans()):
            place[key] = value
            break
        place = place[key]
    with suppress(InvalidDelivery):
        assert isinstance(narrow(event, json.dumps(payload).encode()), get_args(Event))


def test_the_manifest_subscribes_to_exactly_the_events_that_are_read() -> None:
    manifest = yaml.safe_load((Path(__file__).parents[2] / "app.yml").read_text())
    assert sorted(manifest["default_events"]) == sorted(EVENTS)
    assert manifest["default_permissions"] == {
        "metadata": "read",
        "contents": "write",
        "checks": "write",
        "issues": "write",
        "pull_requests": "write",
        "merge_queues": "read",
    }
