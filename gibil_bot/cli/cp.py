"""`gibil cp`: files and directories between this computer and a machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import click

from gibil_bot.cli import stdin as our_stdin
from gibil_bot.cli.completers import complete_copied
from gibil_bot.cli.machine import StreamCopier, opened, provider_option, run_async
from gibil_bot.cli.output import json_option, print_json, print_message, write_err
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.limits import MACHINE_NAME

if TYPE_CHECKING:
    from gibil_bot.machines.session import MachineSession
    from gibil_bot.machines.tools.copy_report import CopyReport, Transfer

STREAM = "-"
_SHOWN_AFTER_S = 1.0
_EVERY_S = 0.2


@click.command()
@click.argument("source", metavar="SOURCE", shell_complete=complete_copied)
@click.argument("destination", metavar="DESTINATION", shell_complete=complete_copied)
@provider_option
@json_option
def cp(source: str, destination: str, provider: str | None, as_json: bool) -> None:
    """Copy a file or a directory to a machine, or from one.

    One of the two is NAME:PATH; PATH is relative to /root. A local path with a colon begins with ./ or /. If DESTINATION is an
    existing directory, the copy goes into it. A new file has the permissions of its source; directories keep their links and
    times, too. `-` is stdin or stdout, for one file. Progress is shown after a second.

    From a machine, links that lead out of the copied directory, devices and names that don't stay in it are left out, and
    reported with exit status 1.

    \b
    gibil cp data.csv agent-task:project/
    gibil cp agent-task:project/dist .
    pg_dump shop | gibil cp - agent-task:/root/shop.sql
    gibil cp agent-task:/var/log/dpkg.log - | tail
    """
    there, here = _machine_of(source), _machine_of(destination)
    if there is not None and here is not None:
        raise UsageError(
            f"both paths are on a machine; copy through this computer: gibil cp {source} - | gibil cp - {destination}"
        )
    if there is not None:
        name, path = there
        sys.exit(run_async(_copy(name, path, destination, "from", provider, as_json)))
    if here is None:
        raise UsageError(f"write one of the paths as NAME:PATH, with a machine's name: gibil cp {source} NAME:{destination}")
    name, path = here
    if source != STREAM and not os.path.exists(source):
        raise UsageError(f"there is no {source!r} on this computer", code="FILE_NOT_FOUND")
    sys.exit(run_async(_copy(name, path, source, "to", provider, as_json)))


def _machine_of(text: str) -> tuple[str, str] | None:
    """Split NAME:PATH; None for a local path. `NAME:` is the machine's /root."""
    name, colon, path = text.partition(":")
    return (name, path or "/root") if colon and MACHINE_NAME.fullmatch(name) else None


async def _copy(name: str, path: str, local: str, direction: str, provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines.tools.copy_report import CopyReport

    if as_json and direction == "from" and local == STREAM:
        raise UsageError("--json and the file would both be written to stdout; copy to a file")
    began = time.monotonic()
    report = CopyReport()
    try:
        async with opened(name, provider) as session, _progress(report, began):
            done = await (_from(session, path, local, report) if direction == "from" else _to(session, local, path, report))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        raise GibilError(f"{where}{error.strerror or error}", code="FILES") from error
    seconds = time.monotonic() - began
    source, destination = (f"{name}:{path}", done.path) if direction == "from" else (local, f"{name}:{done.path}")
    for line in done.left_out:
        print_message(f"left out {line}")
    if done.left_out_total > len(done.left_out):
        print_message(f"left out {done.left_out_total - len(done.left_out)} more")
    if as_json:
        print_json(
            {
                "name": name,
                "source": source,
                "destination": destination,
                "files": done.files,
                "bytes": done.bytes,
                "duration_s": round(seconds, 3),
                "left_out": list(done.left_out),
                "left_out_total": done.left_out_total,
            }
        )
    elif seconds > _SHOWN_AFTER_S:
        print_message(f"copied {_amount(report)} in {seconds:.1f} s")
    return GibilError.exit_status if done.left_out_total else 0


async def _from(session: MachineSession, path: str, local: str, report: CopyReport) -> Transfer:
    from gibil_bot.machines.tools.transfer import download, send_to

    if local != STREAM:
        return await download(session, path, local, report, as_cp=True)
    task = asyncio.current_task()
    assert task is not None
    copier = StreamCopier(task.cancel)
    try:
        await send_to(session, path, lambda data: copier("stdout", data), report)
    except asyncio.CancelledError:
        if copier.broken is not None:
            task.uncancel()
            raise copier.broken from None
        raise
    return report.result(STREAM)


async def _to(session: MachineSession, local: str, path: str, report: CopyReport) -> Transfer:
    from gibil_bot.machines.tools.transfer import upload, upload_stream

    if local == STREAM:
        return await upload_stream(session, our_stdin.blocks(), path, report)
    return await upload(session, local, path, report, as_cp=True)


@contextlib.asynccontextmanager
async def _progress(report: CopyReport, began: float) -> AsyncIterator[None]:
    """Show the amount that was copied, on a terminal, once the copy has taken a second."""
    stream = sys.stderr
    if stream is None or not stream.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    drawing = asyncio.create_task(_draw(report, began))
    try:
        yield
    finally:
        drawing.cancel()
        await asyncio.wait({drawing})
        if time.monotonic() - began > _SHOWN_AFTER_S:
            write_err("\r\x1b[K")


async def _draw(report: CopyReport, began: float) -> None:
    await asyncio.sleep(_SHOWN_AFTER_S)
    while True:
        seconds = time.monotonic() - began
        write_err(f"\r\x1b[K… {_amount(report)}, {report.bytes / seconds / 1024**2:.1f} MiB/s, {seconds:.0f} s")
        await asyncio.sleep(_EVERY_S)


def _amount(report: CopyReport) -> str:
    from gibil_bot.humanize import count

    return f"{count(report.files, 'file')}, {report.bytes / 1024**2:.1f} MiB"
