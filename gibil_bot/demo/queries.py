"""Queries of the double's state, for tests and for the demonstration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gibil_bot.demo.records import CheckRun, Comment, HookDelivery, PullRequest, Reaction, Repository, RequestRecord, Review
from gibil_bot.demo.state import State

T = TypeVar("T")


class Queries:
    """The read methods of `GitHubDouble`. They raise KeyError for objects that don't exist."""

    def __init__(self, state: State) -> None:
        self.state = state

    def pull_request(self, full_name: str, number: int) -> PullRequest:
        found = self.state.repository(full_name).issues[number]
        if not isinstance(found, PullRequest):
            raise KeyError(f"{full_name}#{number} is an issue")
        return found

    def head_sha(self, full_name: str, number: int) -> str:
        return self.pull_request(full_name, number).head_sha

    def check_runs(self, full_name: str, sha: str | None = None) -> list[CheckRun]:
        """Return check runs, oldest first."""
        runs = self.state.repository(full_name).check_runs.values()
        return [run for run in runs if sha is None or run.head_sha == sha]

    def comments(self, full_name: str, number: int) -> list[Comment]:
        """Return comments of the conversation and of the diff, oldest first."""
        return [each for each in self.state.repository(full_name).comments.values() if each.number == number]

    def reviews(self, full_name: str, number: int) -> list[Review]:
        return [each for each in self.state.repository(full_name).reviews.values() if each.number == number]

    def reactions(self, comment_id: int) -> list[Reaction]:
        return list(self.find_comment(comment_id)[1].reactions)

    @property
    def deliveries(self) -> list[HookDelivery]:
        """Return all attempts, oldest first."""
        return self.state.deliveries

    @property
    def requests(self) -> list[RequestRecord]:
        """Return all HTTP requests, including git's, in the order of their responses."""
        return self.state.requests

    async def wait_for(self, predicate: Callable[[], T], timeout_s: float = 10.0) -> T:
        """Return the first truthy value of `predicate`, evaluated after every change. Raises TimeoutError."""
        return await self.state.wait_for(predicate, timeout_s)

    def find_comment(self, comment_id: int) -> tuple[Repository, Comment]:
        """Return a comment and its repository. Raises KeyError."""
        found = self.state.find_comment(comment_id)
        if found is None:
            raise KeyError(comment_id)
        return found
