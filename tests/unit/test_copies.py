"""Copies of files and directories without a machine: limits, targets on this computer, and the reader of what arrives."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines.tools import transfer
from gibil_bot.machines.tools.copy_report import CopyReport
from gibil_bot.machines.tools.feed import Feed
from gibil_bot.machines.tools.local_targets import FileTarget, NewDirectory, local_errors, target_of
from gibil_bot.machines.tools.pack import pack
from gibil_bot.machines.tools.unpack import BadArchive, unpack
from gibil_bot.ssh.answers import BadAnswer
from tests.doubles.patience import patient


def archive(*entries: tuple[str, bytes | None], kind: bytes = tarfile.REGTYPE, link: str = "") -> io.BytesIO:
    """Return an archive of files; None as the content: an entry of that kind."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as out:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = 0o755
            if content is None:
                entry.type, entry.linkname = kind, link
            else:
                entry.size = len(content)
            out.addfile(entry, io.BytesIO(content or b""))
    made.seek(0)
    return made


def test_files_of_all_lengths_and_names_are_unpacked(tmp_path: Path) -> None:
    long = "/".join(["directory" * 5] * 20)
    files = {"a": b"", "b": b"x" * 511, "c": b"x" * 512, "d": b"x" * 513, f"{long}/e": b"e", "ü ": b"u"}
    folders = [("/".join(long.split("/")[: n + 1]), None) for n in range(20)]
    (tmp_path / "to").mkdir()
    report = CopyReport()
    unpack(archive(*folders, kind=tarfile.DIRTYPE), str(tmp_path / "to"), report)
    unpack(archive(*files.items()), str(tmp_path / "to"), report)
    assert (report.files, report.bytes, report.left_out) == (6, sum(map(len, files.values())), [])
    assert {
        str(path.relative_to(tmp_path / "to")): path.read_bytes() for path in (tmp_path / "to").rglob("*") if path.is_file()
    } == files
    assert (tmp_path / "to" / "a").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out", "..", "a/../b"])
def test_names_that_lead_out_are_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / "to").mkdir()
    report = CopyReport()
    unpack(archive((name, b"x")), str(tmp_path / "to"), report)
    assert (report.files, report.left_out_total) == (0, 1)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "to").rglob("*")) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_out_of_the_directory_and_special_files_are_left_out(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "to").mkdir()
    report = CopyReport()
    unpack(archive(("out", None), ("file", b"x"), kind=kind, link=str(tmp_path)), str(tmp_path / "to"), report)
    assert (report.files, report.bytes, [line.partition(":")[0] for line in report.left_out]) == (1, 1, ["out"])
    assert os.listdir(tmp_path / "to") == ["file"]


