"""The Provider contract on the Hetzner provider, with servers that really boot.

These are the tests of test_provider.py that need a booted machine; each boot takes seconds. The API alone is tested in
test_hetzner.py, logins in journeys/test_hetzner_boots.py, shells on OpenSSH in test_shell.py.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.model import Machine, MachineSpec
from gibil_bot.providers.hetzner.provider import HetznerProvider
from tests.contracts.test_provider import (  # noqa: F401 - collected here, with the fixture `lodging` of this file
    test_a_machine_is_created_as_requested,
    test_destroy_removes_everything_and_can_be_repeated,
)
from tests.doubles.hetzner import hetzner_double
from tests.doubles.hetzner_guests import Image, LocalGuests, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.machines import Lodging, shared_folder


class Booted(HetznerProvider):
    """A provider whose `create` waits for SSH: a machine may exist before SSH answers, and these tests don't wait for it."""

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
