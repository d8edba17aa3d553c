"""The tools that make machines and end them."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeAlias

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from gibil_bot.machines import validation
from gibil_bot.machines.costs import cost_view
from gibil_bot.machines.remote_layout import READY, TASKS_DONE, TASKS_FAILED
from gibil_bot.machines.request import CreateRequest
from gibil_bot.machines.service import MachineService
from gibil_bot.machines.session import MachineSession
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.results import Created, Destroyed, Extended, Servers, add, answer
from gibil_bot.mcp_server.tool_calls import progress
from gibil_bot.views import machine_created, machine_destroyed, machine_extended, machine_listed

log = logging.getLogger("gibil.mcp")

Name: TypeAlias = Annotated[str, Field(description="The machine's name, as create_server and list_servers say it.")]

_PHASES = {
    "prepare": ("preparing the root file system of machines, once per data directory", ""),
    "repository": ("reading the repository", "read the repository"),
    "forge": ("forging the machine", "forged the machine"),
    "connect": ("connecting", "connected"),
    "code": ("sending the code", "sent the code"),
}


class MachineTools:
    def __init__(self, links: MachineConnections) -> None:
        self._links = links

    def register(self, server: MCPServer[Any]) -> None:
        add(
            server,
            self.create_server,
            annotations=ToolAnnotations(title="Forge a machine", read_only_hint=False, destructive_hint=False),
        )
        add(
            server,
            self.destroy_server,
            annotations=ToolAnnotations(title="Burn a machine", destructive_hint=True, idempotent_hint=True),
        )
        add(server, self.list_servers, annotations=ToolAnnotations(title="List machines", read_only_hint=True))
        add(
            server,
            self.extend_server,
            annotations=ToolAnnotations(title="Extend a machine", read_only_hint=False, destructive_hint=False),
        )

    async def create_server(
        self,
        context: Context[Any, Any],
        name: Annotated[str | None, Field(description="Small letters, digits, dashes; made up if left out.")] = None,
        repo: Annotated[
            str | None,
            Field(
                description="A URL, `owner/repo` on GitHub, or a checkout on the user's computer. It comes to /root/project."
            ),
        ] = None,
        ttl: Annotated[
            str | int | None,
            Field(description="How long it lives: `90s`, `20m`, `2h`; a bare number is minutes. Default 60 minutes."),
        ] = None,
        provider: Annotated[
            str | None, Field(description="`local` (the user's computer) or `hetzner`; default: what is set up.")
        ] = None,
        size: Annotated[str | None, Field(description="`small`, `medium` or `large`.")] = None,
        server_type: Annotated[str | None, Field(description="The provider's own name of a machine type.")] = None,
        location: Annotated[str | None, Field(description="Where it stands, by the provider's name.")] = None,
        env: Annotated[
            dict[str, str] | None, Field(description="Environment variables of its tasks and of every command on it.")
        ] = None,
        wait: Annotated[
            Literal["ready", "tasks"] | None,
            Field(
                description="Return only when the code is set up (`ready`), or when .gibil.yml's tasks have ended (`tasks`)."
            ),
        ] = None,
    ) -> Annotated[CallToolResult, Created]:
        """Forge a disposable Linux machine (root, own file system and network), which burns itself when its time is up.

        Returns when commands can run on it. With `repo` the machine then clones it to /root/project by itself, sets up what its
        .gibil.yml asks for, and runs its tasks: pass `wait`, or look with vm_bash for /root/.gibil-ready, then
        /root/.gibil-tasks-done or /root/.gibil-tasks-failed. Burn it with destroy_server when you are done.
        """
        order = CreateRequest(
            name=name, repo=repo, ttl=ttl, size=size, server_type=server_type,
            location=location, env=env or {}, made_by="mcp",
        )  # fmt: skip
        machines = await self._links.machines(provider)
        began = time.monotonic()
        doing = "forging the machine"
        async with progress(context, lambda seconds: f"{doing}, {seconds} s") as say:

            def on_phase(_name: str, phase: str, seconds: float | None) -> None:
                nonlocal doing
                going, ended = _PHASES[phase]
                doing = going
                say(going if seconds is None else f"{ended} ({seconds:.2f} s)")

            (session,), notes = await machines.create_several(order, None, on_phase)
            view: dict[str, Any] = dict(machine_created(session.machine))
            try:
                view |= await cost_view(machines.forge.provider, session.machine)
                if wait is not None:
                    doing = f"waiting for {wait}"
                    await _wait(session, view, wait)
                    notes = (*notes, *await session.blocked(began))
                await _sweep(machines)
            except BaseException:
                # The client doesn't know of it: it would only cost.
                await asyncio.shield(asyncio.ensure_future(_drop(machines, session)))
                raise
        if notes:
            view["notes"] = list(notes)
        self._links.keep(session)
        machines.told(session.name)  # by the answer: no later command may offer it as abandoned
        return answer(_told(view, with_code=repo is not None, waited=wait is not None), view)

    async def destroy_server(self, name: Name) -> Annotated[CallToolResult, Destroyed]:
        """Burn a machine with everything on it. One that is gone already is no failure."""
        validation.check_name(name)
        burned = await self._links.destroy(name)
        text = f"{name} is burned" if burned.was_there else f"{name} was not there any more"
        return answer(text, machine_destroyed(name, was_there=burned.was_there))

    async def list_servers(self) -> Annotated[CallToolResult, Servers]:
        """The machines that there are, with the minutes that each has left. One with a label `run` is a bot's, at work."""
        found, problems = await self._links.all()
        now = datetime.now(UTC)
        views = [
            {**machine_listed(machine, now), **await cost_view(machines.forge.provider, machine)} for machines, machine in found
        ]
        lines = [
            f"{view['name']} ({view['provider']}, {view['status']}): {view['ttl_remaining_minutes']} min left"
            + (f", {view['repo']}" if view["repo"] else "")
            for view in views
        ]
        return answer(
            "\n".join([*(lines or ["no machine runs; forge one with create_server"]), *problems]),
            {"servers": views, "problems": problems},
        )

    async def extend_server(
        self,
        name: Name,
        ttl: Annotated[str | int, Field(description="How much longer: `30m`, `2h`; a bare number is minutes.")],
    ) -> Annotated[CallToolResult, Extended]:
        """Let a machine live longer, by `ttl`."""
        validation.check_name(name)
        machine = await self._links.extend(name, validation.duration_seconds(ttl))
        view = machine_extended(machine)
        return answer(f"{name} lives until {view['expires_at']}", view)


