"""The small agent of the demonstration, against the double of the model's API, as the dialect reads it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from gibil_bot.agents.dialects import new_dialect
from gibil_bot.agents.engines.loading import load_engines
from gibil_bot.agents.output import AgentOutput
from gibil_bot.agents.transcript import Ended
from gibil_bot.demo import agent_scene, coding_agent
from gibil_bot.demo.model_double import ModelDouble, model_double
from gibil_bot.demo.model_script import Read, Run, Say, Script, Write


async def worked(model: ModelDouble, folder: Path, turns: int = 9) -> tuple[str, Ended]:
    """Let the agent work in the folder; return its log and how it ended."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", coding_agent.__file__, f"{turns}",
        cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", "GIBIL_MODEL": "m", "GIBIL_MODEL_URL": model.url, "GIBIL_MODEL_KEY": model.key},
    )  # fmt: skip
    printed, _ = await process.communicate(b"Repair it.")
    output = AgentOutput(new_dialect("claude"), folder=f"{folder}")
    shown = output.feed(printed) + output.end(process.returncode)
    assert output.ended is not None
    return shown, output.ended


async def test_the_agent_does_what_the_model_asks_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    steps = (Read("a.txt"), Read("absent.txt"), Write("a.txt", "two\n"), Run("env; exit 3"), Say("Done."))
    async with model_double(Script(steps=steps)) as model:
        shown, ended = await worked(model, tmp_path)
    assert (tmp_path / "a.txt").read_text() == "two\n"
    assert (ended.is_success, ended.text) == (True, "Done.")
    for line in (
        "read: a.txt\n",
        "absent.txt",
        "changed: a.txt (update)\n",
        "    -one\n    +two\n",
        "exit status 3\n",
        "agent: Done.\n",
    ):
        assert line in shown, shown
    assert model.key not in shown


@pytest.mark.parametrize(("status", "turns", "reason"), [(402, 9, "model_error"), (None, 2, "max_turns")])
async def test_the_agent_ends_with_an_error_after_a_rejected_call_or_its_last_turn(
    tmp_path: Path, status: int | None, turns: int, reason: str
) -> None:
    async with model_double(Script(steps=(Run("true"),), is_endless=True)) as model:
        if status is not None:
            model.fault("status", status=status, after=1)
        _, ended = await worked(model, tmp_path, turns)
        assert len(model.calls) == 2
    assert (ended.is_success, ended.reason, ended.status) == (False, reason, status)


def test_its_engine_is_a_valid_file(tmp_path: Path) -> None:
    agent_scene.write_engine(tmp_path / "engines")
    engine = load_engines(tmp_path / "engines")[agent_scene.ENGINE]
    assert engine.files["coding_agent.py"] == Path(coding_agent.__file__).read_text()
    assert engine.limits_turns
