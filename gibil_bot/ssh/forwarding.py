"""Local ports whose connections reach a host and port as seen from a machine, like `ssh -L`.

sshd forwards connections itself (RFC 4254, 7.2). The SSH server of a local machine only runs commands, so there a program on
the machine connects, and its stdin and stdout are the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from gibil_bot.errors import GibilError, UsageError
from gibil_bot.ssh.answers import last_line
from gibil_bot.ssh.channel import Channel
from gibil_bot.ssh.shell import SSHShell

LOOPBACK = "127.0.0.1"
_BLOCK = 64 * 1024
_MOST_WAITING = 1024 * 1024
"""More than this that the local program hasn't read stops reading from the machine."""
_COMPLAINT_BYTES = 1000
_PART = r"(?:\[(?P<{0}6>[0-9A-Fa-f:.%]+)\]|(?P<{0}>[^:\[\]\s]*))"
_FORWARD = re.compile(rf"(?:{_PART.format('bind')}:)?(?P<port>\d{{1,5}}):{_PART.format('host')}:(?P<there>\d{{1,5}})", re.ASCII)

_CONNECT = """\
use IO::Socket::IP; my $s = IO::Socket::IP->new(PeerHost => $ARGV[0], PeerPort => $ARGV[1], Timeout => 30)
  or do { print STDERR "$@\\n"; exit 1 };
sub copy { my ($from, $to, $data) = @_; while (sysread $from, $data, 65536) { my $at = 0;
  while ($at < length $data) { my $n = syswrite $to, $data, length($data) - $at, $at; defined $n or return; $at += $n } } }
$SIG{PIPE} = "IGNORE"; my $child = fork; defined $child or exit 1;
if (!$child) { copy(*STDIN, $s); shutdown $s, 1; exit }
copy($s, *STDOUT); kill "KILL", $child; exit"""
"""perl is essential in Debian. Unlike bash's /dev/tcp, it can pass on the end of one direction while the other continues."""


@dataclass(frozen=True, slots=True)
class Forward:
    """`bind:port` on this computer is forwarded to `host:host_port` as seen from the machine. Port 0: any free one."""

    bind: str
    port: int
    host: str
    host_port: int


def parse_forward(text: str) -> Forward:
    """Parse `[ADDRESS:]PORT:HOST:PORT` as ssh's -L does; IPv6 addresses are in brackets, `*` is every address."""
    found = _FORWARD.fullmatch(text)
    if found is None:
        raise UsageError(f"-L {text!r} is not [ADDRESS:]PORT:HOST:PORT; for a web server on port 3000: -L 8080:localhost:3000")
    port, there = int(found["port"]), int(found["there"])
    host = found["host6"] or found["host"]
    if port > 65535 or not 0 < there <= 65535:
        raise UsageError(f"-L {text!r}: a port is a number from 1 to 65535, and 0 here stands for any free one")
    if not host or host.startswith("-"):
        raise UsageError(f"-L {text!r}: {host!r} is not a host")
    bind = found["bind6"] or found["bind"]
    is_first = found["bind6"] is None and found["bind"] is None
    address = LOOPBACK if is_first or bind == "localhost" else "" if bind in ("", "*") else bind
    return Forward(address, port, host, there)


@contextlib.asynccontextmanager
async def forwarding(shell: SSHShell, forward: Forward, on_problem: Callable[[str], None]) -> AsyncIterator[int]:
    """Listen for the duration of the block; yield the port. `on_problem` receives why a connection failed.

    Raises UsageError if the port can't be used.
    """
    try:
        if not shell.has_supervisor:
            listener = await shell.forward_port(forward.bind, forward.port, forward.host, forward.host_port)
            try:
                yield listener.get_port()
            finally:
                listener.close()
                await listener.wait_closed()
            return
        relays: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            relays.add(task)
            try:
                await _relay(shell, forward, reader, writer, on_problem)
            except GibilError as error:
                on_problem(error.message)
            except (OSError, asyncio.CancelledError):
                pass  # the local program has closed its connection, or the forwarding ends
            finally:
                relays.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, forward.bind or None, forward.port, limit=_BLOCK)
    except OSError as error:
        where = f"{forward.bind or '*'}:{forward.port}"
        raise UsageError(f"-L: {where} can't be listened on: {error.strerror or error}", code="PORT") from None
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tuple(relays):
            task.cancel()
        if relays:
            await asyncio.wait(tuple(relays))


async def _relay(
    shell: SSHShell,
    forward: Forward,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    on_problem: Callable[[str], None],
) -> None:
    complaint = bytearray()
    channel: Channel | None = None
    draining: asyncio.Task[None] | None = None

    async def drain() -> None:
        assert channel is not None
        channel.pause()
        try:
            await writer.drain()
        except OSError:
            channel.close()
        finally:
            channel.resume()

    def on_data(stream: str, data: bytes) -> None:
        nonlocal draining
        if stream == "stderr":
            complaint.extend(data[: _COMPLAINT_BYTES - len(complaint)])
            return
        writer.write(data)
        waiting = writer.transport.get_write_buffer_size()
        if channel is not None and waiting > _MOST_WAITING and (draining is None or draining.done()):
            draining = asyncio.create_task(drain())

    command = f"exec perl -e {shlex.quote(_CONNECT)} {shlex.quote(forward.host)} {forward.host_port}"
    channel = await shell.open_channel(command, on_data)
    sending = asyncio.create_task(_send(reader, channel))
    try:
        await asyncio.shield(channel.ended)
        if channel.exit_status not in (0, None) and complaint:
            on_problem(f"{forward.host}:{forward.host_port}: {last_line(bytes(complaint))}")
        with contextlib.suppress(OSError):
            await writer.drain()
    finally:
        if not channel.ended.done():
            channel.close()
        sending.cancel()
        await asyncio.gather(sending, *([draining] if draining else []), return_exceptions=True)


async def _send(reader: asyncio.StreamReader, channel: Channel) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_BLOCK):
            if not await channel.send(data):
                return
    channel.end_input()
