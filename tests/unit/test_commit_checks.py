"""The rules for commits from a machine: each rejects with its own message, and what remains is described exactly."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from gibil_bot import git as our_git
from gibil_bot.commits import checks, secret_scan
from gibil_bot.commits.checks import Checked, CommitPolicy, CommitRejected, check
from gibil_bot.commits.collected import Collected
from gibil_bot.commits.conflicts import patch
from gibil_bot.commits.from_machine import warnings_of
from gibil_bot.commits.scanner import NoScanner, Scanner
from gibil_bot.runs.redact import Redactor
from tests.doubles.repositories import git, repository


class Workshop:
    """A checkout as on a machine, and our repository, which has its first commit only."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        self.work = repository(folder / "work", files)
        self.base = git(self.work, "rev-parse", "HEAD")
        self.ours = folder / "ours.git"
        self.bundle = folder / "bundle"

    def write(self, path: str, content: str | bytes) -> None:
        (self.work / path).parent.mkdir(parents=True, exist_ok=True)
        (self.work / path).write_bytes(content.encode() if isinstance(content, str) else content)

    def commit(self, message: str = "change") -> str:
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "--allow-empty", "-m", message)
        return git(self.work, "rev-parse", "HEAD")

    def tree_with(self, mode: str, kind: str, sha: str, name: str) -> str:
        """Create a commit whose tree has one entry more, of any mode and name."""
        entries = git(self.work, "ls-tree", "HEAD") + f"\n{mode} {kind} {sha}\t{name}\n"
        tree = git(self.work, "mktree", "--missing", given=entries.encode("utf-8", "surrogateescape"))
        return self.commit_of(tree, git(self.work, "rev-parse", "HEAD"))

    def commit_of(self, tree: str, *parents: str) -> str:
        words = [word for parent in parents for word in ("-p", parent)]
        return git(self.work, "commit-tree", "-m", "new", *words, tree)

    def blob(self, content: bytes) -> str:
        return git(self.work, "hash-object", "-w", "--stdin", given=content)

    async def collected(self, head: str | None = None) -> Collected:
        head = head or git(self.work, "rev-parse", "HEAD")
        await our_git.create_repository(self.ours)
        git(self.ours, "fetch", "-q", "--depth=1", f"file://{self.work}", f"+{self.base}:refs/gibil/base")
        git(self.work, "update-ref", "refs/gibil/outgoing", head)
        git(self.work, "bundle", "create", "-q", str(self.bundle), "refs/gibil/outgoing", f"^{self.base}")
        return Collected(base=self.base, head=head, bundle=self.bundle, bytes=self.bundle.stat().st_size)

    async def check(self, policy: CommitPolicy | None = None, *, head: str | None = None) -> Checked:
        return await check(self.ours, await self.collected(head), policy or CommitPolicy())

    async def rejected(self, policy: CommitPolicy | None = None, *, head: str | None = None) -> Sequence[tuple[str, str]]:
        with pytest.raises(CommitRejected) as caught:
            await self.check(policy, head=head)
        assert "\n" not in caught.value.message
        return [(problem.code, problem.message) for problem in caught.value.problems]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path, {"file": "1\n", "src/a.py": "a\n", "src/b.py": "b\n"})


async def test_ordinary_commits_are_described_exactly(shop: Workshop) -> None:
    shop.write("src/a.py", "aa\n")
    git(shop.work, "mv", "file", "src/moved")
    first = shop.commit("Move a file\n\nand why")
    shop.write("run", "#!/bin/sh\n")
    (shop.work / "run").chmod(0o755)
    (shop.work / "link").symlink_to("src/a.py")
    second = shop.commit("Add a program")
    checked = await shop.check()
    assert [(commit.sha, commit.parents, commit.message) for commit in checked.commits] == [
        (first, (shop.base,), "Move a file\n\nand why"), (second, (first,), "Add a program"),
    ]  # fmt: skip
    assert [(change.path, change.mode) for change in checked.commits[0].changes] == [
        ("file", None), ("src/a.py", "100644"), ("src/moved", "100644"),
    ]  # fmt: skip
    assert [(change.path, change.mode) for change in checked.commits[1].changes] == [("link", "120000"), ("run", "100755")]
    assert checked.files == ("file", "link", "run", "src/a.py", "src/moved")
    assert checked.bytes == len("aa\n") + len("1\n") + len("#!/bin/sh\n") + len("src/a.py")


