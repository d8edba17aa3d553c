"""The machines of one data directory on one provider: created for people and agents, found, listed, destroyed.

What only making needs (the workflow language, git) is imported there: most commands use a machine that exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gibil_bot.config import Settings
from gibil_bot.errors import ConfigurationError, GibilError, MachineLost, UsageError
from gibil_bot.machines import creation_journal as makings
from gibil_bot.machines import validation
from gibil_bot.machines.creation_journal import CreationRecord
from gibil_bot.machines.provisioning import OnPhase, start_provisioning
from gibil_bot.machines.recovery import RecoveryReport, recover
from gibil_bot.machines.session import MachineSession, extend_machine, not_found
from gibil_bot.model import Machine, MachineResources
from gibil_bot.providers.lifecycle import CREATION, MachineFactory
from gibil_bot.providers.optional import notices
from gibil_bot.wiring import PROVIDERS, machine_caps, open_factory, prepare_to_connect, service_capabilities

if TYPE_CHECKING:
    from gibil_bot.machines.request import CreateRequest, ResolvedRequest
    from gibil_bot.machines.source import CodeSource

log = logging.getLogger("gibil.sandbox")

TOKENS = {"hetzner": "HCLOUD_TOKEN"}
"""The settings without which a provider cannot be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestroyResult:
    """What `destroy` did. `problem`: why the machine may still be there."""

    name: str
    was_there: bool
    problem: GibilError | None = None


def settings_for(settings: Settings, provider: str | None) -> Settings:
    """The same settings with another provider. Raises UsageError, and ConfigurationError for one that is not set up."""
    if provider is None or provider == settings.provider:
        return settings
    if provider not in PROVIDERS:
        raise UsageError(f"there is no provider {provider!r} here; write {' or '.join(PROVIDERS)}")
    if not _is_usable(provider, settings):
        raise ConfigurationError((f"{TOKENS[provider]} is not set, and {provider} needs it; or run gibil init",))
    return replace(settings, provider=provider)


def usable_providers(settings: Settings) -> tuple[str, ...]:
    """Those that are set up here."""
    return tuple(name for name in PROVIDERS if _is_usable(name, settings))


def _is_usable(provider: str, settings: Settings) -> bool:
    return provider not in TOKENS or bool(settings.hcloud_token)


@contextlib.asynccontextmanager
async def open_machines(settings: Settings) -> AsyncIterator[MachineService]:
    """For as long as the block lasts; machines live on."""
    factory = open_factory(settings)
    machines = None
    try:
        machines = MachineService(settings, factory, await asyncio.to_thread(factory.keyring.machine_owner))
        yield machines
    finally:
        if machines is not None:
            machines.let_go()
        await factory.close()


