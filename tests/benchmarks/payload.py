"""A comment as GitHub delivers it: all URLs, a long pull request text, and no gibil command.

Field names from https://docs.github.com/webhooks/webhook-events-and-payloads#issue_comment; the values are invented.
"""

from __future__ import annotations

import json

EVENT = "issue_comment"

_REPOSITORY_ADDRESSES = (
    "archive",
    "blobs",
    "branches",
    "collaborators",
    "comments",
    "commits",
    "compare",
    "contents",
    "contributors",
    "deployments",
    "downloads",
    "events",
    "forks",
    "git_commits",
    "git_refs",
    "git_tags",
    "hooks",
    "issue_comment",
    "issue_events",
    "issues",
    "keys",
    "labels",
    "languages",
    "merges",
    "milestones",
    "notifications",
    "pulls",
    "releases",
    "stargazers",
    "statuses",
    "subscribers",
    "subscription",
    "tags",
    "teams",
    "trees",
)
_USER_ADDRESSES = (
    "avatar",
    "html",
    "followers",
    "following",
    "gists",
    "starred",
    "subscriptions",
    "organizations",
    "repos",
    "events",
    "received_events",
)
_REACTIONS = ("+1", "-1", "laugh", "hooray", "confused", "heart", "rocket", "eyes")
_SENTENCE = "The parser keeps the place of every node, so that a message can name the line and the column of what it is about. "


def _user(login: str, number: int) -> dict[str, object]:
    api = f"https://api.github.com/users/{login}"
    return {
        "login": login,
        "id": number,
        "node_id": "MDQ6VXNlcjU4MzIzMQ==",
        "gravatar_id": "",
        "url": api,
        **{f"{name}_url": f"{api}/{name}{{/other_user}}" for name in _USER_ADDRESSES},
        "type": "User",
        "user_view_type": "public",
        "site_admin": False,
    }


def _reactions(url: str) -> dict[str, object]:
    return {"url": f"{url}/reactions", "total_count": 0, **dict.fromkeys(_REACTIONS, 0)}


def _repository() -> dict[str, object]:
    api = "https://api.github.com/repos/ada/analytical-engine"
    return {
        "id": 35129377,
        "node_id": "MDEwOlJlcG9zaXRvcnkzNTEyOTM3Nw==",
        "name": "analytical-engine",
        "full_name": "ada/analytical-engine",
        "private": False,
        "owner": _user("ada", 583231),
        "html_url": "https://github.com/ada/analytical-engine",
        "description": "An engine that weaves algebraical patterns",
        "fork": False,
        "url": api,
        **{f"{name}_url": f"{api}/{name}{{/number}}" for name in _REPOSITORY_ADDRESSES},
        "created_at": "2015-05-05T23:40:12Z",
        "updated_at": "2026-05-05T23:40:12Z",
        "pushed_at": "2026-05-05T23:40:27Z",
        "git_url": "git://github.com/ada/analytical-engine.git",
        "ssh_url": "git@github.com:ada/analytical-engine.git",
        "clone_url": "https://github.com/ada/analytical-engine.git",
        "size": 4211,
        "stargazers_count": 1843,
        "watchers_count": 1843,
        "language": "Python",
        "has_issues": True,
        "has_wiki": True,
        "forks_count": 97,
        "archived": False,
        "disabled": False,
        "open_issues_count": 42,
        "license": {"key": "mit", "name": "MIT License", "spdx_id": "MIT", "url": "https://api.github.com/licenses/mit"},
        "allow_forking": True,
        "topics": ["engine", "weaving", "numbers"],
        "visibility": "public",
        "default_branch": "main",
    }


def payload() -> bytes:
    """Return the body, which is the same for every delivery."""
    issue = "https://api.github.com/repos/ada/analytical-engine/issues/7"
    comment = "https://api.github.com/repos/ada/analytical-engine/issues/comments/1200000001"
    labels = [
        {
            "id": 208045946 + index,
            "node_id": "MDU6TGFiZWwyMDgwNDU5NDY=",
            "url": f"https://api.github.com/repos/ada/analytical-engine/labels/{name}",
            "name": name,
            "color": "fc2929",
            "default": False,
            "description": f"What {name} means here",
        }
        for index, name in enumerate(("parser", "needs-review", "speed"))
    ]
    return json.dumps(
        {
            "action": "created",
            "issue": {
                "url": issue,
                "repository_url": "https://api.github.com/repos/ada/analytical-engine",
                **{f"{name}_url": f"{issue}/{name}" for name in ("labels", "comments", "events", "html", "timeline")},
                "id": 73464126,
                "node_id": "MDU6SXNzdWU3MzQ2NDEyNg==",
                "number": 7,
                "title": "Keep the place of every node",
                "user": _user("grace", 583232),
                "labels": labels,
                "state": "open",
                "locked": False,
                "assignee": _user("ada", 583231),
                "assignees": [_user("ada", 583231)],
                "milestone": None,
                "comments": 12,
                "created_at": "2026-05-05T23:40:28Z",
                "updated_at": "2026-05-06T08:12:01Z",
                "closed_at": None,
                "author_association": "CONTRIBUTOR",
                "active_lock_reason": None,
                "draft": False,
                "pull_request": {
                    "url": "https://api.github.com/repos/ada/analytical-engine/pulls/7",
                    "html_url": "https://github.com/ada/analytical-engine/pull/7",
                    "diff_url": "https://github.com/ada/analytical-engine/pull/7.diff",
                    "patch_url": "https://github.com/ada/analytical-engine/pull/7.patch",
                    "merged_at": None,
                },
                "body": "## What this does\r\n\r\n" + _SENTENCE * 24,
                "reactions": _reactions(issue),
                "performed_via_github_app": None,
                "state_reason": None,
            },
            "comment": {
                "url": comment,
                "html_url": "https://github.com/ada/analytical-engine/pull/7#issuecomment-1200000001",
                "issue_url": issue,
                "id": 1200000001,
                "node_id": "IC_kwDOAhgMkM5HhhrB",
                "user": _user("charles", 583233),
                "created_at": "2026-05-06T08:12:01Z",
                "updated_at": "2026-05-06T08:12:01Z",
                "author_association": "MEMBER",
                "body": "Thank you, this reads well.\r\n\r\n> " + _SENTENCE * 6,
                "reactions": _reactions(comment),
                "performed_via_github_app": None,
            },
            "repository": _repository(),
            "sender": _user("charles", 583233),
            "installation": {"id": 10481044, "node_id": "MDIzOkludGVncmF0aW9uSW5zdGFsbGF0aW9uMTA0ODEwNDQ="},
        },
        separators=(",", ":"),
    ).encode()
