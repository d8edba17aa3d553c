"""One machine as the keeper keeps it: its PID 1, its door, its gate, its limits, its folder, its end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gibil_bot.errors import ProviderError
from gibil_bot.machines.local.forge import PROXY
from gibil_bot.machines.local.forging import ForgerLink, Forging
from gibil_bot.machines.local.gate import Gate, forward, loopback_ports
from gibil_bot.machines.local.home import Home, clear_dead_machine
from gibil_bot.machines.local.host_network import HostNetwork
from gibil_bot.machines.local.layers import Order
from gibil_bot.machines.local.limits import Groups, Limits
from gibil_bot.machines.local.pid1 import ForgeFailed, Pid1
from gibil_bot.machines.local.refusals import RefusalLog
from gibil_bot.machines.local.skeleton import Layout
from gibil_bot.machines.local.watch import disk_mb, has_processes, hold_memory, memory_mb
from gibil_bot.model import Endpoint, Machine, MachineSpec, Usage

if TYPE_CHECKING:
    from gibil_bot.machines.local.door import Door

_HOST_NETWORK = HostNetwork()
_READY_S = 30.0
_MEMORY_POLL_S = 0.5
_DISK_POLL_S = 5.0
_DISK_LOOK_S = 5.0
"""So long does whoever asks for the usage wait for a look at the disk; then the last one counts."""


async def load_door() -> Any:
    """The module `door`. Its SSH library takes longer to import than a machine takes to forge: both go on side by side."""
    return await asyncio.to_thread(importlib.import_module, "gibil_bot.machines.local.door")


@dataclass(frozen=True, slots=True, kw_only=True)
class Smithy:
    """What all machines of a keeper are made with."""

    home: Home
    tier: str
    link: ForgerLink
    groups: Groups
    runtime: Path


class KeptMachine:
    """`on_lost` is called when PID 1 ends although nobody burned it."""

    def __init__(self, smithy: Smithy, spec: MachineSpec, limits: Limits, on_lost: Callable[[str], None]) -> None:
        self._smithy, self.spec, self._limits, self._on_lost = smithy, spec, limits, on_lost
        self._burning = False
        self._number: int | None = None
        self._init = 0
        """Host pid of PID 1"""
        self._disk_seen_mb = 0
        self._look: asyncio.Task[None] | None = None
        self._pid1: Pid1 | None = None
        self._door: Door | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusals = RefusalLog()
        """What the egress proxy kept it from reaching."""
        self.machine: Machine | None = None
        """Set once it is forged."""

    @property
    def folder(self) -> Path:
        return self._smithy.home.machine(self.spec.name)

    async def forge(self, skeleton: str, layout: Layout, expires_at: datetime, created_at: datetime) -> Machine:
        """Forge it, or leave nothing. Raises ForgeFailed, ProviderError."""
        try:
            self.machine = await self._forge(skeleton, layout, created_at, expires_at)
        except BaseException:
            await self.burn()
            raise
        return self.machine

    async def _forge(self, skeleton: str, layout: Layout, created_at: datetime, expires_at: datetime) -> Machine:
        spec, smithy = self.spec, self._smithy
        gate = Gate(spec.egress_allow, own_name=spec.name, refusals=self.refusals, host_network=_HOST_NETWORK)
        inward = [address for address in loopback_ports(spec.egress_allow) if address != PROXY]
        order: Order = {
            "name": spec.name,
            "tier": smithy.tier,
            "local": str(smithy.home.local),
            "skeleton": skeleton,
            "pieces": [(piece.path, piece.optional) for piece in layout.pieces],
            "python": (layout.python.prefix, layout.python.executable) if layout.python else None,
            "pids": self._limits.pids,
            "disk_mb": self._limits.disk_mb if self._limits.disk_in_memory else 0,
            "listeners": inward,
            "base": 0,
        }
        self._make_folder()
        smithy.groups.make(spec.name, self._limits)
        warm = asyncio.get_running_loop().run_in_executor(None, smithy.groups.warm)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid1 = Pid1(ours, self._hung_up)
        with theirs:
            self._number, forging = await smithy.link.forge(order, theirs)
        # Meanwhile PID 1 is on its way.
        self._door = (await load_door()).Door(self._pid1)
        path = str(smithy.runtime / f"{secrets.token_hex(4)}.sock")
        try:
            public = await self._door.open(path, spec.host_key, spec.authorized_key)
        except ValueError as error:
            raise ProviderError(f"machine {spec.name}: a key of its specification cannot be read: {error}") from error
        try:
            async with asyncio.timeout(_READY_S):
                await warm
                self._init = await self._under_limits(forging)
                self._pid1.entered(self._init)
                proxy, *others = await self._pid1.ready
        except TimeoutError:
            raise ForgeFailed("starting PID 1", None, f"not ready after {_READY_S:.0f} s") from None
        self._supervise(gate.serve(proxy))
        for listener, (host, port) in zip(others, inward, strict=True):
            self._supervise(forward(listener, host, port))
        if smithy.groups.memory == "polled":
            self._supervise(self._watch_memory())
        if not order["disk_mb"]:
            self._supervise(self._watch_disk())
        machine = Machine(
            provider="local",
            id=spec.name,
            name=spec.name,
            created_at=created_at,
            expires_at=expires_at,
            endpoint=Endpoint(host_key=public, unix_path=path),
            labels=spec.labels,
        )
        (self.folder / "machine.json").write_bytes(msgspec.json.encode(machine))
        return machine

    async def _under_limits(self, forging: Forging) -> int:
        """Put PID 1 into the control groups while it sets itself up, before any job can start; its host pid."""
        assert self._pid1 is not None
        await asyncio.wait([forging.pid])
        if forging.pid.cancelled():
            await self._pid1.ready  # raises what went wrong, if PID 1 could say it
            raise ForgeFailed("starting PID 1", None, "it was killed")
        pid = forging.pid.result()
        try:
            await asyncio.to_thread(self._smithy.groups.join, self.spec.name, pid)
        except ProviderError:
            await self._pid1.ready  # if it died meanwhile, that is the reason to give
            raise
        return pid

    async def burn(self) -> None:
        """Returns when every process is dead and the folder is gone."""
        self._burning = True
        for task in self._tasks:
            task.cancel()
        if self._door is not None:
            self._door.close()
        if self._number is not None:
            await self._smithy.link.burn(self._number)
        if self._pid1 is not None:
            self._pid1.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._clear)

    async def usage(self) -> Usage:
        """What is measured is what the limits are held against. Raises ProviderError."""
        try:
            memory = await asyncio.to_thread(self._smithy.groups.memory_used_mb, self.spec.name)
        except OSError as error:
            raise ProviderError(
                f"the memory of machine {self.spec.name} cannot be measured ({error.filename}: {error.strerror}); "
                "look whether the machine still exists"
            ) from error
        if memory is None:
            memory = await asyncio.to_thread(memory_mb, self._init)
        if not self._limits.disk_in_memory:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DISK_LOOK_S):
                    await self._look_at_disk()
        return Usage(
            memory_limit_mb=self._limits.memory_mb,
            memory_used_mb=memory,
            disk_limit_mb=self._limits.disk_mb,
            disk_used_mb=None if self._limits.disk_in_memory else self._disk_seen_mb,
        )

    async def run_true(self) -> int:
        """The exit status of `true` in there."""
        assert self._pid1 is not None
        command = _Quiet()
        self._pid1.spawn(command, ["/bin/true"], {})
        async with asyncio.timeout(_READY_S):
            return await command.status

    def _clear(self) -> None:
        clear_dead_machine(self._smithy.home, self.spec.name)
        self._smithy.groups.remove(self.spec.name)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o711)  # tier `root`: PID 1 passes through here as a user id of its own
        (self.folder / "mnt").mkdir(mode=0o711)
        (self.folder / "disk").mkdir(mode=0o700)

    def _hung_up(self) -> None:
        if self.machine is not None and not self._burning:
            self._on_lost(self.spec.name)

    def _supervise(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A machine whose gate or watch broke is not what was promised any more: it goes, and says why in the log."""
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"machine {self.spec.name} is burned: part of its keeping failed", "exception": error}
            )
            self._on_lost(self.spec.name)

    async def _activity(self) -> None:
        """Return while something runs on the machine, or may. An idle machine costs nothing: its limits are looked at again
        when the next command is asked for, from which all its processes descend."""
        assert self._pid1 is not None
        while True:
            self._pid1.spawned.clear()
            if self._pid1.has_commands or has_processes(self._init):
                return
            await self._pid1.spawned.wait()

    async def _watch_memory(self) -> None:
        while True:
            await self._activity()
            began = time.monotonic()
            if await asyncio.to_thread(hold_memory, self._init, self._limits.memory_mb) and self._door:
                self._door.say(f"the largest process was killed: the machine has {self._limits.memory_mb} MB of memory")
                continue
            await asyncio.sleep(max(_MEMORY_POLL_S, 10 * (time.monotonic() - began)))

    async def _watch_disk(self) -> None:
        """Looking costs time in proportion to what is there: it gets a twentieth of it at most."""
        while True:
            await self._activity()
            began = time.monotonic()
            await self._look_at_disk()
            if self._disk_seen_mb > self._limits.disk_mb and self._pid1 and self._door:
                self._door.say(f"all processes were killed: the disk of {self._limits.disk_mb} MB is full")
                self._pid1.kill_all()
            await asyncio.sleep(max(_DISK_POLL_S, 20 * (time.monotonic() - began)))

    async def _look_at_disk(self) -> None:
        """One look at a time: whoever asks meanwhile waits for the same one."""
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().create_task(self._measure_disk())
        await asyncio.shield(self._look)

    async def _measure_disk(self) -> None:
        self._disk_seen_mb = await asyncio.to_thread(disk_mb, self.folder / "disk")


class _Quiet:
    """A command without input or output."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def descriptors(self) -> list[int]:
        return [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]

    def on_terminal(self, master: int) -> None:
        raise AssertionError("no terminal was asked for")

    def on_exit(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)
