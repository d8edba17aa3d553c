"""A task's effects are its own failure, with the cause; all else is the machine's failure. On machines that fail on request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from gibil_bot.errors import GibilError, JobLost, JobNotStarted, MachineLost, SSHError
from gibil_bot.model import (
    Chunk,
    Claim,
    Conclusion,
    Exit,
    Job,
    Refusals,
    Result,
    Run,
    RunState,
    TaskPlan,
    TaskResult,
    TaskStatus,
)
from gibil_bot.ports import RunRecorder, Shell
from gibil_bot.runs import execution, job_control
from gibil_bot.runs.cancellation import Cancellation
from gibil_bot.runs.execution import Cause, Execution, no_cause
from gibil_bot.runs.logs import Journal
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.returned_files import paths_of
from tests.contracts.store_nouns import new_run
from tests.doubles.patience import patient

BEGUN = datetime(2026, 11, 23, tzinfo=UTC)
TASKS = (TaskPlan(name="first", run="first"), TaskPlan(name="second", run="second", condition="always()"))
FOREVER = object()


class Failing:
    """A Shell whose jobs end as `ends` says: with a status, an error, or never."""

    def __init__(self, *ends: object, start: GibilError | None = None, kill: GibilError | None = None) -> None:
        self.ends = list(ends)
        self.start_error, self.kill_error = start, kill
        self.left_error: Exception | None = None
        self.with_files = True
        self.output = b"printed\n"
        self.killed: list[str] = []

    async def run(self, script: str, **_: object) -> Result:
        if self.left_error is not None:
            raise self.left_error
        return Result(exit_status=0, stdout=b"\n\n\n", stderr=b"")

    async def start(self, job: Job) -> None:
        if self.start_error is not None:
            raise self.start_error

    async def attach(self, job_id: str, **_: object) -> AsyncGenerator[Chunk | Exit, None]:
        yield Chunk(self.output, len(self.output))
        end = self.ends.pop(0)
        if end is FOREVER:
            await asyncio.Event().wait()
        if isinstance(end, GibilError):
            raise end
        if isinstance(end, Exit):
            yield end
            return
        assert isinstance(end, int)
        index = int(job_id.partition("-")[2])
        yield Exit(end, dict.fromkeys(paths_of(index), b"") if self.with_files else {})

    async def kill(self, job_id: str, **_: object) -> None:
        self.killed.append(job_id)
        if self.kill_error is not None:
            raise self.kill_error


class Results:
    """A RunRecorder that stores task results."""

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        assert claim.fence == 1


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Execution]:
    monkeypatch.setattr(execution, "CAUSE_EVERY_S", 0.0)
    monkeypatch.setattr(job_control, "AFTER_KILL_S", 0.1)

    def execute(shell: Failing, cause: Cause = no_cause, tasks: tuple[TaskPlan, ...] = TASKS) -> Execution:
        new = new_run("r")
        run = Run(
            id="r", seq=1, delivery_guid="g", source=new.source, plan=replace(new.plan, tasks=tasks, secrets=()),
            state=RunState.RUNNING, queued_at=BEGUN,
        )  # fmt: skip
        return Execution(
            runs=cast(RunRecorder, Results()), claim=Claim(run=run, owner="o", fence=1), machine_attempt=1,
            shell=cast(Shell, shell), secrets={}, redactor=lambda: Redactor(()), log_folder=tmp_path / "logs",
            journal=Journal(tmp_path / "logs"), cancellation=Cancellation(), on_change=lambda: None,
            results={}, refusals=nothing_refused, cause=cause,
        )  # fmt: skip

    return execute


async def nothing_refused(since: float) -> Refusals:
    return Refusals()


def with_cause(text: str) -> Cause:
    async def cause(since: datetime) -> str:
        assert since.tzinfo is not None
        return text

    return cause


async def test_a_machine_that_ends_at_its_limits_is_the_tasks_failure(build: Callable[..., Execution]) -> None:
    run = build(Failing(MachineLost("gone")), with_cause("the disk of 300 MB is full"))
    assert await run.run() is Conclusion.FAILURE
    first, second = run.results[0], run.results[1]
    assert (first.status, first.detail) == (TaskStatus.FAILURE, "the disk of 300 MB is full")
    assert first.tail == "printed\n"
    assert second.status is TaskStatus.SKIPPED
    assert "no longer exists: the disk of 300 MB is full" in second.detail


async def test_a_cause_reported_a_moment_later_counts(build: Callable[..., Execution]) -> None:
    asked = 0

    async def later(since: datetime) -> str | None:
        nonlocal asked
        asked += 1
        return "out of memory" if asked == 3 else None

    run = build(Failing(MachineLost("gone")), later)
    assert await run.run() is Conclusion.FAILURE
    assert run.results[0].detail == "out of memory"


async def test_a_machine_lost_without_a_cause_gives_no_result(build: Callable[..., Execution]) -> None:
    run = build(Failing(MachineLost("gone")))
    with pytest.raises(MachineLost, match="gone"):
        await run.run()
    assert run.results[0].status is TaskStatus.RUNNING


async def test_a_killed_supervisor_is_the_tasks_failure_and_its_other_processes_are_killed(
    build: Callable[..., Execution],
) -> None:
    shell = Failing(JobLost("its supervisor was killed"), 0)
    run = build(shell)
    assert await run.run() is Conclusion.FAILURE
    assert [(result.status, result.detail) for result in run.results.values()] == [
        (TaskStatus.FAILURE, "its supervisor was killed"),
        (TaskStatus.SUCCESS, ""),
    ]
    assert shell.killed == ["task-0"]


async def test_the_cause_is_shown_with_the_exit_status(build: Callable[..., Execution]) -> None:
    run = build(Failing(137), with_cause("the machine's 256 MB of memory are used up"), tasks=TASKS[:1])
    assert await run.run() is Conclusion.FAILURE
    assert run.results[0].detail == "exit status 137: the machine's 256 MB of memory are used up"


async def test_a_limit_that_a_successful_task_reached_is_reported_once(build: Callable[..., Execution], tmp_path: Path) -> None:
    run = build(Failing(0, 0), with_cause("the machine's 60 processes are used up"), tasks=TASKS[:1])
    assert await run.run() is Conclusion.SUCCESS
    assert run.results[0].detail == "the machine's 60 processes are used up"
    assert (tmp_path / "logs/0.log").read_text() == "printed\ngibil: the machine's 60 processes are used up\n"


@pytest.mark.parametrize(
    ("printed", "remedy"),
    [
        ("OSError: [Errno 24] Too many open files: 'x'", "ulimit -n"),
        ("Error: EMFILE: too many open files, open 'x'", "ulimit -n"),
        ("bash: fork: retry: Resource temporarily unavailable", "pids"),
        ("RuntimeError: can't start new thread", "pids"),
        ("Error: spawn /usr/bin/node EAGAIN", "pids"),
        ("OutOfMemoryError: unable to create native thread: possibly out of memory", "pids"),
        ("FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory", "max-old-space-size"),
        ("OSError: [Errno 28] No space left on device", "disk"),
    ],
)
async def test_a_limit_that_only_the_task_knows_is_found_anywhere_in_its_output(
    build: Callable[..., Execution], tmp_path: Path, printed: str, remedy: str
) -> None:
    shell = Failing(1, 0)
    shell.output = f"{printed}\n{'x' * 99 + chr(10)}".encode() + b"y" * 50_000 + b"\n"
    run = build(shell, tasks=TASKS[:1])
    await run.run()
    assert run.results[0].detail.startswith("exit status 1: it printed ")
    assert remedy in run.results[0].detail
    assert (tmp_path / "logs/0.log").read_text().count("gibil: it printed") == 1


async def test_what_a_successful_task_prints_about_limits_is_not_reported(build: Callable[..., Execution]) -> None:
    shell = Failing(0, 0)
    shell.output = b"it handles 'Too many open files'\n"
    run = build(shell, tasks=TASKS[:1])
    await run.run()
    assert run.results[0].detail == ""


async def test_incomplete_output_is_a_failure(build: Callable[..., Execution]) -> None:
    run = build(Failing(Exit(0, output_cut=True), Exit(3, output_cut=True)))
    assert await run.run() is Conclusion.FAILURE
    assert "its output is incomplete" in run.results[0].detail
    assert run.results[1].detail.startswith("exit status 3; its output is incomplete")


async def test_a_task_that_cannot_be_killed_or_read_ends_at_its_timeout(build: Callable[..., Execution]) -> None:
    tasks = (TaskPlan(name="first", run="first", timeout_s=0.1),)
    for kill in (None, SSHError("something does not die"), JobLost("the end is not known")):
        run = build(Failing(FOREVER, kill=kill), tasks=tasks)
        async with asyncio.timeout(patient(30)):
            assert await run.run() is Conclusion.TIMED_OUT
        assert run.results[0].exit_status is None


@pytest.mark.parametrize("error", [SSHError("too much"), TimeoutError(), JobLost("no tools")])
async def test_invalid_answers_about_files_do_not_change_the_result(build: Callable[..., Execution], error: Exception) -> None:
    shell = Failing(0, 0)
    shell.left_error, shell.with_files = error, False
    assert await build(shell).run() is Conclusion.SUCCESS


async def test_a_folder_that_an_earlier_task_may_have_removed_is_mentioned(build: Callable[..., Execution]) -> None:
    shell = Failing(0)
    run = build(shell)
    missing = JobNotStarted("The machine could not start job task-1: the working directory /root/project does not exist")

    async def start(job: Job) -> None:
        if job.id == "task-1":
            raise missing

    shell.start = start  # type: ignore[method-assign]
    assert await run.run() is Conclusion.FAILURE
    assert run.results[1].detail == f"{missing.message} (an earlier task removed it)"
    first = build(Failing(start=missing), tasks=TASKS[:1])
    assert await first.run() is Conclusion.FAILURE
    assert first.results[0].detail == missing.message
