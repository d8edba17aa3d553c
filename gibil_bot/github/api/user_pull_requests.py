"""What a person asks GitHub: a pull request, with a token of their own, from where that token is.

Nobody waits for a bot here, so everything is tried for a few seconds and then said. A new pull request is asked for again
only after a look whether it is there: GitHub may have made it before its answer was lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable

from gibil_bot.config import Secret
from gibil_bot.errors import GitHubError
from gibil_bot.github.api.rate_limit import wait_s
from gibil_bot.github.api.request import Request
from gibil_bot.github.api.response import Answer, Unanswered
from gibil_bot.github.api.session import BACKOFF_S, RETRY_AFTER_S, SHORT_WAIT_S, TRIES, Session
from gibil_bot.github.api.user_pull_request import (
    ErrorAnswer,
    NewPullRequest,
    OpenPullRequest,
    Place,
    PullAnswer,
    RefusalAnswer,
    RepositoryAnswer,
    head_of,
    is_same,
    not_opened,
    open_pull_request,
)


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
        found = (await self._ask(request, repository)).read(RepositoryAnswer)
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
        for pull in (await self._ask(request, repository)).read(list[PullAnswer]):
            if pull.head.repo is not None and is_same(pull.head.repo.full_name, head_repository):
                return open_pull_request(pull)
        return None

    async def create(self, wish: NewPullRequest) -> tuple[OpenPullRequest, bool]:
        """The pull request, and whether it is new. https://docs.github.com/en/rest/pulls/pulls#create-a-pull-request"""
        request = Request(
            method="POST",
            route="/repos/{repository}/pulls",
            place={"repository": wish.repository},
            body={"title": wish.title, "body": wish.body, "base": wish.base, "draft": wish.draft, **head_of(wish)},
        )
        tries = 0
        was_lost = False
        while True:
            tries += 1
            try:
                answer = await self._ask(request, wish.repository, answers=frozenset({422}))
            except _Uncertain as uncertain:
                was_lost = True
                # It may be there although nobody said so. GitHub has one for each head and base, so asking again is safe.
                found = await self.find(wish.repository, wish.head_repository, wish.head, wish.base)
                if found is not None:
                    return found, True
                if tries == TRIES:
                    raise uncertain.error from None
                await self._back_off(tries)
                continue
            if answer.status < 400:
                return open_pull_request(answer.read(PullAnswer)), True
            errors = [error for error in answer.read(RefusalAnswer).errors if isinstance(error, ErrorAnswer)]
            if any("already exists" in error.message for error in errors):
                found = await self.find(wish.repository, wish.head_repository, wish.head, wish.base)
                if found is not None:
                    return found, was_lost
            if any((error.field, error.code) == ("head", "invalid") for error in errors) and tries < TRIES:
                # The branch was pushed a moment ago, and not every part of GitHub knows it yet.
                await self._back_off(tries)
                continue
            raise not_opened(wish, answer, errors)

    async def close(self) -> None:
        await self._session.close()

    async def _ask(self, request: Request, repository: str, *, answers: frozenset[int] = frozenset()) -> Answer:
        """Raises GitHubError, and _Uncertain when it may have been done all the same."""
        tries = 0
        while True:
            tries += 1
            last = tries == TRIES
            try:
                answer = await self._session.ask_with(self._token.reveal(), request)
            except Unanswered as error:
                failure = GitHubError(
                    f"GitHub at {self._session.url} does not answer ({error.reason}); try again", retry_after_s=RETRY_AFTER_S
                )
                if error.sent and not request.may_repeat:
                    raise _Uncertain(failure) from None
                if last:
                    raise failure from None
                await self._back_off(tries)
                continue
            if answer.status < 400 or answer.status in answers:
                return answer
            pause_s = wait_s(answer.status, answer.headers, answer.message, now_s=time.time(), strikes=0)
            if pause_s is not None and pause_s <= SHORT_WAIT_S and not last:
                await self._sleep(pause_s)
                continue
            failure = self._refusal(request, repository, answer, pause_s)
            if answer.status < 500 or last:
                raise failure
            if not request.may_repeat:
                raise _Uncertain(failure)
            await self._back_off(tries)

    async def _back_off(self, tries: int) -> None:
        await self._sleep(BACKOFF_S * 2 ** (tries - 1) * random.uniform(0.5, 1.5))

    def _refusal(self, request: Request, repository: str, answer: Answer, pause_s: float | None) -> GitHubError:
        url, said = self._session.url, answer.message
        if pause_s is not None:
            text = f"GitHub's limit is reached ({said}); try again in {pause_s:.0f} s"
        elif answer.status >= 500:
            text, pause_s = f"GitHub at {url} answers {answer.status} ({said}); try again", RETRY_AFTER_S
        elif answer.status == 401:
            text = (
                f"GitHub at {url} does not accept the token from {self._token_from} ({said}): "
                "it has expired or was revoked; make a new one"
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
                f"there is no {repository} at {url} for the token from {self._token_from}: "
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
