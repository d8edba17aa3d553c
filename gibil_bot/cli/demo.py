"""`gibil demo`: the whole journey on this box."""

from __future__ import annotations

import asyncio
import sys

import click


@click.command()
@click.option("--failing", is_flag=True, help="A pull request that breaks a test.")
@click.option("--keep", is_flag=True, help="Leave the bot and its GitHub running, and say how to comment with curl.")
def demo(failing: bool, keep: bool) -> None:
    """Watch a comment become a check run.

    Starts the real bot beside a small GitHub of its own, opens a pull request, comments `/gibil test`, and shows what
    happens. Needs no network, no account, nothing but Python and git. Exit status 0 when the check run is `success`.
    """
    from gibil_bot.demo.demo import run_demo

    sys.exit(asyncio.run(run_demo(failing=failing, keep=keep, out=sys.stdout)))
