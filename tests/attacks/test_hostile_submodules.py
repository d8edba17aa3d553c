"""A commit whose .gitmodules is hostile: no program of it runs, and the user's credentials stay with the repository's owner."""

from __future__ import annotations

import base64
import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gibil_bot.commits.submodules import DEEPEST, MOST_SUBMODULES, Modules, Submodule, SubmoduleError, Surroundings, collect
from gibil_bot.model import Checkout
from gibil_bot.scripts.clone import CLONE_BROKEN, clone_script, submodule_names
from tests.doubles.githttp import GitServer
from tests.doubles.patience import patient
from tests.doubles.repositories import git, repository

pytestmark = pytest.mark.usefixtures("no_git_settings")

TOKEN = "ghs_a-secret"
OWN, FRIEND, OTHER = "ada/engine.git", "ada/parts.git", "eve/private.git"


class Trap:
    """`ada/engine` on a server, and a program that creates a file when it runs."""

    def __init__(self, folder: Path, server: GitServer) -> None:
        self.folder, self.server = folder, server
        self.canary = folder / "canary"
        self.program = folder / "program"
        self.program.write_text(f"#!/bin/sh\necho ran >>{self.canary}\nexit 1\n")
        self.program.chmod(0o755)
        self.work = repository(folder / "work", {"file": "1"})
        self.module = repository(folder / "module", {"part": "1"})
        for name, source in ((OWN, self.work), (FRIEND, self.module), (OTHER, self.module)):
            bare = server.folder / name
            bare.parent.mkdir(exist_ok=True)
            git(folder, "clone", "-q", "--bare", str(source), str(bare))
            git(bare, "config", "uploadpack.allowAnySHA1InWant", "true")
        self.part = git(self.module, "rev-parse", "HEAD")

    @property
    def remote(self) -> str:
        return f"{self.server.url}/{OWN}"

    def commit(self, gitmodules: str, paths: Mapping[str, str], name: str = OWN) -> str:
        """Commit a .gitmodules, and submodules: path → commit."""
        (self.work / ".gitmodules").write_text(gitmodules)
        git(self.work, "add", ".gitmodules")
        entries = "".join(f"160000 {sha}\t{path}\n" for path, sha in paths.items())
        git(self.work, "update-index", "--add", "--index-info", given=entries.encode())
        git(self.work, "commit", "-q", "-m", "modules")
        git(self.work, "push", "-q", str(self.server.folder / name), "+HEAD:main", "+HEAD:refs/pull/7/head")
        return git(self.work, "rev-parse", "HEAD")

    def one(self, url: str, *lines: str, name: str = "m", path: str = "lib", sha: str = "") -> str:
        quoted = url.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\b", "\\b")
        text = "\n\t".join((f'[submodule "{name}"]', f"path = {path}", f'url = "{quoted}"', *lines))
        return self.commit(text + "\n", {path: sha or self.part})

    async def collect(self, sha: str, *, modules: Modules | None = None, recursive: bool = True) -> list[Submodule]:
        """Collect the submodules, as `gibil try` does."""
        scratch = Path(tempfile.mkdtemp(dir=self.folder))
        around = Surroundings(modules=modules or Modules(remote=self.remote), github_url=self.server.url)
        return await collect(
            self.work / ".git", sha, around.modules, scratch, recursive=recursive, environment=around.environment
        )  # fmt: skip

    def clone(self, sha: str, submodules: str = "recursive") -> subprocess.CompletedProcess[str]:
        """Clone, as the bot does on a machine."""
        workspace = str(self.folder / "root" / "project")
        script = clone_script(
            clone_url=self.remote, number=7, sha=sha, checkout=Checkout(submodules=submodules, depth=1), workspace=workspace
        )
        env = {"PATH": os.environ["PATH"], "GIBIL_CLONE_TOKEN": TOKEN, "HOME": "/nonexistent"}
        return subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, timeout=patient(60))


@pytest.fixture
def trap(tmp_path: Path) -> Iterator[Trap]:
    (tmp_path / "server").mkdir()
    with GitServer(tmp_path / "server") as server:
        yield Trap(tmp_path, server)


