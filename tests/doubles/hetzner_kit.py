"""Helpers for tests of the Hetzner provider: a spec, the double, its provider, faults."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gibil_bot.model import MachineSpec
from gibil_bot.providers.hetzner.project import new_pair
from gibil_bot.providers.hetzner.provider import HetznerProvider
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_routes import Fault

CLIENT, HOST = new_pair(), new_pair()


def spec(name: str = "ada", **more: Any) -> MachineSpec:
    words: dict[str, Any] = {"owner": "tests", "ttl_s": 600, "authorized_key": CLIENT[1], "host_key": HOST[0]}
    return MachineSpec(name=name, **{**words, **more})


@pytest.fixture
async def double() -> AsyncIterator[HetznerDouble]:
    async with hetzner_double() as double:
        yield double


@pytest.fixture
async def provider(double: HetznerDouble) -> AsyncIterator[HetznerProvider]:
    provider = double.provider()
    yield provider
    await provider.close()


def arm(double: HetznerDouble, method: str, path: str, **more: Any) -> Fault:
    fault = Fault(method, path, **more)
    double.api.faults.append(fault)
    return fault
