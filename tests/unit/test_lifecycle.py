"""A machine is ready or it is not there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from gibil_bot.errors import MachineLost, NameTaken, ProviderError
from gibil_bot.model import Chunk, Endpoint, Exit, Job, MachinePlan, Result
from gibil_bot.ports import Provider, Shell
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from tests.doubles.provider import MemoryProvider


class NoShell:
    """Connections are not looked into here."""

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str, bytes], None] | None = None,
    ) -> Result:
        raise NotImplementedError

    async def start(self, job: Job) -> None:
        raise NotImplementedError

    def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncIterator[Chunk | Exit]:
        raise NotImplementedError

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        raise NotImplementedError

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class Door:
    """Opens a shell, or does what a test wants instead."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hang = False
        self.knocked = asyncio.Event()
        self.keys: list[str] = []

    async def __call__(self, endpoint: Endpoint, client_key: str) -> Shell:
        self.keys.append(client_key)
        self.knocked.set()
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return NoShell()


@pytest.fixture
async def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
async def door() -> Door:
    return Door()


@pytest.fixture
def forge(provider: MemoryProvider, door: Door, tmp_path: Path) -> MachineFactory:
    checked: Provider = provider
    return MachineFactory(provider=checked, keyring=Keyring(tmp_path), connect_shell=door, patience_s=0.2)


async def test_a_machine_is_forged_as_asked_and_opened_with_its_key(
    forge: MachineFactory, provider: MemoryProvider, door: Door
) -> None:
    phases: list[str] = []
    machine, _ = await forge.create(
        name="m-1",
        owner="me",
        ttl_s=60,
        labels={"run": "7"},
        plan=MachinePlan(size="large", memory_mb=512),
        egress_allow=("10.0.0.0/8",),
        untrusted=True,
        on_phase=lambda phase, seconds: phases.append(phase),
    )
    spec = provider.specs["m-1"]
    assert (spec.owner, spec.size, spec.memory_mb, spec.egress_allow, spec.untrusted) == (
        "me",
        "large",
        512,
        ("10.0.0.0/8",),
        True,
    )
    assert spec.authorized_key == forge.keyring.client_public("m-1")
    assert spec.host_key == forge.keyring.host_key("m-1")
    assert spec.first_host_key == forge.keyring.first_host_key("m-1")
    assert spec.host_key not in repr(spec)
    assert spec.first_host_key not in repr(spec)
    assert door.keys == [forge.keyring.client_key("m-1")]
    assert phases == ["forge", "connect"]
    assert await forge.get("m-1") == machine
    assert await forge.list("me") == [machine]
    assert await forge.list("you") == []
    assert await forge.destroy("m-1") is True
    assert await forge.destroy("m-1") is False


async def test_a_creation_that_fails_after_the_machine_exists_leaves_nothing(
    forge: MachineFactory, provider: MemoryProvider
) -> None:
    provider.fail_after_creation = ProviderError("no capacity after all")
    with pytest.raises(ProviderError, match="no capacity"):
        await forge.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {}


async def test_a_machine_that_cannot_be_entered_is_burned(forge: MachineFactory, provider: MemoryProvider, door: Door) -> None:
    door.error = MachineLost("does not answer")
    with pytest.raises(MachineLost):
        await forge.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {}


@pytest.mark.parametrize("moment", ["hang", "hang_after_creation", "connect"])
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("finishes", [False, True])
async def test_a_cancelled_creation_leaves_nothing(
    forge: MachineFactory, provider: MemoryProvider, door: Door, moment: str, in_thread: bool, finishes: bool
) -> None:
    if moment == "connect":
        door.hang = True
    else:
        setattr(provider, moment, True)
    provider.in_thread = in_thread
    creating = asyncio.create_task(forge.create(name="m", owner="me", ttl_s=60))
    await (door.knocked if moment == "connect" else provider.creating).wait()
    creating.cancel()
    if finishes:
        asyncio.get_running_loop().call_later(0.05, provider.go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert provider.machines == {}
    if finishes:
        await asyncio.sleep(0.1)
        assert provider.machines == {}
    for task in list(provider._late):
        task.cancel()


async def test_a_second_cancellation_does_not_stop_the_burning(
    forge: MachineFactory, provider: MemoryProvider, door: Door
) -> None:
    door.hang = True
    provider.destroy_failures = 1  # the burning takes a while
    creating = asyncio.create_task(forge.create(name="m", owner="me", ttl_s=60))
    await door.knocked.wait()
    creating.cancel()
    await asyncio.sleep(0.01)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await forge.close()
    assert (provider.machines, provider.closed) == ({}, True)


async def test_a_machine_that_has_booted_long_ago_and_does_not_answer_is_not_waited_for_as_for_one_that_boots(
    forge: MachineFactory, door: Door
) -> None:
    young, shell = await forge.create("young", "ada", 60)
    assert isinstance(shell, NoShell)
    impatient = dataclasses.replace(forge, answers_s=0.01)
    door.hang = True
    old = msgspec.structs.replace(young, name="old", created_at=datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(MachineLost, match=r"machine old exists, but has not answered SSH .* burn it: gibil destroy old"):
        await impatient.open(old)
    door.knocked.clear()
    opening = asyncio.create_task(impatient.open(young))
    await door.knocked.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(opening), 0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_a_cancelled_destroy_goes_on(forge: MachineFactory, provider: MemoryProvider) -> None:
    await forge.create(name="m", owner="me", ttl_s=60)
    provider.destroy_failures = 1
    burning = asyncio.create_task(forge.destroy("m"))
    await asyncio.sleep(0.01)
    burning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await burning
    await forge.close()
    assert provider.machines == {}


async def test_a_machine_of_somebody_else_is_left_alone(
    forge: MachineFactory, provider: MemoryProvider, tmp_path: Path
) -> None:
    other = MachineFactory(provider=provider, keyring=Keyring(tmp_path / "other"), connect_shell=Door())
    machine, _ = await other.create(name="m", owner="you", ttl_s=60)
    with pytest.raises(NameTaken):
        await forge.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {"m": machine}


async def test_the_same_creation_again_finds_the_same_machine(forge: MachineFactory, provider: MemoryProvider) -> None:
    first, _ = await forge.create(name="m", owner="me", ttl_s=60)
    again, _ = await forge.create(name="m", owner="me", ttl_s=60)
    assert first == again


async def test_burning_is_tried_again_and_its_failure_does_not_hide_the_first_error(
    forge: MachineFactory, provider: MemoryProvider, door: Door
) -> None:
    door.error = MachineLost("does not answer")
    provider.destroy_failures = 2
    with pytest.raises(MachineLost):
        await forge.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {}
    provider.destroy_failures = 3
    with pytest.raises(MachineLost):
        await forge.create(name="n", owner="me", ttl_s=60)
    assert list(provider.machines) == ["n"]  # three times in vain: the sweep's work
    provider.destroy_failures = 3
    with pytest.raises(ProviderError):
        await forge.destroy("n")
