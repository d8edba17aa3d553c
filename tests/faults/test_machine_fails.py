"""A failing machine isn't a failing task: the run starts again on a new machine, once, and reports it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gibil_bot.providers.local.provider import LocalProvider
from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.patience import patient
from tests.doubles.tools import needs

pytestmark = pytest.mark.usefixtures("local_machines")

ONCE = "name: Slow\non: {command: slow}\ntasks:\n  - {name: wait, run: 'echo begun; sleep 1; echo ended'}\n"
LONG = "name: Slow\non: {command: slow}\ntasks:\n  - {name: wait, run: 'echo begun; sleep 300'}\n"


async def _begun(world: Journey, machine: int = 1) -> str:
    """Return the run's id, as soon as the task prints on this machine of the run."""
    async with asyncio.timeout(patient(30)):
        while True:
            for run in world.github.check_runs(REPOSITORY):
                phases = [event["phase"] for event in world.bot.events(run.external_id)]
                if phases.count("task_started") == machine:
                    return run.external_id
            await asyncio.sleep(0.01)  # another process's file: there is no event to wait for


async def _destroy(world: Journey, name: str) -> None:
    provider = LocalProvider(world.bot.data_dir)
    try:
        assert await provider.destroy(name)
    finally:
        await provider.close()


async def test_a_machine_that_dies_during_a_task_is_replaced_once_and_the_check_run_reports_it(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"slow.yml": ONCE}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil slow")
        run_id = await _begun(world)
        await _destroy(world, f"gibil-{run_id}-1")
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        assert "new one" in f"{check.summary}{check.text}"
        await world.all_published()
        await world.assert_nothing_left()


async def test_the_loss_of_a_second_machine_ends_the_run_as_an_internal_error(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"slow.yml": LONG}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil slow")
        run_id = await _begun(world)
        await _destroy(world, f"gibil-{run_id}-1")
        await _begun(world, machine=2)
        await _destroy(world, f"gibil-{run_id}-2")
        check = await world.closed_check(number)
        assert check.conclusion == "failure"
        assert "twice" in f"{check.summary}{check.text}"
        await world.all_published()
        await world.assert_nothing_left()


async def test_a_full_disk_of_the_machine_fails_only_the_task(tmp_path: Path) -> None:
    workflow = (
        "name: Fill\non: {command: fill}\nmachine: {disk: 64MB}\ntasks:\n"
        "  - {name: fill, run: 'head -c 200000000 /dev/zero > /root/big'}\n  - {name: after, if: always(), run: 'true'}\n"
    )
    async with journey(tmp_path, workflows={"fill.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil fill")
        check = await world.closed_check(number)
        assert check.conclusion == "failure"
        assert "disk full" in f"{check.summary}{check.text}"
        assert "new one" not in f"{check.summary}", "the task caused the full disk: no second machine"
        await world.all_published()
        await world.assert_nothing_left()


@needs("pgrep")
async def test_a_task_that_exceeds_its_timeout_is_killed_with_its_children(tmp_path: Path) -> None:
    workflow = (
        "name: Hang\non: {command: hang}\ntasks:\n"
        "  - {name: hang, timeout-minutes: 0.05, run: 'setsid sleep 300 & sleep 300'}\n"
        "  - {name: look, if: always(), run: '! pgrep -x sleep'}\n"
    )
    async with journey(tmp_path, workflows={"hang.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil hang")
        check = await world.closed_check(number)
        assert check.conclusion == "timed_out", check.summary
        await world.all_published()
        await world.assert_nothing_left()
