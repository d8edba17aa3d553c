"""`gibil jobs`: the background jobs of a machine."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import click

from gibil_bot.cli.machine import name_argument, opened, provider_option, run_async, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.ssh.answers import printable


@click.command()
@name_argument
@provider_option
@json_option
def jobs(name: str, provider: str | None, as_json: bool) -> None:
    """List the background jobs of a machine.

    \b
    gibil jobs agent-task
    gibil jobs agent-task --json | jq -r '.[] | select(.status == "running") | .job_id'
    """
    sys.exit(run_async(_jobs(name, provider, as_json)))


async def _jobs(name: str, provider: str | None, as_json: bool) -> int:
    async with opened(name, provider) as session:
        entries = await session.jobs()
    if as_json:
        from gibil_bot.ssh.jobs import job_view

        print_json([job_view(entry) for entry in entries])
        return 0
    if not entries:
        print_message(f"{name} has no jobs; start one: gibil run {name} COMMAND --background")
        return 0
    paint = Paint(sys.stdout)
    now = datetime.now(UTC)
    rows: list[tuple[str, ...]] = [("JOB", "STATUS", "EXIT", "TOOK", "COMMAND")]
    for entry in entries:
        seconds = max(0.0, ((entry.ended_at or now) - entry.started_at).total_seconds())
        exit_status = "-" if entry.exit_status is None else str(entry.exit_status)
        first = entry.script.partition("\n")[0][:60]
        command = "set-up and tasks of .gibil.yml" if not entry.script else printable(first)
        rows.append((printable(entry.id), entry.status, exit_status, f"{seconds:.0f}s", command))
    print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
    return 0
