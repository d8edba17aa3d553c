"""What the store records about the heads of pull requests, and about the secrets that a run began with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from gibil_bot.model import Approval, BranchPush, HeadSeen, Person
from gibil_bot.ports import DeliveryOutcome, Store
from tests.contracts.store_nouns import DAY_S, Clock, delivery, handle, new_run, queue
from tests.doubles.databases import open_store

A, B = "a" * 40, "b" * 40
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
ANN, ROBOT = Person(login="ann"), Person(login="robot[bot]", is_bot=True)


@pytest.fixture
async def store(database_url: str, clock: Clock) -> AsyncIterator[Store]:
    opened = await open_store(database_url, clock=clock)
    yield opened
    await opened.close()


def seen(sha: str, *, number: int = 7, minute: int = 0, before: str | None = None, pusher: Person | None = None) -> HeadSeen:
    return HeadSeen(
        repository_id=1,
        number=number,
        sha=sha,
        action="synchronize" if before else "opened",
        at=NOON + timedelta(minutes=minute),
        before=before,
        pusher=pusher,
        head_repository_id=5,
        head_owner="ann",
    )


PUSH = BranchPush(repository_id=1, branch="x", sha=B, pusher=ROBOT, at=NOON)
APPROVAL = Approval(repository_id=1, number=7, sha=B, by="ada", at=NOON)


async def test_heads_are_recorded_when_their_delivery_is_accepted_and_sorted_by_time(store: Store) -> None:
    late, early = seen(B, minute=5, before=A, pusher=ANN), seen(A)
    assert await store.inbox.accept(delivery("two"), observed=[late])
    assert await store.inbox.accept(delivery("one"), observed=[early])
    assert (await store.inbox.head_history(1, 7, B)).heads == (early, late)
    assert (await store.inbox.head_history(2, 7, B)).heads == ()
    assert (await store.inbox.head_history(1, 8, B)).heads == ()


async def test_an_observation_that_is_repeated_changes_nothing(store: Store) -> None:
    for guid in ("one", "two"):
        assert await store.inbox.accept(delivery(guid), observed=[seen(A), PUSH])
    assert not await store.inbox.accept(delivery("two"), observed=[seen(B)])
    await handle(store, DeliveryOutcome(observed=[seen(A), PUSH, APPROVAL, APPROVAL]), "three")
    history = await store.inbox.head_history(1, 7, B)
    assert (history.heads, history.pushes, history.approvals) == ((seen(A),), (PUSH,), (APPROVAL,))


async def test_pushes_to_a_fork_are_found_for_each_of_its_pull_requests(store: Store) -> None:
    other = seen(B, number=8, before=A, pusher=ROBOT)
    await handle(store, DeliveryOutcome(observed=[seen(A), other]), "one")
    assert (await store.inbox.head_history(1, 7, A, 5)).fork_pushes == (other,)
    assert (await store.inbox.head_history(1, 7, A, 6)).fork_pushes == ()


async def test_pruning_deletes_quiet_pull_requests_completely_and_no_others(store: Store, clock: Clock) -> None:
    await handle(store, DeliveryOutcome(observed=[seen(A), APPROVAL, PUSH, seen(A, number=8)]), "one")
    clock.advance(80 * DAY_S)
    await handle(store, DeliveryOutcome(observed=[seen(B, number=8, before=A, pusher=ANN)]), "two")
    clock.advance(11 * DAY_S)
    assert sum((await store.prune()).values()) > 0
    gone, kept = await store.inbox.head_history(1, 7, B), await store.inbox.head_history(1, 8, B)
    assert (gone.heads, gone.approvals, gone.pushes) == ((), (), ())
    assert [head.sha for head in kept.heads] == [A, B]


async def test_secrets_may_change_only_until_a_machine_exists(store: Store) -> None:
    await queue(store, new_run("aa"))
    claim = await store.runs.claim("a", lease_s=60, max_machines=1)
    assert claim is not None
    assert await store.runs.bind_secrets(claim, "one")
    assert await store.runs.bind_secrets(claim, "two")
    await store.runs.save_machine(claim, "gibil-aa-1", 1)
    assert not await store.runs.bind_secrets(claim, "one")
    assert await store.runs.bind_secrets(claim, "two")
