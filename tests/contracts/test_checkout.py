"""`checkout:` means the same for the bot and for `gibil try`: both leave the same tree on a machine, byte for byte.

The transfers run their scripts in a folder of this computer instead of on a machine. GitHub is the double, with its git and LFS
servers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from msgspec.structs import replace

from gibil_bot.errors import GitHubError
from gibil_bot.lfs import client
from gibil_bot.model import Checkout, Repository, Result, Run, RunState, Trust
from gibil_bot.ports import GitHub, Shell
from gibil_bot.runs import local_checkout
from gibil_bot.runs.sources import LocalBundle, PullRequestClone, SourceError
from gibil_bot.scripts.clone import _NOTES, notes_of_clone
from tests.contracts.double_kit import App, signed_in
from tests.contracts.store_nouns import new_run
from tests.doubles.patience import patient
from tests.doubles.repositories import ENVIRONMENT, git

pytestmark = [pytest.mark.usefixtures("no_git_settings"), pytest.mark.asyncio(loop_scope="module")]

NAME = "ada/engine"
LARGE = bytes(range(256)) * 5000
LFS_NOTE = notes_of_clone(b"gibil: " + _NOTES["lfs"].encode())


@dataclass
class Host:
    """Runs the scripts of a transfer below `home` instead of /root."""

    home: Path
    env: list[Mapping[str, str]] = field(default_factory=list)
    scripts: list[str] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        return self.home / "project"

    async def run(
        self, script: str, *, stdin: bytes | AsyncIterator[bytes] = b"", env: Mapping[str, str] | None = None, **_: Any
    ) -> Result:
        self.env.append(env or {})
        self.scripts.append(script)
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", script.replace("/root/", f"{self.home}/"),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            cwd=self.home, env={**ENVIRONMENT, "HOME": str(self.home), **(env or {})}, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        try:
            if isinstance(stdin, bytes):
                process.stdin.write(stdin)
            else:
                async for block in stdin:
                    process.stdin.write(block)
            process.stdin.close()
            out, err = await asyncio.wait_for(process.communicate(), patient(60))
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.communicate()
        return Result(exit_status=process.returncode or 0, stdout=out, stderr=err)

    async def put(self, path: str, content: bytes | AsyncIterator[bytes]) -> None:
        with Path(path.replace("/root/", f"{self.home}/")).open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
                return
            async for block in content:
                file.write(block)


@dataclass
class Tokens:
    """The App's tokens, from the double."""

    app: App
    minted: list[str] = field(default_factory=list)

    async def clone_token(self, installation_id: int, repository: Repository, submodules: tuple[str, ...] = ()) -> str:
        scope: dict[str, object] = {"repository_ids": [repository.id], "permissions": {"contents": "read"}}
        if submodules:
            scope["repositories"] = list(submodules)
        path = f"/app/installations/{installation_id}/access_tokens"
        answer = await self.app.as_app("POST", path, json=scope)
        if answer.status_code != 201:
            raise GitHubError("Validation Failed", status=answer.status_code)
        self.minted.append(answer.json()["token"])
        return self.minted[-1]

    async def revoke_token(self, token: str) -> None:
        await self.app.ask("DELETE", "/installation/token", token=token)


