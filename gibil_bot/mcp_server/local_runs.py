"""Runs of local checkouts in the process of `gibil mcp`, with the bot's runner, as `gibil try` does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gibil_bot.config import Settings
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines.validation import check_room
from gibil_bot.model import CommitPlan, Conclusion, Run, RunState, TaskResult
from gibil_bot.operator_secrets import ScopedSecrets
from gibil_bot.wiring import checkout_tools, open_factory, operator_limits

if TYPE_CHECKING:
    from gibil_bot.runs.log_pages import LogPage, LogRequest
    from gibil_bot.runs.memory import MemoryRuns
    from gibil_bot.runs.runner import Runner

log = logging.getLogger("gibil.mcp")

MOST_RUNS = 50
"""How many ended runs are stored, with their logs, until the server ends."""


@dataclass(kw_only=True)
class _LocalRun:
    runs: MemoryRuns
    runner: Runner
    task: asyncio.Task[Conclusion]
    commit: CommitPlan | None
    """As the workflow has it."""
    checkout: Path
    uncommitted: bool


class LocalRuns:
    """Close it when the server ends: that cancels its runs, and deletes their logs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._logs: Path | None = None
        self._creating_logs = asyncio.Lock()
        self._runs: dict[str, _LocalRun] = {}

    async def start(self, folder: Path, path: str, workflow: str, inputs: Mapping[str, str], uncommitted: bool) -> Run:
        """Start a run of the checkout at `path`, from `folder`. Raises UsageError, InvalidWorkflow, ProviderError."""
        from gibil_bot.runs import local_checkout
        from gibil_bot.runs.commit_steps import as_patch
        from gibil_bot.runs.memory import MemoryRuns
        from gibil_bot.runs.runner import Runner

        stack = contextlib.AsyncExitStack()
        try:
            checkout = await stack.enter_async_context(
                local_checkout.read(
                    await asyncio.to_thread(_folder, folder, path), dirty=uncommitted, github_url=self._settings.github_url
                )
            )
            plan = await local_checkout.plan(checkout, workflow, inputs, operator_limits(self._settings))
            if plan.secrets:
                raise UsageError(
                    f"{plan.workflow} needs secrets ({', '.join(plan.secrets)}), which agents don't get: "
                    f"ask the user to run `gibil try -w {plan.workflow}`"
                )
            if plan.has_agent:
                raise UsageError(
                    f"{plan.workflow} starts an agent, which costs money: ask the user to run `gibil try -w {plan.workflow}`"
                )
            factory = open_factory(self._settings)
            stack.push_async_callback(factory.close)
            owner = await asyncio.to_thread(factory.keyring.machine_owner)
            check_room({machine.name for machine in await factory.list(owner)}, ["run"], self._settings.max_machines)
            runs = MemoryRuns()
            new = local_checkout.new_run(checkout, as_patch(plan))
            runs.queue(new)
            claim = await runs.claim("gibil mcp", lease_s=float("inf"), max_machines=1)
            assert claim is not None
            tools = checkout_tools(
                self._settings, factory, checkout, runs, owner=owner, logs=await self.log_folder(), secrets=ScopedSecrets()
            )
            runner = Runner(tools, claim)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(stack.aclose()))
            raise
        task = asyncio.create_task(_finish(runner, stack), name=f"run {new.id}")
        self._forget_old()
        self._runs[new.id] = _LocalRun(
            runs=runs, runner=runner, task=task, commit=plan.commit, checkout=checkout.folder, uncommitted=uncommitted
        )
        return claim.run

    async def log_folder(self) -> Path:
        """Return the folder of the runs' logs; the first call creates it."""
        async with self._creating_logs:
            if self._logs is None:
                self._logs = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="gibil-mcp-"))
        return self._logs

    async def preview(self, run: Run) -> tuple[dict[str, object], list[str]] | None:
        """Return what a finished run of a workflow with `commit:` would have pushed, as JSON and as lines.

        Its patch is stored in the data directory. Raises GibilError if that fails.
        """
        from gibil_bot.runs import commit_preview

        found, _ = await self._find(run.id)
        if found.commit is None or run.state is not RunState.FINISHED:
            return None
        patch = await asyncio.to_thread(commit_preview.keep, run, await self.log_folder(), self._settings.data_dir)
        view = commit_preview.preview(found.commit, run, patch, checkout=str(found.checkout), dirty=found.uncommitted)
        return view, list(commit_preview.lines(found.commit, run, view))

    async def get(self, login: str, run_id: str) -> tuple[Run, list[TaskResult]]:
        """See run_tools.Runs."""
        found, run = await self._find(run_id)
        return run, await found.runs.task_results(run_id, run.machine_attempt)

    async def log(self, login: str, run_id: str, wanted: LogRequest) -> tuple[Run, LogPage]:
        """See run_tools.Runs."""
        from gibil_bot.runs.log_pages import read_log

        _, run = await self._find(run_id)
        assert self._logs is not None
        return run, await asyncio.to_thread(read_log, self._logs, run, wanted)

    async def cancel(self, login: str, run_id: str) -> tuple[Run, bool]:
        """See run_tools.Runs."""
        found, run = await self._find(run_id)
        is_unfinished = run.state is not RunState.FINISHED
        if is_unfinished:
            found.runner.cancel("cancelled by the agent")
        return run, is_unfinished

    async def close(self, within_s: float) -> None:
        """Cancel all runs and wait until their machines are destroyed, for at most `within_s`."""
        running = {found.task for found in self._runs.values() if not found.task.done()}
        for found in self._runs.values():
            if not found.task.done():
                found.runner.cancel("gibil mcp ended")
        if running:
            _, late = await asyncio.wait(running, timeout=within_s)
            for task in late:  # the daemon destroys its tethered machine when this process has ended
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=within_s)
        if self._logs is not None:
            await asyncio.to_thread(shutil.rmtree, self._logs, ignore_errors=True)

    async def _find(self, run_id: str) -> tuple[_LocalRun, Run]:
        found = self._runs.get(run_id)
        run = await found.runs.get(run_id) if found is not None else None
        if found is None or run is None:
            raise UsageError(f"there is no run {run_id[:80]!r} in this session of gibil mcp", code="RUN_NOT_FOUND")
        if run.state is not RunState.FINISHED and found.task.done():
            raise GibilError(f"the run {run_id} ended because of an internal error; see the log of gibil mcp", code="INTERNAL")
        return found, run

    def _forget_old(self) -> None:
        ended = [run_id for run_id, found in self._runs.items() if found.task.done()]
        for run_id in ended[: max(0, len(ended) - MOST_RUNS + 1)]:
            del self._runs[run_id]
            if self._logs is not None:
                shutil.rmtree(self._logs / run_id, ignore_errors=True)


def _folder(start: Path, path: str) -> Path:
    """Return the folder that a path names. Raises UsageError."""
    if not path or "\0" in path:
        raise UsageError(f"{path!r} is not the path of a checkout")
    try:
        folder = start / Path(path).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError):
        pass
    raise UsageError(f"there is no directory {path[:200]!r} on the user's computer")


async def _finish(runner: Runner, stack: contextlib.AsyncExitStack) -> Conclusion:
    try:
        return await runner.run()
    except Exception:
        log.exception("a run failed")
        raise
    finally:
        await asyncio.shield(asyncio.ensure_future(stack.aclose()))
