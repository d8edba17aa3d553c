"""A bot that starts before its database waits for it, and can be stopped meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import httpx
import pytest
from starlette.responses import PlainTextResponse

from gibil_bot.web.starting import Starting
from tests.doubles.bot import NO_AUTHORITIES, REPOSITORY, journey
from tests.doubles.bots import free_port
from tests.doubles.patience import patient
from tests.doubles.postgres import Cluster
from tests.doubles.prefork import Forked


async def waiting(bot: Forked) -> None:
    """Wait until the bot says what it waits for."""
    assert bot.stderr is not None
    async with asyncio.timeout(patient(20)):
        while b"waiting for the database" not in await asyncio.to_thread(bot.stderr.readline):
            pass


@pytest.mark.usefixtures("local_machines")
async def test_a_bot_waits_for_its_database_and_ends_on_a_signal(tmp_path: Path, own_postgres: Cluster) -> None:
    url = own_postgres.url(await own_postgres.create_database())
    async with journey(tmp_path, start=False, settings={"GIBIL_DATABASE_URL": url}) as world:
        await asyncio.to_thread(own_postgres.stop)
        bot = Forked(("serve", "--port", "0"), env=world.bot.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        await waiting(bot)
        bot.terminate()
        async with asyncio.timeout(patient(10)):
            assert await bot.ended() == 0
        assert bot.stderr is not None
        bot.stderr.close()
        starting = asyncio.create_task(world.bot.start())
        async with asyncio.timeout(patient(20)):
            while "waiting for the database" not in world.bot.text():
                await asyncio.sleep(0.05)  # another process's file: there is no event to wait for
        await asyncio.to_thread(own_postgres.start)
        await starting


@pytest.mark.usefixtures("local_machines")
async def test_a_bot_that_waits_answers_503_and_later_fetches_the_deliveries(tmp_path: Path, own_postgres: Cluster) -> None:
    url = own_postgres.url(await own_postgres.create_database())
    async with journey(tmp_path, start=False, settings={"GIBIL_DATABASE_URL": url}) as world:
        await asyncio.to_thread(own_postgres.stop)
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.bot.url = f"http://127.0.0.1:{free_port()}"
        world.github.webhook_url = f"{world.bot.url}/webhook"
        starting = asyncio.create_task(world.bot.start())
        async with asyncio.timeout(patient(20)):
            while "waiting for the database" not in world.bot.text():
                await asyncio.sleep(0.05)  # another process's file: there is no event to wait for
        world.github.comment(REPOSITORY, number, "ada", "/gibil help")
        await world.github.webhooks_sent()
        (delivery,) = [each for each in world.github.state.deliveries if each.event == "issue_comment"]
        assert (delivery.status_code, delivery.duration_s < 8) == (503, True), delivery
        assert "the bot is starting" in delivery.response
        async with httpx.AsyncClient(verify=NO_AUTHORITIES) as client:
            for path in ("/healthz", "/metrics", "/runs/0123456789abcdef"):
                answer = await client.get(f"{world.bot.url}{path}", timeout=patient(5))
                assert (answer.status_code, answer.json()["status"]) == (503, "starting")
                assert answer.headers["retry-after"] == "5"
        assert not starting.done()
        await asyncio.to_thread(own_postgres.start)
        await starting
        async with httpx.AsyncClient(verify=NO_AUTHORITIES) as client:
            assert (await client.get(f"{world.bot.url}/healthz")).status_code == 200
        await world.answer(number, having="/gibil test", timeout_s=40)


async def test_requests_during_a_short_start_are_answered_after_it() -> None:
    starting = Starting()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(starting), base_url="http://bot") as client:
        early = asyncio.create_task(client.post("/webhook"))
        await asyncio.wait({early}, timeout=0)
        starting.ready(PlainTextResponse("here"))
        assert (await early).text == "here"
        assert (await client.get("/healthz")).text == "here"
    assert starting.lost_deliveries == 0
