"""What a creation that fails after its machine exists leaves behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.config import load_settings
from gibil_bot.errors import GibilError, MachineLost, ProviderError
from gibil_bot.machines.request import CreateRequest
from gibil_bot.machines.service import MachineService
from gibil_bot.model import Machine, Result
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from tests.doubles.provider import MemoryProvider
from tests.unit.test_lifecycle import NoShell


class FailingShell(NoShell):
    """Fails every script, and marks the provider as broken."""

    def __init__(self, provider: ForgetfulProvider) -> None:
        self._provider = provider

    async def run(self, script: str, **_: object) -> Result:
        self._provider.broken = True
        return Result(exit_status=1, stdout=b"", stderr=b"no room\n")

    async def close(self) -> None: ...


class ForgetfulProvider(MemoryProvider):
    """Once `broken`, it raises or has no machines."""

    broken = False
    error: GibilError | None = None

    async def get(self, name: str) -> Machine | None:
        if self.broken and self.error is not None:
            raise self.error
        return None if self.broken else await super().get(name)


@pytest.fixture
def provider() -> ForgetfulProvider:
    return ForgetfulProvider()


@pytest.fixture
async def service(
    tmp_path: Path, provider: ForgetfulProvider, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[MachineService]:
    monkeypatch.setenv("GIBIL_DATA_DIR", str(tmp_path / "data"))

    async def connect(*_: object) -> FailingShell:
        return FailingShell(provider)

    factory = MachineFactory(provider=provider, keyring=Keyring(tmp_path / "data"), connect_shell=connect)
    service = MachineService(load_settings(), factory, "tests")
    yield service
    service.release()


async def test_a_machine_that_cannot_be_set_up_is_destroyed_although_its_provider_does_not_answer(
    service: MachineService, provider: ForgetfulProvider
) -> None:
    provider.error = ProviderError("the provider doesn't answer")
    with pytest.raises(ProviderError):
        await service.create(CreateRequest(name="m", made_by="tests"))
    assert provider.machines == {}


async def test_a_machine_destroyed_during_its_set_up_is_lost(service: MachineService, provider: ForgetfulProvider) -> None:
    with pytest.raises(MachineLost, match="machine m was destroyed while it was being prepared"):
        await service.create(CreateRequest(name="m", made_by="tests"))
