"""`git push` in a workspace whose `origin` has an outbox: what is accepted, and what git prints. With the real git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gibil_bot.scripts.outbox import outbox_function


class Workspace:
    """A repository at `folder` with the commit `base`, and its outbox."""

    def __init__(self, home: Path) -> None:
        self.folder, self.outbox = home / "project", home / ".gibil/outbox.git"
        self.folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main")
        self.base = self.commit("base")

    def create_outbox(self, *, remote: bool = True) -> subprocess.CompletedProcess[str]:
        if remote:
            self.git("remote", "add", "origin", "https://github.invalid/octo/hello.git")
        script = f"set -eu\n{outbox_function()}create_outbox '{self.folder}' {self.base}"
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, env=self._env())

    def commit(self, name: str) -> str:
        (self.folder / name).write_text(name)
        self.git("add", "-A")
        self.git("commit", "-q", "-m", name)
        return self.git("rev-parse", "HEAD").stdout.strip()

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["git", "-C", self.folder, *arguments], capture_output=True, text=True, env=self._env())
        assert not check or done.returncode == 0, done.stderr
        return done

    def push(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.git("push", *arguments, check=False)

    def waiting(self) -> dict[str, str]:
        """Return branch → commit in the outbox."""
        shown = self.git(f"--git-dir={self.outbox}", "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads")
        return dict(line.split(" ") for line in shown.stdout.splitlines())

    def _env(self) -> dict[str, str]:
        names = {f"GIT_{who}_{what}": "a@b.invalid" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder.parent), "GIT_CONFIG_NOSYSTEM": "1", **names}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    created = Workspace(tmp_path / "root")
    done = created.create_outbox()
    assert done.returncode == 0, done.stderr
    return created


def test_a_push_needs_no_credentials_and_says_what_happens_next(workspace: Workspace) -> None:
    head = workspace.commit("change")
    pushed = workspace.push()
    assert pushed.returncode == 0, pushed.stderr
    assert "remote: gibil: 1 commit of 'main' waits for gibil's checks; it isn't on the server yet." in pushed.stderr
    assert f"gibil push {os.uname().nodename}" in pushed.stderr
    assert workspace.waiting() == {"main": head}
    workspace.commit("more")
    assert "2 commits of 'main' wait for gibil's checks; they aren't" in workspace.push("-u", "origin", "main").stderr


def test_fetching_still_uses_the_server(workspace: Workspace) -> None:
    assert workspace.git("remote", "get-url", "origin").stdout == "https://github.invalid/octo/hello.git\n"


def test_a_push_of_the_first_commit_says_that_there_is_nothing_to_collect(workspace: Workspace) -> None:
    assert "nothing to collect" in workspace.push("origin", "HEAD:refs/heads/fix").stderr


def test_tags_and_other_refs_are_rejected_with_the_command_to_use(workspace: Workspace) -> None:
    workspace.commit("change")
    workspace.git("tag", "v1")
    rejected = workspace.push("origin", "main", "v1")
    assert rejected.returncode == 1
    assert "remote: gibil: tags aren't collected: push the branch alone (git push origin HEAD)" in rejected.stderr
    assert list(workspace.waiting()) == ["main"]
    rejected = workspace.push("origin", "HEAD:refs/notes/x")
    assert "remote: gibil: only a branch is collected, not 'refs/notes/x': git push origin HEAD:BRANCH" in rejected.stderr


def test_a_second_branch_is_accepted_only_if_it_contains_the_first(workspace: Workspace) -> None:
    workspace.commit("change")
    workspace.push("origin", "HEAD:refs/heads/wip")
    workspace.git("checkout", "-q", "-b", "other", workspace.base)
    other = workspace.commit("other")
    rejected = workspace.push()
    assert rejected.returncode == 1
    assert "'wip' waits with commits that 'other' doesn't have" in rejected.stderr
    assert "withdraw it first (git push origin :wip)" in rejected.stderr
    assert list(workspace.waiting()) == ["wip"]
    workspace.git("merge", "-q", "--no-edit", "main")
    merged = workspace.git("rev-parse", "HEAD").stdout.strip()
    assert workspace.push().returncode == 0
    assert workspace.waiting() == {"other": merged}
    assert other != merged


def test_all_branches_at_once_leave_the_one_that_contains_the_others(workspace: Workspace) -> None:
    workspace.commit("change")
    workspace.git("checkout", "-q", "-b", "next")
    head = workspace.commit("next")
    workspace.push("--all", "origin")
    assert workspace.waiting() == {"next": head}


def test_a_deletion_withdraws_the_commits(workspace: Workspace) -> None:
    workspace.commit("change")
    workspace.push()
    withdrawn = workspace.push("origin", ":main")
    assert withdrawn.returncode == 0
    assert "gibil: 'main' is withdrawn" in withdrawn.stderr
    assert workspace.waiting() == {}


def test_a_forced_push_replaces_what_waits_but_not_the_first_commit(workspace: Workspace) -> None:
    workspace.commit("change")
    workspace.push()
    workspace.git("commit", "-q", "--amend", "-m", "amended")
    assert workspace.push().returncode == 1
    assert workspace.push("--force").returncode == 0
    assert workspace.waiting() == {"main": workspace.git("rev-parse", "HEAD").stdout.strip()}
    workspace.git("checkout", "-q", "--orphan", "fresh")
    workspace.commit("fresh")
    rejected = workspace.push("--force", "origin", "HEAD:main")
    assert rejected.returncode == 1
    assert f"'main' doesn't contain {workspace.base}, the commit that this machine started from" in rejected.stderr


def test_commits_wait_although_the_workspace_deletes_its_objects(workspace: Workspace) -> None:
    head = workspace.commit("change")
    workspace.push()
    workspace.git("update-ref", "-d", "refs/remotes/origin/main")
    new = workspace.git("rev-list", "--objects", "--no-object-names", f"{workspace.base}..{head}").stdout.split()
    workspace.git("reset", "-q", "--hard", workspace.base)
    for each in new:
        (workspace.folder / ".git/objects" / each[:2] / each[2:]).unlink()
    assert workspace.git("cat-file", "-e", head, check=False).returncode != 0
    workspace.git(f"--git-dir={workspace.outbox}", "rev-list", "--objects", "main", f"^{workspace.base}")


def test_a_shallow_workspace_can_push(tmp_path: Path) -> None:
    origin = Workspace(tmp_path / "there")
    origin.commit("second")
    shallow = Workspace.__new__(Workspace)
    shallow.folder, shallow.outbox = tmp_path / "root/project", tmp_path / "root/.gibil/outbox.git"
    origin.git("clone", "-q", "--depth=1", f"file://{origin.folder}", str(shallow.folder))
    shallow.base = origin.git("rev-parse", "HEAD").stdout.strip()
    assert shallow.create_outbox(remote=False).returncode == 0
    head = shallow.commit("change")
    pushed = shallow.push()
    assert pushed.returncode == 0, pushed.stderr
    assert shallow.waiting() == {"main": head}


def test_hooks_of_the_users_configuration_dont_replace_those_of_the_outbox(workspace: Workspace) -> None:
    (workspace.folder.parent / ".gitconfig").write_text("[core]\n\thooksPath = /nowhere\n")
    workspace.git("tag", "v1")
    assert "tags aren't collected" in workspace.push("origin", "v1").stderr


def test_a_workspace_without_a_remote_gets_no_outbox(tmp_path: Path) -> None:
    created = Workspace(tmp_path / "root")
    assert created.create_outbox(remote=False).returncode == 0
    assert not created.outbox.exists()


def test_a_new_checkout_empties_the_outbox(workspace: Workspace) -> None:
    workspace.commit("change")
    workspace.push()
    workspace.git("remote", "remove", "origin")
    assert workspace.create_outbox().returncode == 0
    assert workspace.waiting() == {}
