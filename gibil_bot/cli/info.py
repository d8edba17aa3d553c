"""`gibil info`: everything about one machine."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cli.machine import connected, name_argument, provider_option, run_async
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.errors import GibilError, MachineNotFound
from gibil_bot.ssh.answers import printable

if TYPE_CHECKING:
    from gibil_bot.machines.service import MachineService
    from gibil_bot.model import Machine

_ANSWERS_S = 15.0
_JOBS = 50
"""The newest jobs; `gibil jobs` lists all."""


@click.command()
@name_argument
@provider_option
@json_option
def info(name: str, provider: str | None, as_json: bool) -> None:
    """Print everything about one machine.

    From the provider: address, times, price, labels. From the machine: processors, memory, disk, its busiest processes, jobs,
    tasks. A machine that doesn't answer within 15 seconds is described without these, and `problem` has the reason.

    \b
    gibil info agent-task
    gibil info agent-task --json | jq .stats.memory_available_mb
    """
    sys.exit(run_async(_info(name, provider, as_json)))


async def _info(name: str, provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines.costs import cost_view
    from gibil_bot.views import machine_created, machine_listed

    async with connected(provider) as machines:
        machine = await machines.get(name)
        created = machine_created(machine)
        view: dict[str, Any] = {
            **machine_listed(machine, datetime.now(UTC)),
            "port": created["port"],
            "user": machine.endpoint.username,
            "unix_path": machine.endpoint.unix_path,
            "host_key": machine.endpoint.host_key,
            "ssh_command": created["ssh_command"],
            "commit": machine.labels.get("commit"),
            "branch": machine.labels.get("branch"),
            "fleet": machine.labels.get("fleet"),
            "run": machine.labels.get("run"),
            **await cost_view(machines.factory.provider, machine),
            **await _from_machine(machines, machine),
        }
    if as_json:
        print_json(view)
    else:
        _show(view)
    return 0


async def _from_machine(machines: MachineService, machine: Machine) -> dict[str, object]:
    """Return what only the machine itself knows; None for each part, and `problem`, if it doesn't answer."""
    from gibil_bot.machines.session import task_view
    from gibil_bot.machines.tools.stats import stats, stats_view
    from gibil_bot.ssh.jobs import job_view

    unknown: dict[str, object] = {"ready": None, "stats": None, "jobs": None, "task_results": None}
    try:
        async with asyncio.timeout(_ANSWERS_S):
            session = await machines.open(machine.name)
            try:
                found, jobs, tasks, ready = await asyncio.gather(
                    stats(session), session.jobs(), session.tasks(), session.is_ready()
                )
            finally:
                await session.close()
    except MachineNotFound:
        raise
    except TimeoutError:
        return {**unknown, "problem": f"the machine didn't answer within {_ANSWERS_S:g} s"}
    except GibilError as error:
        return {**unknown, "problem": error.message}
    return {
        "ready": ready,
        "stats": stats_view(found),
        "jobs": [job_view(job) for job in jobs[-_JOBS:]],
        "task_results": [task_view(task) for task in tasks],
        "problem": None,
    }


def _show(view: dict[str, Any]) -> None:
    paint = Paint(sys.stdout)
    address = f"{view['user']}@{view['ip']}:{view['port']}" if view["ip"] else "on this computer"
    rows = [
        ("name", view["name"]),
        ("provider", view["provider"]),
        ("status", view["status"] if view["ready"] is not False else f"{view['status']}, its code isn't set up"),
        ("address", address),
        ("created", view["created_at"]),
        ("expires", f"{view['expires_at']}, in {view['ttl_remaining_minutes']:g} min"),
        ("cost", _cost(view)),
        ("repository", view["repo"]),
        ("branch", view["branch"]),
        ("commit", view["commit"]),
        ("fleet", view["fleet"]),
        ("run", view["run"]),
        *_stats_rows(view["stats"]),
        *(("task", f"{task['name']}: {task['status']} ({task['duration_s']:.1f} s)") for task in view["task_results"] or ()),
        *(("job", f"{job['job_id']}: {job['status']}") for job in view["jobs"] or ()),
    ]
    shown = [(name, printable(str(value))) for name, value in rows if value]
    width = max(len(name) for name, _ in shown)
    print_text("".join(f"{paint.bold(name.ljust(width))}  {value}\n" for name, value in shown))
    if view["problem"]:
        print_message(view["problem"])


def _stats_rows(stats: dict[str, Any] | None) -> list[tuple[str, str]]:
    if stats is None:
        return []
    return [
        ("processors", f"{stats['cpus']}, load {' '.join(f'{load:.2f}' for load in stats['load'])}"),
        ("memory", f"{stats['memory_available_mb']} of {stats['memory_total_mb']} MB available"),
        ("disk", f"{stats['disk_free_mb']} of {stats['disk_total_mb']} MB free"),
        ("processes", f"{stats['processes']}"),
    ]


def _cost(view: dict[str, Any]) -> str:
    cost = view.get("cost")
    return f"{cost['so_far']} {cost['currency']} so far, {cost['hourly']} an hour" if cost else ""