def extended(kind: bytes, records: bytes) -> bytes:
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, len(records)
    return header.tobuf(tarfile.PAX_FORMAT) + records.ljust(-(-len(records) // 512) * 512, b"\0")


def record(key: str, value: str) -> bytes:
    rest = f" {key}={value}\n".encode()
    return f"{len(rest) + 2}".encode() + rest


SPARSE = b"".join(
    record(f"GNU.sparse.{key}", value) for key, value in (("major", "1"), ("minor", "0"), ("name", "s"), ("realsize", "10"))
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (extended(tarfile.XGLTYPE, record("comment", "x")), "concerns all entries"),
        (extended(tarfile.XHDTYPE, SPARSE) + tarfile.TarInfo("s").tobuf(), "sparse"),
        (extended(tarfile.GNUTYPE_SPARSE, b""), "sparse"),
        (extended(tarfile.XHDTYPE, b"") * 2000, "recursion"),
        (extended(tarfile.GNUTYPE_LONGNAME, b"x" * 200) * 2000, "recursion"),
        (b"no archive" * 100, "can't be read"),
    ],
)
def test_an_archive_that_would_fill_the_memory_is_rejected(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(BadArchive, match=reason):
        unpack(io.BytesIO(content + bytes(1024)), str(tmp_path), CopyReport())
    assert list(tmp_path.iterdir()) == []


def test_the_permissions_of_directories_are_not_collected(tmp_path: Path) -> None:
    """A machine chooses their number and their length."""
    import gibil_bot.machines.tools.unpack as module

    most = 0

    class Unpacking(module._Unpacking):
        def _make_directory(self, *arguments: Any) -> None:
            nonlocal most
            super()._make_directory(*arguments)
            most = max(most, len(self._created))

    root = os.open(tmp_path, os.O_RDONLY)
    try:
        names = [(f"{a}/{b}" if b else f"{a}", None) for a in range(20) for b in range(6)]
        Unpacking(root, str(tmp_path), CopyReport(), lambda parts: None).run(archive(*names, kind=tarfile.DIRTYPE))
    finally:
        os.close(root)
    assert (most, len(list(tmp_path.iterdir()))) == (2, 20)


def test_the_number_of_entries_and_bytes_is_limited_in_both_directions(tmp_path: Path) -> None:
    content = archive(("a", b"xx"), ("b", b"xx"), ("c", b"xx")).getvalue()
    (tmp_path / "to").mkdir()
    for report, message in (
        (CopyReport(most_entries=2), "more than 2 entries"),
        (CopyReport(most_bytes=5), "larger than 5 bytes"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            unpack(io.BytesIO(content), str(tmp_path / "to"), report)
        assert caught.value.code == "TOO_LARGE"
    assert sorted(os.listdir(tmp_path / "to")) == ["a", "b"]
    (tmp_path / "to" / "c").write_bytes(b"xx")
    for report, message in (
        (CopyReport(most_entries=2), "more than 2 entries"),
        (CopyReport(most_bytes=5), "larger than 5 bytes"),
    ):
        with pytest.raises(UsageError, match=message):
            pack(str(tmp_path / "to"), lambda data: None, report)


def test_a_download_never_replaces_a_device_or_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither a regular file nor a directory") as caught:
        FileTarget(str(tmp_path / "pipe"), 0o644, devices=False, overwrite=True)
    assert caught.value.code == "LOCAL_FILE"
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_appears_complete_and_an_existing_one_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    (tmp_path / "old").chmod(0o600)
    for name, mode in (("old", 0o600), ("new", 0o755)):
        for complete in (False, True):
            file = FileTarget(str(tmp_path / name), 0o4755, devices=False, overwrite=True)
            os.write(file.descriptor, b"content")
            if complete:
                file.commit()
            file.close()
            assert (tmp_path / name).exists() is (complete or name == "old")
        assert (tmp_path / name).read_text() == "content"
        assert (tmp_path / name).stat().st_mode & 0o7777 == mode
    file = FileTarget(str(tmp_path / "new"), 0o644, devices=False, overwrite=False)
    with pytest.raises(UsageError) as caught:
        file.commit()
    file.close()
    assert caught.value.code == "LOCAL_FILE_EXISTS"
    assert sorted(os.listdir(tmp_path)) == ["new", "old"]


def test_a_directory_appears_complete_and_replaces_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    directory = NewDirectory(str(tmp_path / "empty"))
    (Path(directory.path) / "file").write_text("y")
    assert os.listdir(tmp_path / "empty") == []
    directory.commit()
    directory.close()
    assert (tmp_path / "empty" / "file").read_text() == "y"
    with pytest.raises(UsageError, match="isn't an empty directory"):
        NewDirectory(str(tmp_path / "full"))
    late = NewDirectory(str(tmp_path / "late"))
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "file").touch()
    with pytest.raises(UsageError, match="isn't an empty directory"):
        late.commit()
    late.close()
    assert sorted(os.listdir(tmp_path)) == ["empty", "full", "late"]


@pytest.mark.parametrize(
    ("destination", "is_directory", "as_cp", "target"),
    [
        ("d", True, True, "d/name"),
        ("d", True, False, "d"),
        ("d", False, False, "d/name"),
        ("new", True, True, "new"),
        ("new/", True, True, NotADirectoryError),
        ("new/", True, False, "new/"),
        ("f", True, False, NotADirectoryError),
        ("no/new", False, False, NotADirectoryError),
        ("e", False, False, IsADirectoryError),
    ],
)
def test_where_a_copy_goes(tmp_path: Path, destination: str, is_directory: bool, as_cp: bool, target: Any) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "e" / "name").mkdir(parents=True)
    (tmp_path / "f").touch()

    def find() -> str:
        return target_of(f"{tmp_path}/{destination}", "name", is_directory=is_directory, as_cp=as_cp)

    if isinstance(target, str):
        assert find() == f"{tmp_path}/{target}"
        return
    with pytest.raises(UsageError) as caught:
        find()
    assert caught.value.code == ("NOT_A_FILE" if target is IsADirectoryError else "NOT_A_FOLDER")


def test_errors_of_local_files_have_the_path_and_a_code(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent can't be read: No such file") as caught, local_errors("x", "read"):
        os.open(tmp_path / "absent", os.O_RDONLY)
    assert caught.value.code == "LOCAL_FILE"
    with pytest.raises(GibilError, match="/dev/full can't be written: No space") as full, local_errors("/dev/full", "written"):
        os.write(os.open("/dev/full", os.O_WRONLY), b"x")
    assert (full.value.code, full.value.exit_status) == ("LOCAL_FILE", 1)
    with pytest.raises(BrokenPipeError), local_errors("x", "written"):
        raise BrokenPipeError


async def test_a_slow_reader_pauses_the_writer_but_not_the_loop() -> None:
    go, total = threading.Event(), 0

    def read(feed: Feed) -> None:
        nonlocal total
        go.wait(patient(10))
        while data := feed.read(100_000):
            total += len(data)

    feed = Feed()
    reading = asyncio.create_task(asyncio.to_thread(feed.serve, read))
    sent = 0
    while (room := feed.write(bytes(1_000_000))) is None:
        sent += 1_000_000
    assert sent == 4_000_000
    assert not room.done()
    go.set()
    async with asyncio.timeout(patient(10)):
        await room
        feed.end()
        await reading
    assert total == sent + 1_000_000


async def test_a_reader_that_has_ended_ends_the_writer() -> None:
    def fail(feed: Feed) -> None:
        feed.read(1)
        raise OSError("disk full")

    feed = Feed()
    reading = asyncio.create_task(asyncio.to_thread(feed.serve, fail))
    room = feed.write(bytes(5_000_000))
    assert room is not None
    async with asyncio.timeout(patient(10)):
        await room
        with pytest.raises(OSError, match="disk full"):
            await reading
    with pytest.raises(Feed.ReaderEnded):
        feed.write(b"x")


class Answers:
    """A machine whose commands print these answers; without one, they don't end."""

    name = "m"

    def __init__(self, *answers: bytes) -> None:
        self.shell = self.machine = self
        self.expires_at = datetime.now(UTC)
        self._answers = list(answers)

    async def run(self, command: str, **options: Any) -> SimpleNamespace:
        if not self._answers:
            await asyncio.Event().wait()
        return SimpleNamespace(exit_status=0, stdout=self._answers.pop(0), stderr=b"")

    async def put(self, path: str, content: Any, **options: Any) -> None:
        async for _ in content:
            pass
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    "answer",
    [b"n\0n\0zz\0/x\n", b"n\0n\0-1\0/x\n", b"f\0n\0\0/x\n", b"f\0n\0999\0/x\n", b"z\0n\x00644\0/x\n", b"f\0n\x00644\0x\n"],
)
async def test_a_machines_wrong_answer_about_a_path_is_an_error_of_the_machine(answer: bytes, tmp_path: Path) -> None:
    machine: Any = Answers(answer)
    with pytest.raises(BadAnswer):
        await transfer.download(machine, "/x", str(tmp_path / "x"), CopyReport())


async def test_copies_through_stdin_and_stdout_end_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        yield b"x"

    monkeypatch.setattr(transfer, "_SPARE_S", 0.05)
    found: Any = Answers(b"f\0d\x00644\0/x\n")
    with pytest.raises(GibilError) as caught:
        await asyncio.wait_for(transfer.send_to(found, "/x", lambda data: None, CopyReport()), patient(5))
    assert caught.value.code == "TIMEOUT"
    new: Any = Answers(b"n\0d\0\0/x\n")
    with pytest.raises(GibilError) as caught:
        await asyncio.wait_for(transfer.upload_stream(new, blocks(), "/x", CopyReport()), patient(5))
    assert caught.value.code == "TIMEOUT"


def test_a_pipe_that_no_process_reads_is_an_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="no process reads the pipe"):
        FileTarget(str(pipe), 0o644, devices=True, overwrite=True)
