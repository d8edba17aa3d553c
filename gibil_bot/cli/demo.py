"""`gibil demo`: the whole journey on this box."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from gibil_bot.cli.output import NoStream, ReaderGone, json_option, print_json
from gibil_bot.errors import GibilError


@click.command()
@click.option("--failing", is_flag=True, help="A pull request that breaks a test.")
@click.option("--keep", is_flag=True, help="Leave the bot and its GitHub running, and say how to comment with curl.")
@json_option
def demo(failing: bool, keep: bool, as_json: bool) -> None:
    """Watch a comment become a check run.

    Starts the real bot beside a small GitHub of its own, opens a pull request, comments `/gibil test`, and shows what
    happens. Needs no network, no account, nothing but Python and git. Exit status 0 when the check run is `success`.
    With --json the story is told on stderr, and its outcome on stdout.
    """
    from gibil_bot.demo.demo import INTERRUPTED, run_demo

    told: list[dict[str, Any]] = []

    def on_verdict(view: dict[str, Any]) -> None:
        told.append(view)
        if as_json:
            print_json(view)

    out = (sys.stderr if as_json else sys.stdout) or NoStream()
    try:
        status = asyncio.run(run_demo(failing=failing, keep=keep, out=out, on_verdict=on_verdict))
    except BrokenPipeError:
        raise ReaderGone from None
    if as_json and not told:
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        raise GibilError("the demonstration came to no verdict; what was told of it says why", code="DEMO")
    sys.exit(status)
