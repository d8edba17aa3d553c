"""What an agent changed, by git: the script on real repositories, and what a machine may answer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gibil_bot.runs.agent_changes import AgentChanges, parse_changes
from gibil_bot.scripts import agent_changes
from gibil_bot.scripts.clone import WORKSPACE
from gibil_bot.ssh.answers import BadAnswer
from tests.doubles.repositories import git

TREE = "a" * 40


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work space"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "kept").write_text("one\ntwo\n")
    (folder / "gone").write_text("x\n")
    (folder / ".gitignore").write_text("cache\n")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    monkeypatch.setattr(agent_changes, "WORKSPACE", f"'{folder}'")
    return folder


def run(script: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(["sh", "-c", script], input=stdin, capture_output=True, check=True).stdout


def changes(before: str = "", most_patch: int = 0) -> AgentChanges:
    return parse_changes(run(agent_changes.changes_script(before, most_patch=most_patch)), most_patch=most_patch)


def test_changes_since_a_moment_are_counted_and_can_be_applied_elsewhere(checkout: Path) -> None:
    before = changes()
    (checkout / "kept").write_text("one\n2\n")
    (checkout / "gone").unlink()
    (checkout / "new\u00fc").write_bytes(b"\0\1")
    (checkout / "cache").write_text("ignored")
    git(checkout, "add", "kept")
    git(checkout, "commit", "-qm", "by the agent")
    status = git(checkout, "status", "--porcelain")

    found = changes(before.tree, 10_000)

    assert (found.files, found.lines) == (3, 3)
    assert git(checkout, "status", "--porcelain") == status, "the index of the checkout is left alone"
    git(checkout, "reset", "-q", "--hard", "HEAD~1")
    git(checkout, "clean", "-fdxq")
    run(agent_changes.APPLY.replace(WORKSPACE, f"'{checkout}'"), found.patch)
    assert changes().tree == found.tree


def test_a_patch_above_the_limit_is_left_out(checkout: Path) -> None:
    before = changes()
    (checkout / "kept").write_text("three\n" * 1000)
    found = changes(before.tree, 1000)
    assert (found.patch, found.is_cut, found.files) == (b"", True, 1)


@pytest.mark.parametrize(
    "answer",
    [b"", b"no tree\n", TREE.encode() + b"\n1\n", TREE.encode() + b"\n-1 2\n", TREE.encode() + b"\n1 99999999999\n"],
)
def test_an_answer_of_another_form_is_rejected(answer: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_changes(answer)


def test_only_the_name_of_a_tree_gets_into_the_script() -> None:
    with pytest.raises(ValueError, match="not the name of a tree"):
        agent_changes.changes_script("$(reboot)")
