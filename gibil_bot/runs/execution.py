"""Runs the tasks of one run on one machine, one after another. Each task is detached, so another process can continue it.

A finished task is stored before the next one starts, and a running task is found again by its job id. A killed bot therefore
continues where it stopped, and no task runs twice on one machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from gibil_bot.agent_task import AgentState, FailedTask
from gibil_bot.clock import now
from gibil_bot.errors import JobLost, JobNotStarted, MachineLost, SSHError, StoreError, UsageError
from gibil_bot.model import Claim, Conclusion, Exit, Plan, Refusals, TaskPlan, TaskResult, TaskStatus
from gibil_bot.planning import expressions
from gibil_bot.ports import RunRecorder, Shell
from gibil_bot.runs import job_control
from gibil_bot.runs.agent_state import has_state
from gibil_bot.runs.agent_values import AgentOutcome, Check, RunMachines, agents_missing
from gibil_bot.runs.cancellation import Cancellation
from gibil_bot.runs.detected_tasks import MOST_TASKS as MOST_DETECTED
from gibil_bot.runs.job_control import Stop
from gibil_bot.runs.logs import LOG_LIMIT_BYTES, Journal, TaskLog, size_of
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.returned_files import ReturnedFiles, paths_of, read_returned_files, returned_with
from gibil_bot.scripts import task_script
from gibil_bot.scripts.jobs import NO_FOLDER
from gibil_bot.ssh.answers import last_line
from gibil_bot.views import blocked_view, failed_preparation

if TYPE_CHECKING:
    from gibil_bot.runs.agent_attempts import AgentAttempts
    from gibil_bot.runs.agent_tasks import AgentTask
    from gibil_bot.runs.agent_tools import AgentTools

STORED_TAIL_BYTES = 16 * 1024
MOST_OUTPUT_BYTES = 1024 * 1024 * 1024
"""Tasks that print more than this are stopped: such output is of no use to a reader, and it fills disks."""
CAUSE_TRIES = 10
CAUSE_EVERY_S = 0.2
"""A provider may learn why a machine ended a moment after its connection did."""
AFTER_CANCEL_S = 300.0
"""Total time for `if: always()` and `if: cancelled()` tasks after a run is cancelled."""


OnPrepared = Callable[[Mapping[str, str], tuple[str, ...]], Awaitable[Shell | None]]
Cause = Callable[[datetime], Awaitable[str | None]]
"""Returns why the machine, or a process on it, was killed since that time; None if unknown."""


async def no_cause(since: datetime) -> None:
    """Return None: the cause of providers that don't know why a machine ended."""


_PRINTED_TOO_MUCH = f"printed more than {MOST_OUTPUT_BYTES // 1024**3} GiB and was stopped"
_NO_PROCESS = "no further process or thread could be started (`ulimit -u`, `machine: {pids: …}`)"
_NO_FILE = "a process reached its limit of open files (`ulimit -n`): use fewer workers, or close files"
_LIMITS_REACHED = (
    (rb"[Tt]oo many open files", _NO_FILE),
    (rb"System limit for number of file watchers reached", "watch fewer files, or poll"),
    (rb"fork: (?:retry: )?Resource temporarily unavailable", _NO_PROCESS),
    (rb"[Cc]annot fork|can't start new thread|spawn \S+ EAGAIN", _NO_PROCESS),
    (rb"unable to create (?:new )?native thread|failed to create new OS thread", _NO_PROCESS),
    (rb"JavaScript heap out of memory", "the heap limit of Node was reached (`NODE_OPTIONS=--max-old-space-size=…`)"),
    (rb"OutOfMemoryError: Java heap space", "the heap limit of Java was reached (`-Xmx`)"),
    (rb"No space left on device", "a disk was full (`machine: {disk: …}`), or /dev/shm (`machine: {memory: …}`)"),
    (rb"Bus error", "usually /dev/shm was full (`machine: {memory: …}`)"),
)
"""What programs print when a limit stops them, and what it means, for what the provider doesn't know.

Nothing counts how often a process reached its limit of open files.
"""
_SEARCHED_BYTES = 4 * 1024 * 1024
_OUTPUT_CUT = "its output is incomplete: the machine's disk is full, or what stores or reads it was killed, replaced or removed"


def is_complete(plan: Plan, results: Mapping[int, TaskResult]) -> bool:
    """Return whether every task has ended, so that only destroying the machine and reporting are left."""
    return len(results) == len(plan.tasks) and all(result.finished_at is not None for result in results.values())


