"""Derives from deliveries and GitHub's answers since when a commit is the head of a pull request, and who pushed it.

Pure functions. Only timestamps from GitHub's clock are compared with each other. They have a resolution of one second, so the
order of two events in the same second is unknown; the functions then assume the less trusted case.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from msgspec.structs import replace

from gibil_bot.model import (
    Approval,
    BranchPush,
    BranchPushed,
    Event,
    HeadHistory,
    HeadSeen,
    Person,
    PullRequest,
    PullRequestChanged,
)

_TOUCH = timedelta(seconds=2)
"""How long after a comment GitHub may set the pull request's `updated_at` because of it."""


def observed_in(event: Event, received_at: datetime) -> tuple[HeadSeen | BranchPush, ...]:
    """Return what one delivery reveals about heads. `received_at` replaces a missing time: a later time is safer."""
    match event:
        case BranchPushed():
            push = BranchPush(
                repository_id=event.repository.id, branch=event.branch, sha=event.sha, pusher=event.pusher, at=event.at
            )
            return (push,)
        case PullRequestChanged(action="opened" | "synchronize" | "reopened") if event.pull_request.is_open:
            pull = event.pull_request
            if event.action == "opened":
                at = pull.created_at
            else:
                times = [pull.updated_at, pull.head_pushed_at if event.action == "synchronize" else None]
                at = max((time for time in times if time is not None), default=None)
            seen = HeadSeen(
                repository_id=event.repository.id,
                number=pull.number,
                sha=pull.head_sha,
                action=event.action,
                at=at or received_at,
                before=event.before,
                pusher=event.sender if event.action == "synchronize" else None,
                head_repository_id=pull.head_repository_id,
                head_owner=pull.head_owner,
            )
            return (seen,)
    return ()


def seen_now(repository_id: int, pull: PullRequest, history: HeadHistory) -> tuple[HeadSeen, ...]:
    """Return the head that the API shows, unless it is already the newest known one.

    It has been the head at least since the last change of the pull request or the last push to its repository, whichever was
    earlier.
    """
    if history.heads and history.heads[-1].sha == pull.head_sha:
        return ()
    times = [time for time in (pull.updated_at, pull.head_pushed_at) if time is not None]
    if not times:
        return ()
    seen = HeadSeen(
        repository_id=repository_id,
        number=pull.number,
        sha=pull.head_sha,
        action="seen",
        at=min(times),
        head_repository_id=pull.head_repository_id,
        head_owner=pull.head_owner,
    )
    return (seen,)


