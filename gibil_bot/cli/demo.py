"""`gibil demo`: from a comment to a check run, on this computer alone."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from gibil_bot.cli.output import NoStream, ReaderGone, json_option, print_json
from gibil_bot.errors import GibilError, UsageError


@click.command()
@click.option("--failing", is_flag=True, help="Show a pull request that breaks a test.")
@click.option("--commit", is_flag=True, help="Comment `/gibil format`, and show the commit that comes back.")
@click.option("--agent", is_flag=True, help="Comment `/gibil fix`: an agent with a scripted model repairs a failing test.")
@click.option("--keep", is_flag=True, help="Keep the bot and its GitHub running, and print how to comment with curl.")
@json_option
def demo(failing: bool, commit: bool, agent: bool, keep: bool, as_json: bool) -> None:
    """Watch a comment become a check run.

    Starts the real bot and a small local GitHub for it, opens a pull request, comments `/gibil test`, and shows what happens.
    Needs Python and git, but no network and no account. Exit status 0 if the check run is `success`, and with --commit
    or --agent if the pull request has the verified commit. With --json the progress is on stderr, and the result on stdout.
    """
    from gibil_bot.demo.demo import INTERRUPTED, run_demo

    if failing + commit + agent > 1:
        raise UsageError("--failing shows a failing test, --commit a formatter, --agent a repair: use one of them")

    results: list[dict[str, Any]] = []

    def on_verdict(view: dict[str, Any]) -> None:
        results.append(view)
        if as_json:
            print_json(view)

    out = (sys.stderr if as_json else sys.stdout) or NoStream()
    try:
        status = asyncio.run(run_demo(failing=failing, commit=commit, agent=agent, keep=keep, out=out, on_verdict=on_verdict))
    except BrokenPipeError:
        raise ReaderGone from None
    if as_json and not results:
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        raise GibilError("the demonstration ended without a check run; the messages above have the reason", code="DEMO")
    sys.exit(status)
