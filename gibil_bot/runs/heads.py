"""What deliveries and GitHub's answers say about the head of a pull request: since when it is the head, and who pushed it.

Pure. Only times of GitHub's clock are compared with one another. They are whole seconds, so two events of one second have no
order: then the answer is the careful one.
"""

from __future__ import annotations

from collections.abc import Iterable
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
"""How long after a comment GitHub may write the pull request's `updated_at` for it."""


def observed_in(event: Event, received_at: datetime) -> tuple[HeadSeen | BranchPush, ...]:
    """What one delivery says about heads. `received_at` stands in for a time that is missing: later is safer."""
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
    """The head as the API shows it, where it is not the newest one that is known. It is the head at least since the last
    change of the pull request, or since the last push to its repository, whichever was earlier."""
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
    """The history including what one delivery says, whether that is stored already or not."""
    known = {_identity(seen) for seen in history.heads}
    new = [seen for seen in stated if isinstance(seen, HeadSeen) and _identity(seen) not in known]
    if not new:
        return history
    return replace(history, heads=tuple(sorted([*history.heads, *new], key=lambda seen: seen.at)))


def is_overtaken(history: HeadHistory, seen: HeadSeen) -> bool:
    """Whether another commit is known to have become the head after that one."""
    return any(later.at > seen.at and later.sha != seen.sha for later in history.heads)


def moved_since(history: HeadHistory, head_sha: str, moment: datetime) -> bool:
    """Whether a delivery says that the head moved at that moment or later."""
    return any(seen.at >= moment and (seen.action == "synchronize" or seen.sha != head_sha) for seen in history.heads)


def was_head_at(
    history: HeadHistory,
    pull: PullRequest,
    written_at: datetime | None,
    *,
    thread_updated_at: datetime | None = None,
    newest_push: BranchPush | None = None,
) -> bool:
    """Whether it is proven that the head of now was the head when a comment was written, and has not moved since.

    In order of cost: heads that deliveries named; the newest push to the branch, where GitHub was asked for it; no push to
    the head's repository since; for a pull request that nothing is known of, no change of any kind since the comment.
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


def branch_pushers(history: HeadHistory, pull: PullRequest) -> tuple[Person, ...]:
    """Who pushed the head to its branch of the repository itself; empty: unknown."""
    pushes = [seen for seen in history.heads if seen.action == "synchronize" and seen.sha == pull.head_sha]
    if pushes:
        return (pushes[-1].pusher,) if pushes[-1].pusher is not None else ()
    return _people(push.pusher for push in history.pushes)


def fork_pushers(history: HeadHistory, pull: PullRequest) -> tuple[Person, ...] | None:
    """Everyone who pushed to the fork since the pull request was opened; None: a push may have been missed."""
    opened = [seen for seen in history.heads if seen.action == "opened"]
    if len(opened) != 1 or {seen.head_repository_id for seen in history.heads} != {pull.head_repository_id}:
        return None
    # Every push names the head that it replaced: a delivery that was lost leaves a gap in the chain.
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
    # Deliveries about other pull requests from the same fork may name pushes that this one's do not.
    pushes += [seen for seen in history.fork_pushes if seen.at >= opened[0].at]
    if any(seen.pusher is None for seen in pushes):
        return None
    return _people(seen.pusher for seen in pushes if seen.pusher is not None)


def fork_owners(history: HeadHistory, pull: PullRequest) -> tuple[str, ...]:
    """Every account that the fork belonged to while it was seen: a fork may be transferred."""
    owners = {owner.lower(): owner for owner in (pull.head_owner, *(seen.head_owner for seen in history.heads)) if owner}
    return tuple(owners.values())


def valid_approval(history: HeadHistory, head_sha: str) -> Approval | None:
    """The newest approval of that commit that no push came after: not even one that put the same commit back."""
    for approval in reversed(history.approvals):
        if approval.sha == head_sha and not moved_since(history, head_sha, approval.at):
            return approval
    return None


def _identity(seen: HeadSeen) -> tuple[object, ...]:
    """Equal for the same observation before and after it was stored: the store keeps times as floating-point numbers."""
    return seen.sha, seen.action, seen.before, seen.pusher, round(seen.at.timestamp(), 3)


def _people(pushers: Iterable[Person]) -> tuple[Person, ...]:
    return tuple({(person.login.lower(), person.is_bot): person for person in pushers}.values())
