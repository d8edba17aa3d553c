"""Machines for programs: `from gibil_bot import machines`.

    async with machines.create(repo="ada/engine", ttl="30m") as m:
        result = await m.run("cd /root/project && pytest -q")
        print(result.exit_code, result.stdout)

The machine is burned when the block is left, however it is left; when the program is killed, its time to live burns it. Many
machines share the provider and its limits:

    async with machines.connect() as mine:
        async with asyncio.TaskGroup() as group:
            for seed in range(50):
                group.create_task(explore(mine, seed))      # each: async with mine.create() as m: …

The same functions make the command line, so `gibil list` and `gibil run` see these machines, too. Settings come from the
environment and from what `gibil init` saved. Every failure is a `gibil_bot.errors.GibilError` with a sentence and a code.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from types import TracebackType

from gibil_bot.config import Settings, load_settings
from gibil_bot.model import Machine
from gibil_bot.sandbox.live import LiveMachine, Outcome, TaskOutcome
from gibil_bot.sandbox.machines import Machines, open_machines, settings_for
from gibil_bot.sandbox.order import Order

__all__ = ["Connected", "Creation", "LiveMachine", "Outcome", "TaskOutcome", "connect", "create", "open_machine"]


class Creation:
    """A machine to be: made when an `async with` block is entered, burned when it is left.

    Raises UsageError and InvalidWorkflow before anything is forged; NameTaken, ProviderError, SSHError, MachineLost.
    """

    def __init__(self, order: Order, machines: Machines | None, settings: Settings | None) -> None:
        self._order = order
        self._given = machines
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._live: LiveMachine | None = None

    async def __aenter__(self) -> LiveMachine:
        self._live = await self._create()
        return self._live

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._live is not None
        await asyncio.shield(asyncio.ensure_future(self._burn(self._live)))

    async def _create(self) -> LiveMachine:
        machines = self._given
        if machines is None:
            machines = await self._stack.enter_async_context(open_machines(self._settings or load_settings()))
        try:
            return await machines.create(self._order)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(self._stack.aclose()))
            raise

    async def _burn(self, live: LiveMachine) -> None:
        try:
            await live.close()
        finally:
            try:
                await live.destroy()
            finally:
                await self._stack.aclose()


class Connected:
    """The machines of this data directory on one provider, over one connection to it."""

    def __init__(self, machines: Machines) -> None:
        self._machines = machines

    def create(
        self,
        *,
        name: str | None = None,
        repo: str | None = None,
        branch: str | None = None,
        ttl: str | None = None,
        size: str | None = None,
        server_type: str | None = None,
        location: str | None = None,
        image: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Creation:
        """See `machines.create`."""
        order = Order(
            name=name, repo=repo, branch=branch, ttl=ttl, size=size, server_type=server_type, location=location, image=image,
            env=dict(env or {}), made_by="sdk",
        )  # fmt: skip
        return Creation(order, self._machines, None)

    async def open(self, name: str) -> LiveMachine:
        """Log in to a machine that exists; close it when done. Raises MachineNotFound."""
        return await self._machines.open(name)

    async def list(self) -> list[Machine]:
        """What the provider has, oldest first."""
        return await self._machines.list_machines()

    async def destroy(self, name: str) -> bool:
        """Burn; True if it was there."""
        return await self._machines.forge.destroy(name)


@contextlib.asynccontextmanager
async def connect(*, provider: str | None = None, settings: Settings | None = None) -> AsyncIterator[Connected]:
    """For as long as the block lasts. `provider`: another one than the settings say."""
    async with open_machines(settings_for(settings or load_settings(), provider)) as machines:
        yield Connected(machines)


def create(
    *,
    name: str | None = None,
    repo: str | None = None,
    branch: str | None = None,
    ttl: str | None = None,
    provider: str | None = None,
    size: str | None = None,
    server_type: str | None = None,
    location: str | None = None,
    image: str | None = None,
    env: Mapping[str, str] | None = None,
    settings: Settings | None = None,
) -> Creation:
    """A machine, as `gibil create` makes it; what is left out is the repository's `.gibil.yml`'s to say, or the default.

    `repo`: a URL, `owner/repo`, or a path; it is at /root/project once `await m.wait_ready()` is True, and its tasks have run
    when `await m.wait_tasks()` returns them. `ttl`: `90s 20m 2h`, a bare number is minutes. `env`: for every command.
    """
    order = Order(
        name=name, repo=repo, branch=branch, ttl=ttl, size=size, server_type=server_type, location=location, image=image,
        env=dict(env or {}), made_by="sdk",
    )  # fmt: skip
    return Creation(order, None, settings_for(settings or load_settings(), provider))


@contextlib.asynccontextmanager
async def open_machine(
    name: str, *, provider: str | None = None, settings: Settings | None = None
) -> AsyncIterator[LiveMachine]:
    """A machine that exists, for as long as the block lasts; it lives on. Raises MachineNotFound."""
    async with connect(provider=provider, settings=settings) as connected:
        live = await connected.open(name)
        try:
            yield live
        finally:
            await asyncio.shield(asyncio.ensure_future(live.close()))
