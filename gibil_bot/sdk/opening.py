"""What `gibil.create`, `fleet`, `open`, `connect` and a machine's `fork` return: blocks for `with` and for `async with`.

`with` uses the background loop, and gives the synchronous class; `async with` the asynchronous one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Generic, TypeVar

from gibil_bot.cancellation import uncancelled
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import UsageError
from gibil_bot.machines.request import CreateRequest
from gibil_bot.machines.sdk import Wait, check_wait, request_of, wait_for
from gibil_bot.machines.service import MachineService, open_machines, settings_for
from gibil_bot.machines.session import MachineSession
from gibil_bot.machines.templates import templating
from gibil_bot.machines.validation import Duration, fleet_names
from gibil_bot.model import Machine as MachineInfo
from gibil_bot.model import Template
from gibil_bot.sdk.async_machine import AsyncFleet, AsyncMachine
from gibil_bot.sdk.background_loop import BACKGROUND
from gibil_bot.sdk.machine import Fleet, Machine
from gibil_bot.sdk.streams import run_all

S = TypeVar("S")
A = TypeVar("A")


class Opening(ABC, Generic[S, A]):
    """A block that can be entered once. Leaving it ends what entering it began, also after an exception."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._entered = False
        self._ending: asyncio.Task[None] | None = None

    @abstractmethod
    async def _open(self) -> A:
        """Begin; put what ends it on the stack. After an exception, the stack is closed."""

    @abstractmethod
    def _synchronous(self, opened: A) -> S: ...

    async def __aenter__(self) -> A:
        self._claim()
        return await self._begin()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end()

    def __enter__(self) -> S:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        BACKGROUND.call(self._end())

    def start(self) -> S:
        """Begin without a block, as at a prompt; `stop` is the end."""
        self._claim()
        try:
            return self._synchronous(BACKGROUND.call(self._begin()))
        except BaseException:
            BACKGROUND.call(self._end())  # a KeyboardInterrupt may come when the other thread has just begun
            raise

    def stop(self) -> None:
        """End what `start` began. May be called again."""
        BACKGROUND.call(self._end())

    def _claim(self) -> None:
        if self._entered:
            raise UsageError("this block was already entered: create another one")
        self._entered = True

    async def _begin(self) -> A:
        try:
            return await self._open()
        except BaseException:
            await self._end()
            raise

    async def _end(self) -> None:
        """Close the stack, however often the caller is cancelled. May be called again: all calls wait for the same end."""
        if self._ending is None or self._ending.done():
            self._ending = asyncio.create_task(self._stack.aclose())
        await uncancelled(self._ending)


class _WithService(Opening[S, A]):
    """A block that uses the machine service of an open client, or opens one."""

    def __init__(self, service: MachineService | None, provider: str | None, settings: Settings | None) -> None:
        super().__init__()
        self._service = service
        self._settings = None if service is not None else settings_for(settings or load_settings(), provider)

    async def _machines(self) -> MachineService:
        if self._service is None:
            assert self._settings is not None
            self._service = await self._stack.enter_async_context(open_machines(self._settings))
        return self._service

    async def _create(self, request: CreateRequest, count: int | None, wait: Wait | None) -> list[AsyncMachine]:
        service = await self._machines()
        sessions, _notes = await service.create_several(request, count)
        machines = self._own(service, sessions)
        await run_all(wait_for(session, wait) for session in sessions)
        return machines

    async def _fork(
        self, source: AsyncMachine, name: str | None, count: int | None, ttl: Duration | None, stop: bool
    ) -> list[AsyncMachine]:
        service = await self._machines()
        try:
            sessions = await service.fork(source.name, name, count, ttl=ttl, stop=stop, made_by="sdk")
            return self._own(service, sessions)
        finally:
            await source.session.reopen()

    def _own(self, service: MachineService, sessions: Sequence[MachineSession]) -> list[AsyncMachine]:
        """Destroy the new machines at the end of the block."""
        machines = [AsyncMachine(session, service) for session in sessions]
        self._stack.push_async_callback(_destroy_all, machines)
        service.mark_reported(*(session.name for session in sessions))
        return machines


class Creation(_WithService[Machine, AsyncMachine]):
    """A machine that is created when the block is entered, and destroyed when it is left."""

    def __init__(
        self, request: CreateRequest, wait: Wait | None, service: MachineService | None, provider: str | None,
        settings: Settings | None,
    ) -> None:  # fmt: skip
        super().__init__(service, provider, settings)
        check_wait(wait)
        self._request = request
        self._wait = wait

    async def _open(self) -> AsyncMachine:
        return (await self._create(self._request, None, self._wait))[0]

    def _synchronous(self, opened: AsyncMachine) -> Machine:
        return Machine(opened)


