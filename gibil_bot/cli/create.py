"""`gibil create` and `gibil branch`: machines for people and agents."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cli.complete import complete_sizes
from gibil_bot.cli.machine import connected, on_end, provider_option, run_async, settings_of, stderr_write, tell_connection
from gibil_bot.cli.output import Interrupted, Paint, ReaderGone, fail, json_option, print_json, print_text, say
from gibil_bot.cli.progress import Progress
from gibil_bot.errors import GibilError, UsageError

if TYPE_CHECKING:
    from gibil_bot.machines.request import CreateRequest
    from gibil_bot.machines.service import MachineService
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

    order = CreateRequest(
        name=name, repo=repo, branch=branch, ttl=ttl, size=size, server_type=server_type, location=location, image=image,
        env=given,
    )  # fmt: skip
    sys.exit(run_async(_create(order, fleet, provider, wait, as_json)))


def _begin(name: str | None, ttl: str | None, size: str | None, provider: str | None) -> None:
    """Start what creating a machine waits for, while other input is read. Raises UsageError, ConfigurationError."""
    from gibil_bot.config import load_settings
    from gibil_bot.machines import validation
    from gibil_bot.providers import prestart

    settings = load_settings()
    validation.check(name=name, ttl=ttl, size=size, max_ttl_s=settings.max_ttl_s)
    if provider in (None, settings.provider):
        prestart(settings)


async def _create(order: CreateRequest, fleet: int | None, provider: str | None, wait: str | None, as_json: bool) -> int:
    from gibil_bot.cli.run import say_blocked
    from gibil_bot.machines.costs import cost_view
    from gibil_bot.views import machine_created

    began = time.monotonic()
    async with connected(provider) as machines:
        await tell_settled(machines)  # the name that is asked for may be one of these
        made = await _make(machines, order, fleet, as_json)
        failed = False
        names = [live.name for live in made]
        views = [machine_created(each.machine) for each in made]
        view: dict[str, object] = views[0]
        if fleet is not None:
            view = {"fleet_id": made[0].machine.labels["fleet"], "instances": views}
        try:
            for live, its_view in zip(made, views, strict=True):
                its_view |= await cost_view(machines.factory.provider, live.machine)
            if wait is not None:
                for live, its_view in zip(made, views, strict=True):
                    failed |= not await _wait(live, its_view, wait)
                    await say_blocked(live, began)
        except asyncio.CancelledError:
            return await _interrupted(machines, made, view, f"waiting for {'the tasks' if wait == 'tasks' else wait}", as_json)
        except BaseException:
            # Their names have not been reported: they would only cost.
            await asyncio.shield(asyncio.ensure_future(machines.destroy(names)))
            say(f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} destroyed", sys.stderr)
            raise
        finally:
            for live in made:
                await live.close()
        if as_json:
            print_json(view)
        else:
            print_text("".join(f"{name}\n" for name in names))
            say(f"log in: gibil ssh {names[0]}", sys.stderr)
        machines.told(*names)
        await tell_swept(machines)
    return GibilError.exit_status if failed else 0


async def _interrupted(
    machines: MachineService,
    made: Sequence[MachineSession],
    view: dict[str, object],
    doing: str,
    as_json: bool,
    *,
    named: bool = True,
) -> int:
    """Machines that can be used already are kept when the wait for them is interrupted: say how to go on. The exit status.

    `named`: their names go to stdout, as without the interruption. Where that can't be written (the terminal was closed) they
    are destroyed, as their names would stay unknown; raises Interrupted then.
    """
    from gibil_bot.views import timestamp

    # What follows takes a moment, and has to be printed exactly once.
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: None)
    names = [live.name for live in made]
    it, kept = ("it", "is kept") if len(names) == 1 else ("them", "are kept")
    first, until = names[0], timestamp(min(live.machine.expires_at for live in made))
    message = (
        f"interrupted while {doing}; {', '.join(names)} {kept} until {until}: use {it} (gibil ssh {first}, "
        f"gibil logs {first} -f), or destroy {it} (gibil destroy {' '.join(names)})"
    )
    try:
        if as_json:
            print_json({"error": "interrupted", "code": "INTERRUPTED", "message": message, "exit_code": 130, **view})
        elif named:
            print_text("".join(f"{name}\n" for name in names))
    except (ReaderGone, GibilError):
        await asyncio.shield(asyncio.ensure_future(machines.destroy(names)))
        raise Interrupted(f"interrupted; {', '.join(names)} {'is' if len(names) == 1 else 'are'} destroyed") from None
    say(message, sys.stderr)
    machines.told(*names)
    return 130


async def _make(machines: MachineService, order: CreateRequest, fleet: int | None, as_json: bool) -> list[MachineSession]:
    """Raises Interrupted when the machines created so far are destroyed."""
    begun: list[str] = []
    async with Progress() as progress:

        def on_phase(name: str, phase: str, seconds: float | None) -> None:
            if phase == "forge" and seconds is None:
                begun.append(name)
            progress.phase(name, phase, seconds)

        making = asyncio.create_task(machines.create_several(order, fleet, on_phase))
        try:
            made, notes = await asyncio.shield(making)
        except asyncio.CancelledError:
            progress.pause()
            raise Interrupted(await _call_off(machines, making, begun, as_json)) from None
        for note in notes:
            progress.say(f"gibil: {note}")
    return made


async def _call_off(machines: MachineService, making: asyncio.Task[Any], names: list[str], as_json: bool) -> str:
    """End a creation that was interrupted; return a sentence about its machines."""
    from gibil_bot.machines.validation import natural

    names = sorted(names, key=natural)
    many = len(names) > 1
    if names:
        say(
            f"interrupted before {', '.join(names)} {'were' if many else 'was'} ready: destroying {'them' if many else 'it'} … "
            "(Ctrl-C again leaves that to the next gibil command)",
            sys.stderr,
        )

    def leave() -> None:
        # At once: otherwise a request to a cloud is awaited until its timeout. The lock of our record ends with the process.
        os._exit(fail(Interrupted(_left_message(names)), as_json=as_json))

    # The loop has to read the first signal from its pipe before, or it would take it for the second.
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, leave)
    on_end(lambda: None)  # a closed terminal sends more than one signal
    making.cancel()
    await asyncio.wait({making})
    if making.cancelled() or making.exception() is not None:
        if not making.cancelled() and isinstance(making.exception(), GibilError):
            say(str(making.exception()), sys.stderr)
    else:  # it was ready at that very moment
        for live in making.result()[0]:
            await live.close()
        await machines.destroy(names)
    if not names:
        return _left_message([])
    left = names
    with contextlib.suppress(GibilError):  # what the provider says of it
        left = [name for name in names if await machines.factory.get(name) is not None]
    if not left:
        return f"interrupted; {', '.join(names)} {'are' if many else 'is'} destroyed"
    return _left_message(left)


def _left_message(names: list[str]) -> str:
    if not names:
        return "interrupted before a machine was created"
    return f"interrupted; {', '.join(names)} may still exist: the next gibil command destroys what is left"


async def tell_swept(machines: MachineService) -> list[str]:
    """Whoever comes by burns what is beyond its time or half made, and says so; the names."""
    half_made, burned = await asyncio.gather(tell_settled(machines), machines.sweep())
    if burned:
        say(f"burned, as their time was up: {', '.join(burned)}", sys.stderr)
    return half_made + burned


async def tell_settled(machines: MachineService) -> list[str]:
    """What became of machines whose maker was killed; the names of those that are burned."""
    burned = []
    for each in await machines.recover():
        name, maker = each.name, f"`{each.made_by}`"
        if each.burned:
            burned.append(name)
            say(f"burned {name}: a {maker} that was killed left it half made", sys.stderr)
        else:
            use = f"use it (gibil ssh {name}), or burn it (gibil destroy {name})"
            say(f"{name} was made by a {maker} that ended before it could say so: {use}", sys.stderr)
    return burned


async def _wait(live: MachineSession, view: dict[str, object], wait: str) -> bool:
    """Until it is ready, or its tasks have ended; into the JSON how that went. False: something failed."""
    live.on_connection = tell_connection
    if wait == "ready":
        ready = await live.wait_ready()
        view["ready"] = ready
        if not ready:
            for task in await live.tasks():
                say(f"{live.name}: {task.name} failed; gibil logs {live.name} says why", sys.stderr)
        return ready
    tasks = await live.wait_tasks(lambda stream, data: stderr_write(data))
    failed = not await live.has_succeeded()
    view["ready"] = await live.wait_ready()
    view["tasks"] = "failure" if failed else "success"
    view["task_results"] = [
        {"name": task.name, "status": task.status, "exit_code": task.exit_code, "duration_s": task.duration_s} for task in tasks
    ]
    _show_tasks(live.name, tasks)
    return not failed


def _show_tasks(name: str, tasks: list[TaskOutcome]) -> None:
    paint = Paint(sys.stderr)
    for task in tasks:
        shown = (paint.good if task.status in ("success", "skipped") else paint.bad)(task.status)
        say(f"{name}: {task.name}: {shown} ({task.duration_s:.2f} s)", sys.stderr)


@click.command()
@click.argument("git_branch", metavar="GIT-BRANCH")
@click.option("--ttl", metavar="DURATION", help="After that it is burned: 90s, 20m, 2h; a bare number is minutes.")
@click.option("--run", "command", metavar="COMMAND", help="Run this in /root/project once it is ready.")
@provider_option
@json_option
def branch(git_branch: str, ttl: str | None, command: str | None, provider: str | None, as_json: bool) -> None:
    """A machine for one branch of this checkout's origin.

    The machine's name is made of the branch's. With --run: waits until the branch is there and set up, runs the command, and
    ends with its exit status; the machine stays until its time is up.

    \b
    gibil branch feature/parser
    gibil branch main --ttl 30m --run "pytest -q"
    """
    sys.exit(run_async(_branch(git_branch, ttl, command, provider, as_json)))


async def _branch(git_branch: str, ttl: str | None, command: str | None, provider: str | None, as_json: bool) -> int:
    from gibil_bot.commits.remotes import check_branch
    from gibil_bot.machines import validation
    from gibil_bot.machines.request import CreateRequest
    from gibil_bot.machines.source import origin_url
    from gibil_bot.views import machine_created

    check_branch(git_branch)
    if command is not None:
        validation.check_command(command)
    settings_of(provider)
    url = await origin_url(Path())
    if url is None:
        raise UsageError("this folder is no git checkout with a remote called origin; go to one, or: gibil create --repo …")
    order = CreateRequest(repo=url, branch=git_branch, ttl=ttl, made_by="gibil branch")
    order = replace(order, name=validation.name_of_branch(git_branch))
    status = 0
    began = time.monotonic()
    async with connected(provider) as machines:
        (live,) = await _make(machines, order, None, as_json)
        view = machine_created(live.machine)
        try:
            if command is not None:
                status = await _run_there(live, command, view, as_json, began)
        except asyncio.CancelledError:
            return await _interrupted(machines, [live], view, f"working on {git_branch}", as_json, named=command is None)
        finally:
            await live.close()
            machines.told(live.name)  # the machine stays, however this ends, and was named while it was forged
        if as_json:
            print_json(view)
        elif command is None:
            print_text(f"{live.name}\n")
        await tell_swept(machines)
    return status


async def _run_there(live: MachineSession, command: str, view: dict[str, object], as_json: bool, began: float) -> int:
    live.on_connection = tell_connection
    from gibil_bot.cli import stdin as our_stdin
    from gibil_bot.cli.run import outcome_view, run_live, say_blocked

    ready = await live.wait_ready()
    await say_blocked(live, began)
    if not ready:
        raise GibilError(f"{live.name} did not become ready; gibil logs {live.name} says why", code="PROVISION")
    command = f"cd /root/project || exit 1\n{command}"
    stdin = our_stdin.passed_on(None)
    if as_json:
        began = time.monotonic()
        outcome = await live.run(command, stdin=stdin if stdin is not None else b"")
        await say_blocked(live, began)
        view["run"] = outcome_view(outcome)
        return outcome.exit_code
    return await run_live(live, command, None, {}, stdin)
