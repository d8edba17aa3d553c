"""`gibil push`: pushes commits that were made on a machine, with the user's credentials."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.machine import name_argument, opened, provider_option, run_async, settings_of
from gibil_bot.cli.output import json_option, print_json, print_message

if TYPE_CHECKING:
    from gibil_bot.commits.from_machine import Commits


@click.command()
@name_argument
@click.option("--branch", metavar="BRANCH", help="The branch to push to.  [default: gibil/NAME]")
@click.option("--with-workflows", is_flag=True, help="Also push changes to protected files, such as workflows and CLAUDE.md.")
@provider_option
@json_option
def push(name: str, branch: str | None, with_workflows: bool, provider: str | None, as_json: bool) -> None:
    """Push the commits that were made on a machine, with your own credentials.

    The commits are copied from the machine as a bundle, checked, and pushed to the branch gibil/NAME (or --branch) of the
    repository that the machine was created with, never by force. The machine never gets your credentials. If git has none
    for GitHub, the token in GH_TOKEN or GITHUB_TOKEN is used, or gh's.

    What was pushed on the machine (`git push` needs no credentials there) is pushed; without that, the commits of its HEAD.

    \b
    gibil push agent-task
    gibil push agent-task --branch agent/parser
    """
    sys.exit(run_async(_push(name, branch, with_workflows, provider, as_json)))


def print_pushed(found: Commits) -> None:
    from gibil_bot.commits.from_machine import pushed_lines

    for line in pushed_lines(found):
        print_message(line)


async def _push(name: str, branch: str | None, with_workflows: bool, provider: str | None, as_json: bool) -> int:
    from gibil_bot.commits import from_machine

    settings = settings_of(provider)
    async with opened(name, provider) as session:
        async with from_machine.fetch(
            session.machine, session.shell, branch, with_workflows=with_workflows, settings=settings
        ) as found:
            await from_machine.push(found, session.shell)
    print_pushed(found)
    if as_json:
        print_json({"name": name, **from_machine.pushed_view(found)})
    return 0
