"""Creating, opening and destroying machines over any provider, for the bot and the command line.

A caller gets a machine that answers SSH, or none: after any failure or cancellation during creation, the machine is destroyed
before the error is raised. If this process is killed in between, the machine is still in the provider's own list.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zlib import crc32

from msgspec.structs import replace

from gibil_bot.caps import NO_CAPS, Caps, capped
from gibil_bot.errors import GibilError, MachineLost, NameTaken, ProviderError
from gibil_bot.model import Endpoint, Machine, MachinePlan, MachineSpec
from gibil_bot.ports import Explains, Provider, Shell
from gibil_bot.providers.keyring import Keyring
from gibil_bot.retry import RetryPolicy
from gibil_bot.ssh.answers import last_line
from gibil_bot.ssh.host_keys import enter

if TYPE_CHECKING:
    from gibil_bot.ssh.remote_forwarding import KeptForward
    from gibil_bot.ssh.shell import SSHShell

_log = logging.getLogger(__name__)

ConnectShell = Callable[[Endpoint, str], Awaitable[Shell]]
OnPhase = Callable[[str, float], None]
RunOn = Callable[[Machine, str], Awaitable[None]]
"""Runs a short script as root on a machine; raises a GibilError when the script can't be run or fails."""

MayDestroy = Callable[[], Awaitable[None]]
"""Raises a GibilError if another process may work on the machine."""

_DESTROYING = RetryPolicy(attempts=3, first_wait_s=0.2)
"""A provider that fails once may work again a moment later, and a machine costs money until it is destroyed."""
_CAUSE_S = 5.0
_FIRST_FORWARDED, _FORWARDED = 20_000, 10_000
"""Ports of machines that are forwarded, below those that Linux gives to outgoing connections."""
_BOOTS_WITHIN = timedelta(minutes=5)
"""The slowest boot, doubled for a provider's clock that differs from ours."""

CREATION = "creation"
"""The label that distinguishes two creations with the same name and keys."""


