"""`gibil cache runtimes`: list and delete the runtimes that local machines share."""

from __future__ import annotations

import sys

import click

from gibil_bot.cli.machine import provider_option, settings_of, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text


@click.command()
@click.option("--clear", is_flag=True, help="Delete them. Machines that exist keep what they have.")
@provider_option
@json_option
def runtimes(clear: bool, provider: str | None, as_json: bool) -> None:
    """List the versions of languages and package managers that local machines share, the last used first.

    A run stores what it had to install, and GIBIL_RUNTIMES lists what is stored from the beginning: at most 4 GB.

    \b
    gibil cache runtimes
    gibil cache runtimes --json | jq -r '.[].name'
    gibil cache runtimes --clear
    """
    from gibil_bot.views import timestamp
    from gibil_bot.wiring import open_runtimes

    store = open_runtimes(settings_of(provider))
    found = [] if store is None else store.clear() if clear else store.usages()
    if as_json:
        print_json([{"name": each.name, "size_mb": each.size_mb, "used_at": timestamp(each.used_at)} for each in found])
    elif clear:
        print_message(f"deleted {len(found)} runtimes, {sum(each.size_mb for each in found)} MB")
    elif not found:
        print_message("no runtimes are stored; a run stores what it had to install")
    else:
        rows: list[tuple[str, ...]] = [("NAME", "SIZE", "LAST USED")]
        rows += [(each.name, f"{each.size_mb} MB", timestamp(each.used_at) or "") for each in found]
        paint = Paint(sys.stdout)
        print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
