"""Shared by the commands about machines: options, the connection to the provider, copied streams, reports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gibil_bot.cli.completers import complete_names, complete_providers
from gibil_bot.cli.output import ReaderGone, print_message
from gibil_bot.config import load_settings
from gibil_bot.errors import GibilError

if TYPE_CHECKING:
    from gibil_bot.config import Settings
    from gibil_bot.machines.service import MachineService
    from gibil_bot.machines.session import MachineSession

T = TypeVar("T")

_SILENT_S = 3.0
"""A command that waits longer for a machine prints why."""

provider_option = click.option(
    "--provider", metavar="NAME", help="The provider, instead of GIBIL_PROVIDER.", shell_complete=complete_providers
)
env_file_option = click.option(
    "--env-file",
    "env_files",
    multiple=True,
    metavar="FILE",
    type=click.Path(),
    help="A file of variables, by docker's rules: NAME=value, or NAME for its value here; repeatable. --env overrides it.",
)
name_argument = click.argument("name", metavar="NAME", shell_complete=complete_names)


def settings_of(provider: str | None) -> Settings:
    from gibil_bot.machines.service import settings_for

    return settings_for(load_settings(), provider)


@contextlib.asynccontextmanager
async def connected(provider: str | None) -> AsyncIterator[MachineService]:
    from gibil_bot.machines.service import open_machines

    async with open_machines(settings_of(provider)) as machines:
        yield machines


@contextlib.asynccontextmanager
async def opened(name: str, provider: str | None) -> AsyncIterator[MachineSession]:
    """Open an SSH session on a machine for the duration of the block."""
    async with connected(provider) as machines:
        is_local = machines.factory.provider.name == "local"
        why = "this host is busy" if is_local else "a cloud server takes some seconds to boot"
        waiting = asyncio.get_running_loop().call_later(_SILENT_S, print_message, f"waiting for {name} to answer; {why}")
        try:
            session = await machines.open(name)
        finally:
            waiting.cancel()
        session.on_connection = report_connection
        try:
            yield session
        finally:
            await asyncio.shield(asyncio.ensure_future(session.close()))


async def report_cleanup(machines: MachineService) -> list[str]:
    """Destroy expired machines and those of interrupted commands, and report each. Returns their names."""
    incomplete, expired = await asyncio.gather(report_recovered(machines), machines.sweep())
    if expired:
        print_message(f"destroyed after their expiry: {', '.join(expired)}")
    return incomplete + expired


async def report_recovered(machines: MachineService) -> list[str]:
    """Report machines whose creation was killed. Returns the names of those that were incomplete and are destroyed."""
    destroyed = []
    for each in await machines.recover():
        name, command = each.name, f"`{each.made_by}`"
        if each.destroyed:
            destroyed.append(name)
            print_message(f"destroyed {name}: a killed {command} left it incomplete")
        else:
            use = f"use it (gibil ssh {name}), or destroy it (gibil destroy {name})"
            print_message(f"{name} was created by a {command} that ended before it could report it: {use}")
    return destroyed


def report_connection(sentence: str) -> None:
    print_message(sentence)


def on_end(call: Callable[[], object]) -> None:
    """Call it on SIGTERM, and on SIGHUP (the terminal was closed) unless that is ignored (nohup)."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, call)


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, but SIGTERM and a closed terminal end the work like Ctrl-C, with cleanup.

    Signals are blocked until the loop can handle them: an earlier signal would make Python report incomplete objects.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})

    async def guarded() -> T:
        task = asyncio.current_task()
        assert task is not None
        on_end(task.cancel)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return await work

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StreamCopier:
    """Copies a remote command's streams to ours, byte for byte. `cancel` is called once, when ours can't be written."""

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel = cancel
        self.broken: Exception | None = None

    def __call__(self, stream: str, data: bytes) -> None:
        if self.broken is not None:
            return
        try:
            _write_all(1 if stream == "stdout" else 2, data)
        except BrokenPipeError:
            self.broken = ReaderGone()
            self._cancel()
        except OSError as error:
            self.broken = GibilError(f"{stream} can't be written: {error.strerror}", code="OUTPUT")
            self._cancel()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # a terminal that ssh or another program has left non-blocking
            import select

            select.select([], [descriptor], [])


def as_terminal(descriptor: int) -> bool:
    """Return whether a descriptor is open and a terminal."""
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def table(rows: list[tuple[str, ...]], *, style: Callable[[int, str], str] = lambda row, text: text) -> str:
    """Render rows in columns; the first row is the heading. `style(row number, line)` may colour a line."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "".join(f"{style(number, line)}\n" for number, line in enumerate(lines))


def stderr_write(data: bytes) -> None:
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.buffer.write(data)
            sys.stderr.buffer.flush()
