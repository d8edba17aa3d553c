"""From detection to a plan: the tasks that replace the one that detects, and limits on what a repository puts into it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gibil_bot.detection.detect import detect
from gibil_bot.detection.detected import DetectedTask, Detection, Quote
from gibil_bot.detection.project import Project
from gibil_bot.model import Checkout, Plan, TaskPlan, TaskResult, TaskStatus
from gibil_bot.runs.detected_tasks import MOST_TASKS, expand, purpose_of
from gibil_bot.runs.execution import conclusion_of
from gibil_bot.runs.sources import SourceError
from gibil_bot.views import failed_preparation, not_run


def plan(*tasks: TaskPlan, **rest: Any) -> Plan:
    return Plan(**{"workflow": "test", "title": "Test", "path": "workflows/test.yml", "tasks": tasks} | rest)


def detection(*tasks: DetectedTask, **rest: Any) -> Detection:
    values: dict[str, Any] = {
        "facts": (), "runtime": {}, "packages": (), "tasks": tasks, "evidence": (), "quotes": (), "suggestion": "",
        "key_files": (), "caches": (),
    }  # fmt: skip
    return Detection(**values | rest)


INSTALL = DetectedTask(name="install", run="npm ci", kind="prepare", env={"A": "detected", "B": "detected"})
TEST = DetectedTask(name="test", run="npm test", kind="run", shell="sh")
DETECT = TaskPlan(name="tests", run="", detect="test", condition="always()", env={"A": "task"}, timeout_s=60, tty=True)


def test_the_detected_tasks_replace_the_task_with_its_settings() -> None:
    before, after = TaskPlan(name="before", run="x"), TaskPlan(name="after", run="y")
    found = expand(plan(before, DETECT, after, env={"B": "plan"}), detection(INSTALL, TEST))
    assert [task.name for task in found.tasks] == ["before", "install", "test", "after"]
    _, install, test, _ = found.tasks
    assert (install.run, install.kind, install.env) == ("npm ci", "prepare", {"A": "task"})
    assert (test.run, test.kind, test.shell, test.env) == ("npm test", "run", "sh", {"A": "task"})
    for task in (install, test):
        assert (task.condition, task.timeout_s, task.tty, task.detect) == ("always()", 60, True, "")
    assert purpose_of(found) is None
    assert msgspec.json.decode(msgspec.json.encode(found), type=Plan) == found


def test_detected_submodules_are_fetched_unless_the_checkout_was_written_otherwise() -> None:
    found = detection(TEST, submodules="recursive")
    assert expand(plan(DETECT), found).checkout == Checkout(submodules="recursive")
    for written in ("false", "true"):
        assert expand(plan(DETECT, checkout=Checkout(submodules=written)), found).checkout.submodules == written


def test_a_plan_without_detection_has_no_purpose() -> None:
    assert purpose_of(plan(TaskPlan(name="x", run="x"))) is None
    assert purpose_of(plan(DETECT)) == "test"


def test_a_repository_cannot_make_the_plan_large() -> None:
    long = "x" * 5000
    found = expand(
        plan(DETECT),
        detection(
            TEST,
            evidence=(long,) * 1000,
            quotes=tuple(Quote(command=long, path=long, line=1) for _ in range(1000)),
            suggestion=long * 100,
            key_files=(long,) * 1000,
            caches=(long,) * 1000,
            problem=long,
        ),
    )
    assert len(msgspec.json.encode(found)) < 2 * 1024 * 1024
    with pytest.raises(SourceError, match=r"write a \.gibil\.yml to test it"):
        expand(plan(DETECT), detection(*[TEST] * (MOST_TASKS + 1)))
    with pytest.raises(SourceError, match=r"write a \.gibil\.yml to test it"):
        expand(plan(DETECT), detection(DetectedTask(name="test", run="x" * 1024 * 1024, kind="run")))


def test_the_suggestion_is_made_from_the_projects_ci_and_is_a_valid_file() -> None:
    own, ci = "tasks:\n  - run: own\n", "tasks:\n  - run: ci\n"

    def offered(from_facts: str, from_ci: str) -> str:
        found = expand(plan(DETECT), detection(TEST, suggestion=from_facts), suggestion=lambda _: from_ci)
        assert found.detected is not None
        return found.detected.suggestion

    assert offered(own, ci) == ci
    assert offered(own, "") == own
    assert offered(own, "tasks: [{run: }]") == own
    assert offered("tasks: \t", "x" * 100_000) == ""


def test_a_script_contains_no_nul() -> None:
    found = expand(plan(DETECT), detection(DetectedTask(name="test", run="a\0b", kind="run")))
    assert found.tasks[0].run == "ab"


def test_an_empty_project_still_has_a_task_that_explains_it() -> None:
    for purpose in ("test", "lint"):
        project = Project(frozenset({"README.md"}), {"README.md": b"Hello"})
        outer = replace(DETECT, detect=purpose)
        found = expand(plan(outer), detect(project, purpose))
        assert found.tasks[-1].name == purpose
        assert found.detected is not None
        assert (found.detected.purpose, bool(found.detected.problem)) == (purpose, True)


# --- failed and neutral runs ---------------------------------------------------------------------------------------

PREPARED = plan(
    TaskPlan(name="runtime", run="x", kind="prepare"),
    TaskPlan(name="install", run="x", kind="prepare"),
    TaskPlan(name="test", run="x"),
)


def results(*statuses: TaskStatus, exit_status: int | None = 0) -> dict[int, TaskResult]:
    return {
        index: TaskResult(index=index, machine_attempt=1, name="t", status=status, exit_status=exit_status)
        for index, status in enumerate(statuses)
    }


S, F, X = TaskStatus.SUCCESS, TaskStatus.FAILURE, TaskStatus.SKIPPED


def test_only_a_first_failure_of_a_preparing_task_is_a_failed_preparation() -> None:
    for found, name, missing in (
        (results(S, F, X), "install", "the other tasks"),
        (results(F, X, X), "runtime", "the other tasks"),
        (results(S, S, F), None, ""),
        (results(S, S, S), None, "the other tasks"),
        (results(S, F, F), "install", ""),
    ):
        failed = failed_preparation(PREPARED, found.values())
        assert (None if failed is None else PREPARED.tasks[failed.index].name) == name
        if name is not None:
            assert not_run(PREPARED, found.values()) == missing
    tolerant = replace(PREPARED, tasks=tuple(replace(task, continue_on_error=True) for task in PREPARED.tasks))
    assert failed_preparation(tolerant, results(S, F, S).values()) is None


def test_a_run_that_was_only_prepared_and_has_nothing_to_do_is_neutral() -> None:
    assert conclusion_of(PREPARED, results(S, S, X), cancelled=False) == "neutral"
    assert conclusion_of(PREPARED, results(S, S, X, exit_status=None), cancelled=False) == "success"
    assert conclusion_of(PREPARED, results(S, F, X), cancelled=False) == "failure"
    assert conclusion_of(PREPARED, results(S, S, S), cancelled=False) == "success"
