"""The in-process cost of the store: accepting deliveries from 50 callers at once, and claiming with a long history.

    python tests/benchmarks/store.py [--deliveries 30000] [--history 0] [--folder DIR]

Prints one JSON object, with the fsync time of the disk, on which every number depends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from gibil_bot.model import (
    CommentCreated,
    Conclusion,
    Delivery,
    Ignored,
    NewRun,
    Person,
    Plan,
    PullRequest,
    Repository,
    Source,
    TaskPlan,
    Trust,
)
from gibil_bot.ports import DeliveryOutcome
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store

CALLERS = 50
COMMAND = CommentCreated(
    installation_id=1,
    repository=Repository(id=1, full_name="ada/r1", clone_url="https://github.com/ada/r1.git", default_branch="main"),
    number=7,
    comment_id=1,
    author=Person(login="ada"),
    body="/gibil test",
)


def run(number: int) -> NewRun:
    """Return a run of one of twenty repositories, in a group that no other run has."""
    repository = Repository(
        id=number % 20, full_name=f"ada/r{number % 20}", clone_url="https://github.com/ada/r", default_branch="main"
    )
    pull_request = PullRequest(
        number=number,
        title="A change",
        author=Person(login="ada"),
        head_sha="a" * 40,
        head_ref="change",
        head_repository="ada/r",
        base_ref="main",
        base_sha="b" * 40,
    )
    source = Source(
        installation_id=1, repository=repository, pull_request=pull_request, sha="a" * 40, trust=Trust.TRUSTED, actor="ada"
    )
    tasks = tuple(TaskPlan(name=f"step {index}", run="make test") for index in range(5))
    plan = Plan(workflow="test", title="test", path="workflows/test.yml", tasks=tasks, concurrency_group=f"test/{number}")
    return NewRun(id=f"{number:016x}", delivery_guid="history", source=source, plan=plan)


async def timed(calls: int, call: Callable[[int], Awaitable[object]]) -> tuple[float, float, float]:
    """Return (calls a second, median ms, 99th percentile ms) of CALLERS callers who share the work."""
    numbers = iter(range(calls))
    took: list[float] = []

    async def caller() -> None:
        for number in numbers:
            start = time.perf_counter()
            await call(number)
            took.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    elapsed = time.perf_counter() - start
    took.sort()
    return round(calls / elapsed), round(took[len(took) // 2] * 1000, 2), round(took[len(took) * 99 // 100] * 1000, 2)


async def write_history(store: SqlStore, count: int) -> None:
    """Write this many finished runs, each with a handled delivery."""

    async def work(number: int) -> None:
        guid = f"history-{number}"
        await store.inbox.accept(
            Delivery(guid=guid, event_name="push", event=Ignored(reason="history"), received_at=datetime.now(UTC))
        )
        claimed = await store.inbox.claim("bench", limit=1, lease_s=60)
        for delivery in claimed:
            await store.inbox.complete(
                "bench", delivery.guid, DeliveryOutcome(runs=[run(int(delivery.guid.rpartition("-")[2]))])
            )
        claim = await store.runs.claim("bench", lease_s=3600, max_machines=CALLERS)
        if claim is not None:
            await store.runs.finish(claim, Conclusion.SUCCESS, ())

    if count:
        await timed(count, work)


def fsync_ms(folder: Path) -> float:
    """Return the median of 50 appends of one page."""
    took = []
    with (folder / "fsync").open("wb", buffering=0) as file:
        for _ in range(50):
            start = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            took.append(time.perf_counter() - start)
    return round(sorted(took)[25] * 1000, 3)


async def measure(folder: Path, deliveries: int, history: int) -> dict[str, object]:
    answer: dict[str, object] = {"fsync_ms": fsync_ms(folder), "callers": CALLERS, "deliveries": deliveries, "history": history}
    store = await open_store(f"sqlite:///{folder / 'bench.db'}")
    try:
        await write_history(store, history)
        answer["counts"] = await store.counts()

        async def accept(number: int) -> None:
            guid = f"{number * 2654435761 % 2**32:08x}-{number}"
            await store.inbox.accept(
                Delivery(guid=guid, event_name="issue_comment", event=COMMAND, received_at=datetime.now(UTC))
            )

        names = ("accept_per_s", "accept_median_ms", "accept_p99_ms")
        answer |= dict(zip(names, await timed(deliveries, accept), strict=True))
        answer["log_mb"] = round((folder / "bench.db-wal").stat().st_size / 1e6, 1)

        async def idle_claim(_: int) -> None:
            assert await store.runs.claim("bench", lease_s=60, max_machines=10) is None

        async def claim_delivery(_: int) -> None:
            await store.inbox.claim("bench", limit=1, lease_s=60)

        start = time.perf_counter()
        await store.counts()
        answer["counts_ms"] = round((time.perf_counter() - start) * 1000, 2)
        names = ("claim_run_nothing_per_s", "claim_run_nothing_median_ms", "claim_run_nothing_p99_ms")
        answer |= dict(zip(names, await timed(2000, idle_claim), strict=True))
        names = ("claim_delivery_per_s", "claim_delivery_median_ms", "claim_delivery_p99_ms")
        answer |= dict(zip(names, await timed(min(2000, deliveries), claim_delivery), strict=True))
    finally:
        start = time.perf_counter()
        await store.close()
        answer["close_s"] = round(time.perf_counter() - start, 3)
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deliveries", type=int, default=30_000)
    parser.add_argument("--history", type=int, default=0, help="finished runs that are there before")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; a temporary one otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        print(json.dumps(asyncio.run(measure(Path(folder), arguments.deliveries, arguments.history)), indent=2))


if __name__ == "__main__":
    main()
