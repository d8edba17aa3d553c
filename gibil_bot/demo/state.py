"""What the double remembers, and nothing that it does: users, repositories, pull requests, checks, tokens, deliveries.

All of it is plain mutable data in one `World`, changed only from one event loop. `World.touch()` is called after every
change, and wakes whoever waits for one.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

T = TypeVar("T")

PERMISSION_LEVELS = ("none", "read", "write", "admin")
"""In rising order; https://docs.github.com/en/rest/collaborators/collaborators#get-repository-permissions-for-a-user"""

ROLES: Mapping[str, str] = {
    "admin": "admin",
    "maintain": "write",
    "write": "write",
    "triage": "read",
    "read": "read",
    "none": "none",
}
"""Role of a person → the `permission` that GitHub shows for it (same page)."""

DEFAULT_EVENTS = ("check_run", "check_suite", "issue_comment", "pull_request", "pull_request_review_comment")
DEFAULT_PERMISSIONS: Mapping[str, str] = {
    "metadata": "read",
    "contents": "read",
    "checks": "write",
    "issues": "write",
    "pull_requests": "write",
}


@dataclass(slots=True)
class User:
    id: int
    login: str
    type: str = "User"
    """User, Organization or Bot."""


@dataclass(slots=True)
class Installation:
    id: int
    account: User
    permissions: dict[str, str]
    events: tuple[str, ...]


@dataclass(slots=True)
class Repository:
    id: int
    owner: User
    name: str
    private: bool
    default_branch: str
    installation_id: int | None
    parent: Repository | None = None
    roles: dict[str, str] = field(default_factory=dict)
    """Lower-case login → role, a key of ROLES."""
    issues: dict[int, Issue] = field(default_factory=dict)
    """Issues and pull requests share their numbers."""
    comments: dict[int, Comment] = field(default_factory=dict)
    check_suites: dict[int, CheckSuite] = field(default_factory=dict)
    check_runs: dict[int, CheckRun] = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def full_name(self) -> str:
        return f"{self.owner.login}/{self.name}"

    def pull_requests(self) -> list[PullRequest]:
        return [issue for issue in self.issues.values() if isinstance(issue, PullRequest)]

    def role_of(self, login: str) -> str:
        default = "none" if self.private else "read"
        return "admin" if login.lower() == self.owner.login.lower() else self.roles.get(login.lower(), default)


@dataclass(slots=True)
class Issue:
    id: int
    number: int
    title: str
    body: str
    author: User
    created_at: datetime
    updated_at: datetime
    state: str = "open"
    closed_at: datetime | None = None


@dataclass(slots=True, kw_only=True)
class PullRequest(Issue):
    head_repository: Repository | None
    """None when the fork was deleted."""
    head_ref: str
    head_sha: str
    base_ref: str
    base_sha: str
    draft: bool = False
    merged: bool = False
    maintainer_can_modify: bool = False


@dataclass(slots=True)
class Reaction:
    id: int
    user: User
    content: str
    created_at: datetime


@dataclass(slots=True)
class Comment:
    id: int
    number: int
    author: User
    body: str
    created_at: datetime
    updated_at: datetime
    path: str | None = None
    """The file of a review comment; None for a comment in the conversation."""
    by_app: bool = False
    edits: int = 0
    reactions: list[Reaction] = field(default_factory=list)

    @property
    def is_review(self) -> bool:
        return self.path is not None


@dataclass(slots=True)
class CheckSuite:
    id: int
    head_sha: str
    head_branch: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(slots=True)
class CheckRun:
    id: int
    suite_id: int
    name: str
    head_sha: str
    status: str
    started_at: datetime
    """As the App says; `created_at` and `changed_at` are GitHub's own knowledge."""
    created_at: datetime
    changed_at: datetime
    conclusion: str | None = None
    completed_at: datetime | None = None
    external_id: str = ""
    details_url: str = ""
    title: str | None = None
    summary: str | None = None
    text: str | None = None
    annotations: list[dict[str, object]] = field(default_factory=list)
    actions: list[dict[str, object]] = field(default_factory=list)
    updates: int = 0


@dataclass(slots=True)
class Token:
    value: str = field(repr=False)
    installation_id: int
    permissions: dict[str, str]
    repository_ids: frozenset[int] | None
    """None: every repository of the installation."""
    expires_at: datetime
    revoked: bool = False


@dataclass(slots=True)
class HookDelivery:
    """One attempt to hand one webhook over."""

    id: int
    guid: str
    event: str
    action: str | None
    installation_id: int | None
    repository_id: int | None
    delivered_at: datetime
    redelivery: bool
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict)
    status: str = "pending"
    status_code: int = 0
    duration_s: float = 0.0
    response: str = ""

    @property
    def succeeded(self) -> bool:
        return 200 <= self.status_code < 400


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request that the double answered. `caller` is app, installation, anonymous or refused."""

    method: str
    path: str
    query: str
    status: int
    """0: the connection was dropped."""
    at: datetime
    duration_s: float
    caller: str
    fault: str | None = None


class World:
    """Everything that is remembered, with the look-ups that several files need."""

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
        self.deliveries: list[HookDelivery] = []
        self.requests: list[RequestRecord] = []
        self.rate_limit = 5000
        self.rate_used: dict[str, int] = {}
        self.rate_reset: dict[str, datetime] = {}
        self._ids = itertools.count(1_200_000_001)
        self._shift = timedelta()
        self._changed = asyncio.Event()
        self.bot = self.add_user(f"{app_slug}[bot]", "Bot")

    # time

    def now(self) -> datetime:
        return datetime.now(UTC) + self._shift

    def advance(self, seconds: float) -> None:
        """Let GitHub's clock run ahead: tokens expire, rate limits reset. App JWTs are still judged by the real clock."""
        self._shift += timedelta(seconds=seconds)
        self.touch()

    # change

    def touch(self) -> None:
        """Something changed: wake everybody who waits."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_for(self, predicate: Callable[[], T], timeout_s: float) -> T:
        """The first truthy value of the predicate, which is asked again after every change. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while True:
                changed = self._changed
                value = predicate()
                if value:
                    return value
                await changed.wait()

    # things

    def new_id(self) -> int:
        return next(self._ids)

    def add_user(self, login: str, type: str = "User") -> User:
        """Find or make."""
        user = self.users.get(login.lower())
        if user is None:
            user = self.users[login.lower()] = User(self.new_id(), login, type)
            self.touch()
        return user

    def repository(self, full_name: str) -> Repository:
        """Raises KeyError."""
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
