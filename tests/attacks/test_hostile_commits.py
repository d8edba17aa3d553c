"""Commits of a few kilobytes that expand to gigabytes: rejected with bounded memory and time, in one sentence."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import struct
import subprocess
import time
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from gibil_bot import git as our_git
from gibil_bot.commits import checks
from gibil_bot.commits import recreate as recreating
from gibil_bot.commits.checks import CommitPolicy, CommitRejected, check
from gibil_bot.commits.collected import Collected
from gibil_bot.commits.conflicts import patch
from gibil_bot.commits.from_machine import MOST_FILES, policy_of_push
from gibil_bot.commits.objects import Change
from gibil_bot.commits.recreate import recreate
from gibil_bot.errors import GibilError
from gibil_bot.instruction_files import INSTRUCTION_FILES
from gibil_bot.runs.redact import Redactor
from tests.doubles.patience import patient
from tests.doubles.repositories import git, repository

WHO = "A <a@example.com> 1 +0000"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Create a checkout `work` with one commit, and a repository `ours` that has it."""
    return repository(tmp_path / "work", {"file": "1"})


async def rejected(base: Path, head: str, bundle: Path) -> str:
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/*:refs/heads/*")
    began = time.monotonic()
    with pytest.raises(GibilError) as caught:
        await check(ours, collected(base, head, bundle), policy_of_push(False))
    assert time.monotonic() - began < patient(60)
    assert "\n" not in caught.value.message
    return caught.value.message


def collected(base: Path, head: str, bundle: Path) -> Collected:
    main = git(base, "rev-parse", "refs/heads/main")
    return Collected(base=main, head=head, bundle=bundle, bytes=bundle.stat().st_size)


async def problems(base: Path, head: str, bundle: Path, policy: CommitPolicy | None = None) -> set[str]:
    """Return the codes of the problems with commits that a run would push."""
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    with pytest.raises(CommitRejected) as caught:
        await check(ours, collected(base, head, bundle), policy or CommitPolicy())
    return {problem.code for problem in caught.value.problems}


def bundle_of(base: Path, head: str) -> Path:
    git(base, "update-ref", "refs/gibil/outgoing", head)
    git(base, "bundle", "create", "-q", "../bundle", "refs/gibil/outgoing", "^refs/heads/main")
    return base.parent / "bundle"


def committed(base: Path) -> str:
    """Commit all changes of the checkout; return the commit."""
    git(base, "add", "-A")
    git(base, "commit", "-q", "-m", "new")
    return git(base, "rev-parse", "HEAD")


def child_of_main(base: Path, tree: str) -> str:
    return git(base, "commit-tree", "-m", "new", "-p", "refs/heads/main", tree)


async def test_a_tree_that_contains_itself_many_times_is_rejected(base: Path) -> None:
    blob = git(base, "rev-parse", "HEAD:file")
    tree = git(base, "mktree", given="".join(f"100644 blob {blob}\tf{n}\n" for n in range(10)).encode())
    for _ in range(12):  # 10^13 paths
        tree = git(base, "mktree", given="".join(f"040000 tree {tree}\td{n}\n" for n in range(10)).encode())
    head = child_of_main(base, tree)
    output = await rejected(base, head, bundle_of(base, head))
    assert f"change more than {MOST_FILES:,} files" in output


async def test_endless_names_are_rejected(base: Path) -> None:
    blob = git(base, "rev-parse", "HEAD:file")
    tree = git(base, "mktree", given="".join(f"100644 blob {blob}\t{n:04}{'x' * 4000}\n" for n in range(3000)).encode())
    head = child_of_main(base, tree)
    assert "longer than 8 MiB" in await rejected(base, head, bundle_of(base, head))


async def test_endless_messages_are_rejected(base: Path) -> None:
    tree = git(base, "rev-parse", "HEAD^{tree}")
    parent = git(base, "rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor {WHO}\ncommitter {WHO}\n\n".encode() + b"x" * 20_000_000
    head = git(base, "hash-object", "-t", "commit", "-w", "--stdin", given=text)
    assert "longer than 8 MiB" in await rejected(base, head, bundle_of(base, head))


async def test_a_compressed_object_of_half_a_gigabyte_is_rejected(base: Path) -> None:
    tree = git(base, "rev-parse", "HEAD^{tree}")
    parent = git(base, "rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor {WHO}\ncommitter {WHO}\n\n".encode() + b"x" * 500_000_000
    head = hashlib.sha1(b"commit %d\0" % len(text) + text).hexdigest()
    bundle = base.parent / "bundle"
    bundle.write_bytes(header(base, head) + pack([(1, text, b"")]))
    assert bundle.stat().st_size < 1_000_000
    assert "needs more than 192 MiB of memory" in await rejected(base, head, bundle)


async def test_a_delta_that_expands_to_gigabytes_is_rejected(base: Path) -> None:
    start = os.urandom(64) * 1024  # 64 KiB, which each level multiplies by 256
    levels = []
    size = len(start)
    name = hashlib.sha1(b"blob %d\0" % size + start).digest()
    copy = bytes([0x80 | 0x10 | 0x20 | 0x40]) + struct.pack("<I", size)[:3]
    levels.append((7, varint(size) + varint(size * 40_000) + copy * 40_000, name))  # 2.6 GB
    tree = git(base, "rev-parse", "HEAD^{tree}")
    parent = git(base, "rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor {WHO}\ncommitter {WHO}\n\nnew\n".encode()
    head = hashlib.sha1(b"commit %d\0" % len(text) + text).hexdigest()
    bundle = base.parent / "bundle"
    bundle.write_bytes(header(base, head) + pack([(1, text, b""), (3, start, b""), *levels]))
    assert bundle.stat().st_size < 1_000_000
    assert "needs more than 192 MiB of memory" in await rejected(base, head, bundle)


async def test_a_large_file_is_accepted(base: Path) -> None:
    (base / "large").write_bytes(os.urandom(1_000_000) * 60)
    git(base, "checkout", "-q", "-b", "topic")
    git(base, "add", "-A")
    git(base, "commit", "-q", "-m", "A large file\n\nand why")
    head = git(base, "rev-parse", "HEAD")
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    checked = await check(ours, collected(base, head, bundle_of(base, head)), policy_of_push(False))
    assert (checked.subjects, checked.files, checked.bytes) == (("A large file",), ("large",), 60_000_000)


async def test_names_and_messages_with_any_characters_are_read_completely(base: Path) -> None:
    git(base, "checkout", "-q", "-b", "topic")
    names = ["prüfung", "line\u2028end", "-x", 'quote"d', "a b", "*"]
    for name in names:
        (base / name).write_text(name)
    git(base, "add", "-A")
    git(base, "mv", "file", "moved")
    git(base, "commit", "-q", "-m", "Grüße\u2028and more")
    git(base, "commit", "-q", "--allow-empty", "--allow-empty-message", "-m", "")
    head = git(base, "rev-parse", "HEAD")
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    checked = await check(ours, collected(base, head, bundle_of(base, head)), CommitPolicy())
    assert checked.subjects == ("", "Grüße\u2028and more")
    assert sorted(checked.files) == sorted([*names, "file", "moved"])


async def test_a_broken_bundle_is_rejected(base: Path) -> None:
    bundle = base.parent / "bundle"
    bundle.write_bytes(header(base, "1" * 40) + os.urandom(1000))
    assert await rejected(base, "1" * 40, bundle)


@pytest.mark.parametrize(
    "target",
    ["/etc/passwd", "../outside", "x/../../outside", ".git/config", ".GIT/hooks/post-checkout", "~/x", "", "a" * 5000],
    ids=lambda target: target[:30] or "empty",
)
async def test_a_link_out_of_the_repository_is_rejected(base: Path, target: str) -> None:
    link = git(base, "hash-object", "-w", "--stdin", given=target.encode())
    head = child_of_main(base, tree_of(base, f"120000 blob {link}\tlink"))
    assert await problems(base, head, bundle_of(base, head)) == {"SYMLINK"}


@pytest.mark.parametrize("name", [".claude", "sub/.cursor", ".vscode", ".github"])
async def test_a_link_can_not_replace_a_protected_folder(base: Path, name: str) -> None:
    """Its target has the files that the protected folder would have."""
    git(base, "checkout", "-q", "-b", "topic")
    (base / "tools").mkdir()
    (base / "tools" / "settings.json").write_text("{}")
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).symlink_to("../tools" if "/" in name else "tools")
    assert await problems(base, committed(base), bundle_of(base, "HEAD")) == {"PROTECTED"}


async def test_many_changes_with_long_names_do_not_block_the_event_loop(base: Path) -> None:
    """Commits of a hundred files each, whose names look like those of protected files."""
    name = "_".join(f"x{each.strip('*/').replace('/', '_')}x" for each in INSTRUCTION_FILES)[:250]
    given = []
    for number in range(30):
        given.append(f"commit refs/heads/topic\ncommitter {WHO}\ndata 1\nx\n" + "from refs/heads/main^0\n" * (not number))
        given += [f"M 100644 inline {name}{file}\ndata 3\n{number:03}\n" for file in range(100)]
    git(base, "fast-import", "--quiet", given="".join(given).encode())
    head = git(base, "rev-parse", "topic")
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            started = time.monotonic()
            await asyncio.sleep(0.01)
            longest_s = max(longest_s, time.monotonic() - started)

    watching = asyncio.create_task(watch())
    checked = await check(ours, collected(base, head, bundle_of(base, head)), CommitPolicy())
    watching.cancel()
    assert (len(checked.commits), len(checked.files)) == (30, 100)
    assert longest_s < patient(2)


