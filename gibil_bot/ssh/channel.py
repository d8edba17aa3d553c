"""One command on one SSH connection: callbacks for its output and its end. Leaner than asyncssh's process streams."""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import Callable

from gibil_bot.ssh.lean_asyncssh import asyncssh

OnData = Callable[[str, bytes], None]

_LINGER_S = 2.0
"""After a command's exit, close the channel after this long without output: a background process may keep it open."""
_CLOSES_S = 5.0
"""How long the server may take to confirm that a channel is closed. After that, the channel counts as closed."""


class Channel(asyncssh.SSHClientSession[bytes]):
    """The client side of an exec channel. `ended` resolves when the channel is closed, for whatever reason."""

    def __init__(self, on_data: OnData) -> None:
        self._on_data = on_data
        self._loop = asyncio.get_running_loop()
        self._linger: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._is_paused = False
        self.exit_status: int | None = None
        """128 + N for signal N. None: the command runs, or the connection ended first."""
        self.channel: asyncssh.SSHClientChannel[bytes]

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self.channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._linger is not None:
            self._wait_for_silence()
        self._on_data("stdout" if datatype is None else "stderr", data)

    def exit_status_received(self, status: int) -> None:
        self.exit_status = status if status <= 255 else 255  # the protocol has 32 bits for it, exit(2) has 8
        self._wait_for_silence()

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        number = getattr(signals, f"SIG{signal}", None)
        self.exit_status = 128 + int(number) if isinstance(number, signals.Signals) else 255
        self._wait_for_silence()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._linger, self._closing):
            if timer is not None:
                timer.cancel()
        self._end()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def pause(self) -> None:
        """Stop receiving output until `resume`; the server stops sending when its window is full."""
        self._is_paused = True
        self.channel.pause_reading()

    def resume(self) -> None:
        self._is_paused = False
        if not self.ended.done():
            self.channel.resume_reading()

    async def send(self, data: bytes) -> bool:
        """Send with back-pressure. Return False when the other side doesn't read any more."""
        try:
            self.channel.write(data)
        except OSError:  # BrokenPipeError: the command has closed its stdin, or ended
            return False
        await self._may_write.wait()
        return not self.ended.done()

    def end_input(self) -> None:
        try:
            self.channel.write_eof()
        except OSError:
            return  # ended already

    def resize(self, columns: int, rows: int) -> None:
        """Send a new terminal size."""
        if not self.ended.done():
            self.channel.change_terminal_size(columns, rows)

    def close(self) -> None:
        """Close the channel at once and discard what is in flight. `ended` resolves even if the server never confirms."""
        self.channel.abort()
        if self._closing is None and not self.ended.done():
            self._closing = self._loop.call_later(_CLOSES_S, self._end)

    def _end(self) -> None:
        self._may_write.set()
        if not self.ended.done():
            self.ended.set_result(None)

    def _wait_for_silence(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._linger = self._loop.call_later(_LINGER_S, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self._is_paused:  # there may be more output, which isn't received yet
            self._wait_for_silence()
        else:
            self.close()
