"""Reading a repository on this host: its names, its files, missing objects, and the settings of the user's git."""

from __future__ import annotations

import asyncio
import io
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from gibil_bot.commits.identity import identity
from gibil_bot.commits.pack import packed as pack
from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.machines.source import CodeSource, origin_url, read_source
from gibil_bot.model import Result
from gibil_bot.planning.plan import catalogue
from gibil_bot.ports import Shell
from gibil_bot.runs import local_checkout
from gibil_bot.runs.sources import INCOMPLETE_HISTORY, LocalBundle, SourceError
from gibil_bot.scripts.clone import clone_script
from tests.doubles.githttp import GitServer
from tests.doubles.patience import patient
from tests.doubles.repositories import ENVIRONMENT, commit, git, repository, snapshot

pytestmark = pytest.mark.usefixtures("no_git_settings")

GITHUB = "https://api.github.com"
WORKFLOW = "on: {command: %s}\ntasks: [{run: 'true'}]\n"


async def origin(repo: Path | str, branch: str | None = None) -> CodeSource:
    async with read_source(str(repo), branch, GITHUB) as found:
        return found


async def packed(folder: Path, place: Path, *, dirty: bool = False) -> tuple[str, dict[str, bytes]]:
    """Return commit and files of what a machine would get, read by the real git."""
    place.mkdir()
    git(place, "init", "-q", "--bare", "copy.git")
    async with local_checkout.read(folder, dirty=dirty) as here, pack(here.repository, here.sha, {}) as archive:
        data = io.BytesIO(b"".join([block async for block in archive]))
    with tarfile.open(fileobj=data) as unpacked:
        unpacked.extractall(place / "copy.git", filter="data")
    listed = git(place / "copy.git", "ls-tree", "-r", "-z", here.sha).split("\0")
    entries = [entry.partition("\t") for entry in listed if entry]
    files = {
        name: git(place / "copy.git", "cat-file", "blob", facts.split()[2]).encode("utf-8", "surrogateescape")
        for facts, _, name in entries
        if " blob " in facts
    }
    return here.sha, files


class _Shell:
    """Runs the scripts of a transfer on this host, in the folder `home` instead of /root/.gibil."""

    def __init__(self, home: Path, workspace: Path) -> None:
        self._home, self._workspace = home, workspace
        self.received: list[int] = []
        """The size of each archive."""

    def _here(self, text: str) -> str:
        return text.replace("/root/.gibil", str(self._home)).replace("/root/project", str(self._workspace))

    async def run(self, script: str, stdin: AsyncIterator[bytes] | None = None, **options: Any) -> Result:
        data = b""
        if stdin is not None:
            data = b"".join([block async for block in stdin])
            self.received.append(len(data))
        done = await asyncio.to_thread(_sh, self._here(script), cwd=self._home.parent, stdin=data)
        return Result(exit_status=done.returncode, stdout=done.stdout, stderr=done.stderr)

    async def put(self, path: str, data: AsyncIterator[bytes]) -> None:
        with Path(self._here(path)).open("wb") as file:
            async for block in data:
                file.write(block)


def _sh(script: str, *, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    words = ["sh", "-c", script]
    return subprocess.run(words, cwd=cwd, env=ENVIRONMENT, input=stdin, capture_output=True, timeout=patient(60), check=False)


def sh(script: str, *, cwd: Path) -> bytes:
    done = _sh(script, cwd=cwd)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def _send(checkout: Path, workspace: Path) -> None:
    """Send a checkout as `gibil try` does."""
    async with local_checkout.read(checkout, dirty=False) as here:
        shell = _Shell(workspace.with_name("home"), workspace)
        await LocalBundle(here.repository, here.sha, here.promisor).send(cast(Shell, cast(Any, shell)))


async def test_a_checkout_that_lacks_objects_of_its_history_sends_the_commit(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"file": "1", "large": "x" * 100})
    lost = git(work, "rev-parse", "HEAD:large")
    git(work, "rm", "-q", "large")
    head = commit(work, {"file": "2"})
    (work / ".git" / "objects" / lost[:2] / lost[2:]).unlink()
    workspace = tmp_path / "machine" / "project"
    workspace.parent.mkdir()
    async with local_checkout.read(work, dirty=False) as here:
        shell = _Shell(workspace.with_name("home"), workspace)
        notes = await LocalBundle(here.repository, here.sha, here.promisor).send(cast(Shell, cast(Any, shell)))
    assert notes == (INCOMPLETE_HISTORY,)
    assert git(workspace, "rev-parse", "HEAD") == head
    assert (workspace / "file").read_text() == "2"


