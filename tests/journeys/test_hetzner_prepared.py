"""Prepared machines at Hetzner: the second run starts from the archive of the first, on a server that really boots."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import pytest

from gibil_bot.model import Conclusion
from gibil_bot.providers.hetzner.provider import HetznerProvider
from gibil_bot.runs.archives import ArchiveStore
from gibil_bot.runs.prepared import PreparedMachines
from tests.doubles.hetzner import hetzner_double
from tests.doubles.hetzner_guests import Image, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.machines import shared_folder
from tests.doubles.workshop import INSTALL, workshop


async def test_the_second_run_on_a_cloud_server_installs_nothing(
    hetzner_image: Image, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with (
        local_guests(tmp_path / "cloud", shared_folder(tmp_path_factory), hetzner_image) as guests,
        hetzner_double(State(guests=guests)) as double,
        workshop(tmp_path / "w") as place,
    ):
        provider = HetznerProvider(double.token, endpoint=double.endpoint, ssh_port=guests.port, look_every_s=0.02)
        store = ArchiveStore(place.data_dir / "archives", "hetzner", reserve_bytes=0)
        prepared = PreparedMachines(place.data_dir / "prepared", store, name="hetzner", least_s=0.0)
        factory = dataclasses.replace(place.tools.factory, provider=provider)
        place.tools = dataclasses.replace(place.tools, factory=factory, prepared=prepared)
        install = f"{INSTALL}rm -r /srv; adduser --system builder >&2; install -o builder -m 4755 /bin/true /usr/local/bin/x"
        test = "tool; cat source; test -e /srv || echo deleted; stat -c '%U %a' /usr/local/bin/x; cat /etc/hostname"
        expected = ["a tool", "first", "deleted", "builder 4755"]
        first = await place.run(install=install, test=test)
        assert first.conclusion is Conclusion.SUCCESS, (first.results, first.run.note)
        assert first.output[:-1] == expected
        (usage,) = await prepared.usages()
        assert usage.entry.provider == "hetzner"
        assert 0 < usage.entry.size_mb < 10

        second = await place.run(install=install, test=test)
        assert (second.statuses, second.output[:-1]) == (["skipped", "success"], expected)
        assert second.output[-1] != first.output[-1]
        assert second.results[0].detail.startswith(f"prepared machine {usage.entry.layer[:8]}, saved ")
        assert double.called("POST /servers") == 2
        assert double.state.servers == {}
        assert not await asyncio.to_thread(lambda: list((place.data_dir / "archives").glob(".*")))

        daemon = f"{INSTALL}setsid -f sleep 300 >/dev/null 2>&1 </dev/null"
        third = await place.run(install=daemon, test="true")
        assert third.conclusion is Conclusion.SUCCESS
        assert len(await prepared.usages()) == 1  # what it left running isn't in an archive
        await provider.close()
