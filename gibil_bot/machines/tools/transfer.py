"""Copies files and directories between this computer and a machine, over its open connection: `gibil cp`, the SDK, MCP.

A single file appears complete or not at all; one that exists keeps its permissions, and a new one has those of its source. A
directory keeps its permissions, links and times. It travels as a tar stream, packed and unpacked in a thread.

The machine isn't trusted: what it sends is limited (copy_report.py) and checked (unpack.py).

`as_cp` selects how paths are read. With it, as the program cp does, for people: paths on the machine are relative to /root,
where `gibil run` starts, missing directories are an error, and a directory goes under its name into one that exists. Without
it, for programs and agents, so that the same call always does the same: paths on the machine are relative to the code's
directory, missing directories are created there, a directory's content goes into the destination, and a downloaded directory
appears as a whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import re
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from gibil_bot.cancellation import wait_uncancelled
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines.remote_layout import PROJECT, TO_PROJECT
from gibil_bot.machines.session import MachineSession
from gibil_bot.machines.tools.copy_report import CopyReport, Transfer
from gibil_bot.machines.tools.feed import Feed
from gibil_bot.machines.tools.files import check_path
from gibil_bot.machines.tools.local_targets import FileTarget, NewDirectory, local_errors, make_directory, name_of, target_of
from gibil_bot.machines.tools.pack import pack
from gibil_bot.machines.tools.unpack import Omit, unpack
from gibil_bot.ssh.answers import BadAnswer, fields_of, last_line

__all__ = ["TIMEOUT_S", "CopyReport", "Transfer", "download", "send_to", "upload", "upload_open", "upload_stream"]

TIMEOUT_S = 600.0
"""Limit for a copy by a program or an agent, unless the caller chooses another."""

HOME = "/root"
_BLOCK = 256 * 1024
_BLOCKS = 4
_SPARE_S = 60.0
_COMPLAINT_BYTES = 4096
_ANSWER_BYTES = 64 * 1024
_MODE = re.compile(rb"[0-7]{1,4}")
_ASK = """\
p=$gibil_path && export LC_ALL=C || exit 1
if [ -d "$p" ]; then k=d; elif [ -f "$p" ]; then k=f; elif [ -e "$p" ]; then k=o; else k=n; fi
d=${p%"${p##*[!/]}"}; d=${d%/*}
if [ "$k" = n ] && [ -d "${d:-/}" ]; then u=d; else u=n; fi
printf '%s\\0%s\\0%s\\0' "$k" "$u" "$(stat -Lc %a -- "$p" 2>/dev/null)"
readlink -m -- "$p"
"""
_MAKE = 'mkdir -p -- "$gibil_path"'
_TAR_IN = '{ [ -d "$gibil_path" ] || mkdir -- "$gibil_path"; } && exec tar -x -p --no-same-owner -f - -C "$gibil_path"'
_TAR_OUT = 'exec tar -c -f - -C "$gibil_path" .'
_CAT = 'exec cat -- "$gibil_path"'
_CHANGED = 1
"""tar's exit status if a file changed while it was read."""


@dataclass(frozen=True, slots=True)
class _Remote:
    kind: Literal["directory", "file", "other", "nothing"]
    parent_exists: bool
    mode: int
    path: str
    """Absolute, without links."""


_KINDS: dict[bytes, Literal["directory", "file", "other", "nothing"]] = {
    b"d": "directory",
    b"f": "file",
    b"o": "other",
    b"n": "nothing",
}


# To a machine


async def upload(
    session: MachineSession,
    source: str,
    path: str,
    report: CopyReport,
    *,
    as_cp: bool = False,
    timeout_s: float | None = None,
    omit: Omit | None = None,
) -> Transfer:
    """Copy a local file or directory to the machine. `path` may be a directory for a file.

    Without `timeout_s`, the machine's expiry is the limit. Raises UsageError (LOCAL_FILE, NOT_A_FOLDER, TOO_LARGE …),
    GibilError (LOCAL_FILE, FILES, TIMEOUT), SSHError, MachineLost.
    """
    with local_errors(source, "read"):
        descriptor = await asyncio.to_thread(os.open, source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return await upload_open(session, descriptor, source, path, report, as_cp=as_cp, timeout_s=timeout_s, omit=omit)
    finally:
        os.close(descriptor)


async def upload_open(
    session: MachineSession,
    descriptor: int,
    source: str,
    path: str,
    report: CopyReport,
    *,
    as_cp: bool = False,
    timeout_s: float | None = None,
    omit: Omit | None = None,
) -> Transfer:
    """Copy an open local file, or an open directory; see `upload`. `source`: its path."""
    status = os.fstat(descriptor)
    is_directory = stat.S_ISDIR(status.st_mode)
    if not is_directory and not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{source} is neither a file nor a directory", code="LOCAL_FILE")
    async with _limit(session, f"{source} was not copied to machine {session.name}", timeout_s):
        with local_errors(source, "read"):
            name = None if is_directory and not as_cp else name_of(source)
            target = await _target(session, path, name, is_directory, as_cp)
            if is_directory:
                await _upload_directory(session, source, target.path, report, omit)
            else:
                mode = target.mode if target.kind == "file" else stat.S_IMODE(status.st_mode) & 0o777
                await session.shell.put(target.path, _counted(_blocks_of(descriptor), report), mode=mode)
                report.files += 1
    return report.result(target.path)


async def upload_stream(session: MachineSession, content: AsyncIterator[bytes], path: str, report: CopyReport) -> Transfer:
    """Write a stream to a file on the machine, with the paths of `as_cp`."""
    async with _limit(session, f"stdin was not copied to {path} on machine {session.name}", None):
        target = await _target(session, path, None, False, True)
        await session.shell.put(target.path, _counted(content, report), mode=target.mode if target.kind == "file" else 0o644)
    report.files += 1
    return report.result(target.path)


async def _target(session: MachineSession, path: str, name: str | None, is_directory: bool, as_cp: bool) -> _Remote:
    """Return where a copy goes, and create directories for it unless `as_cp`. `name`: its name in an existing directory.

    Raises UsageError.
    """
    found = await _look(session, path, as_cp)
    if found.kind == "directory" and (as_cp or not is_directory):
        if name is None:
            raise UsageError(f"{path} on machine {session.name} is a directory; write the file's path", code="NOT_A_FILE")
        found = await _look(session, f"{found.path.rstrip('/')}/{name}", as_cp)
    elif path.endswith("/") and as_cp:
        raise UsageError(f"there is no directory {path} on machine {session.name}", code="NOT_A_FOLDER")
    elif path.endswith("/") and not is_directory and name is not None:
        found = await _look(session, f"{path}{name}", as_cp)
    if is_directory and found.kind in ("file", "other"):
        raise UsageError(
            f"{found.path} on machine {session.name} is a file, and the source is a directory", code="NOT_A_FOLDER"
        )
    if not is_directory and found.kind == "directory":
        raise UsageError(f"{found.path} on machine {session.name} is a directory, and the source is a file", code="NOT_A_FILE")
    if found.kind == "other" and not as_cp:
        raise UsageError(f"{found.path} on machine {session.name} is not a regular file", code="NOT_A_FILE")
    if found.kind == "nothing" and not found.parent_exists:
        parent = os.path.dirname(found.path)
        if as_cp:
            raise UsageError(f"there is no directory {parent} on machine {session.name}", code="NOT_A_FOLDER")
        made = await session.shell.run(_MAKE, env={"gibil_path": parent})
        if made.exit_status != 0:
            raise _failed(session, parent, "can't be created", made.stderr)
    return found


async def _upload_directory(session: MachineSession, source: str, path: str, report: CopyReport, omit: Omit | None) -> None:
    problems: list[Exception] = []
    result = await session.shell.run(
        _TAR_IN, env={"gibil_path": path}, stdin=_packed(source, report, omit, problems), timeout_s=_left_s(session)
    )
    if problems:
        raise problems[0]
    if result.exit_status != 0:
        raise _failed(session, path, "can't be written", result.stderr)


async def _packed(source: str, report: CopyReport, omit: Omit | None, problems: list[Exception]) -> AsyncIterator[bytes]:
    """Yield the blocks of an archive that a thread packs. An error ends the stream and is added to `problems`."""
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[bytes] = asyncio.Queue(_BLOCKS)
    is_abandoned = False

    def send(data: bytes) -> None:
        if is_abandoned:
            raise _Abandoned
        asyncio.run_coroutine_threadsafe(queue.put(data), loop).result()

    def work() -> None:
        try:
            pack(source, send, report, omit)
        except _Abandoned:
            return
        except Exception as error:
            problems.append(error)
        send(b"")

    working = asyncio.create_task(asyncio.to_thread(work))
    try:
        while data := await queue.get():
            yield data
    finally:
        is_abandoned = True
        while not working.done():  # the thread may wait for room in the queue
            while not queue.empty():
                queue.get_nowait()
            await asyncio.wait({working}, timeout=0.05)
        with contextlib.suppress(_Abandoned):
            working.result()


class _Abandoned(Exception):
    """The archive has no reader any more."""


# From a machine


async def download(
    session: MachineSession,
    path: str,
    destination: str,
    report: CopyReport,
    *,
    as_cp: bool = False,
    timeout_s: float | None = None,
    overwrite: bool = True,
    omit: Omit | None = None,
) -> Transfer:
    """Copy a file or directory from the machine. `destination` may be an existing directory for a file.

    Without `as_cp`, the destination of a directory must not exist or be empty, and nothing has changed on this computer after
    an error. Without `overwrite`, the destination of a file must not exist, either. Without `timeout_s`, the machine's expiry
    is the limit. Raises UsageError (FILE_NOT_FOUND, LOCAL_FILE, TOO_LARGE …), GibilError (LOCAL_FILE, FILES, TIMEOUT),
    BadArchive, SSHError, MachineLost.
    """
    async with _limit(session, f"{path} was not copied from machine {session.name}", timeout_s):
        with local_errors(destination, "written"):
            found = await _source(session, path, as_cp)
            is_directory = found.kind == "directory"
            target = target_of(destination, _name_on_machine(path, as_cp), is_directory=is_directory, as_cp=as_cp)
            if found.kind == "file":
                if omit is not None and (reason := omit((os.path.basename(target),))):
                    raise UsageError(f"{target} can't be written: {reason}", code="LOCAL_FILE")
                file = FileTarget(target, found.mode, devices=as_cp, overwrite=overwrite)
                try:
                    await _write(session, found.path, file.descriptor, report)
                    file.commit()
                finally:
                    file.close()
            elif as_cp:
                await _download_into(session, found.path, make_directory(target), report, omit)
            else:
                await _download_new(session, found.path, target, report, omit)
    return report.result(target)


async def send_to(session: MachineSession, path: str, write: Callable[[bytes], None], report: CopyReport) -> None:
    """Pass on the content of a file on the machine, with the paths of `as_cp`."""
    found = await _source(session, path, True)
    if found.kind == "directory":
        raise UsageError(
            f"{path} on machine {session.name} is a directory; for an archive of it: gibil run {session.name} 'tar -c {path}'",
            code="NOT_A_FILE",
        )

    def receive(data: bytes) -> None:
        write(data)
        report.add_bytes(len(data))

    async with _limit(session, f"{path} was not copied from machine {session.name}", None):
        await _receive(session, _CAT, found.path, receive)
    report.files += 1


async def _source(session: MachineSession, path: str, as_cp: bool) -> _Remote:
    found = await _look(session, path, as_cp)
    if found.kind == "nothing":
        raise UsageError(f"there is no {path} on machine {session.name}", code="FILE_NOT_FOUND")
    if found.kind == "other":
        raise UsageError(f"{path} on machine {session.name} is neither a file nor a directory", code="NOT_A_FILE")
    return found


async def _write(session: MachineSession, path: str, descriptor: int, report: CopyReport) -> None:
    def work(feed: Feed) -> None:
        while data := feed.read(_BLOCK):
            report.add_bytes(len(data))
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]

    await _in_thread(session, _CAT, path, work)
    report.files += 1


async def _download_into(session: MachineSession, path: str, folder: str, report: CopyReport, omit: Omit | None) -> None:
    """Copy a directory's content into an existing one."""

    def work(feed: Feed) -> None:
        unpack(feed, folder, report, omit)
        while feed.read(_BLOCK):  # the padding after the archive's end
            pass

    complaint = await _in_thread(session, _TAR_OUT, path, work, _CHANGED)
    if complaint is not None:
        report.leave_out(path, last_line(complaint, "a file changed while it was read"))


async def _download_new(session: MachineSession, path: str, target: str, report: CopyReport, omit: Omit | None) -> None:
    """Copy a directory to a path that doesn't exist, or is an empty directory."""
    directory = NewDirectory(target)
    try:
        await _download_into(session, path, directory.path, report, omit)
        directory.commit()
    finally:
        await wait_uncancelled(asyncio.create_task(asyncio.to_thread(directory.close)))


async def _in_thread(
    session: MachineSession, command: str, path: str, work: Callable[[Feed], None], accepted: int = 0
) -> bytes | None:
    """Run a command, and read its stdout in a thread. Return stderr after the exit status `accepted`, None after 0.

    Raises the exception of the thread, which also ends the command.
    """
    feed = Feed()
    working = asyncio.create_task(asyncio.to_thread(feed.serve, work))
    try:
        try:
            complaint = await _receive(session, command, path, feed.write, accepted)
        finally:
            feed.end()
            await wait_uncancelled(working)
            problem = working.exception()
    except Feed.ReaderEnded:
        complaint = None
    if problem is not None:
        raise problem
    return complaint


async def _receive(
    session: MachineSession, command: str, path: str, write: Callable[[bytes], object], accepted: int = 0
) -> bytes | None:
    complaint = bytearray()

    def receive(stream: str, data: bytes) -> asyncio.Future[None] | None:
        if stream == "stderr":
            complaint.extend(data[: _COMPLAINT_BYTES - len(complaint)])
            return None
        waiting = write(data)
        return waiting if isinstance(waiting, asyncio.Future) else None

    result = await session.shell.run(
        command, env={"gibil_path": path}, on_output=receive, keep_output=False, timeout_s=_left_s(session)
    )
    if result.exit_status not in (0, accepted):
        raise _failed(session, path, "can't be read", bytes(complaint))
    return bytes(complaint) if result.exit_status else None


# Paths


async def _look(session: MachineSession, path: str, as_cp: bool) -> _Remote:
    enter = "cd /root" if as_cp else TO_PROJECT
    answer = await session.shell.run(
        f"{enter} || exit 1; {_ASK}", env={"gibil_path": check_path(path)}, most_bytes=_ANSWER_BYTES
    )
    if answer.exit_status != 0:
        raise _failed(session, path, "can't be found", answer.stderr)
    kind, parent, mode, absolute = fields_of(answer.stdout, 4)
    where = absolute.removesuffix(b"\n").decode("utf-8", "surrogateescape")
    if kind not in _KINDS or not (_MODE.fullmatch(mode) or (kind == b"n" and not mode)) or not where.startswith("/"):
        raise BadAnswer(f"machine {session.name} answered a question about {path} with something else")
    return _Remote(_KINDS[kind], parent == b"d", int(mode or b"0", 8) & 0o777, where)


def _name_on_machine(path: str, as_cp: bool) -> str:
    """Return the name of a copy. The machine doesn't choose it: it could be a file's here, or lead out of the directory."""
    start = HOME if as_cp or path in ("~", "~/") else PROJECT
    name = posixpath.basename(posixpath.normpath(posixpath.join(start, "." if path in ("~", "~/") else path)))
    if not name:
        raise UsageError("the root directory can't be copied; name a directory in it")
    return name


# Limits and errors


@contextlib.asynccontextmanager
async def _limit(session: MachineSession, problem: str, timeout_s: float | None) -> AsyncIterator[None]:
    """End a copy after `timeout_s`, or with the machine's expiry."""
    limit_s = _left_s(session) if timeout_s is None else timeout_s
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise GibilError(f"{problem} within {limit_s:g} s", code="TIMEOUT") from None


def _failed(session: MachineSession, path: str, problem: str, stderr: bytes) -> GibilError:
    return GibilError(f"{path} on machine {session.name} {problem}: {last_line(stderr)}", code="FILES")


def _left_s(session: MachineSession) -> float:
    """Return the time until the machine expires."""
    return max(0.0, (session.machine.expires_at - datetime.now(UTC)).total_seconds()) + _SPARE_S


async def _blocks_of(descriptor: int) -> AsyncIterator[bytes]:
    while data := await asyncio.to_thread(os.read, descriptor, _BLOCK):
        yield data


async def _counted(content: AsyncIterator[bytes], report: CopyReport) -> AsyncIterator[bytes]:
    async for block in content:
        report.add_bytes(len(block))
        yield block
