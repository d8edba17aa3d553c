"""A cancelled run: its check run is closed at once, and a run that hasn't started creates no machine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec.structs import replace

from gibil_bot.errors import MachineLost
from gibil_bot.model import CheckRunUpdate, Claim, CommitPlan, CommitProgress, Conclusion, Endpoint, NewRun, Run
from gibil_bot.operator_secrets import ScopedSecrets
from gibil_bot.ports import DeliveryOutcome, RunRecorder, Shell
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import CommitSteps
from gibil_bot.runs.runner import Runner, Tools
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store
from tests.contracts.store_nouns import handle, new_run
from tests.doubles.facts import SHA
from tests.doubles.patience import patient
from tests.doubles.provider import MemoryProvider
from tests.unit.test_run_commits import Branch

WITHIN_S = 10.0


@dataclass
class CountedTransfer:
    """Counts the calls that would mint a token."""

    started: list[str] = field(default_factory=list)

    def begin(self, run: Run) -> None:
        self.started.append(run.id)

    async def copy_rest(self, shell: Shell, run: Run) -> tuple[str, ...]:
        raise AssertionError("no machine is created")

    async def copy_to(self, shell: Shell, run: Run) -> tuple[str, ...]:
        raise AssertionError("no run of these tests gets this far")

    async def end(self, run: Run) -> None:
        pass


@dataclass
class Bench:
    store: SqlStore
    provider: MemoryProvider
    transfer: CountedTransfer
    tools: Tools

    async def claim(self, *runs: NewRun) -> Claim:
        await handle(self.store, DeliveryOutcome(runs=runs), f"for {runs[0].id}")
        claim = await self.store.runs.claim("a", lease_s=60, max_machines=10)
        assert claim is not None
        return claim

    async def check_run(self, run_id: str) -> CheckRunUpdate:
        found = await self.store.outbox.get(f"check:{run_id}")
        assert found is not None
        assert isinstance(found[0].notification.update, CheckRunUpdate)
        return found[0].notification.update


@contextlib.asynccontextmanager
async def bench(folder: Path) -> AsyncIterator[Bench]:
    store = await open_store(f"sqlite:///{folder}/gibil.db")
    provider, transfer = MemoryProvider(), CountedTransfer()

    async def no_shell(endpoint: Endpoint, client_key: str) -> Shell:
        raise MachineLost("no machine of these tests has a shell")

    factory = MachineFactory(provider=provider, keyring=Keyring(folder), connect_shell=no_shell)
    tools = Tools(
        runs=store.runs, factory=factory, transfer=transfer, logs=folder / "logs", owner="tests", secrets=ScopedSecrets()
    )
    try:
        yield Bench(store, provider, transfer, tools)
    finally:
        await factory.close()
        await store.close()


def without_secrets(run_id: str, **words: Any) -> NewRun:
    run = new_run(run_id, **words)
    return replace(run, plan=replace(run.plan, secrets=()))


async def test_a_superseded_run_that_never_started_creates_no_machine_and_no_token(tmp_path: Path) -> None:
    async with bench(tmp_path) as scene:
        claim = await scene.claim(without_secrets("older", group="g"), without_secrets("newer", group="g"))
        assert (claim.run.id, claim.run.cancel_reason) == ("older", "superseded by 0123456")
        assert await Runner(scene.tools, claim).run() is Conclusion.CANCELLED
        assert (scene.provider.specs, scene.transfer.started) == ({}, [])
        shown = await scene.check_run("older")
        assert (shown.status, shown.conclusion) == ("completed", Conclusion.CANCELLED)


class Interrupted:
    """A run store in which one run is cancelled while its machine's name is being saved."""

    def __init__(self, store: SqlStore) -> None:
        self._runs = store.runs
        self.runner: Runner | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runs, name)

    async def save_machine(self, claim: Claim, machine: str | None, attempt: int, host: str | None = None) -> None:
        await self._runs.save_machine(claim, machine, attempt, host)
        if machine is not None:
            assert self.runner is not None
            self.runner.cancel("cancelled by ada")


async def test_a_run_cancelled_just_before_its_machine_is_created_creates_none(tmp_path: Path) -> None:
    async with bench(tmp_path) as scene:
        claim = await scene.claim(without_secrets("r1"))
        runs = Interrupted(scene.store)
        runs.runner = Runner(dataclasses.replace(scene.tools, runs=cast(RunRecorder, runs)), claim)
        assert await runs.runner.run() is Conclusion.CANCELLED
        assert (scene.provider.specs, scene.transfer.started) == ({}, [])
        run = await scene.store.runs.get("r1")
        assert run is not None
        assert run.machine is None


async def test_the_check_run_is_closed_while_the_machine_is_still_being_created(tmp_path: Path) -> None:
    async with bench(tmp_path) as scene:
        scene.provider.hang = scene.provider.in_thread = True
        claim = await scene.claim(without_secrets("r1"))
        runner = Runner(scene.tools, claim)
        running = asyncio.create_task(runner.run())
        async with asyncio.timeout(patient(WITHIN_S)):
            await scene.provider.creating.wait()
            signal = scene.store.outbox.changed()
            runner.cancel("cancelled by ada")
            while await scene.store.outbox.get("check:r1") is None:  # nothing was published in the first seconds
                await signal.wait(0.05)
            while (await scene.check_run("r1")).status != "completed":
                await signal.wait(0.05)
            assert not running.done()
            assert (await scene.check_run("r1")).conclusion is Conclusion.CANCELLED
            scene.provider.go_on.set()
            assert await running is Conclusion.CANCELLED
        assert scene.provider.machines == {}


async def test_progress_never_replaces_the_closed_check_run(tmp_path: Path) -> None:
    async with bench(tmp_path) as scene:
        claim = await scene.claim(without_secrets("r1"))
        await scene.store.runs.request_cancel("r1", "cancelled by ada")
        claim = replace(claim, run=replace(claim.run, cancel_reason="cancelled by ada"))
        assert await Runner(scene.tools, claim).run() is Conclusion.CANCELLED
        found = await scene.store.outbox.get("check:r1")
        assert found is not None
        assert (await scene.check_run("r1")).status == "completed"
        assert found[0].revision <= 2  # closed, and with the last report


@pytest.mark.parametrize("is_pushed", [True, False])
async def test_the_report_of_a_cancelled_run_says_whether_its_commits_were_pushed(tmp_path: Path, is_pushed: bool) -> None:
    branch = Branch()
    created = branch.commit_on(branch.head_sha or "")
    if is_pushed:
        branch.head_sha = created

    @contextlib.asynccontextmanager
    async def steps(run: Run, redactor: Redactor) -> AsyncIterator[CommitSteps]:
        yield branch

    async with bench(tmp_path) as scene:
        new = without_secrets("r1")
        plan = replace(new.plan, tasks=(), commit=CommitPlan(message="Tidy"), applies="r0")
        claim = await scene.claim(replace(new, plan=plan))
        progress = CommitProgress(
            phase="created", repository="grace/engine", branch="faster", expected=SHA, created=created, commits=1
        )
        await scene.store.runs.save_commit(claim, progress)
        await scene.store.runs.release(claim)
        await scene.store.runs.request_cancel("r1", "cancelled by ada")
        again = await scene.store.runs.claim("b", lease_s=60, max_machines=10)
        assert again is not None
        assert await Runner(dataclasses.replace(scene.tools, commits=steps), again).run() is Conclusion.CANCELLED
        shown = await scene.check_run("r1")
        assert shown.conclusion is Conclusion.CANCELLED
        assert ("Pushed 1 commit" if is_pushed else "were **not pushed**") in shown.output.summary
