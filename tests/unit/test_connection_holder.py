"""The process that holds connections: what arrives with the request to begin, and clients that don't read."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from gibil_bot import warm_run as warm
from gibil_bot.cli.connection_holder import ConnectionHolder, _Client
from gibil_bot.config import load_settings
from gibil_bot.machines.service import MachineService
from gibil_bot.model import MachineSpec, Result
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from tests.doubles.patience import patient
from tests.doubles.provider import MemoryProvider
from tests.unit.test_lifecycle import NoShell

REQUEST = warm.VERSION + warm.frame(warm.SETTINGS, b"") + b"\0".join([b"run", b"m", b"echo x"])


class RecordingShell(NoShell):
    """Records its scripts, which succeed."""

    def __init__(self) -> None:
        self.scripts: list[str] = []

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes | AsyncIterator[bytes] = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str, bytes], Awaitable[None] | None] | None = None,
        keep_output: bool = True,
        most_bytes: int = 0,
        tag: str | None = None,
    ) -> Result:
        self.scripts.append(script)
        return Result(exit_status=0, stdout=b"", stderr=b"")

    async def signal(self, tag: str, signal: str) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def shell() -> RecordingShell:
    return RecordingShell()


@pytest.fixture
async def holder(tmp_path: Path, shell: RecordingShell) -> AsyncIterator[ConnectionHolder]:
    async def connect(*_: object) -> RecordingShell:
        return shell

    keyring, provider = Keyring(tmp_path), MemoryProvider()
    await provider.create(MachineSpec(name="m", owner="o", ttl_s=600, authorized_key="", host_key=keyring.host_key("m")))
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path)})
    machines = MachineService(settings, MachineFactory(provider=provider, keyring=keyring, connect_shell=connect), "o")
    yield ConnectionHolder(settings, machines, b"")
    machines.release()


class Peer:
    """The other end of a client's connection."""

    def __init__(self, reader: asyncio.StreamReader, client: _Client) -> None:
        self._reader = reader
        self.client = client

    async def message(self) -> tuple[bytes, bytes]:
        header = await self._reader.readexactly(warm.HEADER_BYTES)
        return header[:1], await self._reader.readexactly(int.from_bytes(header[1:], "big"))


async def connected(accept: Callable[[_Client], None]) -> tuple[Peer, asyncio.StreamWriter]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=theirs)
    _, client = await asyncio.get_running_loop().create_connection(lambda: _Client(accept), sock=ours)
    return Peer(reader, client), writer


@pytest.mark.parametrize(
    "then",
    [
        lambda client: client.data_received(warm.frame(warm.INTERRUPT)),
        lambda client: client.data_received(warm.frame(warm.CANCEL)),
        lambda client: client.eof_received(),
    ],
    ids=["interrupt", "cancel", "end"],
)
async def test_an_interrupt_that_arrives_with_the_request_to_begin_is_not_lost(
    holder: ConnectionHolder, shell: RecordingShell, then: Callable[[_Client], object]
) -> None:
    peer, writer = await connected(holder._accept)
    async with asyncio.timeout(patient(10)):
        peer.client.data_received(warm.frame(warm.REQUEST, REQUEST))
        assert (await peer.message())[0] == warm.ACCEPTED
        peer.client.data_received(warm.frame(warm.GO))
        then(peer.client)
        assert await peer.message() == (warm.STDERR, b"gibil: interrupted\n")
        assert await peer.message() == (warm.ENDED, bytes((130,)))
        await asyncio.gather(*holder._clients)
        assert shell.scripts == []
        writer.close()
        await writer.wait_closed()


async def test_output_for_a_client_that_does_not_read_may_be_waited_for_or_not() -> None:
    peer, writer = await connected(lambda client: None)
    block = bytes(warm.FRAME_BYTES)
    while (waiting := peer.client.output("stdout", block)) is None:
        pass
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peer.client.output("stdout", block)
        gc.collect()
    assert caught == []
    async with asyncio.timeout(patient(10)):
        cancelled = asyncio.ensure_future(peer.client.output("stdout", block) or asyncio.sleep(0))
        await asyncio.sleep(0)
        cancelled.cancel()
        task = asyncio.ensure_future(waiting)
        while not task.done():
            await peer.message()
        await task
        assert peer.client.output("stdout", b"x") is None
        peer.client.close()
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("program", ["gibil", "gibil-python"])
def test_the_exit_status_counts_although_the_client_can_no_longer_write(tmp_path: Path, program: str) -> None:
    """A short command ends before its client has said that there is no input, which then can't be sent."""
    path = Path(sys.executable).with_name(program)
    if not path.exists():
        pytest.skip(f"{path} doesn't exist: install the package")
    folder = tmp_path / warm.FOLDER
    folder.mkdir(mode=0o700)
    environ = {"GIBIL_DATA_DIR": str(tmp_path), "PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    with socket.socket(socket.AF_UNIX) as holder:
        holder.settimeout(patient(10))
        place = os.open(folder, os.O_PATH)
        holder.bind(f"/proc/self/fd/{place}/{warm.socket_name(environ)}")
        os.close(place)
        holder.listen()
        client = subprocess.Popen(
            [path, "run", "box", "true"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        connection, _ = holder.accept()
        with connection:
            connection.settimeout(patient(10))
            connection.recv(warm.FRAME_BYTES)
            connection.sendall(warm.frame(warm.ACCEPTED, warm.NO_STDIN + b"tag"))
            assert connection.recv(warm.HEADER_BYTES) == warm.frame(warm.GO)
            connection.sendall(warm.frame(warm.ENDED, bytes([7])))
        output, _ = client.communicate(timeout=patient(20))
    assert (client.returncode, output) == (7, b"")
