"""A machine that fails is not a task that fails: the run starts again on a new one, once, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.machines.local.provider import LocalProvider
from tests.doubles.bot import REPOSITORY, Journey, journey

pytestmark = pytest.mark.usefixtures("local_machines")

ONCE = "name: Slow\non: {command: slow}\ntasks:\n  - {name: wait, run: 'echo begun; sleep 1; echo ended'}\n"
LONG = "name: Slow\non: {command: slow}\ntasks:\n  - {name: wait, run: 'echo begun; sleep 300'}\n"


async def _begun(world: Journey) -> str:
    """The run's id, as soon as its task prints."""

    def id_of() -> str | None:
        for run in world.github.check_runs(REPOSITORY):
            names = [event["phase"] for event in world.bot.events(run.external_id)]
            if "task_started" in names:
                return run.external_id
        return None

    found = await world.seen(id_of)
    assert found is not None
    return found


async def _destroy(world: Journey, name: str) -> None:
    provider = LocalProvider(world.bot.data_dir)
    try:
        assert await provider.destroy(name)
    finally:
        await provider.close()


async def test_a_machine_that_dies_in_a_task_is_replaced_once_and_the_check_says_so(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"slow.yml": ONCE}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil slow")
        run_id = await _begun(world)
        await _destroy(world, f"gibil-{run_id}-1")
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        assert "new one" in f"{check.summary}{check.text}"
        await world.told_everything()
        await world.assert_nothing_left()


async def test_a_second_machine_that_dies_ends_the_run_as_our_fault(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"slow.yml": LONG}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil slow")
        run_id = await _begun(world)
        await _destroy(world, f"gibil-{run_id}-1")
        await world.seen(lambda: [e["phase"] for e in world.bot.events(run_id)].count("task_started") == 2)
        await _destroy(world, f"gibil-{run_id}-2")
        check = await world.closed_check(number)
        assert check.conclusion == "failure"
        assert "twice" in f"{check.summary}{check.text}"
        await world.told_everything()
        await world.assert_nothing_left()


async def test_a_full_disk_of_the_machine_fails_the_task_and_nothing_else(tmp_path: Path) -> None:
    workflow = (
        "name: Fill\non: {command: fill}\nmachine: {disk: 64MB}\ntasks:\n"
        "  - {name: fill, run: 'head -c 200000000 /dev/zero > /root/big'}\n  - {name: after, if: always(), run: 'rm -f /root/big; echo freed'}\n"
    )
    async with journey(tmp_path, workflows={"fill.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil fill")
        check = await world.closed_check(number)
        assert check.conclusion == "failure"
        assert "No space left" in f"{check.summary}{check.text}"
        assert (world.bot.data_dir / "logs" / check.external_id / "1.log").read_text() == "freed\n"
        await world.told_everything()
        await world.assert_nothing_left()


async def test_a_task_that_outlives_its_timeout_is_stopped_with_all_its_children(tmp_path: Path) -> None:
    workflow = (
        "name: Hang\non: {command: hang}\ntasks:\n"
        "  - {name: hang, timeout-minutes: 0.02, run: 'setsid sleep 300 & sleep 300'}\n"
        "  - {name: look, if: always(), run: '! pgrep -x sleep'}\n"
    )
    async with journey(tmp_path, workflows={"hang.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil hang")
        check = await world.closed_check(number)
        assert check.conclusion == "timed_out", check.summary
        await world.told_everything()
        await world.assert_nothing_left()