def test_hostile_headers_of_commits_take_linear_time() -> None:
    """A header may have megabytes, unlike a message."""
    started = time.process_time()
    assert checks._NAMES_AND_TIMES.sub(b"", b"tree x\n" + b"1" * 600_000 + b" +0000\n") == b"\n"
    checks._NAMES_AND_TIMES.sub(b"", b"1" * 1_000_000)
    assert time.process_time() - started < patient(1)


LINKED = {
    "file": ({"docs/rules.md": "1"}, {"CLAUDE.md": "docs/rules.md"}, "docs/rules.md"),
    "upwards": ({"rules.md": "1"}, {"sub/AGENTS.md": "../rules.md"}, "rules.md"),
    "folder": ({"tools/agent/settings.json": "1"}, {".claude": "tools/agent"}, "tools/agent/settings.json"),
    "new file": ({"tools/agent/x": "1"}, {".claude": "./tools//agent/"}, "tools/agent/settings.json"),
    "two links": ({"a/x.md": "1"}, {"GEMINI.md": "b", "b": "c/x.md", "c": "a"}, "a/x.md"),
    "case": ({"rules.md": "1"}, {"CLAUDE.md": "rules.md"}, "Rules.md"),
}


@pytest.mark.parametrize(("files", "links", "changed"), LINKED.values(), ids=LINKED)
@pytest.mark.parametrize("policy", [CommitPolicy(), policy_of_push(False)], ids=["run", "push"])
async def test_the_target_of_a_protected_link_is_protected(
    tmp_path: Path, files: dict[str, str], links: dict[str, str], changed: str, policy: CommitPolicy
) -> None:
    base = repository(tmp_path / "work", files)
    for name, target in links.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).symlink_to(target)
    committed(base)
    git(base, "checkout", "-q", "-b", "topic")
    (base / changed).write_text("obey")
    assert "PROTECTED" in await problems(base, committed(base), bundle_of(base, "HEAD"), policy)


