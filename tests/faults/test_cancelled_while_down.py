"""A run is cancelled while no bot works on it: the next process stops its task, and tasks for cancelled runs go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest
from msgspec.structs import replace

from gibil_bot.model import Claim, Conclusion, Refusals, Run, RunState, TaskPlan, TaskResult
from gibil_bot.ports import RunRecorder, Shell
from gibil_bot.runs.cancellation import Cancellation
from gibil_bot.runs.execution import Execution
from gibil_bot.runs.logs import Journal
from gibil_bot.runs.redact import Redactor
from gibil_bot.ssh.client import SSHShell
from tests.contracts.shells import far_machine
from tests.contracts.store_nouns import new_run
from tests.doubles.patience import patient


class Unstored:
    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        """Nothing is stored."""


@pytest.fixture
async def shell(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SSHShell]:
    async with far_machine("local", tmp_path_factory) as far:
        connection = await far.connect()
        yield connection
        await connection.close()


async def test_the_next_process_stops_the_task_that_was_running(shell: SSHShell, tmp_path: Path) -> None:
    new = new_run("r")
    tasks = (
        TaskPlan(name="long", run="echo begun; sleep 600"),
        TaskPlan(name="afterwards", run="echo tidied", condition="always()"),
    )
    run = Run(
        id="r", seq=1, delivery_guid="g", source=new.source, plan=replace(new.plan, tasks=tasks), state=RunState.RUNNING,
        queued_at=datetime.now(UTC),
    )  # fmt: skip
    begun = asyncio.Event()

    async def none(since: float) -> Refusals:
        return Refusals()

    def execution(results: dict[int, TaskResult], cancellation: Cancellation) -> Execution:
        return Execution(
            runs=cast(RunRecorder, Unstored()), claim=Claim(run=run, owner="o", fence=1), machine_attempt=1,
            shell=cast(Shell, shell), secrets={}, redactor=lambda: Redactor(()), log_folder=tmp_path / "logs",
            journal=Journal(tmp_path / "logs"), cancellation=cancellation, on_change=lambda: None,
            on_output=lambda index, data: begun.set(), results=results, refusals=none,
        )  # fmt: skip

    await shell.run("mkdir -p /root/project")
    first = execution({}, Cancellation())
    await first.prepare()
    working = asyncio.create_task(first.run())
    async with asyncio.timeout(patient(30)):
        await begun.wait()
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)
    second = execution(first.results, Cancellation("cancelled by ada"))
    async with asyncio.timeout(patient(30)):
        assert await second.run() is Conclusion.CANCELLED
    assert [(result.status.value, result.detail) for result in second.results.values()] == [
        ("cancelled", "cancelled by ada"),
        ("success", ""),
    ]
