"""One SSH connection that runs commands: channels, a queue when the server's limit is reached, and results."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from gibil_bot.errors import MachineLost, SSHError
from gibil_bot.model import Result
from gibil_bot.ssh.answers import MOST_ANSWERED, printable, size_text
from gibil_bot.ssh.channel import Channel, OnData
from gibil_bot.ssh.lean_asyncssh import asyncssh

OnOutput = Callable[[str, bytes], Awaitable[None] | None]
"""Called with "stdout" or "stderr" and the bytes. It may return an awaitable, to receive more only after that."""

QUICKACK = getattr(socket, "TCP_QUICKACK", None)

_OPENS_S = 60.0
"""How long the server may take to start a command after a channel is free."""
_RELEASE_S = 3.0
_RETRY_EVERY_S = 0.05
_WINDOW = 16 * 1024 * 1024
_PACKET = 128 * 1024
_BLOCK = 256 * 1024


class Connection:
    """An open SSH connection. Raises MachineLost when it is gone, SSHError when the server rejects a request.

    `where` names the machine in messages.
    """

    def __init__(self, connection: asyncssh.SSHClientConnection, where: str) -> None:
        self.where = where
        self._connection = connection
        self._channels = 0
        """Channels that are open or being opened."""
        self._channel_freed = asyncio.Event()
        sock = connection.get_extra_info("socket")
        self._nagle_socket = sock if QUICKACK is not None and sock is not None and sock.family != socket.AF_UNIX else None
        """The socket until the first command has started, on TCP only. See `_acknowledge`."""

    @property
    def is_closed(self) -> bool:
        return self._connection.is_closed()

    def has_hung_up(self) -> bool:
        """Return whether the server has closed the connection, even if the event loop hasn't noticed that yet. Linux only."""
        sock = self._connection.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return True
        closed = select.poll()
        closed.register(sock.fileno(), select.POLLRDHUP)
        return bool(closed.poll(0))

    def gone(self) -> MachineLost:
        return MachineLost(f"the connection to {self.where} ended before the command did")

    async def execute(
        self,
        command: str,
        stdin: bytes | AsyncIterator[bytes] = b"",
        on_output: OnOutput | None = None,
        *,
        keep_output: bool = True,
        most_bytes: int = MOST_ANSWERED,
        stalls_s: float | None = None,
    ) -> Result:
        """Run a command to its end. Cancelling closes the channel; the server decides what that does to the command.

        Stores at most `most_bytes` of both streams together; more output closes the channel and raises SSHError. An exception
        from `on_output` closes it, too, and is raised. `stalls_s` limits how long the machine may take to read one block of
        input, and to end after the last block; then MachineLost is raised.
        """
        output = {"stdout": bytearray(), "stderr": bytearray()}
        problems: list[Exception] = []
        channel: Channel | None = None
        pauses: list[asyncio.Future[None]] = []

        async def resume_after(paused: Channel, waiting: Awaitable[None]) -> None:
            paused.pause()
            try:
                await waiting
            finally:
                pauses.clear()
                paused.resume()

        def on_data(stream: str, data: bytes) -> None:
            if problems:
                return
            if keep_output:
                output[stream] += data
                if sum(map(len, output.values())) > most_bytes:
                    problems.append(SSHError(f"{self.where} answered a command with more than {size_text(most_bytes)}"))
            if on_output is not None and not problems:
                try:
                    waiting = on_output(stream, data)
                except Exception as error:  # raised here, it would close the whole connection
                    problems.append(error)
                else:
                    if waiting is not None and channel is not None and not pauses:
                        pauses.append(asyncio.ensure_future(resume_after(channel, waiting)))
            if problems:
                output.clear()
                if channel is not None:
                    channel.close()

        channel = await self.open(command, on_data)
        try:
            if problems:
                channel.close()
            if isinstance(stdin, bytes):
                await _send(channel, blocks(stdin), stalls_s)
            else:
                await send_input(channel, stdin, stalls_s)
            async with asyncio.timeout(stalls_s):
                await asyncio.shield(channel.ended)
        except TimeoutError:
            if stalls_s is None:
                raise
            raise MachineLost(f"{self.where} stopped responding to a command: nothing happened for {stalls_s:g} s") from None
        finally:
            for pause in tuple(pauses):
                pause.cancel()
            if not channel.ended.done():
                channel.close()
        if problems:
            raise problems[0]
        if channel.exit_status is None:
            raise self.gone()
        return Result(exit_status=channel.exit_status, stdout=bytes(output["stdout"]), stderr=bytes(output["stderr"]))

    @property
    def server_version(self) -> str:
        """The server's software version, without the protocol's version (RFC 4253, 4.2)."""
        return str(self._connection.get_extra_info("server_version", "")).removeprefix("SSH-2.0-")

    async def open(
        self,
        command: str | None,
        on_data: OnData,
        *,
        terminal: tuple[str, tuple[int, int]] | None = None,
        subsystem: str | None = None,
    ) -> Channel:
        """Open a channel for a command or a subsystem, with a pty when `terminal` (type, (columns, rows)) is given.

        At the server's limit of channels (sshd: MaxSessions), wait until another channel of this connection ends.
        """
        loop = asyncio.get_running_loop()
        retry_until: float | None = None
        while True:
            self._channel_freed.clear()
            acknowledging = asyncio.create_task(self._acknowledge()) if self._nagle_socket is not None else None
            self._channels += 1
            opening = asyncio.ensure_future(
                self._connection.create_session(
                    lambda: Channel(on_data),
                    command,
                    subsystem=subsystem,
                    encoding=None,
                    window=_WINDOW,
                    max_pktsize=_PACKET,
                    term_type=terminal[0] if terminal else None,
                    term_size=terminal[1] if terminal else (),
                )
            )
            try:
                async with asyncio.timeout(_OPENS_S):
                    _, session = await asyncio.shield(opening)
            except TimeoutError:
                opening.add_done_callback(self._close_late)
                raise MachineLost(f"{self.where} did not start a command within {_OPENS_S:g} s") from None
            except asyncio.CancelledError:
                opening.add_done_callback(self._close_late)
                raise
            except asyncssh.ChannelOpenError as error:
                self._channels -= 1
                if self._connection.is_closed():
                    raise self.gone() from None
                if self._channels > 0:
                    await self._channel_freed.wait()
                    continue
                self._channel_freed.set()  # no other channel is open, so none would wake the other waiters
                # The server may not have released channels yet that have ended on our side.
                if retry_until is None:
                    retry_until = loop.time() + _RELEASE_S
                if loop.time() > retry_until:
                    raise SSHError(f"{self.where} doesn't run any command: {printable(error.reason)}") from None
                await asyncio.sleep(_RETRY_EVERY_S)
                continue
            except (asyncssh.Error, OSError) as error:
                self._channels -= 1
                raise MachineLost(f"the connection to {self.where} is lost: {reason_of(error)}") from None
            except AttributeError:  # asyncssh 2.x starts a session that was removed with its connection meanwhile
                self._channels -= 1
                if not self._connection.is_closed():
                    raise
                raise self.gone() from None
            finally:
                if acknowledging is not None:
                    acknowledging.cancel()
            self._nagle_socket = None
            assert isinstance(session, Channel)
            session.ended.add_done_callback(self._channel_ended)
            return session

    async def wait_closed(self) -> None:
        await self._connection.wait_closed()

    async def forward_port(self, bind: str, port: int, host: str, host_port: int) -> asyncssh.SSHListener:
        """Forward connections to a local port through the server. Raises OSError if the port can't be used."""
        return await self._connection.forward_local_port(bind, port, host, host_port)

    async def listen_on_machine(
        self, host: str, port: int, accept: Callable[[str, int], Callable[..., Awaitable[None]]], *, window: int
    ) -> asyncssh.SSHListener:
        """Listen on the machine. `accept` returns what handles a connection, or raises ChannelOpenError.

        Raises SSHError if the server doesn't listen on it.
        """
        try:
            async with asyncio.timeout(_OPENS_S):
                return await self._connection.start_server(accept, host, port, encoding=None, window=window)
        except TimeoutError:
            raise MachineLost(f"{self.where} did not listen on a port within {_OPENS_S:g} s") from None
        except asyncssh.ChannelListenError:
            what = f"port {port}" if port else "a port"
            raise SSHError(
                f"{self.where} can't listen on {what}: another program uses it, or its SSH server doesn't forward ports",
                code="FORWARD",
            ) from None
        except (asyncssh.Error, OSError) as error:
            raise MachineLost(f"the connection to {self.where} is lost: {reason_of(error)}") from None

    def _channel_ended(self, _: object) -> None:
        self._channels -= 1
        self._channel_freed.set()

    def _close_late(self, opening: asyncio.Future[Any]) -> None:
        """Close a channel that opened after its caller was cancelled or timed out."""
        if opening.cancelled() or opening.exception() is not None:
            self._channel_ended(opening)
            return
        session = opening.result()[1]
        session.close()
        session.ended.add_done_callback(self._channel_ended)

    async def _acknowledge(self) -> None:
        """Acknowledge packets at once, until cancelled: sshd leaves Nagle's algorithm on until its first command.

        Otherwise, what sshd sends after the login waits for the client's delayed acknowledgement, 40 ms. The kernel resets the
        option by itself, so it is set again every millisecond until the first command has started. Login and first command
        with OpenSSH on loopback, median of 20: 88 ms, and 138 ms without this.
        """
        assert self._nagle_socket is not None
        assert QUICKACK is not None
        for _ in range(50):
            with contextlib.suppress(OSError):
                self._nagle_socket.setsockopt(socket.IPPROTO_TCP, QUICKACK, 1)
            await asyncio.sleep(0.001)

    async def close(self) -> None:
        self._connection.close()
        try:
            async with asyncio.timeout(2):
                await self._connection.wait_closed()
        except (TimeoutError, OSError, asyncssh.Error):
            self._connection.abort()


async def _send(channel: Channel, stdin: AsyncIterator[bytes], stalls_s: float | None) -> None:
    """Send all input. Raises TimeoutError when the server doesn't accept a block within `stalls_s`."""
    async for block in stdin:
        async with asyncio.timeout(stalls_s):
            if not await channel.send(block):
                break
    channel.end_input()


async def send_input(channel: Channel, stdin: AsyncIterator[bytes], stalls_s: float | None) -> None:
    """Send input and its end; returns early if the command ends before the iterator. Raises what the iterator raises."""
    sending = asyncio.create_task(_send(channel, stdin, stalls_s))
    try:
        await asyncio.wait({sending, channel.ended}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        if not sending.cancelled():
            sending.exception()  # raised above, or irrelevant because the command has ended


async def blocks(data: bytes) -> AsyncIterator[bytes]:
    """Split data into blocks, so that sending has back-pressure."""
    for start in range(0, len(data), _BLOCK):
        yield data[start : start + _BLOCK]


def reason_of(error: Exception) -> str:
    """Return a library's exception as a short reason for a message."""
    if isinstance(error, OSError) and error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return printable(getattr(error, "reason", None) or str(error)) or type(error).__name__
