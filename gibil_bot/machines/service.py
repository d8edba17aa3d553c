"""The machines of one data directory on one provider: create them for people and agents, find, list, extend and destroy them.

Modules that only creation needs (the workflow language, git) are imported there: most commands use an existing machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from gibil_bot.cancellation import uncancelled
from gibil_bot.config import Settings
from gibil_bot.errors import ConfigurationError, GibilError, MachineLost, UsageError
from gibil_bot.machines import creation_journal, templates, validation
from gibil_bot.machines.creation_journal import CreationRecord
from gibil_bot.machines.provisioning import OnPhase, read_environment, restore_environment, start_provisioning
from gibil_bot.machines.recovery import RecoveryReport, recover
from gibil_bot.machines.session import MachineSession, extend_machine, not_found
from gibil_bot.model import Machine, MachineResources, Template
from gibil_bot.ports import Forking
from gibil_bot.providers.lifecycle import CREATION, MachineFactory
from gibil_bot.providers.optional import notices
from gibil_bot.wiring import PROVIDERS, machine_caps, open_factory, prepare_to_connect, service_capabilities

if TYPE_CHECKING:
    from gibil_bot.machines.request import CreateRequest, ResolvedRequest
    from gibil_bot.machines.source import CodeSource

T = TypeVar("T")

log = logging.getLogger("gibil.machines")

TOKENS = {"hetzner": "HCLOUD_TOKEN"}
"""The settings that a provider needs before it can be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroyResult:
    """The result of destroying a machine. `problem`: why it may still exist."""

    name: str
    was_there: bool
    problem: GibilError | None = None


def settings_for(settings: Settings, provider: str | None) -> Settings:
    """Return the settings with another provider. Raises UsageError, and ConfigurationError for one without its settings."""
    if provider is None or provider == settings.provider:
        return settings
    if provider not in PROVIDERS:
        raise UsageError(f"there is no provider {provider!r}; write {' or '.join(PROVIDERS)}")
    if not _is_usable(provider, settings):
        raise ConfigurationError((f"{TOKENS[provider]} is not set, and {provider} needs it: set it, or run gibil init",))
    return replace(settings, provider=provider)


def usable_providers(settings: Settings) -> tuple[str, ...]:
    """Return the providers that have all settings that they need."""
    return tuple(name for name in PROVIDERS if _is_usable(name, settings))


def _is_usable(provider: str, settings: Settings) -> bool:
    return provider not in TOKENS or bool(settings.hcloud_token)


@contextlib.asynccontextmanager
async def open_machines(settings: Settings) -> AsyncIterator[MachineService]:
    """Open the machine service for the duration of the block. Leaving the block doesn't destroy machines."""
    factory = open_factory(settings)
    machines = None
    try:
        machines = MachineService(settings, factory, await asyncio.to_thread(factory.keyring.machine_owner))
        yield machines
    finally:
        if machines is not None:
            machines.release()
        await factory.close()


