"""`gibil branch`: a machine for one branch of the current checkout."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.creation import create_machines, keep_interrupted
from gibil_bot.cli.machine import connected, provider_option, report_cleanup, report_connection, run_async, settings_of
from gibil_bot.cli.output import json_option, print_json, print_text
from gibil_bot.errors import GibilError, UsageError

if TYPE_CHECKING:
    from gibil_bot.machines.session import MachineSession


@click.command()
@click.argument("git_branch", metavar="GIT-BRANCH")
@click.option("--ttl", metavar="DURATION", help="Time until it is burned: 90s, 20m, 2h; a bare number is minutes.")
@click.option("--run", "command", metavar="COMMAND", help="Run this in /root/project once it is ready.")
@provider_option
@json_option
def branch(git_branch: str, ttl: str | None, command: str | None, provider: str | None, as_json: bool) -> None:
    """Forge a machine for one branch of this checkout's origin.

    The machine's name is derived from the branch's. With --run: waits until the branch is cloned and set up, runs the command,
    and ends with its exit status; the machine exists until its expiry.

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
        raise UsageError(
            "this folder is not a git checkout with a remote called 'origin'; change to one, or use gibil create --repo …"
        )
    request = CreateRequest(repo=url, branch=git_branch, ttl=ttl, made_by="gibil branch")
    request = replace(request, name=validation.name_of_branch(git_branch))
    status = 0
    began = time.monotonic()
    async with connected(provider) as machines:
        (session,) = await create_machines(machines, request, None, as_json)
        view = machine_created(session.machine)
        try:
            if command is not None:
                status = await _run_there(session, command, view, as_json, began)
        except asyncio.CancelledError:
            return await keep_interrupted(machines, [session], view, f"working on {git_branch}", as_json, named=command is None)
        finally:
            await session.close()
            machines.mark_reported(session.name)  # the machine remains however this ends, and the progress has named it
        if as_json:
            print_json(view)
        elif command is None:
            print_text(f"{session.name}\n")
        await report_cleanup(machines)
    return status


async def _run_there(session: MachineSession, command: str, view: dict[str, object], as_json: bool, began: float) -> int:
    session.on_connection = report_connection
    from gibil_bot.cli import stdin as our_stdin
    from gibil_bot.cli.run import outcome_view, print_blocked, run_in_session

    ready = await session.wait_ready()
    await print_blocked(session, began)
    if not ready:
        raise GibilError(f"{session.name} did not become ready; see gibil logs {session.name}", code="PROVISION")
    command = f"cd /root/project || exit 1\n{command}"
    stdin = our_stdin.forward(None)
    if as_json:
        began = time.monotonic()
        outcome = await session.run(command, stdin=stdin if stdin is not None else b"")
        await print_blocked(session, began)
        view["run"] = outcome_view(outcome)
        return outcome.exit_code
    return await run_in_session(session, command, None, {}, stdin)