async def test_links_out_of_the_repository_and_in_circles_protect_nothing(tmp_path: Path) -> None:
    base = repository(tmp_path / "work", {"x": "1"})
    for name, target in {"CLAUDE.md": "../x", "AGENTS.md": "/x", "GEMINI.md": "QWEN.md", "QWEN.md": "GEMINI.md"}.items():
        (base / name).symlink_to(target)
    committed(base)
    git(base, "checkout", "-q", "-b", "topic")
    (base / "x").write_text("2")
    ours = tmp_path / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    checked = await check(ours, collected(base, committed(base), bundle_of(base, "HEAD")), CommitPolicy())
    assert checked.files == ("x",)


@pytest.mark.parametrize("sign", ["\u061c", "\u200f", "\u202e", "\u2066", "\u2069"])
async def test_names_that_are_shown_in_another_order_are_rejected(base: Path, sign: str) -> None:
    """https://nvd.nist.gov/vuln/detail/CVE-2021-42574"""
    git(base, "checkout", "-q", "-b", "topic")
    (base / f"a{sign}b").write_text("1")
    assert await problems(base, committed(base), bundle_of(base, "HEAD")) == {"NAME"}


async def test_a_folder_can_not_replace_a_protected_file_that_is_left_out(tmp_path: Path) -> None:
    """The deletion of AGENTS.md is outside of `paths`, so it is left out; the new folder would need it."""
    base = repository(tmp_path / "work", {"AGENTS.md": "rules", "a.py": "1"})
    git(base, "checkout", "-q", "-b", "topic")
    (base / "AGENTS.md").unlink()
    committed(base)
    (base / "AGENTS.md").mkdir()
    (base / "AGENTS.md" / "x.py").write_text("1")
    policy = CommitPolicy(paths=("**/*.py",))
    assert await problems(base, committed(base), bundle_of(base, "HEAD"), policy) == {"OUTSIDE_PATHS"}


