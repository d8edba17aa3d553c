"""Attempts side by side: copies of the run's machine, on each of which the agent works alone, within one budget.

The smallest change whose `choose` command passes is applied to the run's machine; the others are stored as patches. A copy is
destroyed as soon as its attempt has ended and is stored. Another process continues with the attempts that haven't.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from gibil_bot.agent_task import AgentResult, AttemptResult, Spent
from gibil_bot.errors import ClaimLost, GibilError, StoreError, UsageError
from gibil_bot.humanize import count
from gibil_bot.model import Job, TaskPlan, TaskStatus
from gibil_bot.ports import Forking, Shell
from gibil_bot.runs import job_control
from gibil_bot.runs.agent_changes import MOST_PATCH, AgentChanges, apply_patch, read_changes
from gibil_bot.runs.agent_sinks import AgentLog
from gibil_bot.runs.agent_state import forget_state, read_value, store_value
from gibil_bot.runs.agent_tasks import AgentTask
from gibil_bot.runs.agent_tools import AgentTools, task_name
from gibil_bot.runs.agent_values import AgentOutcome, RunMachines, cannot_copy
from gibil_bot.runs.job_control import Stop
from gibil_bot.runs.logs import TaskLog
from gibil_bot.runs.redact import Redactor
from gibil_bot.scripts.task_script import working_folder
from gibil_bot.ssh.answers import BadAnswer

log = logging.getLogger("gibil.agents")

CHOOSE_S = 1800.0
"""The longest time of `choose`, within that of the task."""

NewTask = Callable[[int, str, Shell, TaskLog], AgentTask]
"""(attempt, its machine, the connection, its log) → the work of the agent."""


class _End(msgspec.Struct, kw_only=True):
    """How an attempt ended. It is stored with its patch, for another process."""

    status: TaskStatus
    ended: str
    passed: bool = False
    files: int = 0
    lines: int = 0
    result: AgentResult


@dataclass(kw_only=True)
class _Attempt:
    number: int
    """From 1: 0 is the run's own machine."""
    machine: str
    task: AgentTask | None = None
    end: _End | None = None

    @property
    def so_far(self) -> AgentResult | None:
        if self.end is not None:
            return self.end.result
        return self.task.result if self.task is not None else None

    def result(self, *, is_chosen: bool = False) -> AttemptResult:
        end = self.end
        return AttemptResult(
            index=self.number - 1,
            ended=end.ended if end else "",
            is_chosen=is_chosen,
            passed=end.passed if end else False,
            files=end.files if end else 0,
            lines=end.lines if end else 0,
            spent=self.so_far.spent if self.so_far else Spent(),
        )


