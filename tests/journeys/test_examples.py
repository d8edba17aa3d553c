"""The examples in workflows/examples do what their comments say."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from gibil_bot.planning.plan import catalogue, check_files, for_workflow
from gibil_bot.workflows_dir import read_workflows, shipped_workflows
from tests.doubles.facts import facts
from tests.doubles.machines import lent_data_dir
from tests.doubles.patience import patient
from tests.doubles.repositories import repository
from tests.doubles.taskshell import run_plan

SDK = Path(__file__).parents[2] / "gibil_bot" / "sdk" / "site"
EXAMPLES = Path(__file__).parents[2] / "workflows" / "examples"
WORKFLOWS = sorted(path.name for path in EXAMPLES.glob("*.yml"))
PROGRAMS = {
    "one_command.py": r"0 hello from \S+\n",
    "one_command_async.py": r"0 hello from \S+\n",
    "fleet.py": r"\[0, 1, 4\]\n\[0, 0, 0\]\n",
    "stream.py": r"1\n2\n3\nexit code 4\nCOMMAND_FAILED 2\ntimed out: True\n",
    "files.py": r"\['1', '2', '3'\]\n1 file uploaded\n\['numbers.txt', 'sum.txt'\]\nsum: 6\n",
    "jobs.py": r"begins\nends\nexit code 3\n\['exited'\]\n",
    "fork.py": r"attempt-1 first\nattempt-2 second\nprepared once\n",
    "push.py": r"gibil/greeter: Add a greeting: greeting.txt\n",
}
PREPARED_BY_THE_MACHINE = ("set up", "services")

Status = int | None  # None: skipped


def run_example(name: str, folder: Path, **inputs: str) -> dict[str, Status]:
    """Return the exit status of each task, run on this computer."""
    content = (EXAMPLES / name).read_bytes()
    if name.endswith(".gibil.yml"):
        known = catalogue(read_workflows(shipped_workflows()), {".gibil.yml": content}, base_ref="main")
        plan = for_workflow(known, "test", inputs, facts())
    else:
        known = catalogue({}, {f".gibil/workflows/{name}": content}, base_ref="main")
        plan = for_workflow(known, name.removesuffix(".yml"), inputs, facts())
    plan = msgspec.structs.replace(plan, tasks=[task for task in plan.tasks if task.name not in PREPARED_BY_THE_MACHINE])
    project = folder / "project"
    project.mkdir(exist_ok=True)
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    done = run_plan(plan, project, folder, environ={"PATH": path, "HOME": str(folder)})
    return {task.name: task.exit_status for task in done}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_example_is_a_valid_file(name: str) -> None:
    kind = ".gibil.yml" if name.endswith(".gibil.yml") else name
    assert check_files({kind: (EXAMPLES / name).read_bytes()}) == ()


def test_the_page_lists_every_example() -> None:
    page = (EXAMPLES / "README.md").read_text()
    programs = [f"sdk/{path.name}" for path in (EXAMPLES / "sdk").glob("*.py")]
    assert sorted(re.findall(r"^\| \[(.+?)\]", page, re.MULTILINE)) == sorted([*WORKFLOWS, *programs])
    assert {Path(name).name for name in programs} == set(PROGRAMS)


def test_a_missing_version_does_not_stop_the_other_ones(tmp_path: Path) -> None:
    assert run_example("matrix-of-versions.yml", tmp_path) == {"python3": 0, "python3.99": 127, "at least one passed": 0}


def test_a_preview_is_published_only_for_staging(tmp_path: Path) -> None:
    assert run_example("preview.yml", tmp_path) == {"build": 0, "publish": None}
    assert run_example("preview.yml", tmp_path, target="staging", label="new") == {"build": 0, "publish": 0}
    assert (tmp_path / "project" / "site" / "index.html").read_text() == "<h1>new</h1>\n"


def test_scripts_are_checked_only_if_some_exist(tmp_path: Path) -> None:
    assert run_example("changed-files.yml", tmp_path) == {"bash -n": 0}
    (tmp_path / "project" / "broken.sh").write_text("if true; then\n")
    assert run_example("changed-files.yml", tmp_path) == {"bash -n": 2}


def test_a_report_passes_values_on_and_cleans_up(tmp_path: Path) -> None:
    assert run_example("report.yml", tmp_path) == {"measure": 0, "summary": 0, "clean up": 0}


def test_the_project_file_runs_its_tasks(tmp_path: Path) -> None:
    assert run_example("service.gibil.yml", tmp_path) == {"check the settings": 0, "test": 0}


def run_program(name: str, environment: dict[str, str], repository: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EXAMPLES / "sdk" / name, *([str(repository)] if name == "push.py" else [])],
        env=environment,
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


@pytest.mark.usefixtures("local_machines")
async def test_the_programs_print_the_output_of_machines(tmp_path: Path) -> None:
    async with lent_data_dir(tmp_path) as data_dir:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("GIBIL_", "HCLOUD_"))}
        environment |= {"GIBIL_DATA_DIR": str(data_dir), "PYTHONPATH": str(SDK)}
        engine = repository(tmp_path / "engine", {"README.md": "an engine"})
        run = functools.partial(run_program, environment=environment, repository=engine)
        done = await asyncio.gather(*(asyncio.to_thread(run, program) for program in PROGRAMS))
        for program, ended in zip(PROGRAMS, done, strict=True):
            assert re.fullmatch(PROGRAMS[program], ended.stdout), (program, ended.stdout, ended.stderr)
            assert ended.stderr == ""
