"""The prepared machine of one run: the one that it starts from, and the one that it leaves.

A run begins on the newest prepared machine that it may read. Once its commit and tasks are known, the keys are compared: with
the same key nothing has to be installed; with the same kind of preparation the preparing tasks run on top; otherwise the run
changes to a plain machine. After its preparing tasks, the machine's disk becomes a layer, and the run continues on a new
machine on top of it.

With archives, a run begins on a plain machine. Once the keys are compared, an archive is restored on it. After its preparing
tasks, the machine is archived, and continues.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gibil_bot.clock import now
from gibil_bot.detection.detect import wanted
from gibil_bot.errors import GibilError, MachineLost, MachineNotFound, ProviderError, UsageError
from gibil_bot.model import Plan, PreparedKey, PreparedMachine, Run, TaskResult, TaskStatus
from gibil_bot.ports import Shell
from gibil_bot.runs.prepared import (
    FORMAT,
    MOST_DEPTH,
    PreparedMachines,
    Scope,
    files_digest,
    kind_of,
    layer_id,
    preparing_tasks,
)
from gibil_bot.scripts import prepared as scripts
from gibil_bot.scripts import project

log = logging.getLogger("gibil.runner")

_SCRIPT_S = 60.0


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run does about its preparation.

    `reuse`: nothing is installed. `prepare`: the preparing tasks run on this machine. `change`: the run needs another machine,
    which starts from `entry`, or from no layer.
    """

    what: Literal["reuse", "prepare", "change"]
    entry: PreparedMachine | None


