"""`gibil destroy`: burn machines."""

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
@click.option("--all", "everything", is_flag=True, help="All of yours; what the bot is working on stays.")
@click.option("--fleet", metavar="ID", help="All machines of a fleet.", shell_complete=complete_fleets)
@click.option("--force", is_flag=True, help="With --all: the bot's machines, too.")
@provider_option
@json_option
def destroy(
    names: tuple[str, ...], everything: bool, fleet: str | None, force: bool, provider: str | None, as_json: bool
) -> None:
    """Burn machines. One that is not there is no failure.

    Returns when they are gone. With one NAME, --json prints one value; with several, --all or --fleet a list.

    \b
    gibil destroy agent-task --json
    gibil destroy --fleet molten-anvil-3f2a
    gibil destroy --all
    """
    if sum((bool(names), everything, fleet is not None)) != 1:
        raise UsageError("say which machines: their names, or --fleet ID, or --all")
    if force and not everything:
        raise UsageError("--force belongs to --all")
    sys.exit(run_async(_destroy(names, everything, fleet, force, provider, as_json)))


async def _destroy(
    names: tuple[str, ...], everything: bool, fleet: str | None, force: bool, provider: str | None, as_json: bool
) -> int:
    async with connected(provider) as machines:
        if everything:
            burned = await machines.destroy_all(with_runs=force)
        elif fleet is not None:
            burned = await machines.destroy_fleet(fleet)
        else:
            burned = await machines.destroy(names)
            if len(names) == 1 and burned[0].problem is not None:
                raise burned[0].problem
        await report_cleanup(machines)
    for one in burned:
        if one.problem is not None:
            print_message(f"{one.name}: {one.problem.message}")
        elif not as_json:
            print_message(f"{one.name} {'is burned' if one.was_there else 'was not there'}")
    if as_json:
        views = [_view(one) for one in burned]
        print_json(views[0] if len(names) == 1 else views)
    elif not burned:
        print_message("there is nothing to burn")
    return max((one.problem.exit_status for one in burned if one.problem is not None), default=0)


def _view(burned: DestroyResult) -> dict[str, object]:
    from gibil_bot.views import machine_destroyed

    if burned.problem is None:
        return machine_destroyed(burned.name, was_there=burned.was_there)
    return {
        "name": burned.name,
        "status": "running",
        "destroyed": False,
        "was_already_destroyed": False,
        "error": burned.problem.message,
        "code": burned.problem.code,
    }
