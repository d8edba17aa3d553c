"""The meaning of `.gibil.yml`: one table of cases, run by both executors on a local machine, and by restarted bots.

The bot and `gibil try` run tasks one by one from Python (runs/execution.py); `gibil create` starts a job on the machine that
runs them without its creator (machines/provision_script.py).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
import yaml
from msgspec.structs import replace

from gibil_bot.caps import Caps
from gibil_bot.machines.provision_script import DEFAULT_TASK_S, provision_script
from gibil_bot.machines.remote_layout import READY, STATE, TASKS_DONE, TASKS_FAILED, with_prefix
from gibil_bot.machines.source import CodeSource
from gibil_bot.model import Chunk, Claim, Conclusion, Exit, Job, Refusals, Run, RunState, TaskResult, Trust
from gibil_bot.planning import plan as planning
from gibil_bot.planning.schema import parse_repository_file
from gibil_bot.ports import RunRecorder, Shell
from gibil_bot.runs.cancellation import Cancellation
from gibil_bot.runs.execution import Execution
from gibil_bot.runs.logs import Journal
from gibil_bot.runs.redact import Redactor
from gibil_bot.scripts.task_script import FILES_FOLDER
from gibil_bot.ssh.client import SSHShell
from tests.contracts.shells import far_machine
from tests.contracts.store_nouns import new_run
from tests.doubles.patience import patient

pytestmark = pytest.mark.slow
SHA = "a" * 40
SOONER = 0.2
"""Factor that shortens all times, because a file can't set less than three seconds."""
OPERATOR = {"t.yml": b"on: {command: t}\ntasks: [{uses: .gibil.yml}]\n"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A case of task_semantics.yml."""

    case: str
    file: str
    ends: str
    seen: str = ""
    succeeds: bool | None = None


CASES = [Case(**case) for case in yaml.safe_load(Path(__file__).with_name("task_semantics.yml").read_text())]


@dataclass(frozen=True)
class Outcome:
    ends: str
    seen: str
    succeeds: bool


class Prefixed:
    """Prefixes job names, because one machine runs many cases."""

    def __init__(self, shell: SSHShell, prefix: str) -> None:
        self._shell, self._prefix = shell, prefix

    def __getattr__(self, name: str) -> object:
        return getattr(self._shell, name)

    async def start(self, job: Job) -> None:
        await self._shell.start(replace(job, id=self._prefix + job.id))

    def attach(self, job_id: str, *, stdout_from: int = 0) -> AsyncGenerator[Chunk | Exit, None]:
        return self._shell.attach(self._prefix + job_id, stdout_from=stdout_from)

    async def wait(self, job_id: str) -> Exit:
        return await self._shell.wait(self._prefix + job_id)

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        await self._shell.kill(self._prefix + job_id, grace_s=grace_s)


class Restart(Exception):
    """The bot was killed, and another process continues its run."""


class Results:
    """A RunRecorder that stores nothing. `restarts`: it ends the bot after each ended task."""

    def __init__(self, *, restarts: bool) -> None:
        self._restarts = restarts

    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        if self._restarts and result.finished_at is not None:
            raise Restart


async def by_the_bot(shell: SSHShell, number: int, file: bytes, folder: Path, *, restarts: bool = False) -> Outcome:
    new = new_run("r")
    facts = planning.EventContext(
        repository=new.source.repository, pull_request=new.source.pull_request, sha=SHA, actor="ada", trust=Trust.TRUSTED,
        event_name="issue_comment", max_ttl_s=7200, caps=Caps(), service_capabilities=None,
    )  # fmt: skip
    known = planning.catalogue(OPERATOR, {".gibil.yml": file}, base_ref="main")
    plan = planning.for_workflow(known, "t", {}, facts)
    plan = replace(plan, tasks=tuple(replace(task, timeout_s=task.timeout_s * SOONER) for task in plan.tasks))
    run = Run(
        id="r", seq=1, delivery_guid="g", source=new.source, plan=plan, state=RunState.RUNNING, queued_at=datetime.now(UTC)
    )
    printed = bytearray()

    async def none(since: float) -> Refusals:
        return Refusals()

    results: dict[int, TaskResult] = {}
    while True:
        execution = Execution(
            runs=cast(RunRecorder, Results(restarts=restarts)), claim=Claim(run=run, owner="o", fence=1), machine_attempt=1,
            shell=cast(Shell, Prefixed(shell, f"c{number}-")), secrets={}, redactor=lambda: Redactor(()),
            log_folder=folder / f"logs{number}", journal=Journal(folder / f"logs{number}"), cancellation=Cancellation(),
            on_change=lambda: None, on_output=lambda index, data: printed.extend(data), results=results, refusals=none,
        )  # fmt: skip
        await execution.prepare()
        try:
            conclusion = await execution.run()
        except Restart:
            results = execution.results
        else:
            break
    ends = " ".join(execution.results[index].status.value for index in range(len(plan.tasks)))
    return Outcome(ends, seen(bytes(printed)), conclusion not in (Conclusion.FAILURE, Conclusion.TIMED_OUT))


async def by_restarted_bots(shell: SSHShell, number: int, file: bytes, folder: Path) -> Outcome:
    return await by_the_bot(shell, number, file, folder, restarts=True)


async def by_create(shell: SSHShell, number: int, file: bytes, folder: Path) -> Outcome:
    parsed = parse_repository_file(".gibil.yml", file)
    tasks = tuple(replace_fields(task, timeout_s=(task.timeout_s or DEFAULT_TASK_S) * SOONER) for task in parsed.tasks)
    parsed = replace_fields(parsed, tasks=tasks)
    source = CodeSource(repo="https://example.com/ada/engine", branch=None, sha=SHA, file=parsed)
    await shell.start(
        Job(id=f"c{number}", script=provision_script(source), env=with_prefix({}), shell="bash {0}", working_directory="/root")
    )
    printed = bytearray()
    async for item in shell.attach(f"c{number}"):
        if isinstance(item, Chunk):
            printed += item.data
    markers = await shell.run(f"ls -d {READY} {TASKS_DONE} {TASKS_FAILED}; cat {STATE} >&2")
    rows = [line.split("\t") for line in markers.stderr.decode().splitlines() if "\t" in line]
    ends = " ".join(status for index, status, *_ in rows if index != "0")
    found = markers.stdout.decode().split()
    assert found in ([READY, TASKS_DONE], [READY, TASKS_FAILED]), printed.decode()
    return Outcome(ends, seen(bytes(printed)), found[1] == TASKS_DONE)


def seen(output: bytes) -> str:
    return ";".join(re.findall(r"^> (.*)$", output.decode(), re.MULTILINE))


@pytest.fixture
async def shell(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SSHShell]:
    async with far_machine("local", tmp_path_factory) as far:
        connection = await far.connect()
        yield connection
        await connection.close()


@pytest.mark.timeout(400)
@pytest.mark.parametrize("execute", [by_the_bot, by_restarted_bots, by_create])
async def test_both_executors_give_a_file_the_same_meaning(execute, shell: SSHShell, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    different = {}
    for number, case in enumerate(CASES):
        await shell.run(f"rm -rf {FILES_FOLDER} {STATE} {READY} {TASKS_DONE} {TASKS_FAILED} /root/project; mkdir /root/project")
        async with asyncio.timeout(patient(30)):
            outcome = await execute(shell, number, case.file.encode(), tmp_path)
        succeeds = not {"failure", "timed_out"} & set(case.ends.split()) if case.succeeds is None else case.succeeds
        if outcome != (expected := Outcome(case.ends, case.seen, succeeds)):
            different[case.case] = f"{outcome} instead of {expected}"
    assert different == {}, "\n".join(f"{name}: {what}" for name, what in different.items())
