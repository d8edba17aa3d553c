"""Archives that a machine sends: nothing is written outside of the folder, whatever they contain."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.machines.tools.copy_report import CopyReport
from gibil_bot.machines.tools.pack import pack
from gibil_bot.machines.tools.unpack import BadArchive, unpack

FILE, FOLDER, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


def entry(name: str, kind: bytes = FILE, content: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode = kind, len(content), 0o755 if kind == FOLDER else 0o644
    for field, value in more.items():
        setattr(info, field, value)
    return info, content


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w|", format=tarfile.GNU_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    made.seek(0)
    return made


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder to unpack into, with a file outside of it."""
    (tmp_path / "into").mkdir()
    (tmp_path / "outside").write_text("untouched")
    return tmp_path


def unpacked(world: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> CopyReport:
    report = CopyReport()
    unpack(archive(*entries), str(world / "into"), report)
    assert (world / "outside").read_text() == "untouched"
    assert sorted(os.listdir(world)) == ["into", "outside"]
    return report


def test_files_folders_and_links_keep_permissions_and_times(world: Path) -> None:
    report = unpacked(
        world,
        entry("./", FOLDER),
        entry("./closed", FOLDER, mode=0o555, mtime=86400),
        entry("./closed/tool", content=b"#!/bin/sh\n", mode=0o4755, mtime=1000),
        entry("./closed/up", LINK, linkname="../closed/tool"),
        entry("./again", HARD, linkname="./closed/tool"),
    )
    into = world / "into"
    assert (report.files, report.bytes, report.left_out) == (3, 10, [])
    assert stat.S_IMODE((into / "closed").stat().st_mode) == 0o555
    assert (into / "closed").stat().st_mtime == 86400
    assert stat.S_IMODE((into / "closed/tool").stat().st_mode) == 0o755
    assert (into / "closed/tool").stat().st_mtime == 1000
    assert os.readlink(into / "closed/up") == "../closed/tool"
    assert (into / "again").samefile(into / "closed/tool")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../outside", "its path contains '..'"),
        ("a/../../outside", "its path contains '..'"),
        ("/etc/outside", "its path is absolute"),
        ("x" * 300, "its name is too long"),
        ("absent/file", "its directory doesn't exist here, or is a link"),
    ],
)
def test_names_that_leave_the_folder_are_left_out(world: Path, name: str, reason: str) -> None:
    report = unpacked(world, entry(name, content=b"hostile"), entry("good", content=b"1"))
    assert report.left_out_total == 1
    assert report.left_out[0].endswith(f": {reason}")
    assert os.listdir(world / "into") == ["good"]


@pytest.mark.parametrize("target", ["..", "../outside", "/etc", "a/../../outside", "here/../..", "./../outside", ""])
def test_links_that_lead_outside_are_left_out(world: Path, target: str) -> None:
    report = unpacked(world, entry("here", LINK, linkname="."), entry("link", LINK, linkname=target))
    assert report.left_out_total == 1
    assert os.listdir(world / "into") == ["here"]


def test_nothing_is_written_through_a_link(world: Path) -> None:
    (world / "into" / "mine").symlink_to(world)
    (world / "into" / "named").symlink_to(world / "outside")
    report = unpacked(
        world,
        entry("mine/outside", content=b"hostile"),
        entry("mine", FOLDER),
        entry("named", content=b"a copy"),
        entry("inside", LINK, linkname="."),
        entry("inside/file", content=b"hostile"),
    )
    assert [line.partition(":")[0] for line in report.left_out] == ["mine/outside", "mine", "inside/file"]
    assert (world / "into" / "named").read_text() == "a copy"
    assert not (world / "into" / "named").is_symlink()


def test_devices_pipes_and_hard_links_to_other_files_are_left_out(world: Path) -> None:
    (world / "into" / "link").symlink_to(world / "outside")
    report = unpacked(
        world,
        entry("device", tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("pipe", tarfile.FIFOTYPE),
        entry("hard", HARD, linkname="../outside"),
        entry("through", HARD, linkname="link"),
        entry("itself", HARD, linkname="./"),
    )
    assert report.left_out_total == 5
    assert os.listdir(world / "into") == ["link"]


def test_an_incomplete_file_is_not_left_behind(world: Path) -> None:
    (world / "into" / "file").write_text("before")
    whole = archive(entry("file", content=b"x" * 100_000)).getvalue()
    with pytest.raises(BadArchive):
        unpack(io.BytesIO(whole[:50_000]), str(world / "into"), CopyReport())
    assert os.listdir(world / "into") == ["file"]
    assert (world / "into" / "file").read_text() == "before"


def test_a_header_of_any_size_is_not_read_into_memory(world: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 * 1024**3
    with pytest.raises(BadArchive, match="header has more than 64 KiB"):
        unpack(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + b"x" * 10_240), str(world / "into"), CopyReport())


@pytest.mark.parametrize("content", [b"no archive at all", b"\x00" * 100, b""])
def test_an_answer_that_is_no_archive_is_an_error(world: Path, content: bytes) -> None:
    with pytest.raises(BadArchive):
        unpack(io.BytesIO(content), str(world / "into"), CopyReport())


def test_a_report_shows_the_first_entries_and_counts_the_others(world: Path) -> None:
    report = unpacked(world, *(entry(f"../\x1b[31m{number}") for number in range(100)))
    assert (len(report.left_out), report.left_out_total) == (20, 100)
    assert "\x1b" not in "".join(report.left_out)


def test_a_packed_folder_unpacks_to_the_same_content(world: Path, tmp_path: Path) -> None:
    source = tmp_path / "into" / "source"
    (source / "folder" / "empty").mkdir(parents=True)
    (source / "folder" / "odd\nname \udcff").write_bytes(b"1")
    (source / "tool").write_bytes(b"2" * 300_000)
    (source / "tool").chmod(0o750)
    (source / "link").symlink_to("tool")
    os.link(source / "tool", source / "twin")
    os.mkfifo(source / "pipe")
    blocks: list[bytes] = []
    sent = CopyReport()
    pack(str(source), blocks.append, sent)
    target = tmp_path / "into" / "target"
    target.mkdir()
    received = CopyReport()
    unpack(io.BytesIO(b"".join(blocks)), str(target), received)
    assert (sent.files, sent.bytes) == (received.files, received.bytes) == (4, 300_001)
    assert [line.partition(":")[0] for line in sent.left_out] == ["pipe"]
    assert sorted(os.listdir(target)) == ["folder", "link", "tool", "twin"]
    assert os.listdir(target / "folder") == os.listdir(source / "folder")
    assert stat.S_IMODE((target / "tool").stat().st_mode) == 0o750
    assert (target / "twin").read_bytes() == b"2" * 300_000
