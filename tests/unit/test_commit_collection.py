"""Commits are collected from a workspace as a bundle, and rebased there; the scripts run here, in a real shell."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import cast

import pytest

from gibil_bot import git as our_git
from gibil_bot.commits.checks import CommitPolicy, check
from gibil_bot.commits.collected import REBASED, Collected, NotCollected, choose, collect, commit_changes
from gibil_bot.commits.conflicts import Conflict, patch, rebase
from gibil_bot.errors import UsageError
from gibil_bot.model import Result
from gibil_bot.ports import Shell
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.scripts.outbox import OUTBOX, outbox_function
from tests.doubles.patience import patient
from tests.doubles.repositories import ENVIRONMENT, commit, git, repository


class HereShell:
    """Runs a machine's scripts in a shell of this host, with a folder of the test as the workspace."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.outbox = workspace.parent / ".gibil" / "outbox.git"

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes | AsyncIterator[bytes] = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str, bytes], None] | None = None,
        keep_output: bool = True,
        most_bytes: int = 0,
        tag: str | None = None,
    ) -> Result:
        given = stdin if isinstance(stdin, bytes) else b"".join([data async for data in stdin])
        process = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", script.replace(WORKSPACE, str(self.workspace)).replace(OUTBOX, str(self.outbox)),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in ENVIRONMENT.items() if not name.startswith(("GIT_AUTHOR", "GIT_COMMITTER"))},
        )  # fmt: skip
        async with asyncio.timeout(patient(60)):
            out, err = await process.communicate(given)
        if on_output is not None:
            for position in range(0, len(out), 17):  # split anywhere, as a connection may
                on_output("stdout", out[position : position + 17])
            on_output("stderr", err)
        assert process.returncode is not None
        return Result(exit_status=process.returncode, stdout=out, stderr=err)


class Machine:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.origin = repository(folder / "origin", {"file": "1\n", "other": "1\n"})
        self.base = git(self.origin, "rev-parse", "HEAD")
        git(folder, "clone", "-q", str(self.origin), "work")
        self.work = folder / "work"
        self.shell = cast("Shell", HereShell(self.work))
        self.ours = folder / "ours.git"
        self.bundles = 0

    async def collect(self, base: str | None = None, **options: object) -> Collected | None:
        self.bundles += 1
        into = self.folder / f"bundle{self.bundles}"
        return await collect(self.shell, base or self.base, into, name="m", **options)  # type: ignore[arg-type]

    def create_outbox(self) -> None:
        script = f"{outbox_function()}create_outbox {self.work} {self.base}"
        subprocess.run(["/bin/sh", "-c", script], check=True, env=ENVIRONMENT)

    async def chosen(self) -> tuple[str | None, str]:
        """Return the collected head of the machine's work, and the remark."""
        source, remark = await choose(self.shell, self.base, "Tidy", name="m")
        found = await self.collect(source=source)
        return found.head if found is not None else None, remark

    async def fetch(self) -> None:
        await our_git.create_repository(self.ours)
        git(self.ours, "fetch", "-q", str(self.origin), "+refs/heads/*:refs/heads/*")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_new_commits_are_collected_and_nothing_without_new_commits(machine: Machine) -> None:
    assert await machine.collect() is None
    head = commit(machine.work, {"file": "2\n"})
    git(machine.work, "tag", "HEAD", machine.base)  # names the base to a careless git
    found = await machine.collect()
    assert found is not None
    assert (found.base, found.head, found.bytes) == (machine.base, head, found.bundle.stat().st_size)
    await machine.fetch()
    assert (await check(machine.ours, found, CommitPolicy())).files == ("file",)


async def test_uncommitted_changes_become_a_commit_without_hooks(machine: Machine) -> None:
    hook = machine.work / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    await commit_changes(machine.shell, "Nothing", name="m")
    assert await machine.collect() is None
    (machine.work / "file").write_text("2\n")
    (machine.work / "new").write_text("n\n")
    await commit_changes(machine.shell, "# Format\n\nthe code", name="m")
    found = await machine.collect()
    assert found is not None
    await machine.fetch()
    checked = await check(machine.ours, found, CommitPolicy())
    assert [(each.message, len(each.changes)) for each in checked.commits] == [("# Format\n\nthe code", 2)]


async def test_history_that_was_rewritten_is_not_collected(machine: Machine) -> None:
    git(machine.work, "commit", "-q", "--amend", "-m", "other")
    with pytest.raises(NotCollected, match="the history of m was rewritten"):
        await machine.collect()


async def test_a_bundle_above_the_limit_ends_the_transfer(machine: Machine) -> None:
    commit(machine.work, {"file": "2\n"})
    with pytest.raises(NotCollected, match="larger than 0 MiB"):
        await machine.collect(most_bytes=100)


async def test_a_workspace_without_a_commit_is_named(machine: Machine) -> None:
    git(machine.work, "update-ref", "-d", "HEAD")
    with pytest.raises(UsageError, match=r"there is no commit in .* on m: "):
        await machine.collect()