def conclusion_of(plan: Plan, results: Mapping[int, TaskResult], *, cancelled: bool) -> Conclusion:
    """Derive the conclusion of a run from its tasks. Tasks with continue-on-error don't count."""
    if cancelled:
        return Conclusion.CANCELLED
    mended = _mended(plan, results)
    counted = {
        result.status for index, result in results.items() if not plan.tasks[index].continue_on_error and index not in mended
    }
    if TaskStatus.FAILURE in counted:
        return Conclusion.FAILURE
    if TaskStatus.TIMED_OUT in counted:
        return Conclusion.TIMED_OUT
    wanted = [result for index, result in results.items() if plan.tasks[index].kind != "prepare"]
    if wanted and all(result.status is TaskStatus.SKIPPED and result.exit_status == 0 for result in wanted):
        return Conclusion.NEUTRAL  # it was only prepared
    if results and all(result.status is TaskStatus.SKIPPED for result in results.values()):
        # A skipped task with exit status 0 ran and reported that it had nothing to do (GIBIL_NEUTRAL).
        return Conclusion.NEUTRAL if any(result.exit_status == 0 for result in results.values()) else Conclusion.SKIPPED
    return Conclusion.SUCCESS


def _mended(plan: Plan, results: Mapping[int, TaskResult]) -> set[int]:
    """Return the tasks that failed first, and passed when an agent had worked until they do, and agents that tried before."""
    found: set[int] = set()
    for index, result in results.items():
        agent = plan.tasks[index].agent
        if agent is not None and agent.until and result.status is TaskStatus.SUCCESS:
            found |= {
                before
                for before, task in enumerate(plan.tasks[:index])
                if agent.until in ((task.name, task.part_of) if task.agent is None else (task.agent.until,))
            }
    return found


