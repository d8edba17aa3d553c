"""SDK: machines for programs, `from gibil_bot import machines`. gibil_bot/machines/__init__.py documents how to use it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Literal, TypeAlias

from gibil_bot.cancellation import uncancelled
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines.request import CreateRequest
from gibil_bot.machines.service import MachineService, open_machines, settings_for
from gibil_bot.machines.session import MachineSession, Outcome, TaskOutcome
from gibil_bot.machines.tools.truncate import Excerpt
from gibil_bot.machines.validation import Duration
from gibil_bot.model import Machine

__all__ = ["Connected", "Creation", "MachineSession", "Outcome", "TaskOutcome", "connect", "create", "open_machine"]

Wait: TypeAlias = Literal["ready", "tasks"]

_LOG_BYTES = 2000


class Creation:
    """A machine that is created when an `async with` block is entered, and destroyed when the block is left.

    Raises UsageError and InvalidWorkflow before anything is created; NameTaken, ProviderError, SSHError, MachineLost; and
    GibilError with the code PROVISION when the machine doesn't become ready. After an error, no machine is left.
    """

    def __init__(
        self, request: CreateRequest, wait: Wait | None, machines: MachineService | None, settings: Settings | None
    ) -> None:
        check_wait(wait)
        self._request = request
        self._wait = wait
        self._service = machines
        self._settings = settings
        self._stack = contextlib.AsyncExitStack()
        self._session: MachineSession | None = None

    async def __aenter__(self) -> MachineSession:
        self._session = await self._create()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._session is not None
        await uncancelled(self._destroy(self._session))

    async def _create(self) -> MachineSession:
        machines = self._service
        if machines is None:
            machines = await self._stack.enter_async_context(open_machines(self._settings or load_settings()))
        try:
            session = await machines.create(self._request)
        except BaseException:
            await uncancelled(self._stack.aclose())
            raise
        try:
            await wait_for(session, self._wait)
        except BaseException:
            await uncancelled(self._destroy(session))
            raise
        return session

    async def _destroy(self, session: MachineSession) -> None:
        try:
            await session.close()
        finally:
            try:
                await session.destroy()
            finally:
                await self._stack.aclose()


def request_of(
    name: str | None,
    repo: str | os.PathLike[str] | None,
    branch: str | None,
    ttl: Duration | None,
    size: str | None,
    server_type: str | None,
    location: str | None,
    image: str | None,
    template: str | None,
    env: Mapping[str, str] | None,
) -> CreateRequest:
    """Return the request of a program, from the arguments of `create`."""
    return CreateRequest(
        name=name, repo=None if repo is None else os.fspath(repo), branch=branch, ttl=ttl, size=size,
        server_type=server_type, location=location, image=image, template=template, env=dict(env or {}), made_by="sdk",
    )  # fmt: skip


def check_wait(wait: object) -> None:
    """Raise UsageError for a value that isn't a `Wait` or None."""
    if wait not in (None, "ready", "tasks"):
        raise UsageError(f"wait={wait!r} is not allowed; write 'ready', 'tasks' or None")


async def wait_for(session: MachineSession, wait: Wait | None) -> None:
    """Wait until the code is set up, or until its tasks have ended. Raises GibilError with the code PROVISION."""
    if wait == "tasks":
        await session.wait_tasks()
    if wait is not None and not await session.wait_ready():
        raise GibilError(await _why_not_ready(session), code="PROVISION")


async def _why_not_ready(session: MachineSession) -> str:
    """Return the reason in one sentence, with the end of the log, which is lost when the machine is destroyed."""
    log = Excerpt(_LOG_BYTES)
    await session.print_log(None, lambda stream, data: log.add(data))
    lines = [line for line in log.text("").splitlines() if line.strip() and not line.startswith("=== ")]
    failed = ", ".join(
        f"{task.name} (exit code {task.exit_code})" for task in await session.tasks() if task.status == "failure"
    )
    return f"machine {session.name} didn't become ready: {failed or 'its setup'} failed: {' / '.join(lines[-3:])}"


class Connected:
    """The machines of this data directory on one provider, over one connection to the provider."""

    def __init__(self, machines: MachineService) -> None:
        self._machines = machines

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
        env: Mapping[str, str] | None = None,
        wait: Wait | None = "ready",
    ) -> Creation:
        """See `machines.create`."""
        request = request_of(name, repo, branch, ttl, size, server_type, location, image, None, env)
        return Creation(request, wait, self._machines, None)

    async def open(self, name: str) -> MachineSession:
        """Log in to an existing machine. The caller has to close the session. Raises MachineNotFound."""
        return await self._machines.open(name)

    async def list(self) -> list[Machine]:
        """Return the provider's machines, in the natural order of their names."""
        return await self._machines.list_machines()

    async def destroy(self, name: str) -> bool:
        """Destroy a machine; return whether it existed."""
        return await self._machines.factory.destroy(name)


@contextlib.asynccontextmanager
async def connect(*, provider: str | None = None, settings: Settings | None = None) -> AsyncIterator[Connected]:
    """Connect to a provider for the duration of the block. `provider` overrides the settings."""
    async with open_machines(settings_for(settings or load_settings(), provider)) as machines:
        yield Connected(machines)


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
    env: Mapping[str, str] | None = None,
    wait: Wait | None = "ready",
    settings: Settings | None = None,
) -> Creation:
    """Create a machine as `gibil create` does: `async with machines.create(repo="ada/engine") as m: …`.

    What is left out comes from the repository's `.gibil.yml`, or is the default.

    `repo`: a URL, `owner/repo`, or a path; its code is in /root/project, where commands start.
    `ttl`: `"90s"`, `"20m"`, `"2h"`, a timedelta, or a number of minutes. The machine is destroyed after it in any case.
    `env`: environment variables of the tasks and of every command.
    `wait`: "ready": the block begins when the code is cloned and set up; "tasks": when the tasks of `.gibil.yml` have ended
    (`await m.tasks()` returns their results); None: when the machine answers, and `await m.wait_ready()` waits for the rest.
    """
    request = request_of(name, repo, branch, ttl, size, server_type, location, image, None, env)
    return Creation(request, wait, None, settings_for(settings or load_settings(), provider))


@contextlib.asynccontextmanager
async def open_machine(
    name: str, *, provider: str | None = None, settings: Settings | None = None
) -> AsyncIterator[MachineSession]:
    """Log in to an existing machine for the duration of the block; the machine isn't destroyed. Raises MachineNotFound."""
    async with connect(provider=provider, settings=settings) as connected:
        session = await connected.open(name)
        try:
            yield session
        finally:
            await uncancelled(session.close())
