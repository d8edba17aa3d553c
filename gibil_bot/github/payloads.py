"""The shapes of GitHub's JSON that the bot uses: webhooks, and pull requests in the API.

Pure. Only the used fields are declared and all others are ignored. Every field that GitHub may omit has a default, because
payloads change without notice. https://docs.github.com/en/webhooks/webhook-events-and-payloads
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec

from gibil_bot.model import Person, PullRequest, Repository

# Numbers go into a database and paths, hashes into git and URLs: their form is validated here, once.
_Id = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Sha = Annotated[str, msgspec.Meta(pattern=r"\A(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")]
_FullName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-][A-Za-z0-9_.-]*/(?!\.{1,2}\Z)[A-Za-z0-9_.-]+\Z")]
_CloneUrl = Annotated[str, msgspec.Meta(pattern=r"\Ahttps?://[^\s\x00-\x20]+\Z")]
_Text = Annotated[str, msgspec.Meta(min_length=1)]


class ActionPayload(msgspec.Struct):
    action: str = ""


class UserPayload(msgspec.Struct):
    login: _Text
    type: str = "User"


class _Installation(msgspec.Struct):
    id: _Id


class NamedRepositoryPayload(msgspec.Struct):
    id: _Id
    full_name: _FullName
    clone_url: _CloneUrl
    default_branch: _Text = "main"
    private: bool = False

    def value(self) -> Repository:
        return Repository(
            id=self.id,
            full_name=self.full_name,
            clone_url=self.clone_url,
            default_branch=no_nul(self.default_branch),
            private=self.private,
        )


class RepositoryPayload(msgspec.Struct, kw_only=True):
    """The common fields of all events that the bot handles."""

    action: str = ""
    repository: NamedRepositoryPayload
    installation: _Installation


class CommentPayload(msgspec.Struct):
    id: _Id
    user: UserPayload | None = None
    body: str | None = None
    created_at: object = None


class ReviewPayload(msgspec.Struct):
    id: _Id
    user: UserPayload | None = None
    body: str | None = None
    submitted_at: object = None
    commit_id: _Sha | None = None
    """The commit that the reviewer saw."""


class _Link(msgspec.Struct):
    """Only its presence matters."""


class _Issue(msgspec.Struct):
    number: _Id
    pull_request: _Link | None = None
    updated_at: object = None


class IssueCommentPayload(RepositoryPayload):
    comment: CommentPayload
    issue: _Issue


class _Numbered(msgspec.Struct):
    number: _Id
    updated_at: object = None


class ReviewCommentPayload(RepositoryPayload):
    comment: CommentPayload
    pull_request: _Numbered


class ReviewEventPayload(RepositoryPayload):
    review: ReviewPayload
    pull_request: _Numbered


class _HeadRepository(msgspec.Struct):
    full_name: _FullName
    id: _Id | None = None
    owner: UserPayload | None = None
    pushed_at: object = None


class _Head(msgspec.Struct):
    sha: _Sha
    ref: _Text
    repo: _HeadRepository | None = None


class _Base(msgspec.Struct):
    sha: _Sha
    ref: _Text


class PullRequestPayload(msgspec.Struct):
    """A pull request as in webhooks and the API. `user` is null if the account was deleted."""

    number: _Id
    head: _Head
    base: _Base
    title: str = ""
    user: UserPayload | None = None
    state: str = "open"
    draft: bool | None = None
    maintainer_can_modify: bool | None = None
    created_at: object = None
    updated_at: object = None

    def value(self) -> PullRequest:
        repo = self.head.repo
        owner = repo.owner if repo else None
        return PullRequest(
            number=self.number,
            title=no_nul(self.title),
            author=person(self.user),
            head_sha=self.head.sha,
            head_ref=no_nul(self.head.ref),
            head_repository=self.head.repo.full_name if self.head.repo else None,
            base_ref=no_nul(self.base.ref),
            base_sha=self.base.sha,
            is_open=self.state == "open",
            is_draft=bool(self.draft),
            maintainer_can_modify=bool(self.maintainer_can_modify),
            head_repository_id=repo.id if repo else None,
            head_owner=no_nul(owner.login) if owner else None,
            head_owner_is_user=owner is not None and owner.type == "User",
            created_at=moment(self.created_at),
            updated_at=moment(self.updated_at),
            head_pushed_at=moment(repo.pushed_at) if repo else None,
        )


class PullRequestEventPayload(RepositoryPayload):
    pull_request: PullRequestPayload
    sender: UserPayload | None = None
    before: str | None = None


class _CheckRun(msgspec.Struct):
    head_sha: _Sha
    external_id: str | None = None
    name: str | None = None


class _RequestedAction(msgspec.Struct):
    identifier: str


class CheckRunEventPayload(RepositoryPayload):
    check_run: _CheckRun
    requested_action: _RequestedAction | None = None
    sender: UserPayload | None = None


class _CheckSuite(msgspec.Struct):
    head_sha: _Sha
    head_branch: str | None = None
    created_at: object = None


class CheckSuiteEventPayload(RepositoryPayload):
    check_suite: _CheckSuite
    sender: UserPayload | None = None


class _MergeGroup(msgspec.Struct):
    head_sha: _Sha
    base_ref: _Text


class MergeGroupPayload(RepositoryPayload):
    merge_group: _MergeGroup


def repository(payload: RepositoryPayload) -> Repository:
    return payload.repository.value()


def person(user: UserPayload | None) -> Person:
    """Convert a user. `ghost` is GitHub's placeholder for deleted accounts: https://github.com/ghost"""
    if user is None:
        return Person(login="ghost")
    return Person(login=no_nul(user.login), is_bot=user.type == "Bot" or user.login.endswith("[bot]"))


def utc(moment: datetime) -> datetime:
    """Return the time with a time zone; a time without one is in UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def moment(value: object) -> datetime | None:
    """Parse a time: ISO 8601, or seconds since the epoch as in `push` events. None for any other value.

    A time in another form must not reject a delivery: an unknown time counts as the unsafe case.
    """
    try:
        if isinstance(value, str):
            found = utc(datetime.fromisoformat(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            found = datetime.fromtimestamp(value, UTC)
        else:
            return None
    except (ValueError, OverflowError, OSError):
        return None
    return found if 2000 <= found.year < 3000 else None


def no_nul(text: str) -> str:
    """Remove NUL, which neither environment variables nor paths can contain."""
    return text.replace("\0", "")
