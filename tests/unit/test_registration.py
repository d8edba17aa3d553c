"""The link that registers the App, and the differences that are reported for an App registered otherwise."""

from __future__ import annotations

import ast
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from gibil_bot.github.registration import (
    FailedDelivery,
    RegisteredApp,
    differences,
    read_manifest,
    registration_url,
    shipped_manifest,
    web_address,
)

ROOT = Path(__file__).parents[2]
MANIFEST = shipped_manifest()
AT = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)


# Route of a repository → the permissions that its calls need at most, from the page of each endpoint, for example
# https://docs.github.com/en/rest/git/trees#create-a-tree--fine-grained-access-tokens
NEEDS = {
    "activity": "contents: read",
    "check-runs": "checks: write",
    "check-runs/{number}": "checks: write",
    "collaborators/{login}/permission": "metadata: read",
    "commits/{sha}/check-runs": "checks: read",
    "commits/{sha}/pulls": "pull_requests: read",
    "compare/{range}": "contents: read",
    "contents/{path}": "contents: read",
    "git/blobs": "contents: write",
    "git/blobs/{sha}": "contents: read",
    "git/commits": "contents: write",
    "git/ref/heads/{path}": "contents: read",
    "git/refs": "contents: write",
    "git/refs/heads/{path}": "contents: write",
    "git/trees": "contents: write",
    "git/trees/{tree}": "contents: read",
    "installation": "metadata: read",
    "issues/comments/{number}": "issues: write",
    "issues/{number}/comments": "issues: write",
    "pulls": "pull_requests: write",
    "pulls/{number}": "pull_requests: read",
    "pulls/{number}/comments": "pull_requests: read",
    "pulls/{number}/reviews": "pull_requests: write",
    "*/comments/{number}/reactions": "issues: write, pull_requests: write",
}
EVENTS_ONLY = {"merge_queues": "read"}
"""Needed for the event merge_group."""