class Preparation:
    """The decisions for one run. `provider` is the provider's name."""

    def __init__(self, machines: PreparedMachines, scope: Scope, provider: str) -> None:
        self._machines, self._scope, self._provider = machines, scope, provider
        self._key: PreparedKey | None = None
        self._whole_tree = True
        self._archives = machines.archives

    @property
    def has_archives(self) -> bool:
        """Whether machines are archived, and not based on layers."""
        return self._archives is not None

    async def first(self, plan: Plan) -> PreparedMachine | None:
        """Return the entry to start from, before the commit is known. Never raises."""
        if self._archives is not None:
            return None
        entries = await self._readable()
        if not any(task.detect for task in plan.tasks):
            kind = kind_of(plan, self._provider)
            entries = [entry for entry in entries if entry.key.kind == kind]
        else:
            entries.sort(key=lambda entry: entry.workflow != plan.workflow)
        return entries[0] if entries else None

    async def choose(self, shell: Shell, plan: Plan, layer: str | None) -> Choice:
        """Decide on the machine behind `shell`, which has the commit, and that layer below it. Raises MachineLost, SSHError."""
        key = await self._read_key(shell, plan)
        entries = await self._readable() if key is not None else []
        current = next((entry for entry in entries if entry.layer == layer), None)
        if key is None:
            return Choice("prepare" if layer is None else "change", None)
        fitting = [entry for entry in entries if entry.fits(key)]
        nearest = [entry for entry in entries if entry.key.kind == key.kind and entry.depth <= MOST_DEPTH]
        for what, found in (("reuse", fitting), ("prepare", nearest)):
            if current in found:
                return Choice("reuse" if what == "reuse" else "prepare", current)
            if found:
                return Choice("change", found[0])
        return Choice("prepare" if layer is None else "change", None)

    async def restored(self, shell: Shell, layer: str | None) -> str | None:
        """Return the entry that the machine started from. `layer`: the layer below it. Raises MachineLost, SSHError.

        What a machine says is used only if the run may read that entry.
        """
        if self._archives is None:
            return layer
        name = await self._archives.restored(shell)
        if name is not None and not any(entry.layer == name for entry in await self._readable()):
            raise MachineLost("The archive that this machine was restored from no longer exists")
        return name

    async def restore(self, shell: Shell, entry: PreparedMachine | None) -> bool:
        """Change the plain machine into the one that a run needs; False if it needs another machine.

        Raises ProviderError with code LAYER_GONE if the entry can't be used and the machine is unchanged. Raises MachineLost,
        SSHError; then the machine isn't fit for use.
        """
        if self._archives is None or entry is None:
            return False
        await self._archives.restore(shell, entry.layer)
        return True

    async def used(self, entry: PreparedMachine) -> None:
        await self._machines.used(entry)

    async def exports(self, layer: str | None) -> tuple[Mapping[str, str], tuple[str, ...]] | None:
        """Return the variables and folders that the preparing tasks of a layer exported; None if it isn't known any more."""
        entry = None if layer is None else await self._machines.get(layer)
        return None if entry is None else (entry.env, entry.paths)

    async def saved(self, run: Run, attempt: int, plan: Plan, results: Mapping[int, TaskResult]) -> str | None:
        """Return the layer that this run has saved, if only its preparing tasks have run and their machine is gone."""
        if self._archives is not None:
            return None
        preparing = len(preparing_tasks(plan))
        if not results or any(index >= preparing or result.finished_at is None for index, result in results.items()):
            return None
        name = layer_id(run.id, attempt)
        try:
            return name if await self._machines.exists(name) else None
        except ProviderError:
            return None

    async def save(
        self,
        shell: Shell,
        machine: str,
        run: Run,
        attempt: int,
        plan: Plan,
        results: Mapping[int, TaskResult],
        exports: tuple[Mapping[str, str], tuple[str, ...]],
    ) -> PreparedMachine | None:
        """End the machine and keep its disk, if that is allowed and useful; None if the machine continues, perhaps archived.

        Raises ProviderError if the machine has ended and its disk couldn't be stored, and what `Shell.run` raises.
        """
        preparing = preparing_tasks(plan)
        done = [results.get(index) for index in range(len(preparing))]
        if self._scope.writes is None or self._key is None or not preparing:
            return None
        if any(result is None or result.status is not TaskStatus.SUCCESS for result in done):
            return None
        took = sum(result.duration_s or 0.0 for result in done if result is not None)
        if took < self._machines.least_s:
            return None
        if any(entry.fits(self._key) and entry.scope == self._scope.writes for entry in await self._readable()):
            return None  # another run has saved the same meanwhile
        answer = await shell.run(scripts.leave_script(continues=self._archives is not None), timeout_s=_SCRIPT_S)
        left = scripts.parse_left(answer.stdout) if answer.exit_status == 0 else None
        if left is None or left.is_useless or left.tree != self._key.tree:  # a task that changes HEAD may have installed either
            return None
        entry = PreparedMachine(
            format=FORMAT,
            layer=layer_id(run.id, attempt),
            repository=self._scope.repository,
            repository_name=run.source.repository.full_name,
            scope=self._scope.writes,
            workflow=plan.workflow,
            key=self._key,
            whole_tree=left.built or self._whole_tree,
            env=exports[0],
            paths=exports[1],
            prepared_in_s=round(took, 3),
            size_mb=0,
            depth=1,
            created_at=now(),
        )
        if self._archives is not None:
            await self._archive(shell, run, entry)
            return None
        try:
            return await self._machines.save(machine, entry)
        except (UsageError, MachineNotFound) as error:
            log.info("run %s: its machine isn't stored as a prepared one: %s", run.id, error.message)
            return None

    async def _archive(self, shell: Shell, run: Run, entry: PreparedMachine) -> None:
        """Archive the machine. A failure changes nothing for the run."""
        try:
            assert self._archives is not None
            parent = await self._archives.restored(shell)
            await self._machines.archive(shell, entry, parent)
        except GibilError as error:  # the next task finds out whether the machine still exists
            log.info("run %s: its machine isn't stored as a prepared one: %s", run.id, error.message)

    async def _readable(self) -> list[PreparedMachine]:
        try:
            return await self._machines.readable(self._scope)
        except GibilError as error:  # a run can do without
            log.warning("prepared machines can't be listed: %s", error.message)
            return []

    async def _read_key(self, shell: Shell, plan: Plan) -> PreparedKey | None:
        """Return the key of the commit that is checked out; None if it can't be known."""
        if not preparing_tasks(plan):
            return None
        listing = await shell.run(project.list_script(), most_bytes=project.LISTING_BYTES + 4096, timeout_s=_SCRIPT_S)
        tree = await shell.run("cd /root/project && git rev-parse 'HEAD^{tree}'", timeout_s=_SCRIPT_S)
        if listing.exit_status != 0 or tree.exit_status != 0:
            return None
        objects = {file.path: file.object_id for file in project.parse_listing(listing.stdout)}
        key_files = plan.detected.key_files if plan.detected is not None else wanted(objects)
        if plan.checkout.has_submodules:
            modules = project.submodule_commits(listing.stdout)
            objects |= modules
            key_files = (*key_files, *modules)
        files = files_digest(objects, key_files)
        if files is None:
            return None
        # What people wrote may install the project itself by copying it, which can't be seen afterwards.
        self._whole_tree = plan.detected is None
        self._key = PreparedKey(
            kind=kind_of(plan, self._provider), files=files, tree=tree.stdout.decode("ascii", "replace").strip()
        )
        return self._key
