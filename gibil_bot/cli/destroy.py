"""`gibil destroy`: destroy machines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.completers import complete_fleets, complete_names
from gibil_bot.cli.machine import connected, provider_option, report_cleanup, run_async
from gibil_bot.cli.output import json_option, print_json, print_message
from gibil_bot.errors import UsageError

if TYPE_CHECKING:
    from gibil_bot.machines.service import DestroyResult


@click.command()
@click.argument("names", nargs=-1, metavar="NAME...", shell_complete=complete_names)
@click.option("--all", "everything", is_flag=True, help="All of your machines, but not those of the bot's runs.")
@click.option("--fleet", metavar="ID", help="All machines of a fleet.", shell_complete=complete_fleets)
@click.option("--force", is_flag=True, help="With --all: also the machines of the bot's runs.")
@provider_option
@json_option
def destroy(
    names: tuple[str, ...], everything: bool, fleet: str | None, force: bool, provider: str | None, as_json: bool
) -> None:
    """Burn machines. A machine that doesn't exist is not a failure.

    Returns when they no longer exist. With one NAME, --json prints one value; with several, --all or --fleet, a list.

    \b
    gibil destroy agent-task --json
    gibil destroy --fleet molten-anvil-3f2a
    gibil destroy --all
    """
    if sum((bool(names), everything, fleet is not None)) != 1:
        raise UsageError("name the machines: NAME..., --fleet ID or --all")
    if force and not everything:
        raise UsageError("--force needs --all")
    sys.exit(run_async(_destroy(names, everything, fleet, force, provider, as_json)))


async def _destroy(
    names: tuple[str, ...], everything: bool, fleet: str | None, force: bool, provider: str | None, as_json: bool
) -> int:
    async with connected(provider) as machines:
        if everything:
            results = await machines.destroy_all(with_runs=force)
        elif fleet is not None:
            results = await machines.destroy_fleet(fleet)
        else:
            results = await machines.destroy(names)
            if len(names) == 1 and results[0].problem is not None:
                raise results[0].problem
        await report_cleanup(machines)
    for result in results:
        if result.problem is not None:
            print_message(f"{result.name}: {result.problem.message}")
        elif not as_json:
            print_message(f"{result.name} {'is destroyed' if result.was_there else 'did not exist'}")
    if as_json:
        views = [_view(result) for result in results]
        print_json(views[0] if len(names) == 1 else views)
    elif not results:
        print_message("no machine to destroy")
    return max((result.problem.exit_status for result in results if result.problem is not None), default=0)


def _view(result: DestroyResult) -> dict[str, object]:
    from gibil_bot.views import machine_destroyed

    if result.problem is None:
        return machine_destroyed(result.name, was_there=result.was_there)
    return {
        "name": result.name,
        "status": "running",
        "destroyed": False,
        "was_already_destroyed": False,
        "error": result.problem.message,
        "code": result.problem.code,
    }
