"""A run leaves its prepared machine, and the next one starts from it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from gibil_bot.config import Secret
from gibil_bot.model import CommitPlan, Conclusion, LayerInfo, Machine, MachineSpec, Run
from gibil_bot.operator_secrets import ScopedSecrets
from gibil_bot.ports import Shell
from gibil_bot.providers.local.provider import LocalProvider
from gibil_bot.runs.memory import MemoryRuns
from gibil_bot.runs.prepared import PreparedMachines
from gibil_bot.runs.redact import Redactor
from gibil_bot.runs.run_commits import Changes, CommitSteps
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.outbox import outbox_line
from tests.doubles.workshop import INSTALL, TEST, Ended, Workshop, workshop
from tests.unit.test_run_commits import Branch

CREATE_OUTBOX = f"{{\n{outbox_line(WORKSPACE, '$(git rev-parse HEAD)')}}}"

pytestmark = pytest.mark.usefixtures("local_machines")


@pytest.fixture
async def place(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Workshop]:
    """With layers, or what the test's parameter says."""
    async with workshop(tmp_path / "w", archives=getattr(request, "param", "layers") == "archives") as place:
        yield place


both = pytest.mark.parametrize("place", ["layers", "archives"], indirect=True)


def check(ended: Ended, statuses: list[str], output: list[str]) -> None:
    assert ended.conclusion is Conclusion.SUCCESS, (ended.results, ended.run.note)
    assert (ended.statuses, ended.output) == (statuses, output)


async def layers(place: Workshop) -> list[LayerInfo]:
    return await place.store.layers()


@both
async def test_the_second_run_installs_nothing(place: Workshop) -> None:
    expected = ["a tool", "sweet", "one", "first"]
    check(await place.run(), ["success", "success"], expected)
    (usage,) = await place.prepared.usages()
    second = await place.run()
    check(second, ["skipped", "success"], expected)
    assert second.results[0].detail.startswith(f"prepared machine {usage.entry.layer[:8]}, saved ")
    assert second.run.note is not None
    assert usage.entry.layer[:8] in second.run.note
    assert len(await layers(place)) == 1


@both
async def test_another_commit_has_its_own_files_on_the_prepared_machine(place: Workshop) -> None:
    place.commit({"old/file": "x\n"})
    await place.run()
    (place.repository / "old/file").unlink()
    place.commit({"source": "second\n", "new": "n\n"})
    second = await place.run(test=f"{TEST}; ls; git status --porcelain; test -e .git/hooks || echo no hooks")
    check(
        second,
        ["skipped", "success"],
        ["a tool", "sweet", "one", "second", "lock", "new", "node_modules", "source", "no hooks"],
    )


@both
async def test_ignore_files_that_a_task_left_keep_no_files(place: Workshop) -> None:
    place.commit({"sub/file": "x\n"})
    words = {
        "install": f"{INSTALL}\necho '*' >sub/.gitignore; echo evil >sub/evil",
        "test": "ls -A sub; cat node_modules/installed",
    }
    await place.run(**words)
    check(await place.run(**words), ["skipped", "success"], ["file", "one"])


@both
async def test_installed_files_that_git_does_not_ignore_are_installed_again(place: Workshop) -> None:
    place.commit({".gitignore": "build/\n"})
    await place.run()
    check(await place.run(), ["success", "success"], ["a tool", "sweet", "one", "first"])
    assert await layers(place) == []


@both
async def test_a_changed_lock_file_is_installed_on_the_nearest_machine(place: Workshop) -> None:
    await place.run()
    first = place.head
    place.commit({"lock": "two\n"})
    second = await place.run()
    check(second, ["success", "success"], ["a tool", "sweet", "one", "two", "first"])
    assert second.run.note is not None
    assert "nearest prepared machine" in second.run.note
    assert [info.depth for info in await layers(place)] == [1, 2]
    check(await place.run(), ["skipped", "success"], ["a tool", "sweet", "one", "two", "first"])
    check(await place.run(first), ["skipped", "success"], ["a tool", "sweet", "one", "first"])  # it changes to the older one
    assert len(await layers(place)) == 2


