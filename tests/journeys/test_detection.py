"""Projects without configuration, on local machines: detected tasks with their own results, and failed preparations."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.doubles import prefork
from tests.doubles.bot import REPOSITORY, journey
from tests.doubles.machines import lent_data_dir
from tests.doubles.patience import patient
from tests.doubles.repositories import repository
from tests.doubles.tools import needs

pytestmark = pytest.mark.usefixtures("local_machines")

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_"))}
PYTHON = {
    "tests/test_sums.py": "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): self.assertEqual(1 + 1, 2)\n"
}
NODE = {"package.json": '{"name": "x", "scripts": {"test": "node -p 6*7"}}\n'}
CI = "on: push\njobs:\n  test:\n    runs-on: ubuntu-latest\n    steps:\n      - run: npm ci\n      - run: npx vitest run\n"
UNPREPARABLE = {
    ".npmrc": "fetch-retries=0\n",  # npm would repeat a blocked request for more than a minute
    # The lock file doesn't have the dependency, which npm reports without any network.
    "package.json": '{"name": "x", "version": "1.0.0", "scripts": {"test": "x"}, "dependencies": {"left-pad": "1"}}\n',
    "package-lock.json": '{"name": "x", "version": "1.0.0", "lockfileVersion": 3, "packages": {"": {"name": "x"}}}\n',
    ".github/workflows/ci.yml": CI,
}


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    async with lent_data_dir(tmp_path):
        yield tmp_path


async def tried(folder: Path, files: dict[str, str], *arguments: str) -> tuple[dict[str, Any], str]:
    """Return the result and the terminal's text of `gibil try --json` on a project with these files."""
    checkout = repository(folder / "project", files)
    environment = {**ENVIRONMENT, "GIBIL_DATA_DIR": str(folder / "data")}
    command = ("try", str(checkout), "--json", *arguments)
    done = await asyncio.to_thread(prefork.run, command, env=environment, timeout=patient(120))
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    detected = result["detected"] or {}
    is_unprepared = result["preparation_failed"] or detected.get("problem") or result["tasks"][-1]["exit_status"] == 127
    failed = 7 if is_unprepared else 1
    assert done.returncode == (0 if result["conclusion"] in ("success", "neutral") else failed), done.stderr
    return result, done.stderr


def statuses(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(task["name"], task["kind"], task["status"]) for task in result["tasks"]]


async def test_a_python_project_is_prepared_and_tested(folder: Path) -> None:
    result, shown = await tried(folder, PYTHON)
    assert statuses(result) == [("runtime", "prepare", "success"), ("test", "run", "success")], shown
    assert "gibil: created a virtual environment of Python" in shown
    assert "→ python -m unittest discover -v -s tests" in shown
    assert not result["preparation_failed"]
    assert any("tests/test_sums.py" in line for line in result["detected"]["evidence"])


async def test_files_without_permissions_are_unreadable_for_detected_tests_as_for_an_ordinary_user(folder: Path) -> None:
    modes = (
        "import os, tempfile, unittest\nclass T(unittest.TestCase):\n    def test_it(self):\n"
        "        with tempfile.NamedTemporaryFile() as file:\n            os.chmod(file.name, 0)\n"
        "            with self.assertRaises(PermissionError): open(file.name)\n"
    )
    result, shown = await tried(folder, {"tests/test_modes.py": modes})
    assert statuses(result)[-1] == ("test", "run", "success"), shown


@needs("npm")
async def test_a_node_project_is_prepared_and_tested(folder: Path) -> None:
    result, shown = await tried(folder, NODE)
    assert statuses(result)[-1] == ("test", "run", "success"), shown
    assert [task["kind"] for task in result["tasks"][:-1]] == ["prepare"] * (len(result["tasks"]) - 1)
    assert "→ npm test" in shown
    assert "42" in shown


@needs("npm")
async def test_a_failed_preparation_is_reported_in_the_terminal_with_the_projects_ci(folder: Path) -> None:
    result, shown = await tried(folder, UNPREPARABLE)
    assert statuses(result)[-2:] == [("install", "prepare", "failure"), ("test", "run", "skipped")], shown
    assert result["preparation_failed"]
    assert {"command": "npx vitest run", "path": ".github/workflows/ci.yml", "line": 7} in result["detected"]["ci"]
    assert "npx vitest run" in result["detected"]["suggestion"]
    assert "the preparation failed (install); the tests didn't run" in shown
    assert "its CI runs npx vitest run (.github/workflows/ci.yml:7)" in shown
    assert "a .gibil.yml to start from:" in shown


async def test_a_project_without_linters_is_neutral(folder: Path) -> None:
    result, shown = await tried(folder, {"README.md": "Hello\n"}, "-w", "lint")
    assert result["conclusion"] == "neutral", shown
    assert statuses(result) == [("lint", "run", "skipped")]


@needs("npm")
async def test_a_failed_preparation_is_reported_in_the_pull_request(tmp_path: Path) -> None:
    async with journey(tmp_path, UNPREPARABLE) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.js": "1\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        check = await world.closed_check(number)
        await world.all_published()
        assert check.conclusion == "failure"
        assert check.title is not None
        assert check.title.startswith("The preparation failed (install)")
        assert check.title.endswith("; the tests didn't run")
        (answer,) = [comment.body for comment in world.github.comments(REPOSITORY, number) if comment.by_app]
        for text in (check.summary or "", answer):
            assert "The **preparation** failed" in text
            assert "`npx vitest run` (`.github/workflows/ci.yml:7`)" in text
            assert "<details><summary>A <code>.gibil.yml</code> to start from" in text
            assert "the preparation failed" in text
        async with httpx.AsyncClient() as client:
            headers = {"Accept": "application/json"}
            run = (await client.get(f"{world.bot.url}/runs/{check.external_id}", headers=headers)).json()
        assert run["preparation_failed"]
        assert statuses(run)[-2:] == [("install", "prepare", "failure"), ("test", "run", "skipped")]
        assert "vitest" not in json.dumps(run), "only readers of the check run may see the project's files"
        await world.assert_nothing_left()


async def test_a_killed_bot_continues_with_the_tasks_that_it_detected(tmp_path: Path) -> None:
    slow = "import time, unittest\nclass T(unittest.TestCase):\n    def test_it(self): time.sleep(2)\n"
    async with journey(tmp_path, {"tests/test_slow.py": slow}) as world:
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "1\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        await world.seen(lambda: world.github.check_runs(REPOSITORY))
        (run,) = world.github.check_runs(REPOSITORY)
        async with asyncio.timeout(patient(30)):
            while not any(event.get("name") == "test" for event in world.bot.events(run.external_id)):
                await asyncio.sleep(0.05)  # another process's file: there is no event to wait for
        await world.bot.kill()
        await world.bot.start()
        check = await world.closed_check(number)
        assert check.conclusion == "success", check.summary
        assert check.title is not None
        assert check.title.startswith("2 tasks passed")
        phases = [event["phase"] for event in world.bot.events(check.external_id)]
        assert phases.count("detected") == 1
        assert phases.count("claimed") == 2
        await world.assert_nothing_left()
