"""`gibil init`, `gibil providers` and `gibil list` with local machines and a cloud: settings, costs, queried providers."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.config import load_settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.model import MachineSpec
from gibil_bot.providers.keyring import Keyring
from gibil_bot.wiring import open_factory
from tests.doubles.commandline import CommandLine
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.machines import lend, take_back


@pytest.fixture
async def double() -> AsyncIterator[HetznerDouble]:
    async with hetzner_double() as double:
        yield double


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[CommandLine]:
    line = CommandLine(tmp_path)
    line.here.mkdir()
    await lend(line.data_dir)
    yield line
    await take_back(line.data_dir)


async def gibil(line: CommandLine, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(line.gibil, *arguments, **more)


async def create_server(line: CommandLine, double: HetznerDouble, name: str, ttl_s: int = 600, **labels: str) -> None:
    """Create a server. It never boots, but it exists and costs."""
    settings = load_settings(
        {"GIBIL_DATA_DIR": str(line.data_dir), "HCLOUD_TOKEN": double.token, "HCLOUD_ENDPOINT": double.endpoint}
    )
    factory = open_factory(settings)
    try:
        spec = MachineSpec(
            name=name,
            owner=factory.keyring.machine_owner(),
            ttl_s=ttl_s,
            authorized_key=factory.keyring.client_public(name),
            host_key=factory.keyring.host_key(name),
            labels=labels,
        )
        await factory.provider.create(spec)
    finally:
        await factory.close()


async def test_init_checks_the_token_saves_it_privately_and_the_environment_overrides_it(
    line: CommandLine, double: HetznerDouble
) -> None:
    at = {"HCLOUD_ENDPOINT": double.endpoint}
    wrong = await gibil(line, "init", "--provider", "hetzner", "--token", "wrong", "--json", **at)
    assert wrong.returncode == 3
    assert not (line.data_dir / "settings.json").exists()
    assert "wrong" not in json.loads(wrong.stdout)["error"].replace("is wrong", "")
    done = await gibil(line, "init", "--provider", "hetzner", "--json", HCLOUD_TOKEN=double.token, **at)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["default"] == "hetzner"
    assert double.token not in done.stdout + done.stderr
    file = line.data_dir / "settings.json"
    assert file.stat().st_mode & 0o777 == 0o600
    environment = {"GIBIL_DATA_DIR": str(line.data_dir)}
    assert load_settings(environment).hcloud_token.reveal() == double.token
    assert load_settings(environment).provider == "hetzner"
    assert load_settings({**environment, "GIBIL_PROVIDER": "local", "HCLOUD_TOKEN": "other"}).hcloud_token.reveal() == "other"
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_settings(environment)


async def test_init_adds_a_provider_to_the_default_and_does_not_change_a_broken_file(
    line: CommandLine, double: HetznerDouble
) -> None:
    at = {"HCLOUD_ENDPOINT": double.endpoint}
    added = await gibil(line, "init", "--provider", "hetzner", "--add", "--token", double.token, "--json", **at)
    assert added.returncode == 0, added.stderr
    assert json.loads(added.stdout)["default"] == "local"
    file = line.data_dir / "settings.json"
    file.write_text("{broken")
    again = await gibil(line, "init", "--provider", "hetzner", "--token", double.token, **at)
    assert again.returncode == 6
    assert file.read_text() == "{broken"


async def test_prices_and_the_cost_so_far_come_from_the_provider(line: CommandLine, double: HetznerDouble) -> None:
    at = {"HCLOUD_ENDPOINT": double.endpoint, "HCLOUD_TOKEN": double.token}
    _local, hetzner = json.loads((await gibil(line, "providers", "--json", **at)).stdout)
    assert (hetzner["available"], hetzner["default"]) == (True, True)
    small = hetzner["sizes"][0]
    assert (small["name"], small["currency"]) == ("small", "EUR")
    assert float(small["price_hourly"]) > 0
    assert small["locations"]
    await create_server(line, double, "m", repo="ada/engine")
    (listed,) = json.loads((await gibil(line, "list", "--json", **at)).stdout)
    assert (listed["provider"], listed["repo"]) == ("hetzner", "ada/engine")
    assert listed["cost"]["so_far"] == listed["cost"]["hourly"] == small["price_hourly"]
    assert "hetzner" in (await gibil(line, "list", **at)).stdout


async def test_another_computer_can_list_and_destroy_the_machines_but_all_means_only_its_own(
    line: CommandLine, double: HetznerDouble, tmp_path: Path
) -> None:
    at = {"HCLOUD_ENDPOINT": double.endpoint, "HCLOUD_TOKEN": double.token}
    await create_server(line, double, "mine")
    await create_server(line, double, "run-1", run="0123")
    await create_server(line, double, "also-mine")
    (tmp_path / "other").mkdir()
    other = CommandLine(tmp_path / "other")
    other.here.mkdir()
    assert {view["name"] for view in json.loads((await gibil(other, "list", "--json", **at)).stdout)} == {
        "mine", "run-1", "also-mine",
    }  # fmt: skip
    assert json.loads((await gibil(other, "destroy", "--all", "--json", **at)).stdout) == []
    assert json.loads((await gibil(other, "destroy", "mine", "--json", **at)).stdout)["was_already_destroyed"] is False
    destroyed = json.loads((await gibil(line, "destroy", "--all", "--json", **at)).stdout)
    assert [view["name"] for view in destroyed] == ["also-mine"], "the bot's machine stays"
    forced = json.loads((await gibil(line, "destroy", "--all", "--force", "--json", **at)).stdout)
    assert [view["name"] for view in forced] == ["run-1"]
    assert double.state.servers == {}


async def test_list_destroys_expired_machines_and_reports_them(line: CommandLine, double: HetznerDouble) -> None:
    at = {"HCLOUD_ENDPOINT": double.endpoint, "HCLOUD_TOKEN": double.token}
    await create_server(line, double, "late", ttl_s=0)
    await create_server(line, double, "fine")
    listed = await gibil(line, "list", "--all-providers", "--json", **at)
    assert [view["name"] for view in json.loads(listed.stdout)] == ["fine"]
    assert "late" in listed.stderr


async def test_a_cloud_that_does_not_answer_is_reported_in_one_line(line: CommandLine) -> None:
    Keyring(line.data_dir).host_key("any")
    done = await gibil(line, "list", "--json", HCLOUD_TOKEN="t", HCLOUD_ENDPOINT="http://127.0.0.1:9/v1")
    assert done.returncode == 3
    assert "HCLOUD_ENDPOINT" in json.loads(done.stdout)["error"]
    assert "Traceback" not in done.stderr
