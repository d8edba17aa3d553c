"""Runs the tasks of a plan on this computer, in sequence, as a machine would: the same shells, files and variables.

Tasks that are detected on the machine are detected in the folder of the project.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.detection.detect import wanted
from gibil_bot.detection.project import Project
from gibil_bot.detection.python import VENV
from gibil_bot.model import Plan
from gibil_bot.planning import expressions
from gibil_bot.runs.detected_tasks import detect_tasks, purpose_of
from gibil_bot.scripts.task_script import input_variable, parse_env_file, parse_path_file, task_files
from tests.doubles.patience import patient

SHELLS = {
    "bash": ["bash", "--noprofile", "--norc", "-eo", "pipefail", "{0}"],
    "sh": ["sh", "-e", "{0}"],
    "python": ["python3", "{0}"],
}


@dataclass(frozen=True)
class Done:
    name: str
    exit_status: int | None
    """None: skipped."""
    output: str
    nothing_to_do: str = ""
    """The reason that the task gave."""


def run_plan(plan: Plan, project: Path, scratch: Path, *, environ: Mapping[str, str] | None = None) -> list[Done]:
    """Run every task in `project`; `environ` (PATH and HOME by default) is the base of its variables."""
    plan = with_detected_tasks(plan, project)
    base = dict(environ or {"PATH": os.environ["PATH"], "HOME": str(scratch), "LC_ALL": "C.UTF-8"})
    base |= {"PIP_NO_INDEX": "1", "CI": "true"} | dict(plan.env) | {input_variable(k): v for k, v in plan.inputs.items()}
    status, done = "success", []
    for index, task in enumerate(plan.tasks):
        files = task_files(index, str(scratch / "files"))
        Path(files.folder).mkdir(parents=True, exist_ok=True)
        if not expressions.evaluate(task.condition, status=status, inputs=plan.inputs, github=plan.github):
            done.append(Done(task.name, None, ""))
            continue
        script = Path(files.folder, "script")
        script.write_text(task.run.replace(VENV, str(scratch / "venv")))
        command = [part.replace("{0}", str(script)) for part in SHELLS.get(task.shell) or task.shell.split()]
        environment = base | dict(task.env) | {
            "RUNNER_TEMP": files.temp,
            "GITHUB_ENV": files.env,
            "GITHUB_PATH": files.path,
            "GITHUB_STEP_SUMMARY": files.summary,
            "GIBIL_NEUTRAL": files.neutral,
        }  # fmt: skip
        ended = subprocess.run(
            command,
            cwd=project / (task.working_directory or "."),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patient(120),
        )
        neutral = Path(files.neutral)
        done.append(Done(task.name, ended.returncode, ended.stdout, neutral.read_text() if neutral.exists() else ""))
        if ended.returncode != 0 and not task.continue_on_error:
            status = "failure"
        if Path(files.env).exists():
            base |= parse_env_file(Path(files.env).read_bytes())
        if Path(files.path).exists():
            base["PATH"] = ":".join([*reversed(parse_path_file(Path(files.path).read_bytes())), base["PATH"]])
    return done


def with_detected_tasks(plan: Plan, project: Path) -> Plan:
    """Return the plan as the runner would change it after reading the project."""
    if purpose_of(plan) is None:
        return plan
    paths = frozenset(str(path.relative_to(project)) for path in project.rglob("*") if not path.is_dir())
    files = {path: (project / path).read_bytes() for path in wanted(paths)}
    return detect_tasks(plan, Project(paths, files))
