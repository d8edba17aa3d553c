"""Runs of local checkouts in the process of `gibil mcp`."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from gibil_bot.config import load_settings
from gibil_bot.errors import UsageError
from gibil_bot.mcp_server.local_runs import LocalRuns


async def test_runs_that_start_at_the_same_time_have_their_logs_in_one_folder_that_is_deleted(tmp_path: Path) -> None:
    runs = LocalRuns(load_settings({"GIBIL_DATA_DIR": str(tmp_path)}))
    folders = await asyncio.gather(*(runs.log_folder() for _ in range(3)))
    await runs.close(0)
    assert len(set(folders)) == 1
    assert not any(folder.exists() for folder in folders)


async def test_a_workflow_whose_agent_costs_money_is_left_to_the_user(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    (folder / ".gibil" / "workflows").mkdir(parents=True)
    (folder / ".gibil" / "workflows" / "x.yml").write_text("on: {command: x}\ntasks: [{agent: p}]\n")
    git = ["git", "-C", str(folder), "-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
    for arguments in (["init", "-q"], ["add", "--all"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    runs = LocalRuns(load_settings({"GIBIL_DATA_DIR": str(tmp_path / "data"), "GIBIL_MODEL_KEY_ANTHROPIC": "k"}))
    with pytest.raises(UsageError, match="starts an agent, which costs money: ask the user to run `gibil try -w x`"):
        await runs.start(folder, ".", "x", {}, uncommitted=False)
