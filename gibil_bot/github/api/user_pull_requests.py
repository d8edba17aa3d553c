"""A user's own requests to GitHub: pull requests, with a token of the user's.

No bot retries these later, so each request is tried for a few seconds and then fails. A new pull request is requested again
only after a look whether it exists: GitHub may have created it before its answer was lost. Shapes as at
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
"""Characters."""


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
    """None: that fork is deleted."""


class _Pull(msgspec.Struct):
    number: int
    html_url: str
    head: _End
    draft: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A repository as GitHub names it now, whatever it was called once.

    `parent` and `root` are owner/name: what it was forked from, and the first one of its network, which is itself where it
    is no fork. None: GitHub does not show it to this token.
    """

    full_name: str
    default_branch: str
    is_archived: bool
    is_fork: bool
    parent: str | None
    root: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPullRequest:
    """`base` is a branch of `repository`, where the pull request is, and `head` one of `head_repository` (both owner/name)."""

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
    """For one person. `token_from` says in messages where the token came from. Close it when done."""

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

    async def place(self, repository: str) -> Place:
        """https://docs.github.com/en/rest/repos/repos#get-a-repository"""
        request = Request(method="GET", route="/repos/{repository}", place={"repository": repository})
        found = (await self._ask(request, repository)).read(_Repository)
        root = found.source.full_name if found.source else None
        return Place(
            full_name=found.full_name,
            default_branch=found.default_branch,
            is_archived=found.archived,
            is_fork=found.fork,
            parent=found.parent.full_name if found.parent else None,
            root=root if found.fork else found.full_name,
        )

    async def has_branch(self, repository: str, branch: str) -> bool:
        """https://docs.github.com/en/rest/git/refs#get-a-reference; a branch is sent on to its new name, a reference is not."""
        request = Request(
            method="GET", route="/repos/{repository}/git/ref/heads/{path}", place={"repository": repository, "path": branch}
        )
        return (await self._ask(request, repository, answers=frozenset({404}))).status != 404

    async def find(self, repository: str, head_repository: str, head: str, base: str) -> OpenPullRequest | None:
        """The open one in `repository`, from that branch to that branch.

        https://docs.github.com/en/rest/pulls/pulls#list-pull-requests: `head` names an owner and a branch, and an organisation
        can have a repository and forks of it.
        """
        owner = head_repository.partition("/")[0]
        request = Request(
            method="GET",
            route="/repos/{repository}/pulls",
            place={"repository": repository},
            query={"state": "open", "head": f"{owner}:{head}", "base": base, "per_page": 100},
        )
        for pull in (await self._ask(request, repository)).read(list[_Pull]):
            if pull.head.repo is not None and is_same(pull.head.repo.full_name, head_repository):
                return _open_pull_request(pull)
        return None

    async def create(self, wish: NewPullRequest) -> tuple[OpenPullRequest, bool]:
        """The pull request, and whether it is new. https://docs.github.com/en/rest/pulls/pulls#create-a-pull-request"""
        request = Request(
            method="POST",
            route="/repos/{repository}/pulls",
            place={"repository": wish.repository},
            body={"title": wish.title, "body": wish.body, "base": wish.base, "draft": wish.draft, **_head_of(wish)},
        )
        failures = 0
        was_lost = False
        while True:
            try:
                answer = await self._ask(request, wish.repository, answers=frozenset({422}))
            except _Uncertain as uncertain:
                was_lost = True
                failures += 1
                # It may exist. GitHub has one for each head and base, so that repeating the request is safe.
                found = await self.find(wish.repository, wish.head_repository, wish.head, wish.base)
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
                found = await self.find(wish.repository, wish.head_repository, wish.head, wish.base)
                if found is not None:
                    return found, was_lost
            failures += 1
            again_s = RETRIES.wait_s(failures)
            if any((error.field, error.code) == ("head", "invalid") for error in errors) and again_s is not None:
                # The branch was pushed a moment ago, and not every part of GitHub knows it yet.
                await self._sleep(again_s)
                continue
            raise _not_opened(wish, answer, errors)

    async def close(self) -> None:
        await self._session.close()

    async def _ask(self, request: Request, repository: str, *, answers: frozenset[int] = frozenset()) -> Answer:
        """Raises GitHubError, and _Uncertain when it may have been done all the same."""
        failures = 0
        while True:
            answer: Answer | None = None
            pause_s: float | None = None
            try:
                answer = await self._session.ask_with(self._token.reveal(), request)
            except Unanswered as error:
                failure = GitHubError(
                    f"GitHub at {self._session.url} does not answer ({error.reason}); try again", retry_after_s=RETRY_AFTER_S
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
        url, said = self._session.url, answer.message
        if pause_s is not None:
            text = f"GitHub's limit is reached ({said}); try again in {pause_s:.0f} s"
        elif answer.status >= 500:
            text, pause_s = f"GitHub at {url} answers {answer.status} ({said}); try again", RETRY_AFTER_S
        elif answer.status == 401:
            text = (
                f"GitHub at {url} does not accept the token from {self._token_from} ({said}): "
                "it has expired or was revoked; create a new one"
            )
        elif "x-github-sso" in answer.headers:
            text = (
                f"the token from {self._token_from} has to be authorized for the organisation's single sign-on, "
                f"in the settings of your tokens ({said})"
            )
        elif answer.status == 403 or (answer.status == 404 and request.method != "GET"):
            text = (
                f"the token from {self._token_from} may not do this in {repository} ({said}): "
                "it needs the scope `repo`, or the permission Pull requests: write, "
                "and you need write access to the branch that the commits are on"
            )
        elif answer.status == 404:
            text = (
                f"the repository {repository} doesn't exist at {url} for the token from {self._token_from}: "
                "it needs the scope `repo`, or the permissions Contents and Pull requests for this repository"
            )
        else:
            text = f"GitHub answers {answer.status} for {repository}: {said}"
        return GitHubError(text, status=answer.status, retry_after_s=pause_s)


class _Uncertain(Exception):
    """Nobody knows whether it was done."""

    def __init__(self, error: GitHubError) -> None:
        super().__init__(error.message)
        self.error = error


def is_same(one: str, other: str) -> bool:
    """Whether these are names of the same repository: GitHub keeps upper and lower case, and does not tell them apart."""
    return one.lower() == other.lower()


def _head_of(wish: NewPullRequest) -> dict[str, str]:
    """`owner:branch` says which fork, unless the owner has both repositories: then `head_repo` does (same page)."""
    if is_same(wish.repository, wish.head_repository):
        return {"head": wish.head}
    owner = wish.head_repository.partition("/")[0]
    head = {"head": f"{owner}:{wish.head}"}
    if is_same(owner, wish.repository.partition("/")[0]):
        head["head_repo"] = wish.head_repository
    return head


def _not_opened(wish: NewPullRequest, answer: Answer, errors: list[_Error]) -> GitHubError:
    """https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#validation-failed"""
    if any((error.field, error.code) == ("base", "invalid") for error in errors):
        text = f"{wish.repository} has no branch {wish.base}; set the target branch with --base"
    elif any((error.field, error.code) == ("head", "invalid") for error in errors):
        text = f"{wish.repository} doesn't accept pull requests from {wish.head} of {wish.head_repository}: are they forks?"
    elif any("no commits between" in error.message.lower() for error in errors):
        text = f"{wish.base} of {wish.repository} already has every commit of {wish.head}"
    elif any("not all refs are readable" in error.message.lower() for error in errors):
        # As reported in tgymnich/fork-sync#8.
        text = (
            f"the token may not read the branches of {wish.repository} and {wish.head_repository}: "
            "it needs the scope `repo`, or the permission Contents for both"
        )
    elif "draft" in answer.message.lower():
        text = (
            f"{wish.repository} doesn't support draft pull requests (private repositories of free accounts don't); omit --draft"
        )
    else:
        text = f"GitHub rejected the pull request: {answer.message}"
    return GitHubError(text, status=answer.status)


def _open_pull_request(pull: _Pull) -> OpenPullRequest:
    return OpenPullRequest(number=pull.number, url=pull.html_url, draft=pull.draft)