class FleetCreation(_WithService[Fleet, AsyncFleet]):
    """Machines that are all created when the block is entered, or none, and destroyed when it is left."""

    def __init__(
        self, count: int, request: CreateRequest, wait: Wait | None, service: MachineService | None, provider: str | None,
        settings: Settings | None,
    ) -> None:  # fmt: skip
        super().__init__(service, provider, settings)
        check_wait(wait)
        self._count = _checked_size(count, request.name)
        self._request = request
        self._wait = wait

    async def _open(self) -> AsyncFleet:
        return AsyncFleet(await self._create(self._request, self._count, self._wait))

    def _synchronous(self, opened: AsyncFleet) -> Fleet:
        return Fleet(opened)


class Fork(_WithService[Machine, AsyncMachine]):
    """A copy of a machine, which is created when the block is entered, and destroyed when it is left."""

    def __init__(
        self, source: AsyncMachine, service: MachineService, name: str | None, ttl: Duration | None, stop: bool
    ) -> None:
        super().__init__(service, None, None)
        self._source = source
        self._name = name
        self._ttl = ttl
        self._stop = stop

    async def _open(self) -> AsyncMachine:
        return (await self._fork(self._source, self._name, None, self._ttl, self._stop))[0]

    def _synchronous(self, opened: AsyncMachine) -> Machine:
        return Machine(opened)


class ForkFleet(_WithService[Fleet, AsyncFleet]):
    """Copies of a machine, which are all created when the block is entered, or none, and destroyed when it is left."""

    def __init__(
        self, count: int, source: AsyncMachine, service: MachineService, name: str | None, ttl: Duration | None, stop: bool
    ) -> None:
        super().__init__(service, None, None)
        self._count = _checked_size(count, name)
        self._source = source
        self._name = name
        self._ttl = ttl
        self._stop = stop

    async def _open(self) -> AsyncFleet:
        return AsyncFleet(await self._fork(self._source, self._name, self._count, self._ttl, self._stop))

    def _synchronous(self, opened: AsyncFleet) -> Fleet:
        return Fleet(opened)


class OpenMachine(_WithService[Machine, AsyncMachine]):
    """A connection to an existing machine. Leaving the block doesn't destroy the machine."""

    def __init__(self, name: str, service: MachineService | None, provider: str | None, settings: Settings | None) -> None:
        super().__init__(service, provider, settings)
        self._name = name

    async def _open(self) -> AsyncMachine:
        service = await self._machines()
        machine = AsyncMachine(await service.open(self._name), service)
        self._stack.push_async_callback(machine.close)
        return machine

    def _synchronous(self, opened: AsyncMachine) -> Machine:
        return Machine(opened)


class _ClientBase:
    """Creates and opens machines over one connection to the provider."""

    def __init__(self, service: MachineService) -> None:
        self._service = service

    def create(
        self,
        *,
        name: str | None = None,
        repo: str | os.PathLike[str] | None = None,
        branch: str | None = None,
        ttl: Duration | None = None,
        size: str | None = None,
        server_type: str | None = None,
        location: str | None = None,
        image: str | None = None,
        template: str | None = None,
        env: Mapping[str, str] | None = None,
        wait: Wait | None = "ready",
    ) -> Creation:
        """See `gibil.create`."""
        request = request_of(name, repo, branch, ttl, size, server_type, location, image, template, env)
        return Creation(request, wait, self._service, None, None)

    def fleet(
        self,
        count: int,
        *,
        name: str | None = None,
        repo: str | os.PathLike[str] | None = None,
        branch: str | None = None,
        ttl: Duration | None = None,
        size: str | None = None,
        server_type: str | None = None,
        location: str | None = None,
        image: str | None = None,
        template: str | None = None,
        env: Mapping[str, str] | None = None,
        wait: Wait | None = "ready",
    ) -> FleetCreation:
        """See `gibil.fleet`."""
        request = request_of(name, repo, branch, ttl, size, server_type, location, image, template, env)
        return FleetCreation(count, request, wait, self._service, None, None)

    def open(self, name: str) -> OpenMachine:
        """See `gibil.open`."""
        return OpenMachine(name, self._service, None, None)


class AsyncClient(_ClientBase):
    """The machines of this data directory on one provider."""

    async def list(self) -> Sequence[MachineInfo]:
        """Return the provider's machines, in the natural order of their names."""
        return await self._service.list_machines()

    async def templates(self) -> Sequence[Template]:
        """Return the provider's templates, oldest first. Raises ProviderError, UsageError for a provider without templates."""
        return await templating(self._service.factory.provider).templates()

    async def delete_template(self, name: str) -> bool:
        """Delete a template; return whether it existed. Local machines that started from it keep it."""
        return await templating(self._service.factory.provider).delete_template(name)

    async def destroy(self, name: str) -> bool:
        """Destroy a machine; return whether it existed. Raises ProviderError."""
        (result,) = await self._service.destroy([name])
        if result.problem is not None:
            raise result.problem
        return result.was_there


