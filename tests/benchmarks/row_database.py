"""The databases of one bot and of several: deliveries acknowledged and runs claimed per second.

Each bot is a process with 50 callers that deliver, and four that claim; a bot has one of these. A claim is followed by the
run's end. Against: bare
inserts of rows of the same size by the same callers, each committed; and one bot on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from gibil_bot.model import Delivery, Ignored
from gibil_bot.ports import DeliveryOutcome, Store
from gibil_bot.runs.postgres.store import open_store as open_database
from gibil_bot.runs.sqlite.store import open_store as open_file
from tests.benchmarks.comparison import Comparison, LeftOut, at_least
from tests.benchmarks.context import Context
from tests.benchmarks.store import CALLERS, run
from tests.benchmarks.store_process import CLAIMERS
from tests.doubles.postgres import Cluster, template

ROUNDS = 5
DELIVERIES, CLAIMS = 3000, 400


class Bots:
    """Processes that load one database at the same time."""

    def __init__(self, kind: str, url: str, count: int, password: str = "") -> None:
        command = [sys.executable, "-m", "tests.benchmarks.store_process", kind, url]
        environment = {**os.environ, "PGPASSWORD": password}
        self._processes = [
            subprocess.Popen(
                [*command, f"bot{number}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
            for number in range(count)
        ]

    def __enter__(self) -> Bots:
        for process in self._processes:
            self._line(process)
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.communicate()

    def per_s(self, action: str, count: int) -> float:
        """Let all of them do that at once; return how many a second they did together."""
        share = count // len(self._processes)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{action} {share}\n")
            process.stdin.flush()
        answers = [self._line(process).split() for process in self._processes]
        done = sum(int(claimed) for _, claimed in answers) if action == "claim" else share * len(answers)
        return done / max(float(took) for took, _ in answers)

    @staticmethod
    def _line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("a process that loads the database ended")
        return line


def database(context: Context) -> list[Comparison]:
    found = template(context.folder("template"))
    if isinstance(found, str):
        raise LeftOut(found)
    comparisons: list[Comparison] = []
    with Cluster(found) as cluster:
        places = [("SQLite, 1 bot", "sqlite", 1), *((f"PostgreSQL, {n} bot{'s'[: n > 1]}", "postgresql", n) for n in (1, 2, 3))]
        delivered: dict[str, list[float]] = {}
        claimed: dict[str, list[float]] = {}
        bare: dict[str, list[float]] = {}
        for name, kind, count in places:
            with _database(kind, cluster, context.folder(name)) as (url, password), Bots(kind, url, count, password) as bots:
                delivered[name], bare[name], claimed[name] = [], [], []
                for number in range(ROUNDS):
                    asyncio.run(_queue(kind, url, password, number))
                    claimed[name].append(bots.per_s("claim", CLAIMS))
                bots.per_s("deliver", DELIVERIES // 3)
                for _ in range(ROUNDS):
                    delivered[name].append(bots.per_s("deliver", DELIVERIES))
                    bare[name].append(bots.per_s("insert", DELIVERIES))
    one = places[1][0]
    for name, kind, count in places:
        comparisons.append(
            Comparison(
                what=f"deliveries acknowledged: {name}",
                peer=f"{'sqlite3' if kind == 'sqlite' else 'asyncpg'}: bare inserts",
                unit="/s",
                ours=delivered[name],
                peers=bare[name],
                aim=at_least(0.4) if count == 1 else None,
                facts={"bots": count, "callers_of_a_bot": CALLERS},
            )
        )
    for name, _, count in places:
        facts: dict[str, object] = {"bots": count, "callers_of_a_bot": CLAIMERS}
        what = f"runs claimed and finished: {name}"
        ours, peers = claimed[name], claimed[one]
        comparisons.append(Comparison(what=what, peer=one, unit="/s", ours=ours, peers=peers, aim=None, facts=facts))
    return comparisons


@contextlib.contextmanager
def _database(kind: str, cluster: Cluster, folder: Path) -> Iterator[tuple[str, str]]:
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'gibil.db'}", ""
        return
    url = cluster.url(asyncio.run(cluster.create_database()))
    password = urlsplit(url).password or ""
    yield url.replace(f":{password}@", "@"), password


async def _queue(kind: str, url: str, password: str, round_: int) -> None:
    """Queue CLAIMS runs of twenty repositories, as 20 deliveries would."""
    os.environ["PGPASSWORD"] = password
    store: Store = await open_file(url, exclusive=False) if kind == "sqlite" else await open_database(url)
    share = CLAIMS // 20
    try:
        for number in range(20):
            event = Ignored(reason="it queues runs")
            guid = f"runs-{round_}-{number}"
            await store.inbox.accept(Delivery(guid=guid, event_name="push", event=event, received_at=datetime.now(UTC)))
            await store.inbox.claim("queue", limit=1, lease_s=60)
            first = round_ * CLAIMS + number * share
            await store.inbox.complete("queue", guid, DeliveryOutcome(runs=[run(first + each) for each in range(share)]))
    finally:
        await store.close()
