"""Files that steer agents are replaced in real checkouts, also hostile ones, and put back without a trace in the diff."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from gibil_bot.instruction_files import AGENT_SETTINGS, INSTRUCTION_FILES, as_globs
from gibil_bot.path_globs import is_same_file
from gibil_bot.scripts.commits import create_script
from gibil_bot.scripts.instructions import MOST_NAMES, Printed, parse, put_back_script, replace_script
from tests.doubles.patience import patient
from tests.doubles.repositories import ENVIRONMENT, commit, git, repository

GLOBS = (*INSTRUCTION_FILES, *AGENT_SETTINGS)
BASE = {"CLAUDE.md": "the base branch's", "sub/AGENTS.md": "base, nested"}


class Checkout:
    """A checkout of an untrusted head, in which an agent works."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self.above = folder
        self.folder = repository(folder / "project", dict(files))
        self.state = folder / "state"
        self.sha = git(self.folder, "rev-parse", "HEAD")

    def replace(self, base: Mapping[str, str] = BASE, **more: str) -> Printed:
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for path, content in base.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
        script = replace_script(GLOBS, str(self.state), folder=str(self.folder), above=str(self.above))
        return parse(self.sh(script, archive.getvalue(), **more))

    def put_back(self, **more: str) -> Printed:
        return parse(self.sh(put_back_script(GLOBS, str(self.state), self.sha, folder=str(self.folder)), b"", **more))

    def sh(self, script: str, given: bytes = b"", /, **more: str) -> bytes:
        done = subprocess.run(
            ["sh", "-c", script], input=given, capture_output=True, env={**ENVIRONMENT, **more}, timeout=patient(60)
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)

    def committed(self) -> list[str]:
        """Commit as the bot does; return what changed."""
        self.sh(create_script().replace("folder=/root/project", f"folder={self.folder}"), b"by the agent")
        return git(self.folder, "diff", "--name-status", "--no-renames", self.sha, "HEAD").split()


def test_the_head_s_own_files_are_out_of_reach_while_the_agent_works_and_no_part_of_its_commit(tmp_path: Path) -> None:
    head = {
        "CLAUDE.md": "hostile", "claude.MD": "hostile too", "sub/GEMINI.md": "hostile", ".claude/settings.json": "{}",
        "AGENTS.md/x": "a folder", ".env": "OPENAI_API_BASE=evil", ".github/copilot-instructions.md": "hostile",
        "deep/a/b/.mcp.json": "{}", ".vscode/mcp.json": "{}", "src/code.py": "1", ".github/README.md": "harmless",
        "docs/with\nnewline/CLAUDE.md": "hostile", " ": "blank", "-n": "option", ".gitignore": ".env\n",
    }  # fmt: skip
    checkout = Checkout(tmp_path, head)
    git(checkout.folder, "add", "-f", ".env")
    checkout.sha = commit(checkout.folder, {})
    os.symlink("/etc/passwd", checkout.folder / "QWEN.md")
    (tmp_path / "CLAUDE.md").write_text("above the checkout")
    before = git(checkout.folder, "status", "--porcelain")

    printed = checkout.replace()
    assert set(printed.removed) == {
        "CLAUDE.md", "claude.MD", "sub/GEMINI.md", ".claude", "AGENTS.md", ".env", ".github/copilot-instructions.md",
        "deep/a/b/.mcp.json", ".vscode/mcp.json", "docs/with\nnewline/CLAUDE.md", "QWEN.md",
    }  # fmt: skip
    assert not (tmp_path / "CLAUDE.md").exists()
    files = {str(path.relative_to(checkout.folder)) for path in checkout.folder.rglob("*") if not path.is_dir()}
    assert {path for path in files if is_same_file(path, GLOBS) and not path.startswith(".git/")} == set(BASE)
    assert {path: (checkout.folder / path).read_text() for path in BASE} == BASE

    checkout.write("src/code.py", "2")
    checkout.write("CLAUDE.md", "changed by the agent")
    checkout.write("new/.cursor/rules", "created by the agent")
    (checkout.folder / "sub" / "AGENTS.md").unlink()
    git(checkout.folder, "add", "-A")
    result = checkout.put_back()
    assert set(result.changed) == {"CLAUDE.md", "new/.cursor/rules"}
    assert result.deleted == ("sub/AGENTS.md",)
    assert not result.moved_head
    assert not result.lost
    assert (checkout.folder / "CLAUDE.md").read_text() == "hostile"
    assert (checkout.folder / "QWEN.md").is_symlink()
    assert (checkout.folder / ".env").read_text() == "OPENAI_API_BASE=evil"
    assert git(checkout.folder, "status", "--porcelain") == f"M  src/code.py\n{before}"
    assert checkout.put_back() == result, "it can be repeated"
    (checkout.folder / "QWEN.md").unlink()
    assert checkout.committed() == ["M", "src/code.py"]


def test_commits_of_the_agent_remain_if_they_change_no_instructions(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, {"CLAUDE.md": "hostile", "code": "1"})
    checkout.replace()
    checkout.write("code", "2")
    git(checkout.folder, "commit", "-qm", "leaves the others out", "--", "code")
    mine = git(checkout.folder, "rev-parse", "HEAD")
    assert not checkout.put_back().moved_head
    assert git(checkout.folder, "rev-parse", "HEAD") == mine
    assert checkout.committed() == ["M", "code"]

    checkout.sha = mine
    checkout.replace()
    checkout.write("code", "3")
    commit(checkout.folder, {})  # all files, so also those of the base branch
    checkout.write("CLAUDE.md", "again")
    commit(checkout.folder, {})
    assert checkout.put_back().moved_head
    assert git(checkout.folder, "rev-parse", "HEAD") == mine
    assert checkout.committed() == ["M", "code"]


