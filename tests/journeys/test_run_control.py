"""The order of runs and what stops them: queue, limit, supersede, cancel, close, re-run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gibil_bot.demo.records import CheckRun
from tests.doubles.bot import REPOSITORY, Journey, journey

pytestmark = pytest.mark.usefixtures("local_machines")

LONG = "name: Long\non: {command: long}\ntasks:\n  - {name: wait, run: 'sleep 300'}\n"
QUICK = "name: Quick\non: {command: quick}\ntasks:\n  - {name: only, run: 'true'}\n"
ON_PUSH = "name: Push\non: {pull_request: [opened, synchronize]}\ntasks:\n  - {name: only, run: 'git rev-parse HEAD'}\n"


async def _in_progress(world: Journey) -> CheckRun:
    found = await world.seen(lambda: next((r for r in world.github.check_runs(REPOSITORY) if r.status == "in_progress"), None))
    assert found is not None
    return found


async def _closed(world: Journey, check: CheckRun) -> CheckRun:
    await world.seen(lambda: check.status == "completed")
    return check


async def test_a_push_supersedes_the_older_commits_run_and_runs_the_new_one(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"long.yml": LONG, "push.yml": ON_PUSH}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        await world.closed_check(number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil long")
        old = await _in_progress(world)
        new_sha = await world.github.push(REPOSITORY, number, {"engine.py": "POWER = 3\n"})
        await _closed(world, old)
        assert old.conclusion == "cancelled"
        assert new_sha[:7] in f"{old.title}{old.summary}"

        def at_new_commit() -> set[str]:
            return {run.name for run in world.github.check_runs(REPOSITORY, new_sha)}

        await world.seen(lambda: at_new_commit() == {"gibil / long", "gibil / push"})
        world.github.close_pull_request(REPOSITORY, number)
        await world.seen(lambda: all(run.status == "completed" for run in world.github.check_runs(REPOSITORY)))
        await world.all_published()
        await world.assert_nothing_left()


async def test_an_unsupported_service_is_reported_on_the_pull_request(tmp_path: Path) -> None:
    files = {".gibil.yml": "services: {search: {image: 'elasticsearch:8', ports: [9200]}}\ntasks: [{name: t, run: 'true'}]\n"}
    workflow = "name: Push\non: {pull_request: opened}\ntasks: [{uses: .gibil.yml}]\n"
    async with journey(tmp_path, files, workflows={"push.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        answer = await world.answer(number, having="local machines run no containers")
        assert "Push can't run here: .gibil.yml" in answer.body
        assert ":1:12: the service 'search'" in answer.body
        assert world.github.check_runs(REPOSITORY) == []
        await world.assert_nothing_left()


async def test_a_repeated_command_supersedes_the_older_run(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"long.yml": LONG}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil long")
        old = await _in_progress(world)
        world.github.comment(REPOSITORY, number, "ada", "/gibil long")
        assert (await _closed(world, old)).conclusion == "cancelled"
        await world.seen(lambda: [r.status for r in world.github.check_runs(REPOSITORY)] == ["completed", "in_progress"])
        world.github.comment(REPOSITORY, number, "ada", "/gibil cancel")
        await world.seen(lambda: all(run.conclusion == "cancelled" for run in world.github.check_runs(REPOSITORY)))
        await world.all_published()
        await world.assert_nothing_left()


async def test_closing_the_pull_request_cancels_its_runs(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"long.yml": LONG}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil long")
        check = await _in_progress(world)
        world.github.close_pull_request(REPOSITORY, number)
        assert (await _closed(world, check)).conclusion == "cancelled"
        assert "closed" in f"{check.title}{check.summary}"
        await world.all_published()
        await world.assert_nothing_left()


async def test_re_run_repeats_the_run_with_the_permission_of_the_user_who_clicked(tmp_path: Path) -> None:
    async with journey(tmp_path, workflows={"quick.yml": QUICK}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        first = await world.closed_check(number)
        world.github.rerequest_check_run(first.id, "mallory")
        await world.answer(number, having="mallory")
        await world.all_published()
        assert len(world.github.check_runs(REPOSITORY)) == 1
        world.github.rerequest_check_run(first.id, "ada")
        second = await world.closed_check(number, count=2)
        assert second.conclusion == "success"
        assert second.external_id != first.external_id
        world.github.rerequest_suite(REPOSITORY, first.head_sha, "ada")
        await world.closed_check(number, count=3)
        await world.all_published()


async def test_retest_runs_only_failed_workflows_again(tmp_path: Path) -> None:
    red = "name: Red\non: {command: red}\ntasks:\n  - {name: only, run: 'exit 4'}\n"
    async with journey(tmp_path, workflows={"quick.yml": QUICK, "red.yml": red}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick\n/gibil red")
        await world.closed_check(number, count=2)
        await world.all_published()
        world.github.comment(REPOSITORY, number, "ada", "/gibil retest")
        await world.closed_check(number, count=3)
        await world.all_published()
        assert sorted(run.name for run in world.github.check_runs(REPOSITORY)) == [
            "gibil / quick",
            "gibil / red",
            "gibil / red",
        ]


async def test_a_waiting_run_shows_its_position_in_the_queue(tmp_path: Path) -> None:
    settings = {"GIBIL_MAX_MACHINES": "1"}
    async with journey(tmp_path, workflows={"long.yml": LONG, "quick.yml": QUICK}, settings=settings) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil long")
        await _in_progress(world)
        world.github.comment(REPOSITORY, number, "ada", "/gibil quick")
        waiting = await world.seen(lambda: next((r for r in world.github.check_runs(REPOSITORY) if r.status == "queued"), None))
        assert waiting is not None
        assert "1st" in f"{waiting.title}{waiting.summary}"
        world.github.comment(REPOSITORY, number, "ada", "/gibil cancel workflow=long")
        assert (await _closed(world, waiting)).conclusion == "success"
        await world.all_published()


async def test_a_hundred_concurrent_deliveries_are_all_accepted_and_never_exceed_the_limit(tmp_path: Path) -> None:
    settings = {"GIBIL_MAX_MACHINES": "3"}
    async with journey(tmp_path, workflows={"quick.yml": QUICK}, settings=settings) as world:
        numbers: dict[str, int] = {}
        for owner in ("alan", "barbara", "charles", "dorothy", "edsger", "frances", "grace", "hedy", "ida", "john"):
            name = f"{owner}/work"
            await world.github.add_repository(name, {"README.md": "some work\n"})
            numbers[name] = await world.github.open_pull_request(name, "b", {"f.txt": "x\n"}, owner)
        await world.github.webhooks_sent()
        for _ in range(10):
            for name, number in numbers.items():
                world.github.comment(name, number, name.partition("/")[0], "/gibil quick")
        await world.github.webhooks_sent()
        answers = [d.status_code for d in world.github.deliveries if b'"/gibil quick"' in d.body]
        assert answers == [202] * 100

        def closed() -> list[CheckRun]:
            runs = [run for name in numbers for run in world.github.check_runs(name)]
            return runs if len(runs) == 100 and all(run.status == "completed" for run in runs) else []

        runs = await world.seen(closed, 90.0)
        conclusions = [run.conclusion for run in runs]
        assert set(conclusions) <= {"success", "cancelled"}
        assert conclusions.count("success") >= len(numbers)
        assert _most_machines_at_once(world, runs) <= 3
        await world.all_published()
        await world.assert_nothing_left()


def _most_machines_at_once(world: Journey, runs: list[CheckRun]) -> int:
    """Return the maximum according to the journals, in which every created machine must also be destroyed."""
    moments: list[tuple[str, int]] = []
    for run in runs:
        begun = set()
        for event in world.bot.events(run.external_id):
            if event["phase"] == "forging":
                begun.add(event["machine"])
                moments.append((str(event["at"]), 1))
            elif event["phase"] == "burned" and event["machine"] in begun:  # a run cancelled before that has only a name
                moments.append((str(event["at"]), -1))
    at_once = most = 0
    for _, step in sorted(moments):
        at_once += step
        most = max(most, at_once)
    assert at_once == 0
    return most


async def test_cancelling_closes_the_check_run_before_the_task_has_ended(tmp_path: Path) -> None:
    stubborn = "trap '' TERM; echo begun; while :; do sleep 1; done"  # the task is killed after five seconds
    tasks = f'[{{name: stubborn, run: "{stubborn}"}}, {{name: after, if: always(), run: "sleep 1; echo after all"}}]'
    workflow = f"name: Long\non: {{command: long}}\ntasks: {tasks}\n"
    async with journey(tmp_path, workflows={"long.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil long")
        check = await _in_progress(world)
        await world.seen(lambda: "begun" in f"{check.summary}{check.text}")
        await world.github.webhooks_sent()
        begun = time.monotonic()
        world.github.comment(REPOSITORY, number, "ada", "/gibil cancel")
        await _closed(world, check)
        assert time.monotonic() - begun < 4.5
        assert check.conclusion == "cancelled"
        await world.all_published()
        assert check.conclusion == "cancelled"
        assert "| ✅ | `after` |" in (check.summary or "")
        await world.assert_nothing_left()
