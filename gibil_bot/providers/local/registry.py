"""All machines of one daemon by name: creation, destruction, expiry. A machine exists if and only if it is in the registry."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from msgspec.structs import replace

from gibil_bot.errors import GibilError, MachineNotFound, NameTaken, ProviderError, UsageError
from gibil_bot.limits import MACHINE_NAME, MACHINE_NAME_RULE
from gibil_bot.model import Capabilities, LayerInfo, Machine, MachineSpec, Refusals, Usage
from gibil_bot.ports import LAYER_GONE
from gibil_bot.providers.local import base_tree
from gibil_bot.providers.local.control_protocol import Cause
from gibil_bot.providers.local.diagnostics import explain
from gibil_bot.providers.local.disk_images import Images, remove_leftovers
from gibil_bot.providers.local.end_causes import forget_cause, forget_old_causes, read_cause, write_cause
from gibil_bot.providers.local.expiry import Expiry
from gibil_bot.providers.local.fork_client import ForkClient
from gibil_bot.providers.local.init_client import SpawnFailed
from gibil_bot.providers.local.layers import FORK, MOST_FORKED, TEMPLATE, LayerStore
from gibil_bot.providers.local.limits import NO_ROOM, Groups, Limits, find_hierarchies, floor_mb, limits_of
from gibil_bot.providers.local.managed_machine import MachineContext, ManagedMachine, load_ssh_server
from gibil_bot.providers.local.paths import LocalPaths, clear_dead_machine, groups_prefix, own_privilege
from gibil_bot.providers.local.rmtree import remove_tree
from gibil_bot.providers.local.runtime_store import FILLING, RuntimeStore, RuntimeTrees, SharedTrees
from gibil_bot.providers.local.trash import BackgroundDeletion, waiting
from gibil_bot.providers.templates import CODE_LABELS, name_taken

_APT = Path("/usr/bin/apt-get").exists()
_CLOCK_CHECK_S = 30.0
"""How often an expiry is compared with the clock: it is a time of day, and a host may have slept."""
_EXPIRED = "the machine was ended: its time to live is over"
_TICK_S = 1.0
_PROBE_MEMORY_MB = 128
_DELETION_S = 30.0
"""How long a host that is short of disk space waits for the deletion of destroyed machines."""
_END_S = 2.0
"""How long a daemon that ends waits for it. The next daemon deletes the rest."""


class MachineRegistry:
    """The machines of one daemon. `inherited`: properties of the starter's process that could not be reset, for `probe`."""

    def __init__(self, paths: LocalPaths, runtime: Path, link: ForkClient, inherited: tuple[str, ...] = ()) -> None:
        self._paths, self._runtime = paths, runtime
        self._privilege = own_privilege()
        self._inherited = inherited
        self._groups = Groups(find_hierarchies(), groups_prefix(paths))
        self._images = Images(paths.local)
        self._layers = LayerStore(paths, self._privilege)
        self._host_memory_mb = self._groups.host_memory_mb()
        self._deletion = BackgroundDeletion(paths.trash, self._empty_trash)
        self._unwritten_causes: dict[str, Cause] = {}
        self._short_of_space = 0.0
        """For how many seconds a deletion has been awaited, because the host is short of disk space."""
        self._disk_work: set[asyncio.Future[None]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._link = link
        self._machines: dict[str, ManagedMachine] = {}
        self._base_trees: dict[str, str] = {}
        """machine → name of its base tree"""
        self._runtime_trees: dict[str, SharedTrees] = {}
        """machine → the stored runtimes that it has"""
        self._restricted_layers: dict[str, tuple[str, ...]] = {}
        """layer of a forked machine → the allow-list that the machine had then"""
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}
        self._base_tree_lock = asyncio.Lock()
        self._last_settings = base_tree.NO_SETTINGS
        self._runtimes = RuntimeTrees(RuntimeStore(paths.local / "runtimes"))
        self._expiries: dict[str, tuple[Expiry, asyncio.TimerHandle | None]] = {}
        self._destroying: set[asyncio.Task[bool]] = set()
        link.attend(self._fork_server_lost)

    @property
    def count(self) -> int:
        return len(self._machines)

    @property
    def is_deleting(self) -> bool:
        """Whether files of destroyed machines are being deleted."""
        return self._deletion.is_busy

    async def clear_leftovers(self) -> list[str]:
        """Remove folders and groups of machines that an earlier daemon left; return the names of those that had a folder.

        Each name is locked meanwhile, because a machine that is being created isn't a leftover.
        """
        gone = []
        if not self._machines:
            await asyncio.to_thread(forget_old_causes, self._paths)
            await asyncio.to_thread(remove_leftovers, self._paths.local)
            await asyncio.to_thread(self._layers.load)
        for name in await asyncio.to_thread(self._found):
            if name not in self._machines:
                async with self._locked(name):
                    if name not in self._machines and await asyncio.to_thread(self._clear_leftover, name):
                        gone.append(name)
        if waiting(self._paths.trash):
            self._deletion.begin()
        return gone

    def _found(self) -> list[str]:
        """Return the names of all machines that have a folder or a group, existing ones too."""
        return sorted({*(folder.name for folder in self._paths.machines.iterdir()), *self._groups.leftovers()})

    def _clear_leftover(self, name: str) -> bool:
        folder = self._paths.machine(name).is_dir()
        if not clear_dead_machine(self._paths, name):
            return False
        self._groups.remove(name)
        return folder

    async def create(self, spec: MachineSpec) -> tuple[Machine, bool]:
        """Return the machine, and whether this call created it."""
        if not MACHINE_NAME.fullmatch(spec.name):
            raise UsageError(f"{spec.name!r} is not a valid machine name: use {MACHINE_NAME_RULE}")
        async with self._locked(spec.name):
            existing = self._machines.get(spec.name)
            if existing is not None and existing.machine is not None:
                if existing.spec.authorized_key.split()[:2] != spec.authorized_key.split()[:2]:
                    raise NameTaken(f"a machine named {spec.name} exists already, with another key; choose another name")
                return existing.machine, False
            limits = limits_of(spec)
            layout = base_tree.survey(self._privilege)
            try:
                base = await self._base_tree(layout, self._tool_settings(spec))
                runtimes = self._runtimes.unchanged() or await self._link_runtimes()
            except OSError as error:
                raise ProviderError(
                    f"cannot build the base tree of machines in {self._paths.local}: {error.strerror or error}; "
                    "GIBIL_DATA_DIR needs 200 MB of writable space"
                ) from error
            context = self._context()
            if self._is_short_of_space():
                await self._deletion.wait(_DELETION_S)
                await self._delete_unused_layers(spec.layer)
            await self._end_filling(limits)
            self._check_room(spec.name, limits)
            forget_cause(self._paths, spec.name)
            self._unwritten_causes.pop(spec.name, None)
            chain = self._layers.use(spec.name, spec.layer, base, runtimes.entries) if spec.layer is not None else ()
            managed = self._machines[spec.name] = ManagedMachine(context, spec, limits, self._lost, chain)
            managed.egress_only = self._restricted_layers.get(spec.layer or "")
            self._base_trees[spec.name] = base
            self._runtime_trees[spec.name] = runtimes
            created_at = datetime.now(UTC)
            try:
                expires_at = created_at + timedelta(seconds=spec.ttl_s)
                machine = await managed.create(base, layout, expires_at, created_at, runtimes)
            except SpawnFailed as failed:
                self._forget(spec.name)
                raise explain(failed, self._privilege, str(self._paths.data_dir)) from failed
            except ProviderError as error:
                self._forget(spec.name)
                if error.code == LAYER_GONE:
                    await self._drop(chain)
                raise
            except OSError as error:
                self._forget(spec.name)
                raise ProviderError(f"cannot create machine {spec.name}: {error.strerror or error}") from error
            except BaseException:
                self._forget(spec.name)
                raise
            self._watch_expiry(spec.name, Expiry(machine.expires_at))
            if managed.image_mb is not None:
                self._in_background(self._images.prepare, managed.image_mb)
            if self._ticking is None or self._ticking.done():
                self._ticking = asyncio.get_running_loop().create_task(self._tick())
            return machine, True

    def _context(self) -> MachineContext:
        return MachineContext(
            paths=self._paths,
            privilege=self._privilege,
            link=self._working_link(),
            groups=self._groups,
            runtime=self._runtime,
            images=self._images,
            later=self._in_background,
            layers=self._layers,
        )

    # Layers

    def layers(self) -> list[LayerInfo]:
        return self._layers.infos()

    async def save_layer(self, name: str, layer_id: str) -> LayerInfo:
        """End the machine and make its disk a layer. Raises MachineNotFound, UsageError, ProviderError.

        Repeated after it succeeded, it returns the layer.
        """
        async with self._locked(name):
            if name not in self._machines and (saved := self._layers.info(layer_id)) is not None:
                return saved
            managed = self._existing(name)
            self._layers.check_new(layer_id, managed.spec.layer)
            if managed.disk_in_memory:
                raise UsageError(f"the disk of machine {name} is in memory, so it can't become a layer; give it a larger disk")
            base = self._base_trees[name]
            try:
                info = await managed.become_layer(layer_id, base)
            except OSError as error:
                raise ProviderError(f"the disk of machine {name} can't become a layer: {error.strerror or error}") from error
            finally:
                await managed.destroy()
                self._forget(name)
            self._in_background(self._seal, layer_id)
            return info

    def kept_layers(self) -> list[LayerInfo]:
        """Return the layers that are templates."""
        return self._layers.kept()

    async def delete_template(self, template: str) -> bool:
        """Delete a template; False if it doesn't exist. What is based on its layer keeps that. Raises ProviderError."""
        info = self._layers.template(template)
        if info is None:
            return False
        try:
            await asyncio.to_thread(self._layers.demote, info.id)
        except OSError as error:
            raise ProviderError(f"template {template} can't be deleted: {error.strerror or error}") from error
        self._delete_unused_forks()
        return True

    async def branch_layer(self, name: str, layer_id: str, template: str, *, stop: bool) -> LayerInfo:
        """Make the machine's disk a layer, and start the machine again on top of it, with the same keys, socket and expiry.

        Nothing is copied. `template`: the layer is permanent and has this name; otherwise it is deleted with the last machine
        that is based on it. Safe to repeat. Raises MachineNotFound, UsageError, ProviderError.
        """
        async with self._locked(name):
            if (saved := self._layers.info(layer_id)) is not None:
                return saved
            managed = self._existing(name)
            machine = managed.machine
            assert machine is not None
            assert managed.layout is not None
            self._layers.check_new(layer_id, managed.spec.layer, MOST_FORKED)
            if template and self._layers.template(template) is not None:
                raise name_taken(template)
            if managed.disk_in_memory:
                raise UsageError(f"the disk of machine {name} is in memory, so it can't be copied; give it a larger disk")
            if not stop and (running := managed.processes()):
                raise UsageError(
                    f"processes run on {name} ({', '.join(running)}), and copying its disk would end them: wait for their end, "
                    "or end them with --stop",
                    code="MACHINE_BUSY",
                )
            kept = {key: value for key, value in machine.labels.items() if key in CODE_LABELS}
            base, kind = self._base_trees[name], TEMPLATE if template else FORK
            self._layers.hold(name, layer_id)
            try:
                info = await managed.become_layer(layer_id, base, kind, template, kept)
            except (OSError, GibilError) as error:
                await managed.destroy()
                self._forget(name)
                why = (error.strerror if isinstance(error, OSError) else None) or error
                raise ProviderError(f"machine {name} was ended, but its disk can't become a layer: {why}") from error
            if template:
                self._in_background(self._seal, layer_id)
            elif managed.egress_only is not None:
                self._restricted_layers[layer_id] = managed.egress_only
            await self._restart(managed, machine, info, base)
            return info

    async def _restart(self, managed: ManagedMachine, machine: Machine, layer: LayerInfo, base: str) -> None:
        """Start a machine again whose disk became a layer."""
        name = managed.spec.name
        chain = self._layers.use(name, layer.id, base, managed.runtimes.entries)
        assert managed.layout is not None
        assert machine.endpoint.unix_path is not None
        try:
            await managed.destroy()
            spec = replace(managed.spec, layer=layer.id)
            again = self._machines[name] = ManagedMachine(self._context(), spec, limits_of(spec), self._lost, chain)
            again.egress_only = managed.egress_only
            again.machine = replace(machine, layer=layer.id)  # it exists meanwhile
            await again.create(
                base, managed.layout, machine.expires_at, machine.created_at, managed.runtimes, machine.endpoint.unix_path
            )
        except (OSError, SpawnFailed, ProviderError) as error:
            self._forget(name)
            raise ProviderError(f"machine {name} was ended and couldn't be started again: {error}") from error
        if again.image_mb is not None:
            self._in_background(self._images.prepare, again.image_mb)

    def _seal(self, layer_id: str) -> None:
        """Make a layer permanent. One that can't be is used until the daemon ends."""
        try:
            self._layers.seal(layer_id)
        except OSError as error:
            sys.stderr.write(f"layer {layer_id} is lost when the daemon ends: {error.strerror or error}\n")

    async def delete_layer(self, layer_id: str) -> bool:
        """Delete a layer; False if it doesn't exist. Raises ProviderError with code IN_USE."""
        delete = self._layers.remove(layer_id)
        if delete is None:
            return False
        self._restricted_layers.pop(layer_id, None)
        self._in_background(delete)
        self._delete_unused_forks()
        return True

    def _delete_unused_forks(self) -> None:
        """Delete the layers of forked machines that nothing is based on any more."""
        while forks := self._layers.unused_forks():
            for layer_id in forks:
                try:
                    delete = self._layers.remove(layer_id)
                except ProviderError as error:  # its folder can't be renamed; the next daemon deletes it
                    sys.stderr.write(f"{error.message}\n")
                    return
                self._restricted_layers.pop(layer_id, None)
                if delete is not None:
                    self._in_background(delete)

    async def _drop(self, chain: Sequence[str]) -> None:
        """Delete unusable layers as far as nothing uses them, but no templates."""
        templates = {info.id for info in self._layers.kept()}
        for layer_id in (layer_id for layer_id in chain if layer_id not in templates):
            with contextlib.suppress(ProviderError):
                await self.delete_layer(layer_id)

    async def _delete_unused_layers(self, keep: str | None = None) -> bool:
        """Delete layers that nothing uses while the host is short of disk space. Returns whether any was deleted."""
        deleted = False
        while self._is_short_of_space() and (layer_id := self._layers.least_used(keep)) is not None:
            try:
                await self.delete_layer(layer_id)
            except ProviderError:
                break
            deleted = True
            await asyncio.wait(self._disk_work)  # its space is free then
        return deleted

    def _in_background(self, work: Callable[..., None], *arguments: object) -> None:
        """Run the work in a thread; only `close` waits for it."""
        future = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
        self._disk_work.add(future)
        future.add_done_callback(self._disk_work.discard)

    async def _empty_trash(self) -> bool:
        emptied = await self._link.empty_trash(str(self._paths.trash))
        for name, cause in tuple(self._unwritten_causes.items()):
            if name in self._machines or await asyncio.to_thread(write_cause, self._paths, name, cause):
                self._unwritten_causes.pop(name, None)
        return emptied

    async def _end_filling(self, limits: Limits) -> None:
        """Destroy the machines that fill the store of runtimes, if another one needs their memory."""
        promised = sum(managed.memory_mb for managed in self._machines.values())
        if promised + limits.memory_mb > self._host_memory_mb:
            for name in [name for name, managed in self._machines.items() if managed.spec.owner.endswith(FILLING)]:
                await self.destroy(name)

    def _check_room(self, name: str, limits: Limits) -> None:
        """Raises ProviderError with code NO_ROOM if the host lacks memory or disk space for another machine."""
        promised = sum(managed.memory_mb for managed in self._machines.values())
        if promised + limits.memory_mb > self._host_memory_mb:
            raise ProviderError(
                f"machine {name}: this host doesn't have {limits.memory_mb} MB of memory left: of {self._host_memory_mb} MB, "
                f"{promised} are promised to {len(self._machines)} machines; destroy one, or lower GIBIL_MAX_MEMORY",
                code=NO_ROOM,
            )
        free, floor = self._space()
        if free < floor:
            raise ProviderError(
                f"machine {name}: the disk of {self._paths.data_dir} has only {free} MB left, and creating a machine needs "
                f"{floor} MB; free some space",
                code=NO_ROOM,
            )

    def _is_short_of_space(self) -> bool:
        free, floor = self._space()
        return free < floor

    def _space(self) -> tuple[int, int]:
        """Return the free space on the disk of the data directory and the floor below which machines are ended, in MB."""
        status = os.statvfs(self._paths.local)
        return status.f_bavail * status.f_frsize // 1024**2, floor_mb(status.f_blocks * status.f_frsize // 1024**2)

    async def _tick(self) -> None:
        """While machines exist, check the host's free space and the machines' limits."""
        while self._machines:
            try:
                free, floor = self._space()
                if free < floor:
                    await self._make_space(free, floor)
                for managed in tuple(self._machines.values()):
                    await managed.tick()
            except OSError as error:
                asyncio.get_running_loop().call_exception_handler({"message": "checking the limits failed", "exception": error})
            await asyncio.sleep(_TICK_S)

    async def _make_space(self, free: int, floor: int) -> None:
        """Delete unused layers, or destroy the machine that uses most of the host's disk. The next tick continues if needed."""
        if self._deletion.is_busy and self._short_of_space < _DELETION_S:  # no machine has to end for this space
            self._short_of_space += _TICK_S
            return
        self._short_of_space = 0.0
        if await self._delete_unused_layers():
            return
        found = [(managed.host_disk_mb(), name) for name, managed in self._machines.items() if managed.machine is not None]
        if not found:
            return
        used_mb, name = max(found)
        self._machines[name].report_cause(
            f"the machine was ended: the host's disk has {free} MB left (the floor is {floor} MB), and of all machines this "
            f"one used most of it, {used_mb} MB"
        )
        await self._destroy_logged(name)
        if self._disk_work:  # its space is free once its disk is unmounted
            await asyncio.wait(self._disk_work)

    async def causes(self, name: str) -> list[Cause]:
        """Return which limits the machine reached and why it ended, the last first. Of an ended machine only that is known."""
        managed = self._machines.get(name)
        if managed is not None and managed.machine is not None:
            return managed.causes()
        last = self._unwritten_causes.get(name) or await asyncio.to_thread(read_cause, self._paths, name)
        return [] if last is None else [last]

    def get(self, name: str) -> Machine | None:
        managed = self._machines.get(name)
        return managed.machine if managed else None

    def list_machines(self, owner: str | None) -> list[Machine]:
        managed = [managed for managed in self._machines.values() if owner is None or managed.spec.owner == owner]
        machines = [one.machine for one in managed if one.machine is not None]
        return sorted(machines, key=lambda machine: machine.created_at)

    async def usage(self, name: str) -> Usage:
        """Raises MachineNotFound."""
        return await self._existing(name).usage()

    def refusals(self, name: str, since: float) -> Refusals:
        """Raises MachineNotFound."""
        return self._existing(name).refusals.since(since)

    async def restrict_egress(self, name: str, allow: tuple[str, ...] | None) -> None:
        """See EgressProxy.restrict. Raises MachineNotFound, ConfigurationError."""
        async with self._locked(name):  # not while it is forked
            await self._existing(name).restrict_egress(allow)

    def extend(self, name: str, expires_at: datetime) -> Machine:
        managed = self._existing(name)
        assert managed.machine is not None
        managed.machine = replace(managed.machine, expires_at=expires_at)
        self._watch_expiry(name, Expiry(expires_at))
        return managed.machine

    def _existing(self, name: str) -> ManagedMachine:
        managed = self._machines.get(name)
        if managed is None or managed.machine is None:
            raise MachineNotFound(f"no local machine named {name} exists")
        return managed

    async def destroy(self, name: str, *, only: Machine | None = None) -> bool:
        """Destroy a machine. `only`: not if it is a later one with the same name."""
        async with self._locked(name):
            managed = self._machines.get(name)
            if managed is None:
                return False
            if only is not None and (managed.machine is None or managed.machine.endpoint != only.endpoint):
                return False
            try:
                await managed.destroy()
            except OSError as error:
                raise ProviderError(
                    f"machine {name} is ended, but its folder {managed.folder} cannot be removed: {error}"
                ) from error
            self._forget(name)
            if managed.unwritten_cause is not None:
                self._unwritten_causes[name] = managed.unwritten_cause
        self._deletion.begin()
        await self._deletion.wait_for_room()
        return True

    async def sweep(self, owner: str) -> list[str]:
        names = [machine.name for machine in self.list_machines(owner)]
        expired = [name for name in names if name in self._expiries and self._expiries[name][0].left_s() <= 0]
        for name in expired:
            self._machines[name].report_cause(_EXPIRED)
        gone = [name for name in expired if await self.destroy(name)]
        return gone + await self.clear_leftovers()

    async def probe(self) -> Capabilities:
        """Create a machine, run `true` on it, and destroy it."""
        await load_ssh_server()
        from gibil_bot.providers.local.ssh_server import new_key

        key = new_key()
        name = f"probe-{time.time_ns():x}"
        began = time.monotonic()
        await self.create(
            MachineSpec(
                name=name,
                owner="",
                ttl_s=60,
                authorized_key=key[1],
                host_key=key[0],
                memory_mb=_PROBE_MEMORY_MB,
            )
        )
        created_in_s = time.monotonic() - began
        try:
            status = await self._machines[name].run_true()
        finally:
            await asyncio.shield(self.destroy(name))
        if status != 0:
            raise ProviderError(
                f"a machine was created, but `true` ended with {status} on it; see {self._paths.local}/keeper.log"
            )
        return Capabilities(
            tier=self._privilege,
            package_installs=_APT,
            several_users=self._privilege == "root",
            memory_limit=self._groups.memory,
            disk_limit="polled" if self._images.problem else "filesystem",
            cpu_limit="shares" if self._groups.shares_cpu else "nice",
            forged_in_s=created_in_s,
            inherited=self._inherited,
        )

    async def close(self) -> None:
        """Destroy all machines, since they can't run without their daemon."""
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        await asyncio.gather(*(self.destroy(name) for name in tuple(self._machines)), return_exceptions=True)
        await asyncio.gather(*self._destroying, return_exceptions=True)
        await asyncio.gather(*self._disk_work, return_exceptions=True)
        await self._deletion.wait(_END_S)
        await self._deletion.stop()
        await asyncio.to_thread(self._images.close)
        await asyncio.to_thread(self._layers.close)
        await self._link.stop()

    @contextlib.asynccontextmanager
    async def _locked(self, name: str) -> AsyncIterator[None]:
        """Lock a machine's name."""
        lock = self._locks.setdefault(name, asyncio.Lock())
        self._waiting[name] = self._waiting.get(name, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[name] -= 1
            if not self._waiting[name]:
                del self._waiting[name], self._locks[name]

    def _tool_settings(self, spec: MachineSpec) -> base_tree.ToolSettings:
        """Return the machine's settings. The machine of `probe` has those of the last one, so that it needs no base tree."""
        if spec.owner:
            self._last_settings = base_tree.ToolSettings(spec.ca_bundle, tuple(sorted(spec.mirrors.items())))
        return self._last_settings

    async def _base_tree(self, layout: base_tree.Layout, settings: base_tree.ToolSettings) -> str:
        name = base_tree.name_of(self._privilege, layout, settings)
        folder = self._paths.local / name
        if not folder.is_dir():
            async with self._base_tree_lock:
                if not folder.is_dir():
                    await asyncio.to_thread(base_tree.build, folder, self._privilege, layout, settings)
                    needed = {name, *self._base_trees.values()}
                    await asyncio.to_thread(self._remove_others, "skeleton", needed)
                    await self._drop(self._layers.outdated(needed))
        return name

    async def _link_runtimes(self) -> SharedTrees:
        """Return the stored runtimes for a machine, after the store has changed."""
        async with self._base_tree_lock:
            if (trees := self._runtimes.unchanged()) is not None:
                return trees
            trees = await asyncio.to_thread(self._runtimes.link)
            needed = {trees.folder, *(each.folder for each in self._runtime_trees.values())}
            await asyncio.to_thread(self._remove_others, "runtimes", needed)
            await self._drop(self._layers.without_runtimes(trees.entries))
            return trees

    def _remove_others(self, kind: str, needed: set[str]) -> None:
        for folder in (*self._paths.local.glob(f"{kind}-*"), *self._paths.local.glob(f".{kind}-*")):
            if folder.name not in needed:
                remove_tree(folder)

    def _working_link(self) -> ForkClient:
        if self._link.lost:
            self._link = ForkClient.start()
            self._link.attend(self._fork_server_lost)
        return self._link

    def _fork_server_lost(self) -> None:
        for name in tuple(self._machines):
            self._lost(name)

    def _lost(self, name: str) -> None:
        self._destroy_later(name)

    def _destroy_later(self, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._destroy_logged(name))
        self._destroying.add(task)
        task.add_done_callback(self._destroying.discard)

    async def _destroy_logged(self, name: str) -> bool:
        try:
            return await self.destroy(name)
        except GibilError as error:
            asyncio.get_running_loop().call_exception_handler({"message": error.message})
            return False

    def _forget(self, name: str) -> None:
        self._machines.pop(name, None)
        self._layers.release(name)
        self._delete_unused_forks()
        self._base_trees.pop(name, None)
        self._runtime_trees.pop(name, None)
        _expiry, handle = self._expiries.pop(name, (None, None))
        if handle:
            handle.cancel()

    def _watch_expiry(self, name: str, expiry: Expiry) -> None:
        _expiry, handle = self._expiries.pop(name, (None, None))
        if handle:
            handle.cancel()
        if self.get(name) is None:
            return
        left = expiry.left_s()
        if left <= 0:
            self._expiries[name] = expiry, None
            self._machines[name].report_cause(_EXPIRED)
            self._destroy_later(name)
        else:
            timer = asyncio.get_running_loop().call_later(min(left, _CLOCK_CHECK_S), self._watch_expiry, name, expiry)
            self._expiries[name] = expiry, timer
