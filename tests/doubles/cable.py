"""A cable between an SSH client and a machine, which a test can cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from msgspec.structs import replace

from gibil_bot.model import Endpoint


class Cable:
    """`endpoint` is the near end. `cut` closes every connection at once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()


@contextlib.asynccontextmanager
async def cable(far: Endpoint, folder: Path) -> AsyncIterator[Cable]:
    near = folder / "cable.sock"
    it = Cable(replace(far, host=None, unix_path=str(near)))
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        it._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                while data := await reader.read(65536):
                    writer.write(data)
                    await writer.drain()
        finally:
            it._writers.discard(writer)
            writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if far.unix_path is not None:
            far_reader, far_writer = await asyncio.open_unix_connection(far.unix_path)
        else:
            far_reader, far_writer = await asyncio.open_connection(far.host, far.port)
        for coroutine in (pump(reader, far_writer), pump(far_reader, writer)):
            task = asyncio.create_task(coroutine)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_unix_server(connected, str(near))
    try:
        yield it
    finally:
        server.close()
        await server.wait_closed()
        it.cut()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