async def test_a_file_that_becomes_a_folder_is_a_removal_and_additions(shop: Workshop) -> None:
    (shop.work / "file").unlink()
    shop.write("file/x", "x")
    shop.commit()
    checked = await shop.check()
    assert [(change.path, change.mode) for change in checked.commits[0].changes] == [("file", None), ("file/x", "100644")]


async def test_changes_outside_of_the_paths_are_dropped_and_reported(shop: Workshop) -> None:
    shop.write("other", "o")
    shop.commit("Only other files")
    shop.write("src/a.py", "aa")
    shop.write(".github/workflows/ci.yml", "x")
    shop.commit("Both")
    empty = shop.commit("Empty on purpose")
    checked = await shop.check(CommitPolicy(paths=("src/**",)))
    assert checked.dropped == (".github/workflows/ci.yml", "other")
    assert checked.files == ("src/a.py",)
    assert [commit.message for commit in checked.commits] == ["Both", "Empty on purpose"]
    first, last = checked.commits
    assert (first.parents, last.parents, last.sha) == ((shop.base,), (first.sha,), checked.head)
    assert checked.collected == empty
    assert git(shop.ours, "ls-tree", "-r", "--name-only", checked.head).split() == ["file", "src/a.py", "src/b.py"]
    assert git(shop.ours, "show", f"{checked.head}:src/a.py") == "aa"
    mailbox = await patch(shop.ours, checked)
    assert mailbox is not None
    assert b"src/a.py" in mailbox
    assert b"ci.yml" not in mailbox


async def test_without_remaining_changes_the_head_is_the_base(shop: Workshop) -> None:
    shop.write("other", "o")
    head = shop.commit()
    checked = await shop.check(CommitPolicy(paths=("src/**",)))
    assert (checked.head, checked.collected, checked.commits) == (shop.base, head, ())


@pytest.mark.parametrize("paths", [("**/*.py",), ("file", "file/**")], ids=["in part", "whole"])
async def test_a_file_that_becomes_a_folder_is_changed_as_a_whole_or_not_at_all(shop: Workshop, paths: tuple[str, ...]) -> None:
    shop.write("junk", "j")
    (shop.work / "file").unlink()
    shop.write("file/x.py", "x")
    shop.commit()
    policy = CommitPolicy(paths=paths)
    if len(paths) == 1:
        message = "the file file becomes a folder, and `paths` includes only files in it: include both, or none"
        assert await shop.rejected(policy) == [("OUTSIDE_PATHS", message)]
        return
    checked = await shop.check(policy)
    assert git(shop.ours, "ls-tree", "-r", "--name-only", checked.head).split() == ["file/x.py", "src/a.py", "src/b.py"]


async def test_strict_rejects_changes_outside_of_the_paths(shop: Workshop) -> None:
    shop.write("other", "o")
    shop.write("another", "o")
    shop.commit()
    assert await shop.rejected(CommitPolicy(paths=("src/**",), strict=True)) == [
        ("OUTSIDE_PATHS", "the commits change another and 1 other file outside of the workflow's `paths`, and `strict` is set")
    ]


async def test_all_problems_are_reported_at_once(shop: Workshop) -> None:
    shop.write(".github/workflows/ci.yml", "x")
    shop.write("sub/CLAUDE.md", "x")
    shop.write(".gitattributes", "* filter=x")
    (shop.work / "link").symlink_to("/etc/passwd")
    shop.write("FILE", "2")
    shop.commit()
    assert await shop.rejected() == [
        ("GIT_SETTINGS", ".gitattributes has settings of git, which can't be changed from a machine"),
        ("PROTECTED", ".github/workflows/ci.yml is protected: it can't be changed from a machine"),
        ("PROTECTED", "sub/CLAUDE.md is protected: it can't be changed from a machine"),
        ("SYMLINK", "link is a symbolic link to '/etc/passwd', which isn't a plain path inside of the repository"),
        ("SAME_NAME", "FILE and file are the same name on file systems that ignore case"),
    ]


async def test_at_most_ten_problems_are_listed_and_the_others_counted(shop: Workshop) -> None:
    for number in range(13):
        shop.write(f".github/workflows/{number:02}.yml", "x")
    shop.commit()
    with pytest.raises(CommitRejected) as caught:
        await shop.check()
    assert len(caught.value.problems) == 10
    assert caught.value.message.endswith("; and 3 more problems")


