"""Commits leave a machine as an untrusted bundle, which is checked here and pushed from here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.patience import patient

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("machine push")]
WHO = "git config user.name Agent; git config user.email agent@example.com"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Create a bare repository `origin.git`, a clone of it `work`, and a machine `m` created from the clone."""
    with command_line(tmp_path_factory.mktemp("push"), shared_folder(tmp_path_factory), own_daemon=True) as line:
        first = line.repository("first", {"file": "1", ".github/workflows/old.yml": "on: push"})
        line.git(line.here, "clone", "-q", "--bare", str(first), "origin.git")
        line.git(line.here, "clone", "-q", str(line.here / "origin.git"), "work")
        made = line.gibil("create", "--name", "m", "--repo", "work", "--wait", "ready")
        assert made.returncode == 0, made.stderr
        on_machine(line, "git rev-parse HEAD >/root/start")
        yield line


def on_machine(line: CommandLine, script: str) -> str:
    done = line.gibil("run", "m", f"set -e; cd /root/project; {WHO}; {script}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_commits_are_pushed_to_the_machines_source_whatever_its_git_configuration(line: CommandLine) -> None:
    nothing = line.gibil("push", "m", "--json")
    assert (nothing.returncode, json.loads(nothing.stdout)["code"]) == (2, "USAGE")
    on_machine(line, "git checkout -q -b agent/parser; echo 2 >file; git commit -qam 'Parse faster'")
    on_machine(line, "git remote set-url origin https://evil.example/x.git; git config url.https://evil.example/.insteadOf /")
    head = on_machine(line, "echo 3 >file; git commit -qam 'And safer'; git rev-parse HEAD")
    result = line.json("push", "m")
    origin = line.here / "origin.git"
    assert result == {
        "name": "m", "repo": str(origin), "branch": "gibil/m", "commit": head, "commits": 2,
        "files": ["file"], "files_total": 1, "warnings": [],
    }  # fmt: skip
    assert line.git(origin, "rev-parse", "refs/heads/gibil/m") == head
    assert line.git(origin, "log", "-1", "--format=%s", "gibil/m") == "And safer"


def test_the_default_branch_is_pushed_to_only_by_name(line: CommandLine) -> None:
    origin = line.here / "origin.git"
    before = line.git(origin, "rev-parse", "refs/heads/main")
    head = on_machine(line, "git checkout -q -B main; echo 4 >file; git commit -qam 'On main'; git rev-parse HEAD")
    assert line.json("push", "m")["branch"] == "gibil/m"
    assert line.git(origin, "rev-parse", "refs/heads/main") == before
    line.git(origin, "symbolic-ref", "HEAD", "refs/heads/gibil/m")
    refused = line.gibil("push", "m", "--json")
    assert (refused.returncode, "is the default branch" in json.loads(refused.stdout)["error"]) == (2, True)
    line.git(origin, "symbolic-ref", "HEAD", "refs/heads/main")
    assert line.json("push", "m", "--branch", "main")["branch"] == "main"
    assert line.git(origin, "rev-parse", "refs/heads/main") == head


def test_a_push_is_never_forced(line: CommandLine) -> None:
    origin = line.here / "origin.git"
    work = line.here / "work"
    theirs = line.commit(work, {"file": "theirs"})
    line.git(work, "push", "-q", "origin", "HEAD:refs/heads/busy")
    on_machine(line, "git checkout -q -B busy; echo ours >>file; git commit -qam ours")
    refused = line.gibil("push", "m", "--branch", "busy", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (1, "NOT_PUSHED")
    assert "has commits that the machine doesn't have" in json.loads(refused.stdout)["error"]
    assert line.git(origin, "rev-parse", "refs/heads/busy") == theirs


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ("echo x >.github/workflows/a.yml", ".github/workflows/a.yml"),
        ("git mv .github/workflows/old.yml moved.yml", ".github/workflows/old.yml"),
        ("mkdir -p .github/actions/x; echo x >.github/actions/x/action.yml", ".github/actions/x/action.yml"),
        ("echo 'tasks: []' >.gibil.yml", ".gibil.yml"),
        ("mkdir -p .gibil/workflows; echo x >.gibil/workflows/t.yml", ".gibil/workflows/t.yml"),
        ("rm -rf .github; ln -s elsewhere .github", ": .github is protected"),
    ],
)
def test_changes_of_files_that_control_ci_are_rejected_without_confirmation(line: CommandLine, change: str, path: str) -> None:
    on_machine(line, f"git checkout -q -f -B ci $(cat /root/start); {change}; git add -A; git commit -qm ci")
    refused = line.gibil("push", "m", "--branch", "ci", "--json")
    assert (refused.returncode, json.loads(refused.stdout)["code"]) == (1, "NOT_PUSHED")
    assert path in json.loads(refused.stdout)["error"]
    assert "--with-workflows" in json.loads(refused.stdout)["error"]


