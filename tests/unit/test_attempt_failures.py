"""Failures of one attempt of an agent are its result, so that the others go on; and what agents store is limited."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gibil_bot.agent_task import AgentPlan, AgentResult
from gibil_bot.model import TaskPlan, TaskStatus
from gibil_bot.runs import agent_attempts, agent_sinks
from gibil_bot.runs.agent_attempts import AgentAttempts
from gibil_bot.runs.agent_changes import AgentChanges
from gibil_bot.runs.agent_sinks import EVENTS_BYTES, LEAST_EVENTS_BYTES, events_limit
from gibil_bot.runs.agent_values import AgentOutcome, RunMachines
from gibil_bot.runs.machine_room import MachineRoom
from gibil_bot.runs.redact import Redactor

RESULT = AgentResult(engine="command", model="")


class Idle:
    """A connection and a provider of which nothing is asked."""

    async def close(self) -> None: ...

    async def get(self, name: str) -> None:
        return None


class Working:
    """The work of an agent that succeeds."""

    result = RESULT

    async def work(self, limit_s: float) -> AgentOutcome:
        return AgentOutcome(status=TaskStatus.SUCCESS, detail="Done.", exit_status=0, result=RESULT)


async def test_a_patch_that_cannot_be_stored_fails_its_attempt_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def changes(*_: Any, **__: Any) -> AgentChanges:
        return AgentChanges(tree="a" * 40, files=1, lines=1, patch=b"diff")

    async def create(name: str, layer: str | None) -> Any:
        return None, Idle()

    async def destroy(name: str) -> None: ...

    monkeypatch.setattr(agent_attempts, "read_changes", changes)
    (tmp_path / "0-1.patch").mkdir()
    idle = cast(Any, Idle())
    attempts = AgentAttempts(
        cast(Any, SimpleNamespace()),
        run_id="r1",
        task=TaskPlan(name="fix", run="", agent=AgentPlan(engine="command", prompt="p", attempts=2)),
        index=0,
        machine="m",
        shell=idle,
        machines=RunMachines(provider=idle, create=create, reopen=create, destroy=destroy, room=MachineRoom(idle, idle, None)),  # type: ignore[arg-type]
        new_task=lambda *_: cast(Any, Working()),
        log=cast(Any, SimpleNamespace()),
        folder=tmp_path,
        most_bytes=2**30,
        redactor=lambda: Redactor([]),
        stops=(),
        on_change=lambda: None,
    )
    later = asyncio.get_running_loop().time() + 60
    first, second = [await attempts._work(each, "layer", "", later) for each in attempts._attempts]
    assert (first.status, first.passed) == (TaskStatus.FAILURE, False)
    assert first.ended.startswith("Its changes can't be stored: ")
    assert (second.status, second.passed) == (TaskStatus.SUCCESS, True)


def test_events_of_agents_count_in_the_limit_of_a_runs_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_sinks, "free_above_floor", lambda folder: 2**40)
    (tmp_path / "0.events").write_bytes(bytes(3 * 2**20))
    assert events_limit(tmp_path, 2**30) == EVENTS_BYTES
    assert events_limit(tmp_path, 5 * 2**20) == 2 * 2**20
    assert events_limit(tmp_path, 2**20) == LEAST_EVENTS_BYTES
    monkeypatch.setattr(agent_sinks, "free_above_floor", lambda folder: -1)
    assert events_limit(tmp_path, 2**30) == LEAST_EVENTS_BYTES
