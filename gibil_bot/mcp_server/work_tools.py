"""The tools that run commands on a machine, show its load, and end left-over processes."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from gibil_bot.errors import UsageError
from gibil_bot.machines import validation
from gibil_bot.machines.session import MachineSession
from gibil_bot.machines.tools import files, stray_processes
from gibil_bot.machines.tools.stats import Stats, stats
from gibil_bot.machines.tools.truncate import Excerpt
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.results import Ran, Server, StatsView, Swept, add, answer, streams
from gibil_bot.mcp_server.tool_calls import progress

STDOUT_BYTES = 20_000
STDERR_BYTES = 10_000
MOST_PROCESSES = 100
_DEFAULT_MS = 120_000
_MOST_MS = 7 * 24 * 3600 * 1000
_HINT = "run it with background=true and read all of it with vm_job_tail, or redirect it to a file"


class WorkTools:
    def __init__(self, connections: MachineConnections) -> None:
        self._connections = connections

    def register(self, server: MCPServer[Any]) -> None:
        add(
            server,
            self.vm_bash,
            annotations=ToolAnnotations(
                title="Run a command", read_only_hint=False, destructive_hint=True, open_world_hint=True
            ),
        )
        add(server, self.vm_stats, annotations=ToolAnnotations(title="Show a machine's load", read_only_hint=True))
        add(
            server,
            self.vm_sweep_orphans,
            annotations=ToolAnnotations(title="End left-over processes", destructive_hint=True, idempotent_hint=True),
        )

    async def vm_bash(
        self,
        context: Context[Any, Any],
        command: Annotated[str, Field(description="Any shell text; it runs in bash, as root.")],
        working_dir: Annotated[str | None, Field(description="Default /root/project, or /root without a project.")] = None,
        timeout_ms: Annotated[
            int | None,
            Field(description="Time until the command is killed. Default 120000; none for a background job."),
        ] = None,
        background: Annotated[
            bool, Field(description="Return a job_id at once; the command survives this connection.")
        ] = False,
        server: Server = None,
    ) -> Annotated[CallToolResult, Ran]:
        """Run a shell command on a machine and return its output and exit code. A failing command is a result, not an error.

        There is no terminal and no stdin; every call starts a new shell, so `cd` and variables do not last. Long output is cut
        in the middle. Start servers and long commands with background=true, and watch them with vm_job_status and vm_job_tail.
        """
        validation.check_command(command)
        if timeout_ms is not None and not 0 < timeout_ms <= _MOST_MS:
            raise UsageError(f"timeout_ms must be between 1 and {_MOST_MS}, got {timeout_ms}")
        limit_s = timeout_ms / 1000 if timeout_ms is not None else None

        async def on_machine(session: MachineSession) -> CallToolResult:
            if working_dir is not None:
                await files.check_folder(session, working_dir)
            if background:
                job_id = await session.start(command, timeout_s=limit_s, cwd=working_dir)
                return answer(
                    f"started as job {job_id} on {session.name}; watch it with vm_job_status and vm_job_tail",
                    _command_view(session.name, job_id=job_id),
                )
            async with progress(context, lambda seconds: f"running for {seconds} s"):
                return await _run(session, command, working_dir, limit_s or _DEFAULT_MS / 1000)

        return await self._connections.work(server, on_machine, repeatable=False)

    async def vm_stats(self, server: Server = None) -> Annotated[CallToolResult, StatsView]:
        """Show a machine's minutes left, processors, load, memory, disk and busiest processes."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            now = await stats(session)
            left = max(0.0, round((session.machine.expires_at - datetime.now(UTC)).total_seconds() / 60, 1))
            busiest = [
                {
                    "pid": each.pid, "cpu_percent": each.cpu_percent, "memory_mb": each.memory_mb, "age_s": each.age_s,
                    "command": each.command,
                }
                for each in now.busiest
            ]  # fmt: skip
            notes = _notes(now) if session.machine.provider == "local" else []
            lines = [
                f"{session.name}: {left} min left, {now.cpus} processors, load {' '.join(f'{value:g}' for value in now.load)}",
                f"memory: {now.memory_available_mb} of {now.memory_total_mb} MB free; "
                f"disk: {now.disk_free_mb} of {now.disk_total_mb} MB free; {now.processes} processes",
                *(f"[{note}]" for note in notes),
                *(
                    f"  {each.pid}: {each.cpu_percent:g}% cpu, {each.memory_mb:g} MB, {each.age_s} s: {each.command[:120]}"
                    for each in now.busiest
                ),
            ]
            view = {
                "server": session.name, "ttl_remaining_minutes": left, "cpus": now.cpus,
                "load": list(now.load), "memory_total_mb": now.memory_total_mb,
                "memory_available_mb": now.memory_available_mb, "disk_total_mb": now.disk_total_mb,
                "disk_free_mb": now.disk_free_mb, "processes": now.processes, "busiest": busiest, "notes": notes,
            }  # fmt: skip
            return answer("\n".join(lines), view)

        return await self._connections.work(server, on_machine, repeatable=True)

    async def vm_sweep_orphans(
        self,
        look_only: Annotated[bool, Field(description="List them without ending any.")] = False,
        server: Server = None,
    ) -> Annotated[CallToolResult, Swept]:
        """End left-over processes: those started by a command (vm_bash, `gibil run`) whose shell has ended, or by a background
        job that has ended. SIGTERM, after two seconds SIGKILL. Returns the processes.

        Running commands and jobs, services and other set-up of .gibil.yml, and terminals of people are left alone.
        """

        async def on_machine(session: MachineSession) -> CallToolResult:
            found, ended = await stray_processes.sweep(session, look_only=look_only)
            views = [
                {
                    "pid": each.pid,
                    "command": each.words,
                    "started_by": each.tag if each.leader else f"job {each.tag}",
                }
                for each in found[:MOST_PROCESSES]
            ]
            lines = [f"  {each.pid}: {each.words[:200]}" for each in found[:MOST_PROCESSES]]
            if len(found) > MOST_PROCESSES:
                lines.append(f"  and {len(found) - MOST_PROCESSES} more")
            if not found:
                text = f"no left-over processes on {session.name}"
            elif look_only:
                text = f"{len(found)} left-over processes on {session.name}:"
            else:
                text = f"ended {len(found)} on {session.name}:" if ended else f"some of these have not ended on {session.name}:"
            return answer(
                "\n".join([text, *lines]),
                {"server": session.name, "processes": views, "left_out": len(found) - len(views), "ended": ended},
            )

        return await self._connections.work(server, on_machine, repeatable=True)


