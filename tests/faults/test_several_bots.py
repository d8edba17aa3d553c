"""Bots that share one database: what one of them stored, another one continues, and no two work on the same.

Each store here is that of another process; the rules are the same with every database.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import pytest
from msgspec.structs import replace

from gibil_bot.agent_task import AgentPlan, AgentState
from gibil_bot.errors import ClaimLost, GitHubError, MachineLost, StoreError
from gibil_bot.model import (
    BranchPush,
    BranchPushed,
    Chunk,
    Claim,
    Conclusion,
    Delivery,
    Endpoint,
    Exit,
    Host,
    Job,
    Machine,
    MachineSpec,
    NewRun,
    Notification,
    PullRequest,
    Refusals,
    Repository,
    Result,
    Run,
    RunState,
    TaskPlan,
    TaskResult,
    TaskStatus,
)
from gibil_bot.operator_secrets import ScopedSecrets
from gibil_bot.ports import Decision, DeliveryOutcome, GitHub, RunRecorder, RunStore, Shell
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.runs.agent_state import state_file, store_value
from gibil_bot.runs.cancellation import Cancellation
from gibil_bot.runs.dispatcher import Dispatcher
from gibil_bot.runs.execution import Execution
from gibil_bot.runs.intake import Intake
from gibil_bot.runs.logs import Journal
from gibil_bot.runs.person_runs import NotPermitted, PersonRuns
from gibil_bot.runs.presence import Presence
from gibil_bot.runs.reaper import Reaper
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_files import RunFiles
from gibil_bot.runs.runner import Runner, Tools
from gibil_bot.runs.sql.store import SqlStore
from tests.contracts.store_nouns import command, delivery, intake_policy, new_run, queue
from tests.doubles.databases import DATABASES, empty_database, open_store
from tests.doubles.patience import patient
from tests.doubles.provider import MemoryProvider

WITHIN_S = 20.0


@pytest.fixture(params=DATABASES)
async def stores(request: pytest.FixtureRequest) -> AsyncIterator[tuple[SqlStore, SqlStore]]:
    async with contextlib.AsyncExitStack() as stack:
        url = await stack.enter_async_context(empty_database(request.param, request))
        opened = []
        for _ in range(2):
            store = await open_store(url)
            stack.push_async_callback(store.close)
            opened.append(store)
        yield opened[0], opened[1]


async def until(reached: Callable[[], object]) -> None:
    """Poll, because what changes is another process's row, or a task's own state."""
    async with asyncio.timeout(patient(WITHIN_S)):
        while not reached():
            await asyncio.sleep(0.01)


class OneWriter:
    """A GitHub on which every account may write, with one pull request."""

    async def permission(self, installation_id: int, repository: str, login: str) -> str:
        return "write"

    async def repository(self, full_name: str) -> tuple[int, Repository]:
        return 99, new_run("r1").source.repository

    async def pull_request(self, installation_id: int, repository: str, number: int) -> PullRequest:
        return new_run("r1", number=number).source.pull_request

    async def workflow_files(self, installation_id: int, repository: str, ref: str) -> dict[str, bytes]:
        return {".gibil/workflows/test.yml": b"on: {command: test}\ntasks: [{run: make}]\n"}

    async def branch_push(self, installation_id: int, repository: Repository, branch: str, sha: str) -> BranchPush | None:
        return None


async def test_a_request_that_another_bot_decides_is_answered(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, decides = stores
    monkeypatch.setattr("gibil_bot.runs.person_runs._POLL_S", 0.05)
    github, policy = cast(GitHub, OneWriter()), dataclasses.replace(intake_policy(), untrusted="allow")
    person_runs = PersonRuns(asked, github, policy, RunFiles(tmp_path / "logs"))
    intake = asyncio.create_task(Intake(decides, github, policy, "b").run())
    monkeypatch.setattr("gibil_bot.runs.intake.POLL_S", 0.05)
    read, failures = asked.inbox.decision, [StoreError("the database is restarted")]

    async def decision(guid: str) -> Decision | None:
        if failures:
            raise failures.pop()
        return await read(guid)

    asked.inbox.decision = decision  # type: ignore[method-assign]
    try:
        async with asyncio.timeout(patient(WITHIN_S)):
            with pytest.raises(NotPermitted, match="lint"):
                await person_runs.start("ada", "ada/engine-1", 7, "lint", {})
            runs = await person_runs.start("ada", "ada/engine-1", 7, "test", {})
        assert [run.plan.workflow for run in runs] == ["test"]
        assert not failures
    finally:
        intake.cancel()
        await asyncio.gather(intake, return_exceptions=True)


class TiredWriter(OneWriter):
    """Its first answer is an error."""

    def __init__(self) -> None:
        self.failures = [GitHubError("GitHub answered 502", retry_after_s=1.0)]

    async def permission(self, installation_id: int, repository: str, login: str) -> str:
        if self.failures:
            raise self.failures.pop()
        return await super().permission(installation_id, repository, login)


async def test_no_failure_of_the_database_delays_a_delivery_or_changes_the_order(
    stores: tuple[SqlStore, SqlStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, handled = stores[0].inbox, list[str]()
    claim, complete, begun = inbox.claim, inbox.complete, list[str]()
    lost, failing = ["the first claim"], ["push", "2", "4", "4"]
    monkeypatch.setattr("gibil_bot.runs.intake.POLL_S", 0.05)
    monkeypatch.setattr("gibil_bot.runs.intake.RETRY_S", 0.01, raising=False)
    for guid in ("1", "2", "3"):
        await inbox.accept(delivery(guid, command()))

    async def claim_then_lose(*values: Any, **words: Any) -> list[Delivery]:
        found = await claim(*values, **words)
        if lost:
            lost.clear()
            source = new_run("r1").source
            pushed = BranchPushed(
                repository=source.repository,
                branch="main",
                sha="b" * 40,
                pusher=source.pull_request.author,
                at=delivery().received_at,
            )
            for sent in (delivery("push", pushed), delivery("4", command()), delivery("5", command())):
                await inbox.accept(sent)
            raise StoreError("the connection was lost in COMMIT")
        begun.extend(each.guid for each in found)
        return found

    async def complete_or_fail(owner: str, guid: str, outcome: DeliveryOutcome) -> None:
        if guid in failing:
            failing.remove(guid)
            raise StoreError("the database didn't answer within 4 s")
        await complete(owner, guid, outcome)
        handled.append(guid)

    async def fail(*_: Any, **__: Any) -> None:
        raise StoreError("the database didn't answer within 4 s")

    monkeypatch.setattr(inbox, "claim", claim_then_lose)
    monkeypatch.setattr(inbox, "complete", complete_or_fail)
    monkeypatch.setattr(inbox, "postpone", fail)
    intake = asyncio.create_task(Intake(stores[0], cast(GitHub, TiredWriter()), intake_policy(), "a").run())
    try:
        await until(lambda: len(handled) == 6)
        assert handled == ["1", "2", "3", "push", "4", "5"]
        assert sorted(begun) == ["1", "2", "3", "4", "5", "push"]
    finally:
        intake.cancel()
        await asyncio.gather(intake, return_exceptions=True)


async def test_deliveries_after_one_that_another_bot_has_are_left_to_it_or_claimed_again_in_order(
    stores: tuple[SqlStore, SqlStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox, handled = stores[0].inbox, list[str]()
    complete, lost = inbox.complete, ["2"]
    monkeypatch.setattr("gibil_bot.runs.intake.POLL_S", 0.05)
    for guid in ("1", "2", "3", "4"):
        await inbox.accept(delivery(guid, command()))

    async def complete_or_lose(owner: str, guid: str, outcome: DeliveryOutcome) -> None:
        if guid in lost:
            lost.clear()
            await inbox.accept(delivery("5", command()))
            raise ClaimLost("another process has it")
        await complete(owner, guid, outcome)
        handled.append(guid)

    monkeypatch.setattr(inbox, "complete", complete_or_lose)
    intake = asyncio.create_task(Intake(stores[0], cast(GitHub, OneWriter()), intake_policy(), "a").run())
    try:
        await until(lambda: len(handled) == 5)
        assert handled == ["1", "2", "3", "4", "5"]  # no other process had claimed it in fact
    finally:
        intake.cancel()
        await asyncio.gather(intake, return_exceptions=True)


# Runs


class Computer:
    """A machine with one job, which ends when `go_on` is set."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.attached: list[str] = []
        self.calls: list[tuple[str, str]] = []
        """(bot, what it called)"""
        self.go_on = asyncio.Event()


