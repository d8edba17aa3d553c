"""`gibil logs` and `gibil jobs`: what goes on, and went on, on a machine in the background."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.complete import complete_jobs
from gibil_bot.cli.machine import PassedOn, name_argument, opened, provider_option, run_async, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_text, say
from gibil_bot.ssh.answers import printable

if TYPE_CHECKING:
    from gibil_bot.machines.session import MachineSession
    from gibil_bot.ssh.job_list import JobEntry


@click.command()
@name_argument
@click.argument("job", required=False, metavar="[JOB]", shell_complete=complete_jobs)
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends; a lost connection is made again.")
@provider_option
@json_option
def logs(name: str, job: str | None, follow: bool, provider: str | None, as_json: bool) -> None:
    """What a machine's set-up and tasks have printed, or a background job.

    Ctrl-C ends the following, and not the job.

    \b
    gibil logs agent-task -f
    gibil logs agent-task run-1f2e3d4c
    """
    sys.exit(run_async(_logs(name, job, follow, provider, as_json)))


async def _logs(name: str, job: str | None, follow: bool, provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines.remote_layout import JOB_ID

    async with opened(name, provider) as live:
        job_id = job or JOB_ID
        known = {entry.id for entry in await live.jobs()}
        if follow and (job is not None or job_id in known):
            return await _print(lambda on_output: live.follow(job_id, on_output), name, job_id, as_json)
        return await _print(lambda on_output: _print_once(live, job, on_output), name, job_id, as_json)


async def _print_once(live: MachineSession, job: str | None, on_output: Callable[[str, bytes], None]) -> None:
    await live.print_log(job, on_output)


async def _print(
    work: Callable[[Callable[[str, bytes], None]], Awaitable[int | None]], name: str, job_id: str, as_json: bool
) -> int:
    """Passed through, or gathered into one JSON value with the exit status of a job that was followed to its end."""
    if as_json:
        kept: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
        exit_code = await work(lambda stream, data: kept[stream].append(data))
        texts = {stream: b"".join(blocks).decode("utf-8", "replace") for stream, blocks in kept.items()}
        print_json({"name": name, "job_id": job_id, **texts, "exit_code": exit_code})
        return 0
    task = asyncio.current_task()
    assert task is not None
    passed_on = PassedOn(task.cancel)
    try:
        await work(passed_on)
    except asyncio.CancelledError:
        if passed_on.broken is not None:
            task.uncancel()
            raise passed_on.broken from None
        raise
    return 0


@click.command()
@name_argument
@provider_option
@json_option
def jobs(name: str, provider: str | None, as_json: bool) -> None:
    """The background jobs of a machine.

    \b
    gibil jobs agent-task
    gibil jobs agent-task --json | jq -r '.[] | select(.status == "running") | .job_id'
    """
    sys.exit(run_async(_jobs(name, provider, as_json)))


async def _jobs(name: str, provider: str | None, as_json: bool) -> int:
    async with opened(name, provider) as live:
        entries = await live.jobs()
    if as_json:
        print_json([_view(entry) for entry in entries])
        return 0
    if not entries:
        say(f"{name} has no jobs; start one: gibil run {name} COMMAND --background", sys.stderr)
        return 0
    paint = Paint(sys.stdout)
    now = datetime.now(UTC)
    rows: list[tuple[str, ...]] = [("JOB", "STATUS", "EXIT", "TOOK", "COMMAND")]
    for entry in entries:
        seconds = max(0.0, ((entry.ended_at or now) - entry.started_at).total_seconds())
        exit_status = "-" if entry.exit_status is None else str(entry.exit_status)
        first = entry.script.partition("\n")[0][:60]
        command = "what .gibil.yml asks for" if not entry.script else printable(first)
        rows.append((printable(entry.id), entry.status, exit_status, f"{seconds:.0f}s", command))
    print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
    return 0


def _view(entry: JobEntry) -> dict[str, object]:
    from gibil_bot.views import timestamp

    return {
        "job_id": entry.id,
        "status": entry.status,
        "exit_code": entry.exit_status,
        "started_at": timestamp(entry.started_at),
        "ended_at": timestamp(entry.ended_at),
        "command": entry.script or None,
    }