async def test_another_way_to_prepare_starts_from_a_plain_machine(place: Workshop) -> None:
    await place.run()
    check(await place.run(install=f"{INSTALL}: # changed"), ["success", "success"], ["a tool", "sweet", "one", "first"])
    assert [info.parent for info in await layers(place)] == [None, None]


@pytest.mark.parametrize("how", ["built in the checkout", "written by people"])
async def test_what_depends_on_all_files_is_reused_only_for_the_same_files(place: Workshop, how: str) -> None:
    install = f"{INSTALL} mkdir -p build; cp source build/made" if how.startswith("built") else INSTALL
    words: dict[str, Any] = {"install": install, "detected": how.startswith("built")}
    await place.run(**words)
    check(await place.run(**words), ["skipped", "success"], ["a tool", "sweet", "one", "first"])
    place.commit({"source": "second\n"})
    check(await place.run(**words), ["success", "success"], ["a tool", "sweet", "one", "one", "second"])


@both
@pytest.mark.parametrize("why", ["process", "failure", "secret"])
async def test_a_machine_that_is_not_fit_for_it_is_not_stored(place: Workshop, why: str) -> None:
    more = {"process": "setsid -f sleep 300 >/dev/null 2>&1 </dev/null", "failure": "exit 3", "secret": ":"}[why]
    secrets = ("TOKEN",) if why == "secret" else ()
    place.tools = dataclasses.replace(place.tools, secrets=ScopedSecrets({"TOKEN": Secret("a value of this test")}))
    ended = await place.run(install=f"{INSTALL}\n{more}", test="true", secrets_of_run=secrets)
    assert ended.conclusion is (Conclusion.FAILURE if why == "failure" else Conclusion.SUCCESS)
    assert await layers(place) == []
    assert await place.prepared.usages() == []


async def test_a_run_with_secrets_may_start_from_one_without(place: Workshop) -> None:
    await place.run()
    place.tools = dataclasses.replace(place.tools, secrets=ScopedSecrets({"TOKEN": Secret("a value of this test")}))
    check(await place.run(secrets_of_run=("TOKEN",)), ["skipped", "success"], ["a tool", "sweet", "one", "first"])


class Dies(LocalProvider):
    """Its process dies at one step: every call of its from then on hangs until it is cancelled."""

    step = ""

    async def save_layer(self, name: str, layer_id: str) -> LayerInfo:
        self._die("before the layer is saved")
        info = await super().save_layer(name, layer_id)
        self._die("after the layer is saved")
        return info

    async def create(self, spec: MachineSpec) -> Machine:
        machine = await super().create(spec)
        if spec.layer is not None:
            self._die("after the next machine is created")
        return machine

    def _die(self, step: str) -> None:
        if Dies.step == step:
            Dies.step = ""
            raise asyncio.CancelledError(step)


@pytest.mark.parametrize("step", ["before the layer is saved", "after the layer is saved", "after the next machine is created"])
async def test_a_run_continues_after_its_process_dies(tmp_path: Path, step: str) -> None:
    async with workshop(tmp_path / "w", Dies) as place:
        # What is pushed on the machine waits on the next one, too.
        install = f"{INSTALL}\ngit remote add origin https://example.invalid/r && {CREATE_OUTBOX}"
        new = place.new(install=install, test=f"git push -q origin HEAD:refs/heads/fix 2>/dev/null; {TEST}")
        runs = MemoryRuns()
        runs.queue(new)
        Dies.step = step
        with pytest.raises(asyncio.CancelledError):
            await place.work(runs, new)
        assert Dies.step == ""
        ended = await place.work(runs, new)
        check(ended, ["success", "success"], ["a tool", "sweet", "one", "first"])
        assert ended.run.machine_attempt == 1
        # What the commit was before its tasks ran isn't known any more, so the first of these keeps nothing.
        assert len(await place.provider.layers()) == (0 if step.startswith("before") else 1)