class Connection:
    """A bot's connection to a machine, as ports.Shell."""

    is_closed = False

    def __init__(self, bot: str, computer: Computer) -> None:
        self._bot, self._computer = bot, computer

    def __getattr__(self, name: str) -> Any:
        async def call(*_: Any, **__: Any) -> Result:
            self._computer.calls.append((self._bot, name))
            return Result(exit_status=0, stdout=b"", stderr=b"")

        return call

    async def start(self, job: Job) -> None:
        self._computer.calls.append((self._bot, "start"))
        if job.id not in self._computer.started:
            self._computer.started.append(job.id)

    async def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[Chunk | Exit]:
        self._computer.attached.append(self._bot)
        if stdout_from == 0:
            yield Chunk(b"compiling\n", 10)
        await self._computer.go_on.wait()
        yield Exit(0)


class Copied:
    """Source that is on every machine already."""

    def begin(self, run: Run) -> None: ...

    async def copy_to(self, shell: Shell, run: Run) -> tuple[str, ...]:
        return ()

    copy_rest = copy_to

    async def end(self, run: Run) -> None: ...


class Watched:
    """The runs of a bot's store. After `part`, the database doesn't answer it."""

    def __init__(self, store: SqlStore) -> None:
        self._runs = store.runs
        self.is_parted = False
        self.tried: list[str] = []
        """What the bot called after it was parted from the database."""
        self.called: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._runs, name)
        if name == "changed":
            return found

        async def call(*values: Any, **words: Any) -> Any:
            self.called.append(name)
            if self.is_parted:
                self.tried.append(name)
                raise StoreError("the database doesn't answer")
            return await found(*values, **words)

        return call


