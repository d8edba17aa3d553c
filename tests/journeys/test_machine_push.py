"""Commits leave a machine as a bundle that is checked and pushed from here: what comes from there is not trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("machine push")]
WHO = "git config user.name Agent; git config user.email agent@example.com"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A bare repository `origin.git`, a clone of it `work`, and a machine `m` forged with it."""
    with command_line(tmp_path_factory.mktemp("push"), shared_folder(tmp_path_factory)) as line:
        first = line.repository("first", {"file": "1"})
        line.git(line.here, "clone", "-q", "--bare", str(first), "origin.git")
        line.git(line.here, "clone", "-q", str(line.here / "origin.git"), "work")
        made = line.gibil("create", "--name", "m", "--repo", "work", "--wait", "ready")
        assert made.returncode == 0, made.stderr
        yield line


def on_machine(line: CommandLine, script: str) -> str:
    done = line.gibil("run", "m", f"set -e; cd /root/project; {WHO}; {script}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_commits_are_pushed_to_where_the_machine_was_forged_from_whatever_its_git_says(line: CommandLine) -> None:
    nothing = line.gibil("push", "m", "--json")
    assert (nothing.returncode, json.loads(nothing.stdout)["code"]) == (2, "USAGE")
    on_machine(line, "git checkout -q -b agent/parser; echo 2 >file; git commit -qam 'Parse faster'")
    on_machine(line, "git remote set-url origin https://evil.example/x.git; git config url.https://evil.example/.insteadOf /")
    head = on_machine(line, "echo 3 >file; git commit -qam 'And safer'; git rev-parse HEAD")
    told = line.json("push", "m")
    origin = line.here / "origin.git"
    assert told == {
        "name": "m", "repo": str(origin), "branch": "agent/parser", "commit": head, "commits": 2, "files": ["file"],
    }  # fmt: skip
    assert line.git(origin, "rev-parse", "refs/heads/agent/parser") == head
    assert line.git(origin, "log", "-1", "--format=%s", "agent/parser") == "And safer"


def test_a_push_is_never_by_force(line: CommandLine) -> None:
    origin = line.here / "origin.git"
    work = line.here / "work"
    theirs = line.commit(work, {"file": "theirs"})
    line.git(work, "push", "-q", "origin", "HEAD:refs/heads/busy")
    on_machine(line, "git checkout -q -B busy; echo ours >>file; git commit -qam ours")
    refused = line.gibil("push", "m", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (1, "NOT_PUSHED")
    assert "has commits that the machine has not" in json.loads(refused.stdout)["error"]
    assert line.git(origin, "rev-parse", "refs/heads/busy") == theirs


def test_what_would_run_with_the_repositorys_secrets_is_looked_at_first(line: CommandLine) -> None:
    on_machine(
        line,
        "git checkout -q -B ci; mkdir -p .github/workflows; echo x >.github/workflows/a.yml; git add -A; git commit -qm ci",
    )
    refused = line.gibil("push", "m", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (1, "NOT_PUSHED")
    assert ".github/workflows/a.yml" in json.loads(refused.stdout)["error"]
    assert line.gibil("push", "m", "--with-workflows").returncode == 0


def test_without_a_branch_checked_out_it_has_to_be_said_where_to_push_to(line: CommandLine) -> None:
    on_machine(line, "git checkout -q --detach; git commit -q --allow-empty -m apart")
    refused = line.gibil("push", "m", "--json")
    assert (refused.returncode, "--branch" in json.loads(refused.stdout)["error"]) == (2, True)
    on_machine(line, "git checkout -q -B ci")


@pytest.mark.parametrize("branch", ["--force", "a..b", "+main"])
def test_a_branch_is_a_branch_and_no_option(line: CommandLine, branch: str) -> None:
    on_machine(line, "git commit -q --allow-empty -m more")
    refused = line.gibil("push", "m", f"--branch={branch}", "--json")
    assert refused.returncode in (1, 2)
    heads = line.git(line.here / "origin.git", "for-each-ref", "--format=%(refname)").split()
    assert set(heads) <= {f"refs/heads/{name}" for name in ("main", "agent/parser", "busy", "ci")}
