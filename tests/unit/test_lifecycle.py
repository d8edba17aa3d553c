"""A failed or cancelled creation leaves no machine."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from gibil_bot.errors import ClaimLost, MachineLost, NameTaken, ProviderError
from gibil_bot.model import Chunk, Endpoint, Exit, Job, MachinePlan, Result
from gibil_bot.ports import Provider, Shell
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from tests.doubles.provider import MemoryProvider


class NoShell:
    """A shell that no test uses."""

    @property
    def is_closed(self) -> bool:
        return False

    async def run(
        self,
        script: str,
        *,
        timeout_s: float = 60.0,
        stdin: bytes | AsyncIterator[bytes] = b"",
        env: Mapping[str, str] | None = None,
        on_output: Callable[[str, bytes], Awaitable[None] | None] | None = None,
        keep_output: bool = True,
        most_bytes: int = 0,
        tag: str | None = None,
    ) -> Result:
        raise NotImplementedError

    async def start(self, job: Job) -> None:
        raise NotImplementedError

    def attach(self, job_id: str, *, stdout_from: int = 0, stderr_from: int = 0) -> AsyncGenerator[Chunk | Exit, None]:
        raise NotImplementedError

    async def signal(self, tag: str, signal: str) -> None:
        raise NotImplementedError

    async def wait(self, job_id: str) -> Exit:
        raise NotImplementedError

    async def kill(self, job_id: str, *, grace_s: float = 5.0) -> None:
        raise NotImplementedError

    async def put(self, path: str, content: AsyncIterator[bytes] | bytes, *, mode: int = 0o644) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError


class ConnectDouble:
    """Opens a shell, hangs or fails."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.hang = False
        self.called = asyncio.Event()
        self.keys: list[str] = []

    async def __call__(self, endpoint: Endpoint, client_key: str) -> Shell:
        self.keys.append(client_key)
        self.called.set()
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        return NoShell()


@pytest.fixture
async def provider() -> MemoryProvider:
    return MemoryProvider()


@pytest.fixture
async def connect() -> ConnectDouble:
    return ConnectDouble()


@pytest.fixture
def factory(provider: MemoryProvider, connect: ConnectDouble, tmp_path: Path) -> MachineFactory:
    checked: Provider = provider
    return MachineFactory(provider=checked, keyring=Keyring(tmp_path), connect_shell=connect, patience_s=0.2)


