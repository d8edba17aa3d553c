"""The clone scripts, run by real sh with real git against a real HTTP server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gibil_bot.errors import UsageError
from gibil_bot.model import Checkout
from gibil_bot.scripts.clone import (
    CLONE_BROKEN,
    CLONE_GONE,
    CLONE_NO_GIT,
    CLONE_REFUSED,
    CLONE_UNREACHABLE,
    bundle_script,
    clone_script,
    notes_of_clone,
    submodule_names,
)
from tests.doubles.githttp import GitServer
from tests.doubles.patience import patient
from tests.doubles.programs import add_programs
from tests.doubles.repositories import ADA

TOKEN = "ghs_1234_a-long.token-with_all.kinds"
NAME = "ada/engine.git"


def git(where: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(where), *arguments], env={**os.environ, **ADA}, capture_output=True, text=True, timeout=patient(60)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class Project:
    """A bare repository with a pull request 7, as on GitHub: refs/pull/7/head, and every reachable commit by its id."""

    def __init__(self, folder: Path) -> None:
        self.bare = folder / NAME
        self.bare.mkdir(parents=True)
        git(self.bare, "init", "-q", "--bare", "-b", "main")
        git(self.bare, "config", "uploadpack.allowReachableSHA1InWant", "true")
        self.work = folder / "work"
        git(folder, "clone", "-q", str(self.bare), str(self.work))
        self.base = self.commit("base")

    def commit(self, text: str) -> str:
        (self.work / "file.txt").write_text(text)
        git(self.work, "add", ".")
        git(self.work, "commit", "-q", "-m", text)
        return git(self.work, "rev-parse", "HEAD")

    def push(self) -> None:
        git(self.work, "push", "-q", "--force", "origin", "HEAD:refs/heads/main", "HEAD:refs/pull/7/head")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "server")


@pytest.fixture
def server(project: Project, tmp_path: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path / "server") as started:
        yield started


def run(script: str, token: str = "", *, path: str | None = None, home: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": path or os.environ["PATH"], "GIBIL_CLONE_TOKEN": token, "HOME": str(home or "/nonexistent")}
    return subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, timeout=patient(60))


def script_for(server: GitServer, sha: str, workspace: Path, base: str = "main", checkout: Checkout | None = None) -> str:
    url = f"{server.url}/{NAME}"
    return clone_script(clone_url=url, number=7, sha=sha, base=base, checkout=checkout or Checkout(), workspace=str(workspace))


def test_the_pull_requests_head_is_cloned_at_the_exact_commit(project: Project, server: GitServer, tmp_path: Path) -> None:
    for number in range(5):
        sha = project.commit(f"change {number}")
    project.push()
    done = run(script_for(server, sha, tmp_path / "root" / "project"))
    assert done.returncode == 0, done.stderr
    workspace = tmp_path / "root" / "project"
    assert git(workspace, "rev-parse", "HEAD") == sha
    assert git(workspace, "rev-list", "--count", "HEAD") == "6"
    assert (workspace / "file.txt").read_text() == "change 4"
    assert git(workspace, "remote", "get-url", "origin") == f"{server.url}/{NAME}"
    assert git(workspace, "status", "--porcelain") == ""


class Tagged:
    """A pull request of two commits onto main, which has moved on; with tags in its history and elsewhere."""

    def __init__(self, project: Project) -> None:
        work = project.work
        git(work, "tag", "-a", "v1.0", "-m", "first", project.base)
        project.commit("before")
        git(work, "tag", "v1.1")
        git(work, "checkout", "-q", "-b", "topic")
        self.sha = [project.commit("topic 1"), project.commit("topic 2")][-1]
        git(work, "checkout", "-q", "main")
        self.main = project.commit("main moved on")
        git(work, "checkout", "-q", "--detach")
        project.commit("elsewhere")
        git(work, "tag", "v9.9")
        git(work, "push", "-q", "--tags", "origin", "main", f"{self.sha}:refs/heads/topic", f"{self.sha}:refs/pull/7/head")


def test_the_history_the_tags_and_the_base_branch_are_cloned(project: Project, server: GitServer, tmp_path: Path) -> None:
    git(project.bare, "config", "uploadpack.allowFilter", "true")
    tagged = Tagged(project)
    workspace = tmp_path / "root" / "project"
    done = run(script_for(server, tagged.sha, workspace))
    assert done.returncode == 0, done.stderr
    assert git(workspace, "describe", "--tags") == f"v1.1-2-g{tagged.sha[:7]}"
    refs = git(workspace, "for-each-ref", "--format=%(refname)").splitlines()
    assert refs == ["refs/remotes/origin/HEAD", "refs/remotes/origin/main", "refs/tags/v1.0", "refs/tags/v1.1"]
    assert git(workspace, "rev-parse", "origin/HEAD") == tagged.main
    asked = len(server.requests)
    assert "+topic 2" in git(workspace, "diff", "origin/main...HEAD")
    assert len(server.requests) == asked, "the contents for this comparison were fetched with the clone"


def test_a_clone_without_history_and_tags_has_one_commit(project: Project, server: GitServer, tmp_path: Path) -> None:
    tagged = Tagged(project)
    workspace = tmp_path / "root" / "project"
    done = run(script_for(server, tagged.sha, workspace, checkout=Checkout(depth=1, tags=False)))
    assert done.returncode == 0, done.stderr
    assert git(workspace, "rev-list", "--count", "HEAD") == "1"
    assert git(workspace, "tag") == ""
    assert git(workspace, "rev-parse", "origin/main") == tagged.main


@pytest.mark.parametrize("base", ["deleted", "", "HEAD", "a b", "x:refs/heads/y", "--upload-pack=touch"])
def test_a_base_branch_that_does_not_exist_is_left_out(base: str, project: Project, server: GitServer, tmp_path: Path) -> None:
    tagged = Tagged(project)
    workspace = tmp_path / "root" / "project"
    done = run(script_for(server, tagged.sha, workspace, base))
    assert done.returncode == 0, done.stderr
    assert git(workspace, "describe", "--tags") == f"v1.1-2-g{tagged.sha[:7]}"
    assert git(workspace, "for-each-ref", "refs/remotes", "refs/heads") == ""


def test_a_history_that_takes_too_long_is_left_out_with_a_note(project: Project, server: GitServer, tmp_path: Path) -> None:
    tagged = Tagged(project)
    workspace = tmp_path / "root" / "project"
    script = script_for(server, tagged.sha, workspace).replace("within=60", "within=0.001")
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert git(workspace, "rev-parse", "HEAD") == tagged.sha
    assert [note.split(" were")[0] for note in notes_of_clone(done.stdout.encode())] == ["The commit's history and tags"]


class Nested:
    """A pull request whose commit has a submodule with a relative address, which has a submodule, too."""

    def __init__(self, project: Project, folder: Path, address: str = "../parts.git") -> None:
        for name in ("inner", "parts"):
            work = folder / name
            git(folder, "init", "-q", "-b", "main", str(work))
            (work / "part.txt").write_text(name)
            if name == "parts":
                link = folder / "inner"
                git(work, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(link), "inner")
                git(work, "config", "-f", ".gitmodules", "submodule.inner.url", "../inner.git")
            git(work, "add", ".")
            git(work, "commit", "-q", "-m", "part")
            git(folder, "clone", "-q", "--bare", str(work), str(project.bare.parent / f"{name}.git"))
        git(project.work, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(folder / "parts"), "parts")
        git(project.work, "config", "-f", ".gitmodules", "submodule.parts.url", address)
        self.sha = project.commit("with a submodule")
        project.push()


@pytest.mark.parametrize(("submodules", "files"), [("false", []), ("true", ["parts"]), ("recursive", ["parts", "parts/inner"])])
def test_submodules_are_cloned_as_requested(
    submodules: str, files: list[str], project: Project, server: GitServer, tmp_path: Path
) -> None:
    server.tokens |= dict.fromkeys((NAME, "ada/parts.git", "ada/inner.git"), TOKEN)
    nested = Nested(project, tmp_path)
    home = tmp_path / "home"
    script = script_for(server, nested.sha, home / "project", checkout=Checkout(submodules=submodules))
    for _ in range(2):
        done = run(script, TOKEN)
        assert done.returncode == 0, done.stderr
        noted = [note.split(" (")[0] for note in notes_of_clone(done.stdout.encode())]
        assert noted == ([] if files else ["This commit has submodules"])
    found = sorted(str(path.parent.relative_to(home / "project")) for path in home.rglob("part.txt"))
    assert found == files
    assert subprocess.run(["grep", "-rlaF", TOKEN, str(home)], capture_output=True, text=True).stdout == ""


@pytest.mark.parametrize("address", ["git@127.0.0.1:ada/parts.git", "ssh://git@127.0.0.1/ada/parts.git"])
def test_a_submodule_with_an_ssh_address_on_the_same_server_is_cloned_over_http(
    address: str, project: Project, server: GitServer, tmp_path: Path
) -> None:
    nested = Nested(project, tmp_path, address)
    done = run(script_for(server, nested.sha, tmp_path / "root/project", checkout=Checkout(submodules="true")))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "root/project/parts/part.txt").read_text() == "parts"


@pytest.mark.parametrize("address", ["../parts.git", "git@127.0.0.1:ada/parts.git"])
def test_a_submodule_without_credentials_is_named(address: str, project: Project, server: GitServer, tmp_path: Path) -> None:
    server.tokens["ada/parts.git"] = TOKEN
    nested = Nested(project, tmp_path, address)
    done = run(script_for(server, nested.sha, tmp_path / "root/project", checkout=Checkout(submodules="true")))
    assert done.returncode == CLONE_REFUSED, done.stderr
    assert submodule_names(done.stdout.encode(), f"{server.url}/{NAME}") == ("parts",)
    assert not (tmp_path / "root/project/.git/gibil-commit").exists()


def test_submodules_that_a_later_plan_names_are_added_to_the_checkout(
    project: Project, server: GitServer, tmp_path: Path
) -> None:
    nested = Nested(project, tmp_path)
    workspace = tmp_path / "root" / "project"
    assert run(script_for(server, nested.sha, workspace)).returncode == 0
    (workspace / "untouched").write_text("")
    done = run(script_for(server, nested.sha, workspace, checkout=Checkout(submodules="true")))
    assert done.returncode == 0, done.stderr
    assert (workspace / "parts/part.txt").read_text() == "parts"
    assert (workspace / "untouched").exists()
    assert notes_of_clone(done.stdout.encode()) == ()


def test_what_was_built_in_the_submodules_of_a_prepared_machine_stays(
    project: Project, server: GitServer, tmp_path: Path
) -> None:
    nested = Nested(project, tmp_path)
    workspace = tmp_path / "root" / "project"
    script = script_for(server, nested.sha, workspace, checkout=Checkout(submodules="recursive"))
    assert run(script).returncode == 0
    (workspace / "parts/part.txt").write_text("changed by an earlier run")
    (workspace / "parts/left.txt").write_text("untracked")
    (tmp_path / "root/.gibil").mkdir(exist_ok=True)
    (tmp_path / "root/.gibil/prepared").touch()
    (workspace / "parts" / "built").mkdir()
    (workspace / "parts" / "built" / "x.o").write_text("built")
    ignoring = tmp_path / "parts"
    (ignoring / ".gitignore").write_text("built/\n")
    git(ignoring, "add", ".")
    git(ignoring, "commit", "-q", "-m", "ignore")
    git(project.bare.parent / "parts.git", "fetch", "-q", str(ignoring), "+main:main")
    git(project.work / "parts", "fetch", "-q", str(ignoring), "main")
    git(project.work / "parts", "checkout", "-q", "FETCH_HEAD")
    sha = project.commit("newer parts")
    project.push()
    done = run(script_for(server, sha, workspace, checkout=Checkout(submodules="recursive")))
    assert done.returncode == 0, done.stderr
    assert (workspace / "parts/built/x.o").read_text() == "built"
    assert (workspace / "parts/part.txt").read_text() == "parts"
    assert not (workspace / "parts/left.txt").exists()
    assert (workspace / "parts/inner/part.txt").read_text() == "inner"
    assert git(workspace, "status", "--porcelain") == ""
    assert git(workspace, "submodule", "status", "--recursive").count("\n") == 1


@pytest.mark.parametrize("address", ["file:///etc", "ssh://git@elsewhere.example/x", "ext::sh -c touch% /tmp/x"])
def test_submodules_are_cloned_over_http_only(address: str, project: Project, server: GitServer, tmp_path: Path) -> None:
    nested = Nested(project, tmp_path, address)
    done = run(script_for(server, nested.sha, tmp_path / "root/project", checkout=Checkout(submodules="true")), TOKEN)
    assert done.returncode == CLONE_BROKEN, done.stderr
    assert "must begin with https:// or http://" in done.stderr.splitlines()[-1]


def test_the_requested_commit_is_cloned_although_the_head_moved(project: Project, server: GitServer, tmp_path: Path) -> None:
    asked = project.commit("asked for")
    project.commit("newer")
    project.push()
    done = run(script_for(server, asked, tmp_path / "root" / "project"))
    assert done.returncode == 0, done.stderr
    assert git(tmp_path / "root" / "project", "rev-parse", "HEAD") == asked


def test_a_server_that_serves_no_commit_by_id_is_asked_for_more_history(
    project: Project, server: GitServer, tmp_path: Path
) -> None:
    git(project.bare, "config", "uploadpack.allowReachableSHA1InWant", "false")
    git(project.bare, "config", "protocol.version", "0")
    asked = project.commit("asked for")
    for number in range(60):
        project.commit(f"newer {number}")
    project.push()
    script = script_for(server, asked, tmp_path / "root" / "project").replace("protocol.version=2", "protocol.version=0")
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert git(tmp_path / "root" / "project", "rev-parse", "HEAD") == asked


def test_a_commit_removed_by_a_force_push_is_reported_as_gone(project: Project, server: GitServer, tmp_path: Path) -> None:
    gone = project.commit("will be replaced")
    git(project.work, "reset", "-q", "--hard", project.base)
    project.commit("the replacement")
    project.push()
    done = run(script_for(server, gone, tmp_path / "root" / "project"))
    assert done.returncode == CLONE_GONE
    last_line = done.stderr.strip().splitlines()[-1]
    assert last_line.startswith(f"gibil: the pull request does not contain the commit {gone} any more")


def test_a_pull_request_without_a_ref_is_reported_as_gone(project: Project, server: GitServer, tmp_path: Path) -> None:
    done = run(script_for(server, "0" * 39 + "1", tmp_path / "root" / "project"))
    assert done.returncode == CLONE_GONE


def test_a_private_repository_is_cloned_with_a_token_that_is_nowhere_on_disk(
    project: Project, server: GitServer, tmp_path: Path
) -> None:
    server.tokens[NAME] = TOKEN
    sha = project.commit("secret work")
    project.push()
    home = tmp_path / "home"
    home.mkdir()
    workspace = home / "project"
    done = run(script_for(server, sha, workspace), TOKEN, home=home)
    assert done.returncode == 0, done.stderr
    assert any(authorization for _, authorization in server.requests)
    (home / ".gibil").mkdir(exist_ok=True)
    (home / ".gibil/prepared").touch()  # a later run starts from this one
    sha = project.commit("more work")
    project.push()
    done = run(script_for(server, sha, workspace), TOKEN, home=home)
    assert done.returncode == 0, done.stderr
    holders = subprocess.run(["grep", "-rlaF", TOKEN, str(home)], capture_output=True, text=True)
    assert holders.stdout == ""
    assert TOKEN not in done.stdout + done.stderr
    assert "credential" not in (workspace / ".git" / "config").read_text()


@pytest.mark.parametrize("token", ["", "ghs_wrong"])
def test_wrong_or_missing_credentials_are_reported_by_name(
    token: str, project: Project, server: GitServer, tmp_path: Path
) -> None:
    server.tokens[NAME] = TOKEN
    sha = project.commit("secret work")
    project.push()
    done = run(script_for(server, sha, tmp_path / "root" / "project"), token)
    assert done.returncode == CLONE_REFUSED
    assert "rejects our credentials" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("status", "exit_status"), [(404, CLONE_REFUSED), (403, CLONE_REFUSED), (502, CLONE_UNREACHABLE)])
def test_the_servers_response_decides_whether_to_retry(
    status: int, exit_status: int, project: Project, server: GitServer, tmp_path: Path
) -> None:
    server.answer = status
    done = run(script_for(server, project.base, tmp_path / "root" / "project"))
    assert done.returncode == exit_status
    assert done.stderr.splitlines()[-1].startswith("gibil: 127.0.0.1:")


def test_an_unreachable_server_is_reported(project: Project, tmp_path: Path) -> None:
    with GitServer(tmp_path / "server") as server:
        script = script_for(server, project.base, tmp_path / "root" / "project")
    done = run(script)
    assert done.returncode == CLONE_UNREACHABLE
    assert "can't be reached" in done.stderr.splitlines()[-1]


def test_a_redirect_to_another_server_does_not_carry_the_token(project: Project, server: GitServer, tmp_path: Path) -> None:
    project.push()
    server.tokens[NAME] = TOKEN
    with GitServer(tmp_path / "server") as front:
        front.redirect_to = server.url
        done = run(script_for(front, project.base, tmp_path / "root" / "project"), TOKEN)
    assert done.returncode == CLONE_REFUSED
    assert server.requests
    assert not any(authorization for _, authorization in server.requests)


def test_a_second_run_changes_nothing_and_sends_no_request(project: Project, server: GitServer, tmp_path: Path) -> None:
    sha = project.commit("once")
    project.push()
    script = script_for(server, sha, tmp_path / "root" / "project")
    assert run(script).returncode == 0
    (tmp_path / "root" / "project" / "made-by-a-task").write_text("kept")
    asked = len(server.requests)
    assert run(script).returncode == 0
    assert len(server.requests) == asked
    assert (tmp_path / "root" / "project" / "made-by-a-task").read_text() == "kept"


def test_an_incomplete_clone_is_removed_first(project: Project, server: GitServer, tmp_path: Path) -> None:
    sha = project.commit("whole")
    project.push()
    workspace = tmp_path / "root" / "project"
    (workspace / ".git").mkdir(parents=True)
    (workspace / ".git" / "HEAD").write_text("garbage")
    (workspace / "left-over").write_text("")
    assert run(script_for(server, sha, workspace)).returncode == 0
    assert not (workspace / "left-over").exists()
    assert git(workspace, "rev-parse", "HEAD") == sha


def test_hooks_and_git_configuration_of_the_machine_are_ignored(project: Project, server: GitServer, tmp_path: Path) -> None:
    sha = project.commit("plain")
    project.push()
    home, template = tmp_path / "home", tmp_path / "template" / "hooks"
    home.mkdir()
    template.mkdir(parents=True)
    hook = template / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
    hook.chmod(0o755)
    (home / ".gitconfig").write_text(f"[init]\n\ttemplateDir = {template.parent}\n[core]\n\thooksPath = {template}\n")
    assert run(script_for(server, sha, tmp_path / "root" / "project"), home=home).returncode == 0
    assert not (tmp_path / "hook-ran").exists()


def test_a_machine_without_git_is_reported(project: Project, server: GitServer, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    add_programs(tools, "sh", "mktemp", "rm", "cat", "mkdir")
    done = run(script_for(server, project.base, tmp_path / "root" / "project"), path=str(tools))
    assert done.returncode == CLONE_NO_GIT
    assert "git is not installed" in done.stderr


def test_a_workspace_that_cannot_be_created_is_reported_as_broken(project: Project, server: GitServer, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("a file where the folder should be")
    done = run(script_for(server, project.base, tmp_path / "root" / "project"))
    assert done.returncode == CLONE_BROKEN


@pytest.mark.parametrize(
    "url",
    [
        "ssh://git@github.com/a/b.git",
        "git@github.com:a/b.git",
        "file:///etc",
        "ext::sh -c touch% /tmp/x",
        "https://user:token@github.com/a/b.git",
        "https://github.com/a/b.git'; touch x; '",
        "https://github.com/a/b.git\nhelper=evil",
        "https:///a/b.git",
        "https://github.com:port/a/b",
        "--upload-pack=touch",
    ],
)
def test_an_address_other_than_plain_http_is_rejected(url: str) -> None:
    with pytest.raises(UsageError, match="clone address"):
        clone_script(clone_url=url, number=7, sha="a" * 40)


@pytest.mark.parametrize(
    ("number", "sha", "workspace"),
    [(0, "a" * 40, "/root/project"), (1, "main", "/root/project"), (1, "a" * 40, "/"), (1, "a" * 40, "root/project")],
)
def test_invalid_clone_requests_are_rejected(number: int, sha: str, workspace: str) -> None:
    with pytest.raises(UsageError):
        clone_script(clone_url="https://github.com/a/b.git", number=number, sha=sha, workspace=workspace)


def test_a_bundle_is_unpacked_into_the_workspace(project: Project, tmp_path: Path) -> None:
    sha = project.commit("local work")
    bundle = tmp_path / "it's a source.bundle"
    git(project.work, "bundle", "create", "--quiet", str(bundle), "HEAD", "main")
    workspace = tmp_path / "root" / "project"
    script = bundle_script(path=str(bundle), sha=sha, workspace=str(workspace))
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert git(workspace, "rev-parse", "HEAD") == sha
    assert run(script).returncode == 0


def test_a_bundle_without_the_commit_and_an_incomplete_one_are_different_errors(project: Project, tmp_path: Path) -> None:
    bundle = tmp_path / "source.bundle"
    git(project.work, "bundle", "create", "--quiet", str(bundle), "main")
    other = bundle_script(path=str(bundle), sha="1" * 40, workspace=str(tmp_path / "root" / "project"))
    assert run(other).returncode == CLONE_GONE
    bundle.write_bytes(bundle.read_bytes()[:-40])
    half = bundle_script(path=str(bundle), sha=project.base, workspace=str(tmp_path / "root" / "project"))
    assert run(half).returncode == CLONE_BROKEN
