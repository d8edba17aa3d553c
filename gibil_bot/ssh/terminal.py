"""Interactive commands: connect the local terminal to a pty on the machine until the command ends.

If stdin isn't a terminal, the command gets pipes, as with `ssh host command`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import tty
from collections.abc import AsyncIterator, Callable, Iterator

from gibil_bot.errors import MachineLost, SSHError
from gibil_bot.ports import Shell
from gibil_bot.ssh.channel import Channel
from gibil_bot.ssh.connection import send_input
from gibil_bot.ssh.shell import SSHShell

_STDIN = 0
_BLOCK = 64 * 1024
HUNG_UP = 130


async def talk(shell: Shell, command: str, stdin: AsyncIterator[bytes]) -> int:
    """Run a command with our stdin, stdout and stderr, on a pty when stdin is a terminal. Return its exit status.

    `stdin` yields the blocks of our stdin; they are sent if it isn't a terminal.
    Returns 130 when our terminal is closed first, the same status as for the SIGHUP that follows and may come late.
    Raises MachineLost when the connection ends first. Always restores the settings of our terminal.
    """
    if not isinstance(shell, SSHShell):
        raise SSHError("this machine has no SSH connection, so it can't provide a terminal")
    terminal = None
    if os.isatty(_STDIN):
        terminal = os.environ.get("TERM") or "vt100", _size()
    channel = await shell.open_channel(command, _show if terminal is None else _show_on_terminal, terminal=terminal)
    try:
        is_gone: Callable[[], bool] = bool  # never
        if terminal is None:
            await send_input(channel, stdin, stalls_s=None)
            await asyncio.shield(channel.ended)
        else:
            with _keys(channel) as is_gone:
                await asyncio.shield(channel.ended)
    finally:
        if not channel.ended.done():
            channel.close()
    if channel.exit_status is None:
        if is_gone():
            return HUNG_UP
        raise MachineLost("the connection to the machine ended")
    return channel.exit_status


def _show_on_terminal(stream: str, data: bytes) -> None:
    """Write output and ignore errors of a closed terminal; `_keys` detects that."""
    with contextlib.suppress(OSError):
        _show(stream, data)


def _show(stream: str, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1 if stream == "stdout" else 2, view) :]


def _size() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(_STDIN)
    except OSError:
        return 80, 24
    return size.columns or 80, size.lines or 24


@contextlib.contextmanager
def _keys(channel: Channel) -> Iterator[Callable[[], bool]]:
    """Send every key to the machine, including Ctrl-C. Yields a function that returns whether our terminal was closed."""
    loop = asyncio.get_running_loop()
    is_gone = False
    before = termios.tcgetattr(_STDIN)

    def read() -> None:
        nonlocal is_gone
        try:
            data = os.read(_STDIN, _BLOCK)
        except BlockingIOError:
            return
        except OSError:  # our terminal is gone
            data = b""
        if not data:
            is_gone = True
            loop.remove_reader(_STDIN)
            channel.close()
        elif not channel.ended.done():
            with contextlib.suppress(OSError):
                channel.channel.write(data)

    tty.setraw(_STDIN, termios.TCSADRAIN)  # not TCSAFLUSH: keys typed while we connected are meant for the machine
    loop.add_reader(_STDIN, read)
    loop.add_signal_handler(signal.SIGWINCH, lambda: channel.resize(*_size()))
    channel.resize(*_size())  # it may have changed while we connected
    try:
        yield lambda: is_gone
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        loop.remove_reader(_STDIN)
        with contextlib.suppress(termios.error):  # our terminal is gone
            termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)
