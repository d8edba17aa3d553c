"""Publisher of notifications: creates or updates the GitHub object that a notification describes, and never creates a second.

If an earlier attempt may have succeeded, it searches for the object before it creates one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec

from gibil_bot.errors import GitHubError
from gibil_bot.github.api.http import Answer, Request
from gibil_bot.github.api.session import RETRY_AFTER_S, Session
from gibil_bot.model import CheckRunUpdate, CommentUpdate, DueNotification, ReactionUpdate, ReviewComment, ReviewUpdate
from gibil_bot.retry import RetryPolicy

MOST_PAGES = 10
_REPEATED_FAILURES = RetryPolicy(attempts=None, first_wait_s=RETRY_AFTER_S, longest_wait_s=300.0, jitter=(1.0, 1.0))
"""A notification that keeps failing is retried less and less often."""
_GONE = frozenset({404, 410})
_INVALID = frozenset({422})


class _Created(msgspec.Struct):
    id: int


class _CheckRun(msgspec.Struct):
    id: int
    external_id: str | None = None


class _CheckRuns(msgspec.Struct):
    check_runs: list[_CheckRun]


class _User(msgspec.Struct):
    login: str = ""


class _Via(msgspec.Struct):
    id: int | None = None


class _Comment(msgspec.Struct):
    id: int
    body: str | None = None
    user: _User | None = None
    performed_via_github_app: _Via | None = None


class _Review(msgspec.Struct):
    id: int
    body: str | None = None
    user: _User | None = None


@dataclass(frozen=True, slots=True)
class _Writer:
    """Sends the writes of one notification, as long as its claim holds."""

    session: Session
    due: DueNotification
    holds: Callable[[], bool]

    async def __call__(
        self,
        method: str,
        route: str,
        *,
        body: dict[str, object],
        number: int | None = None,
        is_comment: bool = False,
        answers: frozenset[int] = frozenset(),
        repeatable: bool | None = None,
    ) -> Answer:
        path_parameters: dict[str, str | int] = {"repository": self.due.notification.repository}
        if number is not None:
            path_parameters["number"] = number
        request = Request(
            method=method,
            route=route,
            path_parameters=path_parameters,
            installation_id=self.due.notification.installation_id,
            body=body,
            is_comment=is_comment,
            priority=self.due.priority,
            answers=answers,
            repeatable=repeatable,
        )
        return await self.session.ask(request, holds=self.holds)


class Publisher:
    """ports.Publisher over a session. `slug` returns the App's own name."""

    def __init__(self, session: Session, slug: Callable[[], Awaitable[str]]) -> None:
        self._session = session
        self._slug = slug

    async def publish(self, due: DueNotification, holds: Callable[[], bool]) -> int | None:
        """See ports.Publisher."""
        write = _Writer(self._session, due, holds)
        try:
            match due.notification.update:
                case CheckRunUpdate() as update:
                    return await self._check_run(due, update, write)
                case CommentUpdate() as update:
                    return await self._comment(due, update, write)
                case ReactionUpdate() as update:
                    return await self._reaction(due, update, write)
                case ReviewUpdate() as update:
                    return await self._review(due, update, write)
        except GitHubError as error:
            if error.retry_after_s == RETRY_AFTER_S:
                error.retry_after_s = _REPEATED_FAILURES.wait_s(due.failures + 1)
            raise

    # --- check runs: https://docs.github.com/en/rest/checks/runs

    async def _check_run(self, due: DueNotification, update: CheckRunUpdate, write: _Writer) -> int:
        body: dict[str, object] = msgspec.to_builtins(update)
        remote_id = due.remote_id
        if remote_id is None and due.attempts > 0:
            remote_id = await self._find_check_run(due, update)
        if remote_id is None:
            answer = await write("POST", "/repos/{repository}/check-runs", body=body)
            return answer.read(_Created).id
        # A check run can't be moved to another commit.
        del body["head_sha"]
        await write("PATCH", "/repos/{repository}/check-runs/{number}", number=remote_id, body=body)
        return remote_id

    async def _find_check_run(self, due: DueNotification, update: CheckRunUpdate) -> int | None:
        for page in range(1, MOST_PAGES + 1):
            answer = await self._session.ask(
                Request(
                    method="GET",
                    route="/repos/{repository}/commits/{sha}/check-runs",
                    path_parameters={"repository": due.notification.repository, "sha": update.head_sha},
                    installation_id=due.notification.installation_id,
                    query={"check_name": update.name, "filter": "all", "per_page": 100, "page": page},
                )
            )
            found = answer.read(_CheckRuns).check_runs
            for run in found:
                if run.external_id == update.external_id:
                    return run.id
            if len(found) < 100:
                return None
        return None

    # --- comments: https://docs.github.com/en/rest/issues/comments

    async def _comment(self, due: DueNotification, update: CommentUpdate, write: _Writer) -> int | None:
        remote_id = due.remote_id
        if remote_id is not None and await self._change_comment(write, update, remote_id):
            return remote_id
        # The comment is unknown, or was deleted.
        if due.attempts > 0 or (update.only_if_exists and remote_id is None):
            found = await self._find_comment(due, update)
            if found is not None and found != remote_id and await self._change_comment(write, update, found):
                return found
        if update.only_if_exists:
            return None
        answer = await write(
            "POST",
            "/repos/{repository}/issues/{number}/comments",
            number=update.number,
            body={"body": update.body},
            is_comment=True,
        )
        return answer.read(_Created).id

    async def _change_comment(self, write: _Writer, update: CommentUpdate, comment_id: int) -> bool:
        """Return False if the comment no longer exists."""
        answer = await write(
            "PATCH",
            "/repos/{repository}/issues/comments/{number}",
            number=comment_id,
            body={"body": update.body},
            is_comment=True,
            answers=_GONE,
        )
        return answer.status < 400

    async def _find_comment(self, due: DueNotification, update: CommentUpdate) -> int | None:
        async for comment in self._comments(due, update.number):
            # Match only at the beginning: a task's output further down can contain the marker of another comment. Match only
            # comments of the App: any user can write a marker into a comment.
            if (comment.body or "").startswith(update.marker) and await self._is_ours(comment):
                return comment.id
        return None

    async def _comments(self, due: DueNotification, number: int) -> AsyncIterator[_Comment]:
        """Yield the first page (the pull request's own comment), then from the last page backwards (replies)."""
        pages, page, last = 0, 1, 1
        while pages < MOST_PAGES:
            answer = await self._session.ask(
                Request(
                    method="GET",
                    route="/repos/{repository}/issues/{number}/comments",
                    path_parameters={"repository": due.notification.repository, "number": number},
                    installation_id=due.notification.installation_id,
                    query={"per_page": 100, "page": page},
                )
            )
            pages += 1
            for comment in answer.read(list[_Comment]):
                yield comment
            if page == 1:
                last = page = answer.last_page
            else:
                page -= 1
            if page <= 1 or last <= 1:
                return

    async def _is_ours(self, comment: _Comment) -> bool:
        via = comment.performed_via_github_app
        if via is not None and via.id is not None:
            return str(via.id) == self._session.app_id
        return comment.user is not None and comment.user.login == f"{await self._slug()}[bot]"

    # --- reactions: https://docs.github.com/en/rest/reactions/reactions

    async def _reaction(self, due: DueNotification, update: ReactionUpdate, write: _Writer) -> int:
        if due.remote_id is not None:
            return due.remote_id
        kind = "pulls" if update.is_review_comment else "issues"
        answer = await write(
            "POST",
            f"/repos/{{repository}}/{kind}/comments/{{number}}/reactions",
            number=update.comment_id,
            body={"content": update.content},
            # GitHub returns the existing reaction.
            repeatable=True,
        )
        return answer.read(_Created).id

    # --- reviews: https://docs.github.com/en/rest/pulls/reviews

    async def _review(self, due: DueNotification, update: ReviewUpdate, write: _Writer) -> int:
        if due.remote_id is not None:
            return due.remote_id
        if due.attempts > 0 and (found := await self._find_review(due, update)) is not None:
            return found
        # Without an event it would be pending, which only its author sees.
        body: dict[str, object] = {"event": "COMMENT", "body": update.without_lines}
        if update.comments:
            lines = {"commit_id": update.commit_sha, "body": update.body, "comments": [*map(_comment_on, update.comments)]}
            answer = await self._create_review(write, update, body | lines, answers=_INVALID)
            if answer.status < 400:
                return answer.read(_Created).id
            # GitHub creates all comments or none, and doesn't say which line isn't part of the diff, or that the commit
            # isn't part of the pull request any more.
        return (await self._create_review(write, update, body)).read(_Created).id

    async def _create_review(
        self, write: _Writer, update: ReviewUpdate, body: dict[str, object], answers: frozenset[int] = frozenset()
    ) -> Answer:
        return await write(
            "POST",
            "/repos/{repository}/pulls/{number}/reviews",
            number=update.number,
            body=body,
            is_comment=True,
            answers=answers,
        )

    async def _find_review(self, due: DueNotification, update: ReviewUpdate) -> int | None:
        """Search the reviews of the App itself: any user can write a marker."""
        login = f"{await self._slug()}[bot]"
        for page in range(1, MOST_PAGES + 1):
            answer = await self._session.ask(
                Request(
                    method="GET",
                    route="/repos/{repository}/pulls/{number}/reviews",
                    path_parameters={"repository": due.notification.repository, "number": update.number},
                    installation_id=due.notification.installation_id,
                    query={"per_page": 100, "page": page},
                )
            )
            found = answer.read(list[_Review])
            for review in found:
                if (review.body or "").startswith(update.marker) and review.user is not None and review.user.login == login:
                    return review.id
            if len(found) < 100:
                return None
        return None


def _comment_on(comment: ReviewComment) -> dict[str, object]:
    several = {} if comment.start_line is None else {"start_line": comment.start_line, "start_side": comment.side}
    return {"path": comment.path, "line": comment.line, "side": comment.side, "body": comment.body, **several}
