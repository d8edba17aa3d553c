"""GitHub API client of one App: `ports.GitHub` and `ports.Publisher`.

Cheap to import: githubkit is imported with the first request.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import msgspec

from gibil_bot.errors import GitHubError
from gibil_bot.github.api.app_settings import read_app
from gibil_bot.github.api.git_data import GitDataClient
from gibil_bot.github.api.http import Answer, Request, Unanswered, mint_request
from gibil_bot.github.api.publisher import Publisher
from gibil_bot.github.api.pull_request_contents import PullRequestContents
from gibil_bot.github.api.session import Session
from gibil_bot.github.api.workflow_files import WorkflowFiles
from gibil_bot.github.payloads import NamedRepositoryPayload, PullRequestPayload, UserPayload, person, utc
from gibil_bot.github.registration import RegisteredApp
from gibil_bot.model import BranchPush, DueNotification, PullRequest, Repository

MOST_DELIVERY_PAGES = 20
MOST_PULL_PAGES = 3

_CURSOR = re.compile(r'[?&]cursor=([^&>]+)[^>]*>; rel="next"')


class _Permission(msgspec.Struct):
    permission: str


class _ScopedToken(msgspec.Struct):
    token: str
    permissions: dict[str, str] = msgspec.field(default_factory=dict)


class _Delivery(msgspec.Struct):
    id: int
    guid: str
    delivered_at: datetime
    status_code: int = 0


class _Activity(msgspec.Struct):
    after: str
    timestamp: datetime
    actor: UserPayload | None = None


class _Written(msgspec.Struct):
    created_at: datetime


class _CheckRun(msgspec.Struct):
    name: str
    conclusion: str | None = None


class _CheckRuns(msgspec.Struct):
    check_runs: list[_CheckRun]


class _Installation(msgspec.Struct):
    id: int


class _App(msgspec.Struct):
    slug: str
    id: int | None = None


class GitHubClient:
    """`requests` counts requests by method and route."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._publisher = Publisher(self._session, self._own_slug)
        self._workflow_files = WorkflowFiles(self._session)
        self._slug: str | None = None

    @property
    def requests(self) -> Counter[str]:
        return self._session.requests

    async def publish(self, due: DueNotification, *, holds: Callable[[], bool] = lambda: True) -> int | None:
        """See ports.Publisher."""
        return await self._publisher.publish(due, holds)

    async def permission(self, installation_id: int, repository: str, login: str) -> str:
        """https://docs.github.com/en/rest/collaborators/collaborators#get-repository-permissions-for-a-user"""
        if login in ("", ".", ".."):
            return "none"
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/collaborators/{login}/permission",
                path_parameters={"repository": repository, "login": login},
                installation_id=installation_id,
                answers=frozenset({404}),
            )
        )
        if answer.status == 404:
            return "none"
        found = answer.read(_Permission).permission
        # An unknown permission counts as none.
        return found if found in ("admin", "write", "read") else "none"

    async def repository(self, full_name: str) -> tuple[int, Repository] | None:
        """https://docs.github.com/en/rest/apps/apps#get-a-repository-installation-for-the-authenticated-app
        https://docs.github.com/en/rest/repos/repos#get-a-repository
        """
        parameters = {"repository": full_name}
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/installation",
                path_parameters=parameters,
                answers=frozenset({301, 404}),
            )
        )
        if answer.status != 200:
            return None
        installation_id = answer.read(_Installation).id
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}",
                path_parameters=parameters,
                installation_id=installation_id,
                answers=frozenset({301, 404}),
            )
        )
        return (installation_id, answer.read(NamedRepositoryPayload).value()) if answer.status == 200 else None

    async def pull_request(self, installation_id: int, repository: str, number: int) -> PullRequest:
        """https://docs.github.com/en/rest/pulls/pulls#get-a-pull-request"""
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/pulls/{number}",
                path_parameters={"repository": repository, "number": number},
                installation_id=installation_id,
            )
        )
        return answer.read(PullRequestPayload).value()

    async def pull_requests_of(self, installation_id: int, repository: str, sha: str) -> list[PullRequest]:
        """Return the pull requests that GitHub lists for the commit, else the newest open ones with that head.

        GitHub doesn't list commits of forks.
        https://docs.github.com/en/rest/commits/commits#list-pull-requests-associated-with-a-commit
        """
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/commits/{sha}/pulls",
                path_parameters={"repository": repository, "sha": sha},
                installation_id=installation_id,
                query={"per_page": 100},
                answers=frozenset({404, 409, 422}),
            )
        )
        found = _open_at(sha, answer) if answer.status < 400 else []
        page = 0
        while not found and page < MOST_PULL_PAGES:
            page += 1
            answer = await self._session.ask(
                Request(
                    method="GET",
                    route="/repos/{repository}/pulls",
                    path_parameters={"repository": repository},
                    installation_id=installation_id,
                    query={"state": "open", "sort": "updated", "direction": "desc", "per_page": 100, "page": page},
                )
            )
            found = _open_at(sha, answer)
            if 'rel="next"' not in answer.headers.get("link", ""):
                break
        return found

    async def branch_push(self, installation_id: int, repository: Repository, branch: str, sha: str) -> BranchPush | None:
        """Return the newest activity of the branch if it put `sha` there; only then are its time and pusher known.

        https://docs.github.com/en/rest/repos/repos#list-repository-activities (contents: read)
        """
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/activity",
                path_parameters={"repository": repository.full_name},
                installation_id=installation_id,
                query={"ref": f"refs/heads/{branch}", "per_page": 1},
                # Older GitHub Enterprise Servers have no such endpoint, and without access the pusher stays unknown.
                answers=frozenset({403, 404, 422}),
            )
        )
        if answer.status >= 400:
            return None
        newest = next(iter(answer.read(list[_Activity])), None)
        if newest is None or newest.actor is None or newest.after != sha:
            return None
        at = utc(newest.timestamp)
        return BranchPush(repository_id=repository.id, branch=branch, sha=sha, pusher=person(newest.actor), at=at)

    async def comment_time(self, installation_id: int, repository: str, comment_id: int) -> datetime | None:
        """https://docs.github.com/en/rest/issues/comments#get-an-issue-comment"""
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/issues/comments/{number}",
                path_parameters={"repository": repository, "number": comment_id},
                installation_id=installation_id,
                answers=frozenset({404, 410}),
            )
        )
        return utc(answer.read(_Written).created_at) if answer.status < 400 else None

    async def check_runs(self, installation_id: int, repository: str, sha: str) -> list[tuple[str, str | None]]:
        """https://docs.github.com/en/rest/checks/runs#list-check-runs-for-a-git-reference"""
        query: dict[str, str | int] = {"filter": "latest", "per_page": 100}
        if self._session.app_id.isdigit():
            query["app_id"] = int(self._session.app_id)
        answer = await self._session.ask(
            Request(
                method="GET",
                route="/repos/{repository}/commits/{sha}/check-runs",
                path_parameters={"repository": repository, "sha": sha},
                installation_id=installation_id,
                query=query,
                answers=frozenset({404, 422}),
            )
        )
        found = answer.read(_CheckRuns).check_runs if answer.status < 400 else []
        return list({run.name: (run.name, run.conclusion) for run in reversed(found)}.values())

    async def workflow_files(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        return await self._workflow_files.at(installation_id, repository, ref)

    async def clone_token(self, installation_id: int, repository: Repository, submodules: tuple[str, ...] = ()) -> str:
        """https://docs.github.com/en/apps/creating-github-apps/authenticating-with-a-github-app/generating-an-installation-access-token-for-a-github-app"""
        scope: dict[str, object] = {"repository_ids": [repository.id], "permissions": {"contents": "read"}}
        if submodules:
            scope["repositories"] = list(submodules)
        found = (await self._session.ask(mint_request(installation_id, scope))).read(_ScopedToken)
        excess = {
            name: level for name, level in found.permissions.items() if name not in ("contents", "metadata") or level != "read"
        }
        if excess:
            # The token is used on a machine that runs untrusted code, so more than read access is never acceptable.
            await self.revoke_token(found.token)
            raise GitHubError(
                f"GitHub issued a clone token with more than read access ({', '.join(sorted(excess))}); it was not used"
            )
        return found.token

    async def revoke_token(self, token: str) -> None:
        """https://docs.github.com/en/rest/apps/installations#revoke-an-installation-access-token"""
        request = Request(method="DELETE", route="/installation/token")
        for _ in range(2):
            try:
                answer = await self._session.ask_with(token, request)
            except Unanswered:
                continue
            if answer.status < 500:
                return

    async def failed_deliveries(self, since: datetime) -> list[tuple[int, str]]:
        """Return deliveries that failed on every attempt, oldest first, each GUID once.

        https://docs.github.com/en/rest/apps/webhooks#list-deliveries-for-an-app-webhook
        """
        failed: dict[str, int] = {}
        arrived: set[str] = set()
        cursor: str | None = None
        for _ in range(MOST_DELIVERY_PAGES):
            query: dict[str, str | int] = {"per_page": 100} | ({"cursor": cursor} if cursor else {})
            answer = await self._session.ask(Request(method="GET", route="/app/hook/deliveries", query=query))
            deliveries = answer.read(list[_Delivery])
            recent = [delivery for delivery in deliveries if utc(delivery.delivered_at) >= since]
            for delivery in recent:
                if 200 <= delivery.status_code < 300:
                    arrived.add(delivery.guid)
                else:
                    failed.setdefault(delivery.guid, delivery.id)
            match = _CURSOR.search(answer.headers.get("link", ""))
            if match is None or len(recent) < len(deliveries) or match[1] == cursor:
                break
            cursor = match[1]
        return [(number, guid) for guid, number in reversed(failed.items()) if guid not in arrived]

    async def redeliver(self, delivery_number: int) -> None:
        """https://docs.github.com/en/rest/apps/webhooks#redeliver-a-delivery-for-an-app-webhook"""
        await self._session.ask(
            Request(
                method="POST",
                route="/app/hook/deliveries/{delivery}/attempts",
                path_parameters={"delivery": delivery_number},
                # Redelivering twice is harmless: the second delivery has the same GUID.
                repeatable=True,
            )
        )

    async def who_am_i(self) -> str:
        """https://docs.github.com/en/rest/apps/apps#get-the-authenticated-app"""
        try:
            answer = await self._session.ask(Request(method="GET", route="/app"))
        except GitHubError as error:
            raise await self._explained(error) from None
        self._slug = answer.read(_App).slug
        return self._slug

    async def registered_app(self) -> RegisteredApp:
        """Return the App's registration and its failed deliveries. Raises GitHubError with the likely mistake."""
        try:
            return await read_app(self._session)
        except GitHubError as error:
            raise await self._explained(error) from None

    def git_data(self, installation_id: int) -> GitDataClient:
        """Return the client that writes commits with the rights of that installation."""
        return GitDataClient(self._session, installation_id)

    def pull_request_contents(self, installation_id: int) -> PullRequestContents:
        """Return the client that reads what an agent gets to see, with the rights of that installation."""
        return PullRequestContents(self._session, installation_id)

    async def close(self) -> None:
        await self._session.close()

    # --- helpers

    async def _own_slug(self) -> str:
        return self._slug or await self.who_am_i()

    async def _explained(self, error: GitHubError) -> GitHubError:
        """Return the error with the likely mistake in the settings."""
        url, message = self._session.url, error.message.lower()
        if error.status == 404 and "integration not found" not in message:
            text = f"{url} is not a GitHub API; set GIBIL_GITHUB_URL to https://api.github.com or https://HOST/api/v3"
            return GitHubError(text, status=404)
        if error.status not in (401, 404):
            return error
        skew_s = await self._session.clock_skew_s()
        if skew_s is not None and abs(skew_s) > 30:
            direction = "ahead of" if skew_s > 0 else "behind"
            text = (
                f"This computer's clock is {abs(skew_s):.0f} s {direction} GitHub's, so GitHub rejects the App's signature: "
                "set the clock"
            )
        elif "integration" in message or "issuer" in message:
            text = f"GitHub has no App {self._session.app_id}: set GIBIL_GITHUB_APP_ID to the number on the App's settings page"
        else:
            text = (
                f"GitHub rejects the signature of App {self._session.app_id}: GIBIL_GITHUB_PRIVATE_KEY is not one of its keys, "
                "or GIBIL_GITHUB_APP_ID is another App's"
            )
        return GitHubError(f"{text} ({error.message})", status=error.status, retry_after_s=error.retry_after_s)


def _open_at(sha: str, answer: Answer) -> list[PullRequest]:
    pulls = [payload.value() for payload in answer.read(list[PullRequestPayload])]
    return [pull for pull in pulls if pull.is_open and pull.head_sha == sha]
