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
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gibil_bot.errors import ProviderError
from gibil_bot.model import Endpoint, Machine, MachineSpec, Usage
from gibil_bot.providers.local.base_tree import Layout
from gibil_bot.providers.local.blocked_hosts import RefusalLog
from gibil_bot.providers.local.control_protocol import Cause
from gibil_bot.providers.local.disk_images import Image, Images, taken_mb
from gibil_bot.providers.local.egress_proxy import EgressProxy, forward, loopback_ports
from gibil_bot.providers.local.end_causes import write_cause
from gibil_bot.providers.local.fork_client import ForkClient, SpawnRequest
from gibil_bot.providers.local.host_network import HostNetwork
from gibil_bot.providers.local.init_client import InitClient, SpawnFailed
from gibil_bot.providers.local.limits import FILES_PER_MB, Groups, Limits
from gibil_bot.providers.local.mounts import MountRequest
from gibil_bot.providers.local.paths import LocalPaths, clear_dead_machine
from gibil_bot.providers.local.spawn import PROXY
from gibil_bot.providers.local.usage_poller import (
    Memory,
    calm_sessions,
    count_tasks,
    family,
    has_processes,
    hold_memory,
    memfd_device,
    memory_mb,
    open_files,
)

if TYPE_CHECKING:
    from gibil_bot.providers.local.ssh_server import MachineSSHServer

_HOST_NETWORK = HostNetwork()
_READY_S = 30.0
_MEMORY_POLL_S = 0.5
_DISK_POLL_S = 0.5
"""How often the host's free space is read: a look at the disk follows when it shrank."""
_DISK_EVERY_S = 5.0
"""A disk is looked at after this in any case, while something runs on the machine."""
_DISK_SLACK_MB = 8
_FILE_SLACK = 4096
_DISK_LOOK_CPU_S = 4.0
"""Of processor time. What takes longer to look at is too much."""
_FAILED_LOOKS = 5
_PIDS_ABOVE = 8
_DISK_LOOK_S = 5.0
"""A request for the usage waits that long for a look at the disk; then the last look counts."""


async def load_ssh_server() -> Any:
    """The module `door`. Its SSH library takes longer to import than a machine takes to forge: both go on side by side."""
    return await asyncio.to_thread(importlib.import_module, "gibil_bot.providers.local.ssh_server")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineContext:
    """What all machines of a keeper are made with."""

    home: LocalPaths
    tier: str
    link: ForkClient
    groups: Groups
    runtime: Path
    images: Images
    close_later: Callable[[Image], None]