@dataclass
class World:
    """`ada/engine`, with a pull request 1 of branch `topic`, and a checkout of it as its author has it."""

    app: App
    folder: Path
    sha: str = ""
    work: Path = Path()
    hosts: Path = Path()

    def url(self, name: str) -> str:
        return f"{self.app.github.url}/{name}.git"

    def bare(self, name: str) -> Path:
        return self.folder / "github" / "repositories" / f"{name}.git"

    async def create(self, *, private: bool = False) -> None:
        for name in ("ada/parts", "ada/inner"):
            await self.app.github.add_repository(name, {"README.md": "hello\n"}, private=private)
            await self.clone(name)
        inner, parts = self.folder / "inner", self.folder / "parts"
        pointer = self.app.github.add_lfs_object("ada/inner", b"inner object")
        await self.commit(inner, {"run.sh": "#!/bin/sh\n", "a.bin": pointer, ".gitattributes": "*.bin filter=lfs\n"})
        await self.add_module(parts, "../inner.git", "ada/inner", "deep/inner")
        await self.commit(parts, {"part": "1"})
        await self.commit(parts, {"part": "2"})

        repository = self.app.github.state.repository(NAME)
        repository.private = private
        await self.clone(NAME)
        self.work = self.folder / "work"
        os.rename(self.folder / "engine", self.work)
        await asyncio.to_thread(git, self.work, "tag", "-a", "v1.0", "-m", "first")
        await self.commit(self.work, {"base": "1"})
        await asyncio.to_thread(git, self.work, "tag", "v1.1")
        await asyncio.to_thread(git, self.work, "push", "-q", str(self.bare(NAME)), "main")
        await asyncio.to_thread(git, self.work, "update-ref", "refs/remotes/origin/main", "main")
        await asyncio.to_thread(git, self.work, "checkout", "-q", "-b", "topic")
        await self.add_module(self.work, "../parts.git", "ada/parts", "lib/parts")
        os.symlink("../run.sh", self.work / "src" / "link")
        large = self.app.github.add_lfs_object(NAME, LARGE)
        files = {
            ".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n",
            "large.bin": large,
            "data/größer name.bin": large,
            "script.bin": self.app.github.add_lfs_object(NAME, b"#!/bin/sh\necho from lfs\n"),
            "empty.bin": "",
            "pointer.txt": large,
        }
        await self.commit(self.work, files, executable=("script.bin",))
        self.sha = await self.commit(self.work, {"topic": "2"})
        await asyncio.to_thread(git, self.work, "tag", "v2.0")
        await asyncio.to_thread(git, self.work, "push", "-q", "--tags", str(self.bare(NAME)), "topic")
        await asyncio.to_thread(git, self.bare(NAME), "update-ref", "refs/pull/1/head", self.sha)
        await asyncio.to_thread(git, self.work, "checkout", "-q", "--detach")
        await self.commit(self.work, {"elsewhere": "3"})
        await asyncio.to_thread(git, self.work, "tag", "v9.9")
        await asyncio.to_thread(git, self.work, "push", "-q", "--tags", str(self.bare(NAME)))
        await asyncio.to_thread(git, self.work, "checkout", "-q", "topic")

    async def clone(self, name: str) -> None:
        """Clone from the disk, as from the double over HTTP, which would need the credentials of a person."""
        folder = self.folder / name.partition("/")[2]
        await asyncio.to_thread(git, self.folder, "clone", "-q", str(self.bare(name)), str(folder))
        await asyncio.to_thread(git, folder, "remote", "set-url", "origin", self.url(name))

    async def commit(self, folder: Path, files: dict[str, str], *, executable: tuple[str, ...] = ()) -> str:
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
            (folder / path).chmod(0o755 if text.startswith("#!") or path in executable else 0o644)
        await asyncio.to_thread(git, folder, "add", "-A")
        await asyncio.to_thread(git, folder, "commit", "-q", "-m", "change")
        if folder != self.work:
            await asyncio.to_thread(git, folder, "push", "-q", str(self.bare(f"ada/{folder.name}")), "HEAD:main")
        return await asyncio.to_thread(git, folder, "rev-parse", "HEAD")

    async def add_module(self, folder: Path, address: str, name: str, path: str) -> None:
        add = ("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "--name", path, str(self.bare(name)), path)
        await asyncio.to_thread(git, folder, *add)
        await asyncio.to_thread(git, folder, "config", "-f", ".gitmodules", f"submodule.{path}.url", address)

    async def initialise(self) -> None:
        """Check out the submodules in the author's checkout, as `git submodule update --init --recursive` does."""
        for folder, path, name in (
            (self.work, "lib/parts", "ada/parts"),
            (self.work / "lib/parts", "deep/inner", "ada/inner"),
        ):
            await asyncio.to_thread(git, folder, "config", f"submodule.{path}.url", str(self.bare(name)))
            await asyncio.to_thread(
                git, folder, "-c", "protocol.file.allow=always", "submodule", "--quiet", "update", "--init", path
            )

    async def with_bot(self, host: Host, checkout: Checkout, *, trust: Trust = Trust.TRUSTED) -> tuple[Tokens, tuple[str, ...]]:
        run = _run(self, checkout, trust)
        tokens = Tokens(self.app)
        transfer = PullRequestClone(cast(GitHub, tokens))
        transfer.begin(run)
        try:
            notes = await transfer.copy_to(cast(Shell, cast(Any, host)), run)
        finally:
            await transfer.end(run)
        return tokens, notes

    async def with_try(self, host: Host, checkout: Checkout, work: Path | None = None) -> tuple[str, ...]:
        run = _run(self, checkout, Trust.TRUSTED)
        async with local_checkout.read(work or self.work, dirty=False) as here:
            transfer = LocalBundle(here.repository, here.sha, here.promisor, here.surroundings)
            return await transfer.copy_to(cast(Shell, cast(Any, host)), run)

    def host(self, name: str) -> Host:
        home = self.hosts / name
        home.mkdir(parents=True)
        return Host(home)


def _run(world: World, checkout: Checkout, trust: Trust) -> Run:
    found, github = new_run("r1"), world.app.github
    repository = github.state.repository(NAME)
    source = replace(
        found.source,
        installation_id=github.installation(NAME).id,
        repository=Repository(
            id=repository.id, full_name=NAME, clone_url=world.url(NAME), default_branch="main", private=repository.private
        ),
        pull_request=replace(found.source.pull_request, number=1, head_sha=world.sha, base_ref="main"),
        sha=world.sha,
        trust=trust,
    )
    at = datetime(2026, 1, 1, tzinfo=UTC)
    plan = replace(found.plan, checkout=checkout)
    return Run(id="r1", seq=1, delivery_guid="d", source=source, plan=plan, state=RunState.RUNNING, queued_at=at, started_at=at)


@contextlib.asynccontextmanager
async def _created(folder: Path, *, private: bool) -> AsyncIterator[World]:
    async with signed_in(folder / "github") as app:
        created = World(app, folder)
        await created.create(private=private)
        yield created


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def public(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with _created(tmp_path_factory.mktemp("public"), private=False) as created:
        yield created


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def private(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with _created(tmp_path_factory.mktemp("private"), private=True) as created:
        yield created


@contextlib.asynccontextmanager
async def _lent(created: World, folder: Path) -> AsyncIterator[World]:
    """Lend the repositories with a new copy of the author's checkout; then restore the objects of the LFS server."""
    work = folder / "work"
    await asyncio.to_thread(shutil.copytree, created.work, work, symlinks=True)
    objects = created.app.github.state.lfs_objects
    before = dict(objects)
    try:
        yield replace_dataclass(created, work=work, hosts=folder / "hosts")
    finally:
        objects.clear()
        objects.update(before)


@pytest_asyncio.fixture(loop_scope="module")
async def here(public: World, tmp_path: Path) -> AsyncIterator[World]:
    async with _lent(public, tmp_path) as world:
        yield world


@pytest_asyncio.fixture(loop_scope="module")
async def hidden(private: World, tmp_path: Path) -> AsyncIterator[World]:
    """Private repositories."""
    async with _lent(private, tmp_path) as world:
        yield world


def facts(workspace: Path) -> dict[str, object]:
    """Return everything that a test may see of a checkout: files with mode and content, and what git says."""
    files: dict[str, object] = {}
    modules = [Path()]
    for folder, names, found in os.walk(workspace):
        here = Path(folder).relative_to(workspace)
        if ".git" in names:
            names.remove(".git")
        elif ".git" in found:
            found.remove(".git")
            modules.append(here)
        for name in [*names, *found]:
            path = Path(folder) / name
            mode = stat.S_IMODE(path.lstat().st_mode)
            files[str(here / name)] = (
                os.readlink(path) if path.is_symlink() else (mode, path.read_bytes() if path.is_file() else "folder")
            )
    by_module = {
        str(module): (
            git(workspace / module, "rev-list", "HEAD"),
            git(workspace / module, "remote", "get-url", "origin"),
            git(workspace / module, "status", "--porcelain", "--ignored"),
            git(workspace / module, "ls-files", "-s"),
        )
        for module in sorted(modules)
    }
    refs = git(workspace, "for-each-ref", "--format=%(refname) %(objectname) %(symref)")
    urls = git(workspace, "config", "--get-regexp", r"^submodule\..*\.url") if len(modules) > 1 else ""
    return {"files": files, "refs": refs, "modules": by_module, "urls": urls}


OPTIONS = {
    "defaults": Checkout(),
    "one commit": Checkout(depth=1),
    "without tags": Checkout(tags=False),
    "submodules": Checkout(submodules="true", lfs=True),
    "all submodules with some history": Checkout(submodules="recursive", depth=2),
    "everything": Checkout(submodules="recursive", lfs=True, depth=0),
}


async def test_the_bot_and_try_leave_the_same_tree(here: World) -> None:
    await here.initialise()
    for name, checkout in OPTIONS.items():
        bot, tried = here.host(f"{name} by the bot".replace(" ", "-")), here.host(name.replace(" ", "-"))
        _, notes = await here.with_bot(bot, checkout)
        assert await here.with_try(tried, checkout) == notes, name
        expected, found = facts(bot.workspace), facts(tried.workspace)
        assert [(key, found[key]) for key in found if key != "files"] == [
            (key, expected[key]) for key in expected if key != "files"
        ], name
        assert found["files"] == expected["files"], name
        files = cast(dict[str, Any], found["files"])
        assert files["src/link"] == "../run.sh"
        assert ("lib/parts/part" in files) == (checkout.has_submodules), name
        assert ("lib/parts/deep/inner/run.sh" in files) == (checkout.submodules == "recursive"), name
        assert (files["large.bin"][1] == LARGE) == checkout.lfs, name
        histories = {name: each[0].split() for name, each in cast(dict[str, Any], found["modules"]).items()}
        assert len(histories["."]) == (checkout.depth or 4), name
        if checkout.has_submodules:
            assert len(histories["lib/parts"]) == {None: 1, 2: 2, 0: 3}[checkout.depth], name
        assert ("refs/tags/v1.1" in str(found["refs"])) == (checkout.tags and not checkout.depth), name
        assert "v9.9" not in str(found["refs"])
        shutil.rmtree(bot.home)
        shutil.rmtree(tried.home)
    everything = files
    assert everything["script.bin"] == (0o755, b"#!/bin/sh\necho from lfs\n")
    assert everything["data/größer name.bin"][1] == LARGE
    assert everything["empty.bin"][1] == b""
    assert everything["pointer.txt"][1].startswith(b"version https://git-lfs")
    assert everything["lib/parts/deep/inner/a.bin"][1] == b"inner object"


@pytest.mark.parametrize("trust", Trust)
async def test_no_token_for_files_of_lfs_is_ever_on_the_machine(hidden: World, trust: Trust) -> None:
    host = hidden.host("bot")
    tokens, _ = await hidden.with_bot(host, Checkout(lfs=True), trust=trust)
    assert (host.workspace / "large.bin").read_bytes() == LARGE
    cloning, lfs = tokens.minted
    repository = hidden.app.github.state.repository(NAME)
    assert not any(lfs in str(env) for env in host.env)
    assert not any(token in script for token in tokens.minted for script in host.scripts)
    for token in (cloning, lfs):
        assert token.encode() not in b"".join(path.read_bytes() for path in host.home.rglob("*") if path.is_file())
        assert hidden.app.github.state.tokens[token].revoked
        assert hidden.app.github.state.tokens[token].repository_ids == frozenset({repository.id})


async def test_private_submodules_with_files_of_lfs_need_a_trusted_head(hidden: World) -> None:
    everything = Checkout(submodules="recursive", lfs=True)
    host = hidden.host("trusted")
    tokens, _ = await hidden.with_bot(host, everything)
    assert (host.workspace / "lib/parts/deep/inner/a.bin").read_bytes() == b"inner object"
    assert not any(token in script for token in tokens.minted for script in host.scripts)
    with pytest.raises(SourceError, match="a submodule can't be fetched with our credentials"):
        await hidden.with_bot(hidden.host("untrusted"), everything, trust=Trust.UNTRUSTED)


async def test_an_object_that_was_never_pushed_is_named(here: World) -> None:
    objects = here.app.github.state.lfs_objects
    del objects[next(key for key, content in objects.items() if content == LARGE)]
    sentence = r"^The files of Git LFS can't be fetched \('data/größer name\.bin'\): the LFS server at .* doesn't have the object \w{12} of 1280000 bytes\.$"  # noqa: E501
    for transfer in (here.with_bot, here.with_try):
        with pytest.raises(SourceError, match=sentence):
            await transfer(here.host(transfer.__name__), Checkout(lfs=True))
        assert (here.hosts / f"{transfer.__name__}/project/large.bin").read_bytes().startswith(b"version ")


async def test_a_server_that_sends_other_bytes_is_not_believed(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAUSE_S", 0)
    objects = here.app.github.state.lfs_objects
    for key, content in objects.items():
        objects[key] = content[:-1] + b"?" if content else content
    with pytest.raises(SourceError, match=r"isn't that object|403"):
        await here.with_bot(here.host("bot"), Checkout(lfs=True))


async def test_objects_of_the_users_own_store_need_no_server(here: World) -> None:
    for (_, oid), content in here.app.github.state.lfs_objects.items():
        path = here.work / ".git/lfs/objects" / oid[:2] / oid[2:4] / oid
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    here.app.github.state.lfs_objects.clear()
    host = here.host("try")
    await here.with_try(host, Checkout(lfs=True))
    assert (host.workspace / "large.bin").read_bytes() == LARGE


async def test_files_of_lfs_can_be_changed_on_the_machine(here: World) -> None:
    host = here.host("try")
    await here.with_try(host, Checkout(lfs=True))
    work = host.workspace
    (work / "large.bin").write_bytes(b"changed")
    assert git(work, "status", "--porcelain") == " M large.bin"
    git(work, "commit", "-qam", "smaller")
    assert git(work, "show", "HEAD:large.bin").startswith("version https://git-lfs.github.com/spec/v1\noid sha256:")
    git(work, "checkout", "-q", "HEAD~1")
    assert (work / "large.bin").read_bytes() == LARGE
    git(work, "checkout", "-q", "-")
    assert (work / "large.bin").read_bytes() == b"changed"


async def test_submodules_that_are_not_initialised_are_fetched_as_the_user(here: World) -> None:
    await asyncio.to_thread(git, here.work, "submodule", "--quiet", "deinit", "-f", "lib/parts")
    shutil.rmtree(here.work / ".git/modules")
    host = here.host("try")
    await here.with_try(host, Checkout(submodules="recursive"))
    assert (host.workspace / "lib/parts/deep/inner/run.sh").exists()


async def test_files_of_a_submodule_that_git_does_not_track_stay_here(here: World) -> None:
    await here.initialise()
    (here.work / "lib/parts/part").write_text("not committed")
    (here.work / "lib/parts/.env").write_text("not tracked")
    host = here.host("try")
    await here.with_try(host, Checkout(submodules="recursive"))
    assert (host.workspace / "lib/parts/part").read_text() == "2"
    assert not (host.workspace / "lib/parts/.env").exists()


async def test_a_later_plan_may_add_submodules_to_a_checkout(here: World) -> None:
    await here.initialise()
    bot, tried = here.host("bot"), here.host("try")
    more = Checkout(submodules="recursive")
    await here.with_bot(bot, Checkout())
    await here.with_bot(bot, more)
    async with local_checkout.read(here.work, dirty=False) as found:
        transfer = LocalBundle(found.repository, found.sha, found.promisor, found.surroundings)
        run = _run(here, Checkout(), Trust.TRUSTED)
        await transfer.copy_to(cast(Shell, cast(Any, tried)), run)
        plan = replace(run.plan, checkout=more)
        assert await transfer.copy_rest(cast(Shell, cast(Any, tried)), replace(run, plan=plan)) == LFS_NOTE
    assert facts(tried.workspace) == facts(bot.workspace)
    assert (tried.workspace / "lib/parts/deep/inner/run.sh").exists()
