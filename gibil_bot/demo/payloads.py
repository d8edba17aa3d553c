"""The JSON of GitHub's objects, in the REST API and in webhooks. Pure: state in, dictionaries out.

Fields as documented at https://docs.github.com/en/rest and https://docs.github.com/en/webhooks/webhook-events-and-payloads,
without those that are useless on a double.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import quote

from gibil_bot.demo.records import (
    Activity,
    Comment,
    HookDelivery,
    Installation,
    Issue,
    PullRequest,
    Reaction,
    Repository,
    Review,
    Token,
    User,
)
from gibil_bot.demo.state import State

Json = dict[str, object]

REACTIONS = ("+1", "-1", "laugh", "confused", "heart", "hooray", "rocket", "eyes")
"""https://docs.github.com/en/rest/reactions/reactions#about-reactions"""


def moment(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_id(kind: str, number: int) -> str:
    return base64.b64encode(f"{kind}:{number}".encode()).decode()


def user(state: State, who: User) -> Json:
    return {
        "login": who.login,
        "id": who.id,
        "node_id": node_id("User", who.id),
        "avatar_url": "",
        "url": f"{state.url}/users/{quote(who.login)}",
        "html_url": f"{state.url}/{quote(who.login)}",
        "type": who.type,
        "site_admin": False,
    }


def app(state: State) -> Json:
    owner = next((each.account for each in state.installations.values()), state.bot)
    return {
        "id": state.app_id,
        "slug": state.app_slug,
        "client_id": state.client_id,
        "node_id": node_id("App", state.app_id),
        "owner": user(state, owner),
        "name": state.app_slug,
        "description": None,
        "external_url": state.url,
        "html_url": f"{state.url}/apps/{state.app_slug}",
        "permissions": state.permissions,
        "events": list(state.events),
        "installations_count": len(state.installations),
    }


def installation(state: State, it: Installation) -> Json:
    return {
        "id": it.id,
        "account": user(state, it.account),
        "app_id": state.app_id,
        "app_slug": state.app_slug,
        "target_id": it.account.id,
        "target_type": it.account.type,
        "permissions": it.permissions,
        "events": list(it.events),
        "repository_selection": "all",
        "access_tokens_url": f"{state.url}/app/installations/{it.id}/access_tokens",
        "html_url": f"{state.url}/settings/installations/{it.id}",
        "suspended_at": None,
    }


def token(state: State, it: Token) -> Json:
    body: Json = {
        "token": it.value,
        "expires_at": moment(it.expires_at),
        "permissions": it.permissions,
        "repository_selection": "all" if it.repository_ids is None else "selected",
    }
    if it.repository_ids is not None:
        chosen = [each for each in state.repositories.values() if each.id in it.repository_ids]
        body["repositories"] = [repository(state, each) for each in chosen]
    return body


def repository(state: State, it: Repository) -> Json:
    api = f"{state.url}/repos/{it.full_name}"
    return {
        "id": it.id,
        "node_id": node_id("Repository", it.id),
        "name": it.name,
        "full_name": it.full_name,
        "private": it.private,
        "visibility": "private" if it.private else "public",
        "owner": user(state, it.owner),
        "html_url": f"{state.url}/{it.full_name}",
        "description": None,
        "fork": it.parent is not None,
        "url": api,
        "clone_url": f"{state.url}/{it.full_name}.git",
        "git_url": f"{state.url}/{it.full_name}.git",
        "ssh_url": "",
        "default_branch": it.default_branch,
        "archived": it.archived,
        "disabled": False,
        "created_at": moment(it.created_at),
        "pushed_at": moment(it.pushed_at or it.created_at),
        "statuses_url": f"{api}/statuses/{{sha}}",
    }


def full_repository(state: State, it: Repository, seen: Callable[[Repository], bool]) -> Json:
    """Return a repository as its own endpoint shows it. A fork has its `parent` and its `source`, the first of its network.

    https://docs.github.com/en/rest/repos/repos#get-a-repository
    """
    body = repository(state, it)
    if it.parent is not None:
        body |= {name: repository(state, each) for name, each in (("parent", it.parent), ("source", it.source)) if seen(each)}
    return body


def association(repository: Repository, who: User) -> str:
    """Return a label for people, which isn't an access check:
    https://docs.github.com/en/graphql/reference/enums#commentauthorassociation
    """
    if who.login.lower() == repository.owner.login.lower():
        return "OWNER"
    return "COLLABORATOR" if who.login.lower() in repository.roles else "NONE"


def issue(state: State, home: Repository, it: Issue) -> Json:
    api = f"{state.url}/repos/{home.full_name}"
    body: Json = {
        "id": it.id,
        "node_id": node_id("Issue", it.id),
        "number": it.number,
        "title": it.title,
        "body": it.body,
        "state": it.state,
        "locked": False,
        "user": user(state, it.author),
        "author_association": association(home, it.author),
        "labels": [],
        "comments": sum(1 for comment in home.comments.values() if comment.number == it.number and not comment.is_review),
        "url": f"{api}/issues/{it.number}",
        "comments_url": f"{api}/issues/{it.number}/comments",
        "html_url": f"{state.url}/{home.full_name}/issues/{it.number}",
        "created_at": moment(it.created_at),
        "updated_at": moment(it.updated_at),
        "closed_at": moment(it.closed_at),
    }
    if isinstance(it, PullRequest):
        page = f"{state.url}/{home.full_name}/pull/{it.number}"
        body["html_url"] = page
        body["draft"] = it.draft
        body["pull_request"] = {"url": f"{api}/pulls/{it.number}", "html_url": page, "merged_at": None}
    return body


def pull_request(state: State, home: Repository, it: PullRequest) -> Json:
    def end(where: Repository | None, ref: str, sha: str) -> Json:
        owner = where.owner if where else it.author
        return {
            "label": f"{owner.login}:{ref}",
            "ref": ref,
            "sha": sha,
            "user": user(state, owner),
            "repo": repository(state, where) if where else None,
        }

    api = f"{state.url}/repos/{home.full_name}"
    return {
        "id": it.id,
        "node_id": node_id("PullRequest", it.id),
        "number": it.number,
        "state": it.state,
        "locked": False,
        "title": it.title,
        "body": it.body,
        "user": user(state, it.author),
        "author_association": association(home, it.author),
        "draft": it.draft,
        "merged": it.merged,
        "mergeable": None,
        "maintainer_can_modify": it.maintainer_can_modify,
        "head": end(it.head_repository, it.head_ref, it.head_sha),
        "base": end(home, it.base_ref, it.base_sha),
        "url": f"{api}/pulls/{it.number}",
        "issue_url": f"{api}/issues/{it.number}",
        "html_url": f"{state.url}/{home.full_name}/pull/{it.number}",
        "labels": [],
        "requested_reviewers": [],
        "created_at": moment(it.created_at),
        "updated_at": moment(it.updated_at),
        "closed_at": moment(it.closed_at),
        "merged_at": None,
    }


def comment(state: State, home: Repository, it: Comment) -> Json:
    api = f"{state.url}/repos/{home.full_name}"
    kind = "pulls" if it.is_review else "issues"
    body: Json = {
        "id": it.id,
        "node_id": node_id("Comment", it.id),
        "user": user(state, it.author),
        "author_association": association(home, it.author),
        "body": it.body,
        "created_at": moment(it.created_at),
        "updated_at": moment(it.updated_at),
        "url": f"{api}/{kind}/comments/{it.id}",
        "reactions": {
            "url": f"{api}/{kind}/comments/{it.id}/reactions",
            "total_count": len(it.reactions),
            **{content: sum(1 for reaction in it.reactions if reaction.content == content) for content in REACTIONS},
        },
    }
    page = f"{state.url}/{home.full_name}/pull/{it.number}"
    if it.is_review:
        body |= {
            "path": it.path,
            "pull_request_url": f"{api}/pulls/{it.number}",
            "html_url": f"{page}#discussion_r{it.id}",
        }
        if it.lines is not None:
            body |= {
                "pull_request_review_id": it.lines.review,
                "line": it.lines.line,
                "side": it.lines.side,
                "start_line": it.lines.start_line,
                "start_side": it.lines.start_side,
            }
    else:
        body |= {
            "issue_url": f"{api}/issues/{it.number}",
            "html_url": f"{page}#issuecomment-{it.id}",
            "performed_via_github_app": app(state) if it.by_app else None,
        }
    return body


def review(state: State, home: Repository, it: Review) -> Json:
    """https://docs.github.com/en/rest/pulls/reviews#get-a-review-for-a-pull-request"""
    return {
        "id": it.id,
        "node_id": node_id("PullRequestReview", it.id),
        "user": user(state, it.author),
        "body": it.body,
        "state": it.state,
        "commit_id": it.commit_sha,
        "submitted_at": moment(it.submitted_at),
        "author_association": association(home, it.author),
        "html_url": f"{state.url}/{home.full_name}/pull/{it.number}#pullrequestreview-{it.id}",
        "pull_request_url": f"{state.url}/repos/{home.full_name}/pulls/{it.number}",
    }


def activity(state: State, it: Activity) -> Json:
    """https://docs.github.com/en/rest/repos/repos#list-repository-activities"""
    return {
        "id": it.id,
        "node_id": node_id("Push", it.id),
        "before": it.before,
        "after": it.after,
        "ref": it.ref,
        "timestamp": moment(it.at),
        "activity_type": it.kind,
        "actor": user(state, it.actor),
    }


def reaction(state: State, it: Reaction) -> Json:
    return {
        "id": it.id,
        "node_id": node_id("Reaction", it.id),
        "user": user(state, it.user),
        "content": it.content,
        "created_at": moment(it.created_at),
    }


def delivery(it: HookDelivery) -> Json:
    """https://docs.github.com/en/rest/apps/webhooks#list-deliveries-for-an-app-webhook"""
    return {
        "id": it.id,
        "guid": it.guid,
        "delivered_at": moment(it.delivered_at),
        "redelivery": it.redelivery,
        "duration": round(it.duration_s, 2),
        "status": it.status,
        "status_code": it.status_code,
        "event": it.event,
        "action": it.action,
        "installation_id": it.installation_id,
        "repository_id": it.repository_id,
        "throttled_at": None,
    }
