"""Templates at Hetzner: snapshots with a name and a price, over the API's double."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import asyncssh
import pytest

from gibil_bot.errors import MachineNotFound, ProviderError, UsageError
from gibil_bot.machines import templates
from gibil_bot.model import Machine, MachineSpec
from gibil_bot.ports import Forking, Templating
from tests.doubles.hetzner import HetznerDouble, hetzner_double


@pytest.fixture
async def double() -> AsyncIterator[HetznerDouble]:
    async with hetzner_double() as double:
        yield double


def spec(name: str, **more: Any) -> MachineSpec:
    key = asyncssh.generate_private_key("ssh-ed25519")
    public = key.export_public_key().decode()
    private = key.export_private_key().decode()
    return MachineSpec(name=name, owner="tests", ttl_s=600, authorized_key=public, host_key=private, **more)


async def test_a_snapshot_has_the_name_the_code_and_the_price_of_its_size(double: HetznerDouble) -> None:
    provider = double.provider()
    assert isinstance(provider, Templating)
    try:
        await provider.create(spec("source", labels={"repo": "https://github.com/o/n", "commit": "c", "purpose": "x"}))
        double.state.snapshot_s = 0.05
        saved = await provider.save_template("source", "ready")
        assert (saved.name, saved.provider, saved.layer, saved.size_mb) == ("ready", "hetzner", None, 2560)
        assert saved.labels == {"repo": "https://github.com/o/n", "commit": "c"}
        assert (saved.price_monthly, saved.currency) == (Decimal("0.0275"), "EUR")  # 2.5 GB of 0.0110
        assert await provider.templates() == [saved]
        next_one = await provider.create(spec("next", image=saved.image))
        assert next_one.labels["image"] == saved.id
        assert [machine.name for machine in await provider.list_machines()] == ["source", "next"]
    finally:
        await provider.close()


async def test_the_name_of_a_template_is_used_once_and_free_after_its_deletion(double: HetznerDouble) -> None:
    provider = double.provider()
    try:
        await provider.create(spec("source"))
        await provider.save_template("source", "ready")
        with pytest.raises(UsageError, match="gibil template delete ready") as refused:
            await provider.save_template("source", "ready")
        assert refused.value.code == "TEMPLATE_EXISTS"
        await provider.save_template("source", "ready2")
        assert [await provider.delete_template("ready") for _ in range(2)] == [True, False]
        assert [template.name for template in await provider.templates()] == ["ready2"]
        with pytest.raises(MachineNotFound):
            await provider.save_template("absent", "ready")
    finally:
        await provider.close()


async def test_a_snapshot_that_fails_or_takes_too_long_is_deleted(double: HetznerDouble) -> None:
    provider = double.provider(snapshot_s=0.05)
    try:
        await provider.create(spec("source"))
        double.state.snapshot_s = 0.5
        with pytest.raises(ProviderError, match=r"isn't complete after"):
            await provider.save_template("source", "slow")
        assert double.state.snapshots == {}
        await provider.create(spec("other"))
        double.state.snapshot_s, double.state.snapshot_fails = 0.0, True
        with pytest.raises(ProviderError, match="create_image failed"):
            await provider.save_template("other", "failing")
        assert double.state.snapshots == {}
    finally:
        await provider.close()


async def test_the_disk_is_written_before_the_snapshot(double: HetznerDouble) -> None:
    calls: list[tuple[str, str, bool]] = []

    async def run_on(machine: Machine, script: str) -> None:
        calls.append((machine.name, script, bool(double.state.snapshots)))

    provider = double.provider(run_on=run_on)
    try:
        await provider.create(spec("source"))
        await provider.save_template("source", "ready")
        assert calls == [("source", "sync", False)]
    finally:
        await provider.close()


async def test_a_fork_says_what_to_use_instead(double: HetznerDouble) -> None:
    provider = double.provider()
    try:
        machine = await provider.create(spec("source"))
        assert not isinstance(provider, Forking)
        with pytest.raises(
            UsageError, match=r"gibil template create NAME --from source\).*gibil create --template NAME"
        ) as refused:
            templates.forking(provider, machine)
        assert refused.value.code == templates.NOT_SUPPORTED
    finally:
        await provider.close()