async def _wait(session: MachineSession, view: dict[str, Any], wait: str) -> None:
    """Into the view how it went; the markers decide, as for everybody who polls."""
    if wait == "tasks":
        tasks = await session.wait_tasks()
        done = await session.shell.run(f"test -e {TASKS_DONE}")
        view["tasks"] = "success" if done.exit_status == 0 else "failure"
    view["ready"] = await session.wait_ready()
    if wait == "ready":
        tasks = [] if view["ready"] else await session.tasks()
    view["task_results"] = [
        {"name": task.name, "status": task.status, "exit_code": task.exit_code, "duration_s": task.duration_s} for task in tasks
    ]


async def _drop(machines: MachineService, session: MachineSession) -> None:
    await session.close()
    await machines.destroy([session.name])


async def _sweep(machines: MachineService) -> None:
    """Whoever comes by burns what is beyond its time."""
    burned = await machines.sweep()
    if burned:
        log.info("burned, as their time was up: %s", ", ".join(burned))


def _told(view: dict[str, Any], *, with_code: bool, waited: bool) -> str:
    lines = [f"{view['name']} is forged ({view['provider']}); it burns itself at {view['expires_at']}.", *view.get("notes", ())]
    for task in view.get("task_results", ()):
        lines.append(f"  {task['name']}: {task['status']} ({task['duration_s']:.2f} s)")
    if waited and not view.get("ready", True):
        lines.append("It did not become ready: vm_job_tail with job_id `provision` says why.")
    elif waited:
        failed = view.get("tasks") == "failure"
        lines.append("A task failed: vm_job_tail with job_id `provision` says why." if failed else "It is ready.")
    elif with_code:
        lines.append(
            f"Its repository is on its way to /root/project. To wait: vm_bash "
            f"`until [ -e {READY} ] || [ -e {TASKS_FAILED} ]; do sleep 0.2; done; ls /root/.gibil-*`; "
            f"{READY} is there when the code is set up, {TASKS_DONE} or {TASKS_FAILED} when its tasks have ended."
        )
    return "\n".join(lines)
