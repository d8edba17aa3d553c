"""Since when a commit is the head, and who pushed it: the answer is no unless it is certain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from msgspec.structs import replace

from gibil_bot.model import Approval, BranchPush, HeadHistory, HeadSeen, Person, PullRequest
from gibil_bot.runs.heads import (
    OwnCommit,
    OwnPushes,
    fork_pushers,
    is_by_agent,
    moved_since,
    seen_now,
    valid_approval,
    was_head_at,
)

A, B, C = "a" * 40, "b" * 40, "c" * 40
ANN, EVE = Person(login="ann"), Person(login="eve")


def at(second: float) -> datetime:
    return datetime(2026, 11, 20, 12, tzinfo=UTC) + timedelta(seconds=second)


def opened(sha: str = A, second: float = 0, fork: int | None = 5) -> HeadSeen:
    return HeadSeen(
        repository_id=1, number=7, sha=sha, action="opened", at=at(second), head_repository_id=fork, head_owner="ann"
    )


def push(before: str, sha: str, second: float, pusher: Person | None = ANN) -> HeadSeen:
    return replace(opened(sha, second), action="synchronize", before=before, pusher=pusher)


def pull(sha: str, *, updated: float | None = None, pushed: float | None = None) -> PullRequest:
    return PullRequest(
        number=7,
        title="",
        author=ANN,
        head_sha=sha,
        head_ref="x",
        head_repository="ann/engine",
        base_ref="main",
        base_sha=C,
        head_repository_id=5,
        head_owner="ann",
        head_owner_is_user=True,
        updated_at=None if updated is None else at(updated),
        head_pushed_at=None if pushed is None else at(pushed),
    )


@pytest.mark.parametrize(
    ("heads", "shown", "written", "answer"),
    [
        ([opened()], pull(A, updated=90), 10, True),
        ([opened()], pull(A, updated=90), 0, True),  # nothing can be written before a pull request is opened
        ([opened(), push(A, B, 5)], pull(B, updated=90), 6, True),
        ([opened(), push(A, B, 5)], pull(B, updated=90), 5, False),
        ([opened(), push(A, B, 5)], pull(B, updated=90), 4, False),
        ([opened(), push(A, B, 5), push(B, A, 7)], pull(A, updated=90), 6, False),
        ([opened(), push(A, B, 5), push(B, A, 7)], pull(A, updated=90), 8, True),
        # The newest push isn't recorded yet. Only its own time helps, and the time of the last change doesn't contain it.
        ([opened()], pull(B, updated=6), 6, False),
        ([opened()], pull(B, updated=6, pushed=5), 6, True),
        ([opened()], pull(B, updated=6, pushed=6), 6, False),
        # Nothing is recorded.
        ([], pull(A, updated=6), 6, True),
        ([], pull(A, updated=7), 6, False),
        ([], pull(A, updated=7, pushed=5), 6, True),
        ([], pull(A), 6, False),
    ],
)
def test_was_head_at_compares_the_head_with_the_comments_time(
    heads: list[HeadSeen], shown: PullRequest, written: float, answer: bool
) -> None:
    assert was_head_at(HeadHistory(heads=tuple(heads)), shown, at(written)) is answer


def test_a_comment_without_a_time_is_never_proof() -> None:
    assert not was_head_at(HeadHistory(heads=(opened(),)), pull(A), None)


def test_the_newest_push_is_proof_only_if_older_than_the_comment() -> None:
    newest = BranchPush(repository_id=1, branch="x", sha=B, pusher=ANN, at=at(5))
    assert was_head_at(HeadHistory(), pull(B, updated=90), at(6), newest_push=newest)
    assert not was_head_at(HeadHistory(), pull(B, updated=90), at(5), newest_push=newest)


def test_the_comment_itself_may_update_its_thread_up_to_two_seconds_later() -> None:
    history = HeadHistory()
    assert was_head_at(history, pull(A, updated=7), at(6), thread_updated_at=at(7))
    assert not was_head_at(history, pull(A, updated=8), at(6), thread_updated_at=at(7))
    assert not was_head_at(history, pull(A, updated=9), at(6), thread_updated_at=at(9))


@pytest.mark.parametrize(
    ("heads", "head", "pushers"),
    [
        ([opened()], A, ()),
        ([opened(), push(A, B, 1), push(B, C, 2, EVE)], C, (ANN, EVE)),
        ([opened(), push(A, B, 1, EVE), push(B, A, 1)], A, (EVE, ANN)),
        ([opened(), push(B, C, 2)], C, None),  # a push in between was missed
        ([opened(), push(A, B, 1)], C, None),  # the last push was missed
        ([push(A, B, 1)], B, None),  # the beginning was missed
        ([opened(), push(A, B, 1, None)], B, None),
        ([opened(fork=None), push(A, B, 1)], B, None),
        ([opened(), replace(push(A, B, 1), head_repository_id=6)], B, None),
        ([opened(), replace(opened(B, 3), action="reopened")], B, None),
        ([opened(), replace(opened(B, 3), action="seen"), push(A, B, 4)], B, (ANN,)),
    ],
)
def test_fork_pushers_are_unknown_if_a_push_may_be_missing(
    heads: list[HeadSeen], head: str, pushers: tuple[Person, ...] | None
) -> None:
    assert fork_pushers(HeadHistory(heads=tuple(heads)), pull(head)) == pushers


def test_pushes_to_the_fork_before_the_pull_request_do_not_count() -> None:
    early, late = replace(push(A, B, -5, EVE), number=6), replace(push(B, C, 5, EVE), number=6)
    assert fork_pushers(HeadHistory(heads=(opened(),), fork_pushes=(early,)), pull(A)) == ()
    assert fork_pushers(HeadHistory(heads=(opened(),), fork_pushes=(early, late)), pull(A)) == (EVE,)


def test_an_approval_ends_with_any_later_push() -> None:
    approval = Approval(repository_id=1, number=7, sha=A, by="ann", at=at(5))
    assert valid_approval(HeadHistory(heads=(opened(),), approvals=(approval,)), A) == approval
    for pushes in ([push(A, B, 6)], [push(A, B, 6), push(B, A, 7)], [push(B, A, 5)]):
        assert valid_approval(HeadHistory(heads=(opened(), *pushes), approvals=(approval,)), A) is None
    assert valid_approval(HeadHistory(heads=(opened(),), approvals=(approval,)), B) is None
    again = replace(approval, at=at(8))
    assert valid_approval(HeadHistory(heads=(opened(), push(B, A, 7)), approvals=(approval, again)), A) == again


@pytest.mark.parametrize(
    ("commits", "expected"),
    [
        ({}, False),
        ({A: OwnCommit(requester=ANN)}, False),
        ({A: OwnCommit(requester=ANN, is_by_agent=True)}, True),
        ({A: OwnCommit(requester=ANN, rebased_onto=B), B: OwnCommit(requester=ANN, is_by_agent=True)}, True),
        ({A: OwnCommit(requester=ANN), B: OwnCommit(requester=ANN, is_by_agent=True)}, False),
        ({A: OwnCommit(requester=ANN, rebased_onto=A)}, False),
    ],
)
def test_a_head_is_an_agents_until_a_person_pushes_on_top(commits: dict[str, OwnCommit], expected: bool) -> None:
    assert is_by_agent(A, OwnPushes(login="gibil[bot]", commits=commits)) is expected


def test_the_api_state_is_recorded_with_the_earliest_certain_time() -> None:
    (head,) = seen_now(1, pull(B, updated=9, pushed=4), HeadHistory(heads=(opened(),)))
    assert (head.action, head.sha, head.at) == ("seen", B, at(4))
    assert seen_now(1, pull(A, updated=9), HeadHistory(heads=(opened(),))) == ()
    assert moved_since(HeadHistory(heads=(opened(), head)), A, at(3))