async def test_a_file_can_not_replace_a_folder_with_protected_files_that_are_left_out(tmp_path: Path) -> None:
    base = repository(tmp_path / "work", {"src/CLAUDE.md": "rules", "a.py": "1"})
    git(base, "checkout", "-q", "-b", "topic")
    (base / "src" / "CLAUDE.md").unlink()
    (base / "src").rmdir()
    (base / "src").write_text("1")
    policy = CommitPolicy(paths=("*",))
    assert await problems(base, committed(base), bundle_of(base, "HEAD"), policy) == {"OUTSIDE_PATHS"}


async def test_what_is_created_again_has_exactly_the_checked_changes(tmp_path: Path) -> None:
    base = repository(tmp_path / "work", {"AGENTS.md": "rules"})
    ours = tmp_path / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/*:refs/heads/*")
    main, blob = git(base, "rev-parse", "HEAD"), git(base, "rev-parse", "HEAD:AGENTS.md")
    change = Change(path="AGENTS.md/x.py", old_mode=None, old=None, mode="100644", new=blob)
    with pytest.raises(our_git.GitError, match="other changes than those that were checked"):
        await recreate(ours, "new", [main], [change])
    fine = replace(change, path="sub/x.py")
    created = await recreate(ours, "new", [main], [fine])
    assert git(ours, "ls-tree", "-r", "--name-only", created).split("\n") == ["AGENTS.md", "sub/x.py"]


async def test_all_files_of_a_commit_are_read_with_bounded_memory(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head of a pull request may be a tree that contains itself many times."""
    blob = git(base, "rev-parse", "HEAD:file")
    tree = git(base, "mktree", given="".join(f"100644 blob {blob}\tf{n}\n" for n in range(100)).encode())
    for _ in range(4):  # 10^10 paths
        tree = git(base, "mktree", given="".join(f"040000 tree {tree}\td{n}\n" for n in range(100)).encode())
    head = child_of_main(base, tree)
    change = Change(path="x", old_mode=None, old=None, mode="100644", new=blob)
    monkeypatch.setattr(recreating, "ALL_FILES", our_git.Limits(memory_bytes=64 * 1024**2))
    with pytest.raises(our_git.TooExpensive, match="of memory"):
        await recreate(base / ".git", "new", [head], [change])


@pytest.mark.parametrize(("old", "new"), [("Docs", "docs"), ("Main.py", "main.py")])
async def test_a_new_name_can_not_overwrite_a_file_whose_deletion_is_left_out(tmp_path: Path, old: str, new: str) -> None:
    base = repository(tmp_path / "work", {"Docs/a.txt": "1", "Main.py": "1"})
    git(base, "checkout", "-q", "-b", "topic")
    git(base, "mv", old, new)
    policy = CommitPolicy(paths=(new,))
    assert await problems(base, committed(base), bundle_of(base, "HEAD"), policy) == {"SAME_NAME"}


@pytest.mark.parametrize("policy", [CommitPolicy(), policy_of_push(False)], ids=["run", "push"])
async def test_a_protected_file_can_not_be_changed_and_changed_back(base: Path, policy: CommitPolicy) -> None:
    git(base, "checkout", "-q", "-b", "topic")
    (base / "AGENTS.md").write_text("obey")
    committed(base)
    (base / "AGENTS.md").unlink()
    assert await problems(base, committed(base), bundle_of(base, "HEAD"), policy) == {"PROTECTED"}


SECRET = "correct-horse-battery"


async def secrets_in_a_push(base: Path, head: str) -> list[str]:
    """Return the problems with commits that a user would push."""
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    policy = replace(policy_of_push(False), secrets=Redactor([SECRET]))
    with pytest.raises(CommitRejected) as caught:
        await check(ours, collected(base, head, bundle_of(base, head)), policy)
    assert {problem.code for problem in caught.value.problems} == {"SECRET"}
    assert SECRET not in caught.value.message
    return [problem.message for problem in caught.value.problems]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32-le"])
async def test_a_known_secret_in_another_encoding_is_found(base: Path, encoding: str) -> None:
    git(base, "checkout", "-q", "-b", "topic")
    (base / "x").write_bytes(f"first\n{SECRET}\n".encode(encoding))
    assert await secrets_in_a_push(base, committed(base)) == ["x, line 2 contains the value of a secret of this run"]


@pytest.mark.parametrize("field", ["author A <{}@example.com> 1 +0000", f"author {WHO}\ncommitter {WHO}\nnote {{}}"])
async def test_a_secret_in_the_header_of_a_commit_is_found(base: Path, field: str) -> None:
    tree, parent = git(base, "rev-parse", "HEAD^{tree}"), git(base, "rev-parse", "HEAD")
    lines = field.format(SECRET).split("\n")
    if len(lines) == 1:
        lines.append(f"committer {WHO}")
    text = "\n".join([f"tree {tree}", f"parent {parent}", *lines, "", "new", ""])
    head = git(base, "hash-object", "-t", "commit", "-w", "--literally", "--stdin", given=text.encode())
    assert "the header of commit" in "".join(await secrets_in_a_push(base, head))


async def test_a_secret_in_a_merge_that_a_later_commit_removes_is_found(base: Path) -> None:
    git(base, "checkout", "-q", "-b", "side")
    (base / "side").write_text("1")
    committed(base)
    git(base, "checkout", "-q", "-b", "topic", "main")
    (base / "topic").write_text("1")
    committed(base)
    git(base, "merge", "-q", "--no-ff", "--no-commit", "side")
    (base / "leak").write_text(SECRET)
    committed(base)
    (base / "leak").unlink()
    assert await secrets_in_a_push(base, committed(base)) == ["leak contains the value of a secret of this run"]


async def test_a_secret_in_a_new_branch_that_was_merged_is_found(base: Path) -> None:
    git(base, "checkout", "-q", "--orphan", "other")
    (base / "leak").write_text(SECRET)
    committed(base)
    (base / "leak").write_text("")
    committed(base)
    git(base, "checkout", "-q", "-b", "topic", "main")
    git(base, "merge", "-q", "--allow-unrelated-histories", "-m", "merge", "other")
    head = git(base, "rev-parse", "HEAD")
    assert await secrets_in_a_push(base, head) == ["leak contains the value of a secret of this run"]


async def test_a_token_in_other_encodings_is_not_taken_for_an_old_one(tmp_path: Path) -> None:
    """The scanner's offsets are those of the decoded text, where the old file has something else."""
    token = "ghp_" + "".join(random.Random(3).choices("abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789", k=36))
    base = repository(tmp_path / "work", {"x": ""})
    git(base, "checkout", "-q", "main")
    old = "a = 1\n" * 400
    (base / "x").write_bytes(old.encode("utf-16"))
    committed(base)
    git(base, "checkout", "-q", "-b", "topic")
    (base / "x").write_bytes(f"{old}{token}\n".encode("utf-16"))
    assert await problems(base, committed(base), bundle_of(base, "HEAD")) == {"SECRET"}


async def test_thousands_of_tokens_in_one_file_are_not_compared_one_by_one(tmp_path: Path) -> None:
    letters = random.Random(5)
    tokens = ["ghp_" + "".join(letters.choices("abcdefghijkmnpqrstuvwxyz23456789", k=36)) for _ in range(3000)]
    base = repository(tmp_path / "work", {"x": "\n".join(tokens)})
    git(base, "checkout", "-q", "-b", "topic")
    (base / "x").write_text("\n".join(reversed(tokens)))
    head = committed(base)
    ours = tmp_path / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/*:refs/heads/*")
    with pytest.raises(CommitRejected, match="contains more than 500 texts that look like secrets"):
        await check(ours, collected(base, head, bundle_of(base, "HEAD")), CommitPolicy())


HIDDEN = """diff --git a/.github/workflows/x.yml b/.github/workflows/x.yml
new file mode 100644
--- /dev/null
+++ b/.github/workflows/x.yml
@@ -0,0 +1 @@
+on: push
"""


@pytest.mark.parametrize(
    "message",
    [
        f"new\n\n{HIDDEN}",
        f"new\n\n---\n{HIDDEN}",
        f"new\n\nFrom {'1' * 40} Mon Sep 17 00:00:00 2001\nFrom: B <b@x>\nSubject: x\n\n---\n{HIDDEN}\n",
        "new\n\nFrom: B <b@x>\nDate: Mon, 17 Sep 2001 00:00:00 +0000\n\ntext",
    ],
    ids=["diff", "dashes", "mail", "header"],
)
async def test_a_message_can_not_add_changes_to_a_patch(base: Path, message: str) -> None:
    """`git am` would apply a diff in a message, or take a part of it for the next mail."""
    git(base, "checkout", "-q", "-b", "topic")
    (base / "file").write_text("2\n")
    git(base, "commit", "-q", "-a", "--cleanup=verbatim", "-F", "-", given=message.encode())
    head = git(base, "rev-parse", "HEAD")
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    git(ours, "fetch", "-q", str(base), "+refs/heads/main:refs/heads/main")
    checked = await check(ours, collected(base, head, bundle_of(base, head)), CommitPolicy())
    mails = await patch(ours, checked)
    assert mails is not None
    git(base, "checkout", "-q", "-b", "applied", "main")
    git(base, "am", "-q", given=mails)
    assert git(base, "rev-parse", "applied^{tree}") == git(base, "rev-parse", "topic^{tree}")
    assert git(base, "rev-list", "--count", "main..applied") == "1"
    assert git(base, "log", "-1", "--format=%an <%ae>") == git(base, "log", "-1", "--format=%an <%ae>", "topic")


async def test_a_file_below_a_link_can_not_be_described(base: Path) -> None:
    """Two entries of one name: some programs would check the folder and write through the link."""
    blob = git(base, "rev-parse", "HEAD:file")
    folder = git(base, "mktree", given=f"100644 blob {blob}\tx\n".encode())
    link = git(base, "hash-object", "-w", "--stdin", given=b"/etc")
    entries = b"120000 x\0" + bytes.fromhex(link) + b"40000 x\0" + bytes.fromhex(folder)
    head = child_of_main(base, git(base, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", given=entries))
    assert await problems(base, head, bundle_of(base, head)) == {"MALFORMED"}


@pytest.mark.parametrize("name", [".git", ".GIT", "git~1", ".g\u200cit", "..", "."])
async def test_a_git_folder_in_a_tree_is_rejected(base: Path, name: str) -> None:
    blob = git(base, "rev-parse", "HEAD:file")
    folder = git(base, "mktree", given=f"100644 blob {blob}\tconfig\n".encode())
    entries = f"40000 {name}\0".encode() + bytes.fromhex(folder)
    head = child_of_main(base, git(base, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", given=entries))
    assert await problems(base, head, bundle_of(base, head)) == {"GIT_FOLDER"}


async def test_submodules_and_their_settings_are_rejected(base: Path) -> None:
    settings = git(base, "hash-object", "-w", "--stdin", given=b'[submodule "x"]\n\tpath = x\n\turl = https://example.com/x\n')
    head = child_of_main(base, tree_of(base, f"100644 blob {settings}\t.gitmodules\n160000 commit {'1' * 40}\tx"))
    assert await problems(base, head, bundle_of(base, head)) == {"SUBMODULE", "GIT_SETTINGS"}


async def test_settings_of_submodules_that_run_programs_are_rejected(base: Path) -> None:
    settings = git(base, "hash-object", "-w", "--stdin", given=b'[submodule "x"]\n\tpath = x\n\turl = -u./payload\n')
    head = child_of_main(base, tree_of(base, f"100644 blob {settings}\t.gitmodules"))
    assert await problems(base, head, bundle_of(base, head)) == {"SUBMODULE"}


@pytest.mark.parametrize("name", ["FILE", "File", "file.", "file ", "f\u200cile"])
async def test_names_that_overwrite_each_other_on_some_file_systems_are_rejected(base: Path, name: str) -> None:
    blob = git(base, "rev-parse", "HEAD:file")
    head = child_of_main(base, tree_of(base, f"100644 blob {blob}\t{name}"))
    assert await problems(base, head, bundle_of(base, head)) == {"SAME_NAME"}


async def test_a_replaced_object_is_not_read_in_place_of_the_real_one(base: Path) -> None:
    link = git(base, "hash-object", "-w", "--stdin", given=b"/etc")
    head = child_of_main(base, tree_of(base, f"120000 blob {link}\tlink"))
    harmless = git(base, "rev-parse", "refs/heads/main")
    git(base, "update-ref", f"refs/replace/{head}", harmless)
    git(base, "update-ref", "refs/gibil/outgoing", head, GIT_NO_REPLACE_OBJECTS="1")
    git(
        base,
        "bundle",
        "create",
        "-q",
        "../bundle",
        "refs/gibil/outgoing",
        f"refs/replace/{head}",
        "^refs/heads/main~0",
        GIT_NO_REPLACE_OBJECTS="1",
    )
    assert await problems(base, head, base.parent / "bundle") == {"SYMLINK"}


async def test_only_the_commits_ref_of_a_bundle_is_read(base: Path) -> None:
    git(base, "checkout", "-q", "-b", "topic")
    (base / "file").write_text("2")
    git(base, "commit", "-q", "-a", "-m", "new")
    head = git(base, "rev-parse", "HEAD")
    bundle = bundle_of(base, head)
    first, _, pack_data = bundle.read_bytes().partition(b"\n\n")
    names = ("refs/heads/main", "HEAD", "refs/replace/" + head, "refs/heads/../../config", "refs/gibil/incoming")
    more = "".join(f"\n{head} {name}" for name in names).encode()
    bundle.write_bytes(first + more + b"\n\n" + pack_data)
    ours = base.parent / "ours.git"
    await our_git.create_repository(ours)
    main = git(base, "rev-parse", "refs/heads/main")
    git(ours, "fetch", "-q", str(base), f"{main}:refs/heads/main")
    config = (ours / "config").read_bytes()
    checked = await check(ours, collected(base, head, bundle), CommitPolicy())
    assert checked.files == ("file",)
    assert git(ours, "for-each-ref", "--format=%(refname) %(objectname)").split("\n") == [
        f"refs/gibil/incoming {head}", f"refs/heads/main {main}",
    ]  # fmt: skip
    assert (ours / "config").read_bytes() == config


async def test_a_bundle_that_lacks_objects_is_rejected(base: Path) -> None:
    tree = git(base, "mktree", "--missing", given=f"100644 blob {'1' * 40}\tx\n".encode())
    parent = git(base, "rev-parse", "HEAD")
    text = f"tree {tree}\nparent {parent}\nauthor {WHO}\ncommitter {WHO}\n\nnew\n".encode()
    head = hashlib.sha1(b"commit %d\0" % len(text) + text).hexdigest()
    bundle = base.parent / "bundle"
    content = b"100644 x\0" + bytes.fromhex("1" * 40)
    bundle.write_bytes(header(base, head) + pack([(1, text, b""), (2, content, b"")]))
    assert await rejected(base, head, bundle)


def tree_of(base: Path, entries: str) -> str:
    """Create the tree of the first commit with more entries."""
    given = git(base, "ls-tree", "HEAD") + "\n" + entries + "\n"
    return git(base, "mktree", "--missing", given=given.encode())


# --- handmade packs: https://git-scm.com/docs/gitformat-pack ---


def header(base: Path, head: str) -> bytes:
    return f"# v2 git bundle\n-{git(base, 'rev-parse', 'refs/heads/main')}\n{head} refs/gibil/outgoing\n\n".encode()


def varint(number: int) -> bytes:
    out = bytearray()
    while True:
        out.append(number & 0x7F | (0x80 if number > 0x7F else 0))
        number >>= 7
        if not number:
            return bytes(out)


def pack(objects: list[tuple[int, bytes, bytes]]) -> bytes:
    """Entries are (type, content, name of the base): 1 commit, 3 blob, 7 delta against a base."""
    out = bytearray(b"PACK" + struct.pack(">II", 2, len(objects)))
    for kind, content, name in objects:
        size = len(content)
        out.append(kind << 4 | size & 0xF | (0x80 if size > 0xF else 0))
        size >>= 4
        if size:
            out += varint(size)
        out += name + zlib.compress(content, 9)
    return bytes(out) + hashlib.sha1(bytes(out)).digest()


def test_handmade_packs_are_valid(base: Path) -> None:
    (base / "x.pack").write_bytes(pack([(3, b"hello", b"")]))
    done = subprocess.run(["git", "index-pack", "x.pack"], cwd=base, capture_output=True)
    assert done.returncode == 0, done.stderr