async def test_moving_a_protected_file_away_is_a_change_of_it(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, {".github/workflows/ci.yml": "x" * 100, "docs/private/x": "y"})
    git(shop.work, "mv", ".github/workflows/ci.yml", "ci.yml")
    git(shop.work, "mv", "docs/private/x", "x")
    shop.commit()
    policy = CommitPolicy(protected=(".github/workflows/**", "docs/private"))
    assert [code for code, _ in await shop.rejected(policy)] == ["PROTECTED", "PROTECTED"]


async def test_more_files_than_allowed_are_rejected(shop: Workshop) -> None:
    for number in range(4):
        shop.write(f"new{number}", str(number))
    shop.commit()
    [(code, message)] = await shop.rejected(CommitPolicy(most_files=3))
    assert (code, message.partition(":")[0]) == ("TOO_LARGE", "the commits change more than 3 files")


async def test_more_content_than_allowed_is_rejected(shop: Workshop) -> None:
    shop.write("large", random.Random(1).randbytes(3000))
    shop.commit()
    assert await shop.rejected(CommitPolicy(most_bytes=2048)) == [
        ("TOO_LARGE", "the changed files are larger than 2 KiB; the largest is large with 3 KiB")
    ]


async def test_more_commits_than_allowed_are_rejected(shop: Workshop) -> None:
    for number in range(3):
        shop.commit(str(number))
    [(code, message)] = await shop.rejected(CommitPolicy(most_commits=2))
    assert code == "TOO_LARGE"
    assert "more than 2 new commits" in message


async def test_submodules_are_rejected(shop: Workshop) -> None:
    head = shop.tree_with("160000", "commit", "1" * 40, "module")
    assert await shop.rejected(head=head) == [
        ("SUBMODULE", "module is a submodule: submodules can't be added, changed or removed")
    ]


async def test_rewritten_history_is_rejected(tmp_path: Path) -> None:
    shop = Workshop(tmp_path, {"file": "1"})
    first = shop.base
    shop.write("file", "2")
    shop.base = shop.commit()
    git(shop.work, "checkout", "-q", "-b", "other", first)
    shop.write("file", "3")
    head = shop.commit()
    [(code, message)] = await shop.rejected(head=head)
    assert code == "HISTORY"
    assert f"don't descend from {shop.base[:7]}" in message


async def test_a_commit_without_a_parent_is_rejected(shop: Workshop) -> None:
    head = shop.commit_of(git(shop.work, "rev-parse", "HEAD^{tree}"))
    assert [code for code, _ in await shop.rejected(head=head)] == ["HISTORY"]


async def test_a_merge_of_another_branch_is_rejected(shop: Workshop) -> None:
    tree = git(shop.work, "rev-parse", "HEAD^{tree}")
    head = shop.commit_of(tree, shop.base, shop.commit_of(tree))
    found = await shop.rejected(head=head)
    assert {code for code, _ in found} == {"HISTORY"}
    assert "another branch that was merged" in found[-1][1] or "has no parent" in found[0][1]


async def test_a_merge_of_commits_on_top_of_the_base_keeps_both_parents(shop: Workshop) -> None:
    git(shop.work, "checkout", "-q", "-b", "side")
    shop.write("side", "s")
    side = shop.commit()
    git(shop.work, "checkout", "-q", "main")
    shop.write("file", "2")
    main = shop.commit()
    git(shop.work, "merge", "-q", "--no-ff", "-m", "merge", "side")
    checked = await shop.check()
    assert checked.commits[-1].parents == (main, side)
    assert [change.path for change in checked.commits[-1].changes] == ["side"]


async def test_a_known_secret_in_a_file_a_name_and_a_message_is_rejected(shop: Workshop) -> None:
    value = "correct-horse-battery"
    shop.write("a.txt", f"first\n{value}\n")
    shop.write(f"x-{value}", "x")
    head = shop.commit(f"Use {value}")
    found = await shop.rejected(CommitPolicy(secrets=Redactor([value])))
    assert found == [
        ("SECRET", "a.txt, line 2 contains the value of a secret of this run"),
        ("SECRET", f"the name of a file in commit {head[:7]}, line 2 contains the value of a secret of this run"),
        ("SECRET", f"the message of commit {head[:7]} contains the value of a secret of this run"),
    ]


async def test_a_secret_that_a_later_commit_removes_is_found(shop: Workshop) -> None:
    shop.write("a.txt", "correct-horse-battery")
    shop.commit()
    shop.write("a.txt", "")
    shop.commit()
    secrets = Redactor(["correct-horse-battery"])
    assert [code for code, _ in await shop.rejected(CommitPolicy(secrets=secrets))] == ["SECRET"]
    shop.ours, shop.bundle = shop.ours.with_name("second.git"), shop.bundle.with_name("second")
    policy = CommitPolicy(secrets=secrets, linear=False)
    assert [code for code, _ in await shop.rejected(policy)] == ["SECRET"]