class _Prepared:
    """A machine on which a commit was checked out and prepared."""

    def __init__(self, tmp_path: Path) -> None:
        self.workspace = tmp_path / "machine" / "project"
        self.workspace.parent.mkdir()
        self.home = self.workspace.with_name(".gibil")
        self.shell = _Shell(self.home, self.workspace)

    async def send(self, work: Path) -> None:
        async with local_checkout.read(work, dirty=False) as here:
            await LocalBundle(here.repository, here.sha, here.promisor).send(cast(Shell, cast(Any, self.shell)))
        assert git(self.workspace, "rev-parse", "HEAD") == here.sha
        assert git(self.workspace, "status", "--porcelain") == ""

    def keep(self) -> None:
        refs = git(self.workspace, "for-each-ref", "--format=%(objectname)")
        (self.home / "prepared").write_text(f"{git(self.workspace, 'rev-parse', 'HEAD')}\n{refs}\n")
        (self.workspace / ".git" / "gibil-commit").unlink()


@pytest.fixture
def machine(tmp_path: Path) -> _Prepared:
    return _Prepared(tmp_path)


async def test_a_prepared_machine_receives_only_new_objects(machine: _Prepared, tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"large": secrets.token_hex(50_000), "file": "1"})
    git(work, "tag", "v1", "-m", "first")
    await machine.send(work)
    machine.keep()
    await machine.send(work)
    machine.keep()
    commit(work, {"file": "2"})
    git(work, "tag", "v2", "-m", "second")
    await machine.send(work)
    whole, same, newer = machine.shell.received
    assert whole > 50_000
    assert same < newer < 10_000
    assert git(machine.workspace, "describe") == "v2"
    assert git(machine.workspace, "rev-list", "--count", "HEAD") == "2"
    git(machine.workspace, "fsck", "--full", "--strict")


