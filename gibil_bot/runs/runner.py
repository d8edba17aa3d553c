"""Runs one claimed run until its check run is closed: create a machine, copy the code, run the tasks, destroy it, report.

A runner can be stopped in three ways, and only the first ends the run:
- `cancel(reason)`: the run should stop (superseded, cancelled, closed). It ends as `cancelled` and its machine is destroyed.
- Its asyncio task is cancelled: this process stops. The machine and its detached tasks go on, and the next process reattaches.
- `ClaimLost`: another process works on the run now. Nothing more is written, and no machine is destroyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec.structs import replace

from gibil_bot.clock import now
from gibil_bot.config import GIB
from gibil_bot.detection.detect import wanted
from gibil_bot.detection.project import Project
from gibil_bot.errors import ClaimLost, GibilError, GitHubError, MachineLost, ProviderError, SSHError, StoreError, Unavailable
from gibil_bot.github import render
from gibil_bot.humanize import duration, megabytes
from gibil_bot.model import Claim, Conclusion, Machine, Plan, PreparedMachine, Run, TaskResult, Trust
from gibil_bot.operator_secrets import ScopedSecrets, Secret, missing_secret
from gibil_bot.ports import LAYER_GONE, Forking, Hosts, RunRecorder, Shell
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.providers.optional import notices, refusals
from gibil_bot.runs import job_control
from gibil_bot.runs.agent_values import RunMachines, agents_missing, cannot_copy
from gibil_bot.runs.cached_files import RunCaches
from gibil_bot.runs.caches import Caches
from gibil_bot.runs.cancellation import Cancellation
from gibil_bot.runs.detected_tasks import detect_tasks, purpose_of
from gibil_bot.runs.execution import Execution, conclusion_of, is_complete
from gibil_bot.runs.logs import Journal, Observer
from gibil_bot.runs.machine_room import MachineRoom
from gibil_bot.runs.preparation import Preparation
from gibil_bot.runs.prepared import PreparedMachines, Scope, preparing_tasks, scope_of
from gibil_bot.runs.project_reader import read_project
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import CommitSteps, RunCommits
from gibil_bot.runs.run_files import RunFiles
from gibil_bot.runs.sources import SourceError, SourceTransfer, address_of
from gibil_bot.scripts.prepared import begin_script
from gibil_bot.scripts.runtimes import USED_SCRIPT

if TYPE_CHECKING:
    from gibil_bot.runs.agent_tools import AgentTools

log = logging.getLogger("gibil.runner")
T = TypeVar("T")

PUBLISH_EVERY_S = 5.0
QUEUED_SHOWN_S = 2.0
"""Minimum time for which a check run is shown as queued: a run that ends sooner needs no update in between."""
DETECT_TIMEOUT_S = 60.0
RUNTIMES_TIMEOUT_S = 5.0
MACHINES_PER_RUN = 2
"""The first machine, and a second one if the first was lost and the tasks didn't cause that."""
MOVES_PER_RUN = 3
"""How often a run starts again because the host of its machine is away. These machines aren't counted as lost."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Dependencies and settings that all runs of this process share."""

    runs: RunRecorder
    factory: MachineFactory
    transfer: SourceTransfer
    logs: Path
    owner: str
    """Owner of the machines: the same for all processes that share one data directory."""
    secrets: ScopedSecrets
    masked: tuple[Secret, ...] = ()
    """The bot's own secrets that are masked in output, although no machine should have them."""
    egress: tuple[str, ...] = ()
    public_url: str = ""
    max_ttl_s: int = 86400
    max_logs_bytes: int = GIB
    """Limit for each run."""
    tethered: bool = False
    host: str = ""
    """Id of this host."""
    hosts: Hosts | None = None
    """None: no other host can have worked on the runs."""
    is_shared: bool = False
    """Whether other processes may claim the runs at any time."""
    observer: Observer | None = None
    output: Callable[[int, bytes], None] | None = None
    prepared: PreparedMachines | None = None
    """None: every run prepares its machine itself."""
    caches: Caches | None = None
    """None: no files are stored for later runs."""
    commits: Callable[[Run, Redactor], AbstractAsyncContextManager[CommitSteps]] | None = None
    """Returns the steps of one run's commits. None: there is no GitHub to commit to."""
    files: RunFiles | None = None
    """If other hosts may have files of runs."""
    on_runtimes: Callable[[tuple[str, ...]], None] | None = None
    """Called after a trusted run with the trees of `gibil-runtime` that its machine used. Neither waits nor raises."""
    agents: Callable[[], Awaitable[AgentTools]] | None = None
    """Opens what agent tasks need, for the first run that has one. None: agents can't work here."""
    max_machines: int | None = None
    """How many machines all runs and the copies of their machines may have. None: any number."""
    local_checkout: str | None = None
    """The path of the checkout, if runs are of one on this computer and not of a repository on GitHub."""
    fingerprint_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    """Keys the fingerprints by which a resumed run detects that its secrets were changed."""


