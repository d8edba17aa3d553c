"""Changes of runs on forks, patches that people apply, and what was pushed on a machine: with a real bot and real machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.demo.records import CheckRun
from gibil_bot.limits import APPLY_PATCH
from tests.doubles.bot import REPOSITORY, Journey, journey
from tests.doubles.repositories import git

pytestmark = pytest.mark.usefixtures("local_machines")

FILES = {"engine.py": "POWER = 1\n"}
FORK = "ann/engine"
TIDY = """\
on: {command: tidy}
tasks:
  - {name: change, run: "sed -i 's/POWER = 2/POWER = 3/' engine.py && echo log >build.log"}
commit: {message: Tidy, paths: ["*.py"]}
"""
PUSH = """\
on: {command: tidy}
tasks:
  - name: push
    run: |
      git config user.name Agent && git config user.email agent@example.com
      git checkout -q -b fix
      for each in first second; do echo "# $each" >>engine.py; git commit -qam "Add $each"; done
      git push origin HEAD
      git checkout -q -
      echo other >engine.py
commit: Tidy
"""


def at_github(world: Journey, name: str, *arguments: str) -> str:
    """Return the output of git in a repository at GitHub."""
    return git(world.github._hub.git.path(name), *arguments)


def power(world: Journey, name: str, branch: str) -> str:
    return at_github(world, name, "show", f"refs/heads/{branch}:engine.py")


async def tidy(world: Journey, author: str) -> tuple[int, CheckRun]:
    """Run the workflow on a pull request from a fork; return its number and check run."""
    number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, author, fork=True)
    world.github.comment(REPOSITORY, number, "ada", "/gibil tidy")
    check = await world.closed_check()
    await world.assert_nothing_left()
    return number, check


async def test_commits_that_were_pushed_on_the_machine_return_as_they_are(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES, workflows={"tidy.yml": PUSH}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil tidy")
        check = await world.closed_check()
        assert check.conclusion == "success", check.summary
        assert "Pushed 2 commits with 1 changed file to `faster`" in f"{check.summary}"
        assert "its other changes were left out" in f"{check.summary}"
        assert power(world, REPOSITORY, "faster") == "POWER = 2\n# first\n# second"
        assert at_github(world, REPOSITORY, "log", "-2", "--format=%s", "refs/heads/faster") == "Add second\nAdd first"
        await world.assert_nothing_left()


@pytest.mark.parametrize("is_permitted", [True, False], ids=["may edit", "may not edit"])
async def test_a_trusted_fork_is_written_where_github_permits_it_else_a_new_branch(tmp_path: Path, is_permitted: bool) -> None:
    async with journey(tmp_path, FILES, workflows={"tidy.yml": TIDY}) as world:
        world.github.set_permission(REPOSITORY, "ann", "write")
        world.github.allow_apps_to_edit_forks(allowed=is_permitted)
        number, check = await tidy(world, "ann")
        assert check.conclusion == "success", check.summary
        if is_permitted:
            assert f"{check.summary}".count("Pushed 1 commit with 1 changed file to `faster`") == 1
            assert power(world, FORK, "faster") == "POWER = 3"
            return
        assert power(world, FORK, "faster") == "POWER = 2"
        branch = f"gibil/tidy-{number}-{check.head_sha[:7]}"
        assert f"Pushed 1 commit with 1 changed file to `{branch}`" in f"{check.summary}"
        assert f"The App may not write to {FORK}".lower() in f"{check.summary}".lower()
        assert "so the commits are on a new branch" in f"{check.summary}"
        assert power(world, REPOSITORY, branch) == "POWER = 3"
        assert at_github(world, REPOSITORY, "rev-parse", f"refs/heads/{branch}^") == check.head_sha
        (opened,) = [pull for pull in world.github.state.repository(REPOSITORY).pull_requests() if pull.number != number]
        assert (opened.title, opened.head_ref, opened.base_ref) == (f"Tidy (#{number})", branch, "main")
        assert f"merge it in place of #{number}" in opened.body


async def test_a_patch_of_untrusted_code_is_checked_again_and_applied_to_the_fork_only(tmp_path: Path) -> None:
    settings = {"GIBIL_LOCAL_UNTRUSTED": "allow"}
    async with journey(tmp_path, FILES, workflows={"tidy.yml": TIDY}, settings=settings) as world:
        _, check = await tidy(world, "mallory")
        assert (check.conclusion, [action["identifier"] for action in check.actions]) == ("success", [APPLY_PATCH])
        branches = at_github(world, REPOSITORY, "for-each-ref", "--format=%(refname)", "refs/heads")

        async def pressed(count: int) -> CheckRun:
            world.github.press_button(check.id, APPLY_PATCH, "ada")
            applied = await world.closed_check(count=count)
            await world.all_published()
            return applied

        # GitHub doesn't let the App write to the fork: the patch stays one.
        applied = await pressed(2)
        assert applied.conclusion == "action_required", applied.summary
        assert "The changes were **not pushed**" in f"{applied.summary}"
        assert "may not write to mallory/engine" in f"{applied.summary}"
        # The rules of the day count, not those of the day of the run.
        world.github.allow_apps_to_edit_forks()
        await world.bot.stop()
        world.bot.environment["GIBIL_PROTECTED_PATHS"] = "engine.py"
        await world.bot.start()
        applied = await pressed(3)
        assert applied.conclusion == "failure", applied.summary
        assert "engine.py is protected" in f"{applied.summary}"
        assert power(world, "mallory/engine", "faster") == "POWER = 2"
        await world.bot.stop()
        del world.bot.environment["GIBIL_PROTECTED_PATHS"]
        await world.bot.start()
        applied = await pressed(4)
        assert applied.conclusion == "success", applied.summary
        assert power(world, "mallory/engine", "faster") == "POWER = 3"
        assert at_github(world, REPOSITORY, "for-each-ref", "--format=%(refname)", "refs/heads") == branches
        assert (
            len(
                [
                    event
                    for run in world.github.check_runs(REPOSITORY)
                    for event in world.bot.events(run.external_id)
                    if event["phase"] == "forging"
                ]
            )
            == 1
        )


CONFLICT = """\
on: {command: tidy}
concurrency: {group: tidy, cancel-in-progress: false}
tasks:
  - name: change
    run: |
      sed -i 's/POWER = 2/POWER = 3/' engine.py
      until test "$(git ls-remote origin refs/heads/faster | cut -f 1)" != "$(git rev-parse HEAD)"; do sleep 0.2; done
