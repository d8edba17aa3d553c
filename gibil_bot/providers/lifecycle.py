"""Forge, log in, burn: what the bot and the command line do with machines, over any provider.

A machine is ready or it is not there: whatever goes wrong between "forge" and "SSH answers", cancellation included, the
machine is burned before the error goes on. What even that misses (we were killed) is found by the provider's own list.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec.structs import replace

from gibil_bot.caps import NO_CAPS, Caps, capped
from gibil_bot.errors import GibilError, MachineLost, NameTaken, ProviderError
from gibil_bot.model import Endpoint, Machine, MachinePlan, MachineSpec
from gibil_bot.ports import Explains, Provider, Shell
from gibil_bot.providers.keyring import Keyring
from gibil_bot.ssh.host_key_rotation import enter

_log = logging.getLogger(__name__)

ConnectShell = Callable[[Endpoint, str], Awaitable[Shell]]
OnPhase = Callable[[str, float], None]

_BURN_ATTEMPTS = 3
_CAUSE_S = 5.0
_BOOTS_WITHIN = timedelta(minutes=5)
"""The slowest boot, and as much again for a clock that is not ours."""

CREATION = "creation"
"""The label that tells one creation of a name from another of the same keys."""


@dataclass(frozen=True)
class MachineFactory:
    """A provider, the keys of its machines, and the way onto them (`ssh.connect`, handed in to keep SSH out of here).

    `connect_shell` raises AnotherHost for a host that does not show `Endpoint.host_key`.
    """

    provider: Provider
    keyring: Keyring
    connect_shell: ConnectShell
    patience_s: float = 10.0
    """How long a cancelled `create` of the provider may still take to come to its own end before it is broken off."""
    answers_s: float = 60.0
    """How long `open` waits for a machine that must have booted long ago; `connect_shell` itself waits for young ones, too."""
    caps: Caps = NO_CAPS
    """What a machine may be at most, whatever its plan says: plans may be older than these caps."""
    _cleanups: set[asyncio.Task[Any]] = field(default_factory=set, repr=False)

    async def create(
        self,
        name: str,
        owner: str,
        ttl_s: int,
        labels: Mapping[str, str] | None = None,
        plan: MachinePlan | None = None,
        egress_allow: tuple[str, ...] = (),
        untrusted: bool = False,
        tethered: bool = False,
        on_phase: OnPhase | None = None,
        fresh: bool = False,
    ) -> tuple[Machine, Shell]:
        """A machine that answers SSH, and the open connection; or nothing, and the error.

        `on_phase(phase, seconds)` is called after "forge" and after "connect". `fresh`: a machine of that name that another
        creation made is NameTaken, ours or not; without it, it is found again. Raises what the provider and the connection
        raise; NameTaken leaves that other machine alone.
        """
        if fresh:
            labels = {CREATION: secrets.token_hex(8), **(labels or {})}
        spec = await asyncio.to_thread(
            self._spec, name, owner, ttl_s, labels or {}, plan or MachinePlan(), egress_allow, untrusted, tethered
        )
        began = time.monotonic()
        creating = asyncio.create_task(self.provider.create(spec))
        try:
            machine = await asyncio.shield(creating)
            if _is_of_another_creation(machine, spec):
                raise NameTaken(
                    f"there is a machine named {name} already; choose another name, or burn it: gibil destroy {name}"
                )
            if on_phase is not None:
                on_phase("forge", time.monotonic() - began)
            began = time.monotonic()
            shell = await enter(machine.endpoint, spec.host_key, lambda endpoint: self._connect(name, endpoint))
            machine = replace(machine, endpoint=replace(machine.endpoint, first_host_key=None))
            if on_phase is not None:
                on_phase("connect", time.monotonic() - began)
        except NameTaken:
            raise
        except BaseException:
            await self._see_through(self._undo(spec, creating))
            raise
        return machine, shell

    async def open(self, machine: Machine) -> Shell:
        """Log in to a machine of this data directory. It has to show its lasting host key.

        Raises what `connect_shell` raises, and MachineLost for one that has booted and does not answer any more.
        """
        endpoint = replace(machine.endpoint, first_host_key=None)
        is_booting = datetime.now(UTC) - machine.created_at < _BOOTS_WITHIN
        try:
            async with asyncio.timeout(None if is_booting else self.answers_s):
                return await self._connect(machine.name, endpoint)
        except TimeoutError:
            raise MachineLost(
                f"machine {machine.name} exists, but has not answered SSH for {self.answers_s:.0f} s; try again, look at it at "
                f"the provider, or burn it: gibil destroy {machine.name}"
            ) from None

    async def _connect(self, name: str, endpoint: Endpoint) -> Shell:
        key = await asyncio.to_thread(self.keyring.client_key, name)
        return await self.connect_shell(endpoint, key)

    async def get(self, name: str) -> Machine | None:
        """The machine of that name, if it exists."""
        return await self.provider.get(name)

    async def cause(self, name: str, since: datetime) -> str | None:
        """Why the machine ended, or processes on it were killed, since then, where its provider knows. Never raises."""
        if not isinstance(self.provider, Explains):
            return None
        try:
            async with asyncio.timeout(_CAUSE_S):
                return await self.provider.cause(name, since)
        except (GibilError, TimeoutError):
            return None

    async def destroy(self, name: str) -> bool:
        """Burn; True if it was there. Goes on when the caller is cancelled."""
        return bool(await self._see_through(self._burn(name)))

    async def list(self, owner: str | None = None) -> list[Machine]:
        """The machines that exist (of that owner), oldest first."""
        return await self.provider.list_machines(owner)

    async def close(self) -> None:
        """Wait for the burning that cancelled callers left behind, then let go of the provider. Machines live on."""
        while self._cleanups:
            await asyncio.wait(self._cleanups)
        await self.provider.close()

    def _spec(
        self,
        name: str,
        owner: str,
        ttl_s: int,
        labels: Mapping[str, str],
        plan: MachinePlan,
        egress_allow: tuple[str, ...],
        untrusted: bool,
        tethered: bool,
    ) -> MachineSpec:
        plan, _notes = capped(plan, self.caps)
        return MachineSpec(
            name=name,
            owner=owner,
            authorized_key=self.keyring.client_public(name),
            host_key=self.keyring.host_key(name),
            first_host_key=self.keyring.first_host_key(name),
            labels=labels,
            **plan.said() | {"ttl_s": ttl_s},
            egress_allow=egress_allow,
            untrusted=untrusted,
            tethered=tethered,
        )

    async def _undo(self, spec: MachineSpec, creating: asyncio.Task[Machine]) -> None:
        """Burn what a failed or cancelled creation may have made.

        A creation in flight is waited for and only then broken off: a call that runs in a thread or at a cloud goes on when
        we stop awaiting it, and would bring the machine into being after the burning.
        """
        if not creating.done():
            await asyncio.wait({creating}, timeout=self.patience_s)
            creating.cancel()
            await asyncio.wait({creating}, timeout=self.patience_s)
        if not creating.done():
            _log.warning("the creation of machine %s does not stop", spec.name)
            creating.add_done_callback(lambda _: self._spawn(self._burn_quietly(spec)))
        elif not creating.cancelled() and isinstance(creating.exception(), NameTaken):
            return  # somebody else's machine has the name
        await self._burn_quietly(spec)

    async def _burn_quietly(self, spec: MachineSpec) -> None:
        try:
            if CREATION in spec.labels:
                machine = await self.provider.get(spec.name)
                if machine is not None and _is_of_another_creation(machine, spec):
                    return
            await self._burn(spec.name)
        except GibilError as error:  # the first error is the one to tell; the sweep burns the machine when its time is up
            _log.warning("machine %s could not be burned: %s", spec.name, error)

    async def _burn(self, name: str) -> bool:
        """A provider that fails once may be well again a moment later, and a machine costs money until it is gone."""
        for attempt in range(1, _BURN_ATTEMPTS):
            try:
                return await self.provider.destroy(name)
            except ProviderError as error:
                _log.info("burning machine %s, attempt %d: %s", name, attempt, error)
                await asyncio.sleep(0.2 * attempt)
        return await self.provider.destroy(name)

    async def _see_through(self, cleanup: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.shield(self._spawn(cleanup))

    def _spawn(self, cleanup: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(cleanup)
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)
        return task


def _is_of_another_creation(machine: Machine, spec: MachineSpec) -> bool:
    return CREATION in spec.labels and machine.labels.get(CREATION) != spec.labels[CREATION]
