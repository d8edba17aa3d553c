"""`gibil logs`: the output of a machine's set-up and tasks, or of a background job."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.completers import complete_jobs
from gibil_bot.cli.machine import StreamCopier, name_argument, opened, provider_option, run_async
from gibil_bot.cli.output import json_option, print_json

if TYPE_CHECKING:
    from gibil_bot.machines.session import MachineSession


@click.command()
@name_argument
@click.argument("job", required=False, metavar="[JOB]", shell_complete=complete_jobs)
@click.option("--follow", "-f", is_flag=True, help="Follow the output until the job ends; a lost connection is opened again.")
@provider_option
@json_option
def logs(name: str, job: str | None, follow: bool, provider: str | None, as_json: bool) -> None:
    """Print the output of a machine's set-up and tasks, or of a background job.

    Ctrl-C ends the command, not the job.

    \b
    gibil logs agent-task -f
    gibil logs agent-task run-1f2e3d4c
    """
    sys.exit(run_async(_logs(name, job, follow, provider, as_json)))


async def _logs(name: str, job: str | None, follow: bool, provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines.remote_layout import JOB_ID

    async with opened(name, provider) as session:
        job_id = job or JOB_ID
        known = {entry.id for entry in await session.jobs()}
        if follow and (job is not None or job_id in known):
            return await _print(lambda on_output: session.follow(job_id, on_output), name, job_id, as_json)
        return await _print(lambda on_output: _print_once(session, job, on_output), name, job_id, as_json)


async def _print_once(session: MachineSession, job: str | None, on_output: Callable[[str, bytes], None]) -> None:
    await session.print_log(job, on_output)


async def _print(
    work: Callable[[Callable[[str, bytes], None]], Awaitable[int | None]], name: str, job_id: str, as_json: bool
) -> int:
    """Copy the output to our streams; or print it as one JSON value, with the exit status of a job that was followed to its
    end.
    """
    if as_json:
        collected: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        exit_code = await work(lambda stream, data: collected[stream].append(data))
        texts = {stream: b"".join(blocks).decode("utf-8", "replace") for stream, blocks in collected.items()}
        print_json({"name": name, "job_id": job_id, **texts, "exit_code": exit_code})
        return 0
    task = asyncio.current_task()
    assert task is not None
    copier = StreamCopier(task.cancel)
    try:
        await work(copier)
    except asyncio.CancelledError:
        if copier.broken is not None:
            task.uncancel()
            raise copier.broken from None
        raise
    return 0
