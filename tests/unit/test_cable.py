"""The relay between a bot and its database: what arrives before, during and after a cut or a silence."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from tests.doubles.cable import Relay, relay
from tests.doubles.patience import patient


@pytest.fixture
async def line() -> AsyncIterator[Relay]:
    """A relay to a server that returns each line that it receives."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            async for sent in reader:
                writer.write(sent)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, relay(server.sockets[0].getsockname()[1]) as it:
        yield it


async def asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes) -> bytes:
    writer.write(line)
    return await asyncio.wait_for(reader.readline(), patient(5))


async def test_a_cut_resets_connections_and_ends_listening_until_it_is_mended(line: Relay) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    assert await asked(reader, writer, b"one\n") == b"one\n"
    line.cut()
    with pytest.raises(ConnectionResetError):
        await asked(reader, writer, b"two\n")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", line.port)
    line.mend()
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    assert await asked(reader, writer, b"three\n") == b"three\n"
    writer.close()


async def test_during_a_silence_nothing_arrives_and_nothing_is_closed(line: Relay) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    assert await asked(reader, writer, b"one\n") == b"one\n"
    line.silence()
    writer.write(b"two\n")
    new_reader, new_writer = await asyncio.open_connection("127.0.0.1", line.port)
    new_writer.write(b"three\n")
    answers = [asyncio.create_task(each.readline()) for each in (reader, new_reader)]
    done, _ = await asyncio.wait(answers, timeout=0.05)
    assert not done
    line.mend()
    assert [await asyncio.wait_for(answer, patient(5)) for answer in answers] == [b"two\n", b"three\n"]
    writer.close()
    new_writer.close()


async def test_what_was_sent_during_a_silence_is_lost_if_the_connection_is_cut_before_its_end(line: Relay) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", line.port)
    assert await asked(reader, writer, b"one\n") == b"one\n"
    line.silence()
    writer.write(b"two\n")
    line.cut()
    line.mend()
    with pytest.raises(ConnectionResetError):
        await asyncio.wait_for(reader.readline(), patient(5))