class Client(_ClientBase):
    """The machines of this data directory on one provider."""

    def __init__(self, client: AsyncClient) -> None:
        super().__init__(client._service)
        self._client = client

    def list(self) -> Sequence[MachineInfo]:
        """Return the provider's machines, in the natural order of their names."""
        return BACKGROUND.call(self._client.list())

    def templates(self) -> Sequence[Template]:
        """Return the provider's templates, oldest first."""
        return BACKGROUND.call(self._client.templates())

    def delete_template(self, name: str) -> bool:
        """Delete a template; return whether it existed. Local machines that started from it keep it."""
        return BACKGROUND.call(self._client.delete_template(name))

    def destroy(self, name: str) -> bool:
        """Destroy a machine; return whether it existed. Raises ProviderError."""
        return BACKGROUND.call(self._client.destroy(name))


class Connection(_WithService[Client, AsyncClient]):
    """A connection to the provider."""

    async def _open(self) -> AsyncClient:
        return AsyncClient(await self._machines())

    def _synchronous(self, opened: AsyncClient) -> Client:
        return Client(opened)


def create(
    *,
    name: str | None = None,
    repo: str | os.PathLike[str] | None = None,
    branch: str | None = None,
    ttl: Duration | None = None,
    provider: str | None = None,
    size: str | None = None,
    server_type: str | None = None,
    location: str | None = None,
    image: str | None = None,
    template: str | None = None,
    env: Mapping[str, str] | None = None,
    wait: Wait | None = "ready",
    settings: Settings | None = None,
) -> Creation:
    """Create a machine for the duration of a block: `with gibil.create(repo="ada/engine") as m: m.run("make test")`.

    `with` gives a Machine, `async with` an AsyncMachine. What is left out comes from the repository's `.gibil.yml`, or is the
    default.

    `repo`: a URL, `owner/repo`, or a path; its code is in /root/project, where commands start.
    `ttl`: `"90s"`, `"20m"`, `"2h"`, a timedelta, or a number of minutes. The machine is destroyed after it in any case.
    `template`: start with the disk of a template; see `Machine.save_template`.
    `env`: environment variables of the tasks and of every command.
    `wait`: "ready": the block begins when the code is cloned and set up; "tasks": when the tasks of `.gibil.yml` have ended;
    None: when the machine answers.

    Raises UsageError and InvalidWorkflow before anything is created; NameTaken, ProviderError, SSHError, MachineLost; and
    GibilError with the code PROVISION when the machine doesn't become ready. After an error, no machine is left.
    """
    request = request_of(name, repo, branch, ttl, size, server_type, location, image, template, env)
    return Creation(request, wait, None, provider, settings)


def fleet(
    count: int,
    *,
    name: str | None = None,
    repo: str | os.PathLike[str] | None = None,
    branch: str | None = None,
    ttl: Duration | None = None,
    provider: str | None = None,
    size: str | None = None,
    server_type: str | None = None,
    location: str | None = None,
    image: str | None = None,
    template: str | None = None,
    env: Mapping[str, str] | None = None,
    wait: Wait | None = "ready",
    settings: Settings | None = None,
) -> FleetCreation:
    """Create 1 to 20 equal machines, `NAME-1` …, for the duration of a block: all of them, or none. See `create`.

    `fleet.run(command)` runs a command on all of them at once.
    """
    request = request_of(name, repo, branch, ttl, size, server_type, location, image, template, env)
    return FleetCreation(count, request, wait, None, provider, settings)


def open(name: str, *, provider: str | None = None, settings: Settings | None = None) -> OpenMachine:
    """Log in to an existing machine for the duration of a block, which doesn't destroy it. Raises MachineNotFound."""
    return OpenMachine(name, None, provider, settings)


def connect(*, provider: str | None = None, settings: Settings | None = None) -> Connection:
    """Connect to a provider for the duration of a block: a Client or AsyncClient, which creates, opens and lists machines."""
    return Connection(None, provider, settings)


def _checked_size(count: int, name: str | None) -> int:
    if isinstance(count, bool) or not isinstance(count, int):
        raise UsageError(f"the size of a fleet is a number, got {count!r}")
    fleet_names(name or "fleet", count)
    return count


async def _destroy_all(machines: Sequence[AsyncMachine]) -> None:
    """Destroy machines at once; raise the first problem when all attempts have ended."""
    found = await asyncio.gather(*(machine.destroy() for machine in machines), return_exceptions=True)
    for problem in found:
        if isinstance(problem, BaseException):
            raise problem
