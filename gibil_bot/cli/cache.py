"""`gibil cache`: list and delete what runs have stored for later runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.machine import provider_option, run_async, settings_of, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.errors import UsageError
from gibil_bot.ssh.answers import printable

if TYPE_CHECKING:
    from gibil_bot.model import PreparedMachine


@click.group()
def cache() -> None:
    """List and delete what runs have stored for later runs.

    These are prepared machines: what a run installed, so that the next one needn't.

    A trusted run of a repository starts from what an earlier one left. A pull request that isn't trusted reads that, too, but
    what it leaves is used only for the same commit. What was used longest ago is deleted first: at most 5 GB for a repository
    and 20 GB in all are stored, on this computer's disk, which costs nothing at a cloud: those of cloud machines are archives.

    \b
    gibil cache list
    gibil cache list --json | jq 'map(.size_mb) | add'
    gibil cache clear --repository octocat/hello-world
    gibil cache clear
    """


@cache.command(name="list")
@provider_option
@json_option
def list_(provider: str | None, as_json: bool) -> None:
    """List prepared machines, the last used first.

    \b
    gibil cache list
    gibil cache list --json | jq -r '.[].repository'
    """
    sys.exit(run_async(_list(provider, as_json)))


async def _list(provider: str | None, as_json: bool) -> int:
    from gibil_bot.views import prepared_view, timestamp
    from gibil_bot.wiring import open_prepared, open_provider

    settings = settings_of(provider)
    opened = open_provider(settings)
    try:
        prepared = open_prepared(settings, opened)
        usages = await prepared.usages()
    finally:
        await opened.close()
    if as_json:
        print_json([{**prepared_view(usage.entry), "used_at": timestamp(usage.used_at)} for usage in usages])
        return 0
    if not usages:
        print_message("there are no prepared machines; a run keeps one after it has installed something")
        return 0
    paint = Paint(sys.stdout)
    rows: list[tuple[str, ...]] = [("ID", "PROVIDER", "REPOSITORY", "WORKFLOW", "SCOPE", "SIZE", "SAVES", "LAST USED")]
    for usage in usages:
        entry = usage.entry
        row = (
            entry.layer, entry.provider, entry.repository_name, entry.workflow, entry.scope, f"{entry.size_mb} MB",
            f"{entry.prepared_in_s:.0f} s", timestamp(usage.used_at) or "",
        )  # fmt: skip
        rows.append(tuple(printable(cell) for cell in row))
    print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
    return 0


@cache.command()
@click.option("--repository", metavar="OWNER/NAME", help="Only those of this repository.")
@provider_option
@json_option
def clear(repository: str | None, provider: str | None, as_json: bool) -> None:
    """Delete prepared machines. Those that a machine is using now stay, and are named.

    \b
    gibil cache clear
    gibil cache clear --repository octocat/hello-world --json
    """
    if repository is not None and not repository.strip():
        raise UsageError("--repository needs a name: OWNER/NAME, as gibil cache list shows it")
    sys.exit(run_async(_clear(repository, provider, as_json)))


async def _clear(repository: str | None, provider: str | None, as_json: bool) -> int:
    from gibil_bot.views import prepared_view
    from gibil_bot.wiring import open_prepared, open_provider

    settings = settings_of(provider)
    opened = open_provider(settings)
    gone: list[PreparedMachine] = []
    kept: list[PreparedMachine] = []
    try:
        prepared = open_prepared(settings, opened)
        gone, kept = await prepared.clear(repository)
    finally:
        await opened.close()
    for entry in kept:
        print_message(f"{entry.layer} is in use, or another one that is in use was created from it; it stays")
    if as_json:
        print_json({"deleted": [prepared_view(entry) for entry in gone], "kept": [prepared_view(entry) for entry in kept]})
    else:
        print_message(f"deleted {len(gone)} prepared machines, {sum(entry.size_mb for entry in gone)} MB")
    return 0