def with_delivery(history: HeadHistory, stated: Iterable[HeadSeen | BranchPush]) -> HeadHistory:
    """Return the history including what one delivery reveals, whether or not that is stored already."""
    known = {_identity(seen) for seen in history.heads}
    new = [seen for seen in stated if isinstance(seen, HeadSeen) and _identity(seen) not in known]
    if not new:
        return history
    return replace(history, heads=tuple(sorted([*history.heads, *new], key=lambda seen: seen.at)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnCommit:
    """The newest commit of a trusted run, which the bot pushed."""

    requester: Person
    rebased_onto: str | None = None
    """The head that it is based on, if that isn't the run's own commit: its pushers count as well."""
    is_by_agent: bool = False
    """An agent wrote it, or commits below it that no user has pushed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPushes:
    """The bot's login, and what it pushed for trusted runs: commit → who counts as its pusher."""

    login: str = ""
    commits: Mapping[str, OwnCommit] = field(default_factory=dict)

    def of(self, sha: str, pusher: Person | None) -> OwnCommit | None:
        """Return the own commit that this push contains; None for a push of another account."""
        is_own = pusher is not None and pusher.is_bot and pusher.login.lower() == self.login.lower()
        return self.commits.get(sha) if is_own else None


NO_OWN_PUSHES = OwnPushes()


def is_by_agent(head_sha: str, own: OwnPushes) -> bool:
    """Return whether an agent wrote the head or what it was rebased onto, so that no person is responsible for its code."""
    passed: set[str] = set()
    while (commit := own.commits.get(head_sha)) is not None and head_sha not in passed:
        if commit.is_by_agent:
            return True
        passed.add(head_sha)
        if commit.rebased_onto is None:
            return False
        head_sha = commit.rebased_onto
    return False


def is_overtaken(history: HeadHistory, seen: HeadSeen) -> bool:
    """Return whether another commit is known to have become the head later."""
    return any(later.at > seen.at and later.sha != seen.sha for later in history.heads)


def moved_since(history: HeadHistory, head_sha: str, moment: datetime) -> bool:
    """Return whether a delivery shows that the head moved at that moment or later."""
    return any(seen.at >= moment and (seen.action == "synchronize" or seen.sha != head_sha) for seen in history.heads)


def was_head_at(
    history: HeadHistory,
    pull: PullRequest,
    written_at: datetime | None,
    *,
    thread_updated_at: datetime | None = None,
    newest_push: BranchPush | None = None,
) -> bool:
    """Return whether the current head provably was the head when a comment was written, and hasn't moved since.

    The proofs, cheapest first: heads that deliveries named; the newest push to the branch, if GitHub was queried for it; no
    push to the head's repository since; for a pull request without any history, no change of any kind since the comment.
    """
    if written_at is None or moved_since(history, pull.head_sha, written_at):
        return False
    known = [seen for seen in history.heads if seen.at <= written_at]
    if any(seen.sha == pull.head_sha for seen in known if seen.at == known[-1].at):
        return True
    if newest_push is not None and newest_push.sha == pull.head_sha and newest_push.at < written_at:
        return True
    if pull.head_pushed_at is not None and pull.head_pushed_at < written_at:
        return True
    if history.heads or pull.updated_at is None:
        return False
    latest = written_at
    if thread_updated_at is not None and written_at <= thread_updated_at <= written_at + _TOUCH:
        latest = thread_updated_at
    return pull.updated_at <= latest


def branch_pushers(history: HeadHistory, pull: PullRequest, own: OwnPushes = NO_OWN_PUSHES) -> tuple[Person, ...]:
    """Return who pushed the head to its branch of the repository itself; empty if unknown.

    A user who pushes is responsible for everything below the commit. A run that was rebased onto a newer head is not: those who
    pushed that head are returned as well.
    """
    found: list[Person] = []
    sha: str | None = pull.head_sha
    passed: set[str] = set()
    while sha is not None and sha not in passed:
        passed.add(sha)
        pushes = [seen for seen in history.heads if seen.action == "synchronize" and seen.sha == sha]
        pushers = [pushes[-1].pusher] if pushes else [push.pusher for push in history.pushes if push.sha == sha]
        if not pushers:
            return ()
        below = None
        for pusher in pushers:
            if pusher is None:
                return ()
            commit = own.of(sha, pusher)
            found.append(pusher if commit is None else commit.requester)
            below = below if commit is None else commit.rebased_onto
        sha = below
    return _people(found)


def fork_pushers(history: HeadHistory, pull: PullRequest, own: OwnPushes = NO_OWN_PUSHES) -> tuple[Person, ...] | None:
    """Return everyone who pushed to the fork since the pull request was opened; None if a push may have been missed."""
    opened = [seen for seen in history.heads if seen.action == "opened"]
    if len(opened) != 1 or {seen.head_repository_id for seen in history.heads} != {pull.head_repository_id}:
        return None
    # Every push names the head that it replaced, so a lost delivery leaves a gap in the chain.
    pushes = [seen for seen in history.heads if seen.action == "synchronize"]
    head, reached = opened[0].sha, {opened[0].sha}
    left = list(pushes)
    while left:
        following = next((seen for seen in left if seen.before == head), None)
        if following is None:
            return None
        left.remove(following)
        head = following.sha
        reached.add(head)
    if head != pull.head_sha or any(seen.sha not in reached for seen in history.heads):
        return None
    # Deliveries about other pull requests from the same fork may name further pushes.
    pushes += [seen for seen in history.fork_pushes if seen.at >= opened[0].at]
    found = []
    for seen in pushes:
        if seen.pusher is None:
            return None
        commit = own.of(seen.sha, seen.pusher)
        found.append(seen.pusher if commit is None else commit.requester)
    return _people(found)


def fork_owners(history: HeadHistory, pull: PullRequest) -> tuple[str, ...]:
    """Return every account that has owned the fork while it was seen: forks can be transferred."""
    owners = {owner.lower(): owner for owner in (pull.head_owner, *(seen.head_owner for seen in history.heads)) if owner}
    return tuple(owners.values())


def valid_approval(history: HeadHistory, head_sha: str) -> Approval | None:
    """Return the newest approval of that commit after which nothing was pushed, not even the same commit again."""
    for approval in reversed(history.approvals):
        if approval.sha == head_sha and not moved_since(history, head_sha, approval.at):
            return approval
    return None


def _identity(seen: HeadSeen) -> tuple[object, ...]:
    """Return a key that is equal before and after storing: the store keeps times as floating-point numbers."""
    return seen.sha, seen.action, seen.before, seen.pusher, round(seen.at.timestamp(), 3)


def _people(pushers: Iterable[Person]) -> tuple[Person, ...]:
    return tuple({(person.login.lower(), person.is_bot): person for person in pushers}.values())
