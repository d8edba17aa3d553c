"""What every Provider promises, kept by the Hetzner provider on servers that really boot.

These are the tests of test_provider.py that need a booted machine; each boot takes seconds. What the API alone decides is in
test_hetzner.py, who gets in in journeys/test_hetzner_boots.py, what a shell on OpenSSH does in test_shell.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.model import Machine, MachineSpec
from gibil_bot.providers.hetzner.provider import HetznerProvider
from tests.contracts.test_provider import (  # noqa: F401 - collected here, with the fixture `lodging` of this file
    test_a_created_machine_is_what_was_asked_for,
    test_destroy_ends_everything_and_may_be_repeated,
)
from tests.doubles.hetzner import hetzner_double
from tests.doubles.hetzner_guests import Image, LocalGuests, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.machines import Lodging, shared_folder


class Booted(HetznerProvider):
    """A machine may exist before SSH answers; these tests do not wait for it, so this does."""

    guests: LocalGuests

    async def create(self, spec: MachineSpec) -> Machine:
        machine = await super().create(spec)
        await self.guests.booted(spec.name)
        return machine


@pytest.fixture
async def lodging(hetzner_image: Image, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lodging]:
    async with (
        local_guests(tmp_path / "data", shared_folder(tmp_path_factory), hetzner_image) as guests,
        hetzner_double(State(guests=guests)) as double,
    ):
        provider = Booted(double.token, endpoint=double.endpoint, ssh_port=guests.port, look_every_s=0.02)
        provider.guests = guests
        try:
            yield Lodging(provider)
        finally:
            await provider.close()
