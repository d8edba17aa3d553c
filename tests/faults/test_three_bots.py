"""Three bots on one PostgreSQL, of which one is killed every few seconds: nothing is lost, and nothing happens twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from gibil_bot.demo.records import CheckRun
from tests.doubles.bots import Bots, several_bots
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster

pytestmark = pytest.mark.usefixtures("local_machines")

PULL_REQUESTS = {"ada/busy": 6, **{f"{owner}/calm": 2 for owner in "bcdefghijklm"}}
"""By repository. Each owner is one installation, for which GitHub allows few writes a second."""
COMMANDS = tuple(f"count{number}" for number in range(10))
"""30 pull requests with ten commands each: 300 deliveries, each of which queues a run."""
MOST_MACHINES = 4
KILL_EVERY_S = 3.0
CLOSE_S = 0.5
"""The times of two processes' claims may be recorded in another order than the claims."""

# Each task fails if it has already run on this machine.
WORKFLOW = """\
name: {name}
on: {{command: {name}}}
inputs:
  end: {{default: '0'}}
tasks:
  - name: first
    run: |
      echo once >> /root/first
      test "$(wc -l < /root/first)" = 1
  - name: second
    run: |
      echo once >> /root/second
      sleep 0.2
      test "$(wc -l < /root/second)" = 1
      exit "$GIBIL_INPUT_END"
"""


@pytest.mark.xdist_group("three bots")  # one at a time: each keeps two cores busy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("restarts", [False, True], ids=["bots-are-killed", "and-postgresql-is-restarted"])
async def test_three_hundred_deliveries_end_once_with_the_true_conclusion(
    tmp_path: Path, own_postgres: Cluster, restarts: bool
) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    database = await own_postgres.create_database()
    async with several_bots(
        tmp_path,
        own_postgres.url(database),
        repository="ada/busy",
        settings={"GIBIL_MAX_MACHINES": str(MOST_MACHINES)},
        workflows={f"{name}.yml": WORKFLOW.format(name=name) for name in COMMANDS},
    ) as world:
        for repository in PULL_REQUESTS:
            if repository != "ada/busy":
                await world.github.add_repository(repository, {"README.md": "an engine\n"})
        expected: dict[tuple[str, str], str] = {}
        comments: list[tuple[str, int, str, str]] = []
        for repository, count in PULL_REQUESTS.items():
            owner = repository.partition("/")[0]
            for index in range(count):
                number = await world.github.open_pull_request(
                    repository, f"faster-{index}", {"engine.py": f"POWER = {index}\n"}, owner
                )
                head = world.github.head_sha(repository, number)
                for command in COMMANDS:
                    fails = dice.random() < 0.3
                    expected[head, command] = "failure" if fails else "success"
                    comments.append((repository, number, owner, f"/gibil {command} end={7 if fails else 0}"))
        assert len(comments) == 300
        watching = asyncio.create_task(_watch(world, own_postgres, database))
        killing = asyncio.create_task(_kill(world, dice))
        try:
            for number, comment in enumerate(comments):
                world.github.comment(*comment)
                if restarts and number == len(comments) // 2:
                    await asyncio.to_thread(own_postgres.restart, "fast")
                await asyncio.sleep(0.02)  # the rate of arrival is the input
            closing = asyncio.create_task(_until_closed(world, len(expected)))
            await asyncio.wait({closing, killing, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in (killing, watching, closing):
                if task.done():
                    await task
            if restarts:
                await asyncio.to_thread(own_postgres.kill)
                await asyncio.to_thread(own_postgres.start)
        finally:
            for task in (killing, watching):
                task.cancel()
            await asyncio.gather(killing, watching, return_exceptions=True)
        for bot, each in zip(world.bots, world.journeys, strict=True):
            if bot.process is None or bot.process.returncode is not None:
                await bot.start()
            await each.all_published(60)
        _check(world, expected)
        await _check_turns(own_postgres, database)
        for each in world.journeys:
            await each.assert_nothing_left(60)


async def _kill(world: Bots, dice: random.Random) -> None:
    """Kill one bot after the other, and start it again."""
    while True:
        await asyncio.sleep(patient(KILL_EVERY_S))  # the moment of the kill is the input
        bot = dice.choice(world.bots)
        await bot.kill()
        await asyncio.shield(asyncio.create_task(bot.start()))


async def _watch(world: Bots, cluster: Cluster, database: str) -> None:
    """Check all the time that there are never more machines than all bots together may have."""
    while True:
        machines = [name for each in world.journeys for name in await each.machines() if name.startswith("gibil-")]
        assert len(machines) <= MOST_MACHINES, machines
        await asyncio.sleep(0.2)


async def _until_closed(world: Bots, count: int) -> None:
    def closed() -> bool:
        runs = [run for repository in PULL_REQUESTS for run in world.github.check_runs(repository)]
        return len(runs) >= count and all(run.status == "completed" for run in runs)

    try:
        await world.github.wait_for(closed, patient(600))
    except TimeoutError:
        states = Counter(run.status for repository in PULL_REQUESTS for run in world.github.check_runs(repository))
        raise AssertionError(f"{states}\n{world.log()}") from None


def _check(world: Bots, expected: dict[tuple[str, str], str]) -> None:
    runs: list[CheckRun] = [run for repository in PULL_REQUESTS for run in world.github.check_runs(repository)]
    found = {(run.head_sha, run.name.rpartition(" ")[2]): run for run in runs}
    assert len(runs) == len(found) == len(expected) == len({run.external_id for run in runs})
    wrong = {key: (run.conclusion, run.title) for key, run in found.items() if run.conclusion != expected[key]}
    assert wrong == {}, world.log()
    for repository, count in PULL_REQUESTS.items():
        for number in range(1, count + 1):
            markers = Counter(
                comment.body.splitlines()[0] for comment in world.github.comments(repository, number) if comment.by_app
            )
            assert [marker for marker, times in markers.items() if times > 1] == []


async def _check_turns(cluster: Cluster, database: str) -> None:
    """No repository got a machine while another one waited that had fewer."""
    connection = await cluster.connect(database)
    try:
        rows = await connection.fetch("select repository_id, queued_at, started_at, finished_at from runs order by started_at")
    finally:
        await connection.close()
    by_repository: dict[int, list[tuple[float, float, float]]] = {}
    for repository, *times in rows:
        by_repository.setdefault(repository, []).append(tuple(times))
    unfair = []
    for repository, _, started, _ in rows:
        certainly = sum(s < started - CLOSE_S and f > started + CLOSE_S for _, s, f in by_repository[repository])
        for other, runs in by_repository.items():
            waits = any(q < started - CLOSE_S and s > started + CLOSE_S for q, s, _ in runs)
            at_most = sum(s < started + CLOSE_S and f > started - CLOSE_S for _, s, f in runs)
            if other != repository and waits and certainly > at_most:
                unfair.append((repository, other, started))
    assert unfair == []
