"""A person's pull request as values: what is asked for, what GitHub has of it, and what its refusals mean. Pure.

Shapes as at https://docs.github.com/en/rest/pulls/pulls and https://docs.github.com/en/rest/repos/repos.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from gibil_bot.errors import GitHubError
from gibil_bot.github.api.response import Answer

LONGEST_TITLE, LONGEST_BODY = 256, 65_536
"""Characters."""


class _Named(msgspec.Struct):
    full_name: str


class RepositoryAnswer(msgspec.Struct):
    full_name: str
    default_branch: str
    archived: bool = False
    fork: bool = False
    parent: _Named | None = None
    source: _Named | None = None


class ErrorAnswer(msgspec.Struct):
    field: str = ""
    code: str = ""
    message: str = ""


class RefusalAnswer(msgspec.Struct):
    errors: list[ErrorAnswer | str] = msgspec.field(default_factory=list)


class _End(msgspec.Struct):
    repo: _Named | None
    """None: that fork is deleted."""


class PullAnswer(msgspec.Struct):
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


def is_same(one: str, other: str) -> bool:
    """Whether these are names of the same repository: GitHub keeps upper and lower case, and does not tell them apart."""
    return one.lower() == other.lower()


def head_of(wish: NewPullRequest) -> dict[str, str]:
    """`owner:branch` says which fork, unless the owner has both repositories: then `head_repo` does (same page)."""
    if is_same(wish.repository, wish.head_repository):
        return {"head": wish.head}
    owner = wish.head_repository.partition("/")[0]
    head = {"head": f"{owner}:{wish.head}"}
    if is_same(owner, wish.repository.partition("/")[0]):
        head["head_repo"] = wish.head_repository
    return head


def not_opened(wish: NewPullRequest, answer: Answer, errors: list[ErrorAnswer]) -> GitHubError:
    """https://docs.github.com/en/rest/using-the-rest-api/troubleshooting-the-rest-api#validation-failed"""
    if any((error.field, error.code) == ("base", "invalid") for error in errors):
        text = f"{wish.repository} has no branch {wish.base}; say with --base where the commits should go"
    elif any((error.field, error.code) == ("head", "invalid") for error in errors):
        text = f"{wish.repository} takes no pull request from {wish.head} of {wish.head_repository}: are they forks?"
    elif any("no commits between" in error.message.lower() for error in errors):
        text = f"{wish.base} of {wish.repository} has every commit of {wish.head} already"
    elif any("not all refs are readable" in error.message.lower() for error in errors):
        # As reported in tgymnich/fork-sync#8.
        text = (
            f"the token may not read the branches of {wish.repository} and {wish.head_repository}: "
            "it needs the scope `repo`, or the permission Contents for both"
        )
    elif "draft" in answer.message.lower():
        text = f"{wish.repository} has no drafts, which private repositories of free accounts do not; leave --draft out"
    else:
        text = f"GitHub does not take the pull request: {answer.message}"
    return GitHubError(text, status=answer.status)


def open_pull_request(pull: PullAnswer) -> OpenPullRequest:
    return OpenPullRequest(number=pull.number, url=pull.html_url, draft=pull.draft)
