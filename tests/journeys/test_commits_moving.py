"""Commits of runs on branches that move meanwhile: nothing is overwritten, nothing is lost, nothing arrives twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.demo.records import CheckRun
from tests.doubles.bot import REPOSITORY, Journey, journey

pytestmark = pytest.mark.usefixtures("local_machines")

FILES = {"engine.py": "POWER = 1\n", "wheel.py": "TEETH = 1\n", "README.md": "an engine\n"}


KEEP = "concurrency: {group: '${{ github.workflow }}-${{ github.number }}', cancel-in-progress: false}\n"
"""By default a push supersedes the run."""


def changing(word: str, path: str, text: str, more: str = "", keep: bool = True) -> str:
    commit = f"{{message: 'Change by {word}'{more}}}"
    return f"on: {{command: {word}}}\ntasks: [{{run: \"echo '{text}' >{path}\"}}]\ncommit: {commit}\n{KEEP if keep else ''}"


WORKFLOWS = {
    "tidy.yml": changing("tidy", "engine.py", "POWER = 3"),
    "turn.yml": changing("turn", "wheel.py", "TEETH = 3", keep=False),
    "clash.yml": changing("clash", "engine.py", "POWER = 4"),
    "still.yml": changing("still", "engine.py", "POWER = 5", ", on-conflict: fail"),
}


async def git(world: Journey, *arguments: str) -> str:
    return (await world.github._hub.git.git(*arguments, repository=REPOSITORY)).decode()


async def show(world: Journey, ref: str, path: str) -> str:
    return await git(world, "show", f"{ref}:{path}")


async def log(world: Journey, since: str, until: str) -> list[tuple[str, bool]]:
    """Return (subject, whether it is Verified) of the commits, oldest first."""
    lines = await git(world, "log", "--reverse", "--format=%H %s", f"{since}..{until}")
    signed = world.github.state.repository(REPOSITORY).signed
    return [(line.partition(" ")[2], line.partition(" ")[0] in signed) for line in lines.splitlines()]


async def closed(world: Journey, *workflows: str) -> list[CheckRun]:
    """Return the check runs of these workflows once they are completed, in this order."""
    names = [f"gibil / {workflow}" for workflow in workflows]

    def done() -> list[CheckRun]:
        runs = {run.name: run for run in world.github.check_runs(REPOSITORY) if run.status == "completed"}
        return [runs[name] for name in names if name in runs] if set(names) <= set(runs) else []

    return await world.seen(done, 60.0)


async def test_a_head_that_moves_between_check_and_push_keeps_its_newer_commit(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES, workflows=WORKFLOWS) as world:
        github = world.github
        numbers = {
            word: await github.open_pull_request(REPOSITORY, word, {"engine.py": "POWER = 2\n"}, "ada")
            for word in ("tidy", "turn", "clash", "still")
        }
        github.fault("POST", "/git/commits$", "hang_after", times=len(numbers))
        for word, number in numbers.items():
            github.comment(REPOSITORY, number, "ada", f"/gibil {word}")
        signed = github.state.repository(REPOSITORY).signed
        await world.seen(lambda: len(signed) == len(numbers))
        newer = {
            "tidy": {"wheel.py": "TEETH = 2\n"},
            "turn": {"engine.py": "POWER = 9\n"},
            "clash": {"engine.py": "POWER = 9\n"},
            "still": {"wheel.py": "TEETH = 2\n"},
        }
        before = {word: github.head_sha(REPOSITORY, number) for word, number in numbers.items()}
        pushed = {word: await github.push(REPOSITORY, number, newer[word], author="ada") for word, number in numbers.items()}
        github.clear_faults()
        tidy, clash, still = await closed(world, "tidy", "clash", "still")
        await world.seen(lambda: sum(run.conclusion == "success" for run in github.check_runs(REPOSITORY)) == 2)
        await world.all_published()

        assert tidy.conclusion == "success", tidy.summary
        assert await log(world, before["tidy"], "refs/heads/tidy") == [("A push", False), ("Change by tidy", True)]
        assert await show(world, "refs/heads/tidy", "engine.py") == "POWER = 3\n"
        assert await show(world, "refs/heads/tidy", "wheel.py") == "TEETH = 2\n"

        # The push superseded this run, whose successor works on the newer commit.
        cancelled, again = (run for run in github.check_runs(REPOSITORY) if run.name == "gibil / turn")
        assert (cancelled.conclusion, again.conclusion) == ("cancelled", "success"), f"{cancelled.summary}\n{again.summary}"
        assert await log(world, before["turn"], "refs/heads/turn") == [("A push", False), ("Change by turn", True)]

        for check, word in ((clash, "clash"), (still, "still")):
            assert check.conclusion == "action_required", check.summary
            assert f"{word} has other commits than when the run began" in f"{check.summary}"
            assert "git am FILE" in f"{check.text}"
            assert github.head_sha(REPOSITORY, numbers[word]) == pushed[word]
        assert "don't apply" in f"{clash.summary}"
        assert "don't apply" not in f"{still.summary}"
        await world.assert_nothing_left()


async def test_runs_that_push_at_once_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES, workflows=WORKFLOWS) as world:
        github = world.github
        number = await github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        before = github.head_sha(REPOSITORY, number)
        github.comment(REPOSITORY, number, "ada", "/gibil tidy\n/gibil turn\n/gibil clash")
        tidy, turn, clash = await closed(world, "tidy", "turn", "clash")
        await world.all_published()
        assert turn.conclusion == "success", turn.summary
        # Two of them change the same line.
        assert {tidy.conclusion, clash.conclusion} == {"success", "action_required"}, f"{tidy.summary}\n{clash.summary}"
        winner, loser = ("tidy", clash) if tidy.conclusion == "success" else ("clash", tidy)
        arrived = await log(world, before, "refs/heads/topic")
        assert sorted(arrived) == sorted([(f"Change by {winner}", True), ("Change by turn", True)])
        assert await show(world, "refs/heads/topic", "wheel.py") == "TEETH = 3\n"
        assert await show(world, "refs/heads/topic", "engine.py") == f"POWER = {3 if winner == 'tidy' else 4}\n"
        assert "git am FILE" in f"{loser.text}"
        assert len(github.check_runs(REPOSITORY)) == 3
        await world.assert_nothing_left()


LOOP = {
    "auto.yml": "on: pull_request\ntasks: [{run: date +%N >>engine.py}]\ncommit: Automatic\n",
    "again.yml": "on: {own-push: {max-attempts: 2}}\ntasks: [{run: date +%N >>engine.py}]\ncommit: Again\n",
}


async def test_a_loop_of_workflows_that_answer_their_own_commits_is_stopped_and_reported(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES, workflows=LOOP) as world:
        github = world.github
        number = await github.open_pull_request(REPOSITORY, "topic", {"engine.py": "POWER = 2\n"}, "ada")
        before = github.head_sha(REPOSITORY, number)
        notice = await world.answer(number, having="wasn't started", timeout_s=60.0)
        await world.all_published()
        assert "commits of Apps have started it 2 times on this pull request within an hour" in notice.body
        assert await log(world, before, "refs/heads/topic") == [("Automatic", True), ("Again", True), ("Again", True)]
        names = [run.name for run in github.check_runs(REPOSITORY)]
        assert names == ["gibil / auto", "gibil / again", "gibil / again"]
        assert {run.conclusion for run in github.check_runs(REPOSITORY)} == {"success"}
        await world.assert_nothing_left()