class MachineService:
    """`owner` is what all machines of this data directory are labelled with."""

    def __init__(self, settings: Settings, factory: MachineFactory, owner: str) -> None:
        self.settings = settings
        self._owner = owner
        self._untold: dict[str, CreationRecord] = {}
        self.factory = factory

    # CreationRecord

    async def create(self, order: CreateRequest, on_phase: OnPhase | None = None) -> MachineSession:
        """A machine that answers SSH; what its repository asks for goes on there by itself. Or nothing, and the error.

        Raises UsageError and InvalidWorkflow before anything is forged, NameTaken, and what the provider raises.
        """
        machines, _notes = await self.create_several(order, None, on_phase)
        self.told(machines[0].name)
        return machines[0]

    async def create_several(
        self, order: CreateRequest, count: int | None, on_phase: OnPhase | None = None
    ) -> tuple[list[MachineSession], tuple[str, ...]]:
        """A fleet of `count` machines `NAME-1` … with the label `fleet` (None: one machine, no fleet), and notes for people.

        All of them, or none and the error. Call `told` when their names were reported: until then, a command that comes after
        we were killed destroys what is incomplete, and offers the rest.

        Raises UsageError with the code MACHINE_LIMIT when there would be more than GIBIL_MAX_MACHINES.
        """
        from gibil_bot.machines import request as orders

        caps = machine_caps(self.settings)
        orders.check(order, self.settings, caps)
        if count is not None:
            validation.fleet_names(order.name or "fleet", count)
        tell = on_phase or (lambda name, phase, seconds: None)
        preparing = asyncio.create_task(prepare_to_connect())
        try:
            async with self._origin(order, tell) as origin:
                wish = origin.file.machine if origin is not None and origin.file is not None else MachineResources()
                terms = orders.terms(order, wish, self.settings, caps)
                labels = self._labels(order, origin)
                if count is None:
                    names = [terms.name]
                else:
                    names = validation.fleet_names(terms.name, count)
                    labels["fleet"] = terms.name
                begun = await self._begin(names, terms.ttl_s, order.made_by)
                machines = await self._make_all(begun, terms, origin, labels, tell)
                for live in machines:  # a fleet is worth something when it is whole
                    self._untold[live.name].made()
                return machines, terms.notes
        finally:
            if not preparing.done():  # a machine that is made must be returned: no cancellation may come in between
                await asyncio.wait({preparing})
            preparing.result()

    async def _begin(self, names: Sequence[str], ttl_s: int, made_by: str) -> list[CreationRecord]:
        """A record for each creation, once there is room for all of them. Raises UsageError.

        The records are written before the provider is asked, and together: of commands that run side by side each sees those
        that came before it, so that they don't exceed the limit together.
        """
        provider = self.factory.provider.name
        begun = [
            CreationRecord(self.settings.data_dir, provider=provider, name=name, made_by=made_by, ttl_s=ttl_s) for name in names
        ]
        beginning = asyncio.create_task(asyncio.to_thread(makings.begin_together, self.settings.data_dir, begun))
        try:
            others = await asyncio.shield(beginning)
            await self._check_room(names, {name for its_provider, name in others if its_provider == provider})
        except BaseException:
            await asyncio.wait({beginning})  # a thread can't be cancelled
            for making in begun:
                making.undone()
            raise
        return begun

    async def _check_room(self, names: Sequence[str], others: set[str]) -> None:
        """Raises UsageError. `others`: machines that are being created at this moment."""
        existing = await self._existing(others)
        if len(existing) + len(names) > self.settings.max_machines and await self.sweep():
            existing = await self._existing(others)  # without those that had expired
        validation.check_room(existing, names, self.settings.max_machines)

    async def _existing(self, others: set[str]) -> set[str]:
        return others | {machine.name for machine in await self.factory.list(self._owner)}

    async def _make_all(
        self,
        begun: Sequence[CreationRecord],
        terms: ResolvedRequest,
        origin: CodeSource | None,
        labels: dict[str, str],
        tell: OnPhase,
    ) -> list[MachineSession]:
        if len(begun) == 1:
            return [await self._make(begun[0], terms, origin, labels, tell)]
        creations = [asyncio.create_task(self._make(making, terms, origin, labels, tell)) for making in begun]
        try:
            return list(await asyncio.gather(*creations))
        except BaseException:
            for creation in creations:
                creation.cancel()
            await asyncio.shield(self._undo(creations))
            for making in begun:
                making.undone()  # a task that was cancelled before its first step
            raise

    async def _undo(self, makings: Sequence[asyncio.Task[MachineSession]]) -> None:
        made = [
            result for result in await asyncio.gather(*makings, return_exceptions=True) if isinstance(result, MachineSession)
        ]
        for machine in made:
            self._untold.pop(machine.name).undone()
        for result in await asyncio.gather(*(self._drop(machine) for machine in made), return_exceptions=True):
            if isinstance(result, BaseException):
                log.warning("a machine of an unfinished fleet could not be destroyed: %s", result)

    async def _drop(self, machine: MachineSession) -> None:
        await machine.close()
        await machine.destroy()

    async def _make(
        self, making: CreationRecord, terms: ResolvedRequest, origin: CodeSource | None, labels: dict[str, str], tell: OnPhase
    ) -> MachineSession:
        try:
            with notices(self.factory.provider, lambda what: tell(making.name, "prepare", None)):
                live = await self._create_one(making.name, terms, origin, {**labels, CREATION: making.creation}, tell)
        except BaseException:
            making.undone()
            raise
        self._untold[making.name] = making
        return live

    async def _create_one(
        self, name: str, terms: ResolvedRequest, origin: CodeSource | None, labels: dict[str, str], tell: OnPhase
    ) -> MachineSession:
        from gibil_bot.commits.identity import identity
        from gibil_bot.runs.sources import address_of

        tell(name, "forge", None)
        who = asyncio.create_task(identity()) if origin is None else None
        try:
            machine, shell = await self.factory.create(
                name=name,
                owner=self._owner,
                ttl_s=terms.ttl_s,
                labels=labels,
                plan=terms.plan,
                egress_allow=(*self.settings.egress, *address_of(origin.clone_url if origin and origin.clone_url else "")),
                on_phase=lambda phase, seconds: tell(name, phase, seconds),
                fresh=True,
            )
        except BaseException:
            if who is not None:
                who.cancel()
            raise
        live = MachineSession(self.factory, machine, shell, self.settings.max_ttl_s)
        try:
            author = await who if who is not None else origin.identity if origin is not None else None
            try:
                await start_provisioning(shell, name, terms, origin, author, tell)
            except GibilError as error:
                if error.code == "PROVISION" and await self.factory.get(name) is None:
                    raise MachineLost(f"{name} was destroyed while it was prepared") from None
                raise
        except BaseException:
            await asyncio.shield(self._drop(live))
            raise
        return live

    def told(self, *names: str) -> None:
        """The names of these machines were reported to the user; no later command announces them as abandoned."""
        for name in names:
            if (making := self._untold.pop(name, None)) is not None:
                making.finished()

    def let_go(self) -> None:
        """No more machines are created here; those that weren't reported are left to a later command."""
        while self._untold:
            self._untold.popitem()[1].let_go()

    @contextlib.asynccontextmanager
    async def _origin(self, order: CreateRequest, tell: OnPhase) -> AsyncIterator[CodeSource | None]:
        if order.repo is None:
            if order.branch is not None:
                raise UsageError("--branch needs a repository: name it with --repo")
            yield None
            return
        from gibil_bot.machines.source import read_source
        from gibil_bot.planning.services import check_services

        tell("", "repository", None)
        began = asyncio.get_running_loop().time()
        async with read_source(order.repo, order.branch, self.settings.github_url) as origin:
            if origin.file is not None and origin.file.services:
                check_services(origin.file, service_capabilities(self.settings))
            tell("", "repository", asyncio.get_running_loop().time() - began)
            yield origin

    def _labels(self, order: CreateRequest, origin: CodeSource | None) -> dict[str, str]:
        labels = {"owner": self._owner, "made-by": order.made_by}
        if origin is not None:
            labels |= {"repo": origin.repo[:200], "commit": origin.sha}
            if origin.branch is not None:
                labels["branch"] = origin.branch
        return labels

    # Finding

    async def get(self, name: str) -> Machine:
        """Raises MachineNotFound."""
        machine = await self.factory.get(name)
        if machine is None:
            raise not_found(name)
        return machine

    async def open(self, name: str) -> MachineSession:
        """Log in to a machine that exists. Raises MachineNotFound, SSHError, MachineLost."""
        preparing = asyncio.create_task(prepare_to_connect())
        try:
            machine = await self.get(name)
        finally:
            await asyncio.wait({preparing})
            preparing.result()
        await self._taken(machine)
        try:
            shell = await self.factory.open(machine)
        except MachineLost:
            if await self.factory.get(name) is None:  # it was destroyed meanwhile
                raise not_found(name) from None
            raise
        return MachineSession(self.factory, machine, shell, self.settings.max_ttl_s)

    async def list_machines(self) -> list[Machine]:
        """Our machines at the provider, in the natural order of their names (`m-2` before `m-10`).

        The bot's machines, and other data directories', too.
        """
        return sorted(await self.factory.list(), key=lambda machine: validation.natural(machine.name))

    async def sweep(self) -> list[str]:
        """Burn what is beyond its time, and what a crash left; the names. A provider that fails here fails elsewhere, too."""
        try:
            return await self.factory.provider.sweep(self._owner)
        except GibilError as error:
            log.info("sweep: %s", error)
            return []

    async def recover(self) -> list[RecoveryReport]:
        """What was made by processes that were killed: see settle.py. Costs nothing where there was none."""
        return await recover(self.factory, self.settings.data_dir)

    async def _taken(self, machine: Machine) -> None:
        """Somebody calls it by its name: it needs no offering."""
        await asyncio.to_thread(makings.forget, self.settings.data_dir, machine.labels.get(CREATION, ""))

    # The end

    async def extend(self, name: str, seconds: int) -> Machine:
        """Raises MachineNotFound, UsageError beyond GIBIL_MAX_TTL."""
        machine = await self.get(name)
        await self._taken(machine)
        return await extend_machine(self.factory, machine, seconds, self.settings.max_ttl_s)

    async def destroy(self, names: Sequence[str]) -> list[DestroyResult]:
        """Burn these, side by side. An absent machine is not a failure; what fails is in the answer."""
        results = list(await asyncio.gather(*(self._destroy_one(name) for name in dict.fromkeys(names))))
        gone = {each.name for each in results if each.problem is None}
        self.told(*gone)  # there is nothing left to announce
        await asyncio.to_thread(makings.forget_names, self.settings.data_dir, self.factory.provider.name, gone)
        return results

    async def destroy_fleet(self, fleet: str) -> list[DestroyResult]:
        found = [machine.name for machine in await self.factory.list(self._owner) if machine.labels.get("fleet") == fleet]
        return await self.destroy(sorted(found, key=validation.natural))

    async def destroy_all(self, *, with_runs: bool = False) -> list[DestroyResult]:
        """Everything of this data directory; what the bot is working on only `with_runs`."""
        machines = await self.factory.list(self._owner)
        names = [machine.name for machine in machines if with_runs or "run" not in machine.labels]
        return await self.destroy(sorted(names, key=validation.natural))

    async def _destroy_one(self, name: str) -> DestroyResult:
        try:
            return DestroyResult(name=name, was_there=await self.factory.destroy(name))
        except GibilError as error:
            return DestroyResult(name=name, was_there=True, problem=error)
