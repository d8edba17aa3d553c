"""The contract of ports.Store, over every database (doubles/databases.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, cast, get_args

import pytest
from msgspec.structs import replace

from gibil_bot.errors import ClaimLost, StoreError
from gibil_bot.model import (
    BranchPushed,
    CheckRunOutput,
    CheckRunUpdate,
    Claim,
    CommentUpdate,
    Conclusion,
    DueNotification,
    Event,
    Ignored,
    MergeGroupChecked,
    Notification,
    NotificationUpdate,
    PatchRequested,
    Person,
    Priority,
    PullRequestChanged,
    ReactionUpdate,
    RerunRequested,
    ReviewComment,
    ReviewUpdate,
    RunRequested,
    RunState,
    Spending,
    TaskResult,
    TaskStatus,
)
from gibil_bot.ports import DeliveryOutcome, Store
from tests.contracts.store_nouns import DAY_S, Clock, command, comment, delivery, handle, new_run, queue, unread
from tests.doubles.databases import open_store
from tests.doubles.patience import patient

Open = Callable[[], Awaitable[Store]]


@pytest.fixture
async def database(database_url: str, clock: Clock) -> AsyncIterator[Open]:
    """Open stores on one database, as several processes would."""
    opened: list[Store] = []

    async def open_one() -> Store:
        store: Store = await open_store(database_url, clock=clock)
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def store(database: Open) -> Store:
    return await database()


@pytest.fixture
async def other(store: Store, database: Open) -> Store:
    """The store of a second process."""
    return await database()


async def claim(store: Store, owner: str = "a", *, lease_s: float = 60, max_machines: int = 10) -> Claim:
    claimed = await store.runs.claim(owner, lease_s=lease_s, max_machines=max_machines)
    assert claimed is not None
    return claimed


async def claim_ids(store: Store, *, max_machines: int = 10) -> list[str]:
    """Return the ids of all runs that can be claimed now, in order."""
    ids = []
    while (claimed := await store.runs.claim("a", lease_s=60, max_machines=max_machines)) is not None:
        ids.append(claimed.run.id)
    return ids


async def due(
    store: Store, owner: str = "a", *, limit: int = 10, lease_s: float = 60, not_keys: tuple[str, ...] = ()
) -> list[DueNotification]:
    return await store.outbox.claim(owner, limit=limit, lease_s=lease_s, not_keys=not_keys)


# Deliveries


async def test_a_delivery_is_read_as_it_was_stored(store: Store, other: Store) -> None:
    sent = delivery()
    assert await store.inbox.accept(sent)
    assert await other.inbox.get(sent.guid) == (sent, False, None)
    assert await store.inbox.get("another") is None


EVENTS = (
    command("/gibil test ✓"),
    PullRequestChanged(
        installation_id=99,
        repository=command().repository,
        pull_request=new_run("r1").source.pull_request,
        action="synchronize",
        sender=Person(login="ada", is_bot=True),
        before="a" * 40,
    ),
    RerunRequested(
        installation_id=99, repository=command().repository, head_sha="a" * 40, external_id=None, sender=Person(login="ada")
    ),
    PatchRequested(installation_id=99, repository=command().repository, run_id="r1", sender=Person(login="ada")),
    BranchPushed(
        repository=command().repository, branch="main", sha="a" * 40, pusher=Person(login="ada"), at=delivery().received_at
    ),
    MergeGroupChecked(installation_id=99, repository=command().repository, head_sha="a" * 40, base_ref="main"),
    RunRequested(
        installation_id=99,
        repository=command().repository,
        number=7,
        person=Person(login="ada"),
        workflow="test",
        inputs={"args": "-k ✓"},
        head_sha="a" * 40,
    ),
    Ignored(reason="a comment without a command"),
)


def test_the_list_above_has_every_event() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
async def test_an_event_is_read_as_it_was_decoded(store: Store, event: Event) -> None:
    await store.inbox.accept(delivery("guid-1", event))
    (claimed,) = await store.inbox.claim("a", limit=9, lease_s=60)
    assert claimed == replace(delivery("guid-1", event), attempts=1)


async def test_an_unreadable_payload_is_stored(store: Store, other: Store) -> None:
    sent = unread(payload=bytes(range(256)) * 300)
    assert await store.inbox.accept(sent)
    assert await other.inbox.get(sent.guid) == (sent, False, None)
    assert await store.inbox.claim("a", limit=9, lease_s=60) == [replace(sent, attempts=1)]


async def test_a_guid_is_stored_once_and_a_repetition_changes_nothing(store: Store, other: Store) -> None:
    assert await store.inbox.accept(delivery())
    assert not await store.inbox.accept(replace(delivery(), event=Ignored(reason="another"), event_name="push"))
    assert not await other.inbox.accept(delivery())
    assert await store.inbox.get("guid-1") == (delivery(), False, None)
    assert (await store.counts())["deliveries_unhandled"] == 1


async def test_one_of_many_concurrent_accepts_of_a_guid_is_the_first(store: Store, other: Store) -> None:
    answers = await asyncio.gather(*((store, other)[number % 2].inbox.accept(delivery()) for number in range(20)))
    assert sorted(answers) == [False] * 19 + [True]


async def test_the_oldest_deliveries_are_claimed_first_and_attempts_are_counted(store: Store) -> None:
    for number in range(4):
        await store.inbox.accept(delivery(f"guid-{9 - number}"))
    first = await store.inbox.claim("a", limit=3, lease_s=60)
    assert [(one.guid, one.attempts) for one in first] == [("guid-9", 1), ("guid-8", 1), ("guid-7", 1)]
    assert first[0] == replace(delivery("guid-9"), attempts=1)


async def test_a_claimed_delivery_is_not_claimed_again_until_its_lease_expires(
    store: Store, other: Store, clock: Clock
) -> None:
    await store.inbox.accept(delivery())
    assert len(await store.inbox.claim("a", limit=9, lease_s=60)) == 1
    clock.advance(59)
    assert await other.inbox.claim("b", limit=9, lease_s=60) == []
    clock.advance(1)
    assert [one.attempts for one in await other.inbox.claim("b", limit=9, lease_s=60)] == [2]


async def test_only_one_process_at_a_time_works_on_the_deliveries_of_a_repository(
    store: Store, other: Store, clock: Clock
) -> None:
    for guid, repository in (("1", 1), ("2", 1), ("3", 2), ("4", 1)):
        await store.inbox.accept(delivery(guid, command(repository=repository)))
    cancel = replace(delivery("cancel", command("/gibil cancel")), cancels=True)

    async def guids(owner: str, limit: int = 10) -> list[str]:
        inbox = (store if owner == "a" else other).inbox
        return [each.guid for each in await inbox.claim(owner, limit=limit, cancels=10, lease_s=60)]

    assert await guids("a", 1) == ["1"]
    await store.inbox.accept(cancel)
    assert await guids("b") == ["cancel", "3"]
    assert await guids("a") == ["2", "4"]
    for guid in ("1", "2"):
        await store.inbox.complete("a", guid, DeliveryOutcome())
    await store.inbox.postpone("a", "4", "later", delay_s=5)
    await store.inbox.accept(delivery("5"))
    assert await guids("b") == ["5"]
    clock.advance(61)
    assert await guids("a") == ["cancel", "3", "4", "5"]


async def test_a_process_claims_again_what_it_does_not_hold(store: Store, other: Store, clock: Clock) -> None:
    """The result of a claim may be lost together with the connection."""
    cancel = replace(delivery("cancel", command("/gibil cancel")), cancels=True)
    for sent in (delivery("1"), delivery("2"), cancel):
        await store.inbox.accept(sent)

    async def claims(owner: str, limit: int, held: tuple[str, ...]) -> list[tuple[str, int]]:
        inbox = (store if owner == "a" else other).inbox
        found = await inbox.claim(owner, limit=limit, cancels=limit, lease_s=60, held=held)
        return [(each.guid, each.attempts) for each in found]

    assert await claims("a", 9, ()) == [("cancel", 1), ("1", 1), ("2", 1)]
    await store.inbox.accept(delivery("3"))
    assert await claims("b", 9, ()) == []
    assert await claims("a", 1, ("cancel",)) == [("1", 2)]  # before later deliveries
    assert await claims("a", 9, ("cancel", "1")) == [("2", 2), ("3", 1)]
    await store.inbox.complete("a", "1", DeliveryOutcome())
    await store.inbox.postpone("a", "2", "later", delay_s=90)
    assert await claims("a", 9, ()) == [("cancel", 2), ("3", 2)]
    clock.advance(61)
    assert await claims("a", 9, ("cancel", "3")) == []  # its lease has expired, but it is held
    assert await claims("b", 9, ()) == [("cancel", 3), ("3", 3)]


async def test_a_delivery_claimed_by_another_process_cannot_be_completed_or_postponed(
    store: Store, other: Store, clock: Clock
) -> None:
    await store.inbox.accept(delivery())
    with pytest.raises(ClaimLost):
        await store.inbox.complete("a", "guid-1", DeliveryOutcome())  # not claimed
    await store.inbox.claim("a", limit=9, lease_s=60)
    clock.advance(60)
    await other.inbox.claim("b", limit=9, lease_s=60)
    with pytest.raises(ClaimLost):
        await store.inbox.complete("a", "guid-1", DeliveryOutcome(runs=[new_run("r1")], notifications=[comment()]))
    with pytest.raises(ClaimLost):
        await store.inbox.postpone("a", "guid-1", "later", delay_s=5)
    with pytest.raises(ClaimLost):
        await store.inbox.complete("a", "never stored", DeliveryOutcome())
    assert await store.runs.unfinished() == []
    assert await store.outbox.get(comment().key) is None
    await other.inbox.complete("b", "guid-1", DeliveryOutcome())


async def test_an_expired_claim_can_complete_if_there_is_no_newer_claim(store: Store, clock: Clock) -> None:
    await store.inbox.accept(delivery())
    await store.inbox.claim("a", limit=9, lease_s=60)
    clock.advance(600)
    await store.inbox.complete("a", "guid-1", DeliveryOutcome())
    assert await store.inbox.claim("a", limit=9, lease_s=60) == []


async def test_completing_applies_the_whole_outcome_once(store: Store, other: Store, clock: Clock) -> None:
    await queue(store, new_run("old"))
    outcome = DeliveryOutcome(
        runs=[new_run("r1"), new_run("r2")], cancel=[("old", "cancelled by ada")], notifications=[comment()]
    )
    await handle(store, outcome, "guid-1")
    assert [run.id for run in await other.runs.unfinished()] == ["old", "r1", "r2"]
    stopped = await other.runs.get("old")
    assert stopped is not None
    assert stopped.cancel_reason == "cancelled by ada"
    found = await other.outbox.get(comment().key)
    assert found is not None
    assert (found[0].notification, found[0].revision, found[1]) == (comment(), 1, False)
    handled = await other.inbox.get("guid-1")
    assert handled is not None
    assert handled[1:] == (True, None)

    again = DeliveryOutcome(runs=[new_run("r3")], cancel=[("r1", "no")], notifications=[comment(body="new")], error="no")
    await store.inbox.complete("intake", "guid-1", again)
    await other.inbox.complete("another owner", "guid-1", again)
    assert [run.id for run in await store.runs.unfinished()] == ["old", "r1", "r2"]
    assert await store.inbox.get("guid-1") == handled
    clock.advance(DAY_S)
    assert await store.inbox.claim("a", limit=9, lease_s=60) == []


async def test_completing_is_atomic(store: Store) -> None:
    await store.inbox.accept(delivery())
    await store.inbox.claim("a", limit=9, lease_s=60)
    with pytest.raises(TypeError):
        await store.inbox.complete(
            "a", "guid-1", DeliveryOutcome(runs=[new_run("r1")], notifications=[comment(number=cast(int, object()))])
        )
    assert await store.runs.unfinished() == []
    assert (await store.counts())["deliveries_unhandled"] == 1
    await store.inbox.complete("a", "guid-1", DeliveryOutcome(runs=[new_run("r1")]))
    assert [run.id for run in await store.runs.unfinished()] == ["r1"]


async def test_an_unreadable_delivery_is_stored_with_its_error(store: Store) -> None:
    await handle(store, DeliveryOutcome(error="no repository in it"), "guid-1", unread())
    assert await store.inbox.get("guid-1") == (replace(unread(), attempts=1), True, "no repository in it")
    counts = await store.counts()
    assert (counts["deliveries_unhandled"], counts["deliveries_failed"]) == (0, 1)


async def test_a_delivery_without_consequences_is_stored_and_never_claimed(store: Store, other: Store) -> None:
    waiting = store.inbox.changed()
    assert await store.inbox.accept(delivery("guid-1"), handled=True)
    assert not await waiting.wait(0)
    assert await other.inbox.get("guid-1") == (delivery("guid-1"), True, None)
    assert await other.inbox.claim("b", limit=9, lease_s=60) == []
    assert (await other.counts())["deliveries_unhandled"] == 0
    assert not await other.inbox.accept(delivery("guid-1"))
    assert await other.inbox.claim("b", limit=9, lease_s=60) == []


async def test_a_postponed_delivery_is_claimed_again_after_the_delay(store: Store, other: Store, clock: Clock) -> None:
    await store.inbox.accept(delivery("first"))
    await store.inbox.accept(delivery("second"))
    await store.inbox.claim("a", limit=1, lease_s=600)
    await store.inbox.postpone("a", "first", "GitHub is away", delay_s=30)
    assert await store.inbox.get("first") == (replace(delivery("first"), attempts=1), False, "GitHub is away")
    assert [one.guid for one in await other.inbox.claim("b", limit=9, lease_s=600)] == ["second"]
    clock.advance(29)
    assert await other.inbox.claim("b", limit=9, lease_s=60) == []
    clock.advance(1)
    assert [(one.guid, one.attempts) for one in await other.inbox.claim("b", limit=9, lease_s=60)] == [("first", 2)]
    await other.inbox.complete("b", "first", DeliveryOutcome())
    assert await store.inbox.get("first") == (replace(delivery("first"), attempts=2), True, None)
    await store.inbox.postpone("a", "first", "late", delay_s=0)  # handled, so it can't be postponed
    assert await store.inbox.claim("b", limit=9, lease_s=60) == []


# Runs and what is published about them


async def test_a_stale_claim_cannot_write(store: Store, other: Store, clock: Clock) -> None:
    await queue(store, new_run("r1"))
    stale = await claim(store, "a")
    clock.advance(60)
    held = await claim(other, "a")  # the same owner name again: only the fence differs
    writes: list[Callable[[], Awaitable[None]]] = [
        lambda: store.runs.save_machine(stale, "gibil-x", 3),
        lambda: store.runs.save_note(stale, "a note"),
        lambda: store.runs.save_task(stale, TaskResult(index=0, machine_attempt=1, name="t", status=TaskStatus.RUNNING)),
        lambda: store.runs.record(stale, [comment()]),
        lambda: store.runs.release(stale),
        lambda: store.runs.finish(stale, Conclusion.SUCCESS, [comment()]),
    ]
    for write in writes:
        with pytest.raises(ClaimLost):
            await write()
    assert await store.runs.get("r1") == held.run
    assert await store.runs.task_results("r1", 1) == []
    assert await store.outbox.get(comment().key) is None
    assert await other.runs.heartbeat([held], lease_s=60) == {"r1": None}


async def test_finishing_records_the_conclusion_and_notifications_together(store: Store, other: Store, clock: Clock) -> None:
    await queue(store, new_run("r1"))
    claimed = await claim(store)
    with pytest.raises(TypeError):
        await store.runs.finish(claimed, Conclusion.FAILURE, [comment(number=cast(int, object()))])
    clock.advance(7)
    await store.runs.finish(claimed, Conclusion.FAILURE, [comment()])
    run = await other.runs.get("r1")
    assert run is not None
    assert (run.state, run.conclusion, run.finished_at) == (RunState.FINISHED, Conclusion.FAILURE, clock.moment)
    assert [one.notification for one in await due(other)] == [comment()]
    clock.advance(DAY_S)
    assert await other.runs.claim("b", lease_s=60, max_machines=10) is None
    with pytest.raises(ClaimLost):
        await store.runs.finish(claimed, Conclusion.SUCCESS, ())


# Pending notifications


UPDATES = (
    CheckRunUpdate(
        name="gibil / test",
        head_sha="a" * 40,
        external_id="00ff",
        status="completed",
        output=CheckRunOutput(title="✓", summary="s", text="t"),
        started_at="2026-11-23T12:30:15Z",
        completed_at="2026-11-23T12:30:16Z",
        conclusion=Conclusion.TIMED_OUT,
        details_url="https://bot.example/runs/00ff",
    ),
    CheckRunUpdate(
        name="n", head_sha="a" * 40, external_id="e", status="queued", output=CheckRunOutput(title="t", summary="s")
    ),
    CommentUpdate(number=7, marker="<!-- m -->", body="<!-- m -->", only_if_exists=True),
    ReviewUpdate(
        number=7,
        marker="<!-- r -->",
        commit_sha="a" * 40,
        body="<!-- r -->",
        without_lines="<!-- r --> x",
        comments=(
            ReviewComment(path="a.py", line=3, body="x", side="LEFT"),
            ReviewComment(path="a.py", line=3, start_line=1, body="y"),
        ),
    ),
    ReactionUpdate(comment_id=5, is_review_comment=False, content="eyes"),
)


@pytest.mark.parametrize("update", UPDATES, ids=lambda update: type(update).__name__)
async def test_a_notification_is_read_as_it_was_recorded(store: Store, other: Store, update: NotificationUpdate) -> None:
    recorded = replace(comment(), update=update)
    await store.outbox.record([recorded])
    (one,) = await due(other)
    assert one == DueNotification(notification=recorded, revision=1, remote_id=None, attempts=0, priority=one.priority)
    assert await store.outbox.get("another") is None


async def test_the_list_above_has_every_kind_of_notification(store: Store) -> None:
    assert {type(update) for update in UPDATES} == set(get_args(NotificationUpdate))


async def test_an_unchanged_body_does_not_create_a_revision(store: Store) -> None:
    await store.outbox.record([comment(body="hello")])
    await store.outbox.record([comment(body="hello")])
    assert [one.revision for one in await due(store)] == [1]


async def test_a_newer_notification_replaces_the_older_one(store: Store) -> None:
    await store.outbox.record([comment(body="one"), comment(body="two")])
    assert [(one.notification, one.revision) for one in await due(store)] == [(comment(body="two"), 2)]


async def test_a_notification_is_claimed_by_one_owner_until_its_lease_expires(store: Store, other: Store, clock: Clock) -> None:
    await store.outbox.record([comment("k1"), comment("k2"), comment("k3")])
    assert [one.notification.key for one in await due(store, limit=1)] == ["k1"]
    assert [one.notification.key for one in await due(other, "b", not_keys=("k2",))] == ["k3"]
    clock.advance(60)
    again = await due(other, "b")
    assert [(one.notification.key, one.attempts) for one in again] == [("k1", 1), ("k2", 0), ("k3", 1)]


async def test_a_published_notification_is_not_published_again(store: Store, other: Store, clock: Clock) -> None:
    await store.outbox.record([comment()])
    (one,) = await due(store)
    await store.outbox.published("a", one, 4711)
    clock.advance(DAY_S)
    assert await due(store) == []
    await store.outbox.record([comment()])
    assert await due(store) == []
    assert await other.outbox.get(comment().key) == (replace(one, remote_id=4711, attempts=1), True, None)


async def test_a_revision_recorded_during_publication_stays_pending(store: Store) -> None:
    await store.outbox.record([comment(body="one")])
    (one,) = await due(store)
    await store.outbox.record([comment(body="two")])
    assert await due(store) == []  # its key is being published
    await store.outbox.published("a", one, 4711)
    (two,) = await due(store)
    assert two == DueNotification(
        notification=comment(body="two"), revision=2, remote_id=4711, attempts=1, priority=Priority.COMMENT
    )
    await store.outbox.published("a", two, None)
    found = await store.outbox.get(comment().key)
    assert found is not None
    assert (found[0].remote_id, found[1]) == (4711, True)


async def test_a_remote_id_is_stored_although_the_lease_expired(store: Store, other: Store, clock: Clock) -> None:
    await store.outbox.record([comment(body="one")])
    (slow,) = await due(store, "a")
    clock.advance(60)
    await store.outbox.record([comment(body="two")])
    (fast,) = await due(other, "b")
    assert fast.revision == 2
    await store.outbox.published("a", slow, 4711)
    assert await due(store, "c") == []  # still claimed by b
    found = await store.outbox.get(comment().key)
    assert found is not None
    assert (found[0].remote_id, found[1]) == (4711, False)
    await other.outbox.published("b", fast, None)
    found = await store.outbox.get(comment().key)
    assert found is not None
    assert found[1]


async def test_a_failed_publication_is_due_again_later(store: Store, other: Store, clock: Clock) -> None:
    await store.outbox.record([comment()])
    (one,) = await due(store)
    await store.outbox.not_published("a", one, "502 Bad Gateway", retry_s=30)
    assert await store.outbox.get(comment().key) == (replace(one, attempts=1, failures=1), False, "502 Bad Gateway")
    await store.outbox.record([comment(body="newer")])  # a newer body doesn't shorten the delay
    clock.advance(29)
    assert await due(other) == []
    clock.advance(1)
    (again,) = await due(other)
    assert (again.attempts, again.revision) == (1, 2)
    await other.outbox.published("a", again, 1)
    found = await store.outbox.get(comment().key)
    assert found is not None
    assert found[1:] == (True, None)


async def test_the_newest_revision_is_published_again_after_an_older_one_arrived_late(
    store: Store, other: Store, clock: Clock
) -> None:
    await store.outbox.record([comment(body="older")])
    (late,) = await due(store)
    clock.advance(DAY_S)  # the lease ends while the request is in progress
    await store.outbox.record([comment(body="newer")])
    (newest,) = await other.outbox.claim("b", limit=9, lease_s=60)
    await other.outbox.published("b", newest, 1)
    await store.outbox.published("a", late, 1)
    (again,) = await due(store)
    assert again.notification == newest.notification
    await store.outbox.published("a", again, 1)
    assert await due(store) == []


async def test_a_rejected_notification_is_dropped_until_its_body_changes(store: Store, clock: Clock) -> None:
    await store.outbox.record([comment()])
    (one,) = await due(store)
    await store.outbox.not_published("a", one, "404 Not Found", retry_s=None)
    clock.advance(DAY_S)
    assert await due(store) == []
    assert await store.outbox.get(comment().key) == (replace(one, attempts=1, failures=1), False, "404 Not Found")
    counts = await store.counts()
    assert (counts["tellings_due"], counts["tellings_failed"]) == (0, 1)
    await store.outbox.record([comment()])
    assert await due(store) == []
    await store.outbox.record([comment(body="another")])
    assert [(again.notification, again.attempts) for again in await due(store)] == [(comment(body="another"), 1)]


async def test_the_rejection_of_an_older_revision_does_not_drop_the_newer_one(store: Store) -> None:
    await store.outbox.record([comment(body="one")])
    (one,) = await due(store)
    await store.outbox.record([comment(body="two")])
    await store.outbox.not_published("a", one, "422", retry_s=None)
    assert [again.revision for again in await due(store)] == [2]


async def test_an_expired_claim_cannot_postpone_a_notification(store: Store, other: Store, clock: Clock) -> None:
    await store.outbox.record([comment()])
    (slow,) = await due(store, "a")
    clock.advance(60)
    (fast,) = await due(other, "b")
    await store.outbox.not_published("a", slow, "timed out", retry_s=None)
    assert await due(store, "a") == []
    clock.advance(60)
    assert [one.attempts for one in await due(other, "b")] == [fast.attempts + 1]


async def test_the_notification_that_is_due_longest_is_claimed_first(store: Store, clock: Clock) -> None:
    await store.outbox.record([comment("k1")])
    clock.advance(1)
    await store.outbox.record([comment("k2")])
    (first,) = await due(store, limit=1)
    await store.outbox.not_published("a", first, "502", retry_s=30)
    clock.advance(1)
    await store.outbox.record([comment("k3")])
    clock.advance(60)
    assert [one.notification.key for one in await due(store)] == ["k2", "k3", "k1"]


async def test_a_valid_claim_can_record_notifications(store: Store) -> None:
    await queue(store, new_run("r1"))
    await store.runs.record(await claim(store), [comment()])
    assert [one.notification for one in await due(store)] == [comment()]


# Counts, signals, pruning and closing


async def test_a_queue_position_is_not_recorded_for_a_run_that_was_claimed_meanwhile(store: Store, other: Store) -> None:
    await queue(store, new_run("r1"), new_run("r2", number=8))
    claimed = await claim(other)
    await other.runs.finish(claimed, Conclusion.SUCCESS, [comment("check:r1", "success")])
    await store.runs.record_queued({each: comment(f"check:{each}", "queued") for each in ("r1", "r2", "r3")})
    assert {each.notification.key: bodies(each) for each in await due(store)} == {"check:r1": "success", "check:r2": "queued"}


def bodies(one: DueNotification) -> str:
    assert isinstance(one.notification.update, CommentUpdate)
    return one.notification.update.body.rpartition(" ")[2]


async def test_all_states_are_counted(store: Store, other: Store) -> None:
    assert set((await store.counts()).values()) == {0}
    await queue(store, new_run("r1"), new_run("r2"), new_run("r3"))
    await store.runs.finish(await claim(store), Conclusion.SUCCESS, [comment("k1"), comment("k2")])
    await claim(store)
    await store.outbox.published("a", (await due(store, limit=1))[0], 1)
    await store.inbox.accept(delivery("unhandled"))
    assert await other.counts() == {
        "deliveries_unhandled": 1,
        "deliveries_failed": 0,
        "runs_queued": 1,
        "runs_running": 1,
        "runs_finished": 1,
        "tellings_due": 1,
        "tellings_failed": 0,
    }


async def test_a_write_wakes_every_waiter_of_its_topic(store: Store) -> None:
    waiters = {
        "deliveries": [store.inbox.changed(), store.inbox.changed()],
        "runs": [store.runs.changed(), store.runs.changed()],
        "notifications": [store.outbox.changed(), store.outbox.changed()],
    }

    async def woken() -> dict[str, set[bool]]:
        return {topic: {await signal.wait(0) for signal in signals} for topic, signals in waiters.items()}

    assert await woken() == {"deliveries": {False}, "runs": {False}, "notifications": {False}}
    await store.inbox.accept(delivery())
    assert await woken() == {"deliveries": {True}, "runs": {False}, "notifications": {False}}
    assert await woken() == {"deliveries": {False}, "runs": {False}, "notifications": {False}}
    await store.inbox.claim("a", limit=1, lease_s=60)
    await store.inbox.complete("a", "guid-1", DeliveryOutcome(runs=[new_run("r1")], notifications=[comment()]))
    assert await woken() == {"deliveries": {True}, "runs": {True}, "notifications": {True}}
    await store.runs.request_cancel("r1", "cancelled by ada")
    assert await woken() == {"deliveries": {False}, "runs": {True}, "notifications": {False}}


async def test_a_waiter_sleeps_until_the_write(store: Store) -> None:
    signal = store.inbox.changed()
    waiting = asyncio.create_task(signal.wait(patient(30)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await store.inbox.accept(delivery())
    assert await waiting


async def test_a_write_between_two_waits_is_not_missed(store: Store) -> None:
    """A reader that looks after each wake-up sees every write, without a time-out."""
    signal = store.inbox.changed()
    seen: set[str] = set()

    async def look() -> None:
        while len(seen) < 200:
            assert await signal.wait(patient(30))
            seen.update(one.guid for one in await store.inbox.claim("a", limit=1000, lease_s=60))

    async def write() -> None:
        for number in range(200):
            await store.inbox.accept(delivery(f"guid-{number}"))

    await asyncio.gather(look(), write())


async def test_a_cancelled_wait_does_not_consume_the_signal(store: Store) -> None:
    signal = store.inbox.changed()
    waiting = asyncio.create_task(signal.wait(patient(30)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.inbox.accept(delivery())
    assert await signal.wait(0)


async def test_prune_deletes_old_rows_and_keeps_the_others(store: Store, clock: Clock) -> None:
    await handle(store, DeliveryOutcome(error="unreadable"), "failed", unread("failed"))
    await handle(store, DeliveryOutcome(), "read later", unread("read later"))
    await queue(store, new_run("old"), new_run("unfinished"))
    finished = await claim(store)
    await store.runs.save_task(finished, TaskResult(index=0, machine_attempt=1, name="t", status=TaskStatus.SUCCESS))
    await store.runs.finish(finished, Conclusion.SUCCESS, [comment(), comment("check:old"), comment("check:unpublished")])
    for one in await due(store):
        if one.notification.key != "check:unpublished":
            await store.outbox.published("a", one, 1)
    await store.inbox.accept(delivery("unhandled"))
    clock.advance(8 * DAY_S)
    await queue(store, new_run("new"))

    async def payloads() -> dict[str, bytes | None]:
        found = {guid: await store.inbox.get(guid) for guid in ("failed", "read later", "for old", "for new", "unhandled")}
        return {guid: one[0].payload if one else None for guid, one in found.items()}

    whole = unread().payload
    assert sum((await store.prune()).values()) > 0
    assert await payloads() == {"failed": whole, "read later": b"", "for old": b"", "for new": b"", "unhandled": b""}
    assert not await store.inbox.accept(delivery("for old"))
    assert await store.runs.get("old") is not None

    clock.advance(83 * DAY_S)
    deleted = await store.prune()
    assert {kind: number for kind, number in deleted.items() if number} == {
        "payloads": 1,
        "deliveries": 4,
        "runs": 1,
        "notifications": 1,
    }
    assert await payloads() == {"failed": None, "read later": None, "for old": None, "for new": b"", "unhandled": b""}
    assert await store.runs.get("old") is None
    assert await store.runs.task_results("old", 1) == []
    assert {run.id for run in await store.runs.unfinished()} == {"unfinished", "new"}
    kept = [key for key in (comment().key, "check:old", "check:unpublished") if await store.outbox.get(key) is not None]
    assert kept == [comment().key, "check:unpublished"]
    assert sum((await store.prune()).values()) == 0


async def test_a_closed_store_raises_and_can_be_closed_again(store: Store) -> None:
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.inbox.accept(delivery())
    with pytest.raises(StoreError, match="closed"):
        await store.inbox.get("guid-1")


async def test_closing_waits_for_pending_calls(store: Store, database: Open) -> None:
    accepting = [asyncio.create_task(store.inbox.accept(delivery(f"guid-{number}"))) for number in range(100)]
    await asyncio.sleep(0)
    await store.close()
    assert all(await asyncio.gather(*accepting))
    assert (await (await database()).counts())["deliveries_unhandled"] == 100


async def test_a_cancelled_call_does_not_affect_the_others(store: Store) -> None:
    tasks = [asyncio.create_task(store.inbox.accept(delivery(f"guid-{number}"))) for number in range(50)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[1::2] == [True] * 25
    assert await store.inbox.accept(delivery("afterwards"))


# Priorities


def check_run(key: str, status: Literal["queued", "in_progress", "completed"], summary: str = "") -> Notification:
    output = CheckRunOutput(title="t", summary=summary)
    update = CheckRunUpdate(name="gibil / test", head_sha="a" * 40, external_id=key, status=status, output=output)
    return Notification(key=key, installation_id=99, repository="ada/engine", update=update)


def of_repository(key: str, repository: str) -> Notification:
    return replace(comment(key), repository=repository)


async def test_results_precede_progress_then_comments_then_reactions(store: Store, clock: Clock) -> None:
    await store.outbox.record([check_run(key, "queued") for key in ("shown", "ended")])
    for one in await due(store):
        await store.outbox.published("a", one, 1)
    reaction = replace(comment("reaction"), update=UPDATES[-1])
    progress, ended = check_run("shown", "in_progress"), check_run("ended", "completed")
    for notification in (reaction, comment("comment"), progress, check_run("new", "queued"), ended):
        clock.advance(1)
        await store.outbox.record([notification])
    found = await due(store)
    assert [(one.notification.key, one.priority) for one in found] == [
        ("new", Priority.RESULT),
        ("ended", Priority.RESULT),
        ("shown", Priority.PROGRESS),
        ("comment", Priority.COMMENT),
        ("reaction", Priority.REACTION),
    ]


async def test_an_unpublished_check_run_keeps_its_priority_when_it_progresses(store: Store) -> None:
    await store.outbox.record([check_run("k", "queued")])
    await store.outbox.record([check_run("k", "in_progress")])
    assert [one.priority for one in await due(store)] == [Priority.RESULT]


async def test_less_important_notifications_can_be_left_for_later(store: Store) -> None:
    await store.outbox.record([comment("comment"), check_run("check", "queued")])
    found = await store.outbox.claim("a", limit=9, lease_s=60, up_to=Priority.PROGRESS)
    assert [one.notification.key for one in found] == ["check"]


async def test_a_repository_with_many_notifications_does_not_delay_another(store: Store, clock: Clock) -> None:
    await store.outbox.record([of_repository(f"many-{number}", "ada/loud") for number in range(20)])
    clock.advance(1)
    await store.outbox.record([of_repository("one", "ada/quiet")])
    assert [one.notification.key for one in await due(store, limit=2)] == ["many-0", "one"]
    await store.outbox.record([of_repository("two", "ada/quiet"), of_repository("three", "ada/calm")])
    # Claimed ones count, too: both repositories have one.
    assert [one.notification.key for one in await due(store, limit=1)] == ["three"]


async def test_a_result_does_not_wait_for_the_retry_of_progress(store: Store, clock: Clock) -> None:
    await store.outbox.record([check_run("k", "queued")])
    (one,) = await due(store)
    await store.outbox.published("a", one, 1)
    await store.outbox.record([check_run("k", "in_progress")])
    (one,) = await due(store)
    await store.outbox.not_published("a", one, "502", retry_s=300)
    await store.outbox.record([check_run("k", "in_progress", "output")])
    assert await due(store) == []
    await store.outbox.record([check_run("k", "completed")])
    (one,) = await due(store)
    await store.outbox.not_published("a", one, "502", retry_s=300)
    assert await due(store) == []  # this time the result failed


async def test_a_result_recorded_during_a_progress_publication_is_due_right_after_its_failure(store: Store) -> None:
    await store.outbox.record([check_run("k", "queued")])
    (one,) = await due(store)
    await store.outbox.published("a", one, 1)
    await store.outbox.record([check_run("k", "in_progress")])
    (one,) = await due(store)
    await store.outbox.record([check_run("k", "completed")])
    await store.outbox.not_published("a", one, "timeout", retry_s=300)
    assert [found.revision for found in await due(store)] == [3]


async def test_consecutive_failures_are_counted_separately_from_attempts(store: Store, clock: Clock) -> None:
    await store.outbox.record([comment(body="one")])
    for _ in range(2):
        (one,) = await due(store)
        await store.outbox.not_published("a", one, "502", retry_s=0)
    (one,) = await due(store)
    await store.outbox.not_published("a", one, "not asked yet", retry_s=0, failed=False)
    (one,) = await due(store)
    assert (one.attempts, one.failures) == (3, 2)
    await store.outbox.published("a", one, 1)
    await store.outbox.record([comment(body="two")])
    (one,) = await due(store)
    assert (one.attempts, one.failures) == (4, 0)


# Rate limits


async def test_a_bucket_starts_full_and_refills(store: Store, other: Store, clock: Clock) -> None:
    async def take(cost: float = 1, key: str = "ada") -> Spending:
        return await other.inbox.spend(key, cost=cost, capacity=3, per_s=0.5)

    assert [(await take()).allowed for _ in range(4)] == [True, True, True, False]
    assert (await take(key="bea")).allowed
    assert await take() == Spending(allowed=False, wait_s=2.0, first_refusal=False)
    clock.advance(2)
    assert [(await take()).allowed for _ in range(2)] == [True, False]
    clock.advance(3600)
    assert [(await take()).allowed for _ in range(4)] == [True, True, True, False]
    assert not (await take(cost=3)).allowed
    clock.advance(6)
    assert (await take(cost=3)).allowed


async def test_the_first_rejection_of_an_hour_is_marked(store: Store, clock: Clock) -> None:
    async def first() -> bool:
        return (await store.inbox.spend("ada", cost=1, capacity=1, per_s=0.0001)).first_refusal

    assert [await first() for _ in range(3)] == [False, True, False]
    clock.advance(3599)
    assert not await first()
    clock.advance(1)
    assert [await first(), await first()] == [True, False]


async def test_a_clock_that_was_set_back_blocks_no_requester(store: Store, clock: Clock) -> None:
    assert (await store.inbox.spend("ada", cost=1, capacity=1, per_s=1)).allowed
    clock.advance(-DAY_S)
    assert not (await store.inbox.spend("ada", cost=1, capacity=1, per_s=1)).allowed
    clock.advance(1)
    assert (await store.inbox.spend("ada", cost=1, capacity=1, per_s=1)).allowed


async def test_full_buckets_are_deleted(store: Store, clock: Clock) -> None:
    await store.inbox.spend("ada", cost=1, capacity=1, per_s=1)
    assert sum((await store.prune()).values()) == 0
    clock.advance(1)
    assert sum((await store.prune()).values()) == 1


async def test_the_first_of_several_values_is_agreed_on_until_it_is_replaced(database: Open) -> None:
    stores = [await database() for _ in range(3)]
    answers = await asyncio.gather(*(store.agree("key", f"value {index}") for index, store in enumerate(stores)))
    assert len(set(answers)) == 1
    assert await stores[0].agree("another key", "x") == "x"
    assert await stores[1].agree("key", "other", replace=True) == "other"
    assert await stores[2].agree("key", "value") == "other"
