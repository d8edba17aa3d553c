"""One machine of the daemon: init process, SSH server, egress proxy, limits, files, destruction."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gibil_bot.errors import ProviderError
from gibil_bot.model import Endpoint, LayerInfo, Machine, MachineSpec, Usage
from gibil_bot.providers.local.base_tree import Layout
from gibil_bot.providers.local.control_protocol import Cause
from gibil_bot.providers.local.disk_images import Image, Images, image_disk_mb
from gibil_bot.providers.local.egress_policy import allowed_networks, loopback_ports, parse_rules
from gibil_bot.providers.local.egress_proxy import EgressProxy
from gibil_bot.providers.local.end_causes import write_cause
from gibil_bot.providers.local.fork_client import ForkClient, SpawnedMachine
from gibil_bot.providers.local.host_network import HostNetwork
from gibil_bot.providers.local.init_client import InitClient, SpawnFailed
from gibil_bot.providers.local.layers import LayerStore, close_all
from gibil_bot.providers.local.limits import FILES_PER_MB, Groups, Limits, MemoryCounts, share_of_processors
from gibil_bot.providers.local.mounts import SpawnRequest
from gibil_bot.providers.local.outbound import Outbound, RefusalLog
from gibil_bot.providers.local.paths import LocalPaths, await_dead_machine, clear_dead_machine
from gibil_bot.providers.local.proc_views import Views
from gibil_bot.providers.local.relay import Connections, forward
from gibil_bot.providers.local.route import PROXY
from gibil_bot.providers.local.runtime_store import NO_TREES, SharedTrees
from gibil_bot.providers.local.usage_poller import (
    Memory,
    count_tasks,
    enforce_memory,
    family,
    has_processes,
    lower_session_priorities,
    memfd_device,
    memory_mb,
    open_files,
)
from gibil_bot.ssh.answers import printable

if TYPE_CHECKING:
    from gibil_bot.providers.local.ssh_server import MachineSSHServer

_HOST_NETWORK = HostNetwork()
_READY_S = 30.0
_MEMORY_POLL_S = 0.5
_DISK_POLL_S = 0.5
"""How often the host's free space is read; when it has shrunk, the machine's disk is measured."""
_DISK_MEASURE_EVERY_S = 5.0
"""The disk of a machine with processes is measured at least this often."""
_DISK_SLACK_MB = 8
_FILE_SLACK = 4096
_MEASURE_CPU_S = 4.0
"""Processor time for one measurement. A disk that takes longer holds too many files."""
_FAILED_MEASUREMENTS = 5
_PIDS_ABOVE = 8
_NAMED_PROCESSES = 8
_MEASURE_S = 5.0
"""How long a request for the usage waits for a measurement of the disk; then the last one is used."""


async def load_ssh_server() -> None:
    """Import the module `ssh_server` in a thread: its SSH library takes longer to import than a machine takes to create."""
    await asyncio.to_thread(importlib.import_module, "gibil_bot.providers.local.ssh_server")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineContext:
    """The parts that all machines of a daemon share."""

    paths: LocalPaths
    privilege: str
    link: ForkClient
    groups: Groups
    runtime: Path
    images: Images
    later: Callable[..., None]
    """Runs a function with its arguments in a thread; nothing but the daemon's end waits for it."""
    layers: LayerStore


