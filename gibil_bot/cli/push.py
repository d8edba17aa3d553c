"""`gibil push`: commits that were made on a machine, pushed from here."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.machine import name_argument, opened, printed, provider_option, run_async, settings_of
from gibil_bot.cli.output import json_option, print_json, say

if TYPE_CHECKING:
    from gibil_bot.sandbox.commits import Commits


@click.command()
@name_argument
@click.option("--branch", metavar="BRANCH", help="Where to push to; the branch that is checked out on the machine.")
@click.option("--with-workflows", is_flag=True, help="Push changes to .github/workflows, too.")
@provider_option
@json_option
def push(name: str, branch: str | None, with_workflows: bool, provider: str | None, as_json: bool) -> None:
    """Push the commits that were made on a machine, from here.

    The commits come off the machine as a bundle, are checked, and are pushed to the repository that the machine was forged
    with, with your own credentials and never by force. The machine sees none of them. Where git has none for GitHub, the token
    in GH_TOKEN or GITHUB_TOKEN is used, or gh's.

    \b
    gibil push agent-task --branch agent/parser
    """
    sys.exit(run_async(_push(name, branch, with_workflows, provider, as_json)))


def say_pushed(found: Commits) -> None:
    for subject in found.subjects:
        say(f"  {printed(subject)}", sys.stderr)
    amount = f"{counted(len(found.subjects), 'commit')}, {counted(len(found.files), 'file')}"
    say(f"{amount}, pushed to {found.branch} of {found.url}", sys.stderr)


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


async def _push(name: str, branch: str | None, with_workflows: bool, provider: str | None, as_json: bool) -> int:
    from gibil_bot.sandbox import commits

    github_url = settings_of(provider).github_url
    async with opened(name, provider) as live:
        async with commits.take(live, branch, with_workflows=with_workflows, github_url=github_url) as found:
            await commits.push(found)
    say_pushed(found)
    if as_json:
        print_json(
            {
                "name": name,
                "repo": found.url,
                "branch": found.branch,
                "commit": found.head,
                "commits": len(found.subjects),
                "files": list(found.files),
            }
        )
    return 0