def test_with_workflows_pushes_changes_of_workflow_files(line: CommandLine) -> None:
    on_machine(
        line, "git checkout -q -f -B ci $(cat /root/start); echo x >.github/workflows/a.yml; git add -A; git commit -qm ci"
    )
    assert line.json("push", "m", "--branch", "ci", "--with-workflows")["files"] == [".github/workflows/a.yml"]


def test_long_file_lists_are_cut_and_installed_folders_cause_a_warning(line: CommandLine) -> None:
    on_machine(
        line,
        "git checkout -q -f -B many $(cat /root/start); mkdir -p web/node_modules/x; cd web/node_modules/x; "
        "touch $(seq 1 150); cd /root/project; git add -f -A; git commit -qm many",
    )
    result = line.json("push", "m", "--branch", "many")
    assert (len(result["files"]), result["files_total"]) == (100, 150)
    assert ["150 files in web/node_modules/" in warning for warning in result["warnings"]] == [True]


def test_a_tag_or_a_branch_named_head_changes_nothing(line: CommandLine) -> None:
    head = on_machine(
        line,
        "git checkout -q -f -B topic $(cat /root/start); git commit -q --allow-empty -m one; "
        "git update-ref refs/tags/HEAD HEAD~1; git update-ref refs/heads/HEAD HEAD~1; git tag topic HEAD~1; "
        "git commit -q --allow-empty -m two; git rev-parse HEAD 2>/dev/null",
    )
    assert line.json("push", "m", "--branch", "topic")["commit"] == head
    assert line.git(line.here / "origin.git", "rev-parse", "refs/heads/topic") == head


ENDLESS = """
cat >/usr/local/bin/git <<'END'
#!/bin/sh
case $* in *bundle*) exec cat /dev/zero;; esac
exec /usr/bin/git "$@"
END
chmod +x /usr/local/bin/git
"""


def test_an_endless_bundle_is_not_read_to_its_end(line: CommandLine) -> None:
    on_machine(line, "git checkout -q -f --detach $(cat /root/start); git commit -q --allow-empty -m x")
    on_machine(line, ENDLESS)
    refused = line.gibil("push", "m", "--branch", "endless", "--json")
    on_machine(line, "rm /usr/local/bin/git; hash -r; git checkout -q -f -B main $(cat /root/start)")
    assert (refused.returncode, "larger than 256 MiB" in json.loads(refused.stdout)["error"]) == (1, True)


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
"""
"""A small process to fork from, because a process starts with its parent's memory."""


def test_a_small_commit_that_expands_to_gigabytes_is_bounded(line: CommandLine) -> None:
    on_machine(
        line,
        "git checkout -q -f --detach $(cat /root/start); b=$(git rev-parse HEAD:file); "
        "t=$(for n in 0 1 2 3 4 5 6 7 8 9; do printf '100644 blob %s\\tf%s\\n' $b $n; done | git mktree); "
        "for i in 1 2 3 4 5 6 7; do "
        "t=$(for n in 0 1 2 3 4 5 6 7 8 9; do printf '040000 tree %s\\td%s\\n' $t $n; done | git mktree); done; "
        "git reset -q --soft $(git commit-tree -m x -p HEAD $t)",
    )
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, sys.executable, "-m", "gibil_bot", "push", "m", "--branch", "deep", "--json"],
        env=line.environment(), cwd=line.here, capture_output=True, timeout=patient(60), check=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    assert (result["code"], "more than 20,000 files" in result["error"]) == ("NOT_PUSHED", True)
    assert int(done.stderr) < 250_000, "kilobytes, of the process or its largest child"
    on_machine(line, "git checkout -q -f -B main $(cat /root/start)")


@pytest.mark.parametrize("branch", ["--force", "a..b", "+main"])
def test_a_branch_name_is_never_read_as_an_option(line: CommandLine, branch: str) -> None:
    on_machine(line, "git commit -q --allow-empty -m more")
    refused = line.gibil("push", "m", f"--branch={branch}", "--json")
    assert refused.returncode in (1, 2)
    heads = line.git(line.here / "origin.git", "for-each-ref", "--format=%(refname)").split()
    assert set(heads) <= {f"refs/heads/{name}" for name in ("main", "gibil/m", "busy", "ci", "many", "topic")}