class ManagedMachine:
    """`on_lost` is called when PID 1 ends although nobody burned it."""

    def __init__(self, smithy: MachineContext, spec: MachineSpec, limits: Limits, on_lost: Callable[[str], None]) -> None:
        self._smithy, self.spec, self._limits, self._on_lost = smithy, spec, limits, on_lost
        self._burning = False
        self._number: int | None = None
        self._init = 0
        """Host pid of PID 1"""
        self._disk_seen_mb = 0
        self._disk_excess: str | None = None
        """What there is too much of on a disk that is a folder, by the last look"""
        self._failed_looks = 0
        self._look: asyncio.Task[None] | None = None
        self._image: Image | None = None
        self._memory: Memory | None = None
        self._cause: Cause | None = None
        self._counts = (0, 0)
        """Kills for memory, and refused processes, that are known already"""
        self._calmed: set[int] = set()
        self._lasting: dict[str, str] = {}
        """States that were blamed and still last, by the last look: a full disk, as many processes as there may be"""
        self._pid1: InitClient | None = None
        self._door: MachineSSHServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusals = RefusalLog()
        """What the egress proxy kept it from reaching."""
        self.machine: Machine | None = None
        """Set once it is forged."""

    @property
    def folder(self) -> Path:
        return self._smithy.home.machine(self.spec.name)

    @property
    def memory_mb(self) -> int:
        return self._limits.memory_mb

    @property
    def image_mb(self) -> int | None:
        """Size of its disk, where that is an image."""
        return self._limits.disk_mb if self._image is not None else None

    async def forge(self, skeleton: str, layout: Layout, expires_at: datetime, created_at: datetime) -> Machine:
        """Forge it, or leave nothing. Raises SpawnFailed, ProviderError."""
        try:
            self.machine = await self._forge(skeleton, layout, created_at, expires_at)
        except BaseException:
            await self.burn()
            raise
        return self.machine

    async def _forge(self, skeleton: str, layout: Layout, created_at: datetime, expires_at: datetime) -> Machine:
        spec, smithy = self.spec, self._smithy
        gate = EgressProxy(spec.egress_allow, own_name=spec.name, refusals=self.refusals, host_network=_HOST_NETWORK)
        inward = [address for address in loopback_ports(spec.egress_allow) if address != PROXY]
        order: MountRequest = {
            "name": spec.name,
            "tier": smithy.tier,
            "local": str(smithy.home.local),
            "skeleton": skeleton,
            "pieces": [(piece.path, piece.optional) for piece in layout.pieces],
            "python": (layout.python.prefix, layout.python.executable) if layout.python else None,
            # Above that of the control group: only that one tells when it was met.
            "pids": self._limits.pids + (_PIDS_ABOVE if smithy.groups.counts_processes else 0),
            "memory_mb": self._limits.memory_mb,
            "disk_mb": self._limits.disk_mb,
            "disk": "memory" if self._limits.disk_in_memory else "folder",
            "weight": "group" if smithy.groups.shares_cpu else "nice",
            "listeners": inward,
            "base": 0,
        }
        self._make_folder()
        if not self._limits.disk_in_memory:
            self._image = smithy.images.take(self.folder, self._limits.disk_mb) or await asyncio.to_thread(
                smithy.images.create, self.folder, self._limits.disk_mb
            )
            if self._image is not None:
                order["disk"] = "image"
        smithy.groups.make(spec.name, self._limits)
        warm = asyncio.get_running_loop().run_in_executor(None, smithy.groups.warm)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid1 = InitClient(ours, self._hung_up)
        with theirs:
            self._number, forging = await smithy.link.forge(order, theirs, self._image.mount if self._image else None)
        # Meanwhile PID 1 is on its way.
        self._door = (await load_ssh_server()).MachineSSHServer(self._pid1)
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
            smithy.groups.weigh(spec.name)
        except TimeoutError:
            raise SpawnFailed("starting PID 1", None, f"not ready after {_READY_S:.0f} s") from None
        self._supervise(gate.serve(proxy))
        for listener, (host, port) in zip(others, inward, strict=True):
            self._supervise(forward(listener, host, port))
        self._memory = Memory.of(self._pid1.memory)
        if smithy.groups.memory == "polled":
            self._supervise(self._watch_memory(self._memory))
        if order["disk"] == "folder":
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

    async def _under_limits(self, forging: SpawnRequest) -> int:
        """Put PID 1 into the control groups while it sets itself up, before any job can start; its host pid."""
        assert self._pid1 is not None
        await asyncio.wait([forging.pid])
        if forging.pid.cancelled():
            await self._pid1.ready  # raises what went wrong, if PID 1 could say it
            raise SpawnFailed("starting PID 1", None, "it was killed")
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
        if self._look is not None:
            self._look.cancel()
        image, self._image = self._image, None
        await asyncio.to_thread(self._clear)
        if image is not None:  # unmounting and detaching take some milliseconds, and its file is gone already
            self._smithy.close_later(image)

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
            assert self._memory is not None
            memory = await asyncio.to_thread(memory_mb, self._init, self._memory, memfd_device())
        in_folder = not self._limits.disk_in_memory and self._image is None
        if in_folder:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DISK_LOOK_S):
                    await self._look_at_disk()
        return Usage(
            memory_limit_mb=self._limits.memory_mb,
            memory_used_mb=memory,
            disk_limit_mb=self._limits.disk_mb,
            disk_used_mb=self._disk_seen_mb if in_folder else None,
        )

    # Why processes of it, or all of it, came to an end

    def blame(self, text: str) -> None:
        """Remember why something on the machine is ended now, and tell those who are logged in."""
        self._cause = Cause(text=text, at=datetime.now(UTC))
        write_cause(self._smithy.home, self.spec.name, self._cause)
        if self._door is not None:
            self._door.say(text)

    def cause(self) -> Cause | None:
        """The last of them: of now, where it is a state that lasts."""
        self.notice()
        if self._cause is not None and self._cause.text in self._lasting.values():
            self._cause = Cause(text=self._cause.text, at=datetime.now(UTC))
        return self._cause

    def notice(self) -> None:
        """Look at what the kernel did by itself: a few small files are read."""
        groups, name = self._smithy.groups, self.spec.name
        kills, refused = groups.oom_kills(name), groups.refused_forks(name)
        before, self._counts = self._counts, (kills, refused)
        if kills > before[0]:
            self.blame(f"the kernel killed a process: the machine's {self._limits.memory_mb} MB of memory are used up")
        elif refused > before[1]:
            self.blame(self._too_many_processes())
        full = self._image.full() if self._image is not None else None
        lasts = full and f"the disk of {self._limits.disk_mb} MB is full: there is no room for more {_ROOM[full]}"
        self._blame_while("disk", lasts)

    def _blame_while(self, what: str, text: str | None) -> None:
        """For states: blame when it begins, and remember that it lasts; None: it doesn't, or not any more."""
        if text is None:
            self._lasting.pop(what, None)
        elif self._lasting.get(what) != text:
            self._lasting[what] = text
            self.blame(text)

    def _too_many_processes(self) -> str:
        return f"no further process could be started: the machine's {self._limits.pids} processes are used up"

    async def tick(self) -> None:
        """Called every second or so."""
        if self._burning or self.machine is None or not has_processes(self._init):
            return
        self.notice()
        if not self._smithy.groups.counts_processes:
            crowded = await asyncio.to_thread(count_tasks, self._init) >= self._limits.pids - 2
            self._blame_while("processes", self._too_many_processes() if crowded else None)
        if not self._smithy.groups.shares_cpu:
            await asyncio.to_thread(calm_sessions, self._init, self._calmed)

    def taken_mb(self) -> int:
        """What its disk takes of the host's, as far as that is known."""
        if self._limits.disk_in_memory:
            return 0
        return self._disk_seen_mb if self._image is None else taken_mb(self.folder) or 0

    async def run_true(self) -> int:
        """The exit status of `true` in there."""
        assert self._pid1 is not None
        command = _Quiet()
        self._pid1.spawn(command, ["/bin/true"], {})
        async with asyncio.timeout(_READY_S):
            return await command.status

    def _clear(self) -> None:
        if self._pid1 is not None:
            self._pid1.close_memory()
        clear_dead_machine(self._smithy.home, self.spec.name)
        if self._cause is not None:
            write_cause(self._smithy.home, self.spec.name, self._cause)
        self._smithy.groups.remove(self.spec.name)

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o711)  # tier `root`: PID 1 passes through here as a user id of its own
        (self.folder / "mnt").mkdir(mode=0o711)
        (self.folder / "disk").mkdir(mode=0o700)

    def _hung_up(self) -> None:
        if self.machine is not None and not self._burning:
            self.notice()
            if self._cause is None:
                self.blame("the machine ended: its first process was killed")
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

    async def _watch_memory(self, memory: Memory) -> None:
        memfds = memfd_device()
        while True:
            await self._activity()
            began = time.monotonic()
            if has_processes(self._init) and await asyncio.to_thread(
                hold_memory, self._init, self._limits.memory_mb, memory, memfds
            ):
                self.blame(f"the largest process was killed: the machine's {self._limits.memory_mb} MB of memory are used up")
                continue
            await asyncio.sleep(max(_MEMORY_POLL_S, 10 * (time.monotonic() - began)))

    async def _watch_disk(self) -> None:
        """Looking costs time in proportion to what there is, so it follows when the host's free space shrinks. A look gets a
        fifth of the time at most, and an idle machine is not looked at."""
        free = _free(self.folder)
        looked = time.monotonic()
        strikes = 0
        while True:
            await self._activity()
            await asyncio.sleep(_DISK_POLL_S)
            now = _free(self.folder)
            shrank = free[0] - now[0] > _DISK_SLACK_MB or free[1] - now[1] > _FILE_SLACK
            if not has_processes(self._init) or not (shrank or time.monotonic() - looked > _DISK_EVERY_S):
                continue
            free, began = now, time.monotonic()
            await self._look_at_disk()
            if self._disk_excess is None:
                strikes = 0
            elif self._pid1 is not None:
                self.blame(f"all processes were killed: {self._disk_excess}")
                strikes += 1
                if strikes == 1:
                    self._pid1.kill_jobs()
                else:
                    self._pid1.kill_all()
            looked = time.monotonic()
            await asyncio.sleep(4 * (looked - began))

    async def _look_at_disk(self) -> None:
        """One look at a time: a second caller waits for the same one."""
        if self._look is None or self._look.done():
            self._look = asyncio.get_running_loop().create_task(self._measure_disk())
            self._look.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._look)

    async def _measure_disk(self) -> None:
        size, most = self._limits.disk_mb, self._limits.disk_mb * FILES_PER_MB
        tree = await self._smithy.link.look(str(self.folder / "disk"), most, _DISK_LOOK_CPU_S)
        if tree is None:
            self._failed_looks += 1
            if self._failed_looks >= _FAILED_LOOKS and not self._burning:
                raise ProviderError(f"the disk of machine {self.spec.name} cannot be measured any more")
            return
        self._failed_looks = 0
        deleted_kb = await asyncio.to_thread(self._deleted_kb)
        self._disk_seen_mb = (tree.kb + deleted_kb) // 1024
        self._disk_excess = None
        if self._disk_seen_mb > size:
            self._disk_excess = f"the disk of {size} MB is full"
        elif tree.files > most:
            self._disk_excess = f"the disk of {size} MB holds too many files, more than {most}"
        elif not tree.complete:
            self._disk_excess = f"the disk of {size} MB holds too many files: they take too long to be counted"

    def _deleted_kb(self) -> int:
        assert self._memory is not None
        return open_files(family(self._init), memfd_device(), self._memory.devices).deleted_kb


_ROOM = {"space": "data", "files": "files"}


def _free(folder: Path) -> tuple[int, int]:
    """(MB, files) that the host's file system has left."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize // 1024**2, status.f_ffree


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

    def on_refused(self, reason: str) -> None:
        self.on_exit(254)
