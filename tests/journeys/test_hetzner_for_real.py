"""The bot with HCLOUD_TOKEN set, as operators run it: a server is created, boots, works, and is deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.doubles.bot import REPOSITORY, journey
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_guests import Image, LocalGuests, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.machines import shared_folder


@pytest.fixture
async def double(
    hetzner_image: Image, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[HetznerDouble]:
    """A Hetzner double with SSH on port 22, which the command expects of Hetzner."""
    guests_at_22 = local_guests(tmp_path / "cloud", shared_folder(tmp_path_factory), hetzner_image, port=22)
    try:
        guests = await guests_at_22.__aenter__()
    except RuntimeError as error:
        pytest.skip(f"{error}: this host's own sshd uses it")
    try:
        async with hetzner_double(State(guests=guests)) as double:
            yield double
    finally:
        await guests_at_22.__aexit__(None, None, None)


async def test_a_comment_becomes_a_check_run_on_a_cloud_server(double: HetznerDouble, tmp_path: Path) -> None:
    tasks = "tasks: [{name: where, run: 'grep 2 engine.py && test -e /etc/gibil/expires-at'}]\n"
    settings = {"HCLOUD_TOKEN": double.token, "HCLOUD_ENDPOINT": double.endpoint}
    async with journey(tmp_path, {"engine.py": "POWER = 1\n", ".gibil.yml": tasks}, settings=settings) as world:
        assert isinstance(double.state.guests, LocalGuests)
        double.state.guests.egress = (urlsplit(world.github.url).netloc,)
        number = await world.github.open_pull_request(REPOSITORY, "faster", {"engine.py": "POWER = 2\n"}, "ada")
        world.github.comment(REPOSITORY, number, "ada", "/gibil test")
        check = await world.closed_check(number)
        await world.all_published()
        assert check.conclusion == "success", check.text or check.summary
        assert double.called("POST /servers") == 1
        assert double.state.servers == {}
        assert double.state.primary_ips == {}