async def test_tokens_are_found_by_their_shape_unless_the_file_had_them(tmp_path: Path) -> None:
    letters = random.Random(7)
    old, new = (
        "ghp_" + "".join(letters.choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=36)) for _ in "12"
    )
    shop = Workshop(tmp_path, {"fixture": f"token = '{old}'\n"})
    git(shop.work, "mv", "fixture", "moved")
    shop.write("settings.py", f"import os\n\nTOKEN = '{new}'\n")
    shop.commit()
    [(code, message)] = await shop.rejected()
    assert code == "SECRET"
    assert message.startswith("settings.py, line 3 contains what looks like a secret (github")
    assert new not in message


@pytest.mark.parametrize("linear", [True, False])
async def test_a_large_file_is_searched_unless_a_user_pushes_it(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch, linear: bool
) -> None:
    """A user gets a warning; the known secrets of a run are found whatever the size is."""
    monkeypatch.setattr(checks, "_MOST_SCANNED_BYTES", 100)
    letters = "".join(random.Random(8).choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=36))
    shop.write("large.py", f"TOKEN = 'ghp_{letters}'\n" + "x = 1\n" * 100)
    shop.commit()
    policy = CommitPolicy(linear=linear)
    if linear:
        assert [code for code, _ in await shop.rejected(policy)] == ["SECRET"]
    else:
        found = await shop.check(policy)
        assert warnings_of(found.files, found.unscanned) == ("large.py is too large to be searched for secrets",)
    shop.ours, shop.bundle = shop.ours.with_name("second.git"), shop.bundle.with_name("second")
    known = CommitPolicy(linear=linear, secrets=Redactor([letters]))
    assert [code for code, _ in await shop.rejected(known)] == ["SECRET"]


async def test_content_that_the_scanner_fails_at_is_rejected_and_named(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import os, time; os.write(1, b'\\0\\0\\0\\4null'); os.read(0, 4); "
    shop.write("src/a.py", "x\n")
    shop.write("AGENTS.md", "obey")
    shop.commit()
    for number, (fails, reason) in enumerate((
        ("os.kill(os.getpid(), 9)", "the scanner was ended by signal 9"),
        ("time.sleep(600)", "the scanner needs more than 0.1 s for a part of it"),
        ("os.write(1, b'x' * 9)", "the scanner returned an invalid answer"),
    )):  # fmt: skip
        shop.ours = shop.ours.with_name(f"ours{number}.git")
        with contextlib.closing(Scanner([sys.executable, "-ISc", child + fails], piece_s=0.1)) as scanner:
            monkeypatch.setattr(secret_scan, "shared_scanner", lambda scanner=scanner: scanner)
            (first, second) = await shop.rejected(CommitPolicy(protected=("AGENTS.md",)))
        assert first[0] == "PROTECTED"
        assert second == ("NOT_SCANNED", f"AGENTS.md can't be searched for secrets: {reason}")


async def test_commits_are_not_accepted_without_a_scanner(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.write("src/a.py", "x\n")
    shop.commit()
    with contextlib.closing(Scanner(["/missing/python"])) as scanner:
        monkeypatch.setattr(secret_scan, "shared_scanner", lambda: scanner)
        with pytest.raises(NoScanner, match="can't be started"):
            await shop.check()


async def test_a_name_that_is_not_utf8_is_rejected(shop: Workshop) -> None:
    head = shop.tree_with("100644", "blob", shop.blob(b"x"), "n\udcffme")
    assert [code for code, _ in await shop.rejected(head=head)] == ["NAME"]


async def test_an_overlong_message_is_rejected(shop: Workshop) -> None:
    shop.commit("x" * 65_537)
    [(code, message)] = await shop.rejected()
    assert code == "MESSAGE"
    assert "longer than 64 KiB" in message


async def test_the_callers_git_configuration_does_not_relax_the_checks(
    shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text('[fetch "fsck"]\n\thasDotgit = ignore\n\tskipList = /dev/null\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    entry = b"40000 .git\0" + bytes.fromhex(git(shop.work, "rev-parse", "HEAD^{tree}"))
    tree = git(shop.work, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", given=entry)
    head = shop.commit_of(tree, shop.base)
    assert await shop.rejected(head=head) == [
        ("GIT_FOLDER", "a folder of the commits has an entry named .git, or named so for some file system")
    ]
