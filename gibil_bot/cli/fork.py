"""`gibil fork`: machines with a copy of another one's disk."""

from __future__ import annotations

import asyncio
import sys

import click

from gibil_bot.cli.machine import connected, name_argument, provider_option, report_cleanup, report_recovered, run_async
from gibil_bot.cli.output import Interrupted, json_option, print_json, print_message, print_text


@click.command()
@name_argument
@click.option("--name", "new", metavar="NEW", help="The new machine's name.  [default: NAME and a random suffix]")
@click.option("--count", type=click.IntRange(1, 20), metavar="N", help="Forge N copies, NEW-1 … NEW-N, a fleet.")
@click.option(
    "--ttl", metavar="DURATION", help="Time until they are burned: 90s, 20m, 2h; a bare number is minutes.  [default: 60m]"
)
@click.option("--stop", is_flag=True, help="End the processes that run on NAME.")
@provider_option
@json_option
def fork(
    name: str, new: str | None, count: int | None, ttl: str | None, stop: bool, provider: str | None, as_json: bool
) -> None:
    """Create copies of a machine's disk, for parallel attempts. NAME goes on.

    The disk as it is now becomes a read-only layer below NAME and the new machines, each of which writes to its own disk, so
    nothing is copied. Processes don't continue in a copy: start servers again. No process may run on NAME meanwhile, so that
    the disk is complete; --stop ends them. The variables of --env and of tasks stay. Other files in /run and /dev/shm are lost
    on NAME, too, and its open SSH connections close. Only for local machines: for others use gibil template.

    \b
    gibil fork agent-task --count 3
    gibil fork agent-task --name second-try --json
    gibil run agent-task 'killall node'; gibil fork agent-task
    """
    sys.exit(run_async(_fork(name, new, count, ttl, stop, provider, as_json)))


async def _fork(
    name: str, new: str | None, count: int | None, ttl: str | None, stop: bool, provider: str | None, as_json: bool
) -> int:
    from gibil_bot.views import machine_created

    async with connected(provider) as machines:
        await report_recovered(machines)
        forking = asyncio.ensure_future(machines.fork(name, new, count, ttl=ttl, stop=stop))
        try:
            sessions = await forking
        except asyncio.CancelledError:
            raise Interrupted("interrupted; the copies are destroyed") from None
        names = [session.name for session in sessions]
        views = [{**machine_created(session.machine), "forked_from": name} for session in sessions]
        for session in sessions:
            await session.close()
        if as_json:
            print_json({"fleet_id": sessions[0].machine.labels["fleet"], "instances": views} if count is not None else views[0])
        else:
            print_text("".join(f"{each}\n" for each in names))
            print_message(f"log in: gibil ssh {names[0]}")
        machines.mark_reported(*names)
        await report_cleanup(machines)
    return 0
