"""What detection reads on a machine: paths and contents of a real commit, within limits, whatever the names are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.errors import MachineLost, SSHError
from gibil_bot.model import Result
from gibil_bot.runs.project_reader import read_project
from gibil_bot.runs.sources import SourceError
from gibil_bot.scripts import project as scripts
from gibil_bot.scripts.project import ListedFile, affordable, parse_listing, parse_objects
from tests.doubles.patience import patient
from tests.doubles.repositories import ADA


class LocalShell:
    """Runs scripts on this computer, with the limit on output of a real connection."""

    def __init__(self) -> None:
        self.commands = 0

    async def run(self, script: str, *, stdin: bytes = b"", timeout_s: float = 60.0, most_bytes: int = 1, **_: Any) -> Result:
        self.commands += 1
        done = subprocess.run(["sh", "-c", script], input=stdin, capture_output=True, timeout=patient(60))
        if len(done.stdout) + len(done.stderr) > most_bytes:
            raise SSHError("too much output")
        return Result(exit_status=done.returncode, stdout=done.stdout, stderr=done.stderr)


def git(where: Path, *arguments: str, stdin: bytes = b"") -> str:
    done = subprocess.run(
        ["git", "-C", str(where), *arguments],
        env={**os.environ, **ADA},
        input=stdin,
        capture_output=True,
        timeout=patient(60),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "it's a folder"
    work.mkdir()
    git(work, "init", "-q", "-b", "main")
    return work


def commit(work: Path, files: dict[str | bytes, bytes]) -> None:
    for name, content in files.items():
        path = os.path.join(os.fsencode(work), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(content)
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "x")


def everything(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(paths))


async def read(work: Path, wanted: Any = everything) -> tuple[frozenset[str], dict[str, bytes]]:
    return await read_project(LocalShell(), wanted, workspace=str(work))  # type: ignore[arg-type]


async def test_the_paths_of_the_commit_and_the_wanted_contents_are_read(work: Path) -> None:
    commit(work, {"package.json": b"{}", "src/a.py": b"a = 1\n", "src/deep/empty": b"", "data.bin": b"\0\n\xff" * 10})
    (work / "package.json").write_text("changed and not committed")
    paths, files = await read(work)
    assert paths == {"package.json", "src/a.py", "src/deep/empty", "data.bin"}
    assert files == {"package.json": b"{}", "src/a.py": b"a = 1\n", "src/deep/empty": b"", "data.bin": b"\0\n\xff" * 10}
    assert (await read(work, lambda _: ("src/a.py", "missing")))[1] == {"src/a.py": b"a = 1\n"}


async def test_two_commands_are_enough(work: Path) -> None:
    commit(work, {"a": b"1", "b": b"2"})
    shell = LocalShell()
    await read_project(shell, everything, workspace=str(work))  # type: ignore[arg-type]
    assert shell.commands == 2


async def test_links_are_listed_and_not_followed_and_submodules_are_left_out(work: Path) -> None:
    commit(work, {"real": b"content"})
    (work / "link").symlink_to("/etc/passwd")
    (work / "folder").symlink_to("/")
    git(work, "add", "-A")
    git(work, "update-index", "--add", "--cacheinfo", f"160000,{'a' * 40},module")
    git(work, "commit", "-q", "-m", "links")
    paths, files = await read(work)
    assert paths == {"real", "link", "folder"}
    assert files == {"real": b"content"}


async def test_filters_and_attributes_of_the_repository_do_not_run(work: Path, tmp_path: Path) -> None:
    commit(work, {".gitattributes": b"* filter=evil ident\n", "a": b"$Id$"})
    git(work, "config", "filter.evil.smudge", f"touch {tmp_path}/ran; cat")
    assert (await read(work))[1]["a"] == b"$Id$"
    assert not (tmp_path / "ran").exists()


async def test_hostile_names_are_left_out_or_read_as_they_are(work: Path) -> None:
    names: dict[str | bytes, bytes] = {
        "a b": b"1", "-rf": b"2", "$(touch x)": b"3", "'\"`\\": b"4", "äß/ü": b"5", "a\tb": b"6", "a\nb": b"7", b"\xff": b"8",
        "\u202egnp.exe": b"9", "x\x1b[31m": b"10",
    }  # fmt: skip
    commit(work, names)
    paths, files = await read(work)
    assert paths == {"a b", "-rf", "$(touch x)", "'\"`\\", "äß/ü"}
    assert sorted(files.values()) == [b"1", b"2", b"3", b"4", b"5"]


async def test_files_of_the_top_folder_are_found_behind_any_number_of_others(work: Path) -> None:
    blob = git(work, "hash-object", "-w", "--stdin", stdin=b"x")
    entries = "".join(f"100644 {blob} 0\ta/{number:06}-{'x' * 100}\n" for number in range(30_000))
    git(work, "update-index", "--index-info", stdin=f"{entries}100644 {blob} 0\tpyproject.toml\n".encode())
    git(work, "commit", "-q", "-m", "large")
    paths, files = await read(work, lambda paths: [path for path in paths if path == "pyproject.toml"])
    assert files == {"pyproject.toml": b"x"}
    assert 1000 < len(paths) <= scripts.MOST_PATHS


async def test_large_files_are_not_read_and_others_within_the_limit_together(work: Path) -> None:
    size = scripts.FILE_BYTES
    commit(work, {"large": b"x" * (size + 1), **{f"file-{number:02}": bytes([number]) * size for number in range(20)}})
    _, files = await read(work)
    assert sorted(files) == [f"file-{number:02}" for number in range(scripts.CONTENT_BYTES // size)]
    assert all(len(content) == size for content in files.values())


async def test_at_most_four_hundred_files_are_read(work: Path) -> None:
    commit(work, {f"{number:03}": b"x" for number in range(500)})
    _, files = await read(work)
    assert len(files) == scripts.MOST_FILES


async def test_a_folder_without_a_commit_is_reported(work: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="The project's files can't be read: "):
        await read(work)
    with pytest.raises(SourceError, match="The project's files can't be read: "):
        await read(tmp_path / "missing")


class LyingShell:
    def __init__(self, *answers: bytes | Exception) -> None:
        self._answers = list(answers)

    async def run(self, script: str, **_: Any) -> Result:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Result(exit_status=0, stdout=answer, stderr=b"")


ID = "a" * 40
LISTED = f"100644 blob {ID}       3\tx\0".encode()


@pytest.mark.parametrize(
    "objects",
    [
        b"",
        f"{ID} missing\n".encode(),
        f"{ID} tree 3\nabc\n".encode(),
        f"{'b' * 40} blob 3\nabc\n".encode(),
        f"{ID} blob 4\nabcd\n".encode(),
        f"{ID} blob 3\nab".encode(),
        f"{ID} blob 3\nabcd".encode(),
        f"{ID} blob 999999999999999\n".encode(),
    ],
)
async def test_wrong_objects_are_an_error_and_not_believed(objects: bytes) -> None:
    with pytest.raises(SourceError, match="The project's files can't be read"):
        await read_project(LyingShell(LISTED, objects), everything)  # type: ignore[arg-type]


async def test_too_much_output_is_reported_and_a_lost_machine_is_passed_on() -> None:
    with pytest.raises(SourceError, match="too much output"):
        await read_project(LyingShell(SSHError("too much output")), everything)  # type: ignore[arg-type]
    with pytest.raises(MachineLost):
        await read_project(LyingShell(MachineLost("gone")), everything)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "entry",
    [
        b"", b"x", b"100644 blob \t\0", b"100644 blob " + b"g" * 40 + b" 3\tx\0", b"040000 tree " + b"a" * 40 + b" -\tx\0",
        b"100644 blob " + b"a" * 40 + b" 3\t\0", b"100644 blob " + b"a" * 40 + b" -3\tx\0", LISTED[:-1],
    ],
)  # fmt: skip
def test_entries_that_are_no_files_or_cut_off_are_left_out(entry: bytes) -> None:
    assert parse_listing(entry) == ()


def test_a_file_that_git_does_not_have_is_listed_without_a_size() -> None:
    (file,) = parse_listing(f"100644 blob {ID}     BAD\tx\0".encode())
    assert file == ListedFile(path="x", object_id=ID, size=None)
    assert affordable([file]) == ()
    assert parse_objects(b"", []) == {}
    with pytest.raises(ValueError, match="didn't return the object"):
        parse_objects(b"", [file])