LEASE_S = 0.6


class Local(MemoryProvider):
    """Only one host reaches its machines."""

    is_local = True

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    async def create(self, spec: MachineSpec) -> Machine:
        self.asked.append(spec.name)
        return await super().create(spec)

    async def get(self, name: str) -> Machine | None:
        self.asked.append(name)
        return await super().get(name)

    async def destroy(self, name: str) -> bool:
        self.asked.append(name)
        return await super().destroy(name)


P = TypeVar("P", bound=MemoryProvider)


@dataclass(kw_only=True)
class Bot(Generic[P]):
    """The dispatcher of one bot, with short leases."""

    host: Host
    store: SqlStore
    provider: P
    tools: Tools
    runs: Watched
    dispatcher: Dispatcher
    task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.store.hosts.start(self.host, self.host.name)
        self.task = asyncio.create_task(self.dispatcher.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    def reaper(self) -> Reaper:
        return Reaper(self.store, self.tools.factory, None, "tests", self.tools.logs)


def bot(
    name: str,
    store: SqlStore,
    folder: Path,
    computer: Computer,
    provider: P,
    *,
    away_s: float = 0.0,
    lease_s: float = LEASE_S,
    max_machines: int = 10,
) -> Bot[P]:
    async def connect(endpoint: Endpoint, client_key: str) -> Shell:
        return cast(Shell, Connection(name, computer))

    runs = Watched(store)
    host = Host(id=name.encode().hex().ljust(16, "0"), name=name)
    tools = Tools(
        runs=cast(RunStore, runs),
        factory=MachineFactory(provider=provider, keyring=Keyring(folder), connect_shell=connect),
        transfer=Copied(),
        logs=folder / name,
        owner="tests",
        secrets=ScopedSecrets(),
        max_machines=max_machines,
        host=host.id,
        hosts=store.hosts,
        is_shared=True,
    )
    dispatcher = Dispatcher(tools, cast(RunStore, runs), name, away_s=away_s, lease_s=lease_s)
    return Bot(host=host, store=store, provider=provider, tools=tools, runs=runs, dispatcher=dispatcher)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gibil_bot.runs.dispatcher.POLL_S", 0.05)


def one_task(run_id: str) -> NewRun:
    new = new_run(run_id)
    return replace(new, plan=replace(new.plan, secrets=(), tasks=new.plan.tasks[:1]))


async def finished(store: SqlStore, run_id: str) -> Run:
    async with asyncio.timeout(patient(WITHIN_S)):
        while True:
            run = await store.runs.get(run_id)
            if run is not None and run.state is RunState.FINISHED:
                return run
            await asyncio.sleep(0.02)  # another process's row


async def test_a_bot_that_lost_the_database_writes_nothing_more_and_another_one_continues(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None
) -> None:
    computer, cloud = Computer(), MemoryProvider()
    first, second = (bot(name, store, tmp_path, computer, cloud) for name, store in zip("ab", stores, strict=True))
    await queue(stores[0], one_task("r1"))
    try:
        await first.start()
        await until(lambda: computer.attached == ["a"])
        first.runs.is_parted = True
        await second.start()
        await until(lambda: computer.attached == ["a", "b"])
        # It stopped before the other one could continue: the lease in the database ends later than its own clock's.
        bots = [name for name, _ in computer.calls]
        assert bots == sorted(bots)
        assert computer.calls[bots.index("b") - 1] == ("a", "close")
        assert cloud.destroyed == []
        first.runs.is_parted = False
        computer.go_on.set()
        run = await finished(stores[1], "r1")
        assert (run.conclusion, run.machine_attempt) == (Conclusion.SUCCESS, 1)
        assert set(first.runs.tried) <= {"claim", "heartbeat", "unfinished"}
        assert [call for call in computer.calls if call[0] == "a"][-1] == ("a", "close")
        assert computer.started == ["task-0"]
        assert cloud.destroyed == ["gibil-r1-1"]
        assert run.note is None
        logs = [(tmp_path / name / "r1" / "0.log").read_bytes() for name in "ab"]
        assert logs == [b"compiling\n"] * 2  # the second one read the output from its beginning
    finally:
        await first.stop()
        await second.stop()


async def test_a_bot_stops_a_run_before_its_lease_ends_even_if_the_computer_was_suspended(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = [0.0]
    monkeypatch.setattr("gibil_bot.runs.dispatcher.passed_s", lambda: time.monotonic() + later[0])
    computer = Computer()
    one = bot("a", stores[0], tmp_path, computer, MemoryProvider(), lease_s=30)
    await queue(stores[0], one_task("r1"))
    try:
        await one.start()
        await until(lambda: computer.attached == ["a"])
        one.runs.is_parted = True
        later[0] = 26.0
        await until(lambda: ("a", "close") in computer.calls)
    finally:
        await one.stop()


async def test_a_bot_that_was_suspended_before_it_destroyed_a_machine_leaves_it(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = [0.0]
    monkeypatch.setattr("gibil_bot.runs.dispatcher.passed_s", lambda: time.monotonic() + later[0])
    computer, cloud = Computer(), MemoryProvider()
    one = bot("a", stores[0], tmp_path, computer, cloud, lease_s=30)
    record = stores[0].runs.record

    async def suspended_after_the_check(claim: Claim, notifications: Sequence[Notification]) -> None:
        await record(claim, notifications)
        if not notifications:
            later[0] = 40.0

    monkeypatch.setattr(stores[0].runs, "record", suspended_after_the_check)
    await queue(stores[0], one_task("r1"))
    computer.go_on.set()
    try:
        await one.start()
        await until(lambda: later[0] and not one.dispatcher._tasks)
        assert (list(cloud.machines), cloud.destroyed) == (["gibil-r1-1"], [])
    finally:
        await one.stop()


async def test_a_bot_that_was_suspended_creates_no_machine(stores: tuple[SqlStore, SqlStore], tmp_path: Path) -> None:
    one = bot("a", stores[0], tmp_path, Computer(), MemoryProvider())
    await queue(stores[0], one_task("r1"))
    claim = await stores[0].runs.claim("a", lease_s=60, max_machines=9)
    assert claim is not None
    with pytest.raises(ClaimLost):
        await Runner(one.tools, claim, holds=lambda: False).run()
    assert (one.provider.machines, one.provider.destroyed) == ({}, [])


async def test_a_bot_that_lost_a_run_while_it_created_the_machine_leaves_it_to_the_next_one(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None
) -> None:
    computer, cloud = Computer(), MemoryProvider()
    first, second = (bot(name, store, tmp_path, computer, cloud) for name, store in zip("ab", stores, strict=True))
    await queue(stores[0], one_task("r1"))
    try:
        cloud.hang = True
        await first.start()
        await cloud.creating.wait()
        first.runs.is_parted = True
        cloud.hang = False
        await second.start()
        await until(lambda: computer.attached == ["b"])
        cloud.go_on.set()  # the first bot's creation finds the machine of the second one
        await until(lambda: not first.dispatcher._tasks)
        assert (list(cloud.machines), cloud.destroyed) == (["gibil-r1-1"], [])
        computer.go_on.set()
        assert (await finished(stores[1], "r1")).machine_attempt == 1
    finally:
        await first.stop()
        await second.stop()


async def test_a_bot_claims_nothing_as_long_as_the_others_take_it_for_dead(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None
) -> None:
    computer = Computer()
    one = bot("a", stores[0], tmp_path, computer, MemoryProvider())
    await queue(stores[0], one_task("r1"))
    one.dispatcher.stop_all()
    try:
        await one.start()
        await until(lambda: "unfinished" in one.runs.called)  # it comes after the claims
        assert "claim" not in one.runs.called
        one.dispatcher.share(1)
        await until(lambda: computer.attached == ["a"])
    finally:
        await one.stop()


async def test_bots_share_the_machines(stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None) -> None:
    computer, cloud = Computer(), MemoryProvider()
    bots = [
        bot(name, store, tmp_path, computer, cloud, max_machines=3, lease_s=30)  # none ends on a busy computer
        for name, store in zip("ab", stores, strict=True)
    ]
    for one in bots:
        one.dispatcher.share(2)
    await queue(stores[0], *(one_task(f"r{number}") for number in range(4)))
    try:
        await bots[0].start()
        await until(lambda: len(computer.attached) == 2)
        assert len([run for run in await stores[0].runs.unfinished() if run.state is RunState.RUNNING]) == 2
        await bots[1].start()
        await until(lambda: len(computer.attached) == 3)
        assert computer.attached == ["a", "a", "b"]
        # What is to be cancelled needs no machine.
        await stores[0].runs.request_cancel("r3", "cancelled by ada")
        assert (await finished(stores[0], "r3")).conclusion is Conclusion.CANCELLED
        computer.go_on.set()
        for number in range(3):
            assert (await finished(stores[0], f"r{number}")).conclusion is Conclusion.SUCCESS
    finally:
        for one in bots:
            await one.stop()


async def test_copies_of_a_killed_bot_are_counted_until_its_host_knows_which_exist(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path
) -> None:
    provider = Local()
    here, there = (bot(name, store, tmp_path, Computer(), provider) for name, store in zip("ab", stores, strict=True))
    agent = TaskPlan(name="fix", run="", agent=AgentPlan(engine="command", prompt="p", attempts=3))
    new = new_run("r1")
    await queue(stores[0], replace(new, plan=replace(new.plan, tasks=[agent])), new_run("r2", repository=2))
    killed = await stores[0].runs.claim("a", lease_s=0, max_machines=4, host=here.host.id)
    assert killed is not None
    await stores[0].runs.save_machine(killed, "gibil-r1-1", 1, here.host.id)
    assert await stores[0].runs.count_copies(killed, 3, max_machines=4)
    claim = await stores[0].runs.claim("a2", lease_s=60, max_machines=4, host=here.host.id)
    assert claim is not None
    assert (claim.run.id, claim.fence) == ("r1", 2)
    assert await stores[1].runs.claim("b", lease_s=60, max_machines=4, host=there.host.id) is None
    for name in ("gibil-r1-1", "gibil-r1-1-0-2", "gibil-r10-1-0-1"):
        await here.tools.factory.create(name, "tests", 60)
    await Runner(here.tools, claim)._count_copies("gibil-r1-1")
    assert await stores[1].runs.claim("b", lease_s=60, max_machines=2, host=there.host.id) is None
    assert await stores[1].runs.claim("b", lease_s=60, max_machines=3, host=there.host.id) is not None


async def test_a_run_starts_again_elsewhere_when_its_machines_host_is_away(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None
) -> None:
    old, new = Computer(), Computer()
    first, second = (
        bot(name, store, tmp_path, computer, Local(), away_s=1.5)
        for name, store, computer in zip(("fir-1", "fir-2"), stores, (old, new), strict=True)
    )
    await queue(stores[0], one_task("r1"))
    try:
        await first.start()
        await until(lambda: old.attached)
        first.runs.is_parted = True
        await first.stop()
        await second.start()
        run = await stores[1].runs.get("r1")
        assert run is not None
        assert (run.machine, run.machine_host) == ("gibil-r1-1", first.host.id)
        await until(lambda: new.attached)
        # The host comes back: its bot destroys what the run doesn't own any more.
        assert await first.reaper().destroy_strays() == ["gibil-r1-1"]
        assert await second.reaper().destroy_strays() == []
        new.go_on.set()
        run = await finished(stores[1], "r1")
        assert (run.conclusion, run.machine_attempt, run.hosts) == (Conclusion.SUCCESS, 2, (first.host.id, second.host.id))
        assert run.note is not None
        assert re.fullmatch(
            r"The machine's host, fir-1, has been away for [\d.]+ s; "
            r"everything was restarted on a new machine of another host\.",
            run.note,
        )
        assert second.provider.destroyed == ["gibil-r1-2"]
        assert "gibil-r1-1" not in second.provider.asked
    finally:
        await second.stop()


async def away(stores: tuple[SqlStore, SqlStore], run_id: str) -> Claim:
    """Return a claim of a run whose machine is on a host that is away, by a process of host `here`."""
    there = Host(id="there", name="fir-1")
    await stores[0].hosts.start(there, "a")
    claim = await stores[0].runs.claim("a", lease_s=0, max_machines=9, host="there")
    assert claim is not None
    await stores[0].runs.save_machine(claim, f"gibil-{run_id}-1", 1, "there")
    found = None
    while found is None:
        found = await stores[1].runs.claim("b", lease_s=60, max_machines=9, host="here", away_s=0)
    return found


async def test_a_run_to_be_cancelled_ends_without_its_absent_host(stores: tuple[SqlStore, SqlStore], tmp_path: Path) -> None:
    await queue(stores[0], one_task("r1"))
    await stores[0].runs.request_cancel("r1", "cancelled by ada")
    one = bot("here", stores[1], tmp_path, Computer(), Local())
    assert await Runner(one.tools, await away(stores, "r1")).run() is Conclusion.CANCELLED
    assert one.provider.asked == []


async def test_a_run_moves_to_other_hosts_a_limited_number_of_times(stores: tuple[SqlStore, SqlStore], tmp_path: Path) -> None:
    await queue(stores[0], one_task("r1"))
    claim = await away(stores, "r1")
    many = replace(claim, run=replace(claim.run, machine_attempt=5, machine="gibil-r1-5"))
    one = bot("here", stores[1], tmp_path, Computer(), Local())
    assert await Runner(one.tools, many).run() is Conclusion.FAILURE
    assert one.provider.asked == []
    run = await finished(stores[0], "r1")
    assert "fir-1" in (run.note or "")
    assert "restarted 4 times already" in (run.note or "")


async def test_the_host_that_worked_on_a_run_last_is_the_last_of_its_hosts(stores: tuple[SqlStore, SqlStore]) -> None:
    await queue(stores[0], one_task("r1"))
    orders = []
    for host in ("ab", "a", "ab", "b", "ab", "", "a"):
        claim = await stores[0].runs.claim(f"bot of {host}", lease_s=60, max_machines=9, host=host)
        assert claim is not None
        orders.append(claim.run.hosts)
        await stores[0].runs.release(claim)
    assert orders == [
        ("ab",),
        ("ab", "a"),
        ("a", "ab"),
        ("a", "ab", "b"),
        ("a", "b", "ab"),
        ("a", "b", "ab"),  # a process that belongs to no host
        ("b", "ab", "a"),
    ]


async def test_a_machine_that_is_lost_after_the_move_is_replaced_once(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path
) -> None:
    await queue(stores[0], one_task("r1"))
    one = bot("here", stores[1], tmp_path, Computer(), Local())

    async def no_shell(endpoint: Endpoint, client_key: str) -> Shell:
        raise MachineLost("it doesn't answer")

    factory = dataclasses.replace(one.tools.factory, connect_shell=no_shell)
    tools = dataclasses.replace(one.tools, factory=factory)
    assert await Runner(tools, await away(stores, "r1")).run() is Conclusion.FAILURE
    assert sorted(set(one.provider.asked)) == ["gibil-r1-2", "gibil-r1-3"]


async def test_a_stale_runner_destroys_no_machine(stores: tuple[SqlStore, SqlStore], tmp_path: Path) -> None:
    await queue(stores[0], one_task("r1"))
    computer = Computer()
    one = bot("a", stores[0], tmp_path, computer, MemoryProvider())
    claim = await stores[0].runs.claim("a", lease_s=0, max_machines=9)
    assert claim is not None
    running = asyncio.create_task(Runner(one.tools, claim).run())
    await until(lambda: computer.attached)
    assert await stores[1].runs.claim("b", lease_s=60, max_machines=9) is not None
    computer.go_on.set()
    with pytest.raises(ClaimLost):
        await running
    # Also if the last thing that it does is to destroy the machine.
    await Runner(one.tools, claim)._destroy("gibil-r1-1")
    assert one.provider.destroyed == []


async def test_a_machine_goes_on_while_the_database_cannot_be_written(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, often: None
) -> None:
    await queue(stores[0], one_task("r1"))
    computer = Computer()
    one = bot("a", stores[0], tmp_path, computer, MemoryProvider(), lease_s=10.0)
    begun = time.monotonic()
    try:
        await one.start()
        await until(lambda: computer.attached)
        one.runs.is_parted = True
        computer.go_on.set()
        await until(lambda: "save_task" in one.runs.tried)
        one.runs.is_parted = False
        run = await finished(stores[1], "r1")
        assert (run.conclusion, run.machine_attempt) == (Conclusion.SUCCESS, 1)
        assert computer.attached == ["a", "a"]
        assert one.provider.destroyed == ["gibil-r1-1"]
        assert time.monotonic() - begun < 10.0  # before the lease has expired
    finally:
        await one.stop()


async def test_an_agents_work_that_another_host_began_is_not_continued_without_its_files(tmp_path: Path) -> None:
    new = new_run("r1")
    task = TaskPlan(name="fix", run="", agent=AgentPlan(engine="command", prompt="p"))
    begun = TaskResult(
        index=0, machine_attempt=1, name="fix", status=TaskStatus.RUNNING, started_at=datetime.now(UTC)
    )  # fmt: skip

    def execution(*hosts: str) -> Execution:
        run = Run(
            id="r1", seq=1, delivery_guid="g", source=new.source, plan=replace(new.plan, tasks=(task,)),
            state=RunState.RUNNING, queued_at=datetime.now(UTC), hosts=hosts,
        )  # fmt: skip
        return Execution(
            runs=cast(RunRecorder, Unstored()), claim=Claim(run=run, owner="o", fence=1), machine_attempt=1,
            shell=cast(Shell, Connection("a", Computer())), secrets={}, redactor=lambda: Redactor(()),
            log_folder=tmp_path / "logs", journal=Journal(tmp_path / "logs"), cancellation=Cancellation(),
            on_change=lambda: None, results={0: begun}, refusals=no_refusals,
        )  # fmt: skip

    with pytest.raises(MachineLost, match="Only the bot of another host can continue"):
        await execution("a", "b").run()
    assert await execution("b").run() is Conclusion.FAILURE  # there are no agents here
    store_value(state_file(tmp_path / "logs", "0"), AgentState())
    assert await execution("a", "b").run() is Conclusion.FAILURE


class Unstored:
    async def save_task(self, claim: Claim, result: TaskResult) -> None:
        """Nothing is stored."""


async def no_refusals(since: float) -> Refusals:
    return Refusals()


class Deliveries:
    """GitHub's list of failed deliveries, as far as the reaper uses it."""

    def __init__(self) -> None:
        self.looked = 0
        self.redelivered: list[int] = []

    async def failed_deliveries(self, since: datetime) -> list[tuple[int, str]]:
        self.looked += 1
        return [(self.looked, f"lost-{self.looked}")]

    async def redeliver(self, delivery_number: int) -> None:
        self.redelivered.append(delivery_number)


async def test_one_bot_at_a_time_looks_for_lost_deliveries(
    stores: tuple[SqlStore, SqlStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Deliveries()
    github = cast(GitHub, found)
    reapers = [bot("a", store, tmp_path, Computer(), MemoryProvider()).reaper() for store in stores]
    asked = [await reaper.fetch_lost_deliveries(github, is_urgent=False) for reaper in (*reapers, *reapers)]
    assert asked == [["lost-1"], [], [], []]
    # One that lost deliveries itself, or has just been started, doesn't wait for its turn.
    assert await reapers[1].fetch_lost_deliveries(github, is_urgent=True) == ["lost-2"]
    pruned: list[SqlStore] = []
    for store, reaper in zip(stores, reapers, strict=True):

        async def prune(store: SqlStore = store) -> int:
            pruned.append(store)
            return 0

        monkeypatch.setattr(store, "prune", prune)
        await reaper._delete_old()
    assert pruned == [stores[0]]


async def test_a_bot_knows_by_its_own_clock_when_others_may_have_its_work(
    stores: tuple[SqlStore, SqlStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = [0.0]
    monkeypatch.setattr("gibil_bot.runs.presence.passed_s", lambda: time.monotonic() + later[0])
    presence = Presence(stores[0].hosts, Host(id="00000000000000aa", name="vm"), "process")
    assert not presence.holds()
    await presence.start()
    later[0] = 20.0
    assert presence.holds()
    later[0] = 26.0  # others end its leases after 30 s
    assert not presence.holds()


async def test_two_bots_with_the_id_of_one_host_both_stop(
    stores: tuple[SqlStore, SqlStore], caplog: pytest.LogCaptureFixture
) -> None:
    """As after copying a data directory, on one computer or to another one of the same name."""
    twins = Host(id="00000000000000aa", name="vm")
    stopped = [asyncio.Event(), asyncio.Event()]
    running, presences = [], []
    for number, (store, lapse) in enumerate(zip(stores, stopped, strict=True)):
        presence = Presence(store.hosts, twins, f"process {number}", on_lapse=[lapse.set], every_s=0.05)
        await presence.start()
        presences.append(presence)
        running.append(asyncio.create_task(presence.run()))
    async with asyncio.timeout(patient(20)):
        for each in stopped:
            await each.wait()
    assert [presence.holds() for presence in presences] == [False, False]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    assert "another bot runs with the id of this host, 00000000000000aa" in caplog.text
    assert "delete host.id in its data directory" in caplog.text
