"""Hosts whose bots share a database, in this process: their data directories, web applications and clients."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.config import Settings
from gibil_bot.demo.server import serving
from gibil_bot.host_api.client import HostClient
from gibil_bot.host_api.signing import Signer
from gibil_bot.model import Claim, Host, NewRun, Run
from gibil_bot.runs.run_files import RunFiles
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite.store import open_store
from gibil_bot.web.app import create_app
from gibil_bot.wiring import Bot
from tests.contracts.store_nouns import queue

KEY = b"the key of one database".ljust(32)


@dataclass(kw_only=True)
class SharingHost:
    host: Host
    settings: Settings
    store: SqlStore
    logs: Path
    signer: Signer
    client: HostClient
    files: RunFiles

    def write(self, run_id: str, name: str, content: bytes) -> None:
        path = self.logs / run_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    async def present(self, url: str | None = None) -> None:
        """Tell the database that this host's bot runs, and where."""
        host = self.host if url is None else Host(id=self.host.id, name=self.host.name, url=url)
        await self.store.hosts.start(host, f"bot of {host.name}")

    async def works_on(self, new: NewRun | None = None) -> Run:
        """Queue a run if there is one, and claim the next one."""
        return (await self.claims(new)).run

    async def claims(self, new: NewRun | None = None) -> Claim:
        """Queue a run if there is one, and claim the next one."""
        if new is not None:
            await queue(self.store, new)
        claim = await self.store.runs.claim(f"bot of {self.host.name}", lease_s=60, max_machines=10, host=self.host.id)
        assert claim is not None
        return claim


@contextlib.asynccontextmanager
async def sharing_host(
    folder: Path, name: str, *, key: bytes = KEY, database_url: str | None = None
) -> AsyncIterator[SharingHost]:
    """Start a host on that database, or one in `folder`. It isn't present yet."""
    data_dir = folder / name
    data_dir.mkdir()
    database_url = database_url or f"sqlite:///{folder / 'shared.db'}"
    async with contextlib.AsyncExitStack() as stack:
        store = await open_store(database_url, exclusive=False)
        stack.push_async_callback(store.close)
        host_id = name.encode().hex().ljust(16, "0")[:16]
        signer = Signer(key, host_id)
        client = await stack.enter_async_context(HostClient(signer))
        settings = Settings(data_dir=data_dir, database_url=database_url)
        url = await stack.enter_async_context(serving(create_app(Bot(settings=settings, store=store, signer=signer))))
        yield SharingHost(
            host=Host(id=host_id, name=name, url=url),
            settings=settings,
            store=store,
            logs=data_dir / "logs",
            signer=signer,
            client=client,
            files=RunFiles(data_dir / "logs", host_id, store.hosts, client),
        )


@contextlib.asynccontextmanager
async def two_hosts(folder: Path) -> AsyncIterator[tuple[SharingHost, SharingHost]]:
    """Start the hosts ada and bob, both present."""
    async with sharing_host(folder, "ada") as ada, sharing_host(folder, "bob") as bob:
        await ada.present()
        await bob.present()
        yield ada, bob