@pytest.mark.parametrize("what", ["all", "archive"])
def test_files_are_restored_from_the_commit_if_the_agent_deletes_the_bookkeeping(tmp_path: Path, what: str) -> None:
    checkout = Checkout(tmp_path, {"CLAUDE.md": "hostile", "a/AGENTS.md": "nested", "code": "1"})
    checkout.replace()
    checkout.write("code", "2")
    checkout.sh(f"rm -rf {checkout.state}{'' if what == 'all' else '/head.tar'}")
    result = checkout.put_back()
    assert result.lost
    assert (checkout.folder / "CLAUDE.md").read_text() == "hostile"
    assert checkout.committed() == ["M", "code"]


def test_nothing_of_the_repository_runs(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, {"CLAUDE.md": "hostile", ".gitattributes": "* filter=evil diff=evil\n", "code": "1"})
    ran = tmp_path / "ran"
    program = checkout.folder / ".git" / "evil"
    program.write_text(f"#!/bin/sh\ntr '\\000' ' ' </proc/$PPID/cmdline >>{ran}\ncat\n")
    program.chmod(0o755)
    settings = {
        "filter.evil.clean": program, "filter.evil.smudge": program, "filter.evil.required": "true", "core.fsmonitor": program,
        "core.hooksPath": checkout.folder / ".git", "core.sshCommand": program, "diff.evil.command": program,
        "diff.evil.textconv": program, "core.pager": program, "core.worktree": "/", "core.attributesFile": "/dev/null",
    }  # fmt: skip
    for name in ("reference-transaction", "post-index-change", "post-checkout"):
        os.link(program, checkout.folder / ".git" / name)
    for key, value in settings.items():
        git(
            checkout.folder,
            "config",
            key,
            str(value),
            GIT_WORK_TREE=str(checkout.folder),
            GIT_DIR=str(checkout.folder / ".git"),
        )
    git(checkout.folder, "config", "remote.origin.promisor", "true", GIT_DIR=str(checkout.folder / ".git"))
    ran.unlink(missing_ok=True)
    checkout.replace()
    checkout.sh(f"rm -rf {checkout.state}")
    assert checkout.put_back().lost
    assert (checkout.folder / "CLAUDE.md").read_text() == "hostile"
    assert not ran.exists(), ran.read_text()


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, {"code": "1"})
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(outside, checkout.folder / "sub")
    os.symlink(tmp_path, checkout.folder / ".claude")
    checkout.sha = commit(checkout.folder, {})
    printed = checkout.replace({**BASE, "code/AGENTS.md": "below a file", "new/folder/AGENTS.md": "created"})
    assert set(printed.unwritten) == {"sub/AGENTS.md", "code/AGENTS.md"}
    assert not list(outside.iterdir())
    assert checkout.state.is_dir()
    assert (checkout.folder / "new/folder/AGENTS.md").read_text() == "created"
    checkout.put_back()
    assert not (checkout.folder / "new").exists()
    assert checkout.committed() == []


@pytest.mark.parametrize("line", range(12))
def test_a_killed_script_can_be_run_again(tmp_path: Path, line: int) -> None:
    """Each script ends before its Nth change of a file, and is run again."""
    checkout = Checkout(tmp_path, {"CLAUDE.md": "hostile", "GEMINI.md": "hostile", "code": "1"})
    programs = tmp_path / "programs"
    programs.mkdir()
    count = tmp_path / "count"
    for name in ("rm", "mv", "tar", "git", "cp", "xargs"):
        program = programs / name
        program.write_text(
            f"#!/bin/sh\necho >>{count}\ntest $(wc -l <{count}) -le {line * 2} || {{ kill -9 $PPID; exit 1; }}\n"
            f'PATH={ENVIRONMENT["PATH"]} exec {name} "$@"\n'
        )
        program.chmod(0o755)
    path = f"{programs}:{ENVIRONMENT['PATH']}"
    with contextlib.suppress(AssertionError):  # the last ones may come to an end
        checkout.replace(PATH=path)
    checkout.replace()
    assert (checkout.folder / "CLAUDE.md").read_text() == BASE["CLAUDE.md"]
    assert not (checkout.folder / "GEMINI.md").exists()
    checkout.write("code", "2")
    count.unlink(missing_ok=True)
    with contextlib.suppress(AssertionError):
        checkout.put_back(PATH=path)
    checkout.put_back()
    assert (checkout.folder / "GEMINI.md").read_text() == "hostile"
    assert checkout.committed() == ["M", "code"]


def test_ten_thousand_nested_files_are_replaced(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, {"code": "1"})
    for number in range(10_000):
        folder = checkout.folder / f"{number % 100}" / f"{number}"
        folder.mkdir(parents=True)
        (folder / "CLAUDE.md").touch()
    assert len(checkout.replace().removed) == MOST_NAMES
    assert not list(checkout.folder.glob("*/*/CLAUDE.md"))
    checkout.put_back()
    assert len(list(checkout.folder.glob("*/*/CLAUDE.md"))) == 10_000


def test_an_engine_s_names_without_a_folder_are_meant_at_any_depth() -> None:
    assert as_globs(["RULES.md", ".tool/", ".github/x.md", "**/y"]) == ("**/RULES.md", "**/.tool/", ".github/x.md", "**/y")
