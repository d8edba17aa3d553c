"""Machines created and pushed from inside git (aliases, hooks, worktrees), and the author of commits on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.githttp import GitServer
from tests.doubles.machines import shared_folder
from tests.doubles.repositories import snapshot

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("git surroundings")]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Create a repository `own` with a linked worktree `linked`, and `served/own.git` and `served/lib.git`."""
    with command_line(tmp_path_factory.mktemp("surroundings"), shared_folder(tmp_path_factory), own_daemon=True) as line:
        own = line.repository("own", {"file": "own"})
        for number in range(5):
            line.commit(own, {"file": f"own {number}"})
        lib = line.repository("lib", {"file": "lib"})
        for folder in (own, lib):
            line.git(line.here, "clone", "-q", "--bare", str(folder), f"served/{folder.name}.git")
        line.git(own, "worktree", "add", "-q", str(line.here / "linked"), "-b", "feature")
        yield line


@pytest.fixture(scope="module")
def server(line: CommandLine) -> Iterator[GitServer]:
    with GitServer(line.here / "served") as server:
        yield server


def from_an_alias(line: CommandLine, command: str, **more: str) -> tuple[int, str, str]:
    """Run as `git gibil` in the linked worktree: git exports GIT_DIR to the commands of an alias."""
    done = line.bash(f"cd linked && git -c 'alias.start=!{command}' start", **more)
    return done.returncode, done.stdout, done.stderr


def test_create_from_an_alias_in_a_worktree_does_not_change_the_repository(line: CommandLine, server: GitServer) -> None:
    before = snapshot(line.here / "own" / ".git")
    for name, repo in (("same", f"{server.url}/own.git"), ("other", f"{server.url}/lib.git"), ("path", str(line.here / "lib"))):
        allowed = {"GIBIL_EGRESS_ALLOW": server.url.removeprefix("http://")}
        status, _, output = from_an_alias(line, f"gibil create --name {name} --repo {repo} --wait ready", **allowed)
        assert status == 0, output
        cloned = line.gibil("run", name, "cat /root/project/file; git -C /root/project rev-parse HEAD").stdout
        folder = line.here / ("own" if name == "same" else "lib")
        assert cloned == (folder / "file").read_text() + line.git(folder, "rev-parse", "HEAD") + "\n"
    assert snapshot(line.here / "own" / ".git") == before


def test_push_from_an_alias_pushes_the_machines_commits(line: CommandLine) -> None:
    line.git(line.here, "clone", "-q", str(line.here / "served/lib.git"), "clone")
    assert line.gibil("create", "--name", "pushed", "--repo", "clone", "--wait", "ready").returncode == 0
    made = line.gibil("run", "pushed", "cd /root/project && echo 2 >file && git commit -qam new && git rev-parse HEAD")
    assert made.returncode == 0, made.stderr
    before = snapshot(line.here / "own" / ".git")
    status, out, output = from_an_alias(line, "gibil push pushed --json")
    assert status == 0, output
    assert json.loads(out)["commit"] == made.stdout.strip()
    assert snapshot(line.here / "own" / ".git") == before


def test_try_from_an_alias_runs_the_named_folder(line: CommandLine) -> None:
    status, _, output = from_an_alias(line, "gibil try ../lib -w ../try.yml")
    assert status == 2, output
    (line.here / "try.yml").write_text(
        "on: {command: try}\ntasks: [{run: 'grep -q lib file && git commit -q --allow-empty -m x'}]\n"
    )
    status, _, output = from_an_alias(line, f"gibil try ../lib -w {line.here}/try.yml")
    assert status == 0, output


@pytest.mark.parametrize("tagged", [False, True])
def test_a_tag_named_like_the_branch_changes_nothing(line: CommandLine, tmp_path: Path, tagged: bool) -> None:
    name = f"v{int(tagged)}"
    line.git(line.here, "init", "-q", "--bare", "-b", name, f"{name}.git")
    work = line.repository(f"work-{name}", {"file": "1"}, branch=name)
    if tagged:
        line.git(work, "update-ref", f"refs/tags/{name}", "HEAD")
    line.git(work, "remote", "add", "origin", f"../{name}.git")
    line.git(work, "push", "-q", "origin", f"refs/heads/{name}")
    made = line.gibil("create", "--name", f"amb-{name}", "--repo", f"work-{name}", "--wait", "ready", "--json")
    assert made.returncode == 0, made.stderr
    head = line.gibil(
        "run", f"amb-{name}",
        f"set -e; cd project; git symbolic-ref HEAD; git tag {name} -f >&2; "
        "git commit -q --allow-empty -m fix; git rev-parse HEAD",
    )  # fmt: skip
    assert head.stdout.splitlines()[0] == f"refs/heads/{name}", head.stderr
    assert line.json("push", f"amb-{name}", "--branch", name)["branch"] == name
    refs = line.git(line.here / f"{name}.git", "for-each-ref", "--format=%(refname) %(objectname)")
    assert refs == f"refs/heads/{name} {head.stdout.splitlines()[1]}"


def test_commits_on_a_machine_have_the_requesters_name(line: CommandLine) -> None:
    (line.folder / "gitconfig").write_text('[user]\n\tname = "Zoë \\"Z\\" O\'Hara"\n\temail = zoe@example.com\n')
    # Another identity than the one of the tests' own commits.
    plain = dict.fromkeys(("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"), "")
    for name, words in (("bare", ()), ("with-code", ("--repo", "lib", "--wait", "ready"))):
        made = line.gibil("create", "--name", name, *words, GIT_CONFIG_GLOBAL=str(line.folder / "gitconfig"), **plain)
        assert made.returncode == 0, made.stderr
        script = "cd /root/project 2>/dev/null || { git init -q /root/x; cd /root/x; }; git commit -q --allow-empty -m x"
        log = line.gibil("run", name, f"{script} && git log -1 --format='%an <%ae>'")
        assert log.stdout == 'Zoë "Z" O\'Hara <zoe@example.com>\n', log.stderr


def test_submodules_and_lfs_files_are_mentioned_in_the_report(line: CommandLine) -> None:
    work = line.repository(
        "modules", {".gitattributes": "*.bin filter=lfs\n", ".gitmodules": "", ".gibil.yml": "tasks: [{run: 'true'}]\n"}
    )
    result = line.json("try", str(work))
    assert result["conclusion"] == "success"
    assert "submodules" in result["note"]
    assert "LFS" in result["note"]
