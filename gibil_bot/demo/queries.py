"""What is to be seen on the double: for tests and for the narrator of the demonstration."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from gibil_bot.demo.records import CheckRun, Comment, HookDelivery, PullRequest, Reaction, Repository, RequestRecord
from gibil_bot.demo.state import World

T = TypeVar("T")


class Sight:
    """The reading half of `GitHubDouble`. Look-ups raise KeyError for what is not there."""

    def __init__(self, world: World) -> None:
        self.world = world

    def pull_request(self, full_name: str, number: int) -> PullRequest:
        found = self.world.repository(full_name).issues[number]
        if not isinstance(found, PullRequest):
            raise KeyError(f"{full_name}#{number} is an issue")
        return found

    def head_sha(self, full_name: str, number: int) -> str:
        return self.pull_request(full_name, number).head_sha

    def check_runs(self, full_name: str, sha: str | None = None) -> list[CheckRun]:
        """Oldest first."""
        runs = self.world.repository(full_name).check_runs.values()
        return [run for run in runs if sha is None or run.head_sha == sha]

    def comments(self, full_name: str, number: int) -> list[Comment]:
        """Of the conversation and of the diff, oldest first."""
        return [each for each in self.world.repository(full_name).comments.values() if each.number == number]

    def reactions(self, comment_id: int) -> list[Reaction]:
        return list(self.find_comment(comment_id)[1].reactions)

    @property
    def deliveries(self) -> list[HookDelivery]:
        """Every attempt, oldest first."""
        return self.world.deliveries

    @property
    def requests(self) -> list[RequestRecord]:
        """Everything that was asked over HTTP, git included, in the order of answering."""
        return self.world.requests

    async def wait_for(self, predicate: Callable[[], T], timeout_s: float = 10.0) -> T:
        """The first truthy value of `predicate`, asked again after every change. Raises TimeoutError."""
        return await self.world.wait_for(predicate, timeout_s)

    def find_comment(self, comment_id: int) -> tuple[Repository, Comment]:
        """Raises KeyError."""
        found = self.world.find_comment(comment_id)
        if found is None:
            raise KeyError(comment_id)
        return found
