"""Agent tasks: an agent's program works on the machine of a run, and its model is reached through the bot's proxy.

The program is a detached job, as scripts are. Another process continues with it: jobs are found by their ids, the program's
token and port are the same again, and its output is read from the beginning. What it reports is shown and never believed:
what was used is what the proxy counted, and what changed is what git says.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from gibil_bot.agent_task import AgentResult, AgentState, FailedTask, Spent
from gibil_bot.agents.archive import archive_of
from gibil_bot.agents.budget import WatchedBudget, account_of, describe, limits_of, open_budget, summary_of
from gibil_bot.agents.context import Prompt, Round
from gibil_bot.agents.dialects import new_dialect
from gibil_bot.agents.launch import launch, model_of
from gibil_bot.agents.output import AgentOutput
from gibil_bot.agents.proxy.tokens import AccessSummary
from gibil_bot.agents.transcript import Ended
from gibil_bot.agents.transcript_summary import TranscriptSummary
from gibil_bot.agents.verdict import verdict
from gibil_bot.errors import GibilError, JobLost, JobNotStarted, SSHError, UsageError
from gibil_bot.github.render_agents import spent_view
from gibil_bot.github.review import FINDINGS_BYTES, changed_lines, problems_of, read_findings, review
from gibil_bot.humanize import count
from gibil_bot.model import EgressRestriction, Job, Notification, Run, TaskPlan, TaskStatus
from gibil_bot.ports import Shell
from gibil_bot.runs import job_control
from gibil_bot.runs.agent_briefing import FINDINGS
from gibil_bot.runs.agent_changes import MOST_PATCH, AgentChanges, read_changes
from gibil_bot.runs.agent_sinks import AgentLog, CheckSink, EventSink, events_limit, new_file
from gibil_bot.runs.agent_state import read_value, state_file, store_value
from gibil_bot.runs.agent_tools import PROTOCOLS, AgentTools, task_name, token_name
from gibil_bot.runs.agent_values import AgentOutcome, Check
from gibil_bot.runs.job_control import Stop
from gibil_bot.runs.logs import TaskLog
from gibil_bot.runs.redact import Redactor
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.task_script import working_folder
from gibil_bot.ssh.answers import BadAnswer, last_line
from gibil_bot.ssh.remote_forwarding import keep_forwarding

log = logging.getLogger("gibil.agents")

FOLDER = "/root/.gibil/agents"
"""Where a machine has the prompts, contexts and HOMEs of agents."""
AFTER_BUDGET_S = 15.0
"""How long a program may go on after the first call that a budget rejected. Those of shipped engines end within a second."""
LEFT_BEHIND_S = 1.0
"""How long processes that a program left behind may take to end."""
MOST_OUTPUT_BYTES = 256 * 1024 * 1024
STORE_S = 30.0
READ_S = 30.0
ACCOUNT_BYTES = 16 * 1024
ANSWER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Session:
    """What all programs of an agent task have in common."""

    environment: Mapping[str, str]
    """Leads them out of a machine that is limited to an allow-list."""
    url: str
    """The model's, on the machine. Empty: there is none."""
    lost: asyncio.Future[GibilError] | None
    """Resolves when the way to the model is lost for good."""
    deadline: float
    """By the event loop's clock."""

    @property
    def left_s(self) -> float:
        return job_control.left_s(self.deadline)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """How a program ended."""

    ended: Ended
    stopped: TaskStatus | None
    exit_status: int | None
    summary: TranscriptSummary