@dataclass(frozen=True)
class MachineFactory:
    """Creates, opens and destroys the machines of one provider.

    `keyring` has their keys. `connect_shell` opens an SSH connection; it raises AnotherHost for a host that doesn't present
    `Endpoint.host_key`.
    """

    provider: Provider
    keyring: Keyring
    connect_shell: ConnectShell
    patience_s: float = 10.0
    """How long a cancelled `create` of the provider may still take to end by itself before it is cancelled."""
    answers_s: float = 60.0
    """How long `open` waits for a machine that must have booted long ago. For a new one `connect_shell` waits itself."""
    caps: Caps = NO_CAPS
    """Limits for every machine, whatever its plan says, because plans may be older than these caps."""
    ca_bundle: str = ""
    """The operator's certificates in PEM."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Package mirror → URL."""
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
        layer: str | None = None,
        may_destroy: MayDestroy | None = None,
    ) -> tuple[Machine, Shell]:
        """Create a machine; returns it and an open connection to it.

        `on_phase(phase, seconds)` is called after "forge" and after "connect". `fresh`: raise NameTaken for a machine of that
        name from another creation, even if it is ours; otherwise that machine is returned. Raises what the provider and the
        connection raise; after any error but NameTaken the machine is destroyed, unless `may_destroy` raises.
        """
        if fresh:
            labels = {CREATION: secrets.token_hex(8), **(labels or {})}
        spec = await asyncio.to_thread(
            self._spec, name, owner, ttl_s, labels or {}, plan or MachinePlan(), egress_allow, untrusted, tethered, layer
        )
        began = time.monotonic()
        creating = asyncio.create_task(self.provider.create(spec))
        try:
            machine = await asyncio.shield(creating)
            if _is_of_another_creation(machine, spec):
                raise NameTaken(
                    f"a machine named {name} exists already; choose another name, or destroy it: gibil destroy {name}"
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
            await self._shielded(self._undo(spec, creating, may_destroy))
            raise
        return machine, shell

    async def open(self, machine: Machine) -> Shell:
        """Log in to a machine of this data directory, which has to present its lasting host key.

        Raises what `connect_shell` raises, and MachineLost for one that has booted and doesn't answer any more.
        """
        endpoint = replace(machine.endpoint, first_host_key=None)
        is_booting = datetime.now(UTC) - machine.created_at < _BOOTS_WITHIN
        try:
            async with asyncio.timeout(None if is_booting else self.answers_s):
                return await self._connect(machine.name, endpoint)
        except TimeoutError:
            raise MachineLost(
                f"machine {machine.name} exists, but didn't answer SSH for {self.answers_s:.0f} s; try again, check it at the "
                f"provider, or destroy it: gibil destroy {machine.name}"
            ) from None

    async def reopen(self, name: str) -> Shell:
        """As `open`, by the machine's name. Raises MachineLost if there is none."""
        machine = await self.get(name)
        if machine is None:
            raise MachineLost(f"machine {name} no longer exists")
        return await self.open(machine)

    async def _connect(self, name: str, endpoint: Endpoint) -> Shell:
        key = await asyncio.to_thread(self.keyring.client_key, name)
        return await self.connect_shell(endpoint, key)

    async def get(self, name: str) -> Machine | None:
        """Return the machine of that name, if it exists."""
        return await self.provider.get(name)

    async def cause(self, name: str, since: datetime) -> str | None:
        """Return why the machine ended, or why processes on it were killed, since then, if its provider knows. Never raises."""
        if not isinstance(self.provider, Explains):
            return None
        try:
            async with asyncio.timeout(_CAUSE_S):
                return await self.provider.cause(name, since)
        except (GibilError, TimeoutError):
            return None

    async def destroy(self, name: str) -> bool:
        """Destroy a machine; True if it existed. Continues when the caller is cancelled."""
        return bool(await self._shielded(self._destroy(name)))

    async def list(self, owner: str | None = None) -> list[Machine]:
        """Return the existing machines (of that owner), oldest first."""
        return await self.provider.list_machines(owner)

    async def close(self) -> None:
        """Wait for destructions that cancelled callers left behind, then close the provider. Machines continue to run."""
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
        layer: str | None,
    ) -> MachineSpec:
        plan, _notes = capped(plan, self.caps)
        return MachineSpec(
            name=name,
            owner=owner,
            authorized_key=self.keyring.client_public(name),
            host_key=self.keyring.host_key(name),
            first_host_key=self.keyring.first_host_key(name),
            labels=labels,
            **plan.specified() | {"ttl_s": ttl_s},
            egress_allow=egress_allow,
            untrusted=untrusted,
            tethered=tethered,
            ca_bundle=self.ca_bundle,
            mirrors=self.mirrors,
            layer=layer,
        )

    async def _undo(self, spec: MachineSpec, creating: asyncio.Task[Machine], may_destroy: MayDestroy | None) -> None:
        """Destroy what a failed or cancelled creation may have created.

        A creation in progress is waited for before it is cancelled: a call in a thread or at a cloud continues when we stop
        awaiting it, and would create the machine after its destruction.
        """
        if not creating.done():
            await asyncio.wait({creating}, timeout=self.patience_s)
            creating.cancel()
            await asyncio.wait({creating}, timeout=self.patience_s)
        if not creating.done():
            _log.warning("the creation of machine %s doesn't end; destroying the machine when it does", spec.name)
            creating.add_done_callback(lambda _: self._spawn(self._destroy_quietly(spec, may_destroy)))
        elif not creating.cancelled() and isinstance(creating.exception(), NameTaken):
            return  # another creation's machine has the name
        await self._destroy_quietly(spec, may_destroy)

    async def _destroy_quietly(self, spec: MachineSpec, may_destroy: MayDestroy | None) -> None:
        try:
            if CREATION in spec.labels:
                machine = await self.provider.get(spec.name)
                if machine is not None and _is_of_another_creation(machine, spec):
                    return
            if may_destroy is not None:
                await may_destroy()
            await self._destroy(spec.name)
        except GibilError as error:  # the caller gets the first error; a sweep destroys the machine when it expires
            _log.warning("machine %s was not destroyed: %s", spec.name, error)

    async def _destroy(self, name: str) -> bool:
        return await _DESTROYING.call(
            lambda: self.provider.destroy(name),
            retry_after_s=lambda error: 0.0 if isinstance(error, ProviderError) else None,
            before_retry=lambda error, failures: _log.info("destroying machine %s, attempt %d: %s", name, failures, error),
        )

    async def _shielded(self, cleanup: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.shield(self._spawn(cleanup))

    def _spawn(self, cleanup: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(cleanup)
        self._cleanups.add(task)
        task.add_done_callback(self._cleanups.discard)
        return task


def _is_of_another_creation(machine: Machine, spec: MachineSpec) -> bool:
    return CREATION in spec.labels and machine.labels.get(CREATION) != spec.labels[CREATION]


def port_forwarder(keyring: Keyring) -> Callable[[Machine, int], AbstractAsyncContextManager[KeptForward]]:
    """Return a function that forwards a loopback port of a machine to one of this host, over a separate connection.

    The machine's port follows from its name: programs that use it go on when another process of the bot continues.
    """

    def forward(machine: Machine, port: int) -> AbstractAsyncContextManager[KeptForward]:
        from gibil_bot.ssh.client import connect
        from gibil_bot.ssh.remote_forwarding import keep_forwarding

        async def connect_again() -> SSHShell:
            return await connect(machine.endpoint, await asyncio.to_thread(keyring.client_key, machine.name))

        return keep_forwarding(connect_again, port, port=_FIRST_FORWARDED + crc32(machine.name.encode()) % _FORWARDED)

    return forward


def script_runner(keyring: Keyring, connect_shell: ConnectShell, *, timeout_s: float = 30.0) -> RunOn:
    """Return a function that runs a script on a machine over a new connection, for providers that have to change a machine.

    It raises ProviderError with the script's last line on stderr when the script fails.
    """

    async def run_on(machine: Machine, script: str) -> None:
        key = await asyncio.to_thread(keyring.client_key, machine.name)
        shell = await connect_shell(machine.endpoint, key)
        try:
            done = await shell.run(script, timeout_s=timeout_s)
        except TimeoutError:
            raise ProviderError(f"machine {machine.name}: a script did not end within {timeout_s:.0f} s; try again") from None
        finally:
            await shell.close()
        if done.exit_status != 0:
            raise ProviderError(f"machine {machine.name}: {last_line(done.stderr, f'exit status {done.exit_status}')}")

    return run_on
