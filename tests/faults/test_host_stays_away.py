"""A host that doesn't come back: its run starts again on another one, and the report says so."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, Journey
from tests.doubles.bots import Bots, several_bots
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster

pytestmark = pytest.mark.usefixtures("local_machines")

WORKFLOW = "on: {command: slow}\ntasks:\n  - {name: slow, run: 'echo begun; sleep 20; echo done'}\n"


@pytest.mark.timeout(400)
async def test_a_run_starts_again_on_another_host_and_the_old_machine_is_destroyed_later(
    tmp_path: Path, own_postgres: Cluster
) -> None:
    database = await own_postgres.create_database()
    async with several_bots(
        tmp_path,
        own_postgres.url(database),
        count=2,
        settings={"GIBIL_HOST_AWAY": "1m"},
        workflows={"slow.yml": WORKFLOW},
    ) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil slow")

        async with asyncio.timeout(patient(15)):
            while (lost := _working(world)) is None:
                await asyncio.sleep(0.05)  # another process's file: there is no event to wait for
        await lost.bot.kill()
        (other,) = (each for each in world.journeys if each is not lost)
        check = await other.closed_check(number, timeout_s=200)
        assert check.conclusion == "success", other.bot.text()
        assert "everything was restarted on a new machine of another host" in f"{check.title}{check.summary}{check.text}"
        assert len(await lost.machines()) == 1
        await lost.bot.start()
        await lost.assert_nothing_left(60)
        await other.assert_nothing_left()
        assert len(world.github.check_runs(REPOSITORY)) == 1


def _working(world: Bots) -> Journey | None:
    """Return the bot whose machine runs the task."""
    for each in world.journeys:
        for log in (each.bot.data_dir / "logs").glob("*/0.log"):
            if b"begun" in log.read_bytes():
                return each
    return None
