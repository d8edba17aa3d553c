"""An operator changes a secret during a run that uses it: neither value appears anywhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, journey
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")

OLD, NEW = "old-secret-value-1111", "new-secret-value-2222"
WORKFLOW = (
    "on: {command: leak}\nsecrets: [DEPLOY]\ntasks:\n"
    "  - {name: leak, run: 'while :; do echo \"it is $DEPLOY\"; sleep 0.05; done'}\n"
)


async def test_a_secret_that_is_rotated_during_a_run_never_appears(tmp_path: Path) -> None:
    settings = {"GIBIL_SECRET_DEPLOY": OLD}
    async with journey(tmp_path, workflows={"leak.yml": WORKFLOW}, settings=settings) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil leak")
        check = await world.seen(lambda: next(iter(world.github.check_runs(REPOSITORY)), None))
        assert check is not None
        log = world.bot.data_dir / "logs" / check.external_id / "0.log"
        async with asyncio.timeout(patient(30)):
            while not log.exists() or b"it is ***" not in log.read_bytes():
                await asyncio.sleep(0.02)  # another process's file: there is no event to wait for
        await world.bot.kill()
        world.bot.environment["GIBIL_SECRET_DEPLOY"] = NEW
        await world.bot.start()
        done = await world.closed_check(number)
        await world.all_published()
        assert done.conclusion == "failure"
        assert "secrets of this run were changed" in f"{done.title}{done.summary}"
        await world.assert_nothing_left()
        delivered = b"".join(delivery.body for delivery in world.github.deliveries)
        shown = f"{done.title}{done.summary}{done.text}" + "".join(c.body for c in world.github.comments(REPOSITORY, number))
        assert OLD not in shown
        assert OLD.encode() not in delivered
    for path in world.bot.data_dir.rglob("*"):
        if path.is_file():
            assert OLD.encode() not in path.read_bytes(), path
