"""The bot's own keys are masked in the output of runs, with and without secrets of the run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from gibil_bot.operator_secrets import Secret
from gibil_bot.runs.runner import Runner
from tests.unit.test_cancelled_run import bench, without_secrets


async def test_a_models_key_is_masked_in_the_output_of_a_run(tmp_path: Path) -> None:
    async with bench(tmp_path) as scene:
        tools = dataclasses.replace(scene.tools, masked=(Secret("the-models-key"),))
        runner = Runner(tools, await scene.claim(without_secrets("run")))
        assert runner._redactor().text("key=the-models-key.") == "key=***."
