"""A folder that was unpacked instead of cloned, whose git configuration names programs: none of them runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from gibil_bot.commits import local_repository
from gibil_bot.commits.from_machine import Commits, push
from gibil_bot.commits.pack import packed
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines.source import origin_url, read_source
from gibil_bot.ports import Shell
from gibil_bot.runs import local_checkout
from tests.doubles.githttp import GitServer
from tests.doubles.repositories import commit, git, repository

pytestmark = pytest.mark.usefixtures("no_git_settings")

HOOKS = (
    "applypatch-msg", "pre-applypatch", "pre-commit", "prepare-commit-msg", "commit-msg", "post-commit", "post-checkout",
    "post-merge", "pre-push", "pre-receive", "update", "proc-receive", "post-receive", "post-update", "reference-transaction",
    "push-to-checkout", "pre-auto-gc", "post-index-change", "fsmonitor-watchman",
)  # fmt: skip


class Trap:
    """A repository, and a program next to it that creates a file when it runs."""

    def __init__(self, tmp_path: Path) -> None:
        self.canary = tmp_path / "canary"
        self.program = tmp_path / "program"
        self.program.write_text(f'#!/bin/sh\necho "$0 $*" >>{self.canary}\ncat >/dev/null 2>&1 </dev/null\nexit 0\n')
        self.program.chmod(0o755)
        self.work = repository(
            tmp_path / "work",
            {
                ".gibil.yml": "tasks: [{run: 'true'}]\n",
                "file.x": "1",
                ".gitattributes": "*.x filter=x diff=x merge=x\n",
            },
        )
        (self.work / "file.x").write_text("changed")
        (self.work / "new.x").write_text("new")

    def config(self, *lines: str) -> None:
        with (self.work / ".git" / "config").open("a") as file:
            file.write("\n".join(lines).format(program=self.program) + "\n")

    def hooks(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for name in HOOKS:
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(self.program)

    def lose(self) -> None:
        """Turn it into a partial clone that lacks the blobs of its .gibil.yml and of its file."""
        git(self.work, "config", "extensions.partialClone", "origin")
        for path in (".gibil.yml", "file.x"):
            name = git(self.work, "rev-parse", f"HEAD:{path}")
            (self.work / ".git" / "objects" / name[:2] / name[2:]).unlink()


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


async def with_every_command(folder: Path) -> list[GibilError]:
    """Return the errors of `gibil create --repo`, `gibil branch`, `gibil try` and `gibil try --dirty` for a folder."""
    errors = []
    for command in (_create, _branch, _try, _try_dirty):
        try:
            await command(folder)
        except GibilError as error:
            errors.append(error)
    return errors


async def _create(folder: Path) -> None:
    async with read_source(str(folder), None, "https://api.github.com") as found:
        assert found.checkout is not None
        await _pack(found.checkout, found.sha)


async def _branch(folder: Path) -> None:
    await origin_url(folder)


async def _try(folder: Path) -> None:
    async with local_checkout.read(folder, dirty=False) as here:
        await _pack(here.repository, here.sha)


async def _try_dirty(folder: Path) -> None:
    async with local_checkout.read(folder, dirty=True) as here:
        await _pack(here.repository, here.sha)


async def _pack(repository: Path, sha: str) -> None:
    async with packed(repository, sha, {}) as archive:
        async for _ in archive:
            pass


SETTINGS: dict[str, tuple[str, ...]] = {
    "fsmonitor": ("[core]", "fsmonitor = {program}"),
    "built-in fsmonitor": ("[core]", "fsmonitor = true", "[fsmonitor]", "allowRemote = true"),
    "clean filter": ('[filter "x"]', "clean = {program}", "smudge = {program}", "required = true"),
    "filter process": ('[filter "x"]', "process = {program}"),
    "external diff": ("[diff]", "external = {program}"),
    "diff driver": ('[diff "x"]', "command = {program}", "textconv = {program}", "cachetextconv = true"),
    "merge driver": ('[merge "x"]', "driver = {program}"),
    "pager": ("[core]", "pager = {program}", "[pager]", "ls-tree = {program}", "config = {program}", "rev-parse = {program}"),
    "editor": ("[core]", "editor = {program}", "[sequence]", "editor = {program}"),
    "aliases": ("[alias]", *(f"{name} = !{{program}}" for name in ("rev-parse", "config", "ls-tree", "bundle", "var"))),
    "signatures": ("[gpg]", "program = {program}", "[log]", "showSignature = true", "[commit]", "gpgSign = true"),
    "alternate refs": ("[core]", "alternateRefsCommand = {program}"),
    "packing hook": ("[uploadpack]", "packObjectsHook = {program}"),
    "askpass": ("[core]", "askPass = {program}"),
    "credential helper": ("[credential]", "helper = !{program}"),
    "recent objects": ("[gc]", "recentObjectsHook = {program}"),
}


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_setting_of_the_repository_runs_nothing(trap: Trap, name: str) -> None:
    trap.config(*SETTINGS[name])
    assert await with_every_command(trap.work) == []
    assert not trap.canary.exists()


async def test_an_included_file_and_the_settings_of_a_worktree_run_nothing(trap: Trap, tmp_path: Path) -> None:
    every = "\n".join(line for lines in SETTINGS.values() for line in lines).format(program=trap.program)
    (tmp_path / "included").write_text(every)
    trap.config("[include]", f"path = {tmp_path}/included")
    git(trap.work, "config", "extensions.worktreeConfig", "true")
    (trap.work / ".git" / "config.worktree").write_text(every)
    assert await with_every_command(trap.work) == []
    assert not trap.canary.exists()


def _make_endless(path: Path, kind: str) -> None:
    path.unlink(missing_ok=True)
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)


@pytest.mark.parametrize("name", ["index", "packed-refs", "objects/info/alternates", "info/exclude"])
@pytest.mark.parametrize("kind", ["device", "fifo"])
async def test_an_endless_file_is_not_read(trap: Trap, name: str, kind: str) -> None:
    path = trap.work / ".git" / name
    _make_endless(path, kind)
    async with asyncio.timeout(30):
        errors = await with_every_command(trap.work)
    assert len(errors) >= 3
    assert all(f"'{path}' is not an ordinary file" in error.message for error in errors)


@pytest.mark.parametrize("name", [".gitignore", "folder/.gitattributes"])
@pytest.mark.parametrize("kind", ["device", "fifo"])
async def test_endless_ignore_rules_in_the_working_tree_are_not_read(trap: Trap, name: str, kind: str) -> None:
    (trap.work / "folder").mkdir()
    (trap.work / "folder" / "new").write_text("new")
    path = trap.work / name
    _make_endless(path, kind)
    async with asyncio.timeout(30):
        with pytest.raises(GibilError, match="is not an ordinary file; remove it"):
            await _try_dirty(trap.work)


async def test_listing_a_working_tree_is_bounded(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_repository, "_QUERY_S", 0.5)
    (trap.work / "folder").mkdir()
    (trap.work / "folder" / "new").write_text("new")
    os.mkfifo(trap.work / "folder" / ".gitignore")
    async with asyncio.timeout(30):
        with pytest.raises(GibilError, match=r"ls-files .* didn't end within 0\.5 s"):
            await _try_dirty(trap.work)


async def test_an_endless_ref_uses_bounded_memory(trap: Trap) -> None:
    ref = trap.work / ".git" / "refs" / "heads" / "main"
    ref.unlink()
    ref.symlink_to("/dev/zero")
    with pytest.raises(GibilError, match="192 MiB of memory"):
        await _try(trap.work)


@pytest.mark.parametrize("named", [False, True], ids=["in .git/hooks", "in core.hooksPath"])
async def test_no_hook_runs(trap: Trap, tmp_path: Path, named: bool) -> None:
    folder = tmp_path / "hooks" if named else trap.work / ".git" / "hooks"
    trap.hooks(folder)
    if named:
        trap.config("[core]", f"hooksPath = {folder}")
    assert await with_every_command(trap.work) == []
    assert not trap.canary.exists()


REMOTES: dict[str, Callable[[Trap], tuple[str, ...]]] = {
    "ssh command": lambda trap: ("[core]", "sshCommand = {program}", '[remote "origin"]', "url = ssh://host/x"),
    "proxy": lambda trap: ("[core]", "gitProxy = {program}", '[remote "origin"]', "url = git://host.invalid/x"),
    "upload-pack": lambda trap: ('[remote "origin"]', f"url = {trap.work}", "uploadpack = {program}"),
    "file": lambda trap: ('[remote "origin"]', f"url = file://{trap.work}", "uploadpack = {program}"),
    "ext": lambda trap: ("[protocol]", "allow = always", '[remote "origin"]', "url = ext::{program}"),
    "helper": lambda trap: ('[remote "origin"]', "url = https://127.0.0.1:9/x", "vcs = ext"),
    "rewritten": lambda trap: (
        '[url "ext::{program} "]', "insteadOf = https://", "[protocol]", "allow = always", '[remote "origin"]',
        "url = https://127.0.0.1:9/x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REMOTES)
async def test_missing_objects_of_a_partial_clone_are_not_fetched_with_the_repositorys_programs(
    trap: Trap, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("GIT_SSH_COMMAND", "false")
    trap.config(*REMOTES[name](trap), "promisor = true")
    trap.lose()
    errors = await with_every_command(trap.work)
    assert errors
    assert all("\n" not in error.message for error in errors)
    assert not trap.canary.exists()


async def test_a_credential_helper_of_a_partial_clone_is_not_called(trap: Trap, tmp_path: Path) -> None:
    with GitServer(tmp_path, tokens={"work/info": "token"}) as server:
        trap.config("[credential]", "helper = !{program}", '[remote "origin"]', f"url = {server.url}/work", "promisor = true")
        trap.lose()
        assert await with_every_command(trap.work)
    assert not trap.canary.exists()


async def test_a_submodules_settings_run_nothing(trap: Trap, tmp_path: Path) -> None:
    inner = repository(trap.work / "inner", {"file.x": "1", ".gitattributes": "*.x filter=x\n"})
    commit(trap.work, {})
    every = "\n".join(line for lines in SETTINGS.values() for line in lines).format(program=trap.program)
    with (inner / ".git" / "config").open("a") as file:
        file.write(every)
    trap.hooks(inner / ".git" / "hooks")
    (inner / "file.x").write_text("changed")
    assert await with_every_command(trap.work) == []
    assert not trap.canary.exists()


async def test_a_bare_repository_runs_nothing(trap: Trap, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(trap.work), "bare.git")
    bare = tmp_path / "bare.git"
    trap.hooks(bare / "hooks")
    every = "\n".join(line for lines in SETTINGS.values() for line in lines).format(program=trap.program)
    (bare / "config").write_text((bare / "config").read_text() + every)
    await _create(bare)
    assert not trap.canary.exists()


@pytest.mark.parametrize("target", ["../..", "../../private", "/"], ids=["above", "beside", "root"])
async def test_a_working_tree_elsewhere_is_rejected(trap: Trap, tmp_path: Path, target: str) -> None:
    repository(tmp_path / "private", {"secret": "1"})
    git(trap.work, "config", "core.worktree", target)
    errors = await with_every_command(trap.work)
    assert len(errors) == 3
    assert all("core.worktree" in error.message for error in errors)


async def test_a_push_into_a_checkout_runs_none_of_its_hooks(trap: Trap, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(trap.work), "copy.git")
    base = git(trap.work, "rev-parse", "HEAD")
    head = git(tmp_path / "copy.git", "commit-tree", "-m", "new", "-p", base, f"{base}^{{tree}}")
    trap.hooks(trap.work / ".git" / "hooks")
    trap.config("[receive]", "denyCurrentBranch = updateInstead", *SETTINGS["fsmonitor"], *SETTINGS["clean filter"])
    trap.config("[core]", f"hooksPath = {trap.work}/.git/hooks")
    for url in (str(trap.work), f"file://{trap.work}", f"{trap.work}/.git"):
        found = Commits(
            repository=tmp_path / "copy.git", url=url, branch="gibil/m", base=base, head=head, subjects=("new",), files=(),
            warnings=(), environment={},
        )  # fmt: skip
        await push(found, cast(Shell, None))
        assert git(trap.work, "rev-parse", "refs/heads/gibil/m") == head
    assert not trap.canary.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
async def test_a_repository_of_another_user_is_rejected_with_a_remedy(trap: Trap) -> None:
    trap.config(*SETTINGS["fsmonitor"])
    for folder, _, files in os.walk(trap.work):
        for path in (folder, *(f"{folder}/{name}" for name in files)):
            os.chown(path, 65534, 65534)
    with pytest.raises(UsageError, match=r"belongs to another user.*safe\.directory"):
        await _create(trap.work)
    assert not trap.canary.exists()
