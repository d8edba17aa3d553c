"""Prepared machines: layers or archives that runs left after their preparation, and which of them another run may start from.

<data dir>/prepared/LAYER.json     one entry for each layer; its modification time is when it was last used

Trust decides who reads what. Trusted runs of a repository share a scope. An untrusted run reads that scope, and a scope of its
own pull request and commit, the only one that it writes: what its code left can change neither another run's result nor that
of a later commit. A run with secrets writes none, because its tasks may have stored a secret on the machine's disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from msgspec.structs import replace

from gibil_bot.clock import now
from gibil_bot.errors import ProviderError
from gibil_bot.model import LayerInfo, Plan, PreparedMachine, Run, TaskPlan, Trust
from gibil_bot.ports import Archiving, Layering, Shell

log = logging.getLogger("gibil.runner")

FORMAT = 1
"""Increased when entries of earlier versions can't be used any more."""
MOST_DEPTH = 7
"""A run that would add a layer above this many starts from a plain machine instead."""
TOTAL_MB = 20 * 1024
REPOSITORY_MB = 5 * 1024
FREE_MB = 2 * 1024
"""If the disk has less free space (a twentieth of a small disk), prepared machines are deleted."""
LEAST_S = 1.0
"""Preparing that takes less isn't stored: storing a disk and creating the next machine takes half of that."""
TRUSTED = "trusted"
_ORPHANED_AFTER = timedelta(minutes=10)
"""A layer without an entry is deleted after this time: a process that saved it was killed before it wrote the entry."""
_NAME = re.compile(r"([0-9a-f]{8,40})\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which entries a run may read and write."""

    repository: str
    """Identifies the repository: GitHub's id, or the path of a local checkout."""
    reads: tuple[str, ...]
    writes: str | None


def scope_of(run: Run, *, local: str | None = None, has_secrets: bool) -> Scope:
    """Return the scope of a run. `local`: the path of the checkout of a run that GitHub knows nothing about."""
    source = run.source
    repository = f"path {local}" if local is not None else f"github {source.repository.id}"
    if source.trust is Trust.TRUSTED:
        return Scope(repository=repository, reads=(TRUSTED,), writes=None if has_secrets else TRUSTED)
    if source.repository.private:
        # The clone needs a token: programs that an earlier run of this code left on the machine must not see it.
        return Scope(repository=repository, reads=(TRUSTED,), writes=None)
    own = f"pull request {source.pull_request.number} at {source.sha}"
    return Scope(repository=repository, reads=(TRUSTED, own), writes=own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """An entry and when it was last used."""

    entry: PreparedMachine
    used_at: datetime


def preparing_tasks(plan: Plan) -> tuple[TaskPlan, ...]:
    """Return the tasks before the first one that doesn't prepare."""
    found = []
    for task in plan.tasks:
        if task.kind != "prepare":
            break
        found.append(task)
    return tuple(found)


def kind_of(plan: Plan, provider: str) -> str:
    """Return `PreparedKey.kind` for a plan whose tasks are known."""
    tasks = [(task.name, task.run, task.shell, task.working_directory, dict(task.env)) for task in preparing_tasks(plan)]
    machine = (plan.machine.image, plan.machine.server_type)
    checkout = plan.checkout
    return _digest([FORMAT, provider, machine, tasks, dict(plan.env), msgspec.to_builtins(checkout)])


def files_digest(objects: Mapping[str, str], key_files: Iterable[str]) -> str | None:
    """Return `PreparedKey.files`; None if one of the files isn't known. `objects`: path → id of the commit's files."""
    found = {path: objects.get(path) for path in sorted(set(key_files))}
    return None if None in found.values() else _digest(sorted(found.items()))


def layer_id(run_id: str, attempt: int) -> str:
    """Return the id of the layer that a run may save: always the same, so that it saves at most one for each machine."""
    return hashlib.sha256(f"{run_id} {attempt}".encode()).hexdigest()[:16]


def _digest(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


class PreparedMachines:
    """The entries of one data directory, and their layers at the provider. Several processes may use it at once.

    `name`: the provider's name. `others`: where entries of other providers have their layers. The limits apply to all together.
    """

    def __init__(
        self,
        folder: Path,
        provider: Layering | Archiving,
        *,
        name: str = "local",
        others: Mapping[str, Layering | Archiving] | None = None,
        total_mb: int = TOTAL_MB,
        repository_mb: int = REPOSITORY_MB,
        free_mb: int = FREE_MB,
        least_s: float = LEAST_S,
    ) -> None:
        self._folder, self._provider, self._name = folder, provider, name
        self._stores: dict[str, Layering | Archiving] = {name: provider, **(others or {})}
        self.least_s = least_s
        self._total_mb, self._repository_mb, self._free_mb = total_mb, repository_mb, free_mb

    @property
    def archives(self) -> Archiving | None:
        """None: the provider has layers."""
        return self._provider if isinstance(self._provider, Archiving) else None

    async def readable(self, scope: Scope) -> list[PreparedMachine]:
        """Return the entries that the run may start from, the last used first. Raises ProviderError."""
        found = [
            usage.entry
            for usage in await self.usages()
            if (usage.entry.repository, usage.entry.provider) == (scope.repository, self._name)
            and usage.entry.scope in scope.reads
        ]
        if not found:
            return []
        layers = {info.id: info for info in await self._provider.layers()}
        return [entry for entry in found if entry.layer in layers]

    async def usages(self) -> list[Usage]:
        """Return all entries, the last used first."""
        return await asyncio.to_thread(self._read_all)

    async def get(self, layer: str) -> PreparedMachine | None:
        return await asyncio.to_thread(self._read, self._folder / f"{layer}.json")

    async def exists(self, layer: str) -> bool:
        """Return whether the provider has the layer. Raises ProviderError."""
        return any(info.id == layer for info in await self._provider.layers())

    async def save(self, machine: str, entry: PreparedMachine) -> PreparedMachine:
        """End the machine, keep its disk as the entry's layer, and delete what exceeds the limits. Safe to repeat.

        Raises MachineNotFound, UsageError, ProviderError.
        """
        assert isinstance(self._provider, Layering)
        return await self._record(entry, await self._provider.save_layer(machine, entry.layer))

    async def archive(self, shell: Shell, entry: PreparedMachine, parent: str | None) -> PreparedMachine:
        """Archive the machine, which continues, and delete what exceeds the limits. Raises ProviderError, MachineLost."""
        assert isinstance(self._provider, Archiving)
        return await self._record(entry, await self._provider.archive(shell, entry.layer, parent))

    async def _record(self, entry: PreparedMachine, info: LayerInfo) -> PreparedMachine:
        entry = replace(entry, size_mb=info.size_mb, depth=info.depth, provider=self._name)
        try:
            await asyncio.to_thread(self._write, entry)
            await self.evict(entry.layer)
        except (OSError, ProviderError) as error:  # the run continues on the layer
            log.warning("a prepared machine could not be recorded: %s", error)
        return entry

    async def used(self, entry: PreparedMachine) -> None:
        """Record that a run started from this entry."""
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(os.utime, self._folder / f"{entry.layer}.json")

    async def maintain(self, *, whole: bool) -> list[str]:
        """Delete what exceeds the limits and what the disk has no room for; return the layers. Raises ProviderError.

        `whole` False: only if the disk is short of space.
        """
        if not await asyncio.to_thread(self._folder.is_dir):
            return []
        if not whole and await asyncio.to_thread(self._missing_mb) <= 0:
            return []
        return await self.evict()

    async def evict(self, keep: str | None = None) -> list[str]:
        """Delete the entries that were used longest ago, until all limits hold; return their layers. `keep` stays.

        What untrusted runs left is deleted first, and nothing of a trusted run is deleted in its favour.
        """
        everything = await self.usages()
        usages: list[Usage] = []
        for name, layers in (await self._layers(everything)).items():
            known = [usage for usage in everything if usage.entry.provider == name and usage.entry.layer in layers]
            await self._delete_orphans(name, layers, {usage.entry.layer for usage in known})
            usages += known
        usages.sort(key=lambda usage: (usage.used_at, usage.entry.layer), reverse=True)
        gone: list[str] = []
        missing_mb = await asyncio.to_thread(self._missing_mb)
        in_use = {keep}
        while (usage := self._next_to_delete(usages, in_use, missing_mb)) is not None:
            if await self._delete(usage.entry.provider, usage.entry.layer):
                gone.append(usage.entry.layer)
                usages.remove(usage)
                in_use = {keep}  # the one below it may be free now
                missing_mb -= usage.entry.size_mb
            else:
                in_use.add(usage.entry.layer)
        return gone

    def _next_to_delete(self, usages: Sequence[Usage], in_use: Collection[str | None], missing_mb: int) -> Usage | None:
        trusted = [usage for usage in usages if usage.entry.scope == TRUSTED]
        untrusted = [usage for usage in usages if usage.entry.scope != TRUSTED]
        for excess, candidates in ((self._excess(usages, missing_mb), untrusted), (self._excess(trusted, missing_mb), trusted)):
            for usage in reversed(candidates):
                if usage in excess and usage.entry.layer not in in_use:
                    return usage
        return None

    def _excess(self, usages: Sequence[Usage], missing_mb: int) -> list[Usage]:
        """Return the entries of which one has to be deleted; empty if they are within all limits."""
        if missing_mb > 0 or sum(usage.entry.size_mb for usage in usages) > self._total_mb:
            return list(usages)
        found = []
        for repository in {usage.entry.repository for usage in usages}:
            its = [usage for usage in usages if usage.entry.repository == repository]
            if sum(usage.entry.size_mb for usage in its) > self._repository_mb:
                found += its
        return found

    def _missing_mb(self) -> int:
        """Return how much has to be deleted so that the disk has enough free space."""
        try:
            status = os.statvfs(self._folder)
        except OSError:
            return 0
        size_mb, free_mb = (blocks * status.f_frsize // 1024**2 for blocks in (status.f_blocks, status.f_bavail))
        return min(self._free_mb, size_mb // 20) - free_mb

    async def clear(self, repository: str | None = None) -> tuple[list[PreparedMachine], list[PreparedMachine]]:
        """Delete all entries, or those of a repository given by its name; return the deleted ones and those in use."""
        wanted = [usage.entry for usage in await self.usages() if repository in (None, usage.entry.repository_name)]
        gone: list[PreparedMachine] = []
        for entry in sorted(wanted, key=lambda entry: -entry.depth):
            if await self._delete(entry.provider, entry.layer):
                gone.append(entry)
        if repository is None:
            for name, layers in (await self._layers(await self.usages())).items():
                await self._delete_orphans(name, layers, {entry.layer for entry in wanted if entry not in gone})
        return gone, [entry for entry in wanted if entry not in gone]

    async def _layers(self, usages: Sequence[Usage]) -> dict[str, dict[str, LayerInfo]]:
        """Return the layers by provider: ours, and others that have entries and can be asked. Raises ProviderError."""
        used = {usage.entry.provider for usage in usages}
        found = {self._name: {info.id: info for info in await self._provider.layers()}}
        for name in used & self._stores.keys() - found.keys():
            with contextlib.suppress(ProviderError):
                found[name] = {info.id: info for info in await self._stores[name].layers()}
        return found

    async def _delete_orphans(self, provider: str, layers: Mapping[str, LayerInfo], known: set[str]) -> None:
        orphans = [info for info in layers.values() if info.id not in known and now() - info.created_at > _ORPHANED_AFTER]
        for info in sorted(orphans, key=lambda info: -info.depth):
            await self._delete(provider, info.id)
        for usage in await self.usages():
            entry = usage.entry
            if entry.provider == provider and entry.layer not in layers and now() - entry.created_at > _ORPHANED_AFTER:
                await asyncio.to_thread(self._forget, entry.layer)

    async def _delete(self, provider: str, layer: str) -> bool:
        """Delete a layer and its entry; False if it is in use, or its provider can't be asked."""
        store = self._stores.get(provider)
        if store is None:
            return False
        try:
            await store.delete_layer(layer)
        except ProviderError:
            return False
        await asyncio.to_thread(self._forget, layer)
        return True

    # --- files ---

    def _read_all(self) -> list[Usage]:
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in self._folder.iterdir():
                entry = self._read(path)
                if entry is not None:
                    with contextlib.suppress(FileNotFoundError):
                        found.append(Usage(entry=entry, used_at=datetime.fromtimestamp(path.stat().st_mtime, UTC)))
        return sorted(found, key=lambda usage: (usage.used_at, usage.entry.layer), reverse=True)

    def _read(self, path: Path) -> PreparedMachine | None:
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        try:
            entry = msgspec.json.decode(path.read_bytes(), type=PreparedMachine)
        except (OSError, msgspec.DecodeError):
            return None
        return entry if entry.format == FORMAT and entry.layer == match[1] else None

    def _write(self, entry: PreparedMachine) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._folder / f".{entry.layer}.{os.getpid()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(entry))
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(self._folder / f"{entry.layer}.json")

    def _forget(self, layer: str) -> None:
        (self._folder / f"{layer}.json").unlink(missing_ok=True)