commit: Tidy
"""


async def test_a_patch_that_conflicts_with_newer_commits_is_offered_as_a_branch(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES, workflows={"tidy.yml": CONFLICT}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        before = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil tidy")
        await world.seen(lambda: [run for run in world.github.check_runs(REPOSITORY) if run.status == "in_progress"])
        await world.github.push(REPOSITORY, number, {"engine.py": "POWER = 9\n"}, author="ada")
        check = await world.closed_check()
        assert check.conclusion == "action_required", check.summary
        assert "faster has other commits than when the run began" in f"{check.summary}"
        world.github.press_button(check.id, APPLY_PATCH, "ada")
        applied = await world.closed_check(count=2)
        branch = f"gibil/tidy-{number}-{before[:7]}"
        assert applied.conclusion == "success", applied.summary
        assert f"Pushed 1 commit with 1 changed file to `{branch}`" in f"{applied.summary}"
        assert (power(world, REPOSITORY, branch), power(world, REPOSITORY, "faster")) == ("POWER = 3", "POWER = 9")
        (opened,) = [pull for pull in world.github.state.repository(REPOSITORY).pull_requests() if pull.number != number]
        assert (opened.head_ref, opened.base_ref) == (branch, "faster")
        assert f"Merge it into the branch of #{number}" in opened.body
        await world.assert_nothing_left()
