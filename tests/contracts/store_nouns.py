"""Builders for the store's tests: a clock that the tests set, and values in which only the fields that matter are given."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from gibil_bot.caps import NO_CAPS
from gibil_bot.model import (
    CommentCreated,
    CommentUpdate,
    Delivery,
    Event,
    MachinePlan,
    NewRun,
    Notification,
    Person,
    Plan,
    PullRequest,
    Repository,
    Source,
    TaskPlan,
    Trust,
)
from gibil_bot.ports import DeliveryOutcome, RunStore, Store
from gibil_bot.runs.context import Policy
from gibil_bot.runs.memory import MemoryRuns
from tests.doubles.databases import empty_database, open_store

DAY_S = 86400.0


class Clock:
    """A clock that moves only when a test advances it."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.25

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds

    @property
    def moment(self) -> datetime:
        return datetime.fromtimestamp(self.now, UTC)


def run_id(digest: bytes, distinction: str) -> str:
    return hashlib.sha256(digest + distinction.encode()).hexdigest()[:16]


def intake_policy(commands_per_hour: int = 1000) -> Policy:
    """Return the policy of an operator who allows trusted code."""
    return Policy(
        allowed_accounts=None,
        untrusted="refuse",
        provider="local",
        max_ttl_s=3600,
        caps=NO_CAPS,
        public_url="",
        commands_per_hour=commands_per_hour,
        run_id=run_id,
        operator_workflows=dict,
    )


RECEIVED_AT = datetime(2026, 11, 23, 12, 30, 15, 123457, tzinfo=UTC)


def command(body: str = "/gibil test", *, repository: int = 1, number: int = 7) -> CommentCreated:
    name = f"ada/engine-{repository}"
    return CommentCreated(
        installation_id=99,
        repository=Repository(
            id=repository, full_name=name, clone_url=f"https://github.com/{name}.git", default_branch="main", private=True
        ),
        number=number,
        comment_id=5,
        author=Person(login="ada"),
        body=body,
        created_at=RECEIVED_AT,
    )


def delivery(guid: str = "guid-1", event: Event | None = None) -> Delivery:
    """Return a delivery of a command, or of the given event."""
    return Delivery(
        guid=guid, event_name="issue_comment", event=event or command(), received_at=RECEIVED_AT, digest=guid.encode()
    )


def unread(guid: str = "guid-1", payload: bytes = b'{"action": "created"}') -> Delivery:
    """Return a delivery whose payload could not be read."""
    return Delivery(guid=guid, event_name="issue_comment", event=None, payload=payload, received_at=RECEIVED_AT)


def new_run(
    run_id: str,
    *,
    repository: int = 1,
    number: int = 7,
    group: str | None = None,
    cancel_in_progress: bool = True,
    sha: str = "0123456789abcdef0123456789abcdef01234567",
    guid: str = "guid-1",
) -> NewRun:
    """Return a run in a concurrency group that no other run has, or in the given one."""
    name = f"ada/engine-{repository}"
    source = Source(
        installation_id=99,
        repository=Repository(
            id=repository, full_name=name, clone_url=f"https://github.com/{name}.git", default_branch="main", private=True
        ),
        pull_request=PullRequest(
            number=number,
            title="Bernoulli ✓ numbers",
            author=Person(login="ada"),
            head_sha=sha,
            head_ref="notes/g",
            head_repository=None,
            base_ref="main",
            base_sha="f" * 40,
            is_draft=True,
        ),
        sha=sha,
        trust=Trust.UNTRUSTED,
        actor="charles",
        comment_id=5,
    )
    plan = Plan(
        workflow="test",
        title="Tests",
        path="workflows/test.yml",
        tasks=(
            TaskPlan(name="build", run="make\n", env={"A": "b"}, timeout_s=12.5),
            TaskPlan(name="check", run="make check", condition="always()", continue_on_error=True, working_directory="src"),
        ),
        inputs={"browser": "firefox"},
        env={"CI": "true"},
        secrets=("TOKEN",),
        machine=MachinePlan(size="large", memory_mb=512),
        concurrency_group=f"group of {run_id}" if group is None else group,
        cancel_in_progress=cancel_in_progress,
        github={"sha": sha},
        notes=("a note",),
    )
    return NewRun(id=run_id, delivery_guid=guid, source=source, plan=plan)


def comment(key: str = "comment:1:7:test", body: str = "hello", number: int = 7) -> Notification:
    update = CommentUpdate(number=number, marker="<!-- m -->", body=f"<!-- m --> {body}")
    return Notification(key=key, installation_id=99, repository="ada/engine", update=update)


async def handle(store: Store, outcome: DeliveryOutcome, guid: str, arrived: Delivery | None = None) -> None:
    """Accept a delivery, claim it and complete it with this outcome."""
    assert await store.inbox.accept(arrived or delivery(guid))
    claimed = await store.inbox.claim("intake", limit=100, lease_s=60)
    assert guid in [one.guid for one in claimed]
    await store.inbox.complete("intake", guid, outcome)


async def queue(store: Store, *runs: NewRun) -> None:
    """Queue these runs in this order, each with a separate delivery."""
    for run in runs:
        await handle(store, DeliveryOutcome(runs=[run]), f"for {run.id}")


Queue = Callable[..., Awaitable[None]]
"""Queues these runs in this order."""


@dataclass(frozen=True)
class RunStoreAdapter:
    open: Callable[[], Awaitable[RunStore]]
    """Another process's view of the same runs."""
    queue: Queue


@contextlib.asynccontextmanager
async def run_store_adapter(kind: str, request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[RunStoreAdapter]:
    """Open an adapter; `kind` is memory or one of DATABASES."""
    if kind == "memory":
        memory = MemoryRuns(clock)

        async def same_store() -> RunStore:
            return memory

        async def queue_in_memory(*new_runs: NewRun) -> None:
            memory.queue(*new_runs)

        yield RunStoreAdapter(same_store, queue_in_memory)
        return
    opened: list[Store] = []
    async with empty_database(kind, request) as url:

        async def open_one() -> RunStore:
            opened.append(await open_store(url, clock=clock))
            return opened[-1].runs

        async def queue_by_delivery(*new_runs: NewRun) -> None:
            await handle(opened[0], DeliveryOutcome(runs=new_runs), secrets.token_hex(8))

        yield RunStoreAdapter(open_one, queue_by_delivery)
        for store in opened:
            await store.close()