def _notes(now: Stats) -> list[str]:
    """Return which of a local machine's numbers are its host's, and why."""
    shared = [part for part, own in (("memory", now.memory_is_its_own), ("disk", now.disk_is_its_own)) if not own]
    if not shared:
        return []
    shared_text = f"{' and '.join(shared)} {'are' if len(shared) > 1 else 'is'} its host's"
    if now.limits_are_known:
        return [f"{shared_text}: less is available than the machine may use"]
    return [
        f"{shared_text}: the limits of a local machine's size are below them; this machine's daemon was started by an "
        "older version, which does not report them"
    ]


async def _run(session: MachineSession, command: str, cwd: str | None, timeout_s: float) -> CallToolResult:
    excerpts = {"stdout": Excerpt(STDOUT_BYTES), "stderr": Excerpt(STDERR_BYTES)}
    began = time.monotonic()
    outcome = await session.run(
        command,
        timeout_s=timeout_s,
        on_output=lambda stream, data: excerpts[stream].add(data),
        keep_output=False,
        cwd=cwd,
    )
    took = round(time.monotonic() - began, 2)
    for line in await session.blocked(began):
        excerpts["stderr"].add(f"gibil: {line}\n".encode())
    stdout, stderr = (excerpt.text(_HINT) for excerpt in excerpts.values())
    left_out = sum(excerpt.parts()[1] for excerpt in excerpts.values())
    ended = f"killed after {timeout_s:g} s, exit code" if outcome.timed_out else "exit code"
    lines = [f"[{ended} {outcome.exit_code}; {took} s on {session.name}]", *streams(stdout, stderr)]
    view = _command_view(
        session.name, stdout, stderr, outcome.exit_code, timed_out=outcome.timed_out, took=took, left_out=left_out
    )
    return answer("\n".join(lines), view)


def _command_view(
    server: str,
    stdout: str = "",
    stderr: str = "",
    exit_code: int | None = None,
    *,
    timed_out: bool = False,
    took: float = 0.0,
    left_out: int = 0,
    job_id: str | None = None,
) -> dict[str, object]:
    view: dict[str, object] = {
        "server": server, "stdout": stdout, "stderr": stderr, "exit_code": exit_code, "timed_out": timed_out,
        "duration_s": took, "left_out_bytes": left_out,
    }  # fmt: skip
    return view if job_id is None else {**view, "job_id": job_id}
