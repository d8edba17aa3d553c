"""Connections of an agent to its machines: one to each, opened again when it is lost."""

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

_RETRY_AFTER_S = (0.1, 0.4, 1.5)
_CACHED_S = 5.0
"""How long the name of the only machine is cached, without another request to the provider."""


class MachineConnections:
    """Opens providers when they are first needed. `close` doesn't destroy machines."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._opening = asyncio.Lock()
        self._providers: dict[str, MachineService] = {}
        self._connections: dict[str, asyncio.Task[MachineSession]] = {}
        self._only: tuple[str, float] | None = None

    async def machines(self, provider: str | None = None) -> MachineService:
        """Return the service of a provider. Raises UsageError, ConfigurationError."""
        settings = settings_for(self.settings, provider)
        async with self._opening:
            if settings.provider not in self._providers:
                opened = await self._stack.enter_async_context(open_machines(settings))
                self._providers[settings.provider] = opened
            return self._providers[settings.provider]

    async def all(self) -> tuple[list[tuple[MachineService, Machine]], list[str]]:
        """Return the machines of all configured providers, and the errors of some. Raises GibilError if all of them fail."""
        found: list[tuple[MachineService, Machine]] = []
        problems: list[GibilError] = []
        providers = self._in_order()
        for name in providers:
            try:
                machines = await self.machines(name)
                expired = await machines.sweep()
                found += [(machines, each) for each in await machines.list_machines() if each.name not in expired]
            except GibilError as error:
                problems.append(error)
        if len(problems) == len(providers):
            raise problems[0]
        return found, [problem.message for problem in problems]

    async def work(self, server: str | None, action: Callable[[MachineSession], Awaitable[T]], *, repeatable: bool) -> T:
        """Run an action on a machine; None: on the only one that is running. A `repeatable` action is repeated once if the
        connection is lost during it.

        Raises MachineNotFound, MachineLost, UsageError if several machines are running, and what `action` raises.
        """
        name = validation.check_name(server) if server is not None else await self._only_one()
        session = await self._open(name)
        try:
            return await action(session)
        except MachineLost as error:
            await self._release(name, session)
            again = await self._open_again(name)
            if not repeatable:
                raise MachineLost(
                    f"{error.message}. Machine {name} still exists; the call may have taken effect: check, and call again"
                ) from error
        return await action(again)

    def keep(self, session: MachineSession) -> None:
        """Add the session of a machine that was just created."""

        async def itself() -> MachineSession:
            return session

        self._only = None
        self._connections[session.name] = asyncio.create_task(itself())

    async def destroy(self, name: str) -> DestroyResult:
        """Destroy a machine. An absent one is not a failure. Raises what the provider raises."""
        self._only = None
        machines = await self._service_of(name) or await self.machines()
        connection = self._connections.pop(name, None)
        (result,) = await machines.destroy([name])
        if connection is not None:
            await _close(connection)
        if result.problem is not None:
            raise result.problem
        return result

    async def fork(
        self, server: str | None, new: str | None, count: int | None, *, ttl: str | int | None, stop: bool
    ) -> tuple[str, MachineService, list[MachineSession]]:
        """Create copies of a machine, None: of the only one; return its name and theirs. Raises as `MachineService.fork`."""
        name = validation.check_name(server) if server is not None else await self._only_one()
        machines = await self._service_of(name)
        if machines is None:
            raise await self._not_found(name)
        sessions = await machines.fork(name, new, count, ttl=ttl, stop=stop, made_by="mcp")
        connection = self._connections.pop(name, None)  # it has ended
        for session in sessions:
            self.keep(session)
        if connection is not None:
            await _close(connection)
        return name, machines, sessions

    async def extend(self, name: str, seconds: int) -> Machine:
        """Move a machine's expiry. Raises MachineNotFound, UsageError beyond GIBIL_MAX_TTL."""
        machines = await self._service_of(name)
        if machines is None:
            raise await self._not_found(name)
        machine = await machines.extend(name, seconds)
        connection = self._connections.get(name)
        session = _connected(connection)
        if session is not None:
            session.machine = machine
        return machine

    async def close(self) -> None:
        connections, self._connections = list(self._connections.values()), {}
        await asyncio.gather(*(_close(connection) for connection in connections), return_exceptions=True)
        await self._stack.aclose()

    async def _open(self, name: str) -> MachineSession:
        connection = self._connections.get(name)
        session = _connected(connection)
        if connection is not None and connection.done() and (session is None or session.shell.is_closed):
            del self._connections[name]
            await _close(connection)
            connection = self._connections.get(name)
        if connection is None:
            connection = self._connections[name] = asyncio.create_task(self._connect(name))
        return await asyncio.shield(connection)

    async def _open_again(self, name: str) -> MachineSession:
        """Connect after a loss: the provider still lists a machine that is being destroyed. Raises MachineLost."""
        for wait_s in _RETRY_AFTER_S:
            if await self._service_of(name) is None:
                break
            try:
                return await self._open(name)
            except GibilError as error:
                log.info("machine %s: %s", name, error)
                await asyncio.sleep(wait_s)
        if await self._service_of(name) is not None:
            return await self._open(name)
        raise MachineLost(f"machine {name} no longer exists: it has expired, or was destroyed")

    async def _connect(self, name: str) -> MachineSession:
        machines = await self._service_of(name)
        if machines is None:
            raise await self._not_found(name)
        return await machines.open(name)

    async def _release(self, name: str, session: MachineSession) -> None:
        if _connected(self._connections.get(name)) is session:
            del self._connections[name]
        self._only = None
        await session.close()

    async def _service_of(self, name: str) -> MachineService | None:
        """Return the service that has a machine, or None. Raises a provider's error only if no other one has the machine."""
        problem: GibilError | None = None
        for provider in self._in_order():
            try:
                machines = await self.machines(provider)
                if await machines.factory.get(name) is not None:
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
            self._only = (names[0], now + _CACHED_S)
            return names[0]
        if not names:
            raise UsageError("no machine is running; create one with create_server", code="NO_SERVER")
        raise UsageError(f"several machines are running; name one with `server`: {', '.join(names)}", code="WHICH_SERVER")

    async def _names(self) -> list[str]:
        """Return the names of machines without those of the bot's runs."""
        return [machine.name for _, machine in (await self.all())[0] if "run" not in machine.labels]

    async def _not_found(self, name: str) -> MachineNotFound:
        names = await self._names()
        existing = f"existing machines: {', '.join(names)}" if names else "no machine is running; create one with create_server"
        return MachineNotFound(f"Server {name!r} not found; {existing}")

    def _in_order(self) -> list[str]:
        default = self.settings.provider
        return [default, *(name for name in usable_providers(self.settings) if name != default)]


def _connected(connection: asyncio.Task[MachineSession] | None) -> MachineSession | None:
    """Return the session of a connection that is open; None while it is being opened, and if that failed."""
    if connection is None or not connection.done() or connection.cancelled() or connection.exception() is not None:
        return None
    return connection.result()


async def _close(connection: asyncio.Task[MachineSession]) -> None:
    if not connection.done():
        connection.cancel()
        await asyncio.wait({connection})
    session = _connected(connection)
    if session is not None:
        await session.close()
