"""A user's requests to GitHub: pull requests, with the user's own token.

No bot retries these later, so each request is tried for a few seconds and then fails. Creating a pull request is repeated only
after checking whether it exists: GitHub may have created it although its answer was lost. Shapes:
https://docs.github.com/en/rest/pulls/pulls and https://docs.github.com/en/rest/repos/repos.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from gibil_bot.config import Secret
from gibil_bot.errors import GitHubError
from gibil_bot.github.api.http import Answer, Request, Unanswered
from gibil_bot.github.api.rate_limit import wait_s
from gibil_bot.github.api.session import RETRIES, RETRY_AFTER_S, SHORT_WAIT_S, Session

LONGEST_TITLE, LONGEST_BODY = 256, 65_536
"""In characters."""


class _Name(msgspec.Struct):
    full_name: str


class _Repository(msgspec.Struct):
    full_name: str
    default_branch: str
    archived: bool = False
    fork: bool = False
    parent: _Name | None = None
    source: _Name | None = None


class _Error(msgspec.Struct):
    field: str = ""
    code: str = ""
    message: str = ""


class _Rejection(msgspec.Struct):
    errors: list[_Error | str] = msgspec.field(default_factory=list)


class _End(msgspec.Struct):
    repo: _Name | None
    """None: the fork is deleted."""


class _Pull(msgspec.Struct):
    number: int
    html_url: str
    head: _End
    draft: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedRepository:
    """A repository under its current name, whatever it was called before.

    `parent` and `root` are owner/name: the repository that it was forked from, and the first one of its network, which is
    the repository itself if it isn't a fork. None: GitHub doesn't show it to this token.
    """

    full_name: str
    default_branch: str
    is_archived: bool
    is_fork: bool
    parent: str | None
    root: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPullRequest:
    """`base` is a branch of `repository`, which gets the pull request; `head` is one of `head_repository` (both owner/name)."""

    repository: str
    head_repository: str
    head: str
    base: str
    title: str
    body: str
    draft: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPullRequest:
    number: int
    url: str
    draft: bool


class PullRequests:
    """The API for one user. `token_from` describes the token's source in messages. Close it when done."""

    def __init__(
        self,
        url: str,
        token: Secret,
        token_from: str,
        *,
        read_timeout_s: float = 20.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._session = Session(url, "", "", read_timeout_s=read_timeout_s)
        self._token = token
        self._token_from = token_from
        self._sleep = sleep

    async def repository(self, repository: str) -> NamedRepository:
        """https://docs.github.com/en/rest/repos/repos#get-a-repository"""
        request = Request(method="GET", route="/repos/{repository}", path_parameters={"repository": repository})
        found = (await self._ask(request, repository)).read(_Repository)
        root = found.source.full_name if found.source else None
        return NamedRepository(
            full_name=found.full_name,
            default_branch=found.default_branch,
            is_archived=found.archived,
            is_fork=found.fork,
            parent=found.parent.full_name if found.parent else None,
            root=root if found.fork else found.full_name,
        )

    async def has_branch(self, repository: str, branch: str) -> bool:
        """https://docs.github.com/en/rest/git/refs#get-a-reference; unlike branches, references of renamed branches aren't
        redirected.
        """
        request = Request(
            method="GET",
            route="/repos/{repository}/git/ref/heads/{path}",
            path_parameters={"repository": repository, "path": branch},
        )
        return (await self._ask(request, repository, answers=frozenset({404}))).status != 404

    async def find(self, repository: str, head_repository: str, head: str, base: str) -> OpenPullRequest | None:
        """Return the open pull request in `repository` from that branch to that branch.

        https://docs.github.com/en/rest/pulls/pulls#list-pull-requests: `head` has only an owner and a branch, but an
        organization can have a repository and forks of it.
        """
        owner = head_repository.partition("/")[0]
        request = Request(
            method="GET",
            route="/repos/{repository}/pulls",
            path_parameters={"repository": repository},
            query={"state": "open", "head": f"{owner}:{head}", "base": base, "per_page": 100},
        )
        for pull in (await self._ask(request, repository)).read(list[_Pull]):
            if pull.head.repo is not None and is_same(pull.head.repo.full_name, head_repository):
                return _open_pull_request(pull)
        return None

    async def create(self, new: NewPullRequest) -> tuple[OpenPullRequest, bool]:
        """Return the pull request, and whether it is new. https://docs.github.com/en/rest/pulls/pulls#create-a-pull-request"""
        request = Request(
            method="POST",
            route="/repos/{repository}/pulls",
            path_parameters={"repository": new.repository},
            body={"title": new.title, "body": new.body, "base": new.base, "draft": new.draft, **_head_of(new)},
        )
        failures = 0
        was_lost = False
        while True:
            try:
                answer = await self._ask(request, new.repository, answers=frozenset({422}))
            except _Uncertain as uncertain:
                was_lost = True
                failures += 1
                # It may exist. GitHub allows one per head and base, so repeating the request is safe.
                found = await self.find(new.repository, new.head_repository, new.head, new.base)
                if found is not None:
                    return found, True
                if (again_s := RETRIES.wait_s(failures)) is None:
                    raise uncertain.error from None
                await self._sleep(again_s)
                continue
            if answer.status < 400:
                return _open_pull_request(answer.read(_Pull)), True
            errors = [error for error in answer.read(_Rejection).errors if isinstance(error, _Error)]
            if any("already exists" in error.message for error in errors):
                found = await self.find(new.repository, new.head_repository, new.head, new.base)
                if found is not None:
                    return found, was_lost
            failures += 1
            again_s = RETRIES.wait_s(failures)
            if any((error.field, error.code) == ("head", "invalid") for error in errors) and again_s is not None:
                # The branch was pushed a moment ago, and not all parts of GitHub know it yet.
                await self._sleep(again_s)
                continue
            raise _not_opened(new, answer, errors)

    async def close(self) -> None:
        await self._session.close()

    async def _ask(self, request: Request, repository: str, *, answers: frozenset[int] = frozenset()) -> Answer:
        """Send a request with retries. Raises GitHubError, or _Uncertain if it may have taken effect."""
        failures = 0
        while True:
            answer: Answer | None = None
            pause_s: float | None = None
            try:
                answer = await self._session.ask_with(self._token.reveal(), request)
            except Unanswered as error:
                failure = GitHubError(
                    f"GitHub at {self._session.url} doesn't answer ({error.reason}); try again", retry_after_s=RETRY_AFTER_S
                )
                if error.sent and not request.may_repeat:
                    raise _Uncertain(failure) from None
            else:
                if answer.status < 400 or answer.status in answers:
                    return answer
                pause_s = wait_s(answer.status, answer.headers, answer.message, now_s=time.time(), strikes=0)
                failure = self._rejection(request, repository, answer, pause_s)
            failures += 1
            again_s = RETRIES.wait_s(failures)
            if pause_s is not None and pause_s <= SHORT_WAIT_S and again_s is not None:
                again_s = pause_s
            elif answer is not None:
                if answer.status < 500:
                    raise failure
                if not request.may_repeat:
                    raise _Uncertain(failure)
            if again_s is None:
                raise failure
            await self._sleep(again_s)

    def _rejection(self, request: Request, repository: str, answer: Answer, pause_s: float | None) -> GitHubError:
        url, message = self._session.url, answer.message
        if pause_s is not None:
            text = f"GitHub's limit is reached ({message}); try again in {pause_s:.0f} s"
        elif answer.status >= 500:
            text, pause_s = f"GitHub at {url} answers {answer.status} ({message}); try again", RETRY_AFTER_S
        elif answer.status == 401:
            text = (
                f"GitHub at {url} doesn't accept the token from {self._token_from} ({message}): "
                "it has expired or was revoked; create a new one"
            )
        elif "x-github-sso" in answer.headers:
            text = (
                f"the token from {self._token_from} must be authorized for the organization's single sign-on, "
                f"in the settings of your tokens ({message})"
            )
        elif answer.status == 403 or (answer.status == 404 and request.method != "GET"):
            text = (
                f"the token from {self._token_from} may not do this in {repository} ({message}): "
                "it needs the scope `repo`, or the permission Pull requests: write, "
                "and you need write access to the branch that the commits are on"
            )
        elif answer.status == 404:
            text = (
                f"the repository {repository} doesn't exist at {url} for the token from {self._token_from}: "
                "it needs the scope `repo`, or the permissions Contents and Pull requests for this repository"
            )
        else:
            text = f"GitHub answers {answer.status} for {repository}: {message}"
        return GitHubError(text, status=answer.status, retry_after_s=pause_s)


class _Uncertain(Exception):
    """The request may have taken effect."""

    def __init__(self, error: GitHubError) -> None:
        super().__init__(error.message)
        self.error = error


def is_same(one: str, other: str) -> bool:
    """Return whether these are names of the same repository: GitHub preserves case but ignores it in comparisons."""
    return one.lower() == other.lower()


def _head_of(new: NewPullRequest) -> dict[str, str]:
    """Return the fields for the head. `owner:branch` identifies the fork unless one owner has both; then `head_repo` does (same
    page).
    """
    if is_same(new.repository, new.head_repository):
        return {"head": new.head}
    owner = new.head_repository.partition("/")[0]
    head = {"head": f"{owner}:{new.head}"}
    if is_same(owner, new.repository.partition("/")[0]):
        head["head_repo"] = new.head_repository
    return head


def _not_opened(new: NewPullRequest, answer: Answer, errors: list[_Error]) -> GitHubError:
    """Explain a rejection: https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#validation-failed"""
    if any((error.field, error.code) == ("base", "invalid") for error in errors):
        text = f"{new.repository} has no branch {new.base}; set the target branch with --base"
    elif any((error.field, error.code) == ("head", "invalid") for error in errors):
        text = f"{new.repository} doesn't accept pull requests from {new.head} of {new.head_repository}; are they forks?"
    elif any("no commits between" in error.message.lower() for error in errors):
        text = f"{new.base} of {new.repository} already has every commit of {new.head}"
    elif any("not all refs are readable" in error.message.lower() for error in errors):
        # As reported in tgymnich/fork-sync#8.
        text = (
            f"the token may not read the branches of {new.repository} and {new.head_repository}: "
            "it needs the scope `repo`, or the permission Contents for both"
        )
    elif "draft" in answer.message.lower():
        text = (
            f"{new.repository} doesn't support draft pull requests (private repositories of free accounts don't); omit --draft"
        )
    else:
        text = f"GitHub rejected the pull request: {answer.message}"
    return GitHubError(text, status=answer.status)


def _open_pull_request(pull: _Pull) -> OpenPullRequest:
    return OpenPullRequest(number=pull.number, url=pull.html_url, draft=pull.draft)
