"""Two real bots with one PostgreSQL: kill -9 of either, and a restart of the database, lose nothing and do nothing twice."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import asyncpg
import pytest

from gibil_bot.demo.records import CheckRun
from tests.doubles.bot import REPOSITORY
from tests.doubles.bots import several_bots
from tests.doubles.postgres import Cluster
from tests.faults.test_bot_is_killed import WORKFLOW, _let_pass

pytestmark = pytest.mark.usefixtures("local_machines")

RUNS, KILLS, MOST_MACHINES = 4, 3, 2


async def query(cluster: Cluster, database: str, text: str) -> list[asyncpg.Record]:
    connection = await cluster.connect(database)
    try:
        return list(await connection.fetch(text))
    finally:
        await connection.close()


async def test_killed_bots_lose_nothing_and_do_nothing_twice(tmp_path: Path, own_postgres: Cluster) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    settings, workflows = {"GIBIL_MAX_MACHINES": str(MOST_MACHINES)}, {"count.yml": WORKFLOW}
    async with (
        own_postgres.lend_database() as database,
        several_bots(tmp_path, own_postgres.url(database), count=2, settings=settings, workflows=workflows) as both,
    ):
        world, bots = both.journeys[0], both.bots
        github = world.github
        numbers = [
            await github.open_pull_request(REPOSITORY, f"faster-{index}", {"engine.py": f"POWER = {index}\n"}, "ada")
            for index in range(RUNS)
        ]
        heads = {github.head_sha(REPOSITORY, number): index for index, number in enumerate(numbers)}
        for index, number in enumerate(numbers):
            github.webhook_url = f"{bots[index % 2].url}/webhook"
            github.comment(REPOSITORY, number, "ada", f"/gibil count end={'7' if index % 2 else '0'}")
            await github.webhooks_sent()
        for kill in range(KILLS):
            await _let_pass(moments.uniform(0.2, 1.5))
            if kill == KILLS // 2:
                await asyncio.to_thread(own_postgres.restart, "immediate")
            await bots[kill % 2].kill()
            await bots[kill % 2].start()
            running = "select count(*) from runs where state = 'running' and finished_at is null"
            assert (await query(own_postgres, database, running))[0][0] <= MOST_MACHINES

        def closed() -> list[CheckRun]:
            runs = github.check_runs(REPOSITORY)
            return [run for run in runs if run.status == "completed"] if len(runs) == RUNS else []

        checks = await world.seen(lambda: found if len(found := closed()) == RUNS else None, 60.0)
        assert checks is not None
        for check in checks:
            expected = "failure" if heads[check.head_sha] % 2 else "success"
            assert check.conclusion == expected, f"{check.title} {check.summary}"
            if expected == "failure":
                assert "exit status 7" in f"{check.summary}{check.text}"
        await world.all_published()
        attempts = await query(own_postgres, database, "select distinct machine_attempt from runs")
        assert [row[0] for row in attempts] == [1]  # each run was continued by the bot of its machine's host
        for number in numbers:
            assert len([comment for comment in github.comments(REPOSITORY, number) if comment.by_app]) == 1
        for each in both.journeys:
            await each.assert_nothing_left()
