"""`/healthz` while the database is silent, locked, read-only or full: a 503 soon, at little cost, and 200 again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gibil_bot.config import Settings
from gibil_bot.runs.sql.store import SqlStore
from gibil_bot.web.app import create_app
from gibil_bot.wiring import Bot
from tests.doubles.cable import relay
from tests.doubles.databases import open_store
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster


@contextlib.asynccontextmanager
async def client_of(store: SqlStore, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Bot(settings=Settings(data_dir=folder, database_url=""), store=store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot") as client:
        yield client


async def until(client: httpx.AsyncClient, status: int) -> httpx.Response:
    async with asyncio.timeout(patient(30)):
        while (answer := await client.get("/healthz")).status_code != status:
            await asyncio.sleep(0.05)  # another process's state: there is no event to wait for
    return answer


async def test_a_silent_database_is_reported_before_its_own_limit_and_asked_once_for_all(
    postgres: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with postgres.lend_database() as name, relay(postgres.port) as line:
        store = await open_store(postgres.url(name, port=line.port))
        count, asked = store.counts, 0

        async def counted() -> dict[str, int]:
            nonlocal asked
            asked += 1
            return await count()

        monkeypatch.setattr(store, "counts", counted)
        async with client_of(store, tmp_path) as client:
            assert (await client.get("/healthz")).json()["status"] == "ok"
            line.silence()
            itself = asyncio.create_task(count())
            answers = await asyncio.gather(*(client.get(path) for path in ("/healthz", "/metrics") * 30))
            assert not itself.done()
            assert {answer.status_code for answer in answers} == {503}
            assert (await client.get("/healthz")).json() == {
                "status": "failing",
                "database": "the database doesn't answer; the bot's log has the reason",
            }
            assert asked <= 3
            line.mend()
            await until(client, 200)
            await asyncio.gather(itself, return_exceptions=True)
        await store.close()


async def test_many_requests_wait_on_one_connection(postgres: Cluster, tmp_path: Path) -> None:
    async with postgres.lend_database() as name:
        store = await open_store(postgres.url(name))
        other = await postgres.connect(name)
        async with client_of(store, tmp_path) as client:
            async with other.transaction():
                await other.execute("lock table deliveries")
                waiting = [asyncio.create_task(client.get("/metrics")) for _ in range(50)]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                locked = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
                assert await other.fetchval(locked) == 1
                assert await store.inbox.spend("ada", cost=1, capacity=9, per_s=1.0), "other work has connections"
            await asyncio.gather(*waiting)
            await until(client, 200)
        await other.close()
        await store.close()


async def test_a_database_that_cannot_be_written_is_reported(
    postgres: Cluster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with postgres.lend_database() as name:
        store = await open_store(postgres.url(name))
        async with client_of(store, tmp_path) as client:
            await postgres.execute(f"alter database {name} set default_transaction_read_only = on")
            await postgres.end_sessions(name)
            answer = await until(client, 503)
            async with asyncio.timeout(patient(30)):
                while "deliveries can't be stored" not in answer.text:
                    answer = await until(client, 503)
            assert (await client.get("/metrics")).status_code == 200
            await client.get("/healthz")
            assert sum("it is a standby, or read-only" in record.getMessage() for record in caplog.records) == 1
            await postgres.execute(f"alter database {name} reset default_transaction_read_only")
            await postgres.end_sessions(name)
            await until(client, 200)
        await store.close()


FULL = """
import asyncio, hmac, sys
from pathlib import Path
import httpx
from gibil_bot.config import Secret, Settings
from gibil_bot.runs.sqlite.store import open_store
from gibil_bot.web.app import create_app
from gibil_bot.wiring import Bot

folder = Path(sys.argv[1])
SECRET = "the secret of these tests"

async def deliver(client, guid, body):
    signature = "sha256=" + hmac.new(SECRET.encode(), body, "sha256").hexdigest()
    headers = {"X-Hub-Signature-256": signature, "X-GitHub-Delivery": guid, "X-GitHub-Event": "issue_comment"}
    return await client.post("/webhook", content=body, headers=headers)

async def main():
    store = await open_store(f"sqlite:///{folder}/gibil.db")
    settings = Settings(data_dir=folder, database_url="", webhook_secrets=(Secret(SECRET),))
    app = create_app(Bot(settings=settings, store=store))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot") as client:
        print((await client.get("/healthz")).status_code, flush=True)
        for size in (1 << 20, 4096, 1):
            try:
                with open(folder / "filler", "ab") as filler:
                    while True:
                        filler.write(b"x" * size)
                        filler.flush()
            except OSError:
                pass
        stored, body = 0, b'{"action": "created", "filler": "' + b"x" * 8000 + b'"}'
        while (await deliver(client, str(stored), body)).status_code == 202:  # free pages of the file are used up first
            stored += 1
        async with asyncio.timeout(30):
            while (answer := await client.get("/healthz")).status_code == 200:
                pass
        print(answer.status_code, answer.json()["database"], flush=True)
        print((await client.get("/metrics")).status_code, flush=True)
        (folder / "filler").unlink()
        async with asyncio.timeout(30):
            while (answer := await client.get("/healthz")).status_code != 200:
                pass
        print(answer.json()["status"], (await deliver(client, "later", body)).status_code, flush=True)
    await store.close()

asyncio.run(main())
"""


def test_a_full_disk_is_reported_until_space_is_freed(tmp_path: Path) -> None:
    """On a real file system of 4 MB, in a private mount namespace."""
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path}"
    script = Path(__file__).parents[2] / "gibil_bot" / "__init__.py"
    tried = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && cat {script}"], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"a private file system can't be mounted here: {tried.stderr.strip()}")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$0" -c "$1" {tmp_path}', sys.executable, FULL],
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(60),
    )
    assert done.stdout.splitlines() == [
        "200",
        "503 deliveries can't be stored: the database's disk is full; free some space, then the bot continues by itself",
        "200",
        "ok 202",
    ], done.stderr
