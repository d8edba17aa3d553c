"""From the environment to a Hetzner provider: which owner creates machines, with which keys, and what the doctor reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.cli.doctor import _provider
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import ConfigurationError
from gibil_bot.model import MachineSpec
from gibil_bot.ssh.host_keys import public_line
from gibil_bot.wiring import open_factory
from tests.doubles.hetzner import HetznerDouble, hetzner_double


def settings(folder: Path, **more: str) -> Settings:
    return load_settings({"GIBIL_DATA_DIR": str(folder), **more})


def test_a_token_selects_hetzner_and_the_provider_can_be_named(tmp_path: Path) -> None:
    assert settings(tmp_path).provider == "local"
    assert settings(tmp_path, HCLOUD_TOKEN="t").provider == "hetzner"
    assert settings(tmp_path, HCLOUD_TOKEN="t", GIBIL_PROVIDER="local").provider == "local"
    assert "secret-t" not in repr(settings(tmp_path, HCLOUD_TOKEN="secret-t"))


def test_all_invalid_settings_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="HCLOUD_TOKEN is not set") as caught:
        settings(tmp_path, GIBIL_PROVIDER="hetzner", HCLOUD_ENDPOINT="api.hetzner.cloud")
    assert len(caught.value.problems) == 2
    with pytest.raises(ConfigurationError, match="must be local or hetzner"):
        settings(tmp_path, GIBIL_PROVIDER="aws")


def at(double: HetznerDouble, folder: Path) -> Settings:
    return settings(folder, HCLOUD_TOKEN=double.token, HCLOUD_ENDPOINT=double.endpoint)


async def test_another_computer_with_the_token_is_another_owner_with_the_same_keys(tmp_path: Path) -> None:
    async with hetzner_double() as double:
        here, there = (open_factory(at(double, tmp_path / name)) for name in ("here", "there"))
        stranger = open_factory(settings(tmp_path / "stranger", HCLOUD_TOKEN="another", HCLOUD_ENDPOINT=double.endpoint))
        try:
            keys = [each.keyring.client_key("ada") for each in (here, there, stranger)]
            assert keys[0] == keys[1] != keys[2]
            assert public_line(here.keyring.host_key("ada")) == public_line(there.keyring.host_key("ada"))
            assert here.keyring.machine_owner() != there.keyring.machine_owner()
            spec = MachineSpec(
                name="ada",
                owner=here.keyring.machine_owner(),
                ttl_s=600,
                authorized_key=here.keyring.client_public("ada"),
                host_key=here.keyring.host_key("ada"),
            )
            machine = await here.provider.create(spec)
            (seen,) = await there.list()
            assert seen == machine
            assert seen.endpoint.host_key == public_line(there.keyring.host_key("ada"))
            assert await there.destroy("ada") is True
        finally:
            for each in (here, there, stranger):
                await each.close()


async def test_the_doctor_queries_the_api_without_creating_a_server(tmp_path: Path) -> None:
    async with hetzner_double() as double:
        found = await _provider(at(double, tmp_path))
        assert found.ok, found
        assert "vm" in found.detail
        assert double.called("POST /servers") == 0
        wrong = await _provider(settings(tmp_path, HCLOUD_TOKEN="wrong", HCLOUD_ENDPOINT=double.endpoint))
        assert not wrong.ok
        assert "HCLOUD_TOKEN" in wrong.detail
        readonly = await _provider(settings(tmp_path, HCLOUD_TOKEN=double.api.readonly_token, HCLOUD_ENDPOINT=double.endpoint))
        assert not readonly.ok
        assert "Read & Write" in readonly.detail