async def test_commits_are_rebased_on_the_machine_and_collected_again(machine: Machine) -> None:
    commit(machine.work, {"file": "2\n"})
    (machine.work / "file").write_text("uncommitted\n")
    target = commit(machine.origin, {"other": "2\n"})
    await machine.fetch()
    found = await machine.collect()
    assert found is not None
    checked = await check(machine.ours, found, CommitPolicy())
    await rebase(machine.shell, machine.ours, checked, target, name="m")
    again = await machine.collect(target, source=REBASED)
    assert again is not None
    checked = await check(machine.ours, again, CommitPolicy())
    assert [each.parents for each in checked.commits] == [(target,)]
    assert checked.files == ("file",)
    assert (machine.work / "file").read_text() == "uncommitted\n"
    assert git(machine.work, "worktree", "list").count("\n") == 0


async def test_commits_that_do_not_apply_are_a_conflict_and_a_patch(machine: Machine) -> None:
    commit(machine.work, {"file": "2\n"})
    target = commit(machine.origin, {"file": "3\n"})
    await machine.fetch()
    found = await machine.collect()
    assert found is not None
    checked = await check(machine.ours, found, CommitPolicy())
    with pytest.raises(Conflict, match=f"don't apply to {target[:7]}, the branch's head; conflicts: file"):
        await rebase(machine.shell, machine.ours, checked, target, name="m")
    mailbox = await patch(machine.ours, checked)
    assert mailbox is not None
    git(machine.origin, "checkout", "-q", machine.base)
    git(machine.origin, "am", "-q", given=mailbox)
    assert (machine.origin / "file").read_text() == "2\n"
    assert await patch(machine.ours, checked, most_bytes=100) is None


async def test_a_branch_that_was_replaced_is_a_conflict(machine: Machine) -> None:
    commit(machine.work, {"file": "2\n"})
    found = await machine.collect()
    assert found is not None
    await machine.fetch()
    checked = await check(machine.ours, found, CommitPolicy())
    git(machine.origin, "commit", "-q", "--amend", "-m", "replaced")
    git(machine.ours, "fetch", "-q", str(machine.origin), "+refs/heads/main:refs/heads/main")
    target = git(machine.origin, "rev-parse", "HEAD")
    with pytest.raises(Conflict, match="doesn't descend from"):
        await rebase(machine.shell, machine.ours, checked, target, name="m")


# --- what was pushed on the machine


async def test_pushed_commits_count_and_not_the_branch_that_is_checked_out_afterwards(machine: Machine) -> None:
    machine.create_outbox()
    git(machine.work, "checkout", "-q", "-b", "fix")
    pushed = commit(machine.work, {"file": "2\n"})
    git(machine.work, "push", "-q", "origin", "HEAD")
    assert await machine.chosen() == (pushed, "")
    git(machine.work, "checkout", "-q", machine.base)
    assert await machine.chosen() == (pushed, "")


async def test_work_on_top_of_pushed_commits_is_collected_with_them(machine: Machine) -> None:
    machine.create_outbox()
    pushed = commit(machine.work, {"file": "2\n"})
    git(machine.work, "push", "-q", "origin", "HEAD:refs/heads/fix")
    (machine.work / "file").write_text("3\n")
    head, remark = await machine.chosen()
    assert (git(machine.work, "log", "-1", "--format=%P %s", head or ""), remark) == (f"{pushed} Tidy", "")
    last = commit(machine.work, {"file": "4\n"})
    assert await machine.chosen() == (last, "")


@pytest.mark.parametrize("other", ["file", "commit"])
async def test_other_work_than_the_pushed_commits_is_left_out_with_a_remark(machine: Machine, other: str) -> None:
    machine.create_outbox()
    git(machine.work, "checkout", "-q", "-b", "fix")
    pushed = commit(machine.work, {"file": "2\n"})
    git(machine.work, "push", "-q", "origin", "HEAD")
    git(machine.work, "checkout", "-q", machine.base)
    if other == "file":
        (machine.work / "new").write_text("n\n")
    else:
        commit(machine.work, {"other": "2\n"})
    before = git(machine.work, "rev-parse", "HEAD")
    assert await machine.chosen() == (
        pushed,
        "Only what was pushed to fix on the machine was collected; its other changes were left out.",
    )
    assert git(machine.work, "rev-parse", "HEAD") == before


async def test_without_pushed_commits_those_of_the_workspace_are_collected(machine: Machine) -> None:
    assert await machine.chosen() == (None, "")
    machine.create_outbox()
    git(machine.work, "push", "-q", "origin", "HEAD:refs/heads/same")  # the base itself
    (machine.work / "file").write_text("2\n")
    head, remark = await machine.chosen()
    assert (git(machine.work, "log", "-1", "--format=%P %s", head or ""), remark) == (f"{machine.base} Tidy", "")
