"""A delivery that arrives while the database is locked: GitHub gets an error in time, and a request for redelivery soon."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from pathlib import Path
from typing import cast

import httpx
import pytest

from gibil_bot.config import Secret, Settings
from gibil_bot.model import Delivery, Endpoint
from gibil_bot.ports import GitHub, Shell
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.runs.reaper import Reaper
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.runs.sqlite import database
from gibil_bot.runs.sqlite.store import open_store
from gibil_bot.web.app import create_app
from gibil_bot.wiring import Bot
from tests.contracts.store_nouns import delivery
from tests.doubles.patience import patient
from tests.doubles.provider import MemoryProvider

SECRET = "the secret of these tests"
WITHIN_S = 15.0
GITHUB_WAITS_S = 10.0


class DeliveryLog:  # only the two methods of GitHub that are called here
    """GitHub's failed delivery; a request for redelivery stores it."""

    def __init__(self, store: SqlStore, lost: Delivery) -> None:
        self._store = store
        self._lost = lost
        self.looked = 0
        self.redelivered = asyncio.Event()

    async def failed_deliveries(self, since: datetime) -> list[tuple[int, str]]:
        self.looked += 1
        return [] if self.redelivered.is_set() else [(1, self._lost.guid)]

    async def redeliver(self, delivery_number: int) -> None:
        await self._store.inbox.accept(self._lost)
        self.redelivered.set()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds a write transaction open."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("begin immediate")
    try:
        yield
    finally:
        other.execute("rollback")
        other.close()


@contextlib.asynccontextmanager
async def webhook(store: SqlStore, folder: Path, lost: asyncio.Event) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(data_dir=folder, database_url="", webhook_secrets=(Secret(SECRET),))
    app = create_app(Bot(settings=settings, store=store, delivery_lost=lost.set))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot") as client:
        yield client


async def post(client: httpx.AsyncClient, guid: str) -> int:
    signature = hmac.new(SECRET.encode(), b"{}", hashlib.sha256).hexdigest()
    headers = {"X-Hub-Signature-256": f"sha256={signature}", "X-GitHub-Delivery": guid, "X-GitHub-Event": "ping"}
    return (await client.post("/webhook", content=b"{}", headers=headers)).status_code


async def test_deliveries_to_a_locked_database_get_503_in_time_also_queued_ones(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:///{tmp_path}/gibil.db")
    lost = asyncio.Event()
    try:
        async with webhook(store, tmp_path, lost) as client:
            with locked(tmp_path / "gibil.db"):
                begun = time.monotonic()
                first = asyncio.create_task(post(client, "first"))
                await asyncio.sleep(0)
                await asyncio.wait({first}, timeout=0.5)  # it is being written, so that the second one has to wait for it
                assert [*await asyncio.gather(first, post(client, "second"))] == [503, 503]
                assert time.monotonic() - begun < patient(GITHUB_WAITS_S)
            assert lost.is_set()
            assert await post(client, "third") == 202
    finally:
        await store.close()


async def test_a_hanging_database_gets_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gibil_bot.web.app.STORED_WITHIN_S", 0.2)
    store = await open_store(f"sqlite:///{tmp_path}/gibil.db")
    lost = asyncio.Event()
    try:
        async with webhook(store, tmp_path, lost) as client:
            with locked(tmp_path / "gibil.db"):
                assert await post(client, "first") == 503
            assert lost.is_set()
    finally:
        await store.close()


async def test_a_lost_delivery_is_requested_as_soon_as_the_database_is_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gibil_bot.runs.reaper.AFTER_LOSS_S", 0.1)
    monkeypatch.setattr(database, "BUSY_S", 0.05)

    async def no_shell(endpoint: Endpoint, client_key: str) -> Shell:
        raise AssertionError("there are no machines")

    store = await open_store(f"sqlite:///{tmp_path}/gibil.db")
    factory = MachineFactory(provider=MemoryProvider(), keyring=Keyring(tmp_path), connect_shell=no_shell)
    github = DeliveryLog(store, delivery("lost"))
    github.redelivered.set()  # nothing is lost yet
    reaper = Reaper(store, factory, cast(GitHub, github), "tests", tmp_path / "logs")
    task = asyncio.create_task(reaper.run())
    try:
        async with asyncio.timeout(patient(WITHIN_S)):
            while not github.looked:
                await asyncio.sleep(0.01)  # the reaper's own state
            with locked(tmp_path / "gibil.db"):
                github.redelivered.clear()
                reaper.delivery_lost()
                await asyncio.wait({task}, timeout=0.5)
                assert not github.redelivered.is_set()
            await github.redelivered.wait()
        found = await store.inbox.get("lost")
        assert found is not None
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await factory.close()
        await store.close()
