"""A provider whose machines are entries of a dict: it fulfils ports.Provider, and fails on request."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from gibil_bot.errors import MachineNotFound, NameTaken, ProviderError
from gibil_bot.model import Capabilities, Endpoint, Machine, MachineSpec
from gibil_bot.ssh.host_keys import public_line


class MemoryProvider:
    """Switches: `fail_after_creation` (the machine exists, then an error), `hang` (create waits on an event first or, with
    `hang_after_creation`, once the machine exists), `in_thread` (the creation continues when its caller is cancelled),
    `destroy_failures` (how many calls fail), `first_host_keys` (machines boot with the first host key of their spec)."""

    name = "memory"
    is_local = False

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.specs: dict[str, MachineSpec] = {}
        self.fail_after_creation: Exception | None = None
        self.hang = False
        self.hang_after_creation = False
        self.in_thread = False
        self.destroy_failures = 0
        self.first_host_keys = False
        self.creating = asyncio.Event()
        self.go_on = asyncio.Event()
        self.destroyed: list[str] = []
        self.closed = False
        self._late: set[asyncio.Task[Machine]] = set()

    async def probe(self) -> Capabilities:
        return Capabilities(tier="memory", package_installs=False, several_users=False, memory_limit="polled", forged_in_s=0.0)

    async def create(self, spec: MachineSpec) -> Machine:
        if self.in_thread:
            task = asyncio.create_task(self._create(spec))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            return await asyncio.shield(task)
        return await self._create(spec)

    async def _create(self, spec: MachineSpec) -> Machine:
        self.creating.set()
        if self.hang:
            await self.go_on.wait()
        if spec.name in self.machines:
            if self.specs[spec.name] != spec:
                raise NameTaken(f"a machine {spec.name} exists")
            return self.machines[spec.name]
        now = datetime.now(UTC)
        machine = Machine(
            provider=self.name,
            id=str(len(self.destroyed) + len(self.machines)),
            name=spec.name,
            created_at=now,
            expires_at=now + timedelta(seconds=spec.ttl_s),
            endpoint=Endpoint(
                host_key=public_line(spec.host_key),
                first_host_key=public_line(spec.first_host_key) if self.first_host_keys else None,
                unix_path="/nowhere",
            ),
            labels=spec.labels,
        )
        self.machines[spec.name] = machine
        self.specs[spec.name] = spec
        if self.hang_after_creation:
            await self.go_on.wait()
        if self.fail_after_creation is not None:
            raise self.fail_after_creation
        return machine

    async def get(self, name: str) -> Machine | None:
        return self.machines.get(name)

    async def list_machines(self, owner: str | None = None) -> list[Machine]:
        found = [machine for name, machine in self.machines.items() if owner in (None, self.specs[name].owner)]
        return sorted(found, key=lambda machine: machine.created_at)

    async def extend(self, name: str, expires_at: datetime) -> Machine:
        if name not in self.machines:
            raise MachineNotFound(f"no machine {name}")
        self.machines[name] = replace(self.machines[name], expires_at=expires_at)
        return self.machines[name]

    async def destroy(self, name: str) -> bool:
        await asyncio.sleep(0)
        if self.destroy_failures > 0:
            self.destroy_failures -= 1
            raise ProviderError("the provider is not well")
        self.destroyed.append(name)
        self.specs.pop(name, None)
        return self.machines.pop(name, None) is not None

    async def sweep(self, owner: str) -> list[str]:
        now = datetime.now(UTC)
        expired = [machine.name for machine in await self.list_machines(owner) if machine.expires_at <= now]
        for name in expired:
            await self.destroy(name)
        return expired

    async def close(self) -> None:
        self.closed = True
