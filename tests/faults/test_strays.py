"""A machine without a run is destroyed; a machine that a user created is left alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gibil_bot.config import load_settings
from gibil_bot.wiring import open_factory
from tests.doubles.bot import journey
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")


async def test_machines_of_a_crashed_bot_are_destroyed_at_the_next_start_and_users_machines_are_not(tmp_path: Path) -> None:
    async with journey(tmp_path, start=False) as world:
        settings = load_settings({"GIBIL_DATA_DIR": str(world.bot.data_dir)})
        factory = open_factory(settings)
        owner = factory.keyring.machine_owner()
        try:
            for name, labels in (("stray", {"run": "0123456789abcdef"}), ("mine", {})):
                _, shell = await factory.create(name, owner, 600, labels)
                await shell.close()
        finally:
            await factory.close()
        await world.bot.start()
        async with asyncio.timeout(patient(30)):
            while "stray" in (left := await world.machines()):
                await asyncio.sleep(0.02)  # the bot's interval of a minute: there is no event to wait for
        assert left == ["mine"]
