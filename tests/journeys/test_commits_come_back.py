"""What a workflow changed returns to the pull request, with a real bot and a real machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doubles.bot import REPOSITORY, journey

pytestmark = pytest.mark.usefixtures("local_machines")

FILES = {"engine.py": "POWER = 1\n", "README.md": "an engine\n"}
TIDY = """\
on: {command: tidy}
tasks:
  - {name: change, run: "sed -i 's/POWER = 2/POWER = 3/' engine.py && echo log >build.log && chmod +x README.md"}
commit: {message: "Tidy ${{ github.head_ref }}", paths: ["*.py", "*.md"]}
"""


async def test_the_changes_of_a_run_return_as_one_verified_commit(tmp_path: Path) -> None:
    async with journey(tmp_path, FILES, workflows={"tidy.yml": TIDY}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        before = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil tidy")
        check = await world.seen(
            lambda: next((run for run in world.github.check_runs(REPOSITORY) if run.status == "completed"), None)
        )
        assert check is not None
        await world.all_published()
        assert check.conclusion == "success", check.summary
        after = world.github.head_sha(REPOSITORY, number)
        assert after != before
        assert "Pushed 1 commit with 2 changed files to `faster`" in f"{check.summary}"
        assert "build.log" in f"{check.summary}"
        await world.assert_nothing_left()
        # Its own push started nothing.
        assert len(world.github.check_runs(REPOSITORY)) == 1


@pytest.mark.parametrize(
    ("change", "conclusion", "shown"),
    [
        ("mkdir -p .github/workflows && echo 'on: push' >.github/workflows/x.yml", "failure", ".github/workflows/x.yml"),
        ("true", "success", "The tasks changed nothing, so there is no commit."),
    ],
    ids=["protected", "unchanged"],
)
async def test_changes_that_may_not_leave_and_no_changes_are_reported(
    tmp_path: Path, change: str, conclusion: str, shown: str
) -> None:
    workflow = f'on: {{command: tidy}}\ntasks: [{{run: "{change}"}}]\ncommit: Tidy\n'
    async with journey(tmp_path, FILES, workflows={"tidy.yml": workflow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        before = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil tidy")
        check = await world.closed_check()
        assert check.conclusion == conclusion, check.summary
        assert shown in f"{check.summary}"
        assert world.github.head_sha(REPOSITORY, number) == before
        await world.assert_nothing_left()


async def test_a_run_of_untrusted_code_leaves_a_patch_only(tmp_path: Path) -> None:
    settings = {"GIBIL_LOCAL_UNTRUSTED": "allow"}
    async with journey(tmp_path, FILES, workflows={"tidy.yml": TIDY}, settings=settings) as world:
        number = await world.github.open_pull_request(REPOSITORY, "x", {"engine.py": "POWER = 2\n"}, "mallory", fork=True)
        before = world.github.head_sha(REPOSITORY, number)
        world.github.comment(REPOSITORY, number, "ada", "/gibil tidy")
        check = await world.closed_check()
        assert check.conclusion == "success", check.summary
        assert "The result is a patch" in f"{check.summary}"
        assert "+POWER = 3" in f"{check.text}"
        assert world.github.head_sha(REPOSITORY, number) == before
        await world.assert_nothing_left()
