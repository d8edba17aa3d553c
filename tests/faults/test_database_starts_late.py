"""A bot that starts before its database waits for it, and can be stopped meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.doubles.bot import journey
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
async def test_a_bot_waits_for_its_database_and_ends_when_it_is_told_to(tmp_path: Path, own_postgres: Cluster) -> None:
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