class MachineService:
    """Creates, finds and destroys machines. `owner` is the label of all machines of this data directory."""

    def __init__(self, settings: Settings, factory: MachineFactory, owner: str) -> None:
        self.settings = settings
        self._owner = owner
        self._unreported: dict[str, CreationRecord] = {}
        self.factory = factory

    # Creation

    async def create(self, request: CreateRequest, on_phase: OnPhase | None = None) -> MachineSession:
        """Create a machine and return when it answers SSH; its provisioning continues. After an error, no machine is left.

        Raises UsageError and InvalidWorkflow before anything is created, NameTaken, and what the provider raises.
        """
        machines, _notes = await self.create_several(request, None, on_phase)
        self.mark_reported(machines[0].name)
        return machines[0]

    async def create_several(
        self, request: CreateRequest, count: int | None, on_phase: OnPhase | None = None
    ) -> tuple[list[MachineSession], tuple[str, ...]]:
        """Create a fleet of `count` machines `NAME-1` … (None: one machine, no fleet); return them and notes for people.

        Creates all machines or none. Call `mark_reported` when the user knows their names: if this process is killed before
        that, a later command destroys the incomplete machines and reports the others.

        Raises UsageError with the code MACHINE_LIMIT when there would be more than GIBIL_MAX_MACHINES.
        """
        from gibil_bot.machines import request as requests

        caps = machine_caps(self.settings)
        requests.check(request, self.settings, caps)
        if count is not None:
            validation.fleet_names(request.name or "fleet", count)
        on_phase = on_phase or (lambda name, phase, seconds: None)
        preparing = asyncio.create_task(prepare_to_connect())
        try:
            async with self._source(request, on_phase) as source:
                defaults = source.file.machine if source is not None and source.file is not None else MachineResources()
                resolved = requests.resolve(request, defaults, self.settings, caps)
                labels = self._labels(request, source)
                if request.template is not None:
                    template = await templates.find(self.factory.provider, request.template)
                    resolved = templates.on_template(resolved, template)
                    labels |= {"template": template.name, **(template.labels if source is None else {})}
                if count is None:
                    names = [resolved.name]
                else:
                    names = validation.fleet_names(resolved.name, count)
                    labels["fleet"] = resolved.name
                records = await self._begin(names, resolved.ttl_s, request.made_by)
                return await self._create_ready(records, resolved, source, labels, on_phase), resolved.notes
        finally:
            if not preparing.done():  # a created machine must be returned, so no cancellation may come in between
                await asyncio.wait({preparing})
            preparing.result()

    async def fork(
        self,
        name: str,
        new: str | None = None,
        count: int | None = None,
        *,
        ttl: validation.Duration | None = None,
        stop: bool = False,
        made_by: str = "gibil fork",
    ) -> list[MachineSession]:
        """Create machines with a copy of the machine's disk: one, or the fleet `NEW-1` … of `count`. It goes on itself.

        Processes and what is in memory aren't copied. No process may run on the machine, unless `stop` ends them. Call
        `mark_reported` as after `create_several`. Raises MachineNotFound, and UsageError, with the code MACHINE_BUSY if
        processes run.
        """
        new = validation.check_name(new) if new is not None else validation.name_of_fork(name)
        names = [new] if count is None else validation.fleet_names(new, count)
        ttl_s = validation.DEFAULT_TTL_S if ttl is None else validation.ttl_seconds(ttl, self.settings.max_ttl_s)
        machine = await self.get(name)
        forking = templates.forking(self.factory.provider, machine)
        await self._forget_creation(machine)
        environment = await self._environment_of(name)
        resolved = await templates.like(self.factory.provider, machine, new, min(ttl_s, self.settings.max_ttl_s))
        records = await self._begin(names, ttl_s, made_by)
        try:
            layer = await self._restoring(forking.fork_layer(name, secrets.token_hex(16), stop=stop), name, environment)
        except BaseException:
            for record in records:
                record.mark_failed()
            raise
        from gibil_bot.machines.request import Start

        start = Start(kind="fork", layer=layer.id, environment=environment)
        labels = {"owner": self._owner, "made-by": made_by, "forked-from": name, **layer.labels}
        if count is not None:
            labels["fleet"] = new
        return await self._create_ready(records, replace(resolved, start=start), None, labels)

    async def _environment_of(self, name: str) -> bytes:
        session = await self.open(name)
        try:
            return await read_environment(session.shell)
        finally:
            await session.close()

    async def _restoring(self, copying: Coroutine[Any, Any, T], name: str, environment: bytes) -> T:
        """Copy a disk by starting the machine again, whose environment is in memory. Cancelling doesn't stop it halfway."""

        async def copy_and_restore() -> T:
            copied = await copying
            if environment:
                session = await self.open(name)
                try:
                    await restore_environment(session.shell, environment)
                finally:
                    await session.close()
            return copied

        return await uncancelled(copy_and_restore())

    async def save_template(self, name: str, template: str, *, stop: bool = False) -> Template:
        """Keep a copy of the machine's disk as a template; the machine goes on. Raises as `fork`."""
        validation.check_template(template)
        machine = await self.get(name)
        templating = templates.templating(self.factory.provider)
        templates.check_copy(machine)
        await self._forget_creation(machine)
        environment = await self._environment_of(name)
        copying = templating.save_template(name, template, stop=stop)
        if isinstance(templating, Forking):
            return await self._restoring(copying, name, environment)
        return await copying

    async def _create_ready(
        self,
        records: Sequence[CreationRecord],
        request: ResolvedRequest,
        source: CodeSource | None,
        labels: dict[str, str],
        on_phase: OnPhase = lambda name, phase, seconds: None,
    ) -> list[MachineSession]:
        """Create all machines or none, and mark their records: only a complete fleet is ready."""
        machines = await self._create_all(records, request, source, labels, on_phase)
        for session in machines:
            self._unreported[session.name].mark_ready()
        return machines

    async def _begin(self, names: Sequence[str], ttl_s: int, made_by: str) -> list[CreationRecord]:
        """Write a record for each creation and check the limit of machines. Raises UsageError.

        All records are written together before the provider is queried: of concurrent commands, each sees the earlier ones'
        records, so together they don't exceed the limit.
        """
        provider = self.factory.provider.name
        records = [
            CreationRecord(self.settings.data_dir, provider=provider, name=name, made_by=made_by, ttl_s=ttl_s) for name in names
        ]
        beginning = asyncio.create_task(asyncio.to_thread(creation_journal.begin_all, self.settings.data_dir, records))
        try:
            others = await asyncio.shield(beginning)
            await self._check_room(names, {name for its_provider, name in others if its_provider == provider})
        except BaseException:
            await asyncio.wait({beginning})  # a thread can't be cancelled
            for record in records:
                record.mark_failed()
            raise
        return records

    async def _check_room(self, names: Sequence[str], others: set[str]) -> None:
        """Check the limit of machines. `others`: machines whose creation is in progress. Raises UsageError."""
        existing = await self._existing(others)
        if len(existing) + len(names) > self.settings.max_machines and await self.sweep():
            existing = await self._existing(others)  # without the expired machines
        validation.check_room(existing, names, self.settings.max_machines)

    async def _existing(self, others: set[str]) -> set[str]:
        return others | {machine.name for machine in await self.factory.list(self._owner)}

    async def _create_all(
        self,
        records: Sequence[CreationRecord],
        request: ResolvedRequest,
        source: CodeSource | None,
        labels: dict[str, str],
        on_phase: OnPhase,
    ) -> list[MachineSession]:
        if len(records) == 1:
            return [await self._create_recorded(records[0], request, source, labels, on_phase)]
        creations = [
            asyncio.create_task(self._create_recorded(record, request, source, labels, on_phase)) for record in records
        ]
        try:
            return list(await asyncio.gather(*creations))
        except BaseException:
            for creation in creations:
                creation.cancel()
            await asyncio.shield(self._undo(creations))
            for record in records:
                record.mark_failed()  # for tasks that were cancelled before their first step
            raise

    async def _undo(self, creations: Sequence[asyncio.Task[MachineSession]]) -> None:
        created = [
            result for result in await asyncio.gather(*creations, return_exceptions=True) if isinstance(result, MachineSession)
        ]
        for machine in created:
            self._unreported.pop(machine.name).mark_failed()
        for result in await asyncio.gather(*(self._destroy(machine) for machine in created), return_exceptions=True):
            if isinstance(result, BaseException):
                log.warning("a machine of an incomplete fleet could not be destroyed: %s", result)

    async def _destroy(self, machine: MachineSession) -> None:
        await machine.close()
        await machine.destroy()

    async def _create_recorded(
        self,
        record: CreationRecord,
        request: ResolvedRequest,
        source: CodeSource | None,
        labels: dict[str, str],
        on_phase: OnPhase,
    ) -> MachineSession:
        try:
            with notices(self.factory.provider, lambda notice: on_phase(record.name, "prepare", None)):
                session = await self._create_one(record.name, request, source, {**labels, CREATION: record.creation}, on_phase)
        except BaseException:
            record.mark_failed()
            raise
        self._unreported[record.name] = record
        return session

    async def _create_one(
        self, name: str, request: ResolvedRequest, source: CodeSource | None, labels: dict[str, str], on_phase: OnPhase
    ) -> MachineSession:
        from gibil_bot.commits.identity import identity
        from gibil_bot.runs.sources import address_of

        on_phase(name, "forge", None)
        author_task = asyncio.create_task(identity()) if source is None else None
        try:
            machine, shell = await self.factory.create(
                name=name,
                owner=self._owner,
                ttl_s=request.ttl_s,
                labels=labels,
                plan=request.plan,
                egress_allow=(*self.settings.egress, *address_of(source.clone_url if source and source.clone_url else "")),
                on_phase=lambda phase, seconds: on_phase(name, phase, seconds),
                fresh=True,
                layer=request.start.layer,
            )
        except BaseException:
            if author_task is not None:
                author_task.cancel()
            raise
        session = MachineSession(self.factory, machine, shell, self.settings.max_ttl_s)
        try:
            author = await author_task if author_task is not None else source.identity if source is not None else None
            try:
                await start_provisioning(shell, name, request, source, author, on_phase)
            except GibilError as error:
                if error.code == "PROVISION" and await self.factory.get(name) is None:
                    raise MachineLost(f"machine {name} was destroyed while it was being prepared") from None
                raise
        except BaseException:
            await asyncio.shield(self._destroy(session))
            raise
        return session

    def mark_reported(self, *names: str) -> None:
        """Record that the user knows these machines, so that no later command reports them as abandoned."""
        for name in names:
            if (record := self._unreported.pop(name, None)) is not None:
                record.finish()

    def release(self) -> None:
        """Leave machines that weren't reported to a later command. No more machines may be created here."""
        while self._unreported:
            self._unreported.popitem()[1].release()

    @contextlib.asynccontextmanager
    async def _source(self, request: CreateRequest, on_phase: OnPhase) -> AsyncIterator[CodeSource | None]:
        if request.repo is None:
            if request.branch is not None:
                raise UsageError("--branch needs a repository: name it with --repo")
            yield None
            return
        from gibil_bot.machines.source import read_source
        from gibil_bot.planning.services import check_services

        on_phase("", "repository", None)
        began = asyncio.get_running_loop().time()
        async with read_source(request.repo, request.branch, self.settings.github_url) as source:
            if source.file is not None and source.file.services:
                check_services(source.file, service_capabilities(self.settings))
            on_phase("", "repository", asyncio.get_running_loop().time() - began)
            yield source

    def _labels(self, request: CreateRequest, source: CodeSource | None) -> dict[str, str]:
        labels = {"owner": self._owner, "made-by": request.made_by}
        if source is not None:
            labels |= {"repo": source.repo[:200], "commit": source.sha}
            if source.branch is not None:
                labels["branch"] = source.branch
        return labels

    # Look-up

    async def get(self, name: str) -> Machine:
        """Return a machine. Raises MachineNotFound."""
        machine = await self.factory.get(name)
        if machine is None:
            raise not_found(name)
        return machine

    async def open(self, name: str) -> MachineSession:
        """Log in to an existing machine. Raises MachineNotFound, SSHError, MachineLost."""
        preparing = asyncio.create_task(prepare_to_connect())
        try:
            machine = await self.get(name)
        finally:
            await asyncio.wait({preparing})
            preparing.result()
        await self._forget_creation(machine)
        try:
            shell = await self.factory.open(machine)
        except MachineLost:
            if await self.factory.get(name) is None:  # destroyed in the meantime
                raise not_found(name) from None
            raise
        return MachineSession(self.factory, machine, shell, self.settings.max_ttl_s)

    async def list_machines(self) -> list[Machine]:
        """Return the provider's machines in the natural order of their names (`m-2` before `m-10`).

        These include the machines of the bot and of other data directories.
        """
        return sorted(await self.factory.list(), key=lambda machine: validation.natural(machine.name))

    async def sweep(self) -> list[str]:
        """Destroy expired machines and remains of a crash; return the names. Errors are logged: callers meet them again."""
        try:
            return await self.factory.provider.sweep(self._owner)
        except GibilError as error:
            log.info("sweep: %s", error)
            return []

    async def recover(self) -> list[RecoveryReport]:
        """Recover creations whose process was killed (recovery.py). Costs nothing if there are none."""
        return await recover(self.factory, self.settings.data_dir)

    async def _forget_creation(self, machine: Machine) -> None:
        """Delete the creation's record: the user knows the machine's name, so recovery doesn't have to report it."""
        await asyncio.to_thread(creation_journal.forget, self.settings.data_dir, machine.labels.get(CREATION, ""))

    # End

    async def extend(self, name: str, seconds: int) -> Machine:
        """Extend the time to live. Raises MachineNotFound, UsageError beyond GIBIL_MAX_TTL."""
        machine = await self.get(name)
        await self._forget_creation(machine)
        return await extend_machine(self.factory, machine, seconds, self.settings.max_ttl_s)

    async def destroy(self, names: Sequence[str]) -> list[DestroyResult]:
        """Destroy machines concurrently. An absent machine isn't a failure; failures are in the results."""
        results = list(await asyncio.gather(*(self._destroy_one(name) for name in dict.fromkeys(names))))
        gone = {each.name for each in results if each.problem is None}
        self.mark_reported(*gone)
        await asyncio.to_thread(creation_journal.forget_names, self.settings.data_dir, self.factory.provider.name, gone)
        return results

    async def destroy_fleet(self, fleet: str) -> list[DestroyResult]:
        found = [machine.name for machine in await self.factory.list(self._owner) if machine.labels.get("fleet") == fleet]
        return await self.destroy(sorted(found, key=validation.natural))

    async def destroy_all(self, *, with_runs: bool = False) -> list[DestroyResult]:
        """Destroy all machines of this data directory; machines of the bot's runs only `with_runs`."""
        machines = await self.factory.list(self._owner)
        names = [machine.name for machine in machines if with_runs or "run" not in machine.labels]
        return await self.destroy(sorted(names, key=validation.natural))

    async def _destroy_one(self, name: str) -> DestroyResult:
        try:
            return DestroyResult(name=name, was_there=await self.factory.destroy(name))
        except GibilError as error:
            return DestroyResult(name=name, was_there=True, problem=error)
