"""Packs a local directory into a tar stream for a machine."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable

from gibil_bot.machines.tools.copy_report import CopyReport
from gibil_bot.machines.tools.unpack import Omit

_BUFFER = 256 * 1024


class _Sink:
    """Collects tarfile's small writes into blocks."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._buffer = bytearray()

    def write(self, data: bytes) -> int:
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self.flush()
        return len(data)

    def flush(self) -> None:
        if self._buffer:
            data, self._buffer = bytes(self._buffer), bytearray()
            self._send(data)


def pack(folder: str, send: Callable[[bytes], None], report: CopyReport, omit: Omit | None = None) -> None:
    """Send a directory's content as an archive, in blocks. Unreadable and special files are left out and reported.

    Links are sent as links. Raises UsageError above the report's limits, and OSError if a file becomes shorter while it is
    read: the archive is then incomplete.
    """
    sink = _Sink(send)
    with tarfile.open(fileobj=sink, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_BUFFER) as archive:  # type: ignore[call-overload]
        pending = [""]
        while pending:
            inside = pending.pop()
            path = os.path.join(folder, inside)
            if inside:
                report.add_entry()
                if omit is not None and (reason := omit(tuple(inside.split(os.sep)))):
                    report.leave_out(inside, reason)
                    continue
            try:
                if inside:
                    _add(archive, path, inside, report)
                if not inside or stat.S_ISDIR(os.lstat(path).st_mode):
                    pending += [os.path.join(inside, name) for name in sorted(os.listdir(path), reverse=True)]
            except PermissionError:
                report.leave_out(inside or folder, "it can't be read")
            except FileNotFoundError:  # deleted in the meantime
                continue
            archive.members = []
    sink.flush()


def _add(archive: tarfile.TarFile, path: str, inside: str, report: CopyReport) -> None:
    if stat.S_ISREG(os.lstat(path).st_mode):
        # A link or a pipe that replaces the file now isn't opened.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            _send(archive, archive.gettarinfo(fileobj=file, arcname=inside), inside, report, _Counted(file, report))
    else:
        _send(archive, archive.gettarinfo(path, arcname=inside), inside, report)


def _send(
    archive: tarfile.TarFile, entry: tarfile.TarInfo | None, inside: str, report: CopyReport, content: _Counted | None = None
) -> None:
    if entry is None or not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
        report.leave_out(inside, "it is neither a file, a directory nor a link")
        return
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mode = stat.S_IMODE(entry.mode) & 0o777
    archive.addfile(entry, content if entry.isreg() else None)
    if not entry.isdir():
        report.files += 1


class _Counted:
    def __init__(self, file: object, report: CopyReport) -> None:
        self._file = file
        self._report = report

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)  # type: ignore[attr-defined]
        self._report.add_bytes(len(data))
        return data
