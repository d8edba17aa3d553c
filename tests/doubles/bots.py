"""Several bots on several hosts, which share a PostgreSQL, behind one address to which GitHub delivers.

A host is a data directory with a separate daemon; all have the same keyring. `Front` is the load balancer: it passes a
connection to the next bot that listens.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gibil_bot.demo.github_double import GitHubDouble
from tests.doubles.bot import REPOSITORY, BotProcess, Journey, journey
from tests.doubles.machines import lent_data_dir


class Front:
    """`port` leads to the bots in turn; those that don't listen are passed over."""

    def __init__(self, bots: list[BotProcess]) -> None:
        self._bots = bots
        self._turn = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *error: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError):
                await self._relay(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self._bots:
            self._turn += 1
            bot = self._bots[self._turn % len(self._bots)]
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", int(bot.url.rpartition(":")[2]))
            except OSError:
                continue
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(_pump(reader, far_writer))
                    tasks.create_task(_pump(far_reader, writer))
            except* OSError:
                pass
            finally:
                far_writer.transport.abort()
            return


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def free_port() -> int:
    """Return a free port that no outgoing connection receives while its bot is down: Linux gives those from 32768 on."""
    for _ in range(100):
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port between 20000 and 32000 is free")


@dataclass(kw_only=True)
class Bots:
    """`journeys` has one for each bot, all with the same GitHub."""

    github: GitHubDouble
    bots: list[BotProcess]
    journeys: list[Journey] = field(default_factory=list)

    def log(self, most: int = 4000) -> str:
        return "\n".join(f"=== bot {number}\n{bot.text()[-most:]}" for number, bot in enumerate(self.bots))


@contextlib.asynccontextmanager
async def several_bots(
    folder: Path,
    database_url: str,
    *,
    count: int = 3,
    settings: Mapping[str, str] | None = None,
    workflows: Mapping[str, str] | None = None,
    repository: str = REPOSITORY,
    urls: Mapping[int, str] | None = None,
) -> AsyncIterator[Bots]:
    """Start the bots. `urls`: the database's for some of them, such as that of a relay."""
    keyring = secrets.token_bytes(32)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            journey(
                folder,
                start=False,
                settings={"GIBIL_DATABASE_URL": database_url, **(settings or {})},
                workflows=workflows,
                repository=repository,
            )
        )
        bots: list[BotProcess] = []
        for number in range(count):
            place = folder / f"host-{number}"
            place.mkdir()
            data_dir = await stack.enter_async_context(lent_data_dir(place, own_daemon=True))
            (data_dir / "keyring.key").touch(0o600)
            (data_dir / "keyring.key").write_bytes(keyring)
            environment = {**first.bot.environment, "GIBIL_DATA_DIR": str(data_dir)}
            if urls is not None and number in urls:
                environment["GIBIL_DATABASE_URL"] = urls[number]
            url = environment["GIBIL_BOT_URL"] = f"http://127.0.0.1:{free_port()}"
            bot = BotProcess(environment=environment, data_dir=data_dir, log=folder / f"bot-{number}.log", url=url)
            bots.append(bot)
        several = Bots(github=first.github, bots=bots)
        several.journeys = [Journey(github=first.github, bot=bot) for bot in bots]
        try:
            await asyncio.gather(*(bot.start() for bot in bots))
            front = await stack.enter_async_context(Front(bots))
            first.github.webhook_url = f"{front}/webhook"
            yield several
        finally:
            await asyncio.gather(*(bot.stop() for bot in bots if bot.process is not None and bot.process.returncode is None))
            await first.github.webhooks_sent()