class AgentTask:
    """The work of one agent on one machine: an agent task, or one attempt of it. Call `work` once."""

    def __init__(
        self,
        tools: AgentTools,
        *,
        run: Run,
        index: int,
        task: TaskPlan,
        machine: str,
        machine_attempt: int,
        shell: Shell,
        env: Mapping[str, str],
        checks: Sequence[Check],
        failed: Sequence[FailedTask],
        log: TaskLog,
        folder: Path,
        most_bytes: int,
        redactor: Callable[[], Redactor],
        stops: Sequence[Stop],
        on_change: Callable[[], None],
        attempt: int = 0,
        state: AgentState | None = None,
        save_state: Callable[[AgentState], Awaitable[None]] | None = None,
    ) -> None:
        """`most_bytes`: of all files in `folder`. `state`: as `save_state` stored it for another process.

        Raises UsageError for an engine or a model that can't be used.
        """
        assert task.agent is not None
        self._tools = tools
        self._run, self._task, self._plan = run, task, task.agent
        self._engine = tools.engine(task.agent.engine)
        self._model = model_of(self._engine, task.agent)
        self._vendor = tools.vendor_of(self._engine, self._model)
        self._machine, self._shell = machine, shell
        self._env, self._checks, self._failed = env, checks, tuple(failed)
        self._index, self._attempt = index, attempt
        self._name = task_name(index, attempt)
        self._key = token_name(run, machine_attempt, index, attempt)
        self._home = f"{FOLDER}/{self._name}"
        self._folder, self._most_bytes = folder, most_bytes
        self._redactor = redactor
        self._stops = stops
        self._on_change = on_change
        self._log = AgentLog(log)
        self._account = account_of(run.id, run.source, index, attempt)
        self._ledger_budget = open_budget(
            tools.ledger,
            tools.settings,
            tools.prices,
            self._account,
            task.agent,
            self._vendor,
            counts_turns=not self._engine.limits_turns,
        )
        self._budget = WatchedBudget(self._ledger_budget, self._spent_more)
        self._before = Spent()
        self._notes: tuple[str, ...] = ()
        self._is_short = False
        """The budget of machine time ends the task before its own time limit."""
        self._state_file = state_file(folder, self._name)
        self._state = state or AgentState()
        self._store_state = save_state
        self._job = ""
        """The job that was started last."""
        self._active_at = 0.0
        """When its program last printed something or a call of its model ended, by the event loop's clock."""
        self._silent_s: float | None = None
        """Its program was stopped because it was inactive for that long."""
        self._uncounted = ""
        """Why the machine couldn't compare the workspace."""
        self._briefing = tools.briefing(run)
        self.result = AgentResult(
            engine=self._engine.name,
            model=self._model,
            budget=summary_of(limits_of(tools.settings.budgets, task.agent)) if self._vendor else "",
        )
        """So far."""

    def _spent_more(self) -> None:
        self.result = replace(self.result, spent=self._before + self._budget.spent)
        self._note_activity()

    def _note_activity(self) -> None:
        self._active_at = asyncio.get_running_loop().time()
        self._on_change()

    async def work(self, limit_s: float) -> AgentOutcome:
        """Let the agent work until it and the checks have ended.

        Raises MachineLost, SSHError, and GibilError if it can't begin.
        """
        if self._plan.until and not self._checks:
            raise UsageError(f"`until: {self._plan.until}` names no task that can be run after its work")
        allowed_s = await self._ledger_budget.seconds_left()
        self._is_short = allowed_s is not None and allowed_s < limit_s
        deadline = asyncio.get_running_loop().time() + (allowed_s if allowed_s is not None and self._is_short else limit_s)
        if not self._attempt:  # else calls of other attempts are in progress
            await self._tools.ledger.book_estimates(self._run.id)  # of a process that was killed
        stored: AgentState | None = await asyncio.to_thread(read_value, self._state_file, AgentState)
        if stored is not None and stored.saves >= self._state.saves:
            self._state = stored
        self._notes = tuple(self._state.notes)
        self._before = await self._ledger_budget.spent()
        self._spent_more()
        if self._state.limit:
            self._budget.limit = self._state.limit
            self._budget.exceeded.set()
        restriction = EgressRestriction()
        try:
            restriction = await self._tools.restrict(self._machine, self._plan.allow, self._shell)
            async with self._model_access() as (url, lost):
                session = _Session(environment=restriction.environment, url=url, lost=lost, deadline=deadline)
                outcome = await self._rounds(session)
        except (SSHError, BadAnswer, TimeoutError) as error:
            if not self._state.tree:  # no agent has worked on this machine
                raise
            outcome = await self._unusable(error)
        finally:
            spent = await asyncio.shield(self._ledger_budget.close())
            self.result = replace(self.result, spent=spent)
        if outcome.status.has_failed and self._plan.writes and not self._attempt:
            self._notes += await self._store_changes()
        notes = tuple(dict.fromkeys((*outcome.result.notes, *self._notes)))
        self.result = replace(outcome.result, spent=spent, notes=notes)
        return dataclasses.replace(outcome, result=self.result, environment=restriction.environment)

    async def _guarded_program(self, rounds: Sequence[Round], session: _Session) -> _Work:
        """Run the agent's program once, while the files that may steer it are replaced. Checks see the head's own files."""
        if len(rounds) < len(self._state.changed):  # it ended in an earlier process; that of a later round may run
            return await self._program(rounds, session)
        state = f"{self._home}/replaced"
        await self._briefing.guard(self._shell, self._engine, state)
        try:
            found = await self._program(rounds, session)
        except (JobLost, JobNotStarted, UsageError, SSHError, BadAnswer, TimeoutError) as error:
            # The run goes on with this machine. After other errors it doesn't, or another process continues, and until then the
            # program goes on, which mustn't see the head's files.
            if self._job and not isinstance(error, JobNotStarted | UsageError):
                await job_control.kill(self._shell, self._job)
            with contextlib.suppress(SSHError, BadAnswer, TimeoutError):  # the first error says more
                await self._briefing.unguard(self._shell, self._engine, state)
            raise
        self._notes += await self._briefing.unguard(self._shell, self._engine, state)
        return found

    async def _unusable(self, error: Exception) -> AgentOutcome:
        """Return the failure of an agent whose machine no longer does what the bot asks. Another machine would have another."""
        why = error.message if isinstance(error, GibilError) else "the machine didn't answer in time"
        sentence = (
            f"The agent's work can't be used: {self._redactor().text(why)}. The agent may have destroyed what the bot needs."
        )
        await self._log.write(f"gibil: {sentence}\n".encode())
        self.result = replace(self.result, ended=sentence, limit=self._budget.limit)
        return AgentOutcome(status=TaskStatus.FAILURE, detail=sentence, exit_status=None, result=self.result)

    @contextlib.asynccontextmanager
    async def _model_access(self) -> AsyncIterator[tuple[str, asyncio.Future[GibilError] | None]]:
        """Let the machine use the model; yield the proxy's address on it, and what resolves when that is lost for good."""
        if not self._vendor:
            yield "", None
            return
        proxy, token = self._tools.proxy, self._tools.token(self._key)
        proxy.open(
            token=token,
            run_id=self._run.id,
            task=self._index,
            attempt=self._attempt,
            protocol=self._engine.protocol or PROTOCOLS[self._vendor],
            provider=self._vendor,
            models=(self._model, *self._engine.models),
            budget=self._budget,
        )
        try:
            connect = functools.partial(self._tools.open_shell, self._machine)
            async with keep_forwarding(connect, await proxy.listen(token), port=self._state.port) as kept:
                self._state.port = kept.port
                await self._save_state()
                yield f"http://127.0.0.1:{kept.port}", kept.lost
        finally:
            await asyncio.shield(proxy.close(token))

    def _access(self) -> AccessSummary:
        """Return how the machine used the model, since this process works on the task."""
        return self._tools.proxy.summary(self._tools.token(self._key)) if self._vendor else AccessSummary()

    async def _rounds(self, session: _Session) -> AgentOutcome:
        if not self._state.tree:
            self._state.tree = (await self._changes("")).tree
            await self._save_state()
        rounds: list[Round] = []
        while True:
            number = len(rounds) + 1
            if number > 1:
                await self._log.write(f"gibil: round {number} of {self._plan.rounds}\n".encode())
            done = await self._guarded_program(rounds, session)
            stopped = done.stopped
            if self._vendor:
                await self._log.write(f"gibil: {spent_view(self.result.spent)} until now\n".encode())
            if stopped is TaskStatus.TIMED_OUT and self._is_short and self._silent_s is None:
                self._budget.limit = await self._time_budget()
            changed_files = await self._changed_files(number)
            status, sentence = self._verdict(stopped, done.ended, changed_files, session.lost)
            if self._uncounted and done.ended.is_success and stopped is None and not self._budget.limit and self._plan.writes:
                status, sentence = TaskStatus.FAILURE, f"The agent's changes can't be read: {self._uncounted}."
            self.result = replace(
                self.result,
                account=done.summary.markdown(ACCOUNT_BYTES),
                answer=done.summary.last_words[:ANSWER_BYTES],
                limit=self._budget.limit,
                rounds=number,
            )
            if stopped is not None or self._budget.limit or not self._checks or not changed_files:
                break
            failing, stopped = await self._check(number, session)
            if stopped is not None:
                if stopped is TaskStatus.TIMED_OUT and self._is_short:
                    self._budget.limit = await self._time_budget()
                    self.result = replace(self.result, limit=self._budget.limit)
                status, sentence = self._verdict(stopped, done.ended, changed_files, session.lost)
                break
            if not failing:
                after = f" after {number} rounds" if number > 1 else ""
                status, sentence = TaskStatus.SUCCESS, f"The agent made {self._plan.until} pass{after}."
                break
            names = ", ".join(each.name for each in failing)
            if status is TaskStatus.SUCCESS or number < self._plan.rounds:
                status, sentence = TaskStatus.FAILURE, f"{names} still fails after {_rounds(number)} of the agent's work."
            if number >= self._plan.rounds:
                break
            rounds.append(Round(answer=self.result.answer, changed=changed_files, failed=failing))
        self.result = replace(self.result, ended=sentence)
        review = None
        if self._plan.output == "review" and status is TaskStatus.SUCCESS:
            review = await self._review(f"{self._home}/{number}/{FINDINGS}")
        return AgentOutcome(status=status, detail=sentence, exit_status=done.exit_status, result=self.result, review=review)

    async def _review(self, path: str) -> Notification | None:
        """Return the comments that the agent wrote to its file."""
        # Only a file: reading anything else may take for ever.
        script = f"test ! -f {path} || head -c {FINDINGS_BYTES + 1} {path}"
        read = await self._shell.run(script, timeout_s=READ_S, most_bytes=FINDINGS_BYTES + 1)
        text = self._redactor().text(read.stdout.decode("utf-8", "replace"))
        findings = read_findings(text.encode(), checkout=WORKSPACE)
        self.result = replace(self.result, notes=tuple(problems_of(findings)))
        diff = self._briefing.diff
        # Without a diff, the lines can't be checked, so that the review has no comments on lines.
        changed = await asyncio.to_thread(changed_lines, diff) if diff is not None else {}
        found = review(findings, changed, run=self._run, task=self._index, engine=self._engine.name, model=self._model)
        if found is None and not self.result.notes:
            self.result = replace(self.result, notes=(*self.result.notes, "The agent found nothing to comment on."))
        return found

    def _verdict(
        self, stopped: TaskStatus | None, ended: Ended, changed_files: int, lost: asyncio.Future[GibilError] | None
    ) -> tuple[TaskStatus, str]:
        access = self._access()
        return verdict(
            ended,
            good_calls=self._before.calls + access.answered,
            refused_calls=(self._before + self._budget.spent).refused,
            changed_files=changed_files,
            limit=self._budget.limit,
            writes=self._plan.writes,
            has_model=bool(self._vendor),
            max_turns=self._plan.max_turns,
            problem=access.problem,
            vendor_status=access.vendor_status,
            rejection=access.rejection,
            lost=lost.result().message if lost is not None and lost.done() else "",
            timed_out_s=self._task.timeout_s if stopped is TaskStatus.TIMED_OUT and self._silent_s is None else None,
            silent_s=self._silent_s,
            is_cancelled=stopped is TaskStatus.CANCELLED,
        )

    async def _program(self, rounds: Sequence[Round], session: _Session) -> _Work:
        """Run the agent's program once."""
        number = len(rounds) + 1
        base = f"{self._home}/{number}"
        if (is_new := number > self._state.prompted) or self._plan.output == "review":  # whose diff comes with the prompt
            prompt = await self._briefing.prompt(self._task, self._engine, self._failed, rounds, base)
            if is_new:
                await self._write_prompt(prompt, base)
                self._state.prompted = number
                await self._save_state()
        started = launch(
            self._engine,
            self._plan,
            url=session.url,
            token=self._tools.token(self._key).reveal() if session.url else "",
            home=f"{base}/home",
            prompt_file=f"{base}/prompt.md",
            checkout=working_folder(self._task),
        )
        is_text = self._engine.dialect == "text"
        sink = EventSink(
            AgentOutput(new_dialect(self._engine.dialect), folder=WORKSPACE, redact=self._redactor().text),
            await asyncio.to_thread(new_file, self._folder / f"{self._name}.{number}.events"),
            await asyncio.to_thread(events_limit, self._folder, self._most_bytes),
            self._log,
            self._redactor(),
        )
        job_id = self._job = f"agent-{self._name}-{number}"
        await self._shell.start(
            Job(  # noqa: S604 (a word)
                id=job_id,
                script=started.script(),
                env=started.job_environment({**self._env, **session.environment}),
                working_directory=WORKSPACE,
                shell="sh",
                merged=is_text,
                most_output_bytes=MOST_OUTPUT_BYTES,
            )
        )

        def on_error(data: bytes) -> None:
            sink.feed_error(data)
            self._note_activity()

        self._note_activity()
        ended, stopped = await job_control.follow(
            self._shell,
            job_id,
            sink,
            session.left_s,
            on_output=self._note_activity,
            on_error=on_error,
            stops=(*self._stops, *self._own_stops(sink, session.lost)),
        )
        exit_status = ended.status if ended is not None and stopped is None else None
        if stopped is None:
            # What it started would go on during the checks, and after them.
            await job_control.kill(self._shell, job_id, grace_s=LEFT_BEHIND_S)
        judged = await sink.end(exit_status)
        if stopped is TaskStatus.SUCCESS:  # it had reported its end and went on, or it lost its model
            stopped = None
        return _Work(ended=judged, stopped=stopped, exit_status=exit_status, summary=sink.output.summary)

    def _own_stops(self, sink: EventSink, lost: asyncio.Future[GibilError] | None) -> list[Stop]:
        silent_s = self._engine.silent_s

        async def after_its_end() -> TaskStatus:
            await sink.has_ended.wait()
            await asyncio.sleep(self._engine.end_grace_s)
            return TaskStatus.SUCCESS

        async def after_the_budget() -> TaskStatus:
            await self._budget.exceeded.wait()
            self._state.limit = self._budget.limit
            await self._save_state()
            await asyncio.sleep(AFTER_BUDGET_S)
            return TaskStatus.FAILURE

        async def after_a_silence() -> TaskStatus:
            assert silent_s is not None
            left_s = silent_s
            while left_s > 0:
                await asyncio.sleep(left_s)
                # Of a program that has printed too much, nothing more is read.
                left_s = silent_s if sink.is_full else job_control.left_s(self._active_at + silent_s)
            self._silent_s = silent_s
            return TaskStatus.TIMED_OUT

        stops: list[Stop] = [after_its_end, after_the_budget]
        if silent_s is not None:
            stops.append(after_a_silence)
        if lost is not None:
            is_lost = lost

            async def after_a_loss() -> TaskStatus:
                await asyncio.shield(is_lost)
                return TaskStatus.SUCCESS

            stops.append(after_a_loss)
        return stops

    async def _check(self, number: int, session: _Session) -> tuple[tuple[FailedTask, ...], TaskStatus | None]:
        """Run the checks; return those that fail. The first failing one is the last that runs.

        The status is not None if the agent's task was stopped meanwhile: its time is over, or the run was cancelled.
        """
        for position, check in enumerate(self._checks):
            await self._log.write(f"gibil: {check.task.name}, after round {number}\n".encode())
            sink = CheckSink(self._log)
            job_id = self._job = f"check-{self._name}-{number}-{position}"
            task = check.task
            env = {**check.env, **session.environment}
            await self._shell.start(job_control.job_of(task, job_id, env, most_output_bytes=MOST_OUTPUT_BYTES))
            left = session.left_s
            ended, stopped = await job_control.follow(
                self._shell, job_id, sink, min(left, task.timeout_s), on_output=self._on_change, stops=self._stops
            )
            if stopped is not None and (stopped is not TaskStatus.TIMED_OUT or left <= task.timeout_s):
                return (), stopped
            if ended is None or ended.status != 0:
                output = self._redactor().text(sink.tail.decode("utf-8", "replace"))
                return (FailedTask(name=task.name, exit_status=None if ended is None else ended.status, output=output),), None
        return (), None

    async def _time_budget(self) -> str:
        """Return the budget of machine time that is used up."""
        balances = await self._ledger_budget.balances()
        return next((describe(each, self._account) for each in balances if each.limit.measure == "seconds"), "")

    async def _changed_files(self, number: int) -> int:
        """Return how many files differ after this round from those before the agent's work."""
        if len(self._state.changed) < number:
            self._state.changed.append((await self._changes(self._state.tree)).files)
            self._state.limit, self._state.notes = self._budget.limit, list(self._notes)
            await self._save_state()
        return self._state.changed[number - 1]

    async def _store_changes(self) -> tuple[str, ...]:
        """Store what an agent changed that didn't succeed: a part of it may be of use. Returns a note for people."""
        try:
            async with asyncio.timeout(STORE_S):
                changes = await read_changes(self._shell, self._state.tree, most_patch=MOST_PATCH)
            if not changes.patch:
                return ()
            await asyncio.to_thread((self._folder / f"{self._name}.patch").write_bytes, changes.patch)
        except (GibilError, OSError, ValueError, TimeoutError):
            return ()
        return (f"What the agent changed so far ({count(changes.files, 'file')}) is stored with the run as a patch.",)

    async def _write_prompt(self, prompt: Prompt, base: str) -> None:
        files = {f"{prompt.folder}/{name}": content for name, content in prompt.files.items()}
        files[f"{base}/prompt.md"] = prompt.text.encode()
        archive = archive_of((path, content, 0o600) for path, content in files.items())
        done = await self._shell.run(f"umask 077; mkdir -p {base}/context && tar -xf - -C /", stdin=archive, timeout_s=READ_S)
        if done.exit_status != 0:
            raise JobNotStarted(f"the prompt can't be written to the machine: {last_line(done.stderr)}")

    async def _save_state(self) -> None:
        self._state.saves += 1
        await asyncio.to_thread(store_value, self._state_file, self._state)
        if self._store_state is not None:
            await self._store_state(self._state)

    async def _changes(self, before: str) -> AgentChanges:
        """Compare the workspace; a machine that can't say has none that count."""
        try:
            return await read_changes(self._shell, before)
        except (BadAnswer, SSHError) as error:
            self._uncounted = self._redactor().text(error.message).rstrip(".")
            await self._log.write(f"gibil: {self._uncounted}\n".encode("utf-8", "replace"))
            return AgentChanges(tree="")


def _rounds(number: int) -> str:
    return "one round" if number == 1 else f"{number} rounds"