def called_routes() -> set[str]:
    """Return the routes of repositories in the code that uses the App's tokens."""
    found = set()
    for file in (ROOT / "gibil_bot/github/api").glob("*.py"):
        if file.name == "user_pull_requests.py":  # with a user's token
            continue
        tree = ast.parse(file.read_text())
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            route = ""
            if isinstance(node, ast.JoinedStr):
                route = "".join(str(part.value) if isinstance(part, ast.Constant) else "*" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                route = node.value
            if route.startswith("/repos/{repository}/"):
                found.add(route.removeprefix("/repos/{repository}/"))
    return found


def test_the_manifest_asks_for_exactly_what_the_calls_need() -> None:
    assert called_routes() == set(NEEDS)
    needed: dict[str, str] = dict(EVENTS_ONLY)
    for need in ", ".join(NEEDS.values()).split(", "):
        name, level = need.split(": ")
        needed[name] = max(level, needed.get(name, ""), key=("", "read", "write").index)
    assert MANIFEST.permissions == needed


def registered(**changes: Any) -> RegisteredApp:
    app = RegisteredApp(
        slug="gibil-acme",
        settings_url="https://github.com/organizations/acme/settings/apps/gibil-acme",
        permissions=MANIFEST.permissions,
        events=MANIFEST.events,
        webhook_url="https://bot.acme.dev/webhook",
        content_type="json",
        has_secret=True,
        checks_certificate=True,
        deliveries=50,
    )
    return dataclasses.replace(app, **changes)


def test_the_shipped_manifest_is_app_yml() -> None:
    assert read_manifest((ROOT / "app.yml").read_bytes()) == MANIFEST


def test_the_link_contains_all_of_app_yml() -> None:
    content = yaml.safe_load((ROOT / "app.yml").read_text())
    url = urlsplit(registration_url(MANIFEST, webhook_url="https://bot.acme.dev/webhook"))
    assert f"{url.scheme}://{url.netloc}{url.path}" == "https://github.com/settings/apps/new"
    given = parse_qs(url.query, strict_parsing=True)
    assert given.pop("events[]") == content["default_events"]
    for name, level in content["default_permissions"].items():
        assert given.pop(name) == [level]
    assert given == {
        "name": [content["name"]],
        "description": [content["description"]],
        "url": [content["url"]],
        "public": ["false"],
        "webhook_active": ["true"],
        "webhook_url": ["https://bot.acme.dev/webhook"],
    }


@pytest.mark.parametrize(
    ("api", "organization", "begins"),
    [
        ("https://api.github.com", None, "https://github.com/settings/apps/new?"),
        ("https://api.github.com", "acme", "https://github.com/organizations/acme/settings/apps/new?"),
        ("https://ghe.acme.dev/api/v3", None, "https://ghe.acme.dev/settings/apps/new?"),
        ("https://ghe.acme.dev:8443/api/v3", "a b/c", "https://ghe.acme.dev:8443/organizations/a%20b%2Fc/settings/apps/new?"),
        ("https://api.acme.ghe.com", None, "https://acme.ghe.com/settings/apps/new?"),
    ],
)
def test_the_link_leads_to_the_configured_github_and_account(api: str, organization: str | None, begins: str) -> None:
    assert registration_url(MANIFEST, api, organization=organization).startswith(begins)


def test_a_password_in_the_api_address_is_not_in_the_link() -> None:
    assert web_address("https://user:word@ghe.acme.dev/api/v3") == "https://ghe.acme.dev"


def test_the_readme_has_the_link() -> None:
    assert registration_url(MANIFEST) in (ROOT / "README.md").read_text()


def test_a_correctly_registered_app_has_no_differences() -> None:
    assert differences(MANIFEST, registered()) == []
    assert differences(MANIFEST, registered(), "https://bot.acme.dev/webhook") == []


@pytest.mark.parametrize(
    ("changes", "says", "matters"),
    [
        ({"permissions": {**MANIFEST.permissions, "checks": "read"}}, "lacks checks: write (has read)", True),
        ({"permissions": {}}, "issues: write (has none)", True),
        ({"permissions": {**MANIFEST.permissions, "contents": "admin"}}, "unneeded permissions: contents: admin", False),
        ({"permissions": {**MANIFEST.permissions, "contents": "read"}}, "contents: write (has read): workflows with", False),
        ({"permissions": {**MANIFEST.permissions, "contents": "none"}}, "lacks contents: write (has none)", True),
        ({"permissions": {**MANIFEST.permissions, "secrets": "read"}}, "unneeded permissions: secrets: read", False),
        ({"events": MANIFEST.events[1:]}, f"not subscribed to {MANIFEST.events[0]}", True),
        ({"webhook_url": None}, "has no URL", True),
        ({"webhook_url": "https://other.dev/webhook"}, "delivers to https://other.dev/webhook, not to", True),
        ({"content_type": "form"}, "content type is 'form'", True),
        ({"has_secret": False}, "has no secret", True),
        ({"checks_certificate": False}, "doesn't verify the certificate", False),
    ],
)
def test_each_difference_is_reported_with_its_fix(changes: dict[str, Any], says: str, matters: bool) -> None:
    (found,) = differences(MANIFEST, registered(**changes), "https://bot.acme.dev/webhook")
    assert says in found.detail
    assert found.matters is matters
    assert found.fix


def test_a_wrong_path_is_reported_without_a_public_address() -> None:
    (found,) = differences(MANIFEST, registered(webhook_url="https://bot.acme.dev/"))
    assert "whose path is not /webhook" in found.detail


@pytest.mark.parametrize(
    ("status_code", "status", "advice"),
    [
        (401, "Unauthorized", "without a comma"),
        (404, "Not Found", "proxy's path"),
        (413, "Payload Too Large", "client_max_body_size 25m"),
        (502, "Bad Gateway", "`gibil serve` is running"),
        (503, "Service Unavailable", "see its log"),
        (0, "failed to connect to host", "can't reach https://bot.acme.dev/webhook"),
    ],
)
def test_failing_deliveries_are_explained_by_their_status(status_code: int, status: str, advice: str) -> None:
    failures = (FailedDelivery(at=AT, event="issue_comment", status_code=status_code, status=status),) * 3
    (found,) = differences(MANIFEST, registered(failures=failures, newest_failed=True))
    assert "3 of the last 50 deliveries failed" in found.detail
    assert "issue_comment at 2026-11-23 12:30 UTC" in found.detail
    assert advice in found.fix
    assert found.matters


def test_past_failures_are_only_a_warning() -> None:
    failures = (FailedDelivery(at=AT, event="push", status_code=502, status=""),)
    (found,) = differences(MANIFEST, registered(failures=failures))
    assert not found.matters
