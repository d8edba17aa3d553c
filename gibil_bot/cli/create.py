"""`gibil create`: machines for people and agents."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.completers import complete_sizes
from gibil_bot.cli.creation import create_machines, keep_interrupted
from gibil_bot.cli.machine import (
    connected,
    provider_option,
    report_cleanup,
    report_connection,
    report_recovered,
    run_async,
    stderr_write,
)
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.errors import GibilError

if TYPE_CHECKING:
    from gibil_bot.machines.request import CreateRequest
    from gibil_bot.machines.session import MachineSession, TaskOutcome


@click.command()
@click.option("--name", help="Small letters, digits and dashes; made up if absent.")
@click.option("--repo", metavar="REPO", help="A URL, owner/repo on GitHub, or a checkout here; it comes to /root/project.")
@click.option("--branch", metavar="BRANCH", help="Of the repository; its default branch, or what is checked out.")
@click.option(
    "--ttl", metavar="DURATION", help="After that it is burned: 90s, 20m, 2h; a bare number is minutes.  [default: 60m]"
)
@click.option("--fleet", type=click.IntRange(1, 20), metavar="N", help="N machines of the same: NAME-1 … NAME-N.")
@provider_option
@click.option("--size", metavar="SIZE", help="small, medium or large.", shell_complete=complete_sizes)
@click.option("--server-type", metavar="TYPE", help="The provider's own name of a machine type; beats --size.")
@click.option("--location", metavar="PLACE", help="Where it stands, by the provider's name.")
@click.option("--image", metavar="IMAGE", help="What it starts from, by the provider's name.")
@click.option("--env", "env", multiple=True, metavar="NAME=VALUE", help="For its tasks and every command; repeatable.")
@click.option("--wait", type=click.Choice(["ready", "tasks"]), help="Return when the code is set up, or when the tasks ended.")
@json_option
def create(
    name: str | None,
    repo: str | None,
    branch: str | None,
    ttl: str | None,
    fleet: int | None,
    provider: str | None,
    size: str | None,
    server_type: str | None,
    location: str | None,
    image: str | None,
    env: tuple[str, ...],
    wait: str | None,
    as_json: bool,
) -> None:
    """Forge a machine: yours for an hour, or for as long as --ttl says.

    Returns when SSH answers. With --repo the machine then clones it to /root/project, sets up what its .gibil.yml asks for
    (the file /root/.gibil-ready says so) and runs its tasks (/root/.gibil-tasks-done or /root/.gibil-tasks-failed);
    --wait waits for that. Exit status 1: a task failed.

    \b
    gibil create --name agent-task --repo https://github.com/you/project --ttl 20 --json
    gibil create --repo . --wait tasks
    gibil create --fleet 5 --size medium --env CI=1
    """
    from gibil_bot.machines import validation

    given = validation.environment(env)
    if repo is None and branch is None:  # with a repository there is more that may be refused, and git takes longer anyway
        _begin(name, ttl, size, provider)
    from gibil_bot.machines.request import CreateRequest

    request = CreateRequest(
        name=name, repo=repo, branch=branch, ttl=ttl, size=size, server_type=server_type, location=location, image=image,
        env=given,
    )  # fmt: skip
    sys.exit(run_async(_create(request, fleet, provider, wait, as_json)))


def _begin(name: str | None, ttl: str | None, size: str | None, provider: str | None) -> None:
    """Start what creating a machine waits for, while other input is read. Raises UsageError, ConfigurationError."""
    from gibil_bot.config import load_settings
    from gibil_bot.machines import validation
    from gibil_bot.providers import prestart

    settings = load_settings()
    validation.check(name=name, ttl=ttl, size=size, max_ttl_s=settings.max_ttl_s)
    if provider in (None, settings.provider):
        prestart(settings)


async def _create(request: CreateRequest, fleet: int | None, provider: str | None, wait: str | None, as_json: bool) -> int:
    from gibil_bot.cli.run import say_blocked
    from gibil_bot.machines.costs import cost_view
    from gibil_bot.views import machine_created

    began = time.monotonic()
    async with connected(provider) as machines:
        await report_recovered(machines)  # the name that is asked for may be one of these
        sessions = await create_machines(machines, request, fleet, as_json)
        failed = False
        names = [session.name for session in sessions]
        views = [machine_created(each.machine) for each in sessions]
        view: dict[str, object] = views[0]
        if fleet is not None:
            view = {"fleet_id": sessions[0].machine.labels["fleet"], "instances": views}
        try:
            for session, its_view in zip(sessions, views, strict=True):
                its_view |= await cost_view(machines.forge.provider, session.machine)
            if wait is not None:
                for session, its_view in zip(sessions, views, strict=True):
                    failed |= not await _wait(session, its_view, wait)
                    await say_blocked(session, began)
        except asyncio.CancelledError:
            return await keep_interrupted(
                machines, sessions, view, f"waiting for {'the tasks' if wait == 'tasks' else wait}", as_json
            )
        except BaseException:
            # Their names have not been reported: they would only cost.
            await asyncio.shield(asyncio.ensure_future(machines.destroy(names)))
            print_message(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} destroyed")
            raise
        finally:
            for session in sessions:
                await session.close()
        if as_json:
            print_json(view)
        else:
            print_text("".join(f"{name}\n" for name in names))
            print_message(f"log in: gibil ssh {names[0]}")
        machines.told(*names)
        await report_cleanup(machines)
    return GibilError.exit_status if failed else 0


async def _wait(session: MachineSession, view: dict[str, object], wait: str) -> bool:
    """Until it is ready, or its tasks have ended; into the JSON how that went. False: something failed."""
    session.on_connection = report_connection
    if wait == "ready":
        ready = await session.wait_ready()
        view["ready"] = ready
        if not ready:
            for task in await session.tasks():
                print_message(f"{session.name}: {task.name} failed; gibil logs {session.name} says why")
        return ready
    tasks = await session.wait_tasks(lambda stream, data: stderr_write(data))
    failed = not await session.has_succeeded()
    view["ready"] = await session.wait_ready()
    view["tasks"] = "failure" if failed else "success"
    view["task_results"] = [
        {"name": task.name, "status": task.status, "exit_code": task.exit_code, "duration_s": task.duration_s} for task in tasks
    ]
    _show_tasks(session.name, tasks)
    return not failed


def _show_tasks(name: str, tasks: list[TaskOutcome]) -> None:
    paint = Paint(sys.stderr)
    for task in tasks:
        shown = (paint.good if task.status in ("success", "skipped") else paint.bad)(task.status)
        print_message(f"{name}: {task.name}: {shown} ({task.duration_s:.2f} s)")
