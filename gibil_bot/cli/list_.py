"""`gibil list`: the existing machines."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cli.machine import connected, provider_option, report_cleanup, run_async, settings_of, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.errors import GibilError
from gibil_bot.ssh.answers import printable

if TYPE_CHECKING:
    from gibil_bot.machines.service import MachineService
    from gibil_bot.model import Machine

WARN_BEFORE_MINUTES = 5.0


@click.command(name="list")
@click.option("--all-providers", is_flag=True, help="Machines of every provider that is configured here.")
@provider_option
@json_option
def list_(all_providers: bool, provider: str | None, as_json: bool) -> None:
    """List machines.

    The list comes from the provider: other computers with the same access see the same one. The machines of the bot are listed
    with their run. Expired machines are burned first.

    \b
    gibil list
    gibil list --json | jq -r '.[].name'
    """
    sys.exit(run_async(_list(all_providers, provider, as_json)))


async def _list(all_providers: bool, provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines.service import usable_providers
    from gibil_bot.views import machine_listed

    now = datetime.now(UTC)
    views: list[dict[str, Any]] = []
    failed: GibilError | None = None
    settings = settings_of(provider)
    for name in usable_providers(settings) if all_providers else (settings.provider,):
        try:
            async with connected(name) as machines:
                found = await machines.list_machines()
                destroyed = await report_cleanup(machines)
                for machine in (each for each in found if each.name not in destroyed):
                    views.append({**machine_listed(machine, now), **await _cost(machines, machine)})
        except GibilError as error:
            if not all_providers:
                raise
            print_message(f"{name}: {error.message}")
            failed = error
    if as_json:
        print_json(views)
    else:
        _show(views)
    return failed.exit_status if failed is not None else 0


async def _cost(machines: MachineService, machine: Machine) -> dict[str, object]:
    from gibil_bot.machines.costs import cost_view

    return await cost_view(machines.factory.provider, machine)


def _show(views: list[dict[str, Any]]) -> None:
    if not views:
        print_message("there are no machines; to create one: gibil create")
        return
    paint = Paint(sys.stdout)
    rows: list[tuple[str, ...]] = [("NAME", "PROVIDER", "STATUS", "ADDRESS", "LEFT", "FOR")]
    for view in views:
        run = view["labels"].get("run")
        purpose = f"run {run}" if run else view["repo"] or ""
        row = (view["name"], view["provider"], view["status"], view["ip"] or "-", _left(view), purpose)
        rows.append(tuple(printable(str(cell)) for cell in row))
    soon = [view["ttl_remaining_minutes"] < WARN_BEFORE_MINUTES for view in views]

    def style(number: int, line: str) -> str:
        if number == 0:
            return paint.bold(line)
        return paint.warn(line) if soon[number - 1] else line

    print_text(table(rows, style=style))
    for view, ends in zip(views, soon, strict=True):
        if ends:
            name = view["name"]
            print_message(f"{name} expires in {_left(view)}; to extend it: gibil extend {name} 30m")


def _left(view: dict[str, Any]) -> str:
    minutes = float(view["ttl_remaining_minutes"])
    if minutes < 1:
        return f"{max(0, round(minutes * 60))}s"
    return f"{int(minutes)}m" if minutes < 120 else f"{int(minutes) // 60}h{int(minutes) % 60:02}m"