@pytest.fixture
def logged_in(trap: Trap, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the user a credential helper, and an SSH, for every host."""
    helper = f"!f() {{ echo username=x-access-token; echo password={TOKEN}; }}; f"
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "credential.helper")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", helper)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(trap.program))
    monkeypatch.setenv("HOME", str(trap.folder))
    (trap.folder / ".netrc").write_text(f"default login x-access-token password {TOKEN}\n")


ADDRESSES = (
    "ext::{program}", "ext::sh -c {program}", "fd::17/x", "fd::0,1", "transport::address", "file://{work}", "{work}",
    "file:///etc", "git://127.0.0.1/x", "-oProxyCommand={program}", "--upload-pack={program}", "-u{program}",
    "ssh://-oProxyCommand={program}/x", "ssh://-oProxyCommand={program}@host/x", "git@-oProxyCommand={program}:x",
    "git@host:-oProxyCommand={program}", "-oProxyCommand={program}:x", "{program}:x", "../../../../..", "../../../../../etc",
    "https://user:password@127.0.0.1/x", "https://ghp_token@127.0.0.1/x", "https:///x", "https://", "http://[::1/x",
    "http://127.0.0.1:99999/x", "http://127.0.0.1:0/x",
    "http://127.0.0.1/x\nhost=github.com", "http://127.0.0.1/x\n[core]", "http://127.0.0.1/\b", "http://127.0.0.1/a b",
    "HTTPS://127.0.0.1/x", "\thttp://127.0.0.1/x", "https:// -x", "C:\\x", "~/private", "$HOME",
)  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.usefixtures("logged_in")
async def test_an_address_that_is_not_of_a_server_is_rejected_by_try(trap: Trap, address: str) -> None:
    sha = trap.one(address.format(program=trap.program, work=trap.module))
    with pytest.raises(SubmoduleError) as raised:
        await trap.collect(sha)
    assert raised.value.message.isprintable()
    assert "isn't allowed" in raised.value.message
    assert trap.server.requests == []
    assert not trap.canary.exists()


BY_GIT = ("ext::{program}", "file://{work}", "{work}", "-oProxyCommand={program}:x", "--upload-pack={program}", "fd::17/x",
          "ssh://-oProxyCommand={program}/x", "../../../../..")  # fmt: skip


@pytest.mark.parametrize("address", BY_GIT)
def test_an_address_that_is_not_of_a_server_is_rejected_on_a_machine(trap: Trap, address: str) -> None:
    done = trap.clone(trap.one(address.format(program=trap.program, work=trap.module)))
    assert done.returncode == CLONE_BROKEN or "can't be fetched" in done.stderr
    assert done.returncode != 0
    assert submodule_names(done.stdout.encode(), trap.remote) == ()
    assert not (trap.folder / "root/project/lib/part").exists()
    assert not trap.canary.exists()


COMMANDS = ("update = !{program}", "update = merge", "fetchRecurseSubmodules = true", "branch = --upload-pack={program}",
            "ignore = all", "shallow = true")  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
async def test_other_settings_of_a_submodule_run_nothing(trap: Trap, line: str) -> None:
    sha = trap.one("../parts.git", line.format(program=trap.program))
    (found,) = await trap.collect(sha)
    assert git(found.repository, "rev-parse", "HEAD") == trap.part
    done = trap.clone(sha)
    assert done.returncode == (CLONE_BROKEN if "!" in line else 0), done.stderr
    assert not trap.canary.exists()


NAMES = ("../x", "../../hooks", "a/../b", ".git", "-x", "a//b", "/etc", "a\\..\\b", "..", "a/./b")


@pytest.mark.parametrize("name", NAMES)
async def test_a_name_that_leaves_the_folder_of_modules_is_rejected(trap: Trap, name: str) -> None:
    sha = trap.one("../parts.git", name=name.replace("\\", "\\\\"))
    if name == ".git":  # an ordinary name below .git/modules
        assert len(await trap.collect(sha)) == 1
    else:
        with pytest.raises(SubmoduleError, match=r"isn't allowed|no address"):
            await trap.collect(sha)
    done = trap.clone(sha)
    modules = trap.folder / "root" / "project" / ".git" / "modules"
    assert not (modules.parent / "x").exists()
    assert not (modules.parent.parent / "hooks").exists()
    assert done.returncode in (0, CLONE_BROKEN), done.stderr


@pytest.mark.usefixtures("logged_in")
async def test_a_repository_of_another_owner_is_not_read_with_the_users_credentials(trap: Trap) -> None:
    trap.server.tokens |= dict.fromkeys((OWN, FRIEND, OTHER), TOKEN)
    (found,) = await trap.collect(trap.one("../parts.git"))
    assert git(found.repository, "rev-parse", "HEAD") == trap.part
    assert any(authorization for _, authorization in trap.server.requests)
    for address in ("../../eve/private.git", f"{trap.server.url}/eve/private.git", f"{trap.server.url}/ada/../eve/private.git"):
        trap.server.requests.clear()
        with pytest.raises(SubmoduleError, match="has another owner, so your credentials aren't used"):
            await trap.collect(trap.one(address))
        assert [authorization for _, authorization in trap.server.requests if authorization] == []


@pytest.mark.usefixtures("logged_in")
async def test_a_public_repository_of_another_owner_is_fetched_as_anyone(trap: Trap) -> None:
    trap.server.tokens[FRIEND] = TOKEN
    (found,) = await trap.collect(trap.one(f"{trap.server.url}/{OTHER}"))
    assert git(found.repository, "rev-parse", "HEAD") == trap.part
    assert [authorization for _, authorization in trap.server.requests if authorization] == []


@pytest.mark.usefixtures("logged_in")
async def test_ssh_is_not_used_for_another_owner(trap: Trap) -> None:
    for address in ("git@127.0.0.1:eve/private.git", "ssh://git@localhost/ada/x.git", "ssh://git@127.0.0.1:9/eve/x.git"):
        with contextlib.suppress(SubmoduleError):
            await trap.collect(trap.one(address))
        assert not trap.canary.exists()
    assert any(path.startswith(f"/{OTHER}") for path, _ in trap.server.requests)


def test_the_token_of_a_machines_clone_is_not_sent_to_another_server(trap: Trap, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with GitServer(tmp_path / "elsewhere", tokens={"eve/x.git": TOKEN}) as elsewhere:
        trap.server.tokens[OWN] = TOKEN
        done = trap.clone(trap.one(f"{elsewhere.url}/eve/x.git"))
        assert done.returncode != 0
        assert elsewhere.requests
        assert all(authorization is None for _, authorization in elsewhere.requests)
    wanted = base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()
    assert f"Basic {wanted}" in [authorization for _, authorization in trap.server.requests]


@pytest.mark.parametrize("recorded", ["protocol=https\nhost={host}\n", "protocol=http\nhost={host}:9\n"])
def test_the_token_is_not_given_for_another_protocol_or_port(trap: Trap, recorded: str) -> None:
    script = clone_script(clone_url=trap.remote, number=7, sha=trap.part, workspace=str(trap.folder / "root/project"))
    values = script.partition("set -eu")[0]
    helper = script.partition("helper='!")[2].partition("; f'")[0]
    host = trap.server.url.partition("//")[2]

    def answer(request: str) -> str:
        command = f"{values}\n{helper}\nf get"
        env = {"PATH": os.environ["PATH"], "GIBIL_CLONE_TOKEN": TOKEN}
        done = subprocess.run(
            ["sh", "-c", command], input=request, env=env, capture_output=True, text=True, timeout=patient(20)
        )
        return done.stdout

    assert TOKEN in answer(f"protocol=http\nhost={host}\n")
    assert answer(recorded.format(host=host)) == ""


async def test_more_submodules_than_are_allowed_are_rejected_before_any_is_fetched(trap: Trap) -> None:
    names = [f"m{number}" for number in range(MOST_SUBMODULES + 1)]
    text = "".join(f'[submodule "{name}"]\n\tpath = {name}\n\turl = ../parts.git\n' for name in names)
    with pytest.raises(SubmoduleError, match=f"more than {MOST_SUBMODULES} submodules"):
        await trap.collect(trap.commit(text, dict.fromkeys(names, trap.part)))
    assert trap.server.requests == []


async def test_a_chain_of_submodules_ends(trap: Trap) -> None:
    """Each commit has the one before it, in the same repository, as a submodule."""
    sha = git(trap.work, "rev-parse", "HEAD")
    for _ in range(DEEPEST + 1):
        sha = trap.one("../engine.git", sha=sha)
    assert len(await trap.collect(sha, recursive=False)) == 1
    with pytest.raises(SubmoduleError, match=f"{DEEPEST} levels"):
        await trap.collect(sha)


async def test_a_commit_that_the_submodules_repository_lacks_is_named(trap: Trap) -> None:
    sha = trap.one("../parts.git", sha="1" * 40)
    with pytest.raises(SubmoduleError, match=r"'lib' at 1111111 doesn't exist at http://\S+/parts\.git; was it pushed\?"):
        await trap.collect(sha)
    done = trap.clone(sha)
    assert done.returncode != 0
    assert "a submodule can't be fetched" in done.stderr.splitlines()[-1]


async def test_gitmodules_that_is_a_link_includes_a_file_or_is_large_is_not_used(trap: Trap) -> None:
    (trap.folder / "other").write_text('[submodule "m"]\n\tpath = lib\n\turl = ../parts.git\n')
    module = {"lib": trap.part}
    with pytest.raises(SubmoduleError, match="has no address"):
        await trap.collect(trap.commit(f"[include]\n\tpath = {trap.folder}/other\n", module))
    with pytest.raises(SubmoduleError, match="KiB"):
        await trap.collect(trap.commit("#" * 300_000, module))
    target = git(trap.work, "hash-object", "-w", "--stdin", given=f"{trap.folder}/other".encode())
    entries = f"120000 blob {target}\t.gitmodules\n160000 commit {trap.part}\tlib\n".encode()
    tree = git(trap.work, "mktree", "--missing", given=entries)
    with pytest.raises(SubmoduleError, match="isn't an ordinary file"):
        await trap.collect(git(trap.work, "commit-tree", "-m", "link", tree))
    assert trap.server.requests == []


@pytest.mark.parametrize("kind", ["outside", "fifo", "device"])
async def test_a_module_store_that_is_not_of_this_repository_is_not_read(trap: Trap, kind: str) -> None:
    sha = trap.one("../parts.git")
    store = trap.work / ".git" / "modules" / "m"
    if kind == "outside":
        store.parent.mkdir()
        store.symlink_to(trap.module / ".git")
    else:
        git(trap.folder, "clone", "-q", "--bare", str(trap.module), str(store))
        alternates = store / "objects" / "info" / "alternates"
        if kind == "fifo":
            os.mkfifo(alternates)
        else:
            alternates.symlink_to("/dev/zero")
    modules = Modules(folders=(store.parent,), limit=trap.work / ".git", remote=trap.remote)
    (found,) = await trap.collect(sha, modules=modules)
    assert found.store is None
    assert trap.server.requests
