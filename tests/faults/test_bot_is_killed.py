"""`kill -9` of the bot at any moment loses no accepted work: every check run ends once, with the true result."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
from pathlib import Path

import pytest

from gibil_bot.demo.records import CheckRun
from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.patience import patient
from tests.doubles.prefork import Forked

pytestmark = pytest.mark.usefixtures("local_machines")

KILLS = 5
RUNS = 4
"""How many runs each kill interrupts, of different pull requests and at different points."""
LONGEST_S = 2.5
"""Slightly longer than a run, so that every part of it is interrupted."""

# Each task fails if it has already run on this machine.
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


async def _one_kill(world: Journey, numbers: list[int], round_: int, ages_s: list[float]) -> None:
    """Kill the bot when its runs are `ages_s` old; every second run is one that fails."""
    heads = [world.github.head_sha(REPOSITORY, number) for number in numbers]
    fails = {head: (round_ + index) % 2 == 1 for index, head in enumerate(heads)}
    since = max(ages_s)
    for age_s, number, head in sorted(zip(ages_s, numbers, heads, strict=True), reverse=True):
        await _let_pass(since - age_s)
        since = age_s
        world.github.comment(REPOSITORY, number, "ada", f"/gibil count end={'7' if fails[head] else '0'}")
    await _let_pass(since)
    await world.bot.kill()
    await world.bot.start()

    def closed() -> list[CheckRun]:
        last = [world.github.check_runs(REPOSITORY, head)[round_:] for head in heads]
        return [run for (run,) in last if run.status == "completed"] if all(len(runs) == 1 for runs in last) else []

    checks = await world.seen(lambda: found if len(found := closed()) == len(heads) else None, 40.0)
    assert checks is not None
    for check, age_s in zip(checks, ages_s, strict=True):
        expected = "failure" if fails[check.head_sha] else "success"
        assert check.conclusion == expected, f"after {age_s:.2f} s: {check.title} {check.summary}"
        if fails[check.head_sha]:
            assert "exit status 7" in f"{check.summary}{check.text}"


async def _let_pass(seconds: float) -> None:
    """The moment of the kill is the input."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


async def test_twenty_interrupted_runs_end_with_twenty_correct_check_runs(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    async with journey(tmp_path, workflows={"count.yml": WORKFLOW}) as world:
        numbers = [
            await world.github.open_pull_request(REPOSITORY, f"faster-{index}", {"engine.py": f"POWER = {index}\n"}, "ada")
            for index in range(RUNS)
        ]
        for round_ in range(KILLS):
            await _one_kill(world, numbers, round_, [moments.uniform(0.0, LONGEST_S) for _ in numbers])
        await world.all_published()
        runs = world.github.check_runs(REPOSITORY)
        assert len(runs) == len({run.external_id for run in runs}) == KILLS * RUNS
        assert [run for run in runs if run.status != "completed"] == []
        for number in numbers:
            assert len([comment for comment in world.github.comments(REPOSITORY, number) if comment.by_app]) == 1
        await world.assert_nothing_left()


async def test_a_restarted_bot_continues_in_the_middle_of_a_tasks_output(tmp_path: Path) -> None:
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
            async with asyncio.timeout(patient(20)):
                before = log.stat().st_size if log.exists() else 0
                while not log.exists() or log.stat().st_size <= before:
                    await asyncio.sleep(0.01)  # another process's file: there is no event to wait for
            await world.bot.kill()
            await world.bot.start()
        done = await world.closed_check(number)
        assert done.conclusion == "success"
        await world.all_published()
        assert log.read_text().splitlines() == [f"line {i}" for i in range(1, 41)]
        await world.assert_nothing_left()


async def test_sigterm_leaves_the_run_to_the_next_start(tmp_path: Path) -> None:
    slow = WORKFLOW.replace("sleep 0.05", "sleep 0.6")  # a run is shown as in progress after two seconds
    async with journey(tmp_path, workflows={"count.yml": slow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil count")
        await world.seen(lambda: any(run.status == "in_progress" for run in world.github.check_runs(REPOSITORY)))
        assert await world.bot.stop() == 0
        assert all(run.status != "completed" for run in world.github.check_runs(REPOSITORY))
        await world.bot.start()
        check = await world.closed_check(number)
        assert check.conclusion == "success"
        await world.all_published()
        await world.assert_nothing_left()


async def test_a_second_bot_on_the_same_database_exits_with_one_line(tmp_path: Path) -> None:
    async with journey(tmp_path) as world:
        second = Forked(("serve", "--port", "0"), env=world.bot.environment, stdout=subprocess.DEVNULL)
        _, complaint = await asyncio.to_thread(second.communicate, patient(30))
        lines = complaint.decode().strip().splitlines()
        assert second.returncode == 6
        assert len(lines) == 1
        assert str(world.bot.pid) in lines[0]