class Execution:
    """The tasks of a run on the machine behind `shell`. `results` is always up to date."""

    def __init__(
        self,
        *,
        runs: RunRecorder,
        claim: Claim,
        machine_attempt: int,
        shell: Shell,
        secrets: Mapping[str, str],
        redactor: Callable[[], Redactor],
        log_folder: Path,
        journal: Journal,
        cancellation: Cancellation,
        on_change: Callable[[], None],
        on_output: Callable[[int, bytes], None] | None = None,
        results: Mapping[int, TaskResult],
        refusals: Callable[[float], Awaitable[Refusals]],
        cause: Cause = no_cause,
        room: int = LOG_LIMIT_BYTES,
        agents: AgentTools | None = None,
        machine: str = "",
        machines: RunMachines | None = None,
    ) -> None:
        """For a plan with agents: `agents`, `machine`, the name of the machine behind `shell`, and `machines`."""
        self._agents = agents
        self._machine = machine
        self._machines = machines
        self._cause = cause
        self._room = room
        self._lost: str | None = None
        """Why the machine no longer exists, if a task ended it."""
        self._runs = runs
        self._claim = claim
        self._plan = claim.run.plan
        self._attempt = machine_attempt
        self._shell = shell
        self._secrets = secrets
        self._redactor = redactor
        self._log_folder = log_folder
        self._journal = journal
        self._cancellation = cancellation
        self._on_change = on_change
        self._on_output = on_output
        self._refusals = refusals
        self.results: dict[int, TaskResult] = dict(results)
        self._limited: Mapping[str, str] = {}
        """What tasks need on a machine that an agent has worked on: it stays limited to the agent's allow-list."""
        self._log: TaskLog | None = None
        self._inherited: tuple[Mapping[str, str], Sequence[str]] = {}, ()
        self._announced: Sequence[str] = ()

    @property
    def live_tail(self) -> str:
        """The end of the running task's output."""
        return self._log.tail() if self._log is not None else ""

    @property
    def shell(self) -> Shell:
        """The connection to the machine. Copying the machine for attempts of an agent replaces it."""
        return self._shell

    async def prepare(self) -> None:
        """Create the files that tasks write to. Safe to repeat."""
        more = MOST_DETECTED if any(task.detect for task in self._plan.tasks) else 0
        more += sum(task.agent is not None for task in self._plan.tasks)  # each may need an engine to be installed
        prepare = task_script.prepare_script(len(self._plan.tasks) + more) + task_script.IDENTITY
        try:
            result = await self._shell.run(prepare)
        except TimeoutError:
            raise MachineLost("The machine doesn't answer") from None
        if result.exit_status != 0:
            raise MachineLost(f"The machine's disk can't be written: {last_line(result.stderr)}")

    def replace_plan(self, claim: Claim) -> None:
        """Use the plan of this claim, whose tasks have been detected since. Call it before `run`."""
        self._claim, self._plan = claim, claim.run.plan

    @property
    def skipped_preparation(self) -> bool:
        """Whether preparing tasks were skipped because the machine was prepared already."""
        preparing = [result for index, result in self.results.items() if self._plan.tasks[index].kind == "prepare"]
        return bool(preparing) and all(
            result.status is TaskStatus.SKIPPED and result.exit_status is None for result in preparing
        )

    def continue_on(self, shell: Shell) -> None:
        """Use another machine. Call it before `run`."""
        self._shell = shell

    def inherit(self, env: Mapping[str, str], paths: Sequence[str]) -> None:
        """Use variables and paths that preparing tasks of an earlier run exported. Call it before `run`."""
        self._inherited = env, paths

    def announce(self, lines: Sequence[str]) -> None:
        """Begin the log of the first task with these lines. Call it before `run`."""
        self._announced = lines

    async def skip(self, indexes: Iterable[int], detail: str) -> None:
        """Record tasks as skipped that have nothing to do."""
        for index in indexes:
            await self._save(
                TaskResult(
                    index=index, machine_attempt=self._attempt, name=self._plan.tasks[index].name, status=TaskStatus.SKIPPED,
                    started_at=now(), finished_at=now(), detail=detail,
                )
            )  # fmt: skip

    async def run(self, on_prepared: OnPrepared | None = None) -> Conclusion:
        """Run all tasks. Raises MachineLost.

        `on_prepared` is called after the preparing tasks, if others follow, with what they exported. It may return a connection
        to another machine, on which the tasks then continue.
        """
        extra: dict[str, str] = dict(self._inherited[0])
        paths: list[str] = list(self._inherited[1])
        for index, task in enumerate(self._plan.tasks):
            stored = self.results.get(index)
            if on_prepared is not None and task.kind != "prepare":
                if stored is None and index > 0:
                    self._shell = await on_prepared(dict(extra), tuple(paths)) or self._shell
                on_prepared = None
            if stored is None or stored.finished_at is None:
                await self._run_task(index, task, extra, paths, resumed=stored)
            elif stored.status is not TaskStatus.SKIPPED or stored.exit_status is not None:  # another process ran the task
                self._add_exports(await self._left_files(index), extra, paths)
                if task.agent is not None and self._agents is not None:
                    restriction = await self._agents.restrict(self._machine, task.agent.allow, self._shell)
                    self._limited = restriction.environment
        return conclusion_of(self._plan, self.results, cancelled=self._cancellation.reason is not None)

    def _status(self) -> str:
        """Return the status that conditions test: `success`, `failure` or `cancelled`."""
        if self._cancellation.reason is not None:
            return "cancelled"
        mended = _mended(self._plan, self.results)
        for index, result in self.results.items():
            bad = index not in mended and result.status.has_failed
            if bad and not self._plan.tasks[index].continue_on_error:
                return "failure"
        return "success"

    async def _run_task(
        self, index: int, task: TaskPlan, extra: dict[str, str], paths: list[str], resumed: TaskResult | None
    ) -> None:
        status = self._status()
        # Same order as GitHub Actions: the workflow's env, what earlier tasks wrote to GITHUB_ENV, the task's env; never a
        # secret.
        env = {**self._plan.env, **extra, **task.env}
        wanted = expressions.evaluate(
            task.condition, status=status, inputs=self._plan.inputs, github=self._plan.github, env=env
        )
        if resumed is None and (not wanted or self._lost is not None):
            why = f"the machine no longer exists: {self._lost}" if self._lost is not None else None
            unprepared = failed_preparation(self._plan, self.results.values()) is not None
            failure = "the preparation failed" if unprepared else "an earlier task failed"
            why = why or {"failure": failure, "cancelled": "the run was cancelled"}.get(status, f"if: {task.condition}")
            result = TaskResult(
                index=index, machine_attempt=self._attempt, name=task.name, status=TaskStatus.SKIPPED,
                started_at=now(), finished_at=now(), detail=why,
            )  # fmt: skip
            await self._save(result)
            return
        began_elsewhere = (
            resumed is not None and task.agent is not None and resumed.agent_state is None and len(self._claim.run.hosts) > 1
        )
        if began_elsewhere and not await asyncio.to_thread(has_state, self._log_folder, index):
            # The workspace before the agent's work, for one, can't be read from the machine any more.
            raise MachineLost("Only the bot of another host can continue its agent's work")
        result = resumed or TaskResult(
            index=index, machine_attempt=self._attempt, name=task.name, status=TaskStatus.RUNNING, started_at=now()
        )
        if resumed is None:
            await self._save(result)
            self._journal.note("task_started", index=index, name=task.name)
        # A task that another process started may have been running when the run was cancelled.
        cancelled_already = status == "cancelled" and wanted
        job_id = f"task-{index}"
        environment = task_script.task_environment(
            self._claim.run, task, self._secrets, task_script.task_files(index), extra, paths=paths
        )
        environment |= self._limited
        log = TaskLog(
            self._log_folder / f"{index}.log", self._redactor(), self._output(index), limit=await self._room_for(index)
        )
        if task.agent is not None:
            await asyncio.to_thread(log.forget)  # its output is read again from the beginning
        await log.open()
        if self._announced and resumed is None:
            await log.begin("".join(f"gibil: {self._redactor().text(line)}\n" for line in self._announced))
            self._announced = ()
        self._log = log
        problem = ""
        ended: Exit | None = None
        stopped: TaskStatus | None = None
        reached: str | None = None
        agent: AgentOutcome | None = None
        started_at = result.started_at or now()
        limit = AFTER_CANCEL_S if cancelled_already else self._limit_s(task)
        left_s = max(0.0, limit - (now() - started_at).total_seconds())
        stops = () if cancelled_already else (self._cancelled,)
        try:
            if task.agent is not None:
                agent = await self._work_of_agent(index, task, extra, paths, log, result, left_s, stops)
                stopped = agent.status
            else:
                ended, stopped = await self._work_of_script(index, task, environment, log, left_s, stops)
            failed = agent is None and stopped is None and (ended is None or ended.status != 0)
            refused, reached = await asyncio.gather(
                self._refused_since(started_at), self._reached(started_at, log, failed=failed)
            )
            result = replace(result, refusals=refused)
            lines = [*blocked_view(refused), *([reached] if reached else [])]
            await log.close("".join(f"gibil: {line}\n" for line in lines))
        except UsageError as error:
            problem = f"The agent can't work: {error.message.rstrip('.')}."
            await log.close()
        except JobNotStarted as error:
            problem = self._why_not_started(error, index, task)
            await log.close()
        except MachineLost as error:
            found = await self._why_lost(error, started_at)
            if found is None:
                with contextlib.suppress(OSError):
                    await asyncio.shield(log.detach())
                raise
            problem = found
            await log.close()
            if isinstance(error, JobLost):
                if task.agent is None:
                    await job_control.kill(self._shell, job_id)
            else:
                self._lost = found
        except BaseException:
            with contextlib.suppress(OSError):
                await asyncio.shield(log.detach())
            raise
        finally:
            self._log = None
        exit_status = ended.status if ended is not None else None
        if agent is not None:
            exit_status = agent.exit_status
            problem = agent.detail if agent.status is not TaskStatus.CANCELLED else ""
            result = replace(result, agent=agent.result)
            self._limited = agent.environment
            if reached is not None and agent.status is TaskStatus.FAILURE:
                problem = f"{problem} {reached[:1].upper()}{reached[1:]}."  # often the cause
                result = replace(result, agent=replace(agent.result, ended=problem))
            if agent.review is not None:
                await self._runs.record(self._claim, [agent.review])
        elif (so_far := self.results[index].agent) is not None:  # what was used so far
            result = replace(result, agent=replace(so_far, ended=problem))
        result = replace(
            result,
            status=stopped or (TaskStatus.SUCCESS if exit_status == 0 else TaskStatus.FAILURE),
            finished_at=now(),
            exit_status=exit_status,
            tail=log.tail(STORED_TAIL_BYTES),
            detail=problem or self._detail(exit_status, stopped, task, log.problem),
            agent_state=None,
        )
        if ended is not None and ended.output_cut and stopped is None:
            too_much = log.raw_offset + log.skipped >= MOST_OUTPUT_BYTES
            cut = _PRINTED_TOO_MUCH if too_much else _OUTPUT_CUT
            detail = cut if exit_status == 0 or too_much else f"{result.detail}; {cut}"
            result = replace(result, status=TaskStatus.FAILURE, detail=detail)
        if reached is not None and not problem and stopped is None:
            result = replace(result, detail=f"{result.detail.partition(':')[0]}: {reached}" if result.detail else reached)
        files = returned_with(ended, index) if ended is not None else None
        if files is None:
            files = await self._left_files(index)
        result = replace(result, summary=self._redactor().text(files.summary.decode("utf-8", "replace")))
        unreadable = self._add_exports(files, extra, paths)
        if unreadable and result.status is TaskStatus.SUCCESS:
            result = replace(result, status=TaskStatus.FAILURE, detail=unreadable)
        if result.status is TaskStatus.SUCCESS and (why := files.neutral.decode("utf-8", "replace").strip()):
            result = replace(result, status=TaskStatus.SKIPPED, detail=self._redactor().text(why).split("\n")[0])
        await self._save(result)
        self._journal.note("task_finished", index=index, name=task.name, status=result.status.value, seconds=result.duration_s)

    async def _work_of_script(
        self, index: int, task: TaskPlan, env: Mapping[str, str], log: TaskLog, left_s: float, stops: Sequence[Stop]
    ) -> tuple[Exit | None, TaskStatus | None]:
        job = job_control.job_of(task, f"task-{index}", env, returns=paths_of(index), most_output_bytes=MOST_OUTPUT_BYTES)
        await self._shell.start(job)
        return await job_control.follow(self._shell, job.id, log, left_s, on_output=self._on_change, stops=stops)

    async def _work_of_agent(
        self,
        index: int,
        task: TaskPlan,
        extra: Mapping[str, str],
        paths: Sequence[str],
        log: TaskLog,
        result: TaskResult,
        left_s: float,
        stops: Sequence[Stop],
    ) -> AgentOutcome:
        assert task.agent is not None
        if self._agents is None:
            raise UsageError(agents_missing())

        def environment(of: int, task: TaskPlan) -> dict[str, str]:
            # Never with secrets: a text may make an agent reveal them.
            return task_script.task_environment(self._claim.run, task, {}, task_script.task_files(of), extra, paths=paths)

        from gibil_bot.runs.agent_attempts import AgentAttempts
        from gibil_bot.runs.agent_tasks import AgentTask  # with the proxy's libraries, which few runs need

        agents, until = self._agents, task.agent.until
        work: AgentTask | AgentAttempts

        def show() -> None:
            self.results[index] = replace(result, agent=work.result)
            self._on_change()

        async def save_state(state: AgentState) -> None:
            # An agent doesn't wait for a database that can't be reached: this host has a file with the same content.
            with contextlib.suppress(StoreError):
                await self._runs.save_task(self._claim, replace(result, agent_state=state))

        def new_task(attempt: int, machine: str, shell: Shell, log: TaskLog) -> AgentTask:
            return AgentTask(
                agents,
                run=self._claim.run,
                index=index,
                task=task,
                attempt=attempt,
                machine=machine,
                machine_attempt=self._attempt,
                shell=shell,
                env=environment(index, task),
                checks=[Check(task=each, env=environment(of, each)) for of, each in self._tasks_of(until)] if until else (),
                failed=self._failing_before(index),
                log=log,
                folder=self._log_folder,
                most_bytes=self._room,
                redactor=self._redactor,
                stops=stops,
                on_change=show,
                # Attempts have copies of a machine of this host, so no other host continues them.
                state=result.agent_state if not attempt else None,
                save_state=save_state if not attempt else None,
            )

        if task.agent.attempts == 1:
            work = new_task(0, self._machine, self._shell, log)
            show()
            return await work.work(left_s)
        assert self._machines is not None
        work = AgentAttempts(
            agents,
            run_id=self._claim.run.id,
            task=task,
            index=index,
            machine=self._machine,
            shell=self._shell,
            machines=self._machines,
            new_task=new_task,
            log=log,
            folder=self._log_folder,
            most_bytes=self._room,
            redactor=self._redactor,
            stops=stops,
            on_change=show,
        )
        show()
        try:
            return await work.work(left_s)
        finally:
            self._shell = work.shell

    def _tasks_of(self, name: str) -> list[tuple[int, TaskPlan]]:
        """Return the tasks of that name that say something about the code: one, or those that replaced it.

        What prepares the machine is one of them if it failed.
        """
        failed = {index for index, result in self.results.items() if result.status.has_failed}
        return [
            (index, task)
            for index, task in enumerate(self._plan.tasks)
            if name in (task.name, task.part_of) and task.agent is None and (task.kind != "prepare" or index in failed)
        ]

    def _failing_before(self, index: int) -> list[FailedTask]:
        found = [self.results[before] for before in range(index) if before in self.results]
        bad = [result for result in found if result.status.has_failed]
        return [FailedTask(name=each.name, exit_status=each.exit_status, output=each.tail) for each in bad]

    async def _cancelled(self) -> TaskStatus:
        await self._cancellation.wait()
        return TaskStatus.CANCELLED

    async def _reached(self, started_at: datetime, log: TaskLog, *, failed: bool) -> str | None:
        """Return which limits were reached since then: what the provider knows, else what a failed task printed."""
        known = await self._cause(started_at)
        if known is not None or not failed:
            return known
        printed = await log.read_back(_SEARCHED_BYTES)
        for words, why in _LIMITS_REACHED:
            if match := re.search(words, printed):
                return f"it printed {match[0].decode(errors='replace')!r}: {why}"
        return None

    async def _refused_since(self, started_at: datetime) -> Refusals:
        """Return the connections that the machine was refused since then, redacted: a task chooses the names of hosts."""
        refusals = await self._refusals(time.monotonic() - (now() - started_at).total_seconds())
        # Host names are lower case; secrets may not be.
        plain, lower = self._redactor(), Redactor(secret.lower() for secret in self._secrets.values())
        hosts = ((refusal, lower.text(plain.text(refusal.host))) for refusal in refusals.refused)
        return replace(refusals, refused=tuple(replace(refusal, host=host) for refusal, host in hosts))

    def _why_not_started(self, error: JobNotStarted, index: int, task: TaskPlan) -> str:
        """Return the reason, with a hint if an earlier task may have removed the working directory."""
        if NO_FOLDER in error.message and any(result.exit_status is not None for result in self.results.values()):
            may = " may have" if task.working_directory else ""
            return f"{error.message} (an earlier task{may} removed it)"
        return error.message

    async def _why_lost(self, error: MachineLost, since: datetime) -> str | None:
        """Return how the task ended the machine; None if unknown, so that the task isn't blamed."""
        if isinstance(error, JobLost):
            return await self._cause(since) or error.message
        for _ in range(CAUSE_TRIES):
            if (found := await self._cause(since)) is not None:
                return found
            await asyncio.sleep(CAUSE_EVERY_S)
        return None

    async def _room_for(self, index: int) -> int:
        """Return how many bytes the log of a task may have, given the size of the other logs."""
        folder = self._log_folder
        return max(0, self._room - await asyncio.to_thread(size_of, folder, folder / f"{index}.log"))

    async def _left_files(self, index: int) -> ReturnedFiles:
        """Read the files that a task wrote; empty if the machine can't answer, because tasks may have replaced the programs
        used.
        """
        if self._lost is None:
            with contextlib.suppress(SSHError, JobLost, TimeoutError):
                return await read_returned_files(self._shell, index)
        return ReturnedFiles(b"", b"", b"")

    def _limit_s(self, task: TaskPlan) -> float:
        """Return the task's time limit in seconds: its own timeout, or what is left of the workflow's."""
        before = sum(r.duration_s or 0.0 for r in self.results.values())
        return min(task.timeout_s, max(0.0, self._plan.timeout_s - before)) if self._plan.timeout_s else task.timeout_s

    def _detail(self, exit_status: int | None, stopped: TaskStatus | None, task: TaskPlan, log_problem: str | None) -> str:
        if stopped is TaskStatus.TIMED_OUT:
            return f"stopped after {self._limit_s(task) / 60:g} minutes (timeout-minutes)"
        if stopped is TaskStatus.CANCELLED:
            return self._cancellation.reason or "cancelled"
        if exit_status == 137:
            return "exit status 137: killed, usually because the machine ran out of memory"
        if exit_status != 0:
            return f"exit status {exit_status}"
        return log_problem or ""

    def _output(self, index: int) -> Callable[[bytes], None] | None:
        on_output = self._on_output
        return None if on_output is None else lambda data: on_output(index, data)

    def _add_exports(self, files: ReturnedFiles, extra: dict[str, str], paths: list[str]) -> str | None:
        """Add the variables and paths that the task exported for later tasks. Returns the reason if the files are invalid."""
        try:
            extra.update(task_script.parse_env_file(files.env))
            paths[:0] = reversed(task_script.parse_path_file(files.path))
        except ValueError as error:
            return str(error)
        return None

    async def _save(self, result: TaskResult) -> None:
        self.results[result.index] = result
        await self._runs.save_task(self._claim, result)
        self._on_change()
