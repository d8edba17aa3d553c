"""Replaces a plan's task that detects by the tasks that detection found in the project's files. Pure.

A repository that anyone may have written chooses the texts, so their number and length are limited: the plan is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

from msgspec.structs import replace

from gibil_bot.detection.detect import detect
from gibil_bot.detection.detected import Detection
from gibil_bot.detection.project import Project
from gibil_bot.detection.suggestion import from_quotes
from gibil_bot.limits import REPOSITORY_FILE
from gibil_bot.model import DetectedProject, Plan, Quote, TaskPlan
from gibil_bot.planning.plan import check_files
from gibil_bot.runs.sources import SourceError

MOST_TASKS = 10
SCRIPT_BYTES = 512 * 1024
_LINES, _LINE = 60, 500
_QUOTES, _COMMAND = 10, 1000
_SUGGESTION = 16 * 1024
_KEY_FILES = 400

Purpose = Literal["test", "lint", "format"]


def purpose_of(plan: Plan) -> Purpose | None:
    """Return what is to be detected for this plan; None if its tasks are known."""
    return next((cast(Purpose, task.detect) for task in plan.tasks if task.detect), None)


def detect_tasks(plan: Plan, project: Project) -> Plan:
    """Return the plan with the tasks that are detected in the project's files. Raises SourceError if they are too large."""
    purpose = purpose_of(plan)
    assert purpose is not None
    return expand(
        plan, detect(project, purpose), suggestion=lambda found: from_quotes(project, found.quotes) if purpose == "test" else ""
    )


def expand(plan: Plan, detection: Detection, suggestion: Callable[[Detection], str] = lambda _: "") -> Plan:
    """Return the plan with the detected tasks in place of the one that detects. Raises SourceError if they are too large.

    People see the suggested `.gibil.yml` if what was detected doesn't work, so one from the project's CI is preferred.
    """
    purpose = purpose_of(plan)
    assert purpose is not None
    scripts = [task.run for task in detection.tasks]
    if len(scripts) > MOST_TASKS or sum(len(run.encode("utf-8", "replace")) for run in scripts) > SCRIPT_BYTES:
        raise SourceError(f"The project's files name more commands than can be run; write a .gibil.yml to {purpose} it.")
    tasks: list[TaskPlan] = []
    for task in plan.tasks:
        tasks += _detected(plan, task, detection) if task.detect == purpose else [task]
    offered = next((text for text in (suggestion(detection), detection.suggestion) if _is_usable(text)), "")
    checkout = plan.checkout
    if detection.submodules and checkout.submodules is None:
        checkout = replace(checkout, submodules=detection.submodules)
    return replace(plan, tasks=tuple(tasks), checkout=checkout, detected=_project(purpose, detection, offered))


def _detected(plan: Plan, outer: TaskPlan, detection: Detection) -> list[TaskPlan]:
    """Return the tasks with the settings of the one that they replace. What people wrote overrides what was detected."""
    return [
        replace(
            outer,
            name=found.name,
            run=found.run.replace("\0", ""),
            kind=found.kind,
            shell=found.shell,
            env={name: value for name, value in found.env.items() if name not in plan.env} | dict(outer.env),
            detect="",
        )
        for found in detection.tasks
    ]


def _is_usable(suggestion: str) -> bool:
    """Return whether a suggested `.gibil.yml` is one, and short enough to be shown."""
    return 0 < len(suggestion) <= _SUGGESTION and not check_files({REPOSITORY_FILE: suggestion.encode("utf-8", "replace")})


def _project(purpose: Purpose, detection: Detection, suggestion: str) -> DetectedProject:
    return DetectedProject(
        purpose=purpose,
        evidence=_cut_each(detection.evidence, _LINES, _LINE),
        quotes=tuple(
            Quote(command=quote.command[:_COMMAND], path=quote.path[:_LINE], line=quote.line)
            for quote in detection.quotes[:_QUOTES]
        ),
        suggestion=suggestion,
        key_files=_cut_each(detection.key_files, _KEY_FILES, 4096),
        caches=_cut_each(detection.caches, _LINES, _LINE),
        problem=None if detection.problem is None else detection.problem[: 2 * _LINE],
    )


def _cut_each(texts: Sequence[str], most: int, longest: int) -> tuple[str, ...]:
    return tuple(text[:longest] for text in texts[:most])
