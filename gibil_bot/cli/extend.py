"""`gibil extend`: move the expiry of a machine."""

from __future__ import annotations

import sys

import click

from gibil_bot.cli.machine import connected, name_argument, provider_option, run_async
from gibil_bot.cli.output import json_option, print_json, print_message


@click.command()
@name_argument
@click.argument("duration", metavar="DURATION")
@provider_option
@json_option
def extend(name: str, duration: str, provider: str | None, as_json: bool) -> None:
    """Extend a machine's time to live by DURATION: 90s, 20m, 2h; a bare number is minutes.

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
        print_message(f"{name} now expires at {timestamp(machine.expires_at)}")
    return 0