class ManagedMachine:
    """A machine of `spec`. `on_lost` is called with its name when its PID 1 ends although `destroy` wasn't called."""

    def __init__(
        self,
        context: MachineContext,
        spec: MachineSpec,
        limits: Limits,
        on_lost: Callable[[str], None],
        chain: Sequence[str] = (),
    ) -> None:
        """`chain`: the layers below it, uppermost first."""
        self._context, self.spec, self._limits, self._on_lost = context, spec, limits, on_lost
        self._chain = chain
        self._runtimes = NO_TREES
        self._socket_path = ""
        self.layout: Layout | None = None
        """What its root file system was composed of."""
        self._destroying = False
        self._number: int | None = None
        self._init_pid = 0
        """Host pid of PID 1."""
        self._disk_seen_mb = 0
        self._disk_excess: str | None = None
        """Which limit of a disk that is a folder was exceeded in the last measurement."""
        self._failed_measurements = 0
        self._measuring: asyncio.Task[None] | None = None
        self._image: Image | None = None
        self._memory: Memory | None = None
        self._polled_kb = 0
        """Memory in use, if no control group counts it."""
        self._views: Views | None = None
        self._active = False
        """Whether processes ran on it at the last tick."""
        self._cause: Cause | None = None
        """The last one"""
        self._causes: dict[str, Cause] = {}
        """All by their text, with the last time"""
        self.unwritten_cause: Cause | None = None
        """After `destroy`, its cause if the host's disk was too full to store it."""
        self._counts = (0, 0)
        """Kills for memory, and processes that could not be started, that have been reported."""
        self._lowered_sessions: set[int] = set()
        self._lasting: dict[str, str] = {}
        """Lasting states that have been reported, by kind: a full disk, the highest number of processes."""
        self._init_client: InitClient | None = None
        self._ssh_server: MachineSSHServer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.refusals = RefusalLog()
        """Connections that the egress proxy blocked."""
        self.egress_only: tuple[str, ...] | None = None
        """The allow-list of the agent task that works on it. Set before `create`, it holds from the first process on."""
        self._egress_proxy: EgressProxy | None = None
        self._forwarded = Connections()
        """Connections to loopback endpoints of the host."""
        self.machine: Machine | None = None
        """Set once it is created."""

    @property
    def folder(self) -> Path:
        return self._context.paths.machine(self.spec.name)

    @property
    def memory_mb(self) -> int:
        return self._limits.memory_mb

    @property
    def disk_in_memory(self) -> bool:
        return self._limits.disk_in_memory

    @property
    def image_mb(self) -> int | None:
        """Size of its disk, if that is an image."""
        return self._limits.disk_mb if self._image is not None else None

    async def create(
        self,
        base_tree: str,
        layout: Layout,
        expires_at: datetime,
        created_at: datetime,
        runtimes: SharedTrees = NO_TREES,
        socket_path: str = "",
    ) -> Machine:
        """Create the machine; after an error nothing of it is left. Raises SpawnFailed, ProviderError.

        `socket_path`: where its SSH server listens, chosen if it is empty.
        """
        self._runtimes, self.layout = runtimes, layout
        self._socket_path = socket_path or str(self._context.runtime / f"{secrets.token_hex(4)}.sock")
        try:
            self.machine = await self._create(base_tree, layout, created_at, expires_at)
        except BaseException:
            await self.destroy()
            raise
        return self.machine

    async def _create(self, base_tree: str, layout: Layout, created_at: datetime, expires_at: datetime) -> Machine:
        spec, context = self.spec, self._context
        outbound = Outbound(spec.egress_allow, own_name=spec.name, refusals=self.refusals, host_network=_HOST_NETWORK)
        self._egress_proxy = egress_proxy = EgressProxy(outbound)
        await egress_proxy.restrict(self.egress_only)
        listeners = [address for address in loopback_ports(spec.egress_allow) if address != PROXY]
        request: SpawnRequest = {
            "name": spec.name,
            "privilege": context.privilege,
            "local": str(context.paths.local),
            "base_tree": base_tree,
            "pieces": [(piece.path, piece.optional) for piece in layout.pieces],
            "python": (layout.python.prefix, layout.python.executable) if layout.python else None,
            # Above the limit of the control group, because only that one reports when it is reached.
            "pids": self._limits.pids + (_PIDS_ABOVE if context.groups.counts_processes else 0),
            "memory_mb": self._limits.memory_mb,
            "disk_mb": self._limits.disk_mb,
            "disk": "memory" if self._limits.disk_in_memory else "folder",
            "weight": "group" if context.groups.shares_cpu else "nice",
            "cpus": share_of_processors(self._limits.memory_mb, context.groups.host_memory_mb(), os.sched_getaffinity(0)),
            "listeners": listeners,
            "allowed": allowed_networks(spec.egress_allow),
            "base": 0,
            "layers": [],
            "runtimes": self._runtimes.folder,
        }
        self._make_folder()
        if not self._limits.disk_in_memory:
            self._image = context.images.take_prepared(self.folder, self._limits.disk_mb) or await asyncio.to_thread(
                context.images.create, self.folder, self._limits.disk_mb
            )
            if self._image is not None:
                request["disk"] = "image"
        context.groups.create(spec.name, self._limits)
        warm = asyncio.get_running_loop().run_in_executor(None, context.groups.warm)
        ours, other_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._init_client = InitClient(ours, self._hung_up)
        lower = await asyncio.to_thread(context.layers.open, self._chain) if self._chain else []
        request["layers"] = [{"id": one.id, "base": one.base, "mounted": one.mount is not None} for one in lower]
        disks = [*([self._image.mount] if self._image else []), *(one.mount for one in lower if one.mount is not None)]
        try:
            with other_end:
                self._number, spawned = await context.link.spawn(request, other_end, disks)
        finally:
            close_all(lower)
        # PID 1 is being set up meanwhile.
        await load_ssh_server()
        from gibil_bot.providers.local.ssh_server import MachineSSHServer

        self._ssh_server = MachineSSHServer(self._init_client)
        path = self._socket_path
        try:
            public = await self._ssh_server.open(path, spec.host_key, spec.authorized_key)
        except ValueError as error:
            raise ProviderError(f"machine {spec.name}: a key of its specification is invalid: {error}") from error
        try:
            async with asyncio.timeout(_READY_S):
                await warm
                self._init_pid = await self._under_limits(spawned)
                self._init_client.entered(self._init_pid)
                proxy, *others = await self._init_client.ready
                routed = [others.pop() for _ in range(self._init_client.routed)][::-1]
            context.groups.weigh(spec.name)
        except TimeoutError:
            raise SpawnFailed("starting PID 1", None, f"not ready after {_READY_S:.0f} s") from None
        self._supervise(egress_proxy.serve(proxy, *routed))
        for listener, (host, port) in zip(others, listeners, strict=True):
            self._supervise(
                forward(
                    listener,
                    host,
                    port,
                    connections=self._forwarded,
                    is_allowed=lambda host=host, port=port: outbound.may_forward(host, port),  # type: ignore[misc]
                )
            )
        self._memory = Memory.of(self._init_client.memory)
        self._views = Views(self._init_client.views, self._limits.memory_mb, request["cpus"])
        if context.groups.memory == "polled":
            self._supervise(self._watch_memory(self._memory))
        if request["disk"] == "folder":
            self._supervise(self._watch_disk())
        machine = Machine(
            provider="local",
            id=spec.name,
            name=spec.name,
            created_at=created_at,
            expires_at=expires_at,
            endpoint=Endpoint(host_key=public, unix_path=path),
            labels=spec.labels,
            layer=spec.layer,
        )
        (self.folder / "machine.json").write_bytes(msgspec.json.encode(machine))
        return machine

    async def _under_limits(self, spawned: SpawnedMachine) -> int:
        """Move PID 1 into the control groups while it sets itself up, before any job can start; return its host pid."""
        assert self._init_client is not None
        await asyncio.wait([spawned.pid])
        if spawned.pid.cancelled():
            await self._init_client.ready  # raises the reason, if PID 1 could send it
            raise SpawnFailed("starting PID 1", None, "it was killed")
        pid = spawned.pid.result()
        try:
            await asyncio.to_thread(self._context.groups.join, self.spec.name, pid)
        except ProviderError:
            await self._init_client.ready  # raises the reason, if PID 1 died meanwhile
            raise
        return pid

    async def destroy(self) -> None:
        """Destroy the machine; returns when every process is dead and the folder is in the trash."""
        await self._end()
        image, self._image = self._image, None
        await asyncio.to_thread(self._clear)
        self._context.later(self._unmount, image)

    async def restrict_egress(self, allow: tuple[str, ...] | None) -> None:
        """See EgressProxy.restrict. Raises ConfigurationError."""
        assert self._egress_proxy is not None
        parse_rules(allow or ())
        if allow == self.egress_only:
            return
        self.egress_only = allow  # before anything is awaited, so that a fork has it, too
        await self._egress_proxy.restrict(allow)
        if allow is not None:
            await self._forwarded.end()

    @property
    def runtimes(self) -> SharedTrees:
        """The stored runtimes that it has."""
        return self._runtimes

    def processes(self) -> list[str]:
        """Return the names of some processes that run on it."""
        if not has_processes(self._init_pid):
            return []
        found = []
        for pid in family(self._init_pid)[:_NAMED_PROCESSES]:
            with contextlib.suppress(OSError):  # it has ended
                found.append(printable(Path(f"/proc/{pid}/comm").read_text(errors="replace").strip(), 15))
        return list(dict.fromkeys(found))

    async def become_layer(
        self, layer_id: str, base_tree: str, kind: str = "", template: str = "", labels: Mapping[str, str] | None = None
    ) -> LayerInfo:
        """End the machine and make its disk a layer; the rest of it is left for `destroy`. Raises OSError, ProviderError.

        `kind`, `template`, `labels`: see model.LayerInfo.
        """
        await self._end()
        size_mb = 0
        if self._image is None:
            most = self._limits.disk_mb * FILES_PER_MB
            tree = await self._context.link.measure(str(self.folder / "disk"), most, _MEASURE_CPU_S)
            size_mb = tree.kb // 1024 if tree is not None else self._disk_seen_mb
        purpose = kind, template, labels or {}
        return await asyncio.to_thread(self._give_disk, layer_id, base_tree, size_mb, purpose)

    def _give_disk(self, layer_id: str, base_tree: str, size_mb: int, purpose: tuple[str, str, Mapping[str, str]]) -> LayerInfo:
        if not await_dead_machine(self._context.paths, self.spec.name):
            raise ProviderError(
                f"machine {self.spec.name}: its processes don't end; destroy it: gibil destroy {self.spec.name}"
            )
        info = self._context.layers.adopt(
            layer_id, self.folder, self._image or size_mb, self.spec.layer, base_tree, self._runtimes.entries, *purpose
        )
        self._image = None
        return info

    async def _end(self) -> None:
        """Kill every process of the machine and stop serving it."""
        self._destroying = True
        for task in self._tasks:
            task.cancel()
        if self._ssh_server is not None:
            self._ssh_server.close()
        if self._number is not None:
            await self._context.link.kill(self._number)
        if self._init_client is not None:
            self._init_client.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._measuring is not None:
            self._measuring.cancel()

    async def usage(self) -> Usage:
        """Return the values that are compared with the limits, and show them on the machine, too. Raises ProviderError."""
        if self._memory is None:
            raise ProviderError(f"machine {self.spec.name} is being created, or forked; try again")
        try:
            memory = await asyncio.to_thread(self._context.groups.memory_used_mb, self.spec.name)
        except OSError as error:
            raise ProviderError(
                f"cannot measure the memory of machine {self.spec.name} ({error.filename}: {error.strerror}); "
                "check whether it still exists: gibil list"
            ) from error
        if memory is None:
            assert self._memory is not None
            memory = await asyncio.to_thread(memory_mb, self._init_pid, self._memory, memfd_device())
            self._polled_kb = memory * 1024
        if self._views is not None:
            self._refresh_views()
        in_folder = not self._limits.disk_in_memory and self._image is None
        if in_folder:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_MEASURE_S):
                    await self._measure_disk()
        return Usage(
            memory_limit_mb=self._limits.memory_mb,
            memory_used_mb=memory,
            disk_limit_mb=self._limits.disk_mb,
            disk_used_mb=self._disk_seen_mb if in_folder else None,
        )

    # Why its processes, or the machine, were ended

    def report_cause(self, text: str) -> None:
        """Record why something on the machine is ended now, and print it in all sessions."""
        self._cause = self._causes[text] = Cause(text=text, at=datetime.now(UTC))
        write_cause(self._context.paths, self.spec.name, self._cause)
        if self._ssh_server is not None:
            self._ssh_server.say(text)

    def causes(self) -> list[Cause]:
        """Return what its limits ended or prevented, the last first; a lasting state has the current time."""
        self.check_kernel_events()
        for text in self._lasting.values():
            self._causes[text] = Cause(text=text, at=datetime.now(UTC))
        return sorted(self._causes.values(), key=lambda cause: cause.at, reverse=True)

    def check_kernel_events(self) -> None:
        """Report what the kernel did by itself. Cheap: a few small files are read."""
        groups, name = self._context.groups, self.spec.name
        kills, refused = groups.oom_kills(name), groups.refused_forks(name)
        before, self._counts = self._counts, (kills, refused)
        if kills > before[0]:
            self.report_cause(f"the kernel killed a process: {self._memory_used_up()}")
        if refused > before[1]:
            self.report_cause(self._too_many_processes())
        full = self._image.full() if self._image is not None else None
        lasts = (
            full and f"the disk of {self._limits.disk_mb} MB is full: there is no room for more {_ROOM[full]}{_raise('disk')}"
        )
        self._report_state("disk", lasts)
        if self._memory is not None:
            for path, (used, size_mb) in self._memory.full_mounts().items():
                what = "the disk" if path == "/" else path
                remedy = _raise("disk" if path == "/" else "memory")
                self._report_state(path, f"{what} of {size_mb} MB is full{remedy}" if used else None)

    def _memory_used_up(self) -> str:
        return f"the machine's {self._limits.memory_mb} MB of memory are used up{_raise('memory')}"

    def _report_state(self, what: str, text: str | None) -> None:
        """Report a lasting state when it begins. `text` None: the state doesn't exist, or not any more."""
        if text is None:
            self._lasting.pop(what, None)
        elif self._lasting.get(what) != text:
            self._lasting[what] = text
            self.report_cause(text)

    def _too_many_processes(self) -> str:
        pids = self._limits.pids
        return f"no further process could be started: the machine's {pids} processes are used up{_raise('pids')}"

    async def tick(self) -> None:
        """Check limits that nothing enforces by itself, and show the memory in use. Called about once a second."""
        if self._destroying or self.machine is None:
            return
        was_active, self._active = self._active, has_processes(self._init_pid)
        if self._active or was_active:
            self._refresh_views()
        if not self._active:
            return
        self.check_kernel_events()
        if not self._context.groups.counts_processes:
            crowded = await asyncio.to_thread(count_tasks, self._init_pid) >= self._limits.pids - 2
            self._report_state("processes", self._too_many_processes() if crowded else None)
        if not self._context.groups.shares_cpu:
            await asyncio.to_thread(lower_session_priorities, self._init_pid, self._lowered_sessions)

    def _refresh_views(self) -> None:
        assert self._memory is not None
        assert self._views is not None
        counts = None
        with contextlib.suppress(OSError):
            counts = self._context.groups.memory_counts(self.spec.name)
        if counts is None:
            shared = self._memory.unmapped_kb()
            counts = MemoryCounts(
                used_kb=max(shared, self._polled_kb) if self._active else shared,
                reclaimable_kb=0,
                fields={"Shmem": shared, "Cached": shared},
            )
        self._views.refresh(counts.used_kb, counts.reclaimable_kb, counts.fields)

    def host_disk_mb(self) -> int:
        """Return how much of the host's disk its disk uses, as far as that is known."""
        if self._limits.disk_in_memory:
            return 0
        return self._disk_seen_mb if self._image is None else image_disk_mb(self.folder) or 0

    async def run_true(self) -> int:
        """Run `true` on the machine and return its exit status."""
        assert self._init_client is not None
        command = _Quiet()
        self._init_client.spawn(command, ["/bin/true"], {})
        async with asyncio.timeout(_READY_S):
            return await command.status

    def _clear(self) -> None:
        clear_dead_machine(self._context.paths, self.spec.name)
        if self._cause is not None and not write_cause(self._context.paths, self.spec.name, self._cause):
            self.unwritten_cause = self._cause
        self._context.groups.remove(self.spec.name)

    def _unmount(self, image: Image | None) -> None:
        if self._init_client is not None:
            self._init_client.release_mounts()
        if image is not None:
            image.close()

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o711)  # privilege `root`: PID 1 enters through here under its own user id
        (self.folder / "mnt").mkdir(mode=0o711)
        (self.folder / "disk").mkdir(mode=0o700)

    def _hung_up(self) -> None:
        if self.machine is not None and not self._destroying:
            self.check_kernel_events()
            if self._cause is None:
                self.report_cause("the machine ended: its first process was killed")
            self._on_lost(self.spec.name)

    def _supervise(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """Destroy a machine whose egress proxy or limits don't work any more, and log why."""
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"destroying machine {self.spec.name}: one of its tasks in the daemon failed", "exception": error}
            )
            self._on_lost(self.spec.name)

    async def _activity(self) -> None:
        """Return when something may run on the machine.

        An idle machine isn't polled: all its processes descend from commands, so the next command wakes this up.
        """
        assert self._init_client is not None
        while True:
            self._init_client.spawned.clear()
            if self._init_client.has_commands or has_processes(self._init_pid):
                return
            await self._init_client.spawned.wait()

    async def _watch_memory(self, memory: Memory) -> None:
        memfds = memfd_device()
        while True:
            await self._activity()
            began = time.monotonic()
            if has_processes(self._init_pid):
                enforced = await asyncio.to_thread(enforce_memory, self._init_pid, self._limits.memory_mb, memory, memfds)
                self._polled_kb = enforced.used_kb
                if enforced.killed:
                    self.report_cause(f"the largest process was killed: {self._memory_used_up()}")
                    continue
            await asyncio.sleep(max(_MEMORY_POLL_S, 10 * (time.monotonic() - began)))

    async def _watch_disk(self) -> None:
        """Measure the disk when the host's free space shrinks, since measuring takes time in proportion to the number of files.

        Measurements take at most a fifth of the time, and an idle machine isn't measured.
        """
        free = _free(self.folder)
        looked = time.monotonic()
        strikes = 0
        while True:
            await self._activity()
            await asyncio.sleep(_DISK_POLL_S)
            now = _free(self.folder)
            shrank = free[0] - now[0] > _DISK_SLACK_MB or free[1] - now[1] > _FILE_SLACK
            if not has_processes(self._init_pid) or not (shrank or time.monotonic() - looked > _DISK_MEASURE_EVERY_S):
                continue
            free, began = now, time.monotonic()
            await self._measure_disk()
            if self._disk_excess is None:
                strikes = 0
            elif self._init_client is not None:
                self.report_cause(f"all processes were killed: {self._disk_excess}{_raise('disk')}")
                strikes += 1
                if strikes == 1:
                    self._init_client.kill_jobs()
                else:
                    self._init_client.kill_all()
            looked = time.monotonic()
            await asyncio.sleep(4 * (looked - began))

    async def _measure_disk(self) -> None:
        """Measure the disk once: concurrent callers wait for the same measurement."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.get_running_loop().create_task(self._measure())
            self._measuring.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._measuring)

    async def _measure(self) -> None:
        size, most = self._limits.disk_mb, self._limits.disk_mb * FILES_PER_MB
        tree = await self._context.link.measure(str(self.folder / "disk"), most, _MEASURE_CPU_S)
        if tree is None:
            self._failed_measurements += 1
            if self._failed_measurements >= _FAILED_MEASUREMENTS and not self._destroying:
                raise ProviderError(f"cannot measure the disk of machine {self.spec.name} any more")
            return
        self._failed_measurements = 0
        deleted_kb = await asyncio.to_thread(self._deleted_kb)
        self._disk_seen_mb = (tree.kb + deleted_kb) // 1024
        self._disk_excess = None
        if self._disk_seen_mb > size:
            self._disk_excess = f"the disk of {size} MB is full"
        elif tree.files > most:
            self._disk_excess = f"the disk of {size} MB holds too many files, more than {most}"
        elif not tree.complete:
            self._disk_excess = f"the disk of {size} MB holds too many files: counting them takes too long"

    def _deleted_kb(self) -> int:
        assert self._memory is not None
        return open_files(family(self._init_pid), memfd_device(), self._memory.devices).deleted_kb


_ROOM = {"space": "data", "files": "files"}


def _raise(key: str) -> str:
    """Return the remedy for a limit of that key of a workflow's or `.gibil.yml`'s machine."""
    return f" (`machine: {{{key}: …}}`)"


def _free(folder: Path) -> tuple[int, int]:
    """Return the free space of the host's file system: (MB, files)."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize // 1024**2, status.f_ffree


class _Quiet:
    """A command without input or output."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def descriptors(self) -> list[int]:
        return [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]

    def on_terminal(self, master: int) -> None:
        raise AssertionError("this command has no terminal")

    def on_exit(self, status: int) -> None:
        if not self.status.done():
            self.status.set_result(status)

    def on_refused(self, reason: str) -> None:
        self.on_exit(254)