class _Cancelled(Exception):
    """The run should stop, and none of its tasks is running."""


class Runner:
    """Works on one claimed run. Call `run()` once."""

    def __init__(self, tools: Tools, claim: Claim, *, holds: Callable[[], bool] = lambda: True) -> None:
        """`holds`: whether the lease hasn't ended by this host's clock. It needs no database."""
        self._tools = tools
        self._holds = holds
        self._claim = claim
        self._run: Run = claim.run
        self._machine_attempt = max(1, claim.run.machine_attempt)
        self._cancellation = Cancellation(claim.run.cancel_reason)
        self._journal = Journal(tools.logs / claim.run.id, tools.observer)
        self._phase = "forging a machine"
        self._created_in_s: float | None = None
        self._execution: Execution | None = None
        self._results: Mapping[int, TaskResult] = {}
        self._changed = asyncio.Event()
        self._tasks_ended = False
        self._cancellation_shown = False
        self._secret_values: dict[str, str] = {}
        self._preparation: Preparation | None = None
        self._agents: AgentTools | None = None
        """If the plan has agents."""
        self._room = MachineRoom(tools.runs, claim, tools.max_machines)
        self._runtimes: tuple[str, ...] = ()
        self._patch = ""

    def cancel(self, reason: str) -> None:
        self._cancellation.request(reason)
        self._changed.set()

    async def run(self) -> Conclusion:
        """Work until the run ends. Raises CancelledError when this process stops, ClaimLost when another process has claimed
        the run.
        """
        publisher = asyncio.create_task(self._publish())
        self._changed.set()
        try:
            self._journal.note("claimed", attempt=self._claim.fence)
            conclusion = await self._work()
        finally:
            publisher.cancel()
            await asyncio.gather(publisher, return_exceptions=True)
            await asyncio.shield(self._tools.transfer.end(self._run))
        if self._cancellation_shown:
            conclusion = Conclusion.CANCELLED  # even if something failed while the run was being stopped
        await self._finish(conclusion)
        if self._runtimes and self._tools.on_runtimes is not None:
            self._tools.on_runtimes(self._runtimes)
        return conclusion

    # --- the work ---

    async def _work(self) -> Conclusion:
        attempt = max(1, self._run.machine_attempt)
        # Only the bot of that host reaches the machine, and destroys it when it finds that the run doesn't own it any more.
        is_elsewhere = self._run.machine_host not in (None, self._tools.host)
        problem = self._read_secrets() or await self._changed_secrets() or await self._agent_problem()
        if problem:
            if self._run.machine is not None and not is_elsewhere:
                await asyncio.shield(self._destroy(self._run.machine))
            return await self._internal_failure(problem)
        is_local = self._tools.factory.provider.is_local
        most = MACHINES_PER_RUN + (max(0, len(self._run.hosts) - 1) if is_local else 0)
        while True:
            try:
                if is_elsewhere:
                    if (ended := await self._without_its_host(attempt)) is not None:
                        return ended
                    is_elsewhere, attempt = False, attempt + 1
                return await self._on_machine(attempt)
            except _Cancelled:
                return Conclusion.CANCELLED
            except Unavailable as error:
                return await self._internal_failure(" ".join((error.message, *error.remedies)))
            except (MachineLost, ProviderError, SSHError) as error:
                if self._cancellation.reason is not None:
                    return Conclusion.CANCELLED
                if attempt >= most:
                    return await self._internal_failure(f"The machine failed twice. {error.message}")
                which = "The first machine" if attempt == 1 else "A machine"
                attempt += 1
                await self._note(f"{which} was lost ({error.message}); everything was restarted on a new one.")
                self._results, self._execution = {}, None
            except TimeoutError:
                return await self._internal_failure(
                    "The machine didn't answer in time; `/gibil retest` starts the run again on a new one."
                )
            except (SourceError, GitHubError) as error:
                return await self._internal_failure(error.message)
            except (ClaimLost, StoreError):
                raise
            except Exception as error:
                log.exception("run %s: internal error", self._run.id)
                return await self._internal_failure(
                    f"Internal error in gibil: {type(error).__name__}. See the bot's log for details."
                )

    async def _without_its_host(self, attempt: int) -> Conclusion | None:
        """End a run whose machine only an absent host reaches, as far as that needs no machine; None: it has to start again."""
        run, stop = self._run, self._cancellation.reason
        self._machine_attempt = attempt
        self._results = {r.index: r for r in await self._tools.runs.task_results(run.id, attempt)}
        if is_complete(run.plan, self._results):
            with contextlib.suppress(MachineLost):
                return await self._commit_later(None, conclusion_of(run.plan, self._results, cancelled=stop is not None))
        if stop is not None:
            return Conclusion.CANCELLED
        found = await self._tools.hosts.all() if self._tools.hosts is not None else []
        seen = next((each for each in found if each.host.id == run.machine_host), None)
        if seen is None:
            why = f"The machine's host ({run.machine_host}) is no longer known"
        else:
            why = f"The machine's host, {seen.host.name}, has been away for {duration((now() - seen.seen_at).total_seconds())}"
        if attempt >= MACHINES_PER_RUN + MOVES_PER_RUN:
            return await self._internal_failure(f"{why}, and the run has been restarted {attempt - 1} times already.")
        log.warning("run %s: %s; it starts again here", run.id, why)
        await self._note(f"{why}; everything was restarted on a new machine of another host.")
        self._results = {}
        return None

    def _read_secrets(self) -> str | None:
        # Planning rejects secrets next to agents. Were one to get here, an agent would still have none.
        if self._run.source.trust is not Trust.TRUSTED or self._run.plan.has_agent:
            return None
        repository = self._run.source.repository.full_name
        found = self._tools.secrets.of_repository(repository)
        missing = [name for name in self._run.plan.secrets if name not in found]
        if missing:
            return missing_secret(missing[0], repository)
        self._secret_values = {name: found[name].reveal() for name in self._run.plan.secrets}
        return None

    async def _agent_problem(self) -> str | None:
        """Open what the plan's agents need; return why they can't work."""
        if not self._run.plan.has_agent:
            return None
        if self._tools.agents is None:
            return agents_missing()
        attempts = max(task.agent.attempts for task in self._run.plan.tasks if task.agent is not None)
        provider = self._tools.factory.provider
        if attempts > 1 and not isinstance(provider, Forking):
            return f"The run can't work here: {cannot_copy(attempts, provider.name)}."
        try:
            self._agents = await self._tools.agents()
        except (GibilError, OSError) as error:
            log.error("run %s: agents can't work: %s", self._run.id, error)
            return "Agents can't work here at the moment; the bot's log has the reason."
        return self._agents.problem(self._run)

    async def _changed_secrets(self) -> str | None:
        """Return why the run can't continue if its secrets changed: its machine's output may contain old values, which aren't
        masked.
        """
        if not self._secret_values:
            return None
        fingerprint = secrets_fingerprint(self._tools.fingerprint_key, self._secret_values)
        if await self._tools.runs.bind_secrets(self._claim, fingerprint):
            return None
        return (
            "The secrets of this run were changed while it was running, so old values in its output could no longer be "
            "masked. Its machine was destroyed; run it again to use the new secrets."
        )

    def _redactor(self) -> Redactor:
        tokens = self._agents.tokens(self._run, self._machine_attempt) if self._agents is not None else []
        masked = (secret.reveal() for secret in (*self._tools.masked, *tokens))
        return Redactor([*self._secret_values.values(), *masked])

    async def _on_machine(self, attempt: int) -> Conclusion:
        name = f"gibil-{self._run.id}-{attempt}"
        self._machine_attempt = attempt
        self._preparation = self._new_preparation()
        if self._run.machine_attempt == attempt:  # otherwise no process has worked on it
            self._results = {r.index: r for r in await self._tools.runs.task_results(self._run.id, attempt)}
        stop = self._cancellation.reason
        if is_complete(self._run.plan, self._results):
            # The process died between the last task and the end: the machine may be needed for commits, and may not exist.
            conclusion = conclusion_of(self._run.plan, self._results, cancelled=stop is not None)
            try:
                conclusion = await self._commit_later(name, conclusion)
            except (asyncio.CancelledError, ClaimLost, StoreError):
                raise  # another process continues
            except BaseException:
                await asyncio.shield(self._destroy(name))
                raise
            await asyncio.shield(self._destroy(name))
            return conclusion
        if stop is not None and self._run.machine is None:
            raise _Cancelled
        await self._count_copies(name)
        machine: Machine | None = None
        shell: Shell | None = None
        keep_machine = False
        caches: RunCaches | None = None
        try:
            with notices(self._tools.factory.provider, self._preparing):
                machine, shell = await self._machine(name, attempt)
            execution = self._execution = Execution(
                runs=self._tools.runs,
                claim=self._claim,
                machine_attempt=attempt,
                shell=shell,
                secrets=self._secret_values,
                redactor=self._redactor,
                log_folder=self._tools.logs / self._run.id
                if attempt == 1
                else self._tools.logs / self._run.id / f"machine-{attempt}",
                journal=self._journal,
                cancellation=self._cancellation,
                on_change=self._changed.set,
                on_output=self._tools.output,
                results=self._results,
                refusals=lambda since: refusals(self._tools.factory.provider, name, since),
                cause=lambda since: self._cause(name, machine, since),
                room=self._tools.max_logs_bytes,
                agents=self._agents,
                machine=name,
                machines=RunMachines(
                    provider=self._tools.factory.provider,
                    create=self._create,
                    reopen=self._tools.factory.reopen,
                    destroy=self._destroy_copy,
                    room=self._room,
                ),
            )
            if not self._results:
                await self._copy_source(shell, execution, machine.layer)
                await self._unless_cancelled(self._detect(shell, execution))
                if self._preparation is not None:
                    changed = await self._unless_cancelled(self._compare(self._preparation, shell, execution, machine, attempt))
                    if changed is not None:
                        old, (machine, shell) = shell, changed
                        await job_control.disconnect(old)
                caches = await self._unless_cancelled(self._restore_caches(shell, execution))
            elif self._preparation is not None and execution.skipped_preparation:
                exports = await self._preparation.exports(await self._preparation.restored(shell, machine.layer))
                if exports is None:
                    raise MachineLost("The prepared machine of this run is no longer known")
                execution.inherit(*exports)
            self._set_phase("running")

            async def on_prepared(env: Mapping[str, str], paths: tuple[str, ...]) -> Shell | None:
                nonlocal machine, shell
                assert shell is not None
                continued = await self._keep(shell, execution, name, attempt, (env, paths))
                if continued is None:
                    return None
                old, (machine, shell) = shell, continued
                await job_control.disconnect(old)
                return shell

            try:
                conclusion = await execution.run(on_prepared if self._preparation is not None else None)
            finally:
                shell = execution.shell
            self._tasks_ended = True
            self._results = execution.results
            # An agent may have written what a later run with secrets would read.
            if caches is not None and conclusion is Conclusion.SUCCESS and not self._run.plan.has_agent:
                with contextlib.suppress(_Cancelled):
                    await self._unless_cancelled(self._save_caches(shell, caches))
            await self._read_runtimes(shell)
            return await self._commit(shell, conclusion)
        except MachineLost:
            if machine is not None and now() >= machine.expires_at:
                await self._note(
                    f"The machine expired after {_minutes(machine)}; `machine: {{ttl: …}}` in the workflow extends it."
                )
                return Conclusion.TIMED_OUT
            raise
        except (asyncio.CancelledError, ClaimLost, StoreError):
            keep_machine = True  # this process stops, or another one continues the run: keep the machine
            raise
        finally:
            if self._execution is not None:
                self._results = self._execution.results
            if shell is not None:
                await asyncio.shield(job_control.disconnect(shell))
            if not keep_machine:
                await asyncio.shield(self._destroy(name))

    async def _count_copies(self, name: str) -> None:
        """Count the copies of the machine that an earlier process left. As long as it isn't known, the old number counts."""
        attempts = (task.agent.attempts for task in self._run.plan.tasks if task.agent is not None)
        if self._claim.fence > 1 and max(attempts, default=1) > 1:
            machines = await self._tools.factory.list(self._tools.owner)
            await self._room.found(machine.name for machine in machines if machine.name.startswith(f"{name}-"))

    async def _read_runtimes(self, shell: Shell) -> None:
        """Read which runtimes the machine used: a hint of what to store, from the code of a trusted run."""
        if self._tools.on_runtimes is None or self._run.source.trust is not Trust.TRUSTED or self._cancellation.reason:
            return
        if self._run.plan.has_agent:
            return
        with contextlib.suppress(GibilError, TimeoutError):
            done = await shell.run(USED_SCRIPT, timeout_s=RUNTIMES_TIMEOUT_S, most_bytes=4096)
            self._runtimes = tuple(done.stdout.decode("ascii", "replace").split()) if done.exit_status == 0 else ()

    async def _commit(self, shell: Shell, conclusion: Conclusion) -> Conclusion:
        """Commit the run's changes at GitHub if its tasks succeeded; return the conclusion of the run."""
        async with self._commits(conclusion) as commits:
            if commits is None:
                return conclusion
            started = time.perf_counter()
            try:
                progress = await commits.from_machine(shell)
            except (MachineLost, SSHError):
                if (found := await commits.without_lost_machine()) is None:
                    raise
                progress = found
            self._journal.note("committed", outcome=progress.phase, seconds=time.perf_counter() - started)
            return await self._committed(commits, conclusion)

    async def _commit_later(self, name: str | None, conclusion: Conclusion) -> Conclusion:
        """Finish the commits of a run whose process ended after the last task. `name`: of its machine, if this host reaches it.

        Raises MachineLost if they need the machine.
        """
        async with self._commits(conclusion) as commits:
            if commits is None:
                return conclusion
            if self._cancellation.reason is not None:
                await commits.cancelled()
            elif self._run.plan.applies is not None:
                await commits.from_machine(None)
            elif await commits.without_machine() is None:
                if name is None:
                    raise MachineLost("The host of the machine is away")
                try:
                    machine = await self._tools.factory.get(name)
                    if machine is None:
                        raise MachineLost("The machine no longer existed when the bot continued the run")
                    shell = await self._tools.factory.open(machine)
                    try:
                        await commits.from_machine(shell)
                    finally:
                        await asyncio.shield(job_control.disconnect(shell))
                except (MachineLost, SSHError):
                    if await commits.without_lost_machine() is None:
                        raise
            return await self._committed(commits, conclusion)

    @contextlib.asynccontextmanager
    async def _commits(self, conclusion: Conclusion) -> AsyncIterator[RunCommits | None]:
        """Return the commits of this run; None if it has none, and no earlier process began with them."""
        plan, steps = self._run.plan.commit, self._tools.commits
        is_wanted = conclusion is Conclusion.SUCCESS and self._cancellation.reason is None
        has_begun = self._run.commit is not None and not self._run.commit.is_final
        if plan is None or steps is None or not (is_wanted or has_begun):
            yield None
            return
        self._set_phase("committing")
        redactor = self._redactor()
        async with steps(self._run, redactor) as found:
            yield RunCommits(
                found,
                self._tools.runs,
                self._claim,
                plan,
                self._tools.logs / self._run.id,
                redact=redactor.text,
                files=self._tools.files,
                is_cancelled=lambda: self._cancellation.reason is not None,
            )

    async def _committed(self, commits: RunCommits, conclusion: Conclusion) -> Conclusion:
        self._patch = await commits.patch()
        self._run = replace(self._run, commit=commits.progress)
        if self._cancellation.reason is not None and self._run.commit is not None and self._run.commit.phase != "moved":
            return Conclusion.CANCELLED
        return with_commits(conclusion, self._run)

    async def _cause(self, name: str, machine: Machine | None, since: datetime) -> str | None:
        """Return how a task ended the machine since then; None if the machine expired."""
        return None if machine is None or now() >= machine.expires_at else await self._tools.factory.cause(name, since)

    async def _machine(self, name: str, attempt: int) -> tuple[Machine, Shell]:
        factory = self._tools.factory
        if self._results:
            # Tasks have run on this machine, so no other machine can continue.
            found = await factory.get(name)
            if found is None and self._preparation is not None:
                layer = await self._preparation.saved(self._run, attempt, self._run.plan, self._results)
                if layer is not None:
                    return await self._create(name, layer)
            if found is None:
                raise MachineLost("The machine no longer existed when the bot continued the run")
            return found, await factory.open(found)
        await self._save_machine(name, attempt)
        if self._cancellation.reason is not None:
            raise _Cancelled
        self._set_phase("forging a machine")
        self._journal.note("forging", machine=name)
        started = time.perf_counter()
        self._tools.transfer.begin(self._run)
        await self._add_engines()
        entry = await self._preparation.first(self._run.plan) if self._preparation is not None else None
        machine, shell = await self._unless_cancelled(self._create_from(name, entry))
        self._created_in_s = time.perf_counter() - started
        self._journal.note("forged", machine=name, seconds=self._created_in_s)
        return machine, shell

    async def _create_from(self, name: str, entry: PreparedMachine | None) -> tuple[Machine, Shell]:
        """Create a machine on a layer; a plain one if that layer can't be used any more."""
        if entry is not None:
            try:
                return await self._create(name, entry.layer)
            except ProviderError as error:
                if error.code != LAYER_GONE:
                    raise
                log.info("run %s: %s", self._run.id, error.message)
        return await self._create(name, None)

    async def _create(self, name: str, layer: str | None) -> tuple[Machine, Shell]:
        source = self._run.source
        self._check_lease()
        return await self._tools.factory.create(
            name=name,
            owner=self._tools.owner,
            ttl_s=min(self._run.plan.machine.ttl_s, self._tools.max_ttl_s),
            labels={"run": self._run.id, "repository": str(source.repository.id)},
            plan=self._run.plan.machine,
            egress_allow=(*self._tools.egress, *address_of(source.repository.clone_url)),
            untrusted=source.trust is Trust.UNTRUSTED,
            tethered=self._tools.tethered,
            layer=layer,
            may_destroy=self._check_claim,
        )

    def _new_preparation(self) -> Preparation | None:
        prepared = self._tools.prepared
        if prepared is None:
            return None
        return Preparation(prepared, self._scope(), self._tools.factory.provider.name)

    def _scope(self) -> Scope:
        return scope_of(self._run, local=self._tools.local_checkout, has_secrets=bool(self._run.plan.secrets))

    async def _compare(
        self, preparation: Preparation, shell: Shell, execution: Execution, machine: Machine, attempt: int
    ) -> tuple[Machine, Shell] | None:
        """Decide which tasks have nothing to do. Returns another machine if the run needs one."""
        layer = await preparation.restored(shell, machine.layer)
        choice = await preparation.choose(shell, self._run.plan, layer)
        changed, spent_s = None, 0.0
        if choice.what == "change":
            started = time.perf_counter()
            entry = choice.entry if layer is None else None
            try:
                is_restored = await preparation.restore(shell, entry)
            except (ProviderError, SSHError, MachineLost) as error:
                # After LAYER_GONE the machine is still a plain one.
                log.info("run %s: %s", self._run.id, error.message)
                if isinstance(error, ProviderError) and error.code == LAYER_GONE:
                    return None
                is_restored = False
            if is_restored and entry is not None:
                layer = entry.layer
                self._journal.note("restored", machine=machine.name, seconds=time.perf_counter() - started)
            else:
                changed = machine, shell = await self._another_machine(machine.name, choice.entry, execution)
                layer = await preparation.restored(shell, machine.layer)
            spent_s = time.perf_counter() - started
            choice = await preparation.choose(shell, self._run.plan, layer)
        if choice.entry is None or choice.what == "change":
            return changed  # it is a plain machine, or a layer was deleted meanwhile: everything is installed
        await preparation.used(choice.entry)
        short = choice.entry.layer[:8]
        if choice.what == "prepare":
            await self._note(f"Started from the nearest prepared machine ({short}); what changed was installed on it.")
            return changed
        saved = f"saved {max(0.0, choice.entry.prepared_in_s - spent_s):.0f} s"
        await self._note(f"Started from a prepared machine ({short}, {saved}).")
        execution.inherit(choice.entry.env, choice.entry.paths)
        await execution.skip(range(len(preparing_tasks(self._run.plan))), f"prepared machine {short}, {saved}")
        return changed

    async def _restore_caches(self, shell: Shell, execution: Execution) -> RunCaches | None:
        if self._tools.caches is None:
            return None
        caches = RunCaches(self._tools.caches, self._scope(), self._run)
        self._set_phase("restoring caches")
        restored = await caches.restore(shell, self._run.plan, is_prepared=execution.skipped_preparation)
        for each in restored:
            self._journal.note("cache_restored", what=str(each), bytes=each.size_bytes, seconds=each.took_s)
        if restored:
            text = "; ".join(map(str, restored))
            await self._note(f"{text[0].upper()}{text[1:]}.")
            execution.announce([str(each) for each in restored])
        return caches

    async def _save_caches(self, shell: Shell, caches: RunCaches) -> None:
        self._set_phase("saving caches")
        started = time.perf_counter()
        stored = await caches.save(shell)
        if stored:
            size = megabytes(sum(entry.size_bytes for entry in stored))
            self._journal.note("caches_saved", count=len(stored), size=size, seconds=time.perf_counter() - started)
        for note in caches.notes:
            await self._note(note)

    async def _another_machine(self, name: str, entry: PreparedMachine | None, execution: Execution) -> tuple[Machine, Shell]:
        await self._check_claim()
        self._journal.note("changing", machine=name)
        await self._tools.factory.destroy(name)
        self._tools.transfer.begin(self._run)
        assert self._preparation is not None
        if self._preparation.has_archives:
            entry = None
        machine, shell = await self._create_from(name, entry)
        execution.continue_on(shell)
        await self._copy_and_prepare(shell, execution, machine.layer)
        return machine, shell

    async def _keep(
        self,
        shell: Shell,
        execution: Execution,
        name: str,
        attempt: int,
        exports: tuple[Mapping[str, str], tuple[str, ...]],
    ) -> tuple[Machine, Shell] | None:
        """Keep the disk of the prepared machine as a layer; return the machine on which the run continues, if it is another."""
        assert self._preparation is not None
        if self._cancellation.reason is not None:
            return None
        started = time.perf_counter()
        saving = self._preparation.save(shell, name, self._run, attempt, self._run.plan, execution.results, exports)
        entry = await (self._unless_cancelled(saving) if self._preparation.has_archives else saving)
        if entry is None:
            if (
                shell.is_closed
                and self._preparation.has_archives
                and (found := await self._tools.factory.get(name)) is not None
            ):
                return found, await self._tools.factory.open(found)
            return None
        machine, shell = await self._create(name, entry.layer)
        self._journal.note("kept", machine=name, seconds=time.perf_counter() - started)
        return machine, shell

    def _preparing(self, activity: str) -> None:
        log.info("run %s: %s", self._run.id, activity)
        self._journal.note("preparing", name=activity)
        self._set_phase(activity)

    async def _copy_source(self, shell: Shell, execution: Execution, layer: str | None) -> None:
        self._set_phase("cloning")
        self._journal.note("cloning")
        started = time.perf_counter()
        await self._unless_cancelled(self._copy_and_prepare(shell, execution, layer))
        self._journal.note("cloned", seconds=time.perf_counter() - started)

    async def _copy_and_prepare(self, shell: Shell, execution: Execution, layer: str | None) -> None:
        if layer is not None:
            await shell.run(begin_script())
        preparing = asyncio.create_task(execution.prepare())
        try:
            notes = await self._tools.transfer.copy_to(shell, self._run)
            await preparing
            for note in notes:
                await self._note(note)
        finally:
            preparing.cancel()
            with contextlib.suppress(asyncio.CancelledError, GibilError):
                await preparing

    async def _detect(self, shell: Shell, execution: Execution) -> None:
        """Complete the plan with the tasks that the project's files suggest, and store it."""
        if purpose_of(self._run.plan) is None:
            return
        self._set_phase("reading the project")
        started = time.perf_counter()
        paths, files = await read_project(shell, wanted)
        # Parsing 4 MiB of manifests takes seconds, in which the event loop has to serve others.
        try:
            work = asyncio.to_thread(detect_tasks, self._run.plan, Project(paths, files))
            plan = await asyncio.wait_for(work, DETECT_TIMEOUT_S)
        except TimeoutError:
            raise SourceError(
                f"Reading the project's manifests takes longer than {DETECT_TIMEOUT_S:g} s; write a .gibil.yml with its tasks."
            ) from None
        needs_more = plan.checkout != self._run.plan.checkout
        await self._replace_plan(execution, plan)
        if needs_more:
            await self._copy_detected_submodules(shell, execution)
        self._journal.note("detected", seconds=time.perf_counter() - started)

    async def _add_engines(self) -> None:
        """Add the tasks that install agents' engines, before a prepared machine that has them is looked for."""
        if self._agents is not None and (plan := self._agents.with_engines(self._run.plan)) != self._run.plan:
            await self._save_plan(plan)

    async def _replace_plan(self, execution: Execution, plan: Plan) -> None:
        await self._save_plan(plan)
        execution.replace_plan(self._claim)

    async def _save_plan(self, plan: Plan) -> None:
        await self._tools.runs.save_plan(self._claim, plan)
        self._run = replace(self._run, plan=plan)
        self._claim = replace(self._claim, run=self._run)

    async def _copy_detected_submodules(self, shell: Shell, execution: Execution) -> None:
        """No workflow asks for them and the tests may not need them, so a failure is only noted."""
        try:
            for note in await self._tools.transfer.copy_rest(shell, self._run):
                await self._note(note)
        except SourceError as error:
            await self._note(f"The submodules that the project's CI checks out are missing here. {error.message}")
            detected = self._run.plan.detected
            if detected is not None:
                await self._replace_plan(execution, replace(self._run.plan, detected=replace(detected, missing="submodules")))

    async def _unless_cancelled(self, work: Awaitable[T]) -> T:
        """Await `work`; if the run is cancelled first, cancel `work` and wait until it has cleaned up. Raises _Cancelled."""
        worker = asyncio.ensure_future(work)
        watcher = asyncio.create_task(self._cancellation.wait())
        try:
            await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if worker.done():
                return worker.result()
            raise _Cancelled
        finally:
            for task in (worker, watcher):
                if not task.done():
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await task

    async def _save_machine(self, name: str | None, attempt: int) -> None:
        host = self._tools.host if self._tools.factory.provider.is_local else ""
        await self._tools.runs.save_machine(self._claim, name, attempt, host or None)

    async def _check_claim(self) -> None:
        """Raise ClaimLost if another process works on the machine since the last write, StoreError if that isn't known."""
        if self._tools.is_shared:
            await self._tools.runs.record(self._claim, [])
            self._check_lease()

    def _check_lease(self) -> None:
        """Raise ClaimLost if this process was suspended for so long that another one may have claimed the run."""
        if self._tools.is_shared and not self._holds():
            raise ClaimLost(f"the lease of run {self._run.id} has ended: stop working on it")

    async def _destroy_copy(self, name: str) -> None:
        await self._check_claim()
        await self._tools.factory.destroy(name)

    async def _destroy(self, name: str) -> None:
        attempt = int(name.rpartition("-")[2])
        started = time.perf_counter()
        try:
            await self._check_claim()
            self._journal.note("burning", machine=name)
            await self._tools.factory.destroy(name)
            await self._save_machine(None, attempt)
        except ProviderError as error:
            # The reaper finds the machine by its label and retries until it is destroyed.
            log.error("run %s: machine %s could not be destroyed, the reaper will retry: %s", self._run.id, name, error.message)
            return
        except ClaimLost:
            return
        self._journal.note("burned", machine=name, seconds=time.perf_counter() - started)

    # --- reports ---

    def _set_phase(self, phase: str) -> None:
        self._phase = phase
        self._changed.set()

    async def _note(self, text: str) -> None:
        if self._run.note and text in self._run.note:
            return
        notes = f"{self._run.note}\n{text}" if self._run.note else text
        self._run = replace(self._run, note=self._redactor().text(notes))
        assert self._run.note is not None
        await self._tools.runs.save_note(self._claim, self._run.note)

    async def _internal_failure(self, text: str) -> Conclusion:
        self._phase = "failed"
        await self._note(text)
        return Conclusion.FAILURE

    def report(self, conclusion: Conclusion | None = None, at: datetime | None = None) -> render.RunReport:
        execution = self._execution
        results = execution.results if execution is not None else self._results
        return render.RunReport(
            run=replace(self._run, cancel_reason=self._cancellation.reason, started_at=self._run.started_at or now()),
            results=tuple(
                results[index] if conclusion is None else without_working_agent(results[index]) for index in sorted(results)
            ),
            position=None,
            live_tail=execution.live_tail if execution is not None and conclusion is None else "",
            phase=self._phase,
            created_in_s=self._created_in_s,
            conclusion=conclusion,
            public_url=self._tools.public_url,
            patch=self._patch if conclusion is not None else "",
            now=at or now(),
        )

    async def _publish(self) -> None:
        """Update the check run while the run is in progress: at most every five seconds, and only when something changed.

        A cancellation closes the check run at once and is the last report until the run ends: stopping the task, tasks with
        `if: always()` and destroying the machine may take minutes.
        """
        queued_for_s = (now() - self._run.queued_at).total_seconds()
        await self._cancellation.wait_at_most(min(QUEUED_SHOWN_S, max(0.0, QUEUED_SHOWN_S - queued_for_s)))
        while True:
            await self._changed.wait()
            self._changed.clear()
            is_cancelled = self._cancellation.reason is not None
            if is_cancelled and self._tasks_ended:
                return
            self._cancellation_shown = is_cancelled
            report = self.report(Conclusion.CANCELLED if is_cancelled else None)
            try:
                await self._tools.runs.record(self._claim, [render.check_run(report)])
            except ClaimLost:
                return
            except GibilError as error:
                log.warning("run %s: could not store its progress: %s", self._run.id, error.message)
            if is_cancelled:
                return
            await self._cancellation.wait_at_most(PUBLISH_EVERY_S)

    async def _finish(self, conclusion: Conclusion) -> None:
        report = self.report(conclusion)
        notifications = [render.check_run(report)]
        comment = render.comment(report)
        if comment is not None:
            notifications.append(comment)
        await self._tools.runs.finish(self._claim, conclusion, notifications)
        self._journal.note("finished", conclusion=conclusion.value)
        await self._journal.flush()


def without_working_agent(result: TaskResult) -> TaskResult:
    """Return the result for the report of a run that has ended, maybe while an agent worked."""
    if result.agent is None or result.agent.ended:
        return result
    return replace(result, agent=replace(result.agent, ended="The agent was stopped, because the run ended."))


def with_commits(conclusion: Conclusion, run: Run) -> Conclusion:
    """Return the conclusion of a run whose tasks succeeded: its changes may need a person."""
    progress, plan = run.commit, run.plan.commit
    if progress is None or plan is None:
        return conclusion
    if progress.phase == "rejected":
        return Conclusion.FAILURE
    is_wanted = plan.to == "patch" and (progress.patch or progress.commits > 0)  # otherwise nothing could be collected
    return Conclusion.ACTION_REQUIRED if progress.phase == "patch" and not is_wanted else conclusion


def secrets_fingerprint(key: bytes, values: Mapping[str, str]) -> str:
    """Return a digest that is equal for equal names and values, and reveals nothing about a value without the key."""
    return hmac.new(key, msgspec.json.encode(sorted(values.items())), hashlib.sha256).hexdigest()


def _minutes(machine: Machine) -> str:
    return f"{(machine.expires_at - machine.created_at).total_seconds() / 60:.0f} minutes"