async def test_a_machine_is_created_as_requested_and_opened_with_its_key(
    factory: MachineFactory, provider: MemoryProvider, connect: ConnectDouble
) -> None:
    phases: list[str] = []
    machine, _ = await factory.create(
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
    assert spec.authorized_key == factory.keyring.client_public("m-1")
    assert spec.host_key == factory.keyring.host_key("m-1")
    assert spec.first_host_key == factory.keyring.first_host_key("m-1")
    assert spec.host_key not in repr(spec)
    assert spec.first_host_key not in repr(spec)
    assert connect.keys == [factory.keyring.client_key("m-1")]
    assert phases == ["forge", "connect"]
    assert await factory.get("m-1") == machine
    assert await factory.list("me") == [machine]
    assert await factory.list("you") == []
    assert await factory.destroy("m-1") is True
    assert await factory.destroy("m-1") is False


async def test_a_creation_that_fails_after_the_machine_exists_leaves_nothing(
    factory: MachineFactory, provider: MemoryProvider
) -> None:
    provider.fail_after_creation = ProviderError("no capacity after all")
    with pytest.raises(ProviderError, match="no capacity"):
        await factory.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {}


async def test_a_machine_that_rejects_the_login_is_destroyed(
    factory: MachineFactory, provider: MemoryProvider, connect: ConnectDouble
) -> None:
    connect.error = MachineLost("does not answer")
    with pytest.raises(MachineLost):
        await factory.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {}


@pytest.mark.parametrize("moment", ["hang", "hang_after_creation", "connect"])
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("finishes", [False, True])
async def test_a_cancelled_creation_leaves_nothing(
    factory: MachineFactory, provider: MemoryProvider, connect: ConnectDouble, moment: str, in_thread: bool, finishes: bool
) -> None:
    if moment == "connect":
        connect.hang = True
    else:
        setattr(provider, moment, True)
    provider.in_thread = in_thread
    creating = asyncio.create_task(factory.create(name="m", owner="me", ttl_s=60))
    await (connect.called if moment == "connect" else provider.creating).wait()
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


@pytest.mark.parametrize("moment", ["hang", "hang_after_creation", "connect"])
async def test_a_cancelled_creation_leaves_a_machine_on_which_another_process_works(
    factory: MachineFactory, provider: MemoryProvider, connect: ConnectDouble, moment: str
) -> None:
    machine, _ = await factory.create(name="m", owner="me", ttl_s=60)
    connect.called.clear()
    provider.creating.clear()
    if moment == "connect":
        connect.hang = True
    else:
        setattr(provider, moment, True)

    async def check() -> None:
        raise ClaimLost("another process has claimed the run")

    creating = asyncio.create_task(factory.create(name="m", owner="me", ttl_s=60, may_destroy=check))
    await (connect.called if moment == "connect" else provider.creating).wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert list(provider.machines) == [machine.name]
    assert provider.destroyed == []


async def test_a_second_cancellation_does_not_stop_the_destruction(
    factory: MachineFactory, provider: MemoryProvider, connect: ConnectDouble
) -> None:
    connect.hang = True
    provider.destroy_failures = 1  # destroying takes a while
    creating = asyncio.create_task(factory.create(name="m", owner="me", ttl_s=60))
    await connect.called.wait()
    creating.cancel()
    await asyncio.sleep(0.01)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    await factory.close()
    assert (provider.machines, provider.closed) == ({}, True)


async def test_a_machine_that_booted_long_ago_gets_no_boot_timeout(factory: MachineFactory, connect: ConnectDouble) -> None:
    young, shell = await factory.create("young", "ada", 60)
    assert isinstance(shell, NoShell)
    impatient = dataclasses.replace(factory, answers_s=0.01)
    connect.hang = True
    old = msgspec.structs.replace(young, name="old", created_at=datetime.now(UTC) - timedelta(hours=1))
    with pytest.raises(MachineLost, match=r"machine old exists, but didn't answer SSH .* destroy it: gibil destroy old"):
        await impatient.open(old)
    connect.called.clear()
    opening = asyncio.create_task(impatient.open(young))
    await connect.called.wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(opening), 0.1)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_a_cancelled_destroy_continues(factory: MachineFactory, provider: MemoryProvider) -> None:
    await factory.create(name="m", owner="me", ttl_s=60)
    provider.destroy_failures = 1
    destroying = asyncio.create_task(factory.destroy("m"))
    await asyncio.sleep(0.01)
    destroying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await destroying
    await factory.close()
    assert provider.machines == {}


async def test_a_machine_of_another_creation_is_left_alone(
    factory: MachineFactory, provider: MemoryProvider, tmp_path: Path
) -> None:
    other = MachineFactory(provider=provider, keyring=Keyring(tmp_path / "other"), connect_shell=ConnectDouble())
    machine, _ = await other.create(name="m", owner="you", ttl_s=60)
    with pytest.raises(NameTaken):
        await factory.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {"m": machine}


async def test_a_repeated_creation_finds_the_same_machine(factory: MachineFactory, provider: MemoryProvider) -> None:
    first, _ = await factory.create(name="m", owner="me", ttl_s=60)
    again, _ = await factory.create(name="m", owner="me", ttl_s=60)
    assert first == again


async def test_destruction_is_retried_and_its_failure_does_not_hide_the_first_error(
    factory: MachineFactory, provider: MemoryProvider, connect: ConnectDouble
) -> None:
    connect.error = MachineLost("does not answer")
    provider.destroy_failures = 2
    with pytest.raises(MachineLost):
        await factory.create(name="m", owner="me", ttl_s=60)
    assert provider.machines == {}
    provider.destroy_failures = 3
    with pytest.raises(MachineLost):
        await factory.create(name="n", owner="me", ttl_s=60)
    assert list(provider.machines) == ["n"]  # three failed attempts: sweep deletes it later
    provider.destroy_failures = 3
    with pytest.raises(ProviderError):
        await factory.destroy("n")
