"""Submodules that nothing but the project's CI names."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest
from msgspec.structs import replace

from gibil_bot.model import Run, TaskPlan, TaskStatus
from gibil_bot.ports import Shell
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.runner import Runner
from gibil_bot.runs.sources import LocalBundle, SourceError
from tests.doubles.repositories import git
from tests.doubles.workshop import workshop

pytestmark = pytest.mark.usefixtures("local_machines")

FILES = {
    ".gitmodules": '[submodule "lib"]\n\tpath = lib\n\turl = https://github.com/octocat/lib.git\n',
    ".github/workflows/test.yml": (
        "jobs:\n  test:\n    steps:\n      - {uses: actions/checkout@v4, with: {submodules: true}}\n      - run: make test\n"
    ),
    "Makefile": "test: ; @echo tested\n",
}


class Unreachable(LocalBundle):
    """Sends the commit, and can't fetch any submodule."""

    async def copy_rest(self, shell: Shell, run: Run) -> tuple[str, ...]:
        assert run.plan.checkout.has_submodules
        raise SourceError("lib can't be fetched: github.com doesn't answer.")


async def test_a_run_goes_on_without_submodules_that_cannot_be_fetched(tmp_path: Path) -> None:
    async with workshop(tmp_path) as place:
        await asyncio.to_thread(place.commit, FILES)
        await asyncio.to_thread(git, place.repository, "update-index", "--add", "--cacheinfo", f"160000,{place.head},lib")
        await asyncio.to_thread(git, place.repository, "commit", "-q", "-m", "lib")
        new = place.new()
        new = replace(new, plan=replace(new.plan, tasks=(TaskPlan(name="test", run="", detect="test"),), detected=None))
        runs = MemoryRuns()
        runs.queue(new)
        claim = await runs.claim("process", lease_s=0.0, max_machines=10)
        assert claim is not None
        transfer = Unreachable(place.repository / ".git", new.source.sha)
        await Runner(dataclasses.replace(place.tools, runs=runs, transfer=transfer), claim).run()
        run = await runs.get(new.id)
        assert run is not None
        results = await runs.task_results(new.id, run.machine_attempt)
        assert results[-1].name == "test"
        assert results[-1].status in (TaskStatus.SUCCESS, TaskStatus.FAILURE), "it ran; some computers have no make"
        assert run.note is not None
        assert run.plan.detected is not None
        assert run.plan.detected.missing == "submodules"
        assert "The submodules that the project's CI checks out are missing here. lib can't be fetched:" in run.note