class OnMachine(Branch):
    """A branch, and changes that are files on the run's machine."""

    def __init__(self, head: str) -> None:
        super().__init__(head)
        self.found: list[str] = []

    async def collect(self, shell: Shell | None, run: Run, base: str) -> Changes | None:
        changes = await super().collect(shell, run, base)
        assert shell is not None
        self.found.append((await shell.run("cd /root/project && cat source node_modules/installed")).stdout.decode())
        return changes

    @contextlib.asynccontextmanager
    async def steps(self, run: Run, redactor: Redactor) -> AsyncIterator[CommitSteps]:
        yield self


@pytest.mark.parametrize("is_lost", [False, True], ids=["machine exists", "machine is lost"])
async def test_commits_from_a_prepared_machine_continue_after_the_process_dies(place: Workshop, is_lost: bool) -> None:
    new = place.new()
    new = replace(new, plan=replace(new.plan, commit=CommitPlan(message="Tidy")))
    branch = OnMachine(place.head)
    branch.fails["collect"] = asyncio.CancelledError()
    place.tools = dataclasses.replace(place.tools, commits=branch.steps)
    runs = MemoryRuns()
    runs.queue(new)
    with pytest.raises(asyncio.CancelledError):
        await place.work(runs, new)
    (machine,) = await place.provider.list_machines()
    assert machine.layer is not None
    if is_lost:
        await place.provider.destroy(machine.name)
    ended = await place.work(runs, new)
    assert ended.run.commit is not None
    assert (ended.conclusion, ended.run.commit.phase) == (Conclusion.SUCCESS, "moved")
    assert (ended.run.machine_attempt, branch.found) == (2 if is_lost else 1, ["first\none\n"])


async def test_the_least_recently_used_is_deleted_first(place: Workshop) -> None:
    fill = f"{INSTALL}\nhead -c 8M /dev/urandom >/root/tools/data"
    small = PreparedMachines(place.data_dir / "prepared", place.provider, repository_mb=20, least_s=0.0)
    place.tools = dataclasses.replace(place.tools, prepared=small)
    for number in range(4):
        await place.run(install=f"{fill} # {number}", repository_id=7)
        if number == 1:
            check(await place.run(install=f"{fill} # 0"), ["skipped", "success"], ["a tool", "sweet", "one", "first"])
    kept = [usage.entry for usage in await small.usages()]
    assert sum(entry.size_mb for entry in kept) <= 20
    assert {info.id for info in await layers(place)} == {entry.layer for entry in kept}
    assert len(kept) == 2


async def test_a_task_that_changes_the_commit_leaves_no_machine_for_that_commit(place: Workshop) -> None:
    words: dict[str, Any] = {
        "install": f"{INSTALL} mkdir -p build; cp source build/made; echo second >source; git commit -qam moved",
        "test": "cat build/made",
        "detected": False,
    }
    await place.run(**words)
    place.commit({"source": "second\n"})  # the tree of that commit
    again = await place.run(**words)
    assert again.statuses[0] != "skipped"
    assert await layers(place) == []


async def test_the_saved_time_excludes_that_of_a_change_of_machines(place: Workshop) -> None:
    await place.run()
    first = place.head
    (usage,) = await place.prepared.usages()
    path = place.data_dir / f"prepared/{usage.entry.layer}.json"
    path.write_bytes(msgspec.json.encode(replace(usage.entry, prepared_in_s=2.55)))
    straight = await place.run()
    assert straight.results[0].detail.endswith("saved 3 s")
    place.commit({"lock": "two\n"})
    await place.run()
    changed = await place.run(first)
    assert changed.statuses == ["skipped", "success"]
    assert not changed.results[0].detail.endswith("saved 3 s")
