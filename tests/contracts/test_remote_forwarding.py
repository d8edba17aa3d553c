"""Ports of a machine that reach one service of this process (ssh/remote_forwarding.py), on every kind of machine."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator

import pytest

from gibil_bot.errors import MachineLost, SSHError
from gibil_bot.scripts.commands import release_port_script
from gibil_bot.ssh.client import SSHShell
from gibil_bot.ssh.remote_forwarding import forward_remote, keep_forwarding
from tests.contracts.shells import Far, far_machine
from tests.doubles.patience import patient


@contextlib.asynccontextmanager
async def service(name: bytes) -> AsyncIterator[int]:
    """Answer each connection with a name, and what the client has sent up to its end."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(name + b" " + await reader.read(-1))
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def ask(shell: SSHShell, port: int, text: str = "hello") -> bytes:
    """Return what a program on the machine gets from a port of its loopback interface; b"" if it can't connect."""
    perl = (
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $ARGV[0]) or exit 7;"
        "print $s $ARGV[1]; $s->flush; shutdown $s, 1; print while <$s>"
    )
    result = await shell.run(f'exec perl -e "$PROGRAM" {port} {text}', env={"PROGRAM": perl}, timeout_s=patient(20))
    assert result.exit_status in (0, 7)
    return result.stdout


async def test_a_port_of_the_machine_reaches_one_service_until_the_block_ends(far: Far, shell: SSHShell) -> None:
    async with service(b"first") as one, service(b"second") as two:
        async with forward_remote(shell, one) as first:
            async with forward_remote(shell, two) as second:
                assert first != second
                assert await ask(shell, first) == b"first hello"
                assert await ask(shell, second) == b"second hello"
            assert await ask(shell, second) == b""
            assert await ask(shell, first, "again") == b"first again"
            if far.home == "/root":  # a separate network
                assert await ask(shell, one) == b""
            with pytest.raises(SSHError, match=f"can't listen on port {first}"):
                async with forward_remote(shell, two, port=first):
                    pass
        assert await ask(shell, first) == b""
        async with forward_remote(shell, two, port=first) as again:
            assert again == first
            assert await ask(shell, again) == b"second hello"


async def test_a_service_that_cannot_be_reached_ends_the_connection(shell: SSHShell) -> None:
    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        raise ConnectionRefusedError

    async with forward_remote(shell, connect) as port:
        assert await ask(shell, port) == b""
        assert (await shell.run("echo alive")).stdout == b"alive\n"


async def test_a_flood_of_connections_is_bounded(shell: SSHShell) -> None:
    open_now, most, reached = 0, 0, asyncio.Event()

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        if open_now == 3:
            reached.set()
        writer.write(b"x")
        await reader.read(-1)
        open_now -= 1
        writer.close()

    flood = (
        "use IO::Socket::INET; my @all; for (1..100) { my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1',"
        "PeerPort => $ARGV[0], Timeout => 5) or next; push @all, $s } <STDIN>"
    )

    async def until_reached() -> AsyncIterator[bytes]:
        await reached.wait()
        yield b"go\n"

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        async with forward_remote(shell, server.sockets[0].getsockname()[1], most=3) as port:
            flooding = f'exec perl -e "$PROGRAM" {port}'
            await shell.run(flooding, stdin=until_reached(), env={"PROGRAM": flood}, timeout_s=patient(60))
            assert most == 3
        async with service(b"after") as after, forward_remote(shell, after, most=3) as port:
            assert await ask(shell, port) == b"after hello"


async def test_a_reader_that_stops_also_stops_the_service(shell: SSHShell) -> None:
    total, sent = 48 * 1024 * 1024, 0
    go = asyncio.Event()
    finished = asyncio.Event()

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while sent < total:
            writer.write(bytes(65536))
            await writer.drain()
            sent += 65536
        finished.set()
        writer.close()

    async def stdin() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"go\n"

    reading = (
        "use IO::Socket::INET; my $s = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $ARGV[0]) or exit 7;"
        "<STDIN>; my ($n, $all) = (1, 0); while ($n) { $n = sysread $s, my $x, 65536; $all += $n } print $all"
    )
    async with (
        await asyncio.start_server(pour, "127.0.0.1", 0) as server,
        forward_remote(shell, server.sockets[0].getsockname()[1]) as port,
    ):
        script = f"exec perl -e {shlex.quote(reading)} {port}"
        running = asyncio.create_task(shell.run(script, stdin=stdin(), timeout_s=patient(60)))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):  # an unbounded buffer takes it all in less
                await finished.wait()
        assert sent < total / 2
        go.set()
        assert (await running).stdout == str(total).encode()


async def test_the_port_stays_the_same_after_a_lost_connection(far: Far) -> None:
    connections: list[SSHShell] = []
    reconnected = asyncio.Event()

    async def connect() -> SSHShell:
        connections.append(await far.connect())
        if len(connections) > 1:
            reconnected.set()
        return connections[-1]

    other = await far.connect()
    async with service(b"kept") as local:
        async with keep_forwarding(connect, local) as forward:
            port = forward.port
            assert await ask(other, port) == b"kept hello"
            await connections[0].close()
            async with asyncio.timeout(patient(20)):
                await reconnected.wait()
                while await ask(other, port) != b"kept hello":  # the new listener has no other signal
                    pass
            assert forward.port == port
            assert not forward.lost.done()
        assert await ask(other, port) == b""
        assert all(connection.is_closed for connection in connections)
    await other.close()


async def test_a_loss_for_good_is_reported(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with far_machine("inside", tmp_path_factory) as far:
        connections: list[SSHShell] = []

        async def connect() -> SSHShell:
            if connections:
                raise MachineLost("gone")
            connections.append(await far.connect())
            return connections[0]

        async with keep_forwarding(connect, 9, reconnect_s=0) as forward:
            await connections[0].close()
            async with asyncio.timeout(patient(10)):
                assert str(await forward.lost) == "gone"


async def test_sshds_port_of_a_cut_connection_is_freed(tmp_path_factory: pytest.TempPathFactory) -> None:
    async with far_machine("openssh", tmp_path_factory) as far, service(b"new") as new:
        cut, shell = await far.connect(), await far.connect()
        with contextlib.suppress(MachineLost):
            async with forward_remote(cut, 9) as port:
                await shell.run(release_port_script(port))
                async with forward_remote(shell, new, port=port):
                    assert await ask(shell, port) == b"new hello"
        await cut.close()
        await shell.close()
