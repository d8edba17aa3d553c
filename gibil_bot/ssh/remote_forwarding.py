"""Ports of a machine whose connections reach one service of this process, like `ssh -R`.

The machine listens on its loopback interface only. Any process there can connect, so the service has to authenticate its
clients; nothing else of this host can be reached. sshd listens itself (RFC 4254, 7.1); the daemon of local machines gets the
socket from the machine's PID 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

from gibil_bot.errors import GibilError, MachineLost
from gibil_bot.scripts.commands import release_port_script
from gibil_bot.ssh.lean_asyncssh import asyncssh
from gibil_bot.ssh.shell import SSHShell

LOOPBACK = "127.0.0.1"
MOST_CONNECTIONS = 48
"""Open connections of one port; more are rejected. Agents keep some idle, and a model proxy serves a few at a time."""
RECONNECT_S = 20.0
"""How long a lost connection may take to return: Codex reports failure after 20 s of refused connections."""

log = logging.getLogger("gibil.ssh")

_BLOCK = 64 * 1024
_WINDOW = 256 * 1024
"""What a connection may have sent that the service hasn't read: with MOST_CONNECTIONS, 12 MiB of memory at most."""
_CONNECT_S = 10.0
_CLOSES_S = 5.0
_CANCELLATIONS = 4
_RETRY_EVERY_S = 0.5
_BRIEF_S = 5.0
"""A machine may close each connection at once, so the next one after a shorter one waits, too."""

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[], Awaitable[Streams]]
"""Opens a connection to the service. May raise OSError: then the machine's connection is closed."""


@contextlib.asynccontextmanager
async def forward_remote(
    shell: SSHShell, service: Connect | int, *, port: int = 0, most: int = MOST_CONNECTIONS
) -> AsyncIterator[int]:
    """Listen on the machine for the duration of the block; yield the port. Then all its connections are closed.

    `service`: a loopback port of this host, or what connects to the service. `port`: the machine's; 0 is any free one.
    Raises SSHError if the machine can't listen on the port, MachineLost. A lost connection doesn't end the block: see
    `keep_forwarding`.
    """
    relays: set[asyncio.Task[None]] = set()
    is_open = True

    def accept(_host: str, _port: int) -> Callable[..., Awaitable[None]]:
        if not is_open or len(relays) >= most:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "too many connections")
        return handle

    async def handle(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not is_open or len(relays) >= most:
            writer.channel.abort()
            return
        relays.add(task)
        try:
            await _relay(reader, writer, service)
        except asyncio.CancelledError:
            pass  # the forwarding ends; asyncssh would close the whole connection for an exception
        finally:
            relays.discard(task)
            writer.channel.abort()

    listener = await shell.listen_on_machine(LOOPBACK, port, accept, window=_WINDOW)
    try:
        yield listener.get_port()
    finally:
        is_open = False
        for task in tuple(relays):
            task.cancel()
        listener.close()
        with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
            async with asyncio.timeout(_CLOSES_S):
                if relays:
                    await asyncio.wait(tuple(relays))
                if not shell.is_closed:
                    await listener.wait_closed()


class KeptForward(Protocol):
    port: int
    """The machine's port. It stays the same after a reconnect."""
    lost: asyncio.Future[GibilError]
    """Resolves to the reason when the forwarding is lost for good: the task should end."""


class _Kept:
    def __init__(self) -> None:
        self.port = 0
        self.lost: asyncio.Future[GibilError] = asyncio.get_running_loop().create_future()


@contextlib.asynccontextmanager
async def keep_forwarding(
    connect: Callable[[], Awaitable[SSHShell]],
    service: Connect | int,
    *,
    port: int = 0,
    most: int = MOST_CONNECTIONS,
    reconnect_s: float = RECONNECT_S,
) -> AsyncIterator[KeptForward]:
    """Forward like `forward_remote`, over a separate connection that is opened again, with the same port, when it is lost.

    `port`: the machine's, if another process of the bot forwarded it before; 0 is any free one. Raises what `connect` raises,
    and SSHError. After a loss, `lost` resolves if there is no forwarding again within `reconnect_s`, or if another program has
    taken the port.
    """
    kept = _Kept()
    kept.port = port
    opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(_keep(connect, service, most, reconnect_s, kept, opened))
    try:
        await asyncio.wait({task, opened}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        yield kept
    finally:
        await _end(task)
        if not kept.lost.done():
            kept.lost.cancel()


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel the task until it ends: a library may lose a cancellation, and a connection may not close."""
    for _ in range(_CANCELLATIONS):
        task.cancel()
        await asyncio.wait({task}, timeout=_CLOSES_S)
        if task.done():
            if not task.cancelled():
                task.exception()  # raised already, or in `lost`
            return
    log.warning("a forwarded port of a machine doesn't close; it ends with the machine")


async def _keep(
    connect: Callable[[], Awaitable[SSHShell]],
    service: Connect | int,
    most: int,
    reconnect_s: float,
    kept: _Kept,
    opened: asyncio.Future[None],
) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time()
    while True:
        shell: SSHShell | None = None
        try:
            async with asyncio.timeout(reconnect_s if opened.done() else None):
                shell = await connect()
                if kept.port:
                    # sshd notices a cut connection after minutes, and holds the port until then.
                    await shell.run(release_port_script(kept.port), timeout_s=reconnect_s)
            async with forward_remote(shell, service, port=kept.port, most=most) as port:
                kept.port = port
                if not opened.done():
                    opened.set_result(None)
                opened_at = loop.time()
                await shell.wait_closed()
            deadline = loop.time() + reconnect_s
            if loop.time() - opened_at < _BRIEF_S:
                await asyncio.sleep(_RETRY_EVERY_S)
        except (GibilError, TimeoutError) as error:
            problem = error if isinstance(error, GibilError) else MachineLost("the machine doesn't answer SSH any more")
            if not opened.done():
                raise problem from None
            if loop.time() >= deadline:
                kept.lost.set_result(problem)
                return
            await asyncio.sleep(_RETRY_EVERY_S)
        finally:
            if shell is not None:
                await shell.close()


async def _relay(reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes], service: Connect | int) -> None:
    """Relay both directions until both have ended. The end of one direction is passed on while the other continues."""
    try:
        async with asyncio.timeout(_CONNECT_S):
            if isinstance(service, int):
                theirs, ours = await asyncio.open_connection(LOOPBACK, service, limit=_BLOCK)
            else:
                theirs, ours = await service()
    except OSError:
        return  # the program on the machine sees its connection end
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_pump(reader, ours))
            tasks.create_task(_pump(theirs, writer))
        writer.close()
        await writer.wait_closed()
    except* (OSError, asyncssh.Error):
        pass  # one side is gone, so the other is closed, too
    finally:
        ours.transport.abort()


async def _pump(
    reader: asyncio.StreamReader | asyncssh.SSHReader[bytes], writer: asyncio.StreamWriter | asyncssh.SSHWriter[bytes]
) -> None:
    while data := await reader.read(_BLOCK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
