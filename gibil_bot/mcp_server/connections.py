"""The machines that an agent works on: found by their names, one connection to each, made again when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from gibil_bot.config import Settings
from gibil_bot.errors import GibilError, MachineLost, MachineNotFound, UsageError
from gibil_bot.machines import validation
from gibil_bot.machines.service import DestroyResult, MachineService, open_machines, settings_for, usable_providers
from gibil_bot.machines.session import MachineSession
from gibil_bot.model import Machine

T = TypeVar("T")
log = logging.getLogger("gibil.mcp")

_TRY_AGAIN_AFTER_S = (0.1, 0.4, 1.5)
_KNOWN_S = 5.0
"""So long the only machine that there is stays the one that is meant, without the provider being asked again."""


class MachineConnections:
    """Providers are opened when they are first needed. Close it when done: the machines live on."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._providers: dict[str, MachineService] = {}
        self._links: dict[str, asyncio.Task[MachineSession]] = {}
        self._only: tuple[str, float] | None = None

    async def machines(self, provider: str | None = None) -> MachineService:
        """Raises UsageError, ConfigurationError."""
        settings = settings_for(self._settings, provider)
        async with self._opening:
            if settings.provider not in self._providers:
                opened = await self._stack.enter_async_context(open_machines(settings))
                self._providers[settings.provider] = opened
            return self._providers[settings.provider]

    async def all(self) -> tuple[list[tuple[MachineService, Machine]], list[str]]:
        """The machines of every provider that is set up, and why some could not be asked. Raises when none could."""
        found: list[tuple[MachineService, Machine]] = []
        problems: list[GibilError] = []
        providers = self._in_order()
        for name in providers:
            try:
                machines = await self.machines(name)
                burned = await machines.sweep()
                found += [(machines, each) for each in await machines.list_machines() if each.name not in burned]
            except GibilError as error:
                problems.append(error)
        if len(problems) == len(providers):
            raise problems[0]
        return found, [problem.message for problem in problems]

    async def work(self, server: str | None, action: Callable[[MachineSession], Awaitable[T]], *, repeatable: bool) -> T:
        """Do something on a machine; None: on the only one that runs. What is `repeatable` is done again when the connection
        is lost on the way.

        Raises MachineNotFound, MachineLost, UsageError where it is not clear which machine is meant, and what `action` does.
        """
        name = validation.check_name(server) if server is not None else await self._only_one()
        session = await self._open(name)
        try:
            return await action(session)
        except MachineLost as error:
            await self._let_go(name, session)
            again = await self._open_again(name)
            if not repeatable:
                raise MachineLost(
                    f"{error.message}. Machine {name} still exists; nobody knows how far this went: look, and call again"
                ) from error
        return await action(again)

    def keep(self, session: MachineSession) -> None:
        """A machine that was just made, with its connection."""

        async def itself() -> MachineSession:
            return session

        self._only = None
        self._links[session.name] = asyncio.create_task(itself())

    async def destroy(self, name: str) -> DestroyResult:
        """An absent machine is not a failure. Raises what the provider raises."""
        self._only = None
        machines = await self._where(name) or await self.machines()
        link = self._links.pop(name, None)
        (burned,) = await machines.destroy([name])
        if link is not None:
            await _close(link)
        if burned.problem is not None:
            raise burned.problem
        return burned

    async def extend(self, name: str, seconds: int) -> Machine:
        """Raises MachineNotFound, UsageError beyond GIBIL_MAX_TTL."""
        machines = await self._where(name)
        if machines is None:
            raise await self._not_found(name)
        machine = await machines.extend(name, seconds)
        link = self._links.get(name)
        if link is not None and link.done() and not link.cancelled() and link.exception() is None:
            link.result().machine = machine
        return machine

    async def close(self) -> None:
        links, self._links = list(self._links.values()), {}
        await asyncio.gather(*(_close(link) for link in links), return_exceptions=True)
        await self._stack.aclose()

    async def _open(self, name: str) -> MachineSession:
        link = self._links.get(name)
        if link is not None and link.done() and (link.cancelled() or link.exception() or link.result().shell.is_closed):
            del self._links[name]
            await _close(link)
            link = self._links.get(name)
        if link is None:
            link = self._links[name] = asyncio.create_task(self._connect(name))
        return await asyncio.shield(link)

    async def _open_again(self, name: str) -> MachineSession:
        """After a loss: a machine that is being burned is in its provider's list for a moment more. Raises MachineLost."""
        for wait_s in _TRY_AGAIN_AFTER_S:
            if await self._where(name) is None:
                break
            try:
                return await self._open(name)
            except GibilError as error:
                log.info("machine %s: %s", name, error)
                await asyncio.sleep(wait_s)
        if await self._where(name) is not None:
            return await self._open(name)
        raise MachineLost(f"machine {name} is gone: its time was up, or somebody has burned it")

    async def _connect(self, name: str) -> MachineSession:
        machines = await self._where(name)
        if machines is None:
            raise await self._not_found(name)
        return await machines.open(name)

    async def _let_go(self, name: str, session: MachineSession) -> None:
        link = self._links.get(name)
        if link is not None and link.done() and not link.cancelled() and link.exception() is None and link.result() is session:
            del self._links[name]
        self._only = None
        await session.close()

    async def _where(self, name: str) -> MachineService | None:
        """Whose machine it is. A provider that cannot be asked counts only when no other has it."""
        problem: GibilError | None = None
        for provider in self._in_order():
            try:
                machines = await self.machines(provider)
                if await machines.forge.get(name) is not None:
                    return machines
            except GibilError as error:
                problem = problem or error
        if problem is not None:
            raise problem
        return None

    async def _only_one(self) -> str:
        now = asyncio.get_running_loop().time()
        if self._only is not None and now < self._only[1]:
            return self._only[0]
        names = await self._names()
        if len(names) == 1:
            self._only = (names[0], now + _KNOWN_S)
            return names[0]
        if not names:
            raise UsageError("no machine runs; forge one with create_server", code="NO_SERVER")
        raise UsageError(f"several machines run; say which with `server`: {', '.join(names)}", code="WHICH_SERVER")

    async def _names(self) -> list[str]:
        """Of the machines that an agent may mean: the bot's own are at work."""
        return [machine.name for _, machine in (await self.all())[0] if "run" not in machine.labels]

    async def _not_found(self, name: str) -> MachineNotFound:
        names = await self._names()
        there_are = f"there are: {', '.join(names)}" if names else "no machine runs; forge one with create_server"
        return MachineNotFound(f"Server {name!r} not found; {there_are}")

    def _in_order(self) -> list[str]:
        default = self._settings.provider
        return [default, *(name for name in usable_providers(self._settings) if name != default)]


async def _close(link: asyncio.Task[MachineSession]) -> None:
    if not link.done():
        link.cancel()
        await asyncio.wait({link})
    if not link.cancelled() and link.exception() is None:
        await link.result().close()
