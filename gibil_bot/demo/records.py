"""The records of the double's state: users, repositories, pull requests, checks, tokens, deliveries.

Plain mutable data in `state.State`, changed only from one event loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

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
"""Role of a user → the `permission` that GitHub shows for it (same page)."""

DEFAULT_PERMISSIONS: Mapping[str, str] = {
    "metadata": "read",
    "contents": "write",
    "checks": "write",
    "issues": "write",
    "pull_requests": "write",
    "merge_queues": "read",
}
PERSONAL_PERMISSIONS: Mapping[str, str] = {"metadata": "read", "contents": "write", "pull_requests": "write"}
"""The permissions of a user's token for pushing and for pull requests."""


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
    archived: bool = False
    drafts: bool = True
    """Whether pull requests can be drafts; private repositories of free accounts have none."""
    roles: dict[str, str] = field(default_factory=dict)
    """Lower-case login → role, a key of ROLES."""
    issues: dict[int, Issue] = field(default_factory=dict)
    """Issues and pull requests share their numbers."""
    comments: dict[int, Comment] = field(default_factory=dict)
    reviews: dict[int, Review] = field(default_factory=dict)
    check_suites: dict[int, CheckSuite] = field(default_factory=dict)
    check_runs: dict[int, CheckRun] = field(default_factory=dict)
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    pushed_at: datetime | None = None
    activity: list[Activity] = field(default_factory=list)
    """Pushes to branches, oldest first."""
    signed: set[str] = field(default_factory=set)
    """Commits that GitHub signed."""
    protected: dict[str, str] = field(default_factory=dict)
    """Branch → why only a pull request may change it, in GitHub's words."""

    @property
    def full_name(self) -> str:
        return f"{self.owner.login}/{self.name}"

    @property
    def source(self) -> Repository:
        """Return the first repository of its network: itself, unless it is a fork."""
        return self if self.parent is None else self.parent.source

    def pull_requests(self) -> list[PullRequest]:
        return [issue for issue in self.issues.values() if isinstance(issue, PullRequest)]

    def role_of(self, login: str) -> str:
        default = "none" if self.private else "read"
        return "admin" if login.lower() == self.owner.login.lower() else self.roles.get(login.lower(), default)


@dataclass(frozen=True, slots=True)
class Activity:
    """One push to one branch. https://docs.github.com/en/rest/repos/repos#list-repository-activities"""

    id: int
    ref: str
    before: str
    after: str
    actor: User
    at: datetime
    kind: str
    """push, force_push or branch_creation."""


@dataclass(frozen=True, slots=True)
class Review:
    id: int
    number: int
    author: User
    body: str
    state: str
    commit_sha: str
    submitted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewLines:
    review: int
    line: int
    side: str
    start_line: int | None = None
    start_side: str | None = None


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
    """None if the fork was deleted."""
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
    lines: ReviewLines | None = None
    """The lines of a review comment that belongs to a review."""
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
    """As sent by the App; `created_at` and `changed_at` are GitHub's."""
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
class PersonalToken:
    """A user's token, limited to the user's access. Permissions like those of fine-grained tokens."""

    value: str = field(repr=False)
    user: User
    permissions: dict[str, str]
    repository_ids: frozenset[int] | None = None
    """None: every repository that the user can see."""
    revoked: bool = False


@dataclass(slots=True)
class HookDelivery:
    """One attempt to send one webhook."""

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
    """One request that the double answered. `caller` is app, installation, user, anonymous or refused."""

    method: str
    path: str
    query: str
    status: int
    """0: the connection was dropped."""
    at: datetime
    duration_s: float
    caller: str
    fault: str | None = None
