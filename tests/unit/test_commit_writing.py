"""Commits that the bot writes: their messages, the addresses in them, and large files."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from gibil_bot.commits.writing import from_machine, with_trailers, write
from gibil_bot.github.api.git_data import noreply_address
from gibil_bot.ports import GitCommit, GitData, TreeEntry
from tests.doubles.patience import patient
from tests.doubles.repositories import git

RUN = ("Gibil-Run", "https://bot.dev/runs/1")
ADA = ("Co-authored-by", "ada <7+ada@users.noreply.github.com>")
RUN_LINE = "Gibil-Run: https://bot.dev/runs/1"
ADA_LINE = "Co-authored-by: ada <7+ada@users.noreply.github.com>"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Format\n", f"Format\n\n{ADA_LINE}\n{RUN_LINE}\n"),
        ("fix: a colon\n", f"fix: a colon\n\n{ADA_LINE}\n{RUN_LINE}\n"),
        ("Format\n\nWhy:  \n  it helps\n\n\n", f"Format\n\nWhy:  \n  it helps\n\n{ADA_LINE}\n{RUN_LINE}\n"),
        ("Format\n\nSigned-off-by: Bo\n", f"Format\n\nSigned-off-by: Bo\n{ADA_LINE}\n{RUN_LINE}\n"),
        (f"Format\n\n{ADA_LINE}\n", f"Format\n\n{ADA_LINE}\n{RUN_LINE}\n"),
        ("Format\n\ngibil-run: https://evil.example\n", f"Format\n\n{ADA_LINE}\n{RUN_LINE}\n"),
    ],
)
def test_a_message_ends_with_one_block_of_trailers(message: str, expected: str) -> None:
    assert with_trailers(message, [ADA, RUN]) == expected
    assert with_trailers(expected, [ADA, RUN]) == expected


@pytest.mark.parametrize("line", ["Gibil-Run: x", "gibil-run : x", "GIBIL-RUN:x", "\rGibil-Run: x", "Gibil-Run\t: x"])
def test_a_machine_can_not_name_another_run(line: str) -> None:
    assert with_trailers(f"Format\n\nbody\n{line}\n", [RUN]) == f"Format\n\nbody\n\n{RUN_LINE}\n"


@pytest.mark.parametrize(
    "line",
    [
        "Co-authored-by: Linus <torvalds@example.com>",
        "co-authored-by : Linus <torvalds@example.com>",
        "Signed-off-by: Linus <torvalds@example.com>",
        "Reviewed-by: Linus <torvalds@example.com>",
        "on-behalf-of: @acme <acme@example.com>",
        "skip-checks: true",
    ],
)
@pytest.mark.parametrize("hidden", ["", "\x01", "\x1b", "\x9f"])
def test_a_machine_can_not_speak_for_a_person_or_skip_checks(line: str, hidden: str) -> None:
    """Whatever is deleted from the line, which would have hidden it."""
    given = f"{hidden}{line[:3]}{hidden}{line[3:]}"
    assert from_machine(f"Format\n\n{given}\nFixes: #1\n") == f"Format\n\n> {line}\nFixes: #1\n"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Format [skip ci]", "Format (skip ci)"),
        ("[CI Skip] x [no ci][skip actions] [skip-netlify]", "(CI Skip) x (no ci)(skip actions) (skip-netlify)"),
        ("x ***NO_CI***", "x NO_CI"),
        ("[1] see [docs], [no], [skip]", "[1] see [docs], [no], [skip]"),
        ("a\r\nb\rc\x1b[31m\x07", "a\nb\nc[31m"),
        ("[skip\x01 ci] [\x7fci skip] ***NO\x85_CI***", "(skip ci) (ci skip) NO_CI"),
        ("******NO_CI*****", "NO_CI"),
    ],
)
def test_words_that_skip_checks_have_no_effect_in_a_machines_message(message: str, shown: str) -> None:
    assert from_machine(message) == shown


@pytest.mark.parametrize("part", ["*", "[skip ", "[ ", "a-", "x-by", " "])
def test_hostile_messages_take_linear_time(part: str) -> None:
    message = part * (65_536 // len(part))
    started = time.process_time()
    from_machine(message)
    with_trailers(message, [ADA, RUN])
    assert time.process_time() - started < patient(1)


def test_a_message_without_trailers_keeps_its_text() -> None:
    assert with_trailers("Format\n\n  indented  \n", [("Gibil-Run", "")]) == "Format\n\n  indented  \n"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://api.github.com", "github.com"),
        ("https://api.acme.ghe.com", "acme.ghe.com"),
        ("https://git.acme.dev:8443/api/v3", "git.acme.dev"),
    ],
)
def test_the_noreply_address_has_the_users_number_and_host(url: str, host: str) -> None:
    assert noreply_address(url, 7, "gibil[bot]") == f"7+gibil[bot]@users.noreply.{host}"


class Sent:
    """GitHub, with the sizes of the blobs that it got."""

    def __init__(self, tree: str, *, verified: bool = True) -> None:
        self._tree, self._verified = tree, verified
        self.blobs: list[int] = []

    async def create_blob(self, repository: str, content: bytes) -> str:
        self.blobs.append(len(content))
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    async def create_tree(self, repository: str, base_tree: str | None, entries: Sequence[TreeEntry]) -> str:
        return self._tree

    async def create_commit(self, repository: str, message: str, tree: str, parents: Sequence[str]) -> GitCommit:
        return GitCommit(sha="1" * 40, tree=tree, verified=self._verified)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "base")
    return tmp_path


def committed(work: Path) -> tuple[str, str, str]:
    """Commit all files; return the base, the head and its tree."""
    git(work, "add", "-A")
    git(work, "-c", "core.compression=0", "commit", "-qm", "x")
    base, head, tree = git(work, "rev-parse", "HEAD~", "HEAD", "HEAD^{tree}").split()
    return base, head, tree


async def test_files_that_are_larger_together_than_one_read_are_written(work: Path) -> None:
    for number in range(3):
        (work / str(number)).write_bytes(b"\0" * (11 * 1024**2 + number))
    base, head, tree = committed(work)
    data = Sent(tree)
    await write(cast(GitData, data), "o/r", work / ".git", base=base, head=head)
    assert sorted(data.blobs) == [11 * 1024**2 + number for number in range(3)]


async def test_a_commit_that_github_does_not_verify_is_logged(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    (work / "a").write_text("a")
    base, head, tree = committed(work)
    await write(cast(GitData, Sent(tree)), "o/r", work / ".git", base=base, head=head)
    assert caplog.text == ""
    await write(cast(GitData, Sent(tree, verified=False)), "o/r", work / ".git", base=base, head=head)
    assert "o/r: GitHub shows 1111111 as unverified" in caplog.text
