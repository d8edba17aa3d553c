"""The state of the double, with its clock and its change notification.

`State.touch()` is called after every change, and wakes all waiters.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from gibil_bot.demo.records import (
    CheckRun,
    Comment,
    HookDelivery,
    Installation,
    PersonalToken,
    Repository,
    RequestRecord,
    Token,
    User,
)

T = TypeVar("T")


class State:
    """All records, with the queries that several files need."""

    def __init__(self, *, app_id: int, app_slug: str, permissions: Mapping[str, str], events: tuple[str, ...]) -> None:
        self.url = ""
        self.app_id = app_id
        self.app_slug = app_slug
        self.client_id = "Iv23li" + secrets.token_hex(7)
        self.permissions = dict(permissions)
        self.events = events
        self.users: dict[str, User] = {}
        self.installations: dict[int, Installation] = {}
        self.repositories: dict[str, Repository] = {}
        """By lower-case full name."""
        self.tokens: dict[str, Token] = {}
        self.personal_tokens: dict[str, PersonalToken] = {}
        self.lfs_objects: dict[tuple[int, str], bytes] = {}
        """(id of the network's first repository, SHA-256) → content."""
        self.lfs_links: dict[str, bytes] = {}
        """Signature of a download → content."""
        self.deliveries: list[HookDelivery] = []
        self.requests: list[RequestRecord] = []
        self.rate_limit = 5000
        self.apps_edit_forks = False
        """Whether maintainers' permission to edit a fork's branch is an App's, too. No page of GitHub says so."""
        self.rate_used: dict[str, int] = {}
        self.rate_reset: dict[str, datetime] = {}
        self._ids = itertools.count(1_200_000_001)
        self._shift = timedelta()
        self._last_push: datetime | None = None
        self._last_act: datetime | None = None
        self._changed = asyncio.Event()
        self.bot = self.add_user(f"{app_slug}[bot]", "Bot")

    # time

    def now(self) -> datetime:
        return datetime.now(UTC) + self._shift

    @property
    def ahead(self) -> timedelta:
        """Return how far this clock is ahead of the computer's."""
        return self._shift

    def moment_of_push(self) -> datetime:
        """Return now, in a later second than all earlier actions.

        GitHub's times are whole seconds, and users don't comment and push within one: if a test does, the clock is advanced.
        """
        return self._in_second_after(self._last_act, is_push=True)

    def moment_of_comment(self) -> datetime:
        """Return now, in a later second than the last push."""
        return self._in_second_after(self._last_push, is_push=False)

    def _in_second_after(self, earlier: datetime | None, *, is_push: bool) -> datetime:
        now = self.now()
        if earlier is not None and now.replace(microsecond=0) <= earlier.replace(microsecond=0):
            then = earlier.replace(microsecond=0) + timedelta(seconds=1)
            self._shift += then - now
            now = then
        self._last_act = now
        if is_push:
            self._last_push = now
        return now

    def advance(self, seconds: float) -> None:
        """Advance GitHub's clock: tokens expire, rate limits reset. App JWTs are still checked against the real clock."""
        self._shift += timedelta(seconds=seconds)
        self.touch()

    # change

    def touch(self) -> None:
        """Wake all waiters after a change."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_for(self, predicate: Callable[[], T], timeout_s: float) -> T:
        """Return the first truthy value of the predicate, evaluated after every change. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                changed = self._changed
                value = predicate()
                if value:
                    return value
                await changed.wait()

    # records

    def new_id(self) -> int:
        return next(self._ids)

    def add_user(self, login: str, type: str = "User") -> User:
        """Return the user, creating it if needed."""
        user = self.users.get(login.lower())
        if user is None:
            user = self.users[login.lower()] = User(self.new_id(), login, type)
            self.touch()
        return user

    def repository(self, full_name: str) -> Repository:
        """Return a repository. Raises KeyError."""
        return self.repositories[full_name.lower()]

    def repositories_of(self, installation_id: int) -> list[Repository]:
        return [each for each in self.repositories.values() if each.installation_id == installation_id]

    def comments(self) -> Iterator[tuple[Repository, Comment]]:
        for repository in self.repositories.values():
            for comment in repository.comments.values():
                yield repository, comment

    def find_comment(self, comment_id: int) -> tuple[Repository, Comment] | None:
        return next(((repository, comment) for repository, comment in self.comments() if comment.id == comment_id), None)

    def find_check_run(self, check_run_id: int) -> tuple[Repository, CheckRun] | None:
        for repository in self.repositories.values():
            if check_run_id in repository.check_runs:
                return repository, repository.check_runs[check_run_id]
        return None
