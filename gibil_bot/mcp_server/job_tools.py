"""The tools for background jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from gibil_bot.machines.session import MachineSession
from gibil_bot.machines.tools.job_output import find_job, read_output
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.results import JobCancelled, JobOutput, Jobs, JobStatus, Server, add, answer, streams
from gibil_bot.ssh.jobs import job_view

JOB_BYTES = 20_000
MOST_JOBS = 50
MOST_COMMAND = 500
_STATUS_BYTES = 2_000

JobId: TypeAlias = Annotated[str, Field(description="As vm_bash with background=true and vm_job_list return it.")]


class JobTools:
    def __init__(self, connections: MachineConnections) -> None:
        self._connections = connections

    def register(self, server: MCPServer[Any]) -> None:
        read_only = {"read_only_hint": True}
        add(server, self.vm_job_list, annotations=ToolAnnotations(title="List background jobs", **read_only))
        add(server, self.vm_job_status, annotations=ToolAnnotations(title="State of a background job", **read_only))
        add(server, self.vm_job_tail, annotations=ToolAnnotations(title="Output of a background job", **read_only))
        add(
            server,
            self.vm_job_cancel,
            annotations=ToolAnnotations(title="Kill a background job", destructive_hint=True, idempotent_hint=True),
        )

    async def vm_job_list(self, server: Server = None) -> Annotated[CallToolResult, Jobs]:
        """List the newest 50 background jobs of a machine, oldest first. The job `provision` sets it up and runs its tasks."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            jobs = await session.jobs()
            views = [_short(job_view(job)) for job in jobs[-MOST_JOBS:]]
            left_out = len(jobs) - len(views)
            lines = [_job_line(view) for view in views] or [f"{session.name} has no jobs"]
            if left_out:
                lines.insert(0, f"[{left_out} older jobs aren't shown]")
            return answer("\n".join(lines), {"server": session.name, "jobs": views, "left_out": left_out})

        return await self._connections.work(server, on_machine, repeatable=True)

    async def vm_job_status(self, job_id: JobId, server: Server = None) -> Annotated[CallToolResult, JobStatus]:
        """Show whether a background job is running, its exit code, and the end of its output."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            view = _short(job_view(await find_job(session, job_id)))
            out = await read_output(session, job_id, "stdout", None, _STATUS_BYTES)
            err = await read_output(session, job_id, "stderr", None, _STATUS_BYTES)
            text = "\n".join(
                [_job_line(view), *streams(out.text, err.text, "stdout, its end" if out.offset else "", "stderr, its end")]
            )
            tails = {
                "stdout_tail": out.text, "stderr_tail": err.text, "stdout_size": out.size, "stderr_size": err.size,
            }  # fmt: skip
            return answer(text, {"server": session.name, **view, **tails})

        return await self._connections.work(server, on_machine, repeatable=True)

    async def vm_job_tail(
        self,
        job_id: JobId,
        offset: Annotated[
            int | None,
            Field(description="Where to continue: next_offset of the previous call. Default: the end of the output."),
        ] = None,
        stream: Annotated[Literal["stdout", "stderr"], Field(description="`stdout` or `stderr`.")] = "stdout",
        server: Server = None,
    ) -> Annotated[CallToolResult, JobOutput]:
        """Read the output of a background job, at most 20 kB a call. Begin with offset=0, continue with next_offset."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            job = await find_job(session, job_id)
            piece = await read_output(session, job_id, stream, offset, JOB_BYTES)
            complete = job.status != "running" and piece.next >= piece.size
            view = {
                "server": session.name, "job_id": job_id, "stream": stream, "status": job.status, "exit_code": job.exit_status,
                "text": piece.text, "offset": piece.offset, "next_offset": piece.next, "size": piece.size, "complete": complete,
            }  # fmt: skip
            more = "that is all" if complete else f"continue with offset={piece.next}"
            head = f"[{stream} of {job_id}, {job.status}: bytes {piece.offset} to {piece.next} of {piece.size}; {more}]"
            return answer(f"{head}\n{piece.text}", view)

        return await self._connections.work(server, on_machine, repeatable=True)

    async def vm_job_cancel(self, job_id: JobId, server: Server = None) -> Annotated[CallToolResult, JobCancelled]:
        """Kill a background job with all its processes: SIGTERM, after five seconds SIGKILL."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            before = await find_job(session, job_id)
            await session.stop(job_id)
            after = await find_job(session, job_id)
            was_running = before.status == "running"
            view = {
                "server": session.name, "job_id": job_id, "status": after.status, "exit_code": after.exit_status,
                "was_running": was_running,
            }  # fmt: skip
            return answer(f"{job_id} is killed" if was_running else f"{job_id} had already ended", view)

        return await self._connections.work(server, on_machine, repeatable=True)


def _short(view: dict[str, object]) -> dict[str, object]:
    """Return the view of a job without the rest of a long command, which the agent has sent."""
    command = str(view["command"] or "")
    shown = command if len(command) <= MOST_COMMAND else f"{command[:MOST_COMMAND]} […]"
    return {**view, "command": shown or None}


def _job_line(view: dict[str, object]) -> str:
    ended = f", exit code {view['exit_code']}" if view["exit_code"] is not None else ""
    first = str(view["command"] or "set-up and tasks of .gibil.yml").partition("\n")[0][:120]
    return f"{view['job_id']}: {view['status']}{ended}, since {view['started_at']}: {first}"