class AgentAttempts:
    """Several attempts at one agent task. Call `work` once."""

    def __init__(
        self,
        tools: AgentTools,
        *,
        run_id: str,
        task: TaskPlan,
        index: int,
        machine: str,
        shell: Shell,
        machines: RunMachines,
        new_task: NewTask,
        log: TaskLog,
        folder: Path,
        most_bytes: int,
        redactor: Callable[[], Redactor],
        stops: Sequence[Stop],
        on_change: Callable[[], None],
    ) -> None:
        """`most_bytes`: of all files in `folder`."""
        assert task.agent is not None
        self._most_log = most_bytes // (4 * task.agent.attempts)
        self._tools, self._run_id = tools, run_id
        self._task, self._plan, self._index = task, task.agent, index
        self._machine, self.shell = machine, shell
        self._machines = machines
        self._new_task = new_task
        self._log, self._folder, self._redactor = AgentLog(log), folder, redactor
        self._stops, self._on_change = stops, on_change
        self._attempts = [
            _Attempt(number=number, machine=f"{machine}-{index}-{number}") for number in range(1, task.agent.attempts + 1)
        ]
        self._result = AgentResult(engine=task.agent.engine, model=task.agent.model)
        """Without what the attempts add to it."""
        self._best: _Attempt | None = None

    @property
    def result(self) -> AgentResult:
        """So far."""
        results = tuple(each.result(is_chosen=each is self._best) for each in self._attempts)
        first = next((each.so_far for each in self._attempts if each.so_far is not None), self._result)
        spent = sum((each.spent for each in results), Spent())
        return replace(self._result, model=first.model, budget=first.budget, spent=spent, attempts=results)

    async def work(self, limit_s: float) -> AgentOutcome:
        """Let all attempts work, and apply the best to the run's machine: `shell` is its connection afterwards.

        Raises UsageError if the machine can't be copied, MachineLost, SSHError, ProviderError.
        """
        provider = self._machines.provider
        if not isinstance(provider, Forking):
            raise UsageError(cannot_copy(self._plan.attempts, provider.name))
        deadline = asyncio.get_running_loop().time() + limit_s
        await self._tools.ledger.book_estimates(self._run_id)  # of a process that was killed
        # What an attempt changed is applied to the run's machine, whose later tasks then run it.
        restriction = await self._tools.restrict(self._machine, self._plan.allow, self.shell)
        before = await self._before()
        try:
            layer = await provider.fork_layer(self._machine, self._layer_id(), stop=True)
            await job_control.disconnect(self.shell)
            self.shell = await self._machines.reopen(self._machine)
            await asyncio.to_thread(self._read_ends)
            await self._write(f"gibil: {count(len(self._attempts), 'attempt')} side by side, each on a copy of the machine\n")
            await self._all(layer.id, before, deadline)
        except (asyncio.CancelledError, ClaimLost, StoreError):
            raise  # another process continues
        except BaseException:
            await asyncio.shield(asyncio.gather(*map(self._destroy, self._attempts)))
            raise
        return dataclasses.replace(await self._choose(), environment=restriction.environment)

    async def _before(self) -> str:
        """Return the tree of the workspace before the attempts. It is stored, because a process may be killed after it applied
        the best one, and git of the copies needs its objects, so this comes before the copy.
        """
        path = self._folder / f"{self._index}.before"
        with contextlib.suppress(OSError):
            if stored := await asyncio.to_thread(path.read_text):
                return stored
        try:
            before = (await read_changes(self.shell)).tree
        except BadAnswer as error:
            raise UsageError(f"an earlier task broke the repository: {error.message}") from error
        with contextlib.suppress(OSError):
            await asyncio.to_thread(path.write_text, before)
        return before

    def _layer_id(self) -> str:
        return hashlib.sha256(f"{self._machine}/{self._index}".encode()).hexdigest()[:32]

    async def _all(self, layer: str, before: str, deadline: float) -> None:
        working = [asyncio.create_task(self._one(attempt, layer, before, deadline)) for attempt in self._attempts]
        try:
            for ended in asyncio.as_completed(working):
                await ended
                self._on_change()
        finally:
            for each in working:
                each.cancel()
            await asyncio.gather(*working, return_exceptions=True)

    async def _one(self, attempt: _Attempt, layer: str, before: str, deadline: float) -> None:
        """Work on one copy. Its failures are its result, so that the others go on. If this process is stopped, the copy and the
        agent's program go on, too.
        """
        if attempt.end is None:
            attempt.end = await self._work(attempt, layer, before, deadline)
            await asyncio.to_thread(self._store_end, attempt)
        await asyncio.shield(self._destroy(attempt))
        await self._write(f"gibil: attempt {attempt.number}: {attempt.end.ended}\n")

    async def _work(self, attempt: _Attempt, layer: str, before: str, deadline: float) -> _End:
        output = TaskLog(self._path(attempt, "log"), self._redactor(), limit=self._most_log)
        await asyncio.to_thread(output.forget)  # it is read again from the beginning
        await output.open()
        shell: Shell | None = None
        try:
            shell, stopped = await self._unless_stopped(self._copy(attempt, layer), deadline)
            if shell is None:
                return self._end(attempt, stopped or TaskStatus.FAILURE, "It was stopped before it had a machine.")
            attempt.task = self._new_task(attempt.number, attempt.machine, shell, output)
            outcome = await attempt.task.work(job_control.left_s(deadline))
            changes = await read_changes(shell, before, most_patch=MOST_PATCH)
            end = self._end(attempt, outcome.status, outcome.detail, changes)
            await asyncio.to_thread(self._store_patch, attempt, changes.patch)
            return await self._judge(end, attempt, changes, shell, deadline)
        except (ClaimLost, StoreError):
            raise
        except (GibilError, TimeoutError) as error:
            return self._end(attempt, TaskStatus.FAILURE, getattr(error, "message", "") or "Its machine didn't answer.")
        except OSError as error:
            return self._end(attempt, TaskStatus.FAILURE, f"Its changes can't be stored: {error.strerror}.")
        finally:
            await asyncio.shield(output.close())
            if shell is not None:
                await asyncio.shield(job_control.disconnect(shell))

    def _end(self, attempt: _Attempt, status: TaskStatus, ended: str, changes: AgentChanges | None = None) -> _End:
        return _End(
            status=status,
            ended=ended,
            files=changes.files if changes else 0,
            lines=changes.lines if changes else 0,
            result=attempt.so_far or self._result,
        )

    async def _copy(self, attempt: _Attempt, layer: str) -> Shell:
        """Return a connection to the attempt's machine: that of an earlier process, or a new copy."""
        exists = await self._machines.provider.get(attempt.machine) is not None
        await self._machines.room.acquire(attempt.machine)
        if not exists:
            await asyncio.to_thread(forget_state, self._folder, task_name(self._index, attempt.number))
        _, shell = await self._machines.create(attempt.machine, layer)
        return shell

    async def _unless_stopped(
        self, work: Coroutine[Any, Any, Shell], deadline: float
    ) -> tuple[Shell | None, TaskStatus | None]:
        """Await `work`; if the task is stopped first, cancel it, wait until it has cleaned up, and return the status."""
        worker = asyncio.create_task(work)
        watchers = [asyncio.create_task(stop()) for stop in self._stops]
        try:
            left_s = job_control.left_s(deadline)
            done, _ = await asyncio.wait({worker, *watchers}, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if worker in done:
                return worker.result(), None
            return None, next((each.result() for each in watchers if each in done), TaskStatus.TIMED_OUT)
        finally:
            for each in (worker, *watchers):
                each.cancel()
            await asyncio.gather(worker, *watchers, return_exceptions=True)

    async def _judge(self, end: _End, attempt: _Attempt, changes: AgentChanges, shell: Shell, deadline: float) -> _End:
        """Decide whether the attempt passed."""
        if end.status is not TaskStatus.SUCCESS or (self._plan.writes and not changes.files):
            return end
        if changes.is_cut:
            end.ended = f"Its changes are larger than {MOST_PATCH // 1024**2} MiB."
        elif not self._plan.choose:
            end.passed = True
        else:
            how = await self._choice(end, attempt, shell, deadline)
            end.passed = not how
            if how:
                end.ended = f"{end.ended} But `choose` failed ({how})."
        return end

    async def _choice(self, end: _End, attempt: _Attempt, shell: Shell, deadline: float) -> str:
        """Run `choose`; return how it failed, empty if it didn't."""
        output = TaskLog(self._path(attempt, "choose.log"), self._redactor(), limit=self._most_log)
        await asyncio.to_thread(output.forget)
        await output.open()
        try:
            job = Job(  # noqa: S604 (a word)
                id=f"choose-{self._index}",
                script=self._plan.choose,
                env=dict(self._task.env),
                working_directory=working_folder(self._task),
                shell="bash",
            )
            await shell.start(job)
            left = job_control.left_s(deadline)
            ended, stopped = await job_control.follow(
                shell, job.id, output, min(CHOOSE_S, left), on_output=self._on_change, stops=self._stops
            )
        finally:
            await asyncio.shield(output.close())
        if stopped is not None:
            if stopped is not TaskStatus.TIMED_OUT or left <= CHOOSE_S:
                end.status = stopped
            return "stopped"
        return "" if ended is not None and ended.status == 0 else f"exit status {ended.status if ended else 'unknown'}"

    async def _choose(self) -> AgentOutcome:
        """Apply the smallest change that passed."""
        ends = [(each, each.end) for each in self._attempts if each.end is not None]
        passed = [(end.lines, end.files, each.number, each, end) for each, end in ends if end.passed]
        best, chosen = min(passed)[3:] if passed else (None, None)
        if best is None:
            stopped = [end.status for _, end in ends]
            status = next(
                (each for each in (TaskStatus.CANCELLED, TaskStatus.TIMED_OUT) if each in stopped), TaskStatus.FAILURE
            )
            detail = f"None of the {len(self._attempts)} attempts passed."
        else:
            status = TaskStatus.SUCCESS
            detail = (
                f"Attempt {best.number} of {len(self._attempts)} was used: the smallest change of {len(passed)} that passed."
            )
            try:
                if patch := await asyncio.to_thread(self._read_patch, best):
                    await apply_patch(self.shell, patch)
            except (OSError, BadAnswer) as error:
                status, detail = TaskStatus.FAILURE, f"The changes of attempt {best.number} can't be applied: {error}."
        await self._write(f"gibil: {detail}\n")
        self._best = best
        shown = (chosen or ends[0][1]).result
        self._result = replace(
            self._result,
            ended=detail,
            account=shown.account,
            answer=shown.answer,
            limit=next((end.result.limit for _, end in ends if end.result.limit), ""),
        )
        return AgentOutcome(status=status, detail=detail, exit_status=None, result=self.result)

    # --- files of the run

    def _path(self, attempt: _Attempt, suffix: str) -> Path:
        return self._folder / f"{task_name(self._index, attempt.number)}.{suffix}"

    def _store_patch(self, attempt: _Attempt, patch: bytes) -> None:
        """It isn't redacted, because it couldn't be applied then."""
        if patch:
            self._path(attempt, "patch").write_bytes(patch)

    def _read_patch(self, attempt: _Attempt) -> bytes:
        path = self._path(attempt, "patch")
        return path.read_bytes() if path.exists() else b""

    def _store_end(self, attempt: _Attempt) -> None:
        store_value(self._path(attempt, "end.json"), attempt.end)

    def _read_ends(self) -> None:
        for attempt in self._attempts:
            attempt.end = read_value(self._path(attempt, "end.json"), _End)

    async def _write(self, text: str) -> None:
        await self._log.write(self._redactor().text(text).encode("utf-8", "replace"))

    async def _destroy(self, attempt: _Attempt) -> None:
        try:
            await self._machines.destroy(attempt.machine)
        except (ClaimLost, StoreError):
            raise
        except GibilError as error:
            log.warning("machine %s could not be destroyed, the reaper will retry: %s", attempt.machine, error.message)
        await self._machines.room.release(attempt.machine)
