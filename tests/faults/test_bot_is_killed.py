"""kill -9 of the bot at any moment costs nothing that was accepted: every check run is closed with the truth, once."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path

import pytest

from gibil_bot.demo.state import CheckRun
from tests.doubles.bot import REPOSITORY, Journey, journey

pytestmark = pytest.mark.usefixtures("local_machines")

KILLS = 20
LONGEST_S = 2.5
"""A little more than a run takes, so that every part of it is hit."""

# Each task fails if anything did its work twice on this machine.
WORKFLOW = """\
name: Count
on: {command: count}
inputs:
  end: {default: '0'}
tasks:
  - name: first
    run: |
      echo once >> /root/first
      test "$(wc -l < /root/first)" = 1
  - name: second
    run: |
      echo once >> /root/second
      for i in 1 2 3 4 5 6 7 8; do echo "line $i"; sleep 0.05; done
      test "$(wc -l < /root/second)" = 1
  - name: third
    run: |
      echo once >> /root/third
      test "$(wc -l < /root/third)" = 1
      exit "$GIBIL_INPUT_END"
"""


async def _one_kill(world: Journey, number: int, index: int, moment_s: float) -> None:
    fails = index % 2 == 1
    before = len(world.github.check_runs(REPOSITORY))
    world.github.comment(REPOSITORY, number, "ada", f"/gibil count end={'7' if fails else '0'}")
    await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=moment_s)  # the moment itself is the input
    await world.bot.kill()
    await world.bot.start()

    def closed() -> CheckRun | None:
        runs = world.github.check_runs(REPOSITORY)
        return runs[-1] if len(runs) == before + 1 and all(run.status == "completed" for run in runs) else None

    check = await world.seen(closed, 40.0)
    assert check is not None
    assert check.conclusion == ("failure" if fails else "success"), f"after {moment_s:.2f} s: {check.title} {check.summary}"
    if fails:
        assert "exit status 7" in f"{check.summary}{check.text}"


async def test_twenty_kills_leave_twenty_true_check_runs_and_nothing_else(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    async with journey(tmp_path, workflows={"count.yml": WORKFLOW}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        for index in range(KILLS):
            await _one_kill(world, number, index, moments.uniform(0.0, LONGEST_S))
        await world.told_everything()
        runs = world.github.check_runs(REPOSITORY)
        assert len(runs) == KILLS
        assert len({run.external_id for run in runs}) == KILLS
        assert [run for run in runs if run.status != "completed"] == []
        assert len([comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]) == 1
        await world.assert_nothing_left()


async def test_a_killed_bot_goes_on_in_the_middle_of_a_tasks_output(tmp_path: Path) -> None:
    lines = (
        "name: Lines\non: {command: lines}\ntasks:\n"
        "  - {name: count, run: 'for i in $(seq 1 40); do echo line $i; sleep 0.05; done'}\n"
    )
    async with journey(tmp_path, workflows={"lines.yml": lines}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil lines")
        check = await world.seen(
            lambda: next((r for r in world.github.check_runs(REPOSITORY) if r.status == "in_progress"), None)
        )
        assert check is not None
        log = world.bot.data_dir / "logs" / check.external_id / "0.log"
        for _ in range(2):
            async with asyncio.timeout(20):
                before = log.stat().st_size if log.exists() else 0
                while not log.exists() or log.stat().st_size <= before:
                    await asyncio.sleep(0.01)  # a file of another process: there is no event to wait for
            await world.bot.kill()
            await world.bot.start()
        done = await world.closed_check(number)
        assert done.conclusion == "success"
        await world.told_everything()
        assert log.read_text().splitlines() == [f"line {i}" for i in range(1, 41)]
        await world.assert_nothing_left()


async def test_sigterm_leaves_the_run_to_the_next_start(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"count.yml": WORKFLOW}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil count")
        await world.seen(lambda: any(run.status == "in_progress" for run in world.github.check_runs(REPOSITORY)))
        assert await world.bot.stop() == 0
        assert all(run.status != "completed" for run in world.github.check_runs(REPOSITORY))
        await world.bot.start()
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.told_everything()
        await world.assert_nothing_left()


async def test_a_second_bot_on_the_same_database_refuses_with_one_clear_line(tmp_path: Path) -> None:
    async with journey(tmp_path) as world:
        second = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "gibil_bot", "serve", "--port", "0",
            env=world.bot.environment, stderr=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        async with asyncio.timeout(30):
            _, complaint = await second.communicate()
        lines = complaint.decode().strip().splitlines()
        assert second.returncode == 6
        assert len(lines) == 1
        assert str(world.bot.pid) in lines[0]
