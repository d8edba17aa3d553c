"""`gibil list` and `gibil extend`: what there is, and for how long."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cli.create import tell_swept
from gibil_bot.cli.machine import connected, name_argument, provider_option, run_async, settings_of, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_text, say
from gibil_bot.errors import GibilError
from gibil_bot.ssh.answers import printable

if TYPE_CHECKING:
    from gibil_bot.machines.service import MachineService
    from gibil_bot.model import Machine

WARN_BEFORE_MINUTES = 5.0


@click.command(name="list")
@click.option("--all-providers", is_flag=True, help="Of every provider that is set up here.")
@provider_option
@json_option
def list_(all_providers: bool, provider: str | None, as_json: bool) -> None:
    """What machines there are.

    The provider's own list: other laptops with the same access see the same. The bot's machines are in it with their run.
    What is beyond its time is burned on the way.

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
                burned = await tell_swept(machines)
                for machine in (each for each in found if each.name not in burned):
                    views.append({**machine_listed(machine, now), **await _cost(machines, machine)})
        except GibilError as error:
            if not all_providers:
                raise
            say(f"{name}: {error.message}", sys.stderr)
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
        say("there are no machines; forge one: gibil create", sys.stderr)
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
            say(f"{name} is burned in {_left(view)}; more time: gibil extend {name} 30m", sys.stderr)


def _left(view: dict[str, Any]) -> str:
    minutes = float(view["ttl_remaining_minutes"])
    if minutes < 1:
        return f"{max(0, round(minutes * 60))}s"
    return f"{int(minutes)}m" if minutes < 120 else f"{int(minutes) // 60}h{int(minutes) % 60:02}m"


@click.command()
@name_argument
@click.argument("duration", metavar="DURATION")
@provider_option
@json_option
def extend(name: str, duration: str, provider: str | None, as_json: bool) -> None:
    """Let a machine live longer, by DURATION: 90s, 20m, 2h; a bare number is minutes.

    \b
    gibil extend agent-task 30m
    """
    sys.exit(run_async(_extend(name, duration, provider, as_json)))


async def _extend(name: str, duration: str, provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines import validation
    from gibil_bot.views import machine_extended, timestamp

    seconds = validation.duration_seconds(duration)
    async with connected(provider) as machines:
        machine = await machines.extend(name, seconds)
    if as_json:
        print_json(machine_extended(machine))
    else:
        say(f"{name} lives until {timestamp(machine.expires_at)}", sys.stderr)
    return 0