async def test_a_prepared_machine_without_the_history_it_names_receives_everything(machine: _Prepared, tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    await machine.send(work)
    machine.keep()
    shutil.rmtree(machine.workspace / ".git" / "objects" / "pack")
    commit(work, {"file": "2"})
    await machine.send(work)
    assert len(machine.shell.received) == 3
    git(machine.workspace, "fsck", "--full", "--strict")


@pytest.mark.parametrize("history", ["whole", "shallow"])
async def test_a_prepared_machine_has_the_files_of_the_commit_and_keeps_unmodified_ones(
    machine: _Prepared, tmp_path: Path, history: str
) -> None:
    work = repository(tmp_path / "work", {".gitignore": "built", "same": "1", "changed": "1", "deleted": "1"})
    if history == "shallow":
        commit(work, {"changed": "0"})
        git(tmp_path, "clone", "-q", "--depth=1", work.as_uri(), "shallow")
        work = tmp_path / "shallow"
        commit(work, {"changed": "1"})
    await machine.send(work)
    workspace = machine.workspace
    before = (workspace / "same").stat()
    (workspace / "changed").write_text("2")
    (workspace / "deleted").unlink()
    (workspace / "new").write_text("3")
    (workspace / "built").write_text("3")
    machine.keep()
    hook = workspace / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir()
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    hook.chmod(0o755)
    git(workspace, "config", "core.worktree", "/nonexistent")
    await machine.send(work)
    assert (workspace / "same").stat() == before
    assert [(workspace / name).read_text() for name in ("changed", "deleted", "built")] == ["1", "1", "3"]
    assert not (workspace / "new").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("flag", ["--skip-worktree", "--assume-unchanged"])
async def test_a_prepared_machine_does_not_exclude_files_from_the_checkout(
    machine: _Prepared, tmp_path: Path, flag: str
) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    await machine.send(work)
    (machine.workspace / "file").write_text("2")
    git(machine.workspace, "update-index", flag, "file")
    machine.keep()
    await machine.send(work)
    assert (machine.workspace / "file").read_text() == "1"


async def test_a_prepared_machine_with_an_unreadable_index_is_checked_out(machine: _Prepared, tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    await machine.send(work)
    machine.keep()
    (machine.workspace / ".git" / "index").write_bytes(b"DIRC\0")
    await machine.send(work)


# --- names ---


@pytest.mark.parametrize("name", ["v1", "HEAD", "heads/x", "-x", "prüfung", "a\u00a0b", "a\u3000b", "a\u2028b", "refs/heads/y"])
async def test_a_branch_gets_its_full_name(tmp_path: Path, name: str) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    git(work, "update-ref", f"refs/tags/{name}", "HEAD")
    git(work, "update-ref", "refs/heads/x", "HEAD")
    git(work, "update-ref", f"refs/heads/{name}", "HEAD")
    git(work, "symbolic-ref", "HEAD", f"refs/heads/{name}")
    head = commit(work, {"file": "2"})
    found = await origin(work)
    assert (found.branch, found.sha) == (name, head)
    async with local_checkout.read(work, dirty=False) as here:
        assert (here.branch, here.sha) == (name, head)
    if not name.startswith("-"):  # which would be an option on a command line
        git(work, "checkout", "-q", "--detach", "HEAD~1")
        found = await origin(work, name)
        assert (found.branch, found.sha) == (name, head)


async def test_a_detached_head_has_no_branch(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    git(work, "checkout", "-q", "--detach")
    assert (await origin(work)).branch is None
    async with local_checkout.read(work, dirty=False) as here:
        assert here.branch == ""
        assert local_checkout._pull_request(here).base_ref == ""


async def test_a_relative_origin_is_resolved_from_the_checkout(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    git(work, "remote", "add", "origin", "../bare.git")
    assert await origin_url(work) == str(tmp_path / "bare.git")
    assert (await origin(work)).repo == str(tmp_path / "bare.git")
    assert await origin_url(tmp_path) is None


# --- files ---


async def test_workflow_files_are_found_whatever_their_names(tmp_path: Path) -> None:
    names = ["prüfung", "with space", "line\u2028end", 'quote"d', "tab\there"]
    files = {f".gibil/workflows/{name}.yml": WORKFLOW % f"word{number}" for number, name in enumerate(names)}
    work = repository(tmp_path / "work", files)
    async with local_checkout.read(work, dirty=False) as here:
        assert set(here.files) == set(files)


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    work = repository(tmp_path / "work", {"ci/gibil.yml": "tasks: [{run: 'true'}]\n", "ci/ok.yml": WORKFLOW % "ok"})
    (work / ".gibil/workflows").mkdir(parents=True)
    (work / ".gibil.yml").symlink_to("ci/gibil.yml")
    for name, target in (
        ("good.yml", "../../ci/ok.yml"), ("out.yml", "../../../outside.yml"), ("absolute.yml", "/etc/hostname"),
        ("dangling.yml", "nothing"), ("loop.yml", "loop.yml"), ("folder.yml", "../../ci"),
    ):  # fmt: skip
        (work / ".gibil/workflows" / name).symlink_to(target)
    (tmp_path / "outside.yml").write_text(WORKFLOW % "outside")
    commit(work, {})
    git(work, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},.gibil/workflows/module.yml")
    git(work, "commit", "-qm", "a submodule")
    return work


async def test_links_to_files_of_the_commit_are_followed_and_others_reported(linked: Path) -> None:
    found = await origin(linked)
    assert found.file is not None
    assert found.file.tasks[0].run == "true"
    async with local_checkout.read(linked, dirty=False) as here:
        known = catalogue({}, here.files, base_ref="main")
    assert [workflow.command for workflow in known.workflows] == ["ok"]
    problems = {problem.path.partition("@")[0].rpartition("/")[2]: problem.problem for problem in known.problems}
    assert set(problems) == {"out.yml", "absolute.yml", "dangling.yml", "loop.yml", "folder.yml", "module.yml"}
    assert "submodule; replace it with the file itself" in problems.pop("module.yml")
    assert all("symbolic link" in problem and "replace it with the file itself" in problem for problem in problems.values())


async def test_a_link_that_replaces_the_folder_is_reported(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"ci/ok.yml": WORKFLOW % "ok"})
    (work / ".gibil").mkdir()
    (work / ".gibil/workflows").symlink_to("../ci")
    (work / ".gibil.yml").symlink_to("../secret")
    commit(work, {})
    async with local_checkout.read(work, dirty=False) as here:
        known = catalogue({}, here.files, base_ref="main")
    assert len(known.problems) == 2
    with pytest.raises(InvalidWorkflow, match="symbolic link that doesn't lead to a file of this repository"):
        await origin(work)


async def test_an_oversized_workflow_file_is_reported(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {".gibil.yml": "#" * 20_000_000})
    with pytest.raises(InvalidWorkflow, match="larger than 64 KiB"):
        await origin(work)


# --- what is sent ---


async def test_reading_and_packing_do_not_change_the_repository(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"file": "1", ".gitattributes": "*.txt text\n"})
    git(work, "worktree", "add", "-q", str(tmp_path / "linked"), "-b", "topic")
    (tmp_path / "linked" / "file").write_text("changed")
    (tmp_path / "linked" / "new\u2028name.txt").write_text("new")
    before = snapshot(work)
    sha, files = await packed(tmp_path / "linked", tmp_path / "out", dirty=True)
    assert files["file"] == b"changed"
    assert files["new\u2028name.txt"] == b"new"
    assert sha != git(work, "rev-parse", "topic")
    assert (await origin(tmp_path / "linked")).branch == "topic"
    assert snapshot(work) == before


async def test_a_machine_gets_the_same_tree_and_refs_from_a_bundle_as_from_a_clone(tmp_path: Path) -> None:
    work = repository(tmp_path / "server/ada/work", {"file": "1"})
    git(work, "tag", "-a", "v1.0", "-m", "first")
    commit(work, {"file": "2"})
    git(work, "tag", "v1.1\u2028x")
    git(work, "checkout", "-q", "-b", "topic")
    sha = commit(work, {"file": "3"})
    git(work, "checkout", "-q", "main")
    commit(work, {"other": "4"})
    git(work, "checkout", "-q", "--detach")
    commit(work, {"other": "5"})
    git(work, "tag", "v9")
    git(work, "checkout", "-q", "topic")
    git(tmp_path, "clone", "-q", "--bare", str(work), "server/ada/lib.git")
    git(tmp_path / "server/ada/lib.git", "update-ref", "refs/pull/7/head", sha)
    git(tmp_path, "clone", "-q", str(work), "local", "--branch", "topic")
    git(tmp_path / "local", "remote", "set-head", "origin", "main")

    await _send(tmp_path / "local", tmp_path / "sent")
    with GitServer(tmp_path / "server") as server:
        script = clone_script(
            clone_url=f"{server.url}/ada/lib.git", number=7, sha=sha, base="main", workspace=str(tmp_path / "cloned")
        )
        sh(script, cwd=tmp_path)
    seen = [
        (
            git(machine, "for-each-ref", "--format=%(refname) %(objectname)"),
            git(machine, "symbolic-ref", "refs/remotes/origin/HEAD"),
            git(machine, "rev-parse", "HEAD", "HEAD^{tree}"),
            git(machine, "describe", "--tags"),
            git(machine, "status", "--porcelain"),
        )
        for machine in (tmp_path / "sent", tmp_path / "cloned")
    ]
    assert seen[0] == seen[1]
    assert "refs/remotes/origin/main" in seen[0][0]
    assert "v9" not in seen[0][0]


async def test_a_shallow_checkout_is_sent_with_its_tags(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    git(work, "tag", "v0")
    sha = commit(work, {"file": "2"})
    git(work, "tag", "v1")
    git(tmp_path, "clone", "-q", "--depth=1", work.as_uri(), "local")
    await _send(tmp_path / "local", tmp_path / "sent")
    assert git(tmp_path / "sent", "describe", "--tags") == "v1"
    assert git(tmp_path / "sent", "rev-parse", "origin/HEAD") == sha


async def test_sparse_checkouts_and_excluded_files_are_respected(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"kept/a": "1", "left/b": "2"})
    git(work, "sparse-checkout", "set", "kept")
    assert not (work / "left").exists()
    (work / ".git/info").mkdir(exist_ok=True)
    (work / ".git/info/exclude").write_text("ignored\n")
    (work / "ignored").write_text("x")
    (work / "kept/a").write_text("changed")
    _, files = await packed(work, tmp_path / "out", dirty=True)
    assert files == {"kept/a": b"changed", "left/b": b"2"}


async def test_a_file_that_replaces_a_folder_and_a_removed_file_are_sent(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"a/b": "1", "gone": "1", "c": "1"})
    for path in (work / "a/b", work / "gone", work / "c"):
        path.unlink()
    (work / "a").rmdir()
    (work / "a").write_text("file")
    (work / "c").mkdir()
    (work / "c/d").write_text("deep")
    _, files = await packed(work, tmp_path / "out", dirty=True)
    assert files == {"a": b"file", "c/d": b"deep"}


async def test_a_split_index_is_read(tmp_path: Path) -> None:
    work = repository(tmp_path / "work", {"a": "1", "b": "1"})
    git(work, "update-index", "--split-index")
    (work / "a").write_text("2")
    _, files = await packed(work, tmp_path / "out", dirty=True)
    assert files == {"a": b"2", "b": b"1"}


# --- missing objects ---


@pytest.fixture
def partial(tmp_path: Path) -> Iterator[tuple[Path, GitServer]]:
    work = repository(tmp_path / "first", {"file": "1"})
    commit(work, {".gibil.yml": "tasks: [{run: 'true'}]\n"})
    commit(work, {"file": "2"})
    (tmp_path / "served").mkdir()
    git(tmp_path, "clone", "-q", "--bare", str(work), "served/lib.git")
    git(tmp_path / "served/lib.git", "config", "uploadpack.allowFilter", "true")
    git(tmp_path / "served/lib.git", "config", "uploadpack.allowAnySHA1InWant", "true")
    with GitServer(tmp_path / "served") as server:
        git(tmp_path, "clone", "-q", "--filter=blob:none", f"{server.url}/lib.git", "partial")
        yield tmp_path / "partial", server


async def test_a_partial_clone_fetches_missing_objects_without_being_changed(
    partial: tuple[Path, GitServer], tmp_path: Path
) -> None:
    work, _ = partial
    before = snapshot(work)
    _, files = await packed(work, tmp_path / "out")
    assert files["file"] == b"2"
    assert snapshot(work) == before


async def test_a_partial_clone_without_its_remote_reports_missing_objects(
    partial: tuple[Path, GitServer], tmp_path: Path
) -> None:
    work, _ = partial
    git(work, "remote", "set-url", "origin", "http://ada:hunter2@127.0.0.1:9/none.git")
    with pytest.raises(
        SourceError, match=r"only at its remote http://127\.0\.0\.1:9/none\.git, which can't be reached"
    ) as caught:
        async with local_checkout.read(work, dirty=False) as here:
            await LocalBundle(here.repository, here.sha, here.promisor).send(NoShell())  # type: ignore[arg-type]
    assert "hunter2" not in caught.value.message
    assert "\n" not in caught.value.message


class NoShell:
    """A machine that accepts everything."""

    async def run(self, script: str, **how: object) -> Result:
        return Result(exit_status=0, stdout=b"", stderr=b"")

    async def put(self, path: str, content: object) -> None:
        async for _ in content:  # type: ignore[attr-defined]
            pass


async def test_a_workflow_file_missing_from_a_partial_clone_is_reported(
    partial: tuple[Path, GitServer], tmp_path: Path
) -> None:
    _, server = partial
    git(tmp_path, "clone", "-q", "--filter=blob:none", "--no-checkout", f"{server.url}/lib.git", "bare")
    git(tmp_path / "bare", "remote", "set-url", "origin", "http://127.0.0.1:9/none.git")
    for ask in (origin(tmp_path / "bare"), local_checkout.read(tmp_path / "bare", dirty=False).__aenter__()):
        with pytest.raises(UsageError, match=r"only at its remote http://127\.0\.0\.1:9/none\.git, which can't be reached"):
            await ask


async def test_a_repository_with_another_object_format_is_rejected_with_the_reason(tmp_path: Path) -> None:
    work = tmp_path / "work"
    git(tmp_path, "init", "-q", "--object-format=sha256", "work")
    git(work, "commit", "-q", "--allow-empty", "-m", "x")
    with pytest.raises(UsageError, match="sha256 object names"):
        await origin(work)


# --- the user's settings ---

SETTINGS = {
    "bare repositories only by name": "[safe]\n\tbareRepository = explicit\n",
    "colours": "[color]\n\tui = always\n[column]\n\tui = always\n",
    "submodules": "[submodule]\n\trecurse = true\n[fetch]\n\trecurseSubmodules = true\n",
    "object format": "[init]\n\tdefaultObjectFormat = sha256\n\tdefaultRefFormat = reftable\n\tdefaultBranch = x\n",
    "renames": "[diff]\n\trenames = copies\n\tnoprefix = true\n\texternal = /bin/false\n\tmnemonicPrefix = true\n",
    "logs": "[log]\n\tshowSignature = true\n\tdate = relative\n\tdecorate = full\n\tmailmap = true\n",
    "encodings": "[i18n]\n\tlogOutputEncoding = UTF-16\n\tcommitEncoding = latin1\n[core]\n\tquotePath = true\n",
    "remote name": "[clone]\n\tdefaultRemoteName = upstream\n",
    "pager and editor": "[core]\n\tpager = /bin/false\n\teditor = /bin/false\n[pager]\n\tls-tree = true\n\tconfig = true\n",
    "pruning": "[fetch]\n\tprune = true\n\tpruneTags = true\n\twriteCommitGraph = true\n[remote]\n\tpushDefault = x\n",
    "signing": "[commit]\n\tgpgSign = true\n[push]\n\tgpgSign = true\n\tfollowTags = true\n[tag]\n\tgpgSign = true\n",
    "aliases": "[alias]\n\trev-parse = !false\n\tls-tree = !false\n",
    "pathspecs": "[core]\n\tignoreCase = true\n\tautocrlf = input\n\tsafecrlf = true\n",
    "filters": '[filter "x"]\n\tclean = false\n\tsmudge = false\n\trequired = true\n',
}


@pytest.mark.parametrize("name", SETTINGS)
async def test_common_git_settings_of_the_user_have_no_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    files = {".gibil.yml": "tasks: [{run: 'true'}]\n", "prüfung.x": "1", ".gitattributes": "*.x filter=x\n"}
    work = repository(tmp_path / "work", files)
    (tmp_path / "served").mkdir()
    git(tmp_path, "clone", "-q", "--bare", str(work), "served/lib.git")
    (tmp_path / "gitconfig").write_text(SETTINGS[name])
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    head = git(work, "rev-parse", "HEAD")
    with GitServer(tmp_path / "served", tokens={}) as server:
        for repo in (work, tmp_path / "served/lib.git", f"{server.url}/lib.git"):
            found = await origin(repo)
            assert (found.sha, found.branch, found.file is not None) == (head, "main", True)
        monkeypatch.setattr("gibil_bot.machines.source._ASK_S", 0.0)  # as if it needed credentials
        found = await origin(f"{server.url}/lib.git")
        assert (found.sha, found.clone_url) == (head, None)
    (work / "prüfung.x").write_text("2")
    _, sent = await packed(work, tmp_path / "out", dirty=True)
    assert sent["prüfung.x"] == b"2"


async def test_the_users_url_rewrites_and_http_headers_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = repository(tmp_path / "work", {"file": "1"})
    (tmp_path / "served").mkdir()
    git(tmp_path, "clone", "-q", "--bare", str(work), "served/lib.git")
    with GitServer(tmp_path / "served") as server:
        (tmp_path / "gitconfig").write_text(
            f'[url "{server.url}/"]\n\tinsteadOf = https://nowhere.invalid/\n[http]\n\textraHeader = "Authorization: mine"\n'
        )
        monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
        found = await origin("https://nowhere.invalid/lib.git")
        assert found.sha == git(work, "rev-parse", "HEAD")
        assert "mine" in [authorization for _, authorization in server.requests]


async def test_commits_get_the_users_git_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMAIL", raising=False)
    assert await identity() is None
    work = repository(tmp_path / "work", {"file": "1"})
    (tmp_path / "at-work").write_text("[user]\n\temail = ada@work.example\n")
    (tmp_path / "gitconfig").write_text(
        f'[user]\n\tname = "Ada \\"L\\" O\'Brien\\\\"\n\temail = ada@example.com\n'
        f'[includeIf "gitdir:{tmp_path}/work/"]\n\tpath = {tmp_path}/at-work\n'
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    who = await identity()
    assert who is not None
    assert who.email == "ada@example.com"
    found = await origin(work)
    assert found.identity is not None
    assert found.identity.email == "ada@work.example"
    git(work, "config", "user.name", "x" * 5000)
    assert (await origin(work)).identity is None
