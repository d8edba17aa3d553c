"""What a creation that fails after its machine exists leaves behind, and a copy of a disk whose caller is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gibil_bot.config import load_settings
from gibil_bot.errors import GibilError, MachineLost, ProviderError
from gibil_bot.machines.request import CreateRequest
from gibil_bot.machines.service import MachineService
from gibil_bot.model import LayerInfo, Machine, MachineSpec, Result, Template
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from tests.doubles.patience import patient
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


class Disk(NoShell):
    """The environment on a machine, which is in memory."""

    environment = b"A=1"

    async def run(self, script: str, *, stdin: object = b"", **_: object) -> Result:
        if isinstance(stdin, bytes) and stdin:
            await asyncio.sleep(0)
            self.environment = stdin
        return Result(exit_status=0, stdout=self.environment, stderr=b"")

    async def close(self) -> None: ...


class CopyingProvider(MemoryProvider):
    """Starts a machine again when its disk is copied, as local machines are, once `go_on` is set."""

    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.copying = asyncio.Event()
        self._disk = disk

    async def fork_layer(self, name: str, layer_id: str, *, stop: bool = False) -> LayerInfo:
        self._disk.environment = b""
        self.copying.set()
        await self.go_on.wait()
        return LayerInfo(id=layer_id, parent=None, depth=1, size_mb=1, created_at=datetime.now(UTC))

    async def save_template(self, name: str, template: str, *, stop: bool = False) -> Template:
        layer = await self.fork_layer(name, "a" * 32, stop=stop)
        return Template(name=template, provider=self.name, id=layer.id, size_mb=1, created_at=layer.created_at, layer=layer.id)

    async def templates(self) -> list[Template]:
        return []

    async def delete_template(self, template: str) -> bool:
        return False


@pytest.mark.parametrize("late", [False, True], ids=["during the copy", "after the copy"])
@pytest.mark.parametrize(
    "copy",
    [lambda service: service.fork("m", "n"), lambda service: service.save_template("m", "t")],
    ids=["fork", "template"],
)
async def test_a_machine_keeps_its_environment_when_the_copy_of_its_disk_is_cancelled(
    tmp_path: Path, copy: Callable[[MachineService], Awaitable[object]], late: bool
) -> None:
    disk = Disk()
    provider = CopyingProvider(disk)

    async def connect(*_: object) -> Disk:
        return disk

    keyring = Keyring(tmp_path)
    await provider.create(MachineSpec(name="m", owner="o", ttl_s=600, authorized_key="", host_key=keyring.host_key("m")))
    settings = load_settings({"GIBIL_DATA_DIR": str(tmp_path)})
    service = MachineService(settings, MachineFactory(provider=provider, keyring=keyring, connect_shell=connect), "o")
    async with asyncio.timeout(patient(10)):
        copying = asyncio.ensure_future(copy(service))
        await provider.copying.wait()
        if late:
            provider.go_on.set()
            await asyncio.sleep(0)
        for _ in range(2):
            copying.cancel()
            await asyncio.sleep(0)
        provider.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await copying
    assert disk.environment == b"A=1"
    assert set(provider.machines) == {"m"}
    service.release()
