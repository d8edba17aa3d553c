"""`gibil cache`: list and delete what runs have stored for later runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.cache_runtimes import runtimes
from gibil_bot.cli.machine import provider_option, run_async, settings_of, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.errors import UsageError
from gibil_bot.humanize import count
from gibil_bot.ssh.answers import printable

if TYPE_CHECKING:
    from gibil_bot.model import CacheEntry, PreparedMachine


_CELL = 60


@click.group()
def cache() -> None:
    """List and delete what runs have stored for later runs.

    \b
    prepared    a machine with what a run installed, so that the next one needn't
    cache       the files of a `cache` in a workflow or .gibil.yml
    downloads   of package managers, stored without configuration

    A trusted run of a repository uses what an earlier one left. A pull request that isn't trusted reads that, too, but what
    it leaves is used only for the same commit. What was used longest ago is deleted first: a repository has at most 5 GB of
    prepared machines and 3 GB of caches, all repositories together have at most 20 GB and 12 GB, all on this computer's disk.
    Those of cloud machines are archives, which cost nothing at the cloud.

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
    """List prepared machines, caches and downloads, the last used first.

    \b
    gibil cache list
    gibil cache list --json | jq -r '.[] | select(.kind == "downloads") | .repository'
    """
    sys.exit(run_async(_list(provider, as_json)))


async def _list(provider: str | None, as_json: bool) -> int:
    from gibil_bot.views import cache_view, prepared_view, timestamp
    from gibil_bot.wiring import open_caches, open_prepared, open_provider

    settings = settings_of(provider)
    opened = open_provider(settings)
    try:
        prepared = open_prepared(settings, opened)
        machines = await prepared.usages()
    finally:
        await opened.close()
    found = [(usage.used_at, prepared_view(usage.entry)) for usage in machines]
    found += [(usage.used_at, cache_view(usage.entry)) for usage in await open_caches(settings).usages()]
    found.sort(key=lambda each: (each[0], str(each[1]["id"])), reverse=True)
    if as_json:
        print_json([{**view, "used_at": timestamp(used_at)} for used_at, view in found])
        return 0
    if not found:
        print_message("nothing is stored; a run keeps what it has installed and downloaded")
        return 0
    paint = Paint(sys.stdout)
    rows: list[tuple[str, ...]] = [("ID", "KIND", "PROVIDER", "REPOSITORY", "WORKFLOW", "SCOPE", "KEY", "SIZE", "LAST USED")]
    for used_at, view in found:
        key = f"saves {view['saves_s']:.0f} s" if view["kind"] == "prepared" else view["key"]
        cells = [view["id"], view["kind"], view.get("provider", ""), view["repository"], view["workflow"], view["scope"], key]
        row = (*cells, f"{view['size_mb']:.0f} MB", timestamp(used_at))
        rows.append(tuple(printable(str(cell), _CELL) for cell in row))
    print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
    return 0


@cache.command()
@click.option("--repository", metavar="OWNER/NAME", help="Only those of this repository.")
@provider_option
@json_option
def clear(repository: str | None, provider: str | None, as_json: bool) -> None:
    """Delete prepared machines, caches and downloads.

    Prepared machines that a machine is using now stay, and are named. Runs that are using a cache go on.

    \b
    gibil cache clear
    gibil cache clear --repository octocat/hello-world --json
    """
    if repository is not None and not repository.strip():
        raise UsageError("--repository needs a name: OWNER/NAME, as gibil cache list shows it")
    sys.exit(run_async(_clear(repository, provider, as_json)))


async def _clear(repository: str | None, provider: str | None, as_json: bool) -> int:
    from gibil_bot.views import cache_view, prepared_view
    from gibil_bot.wiring import open_caches, open_prepared, open_provider

    settings = settings_of(provider)
    opened = open_provider(settings)
    gone: list[PreparedMachine] = []
    kept: list[PreparedMachine] = []
    caches: list[CacheEntry] = []
    try:
        caches = await open_caches(settings).clear(repository)
        prepared = open_prepared(settings, opened)
        gone, kept = await prepared.clear(repository)
    finally:
        await opened.close()
    for entry in kept:
        print_message(f"{entry.layer} is in use, or another one that is in use was created from it; it stays")
    deleted = [*map(prepared_view, gone), *map(cache_view, caches)]
    if as_json:
        print_json({"deleted": deleted, "kept": [prepared_view(entry) for entry in kept]})
    else:
        size_mb = sum(entry.size_mb for entry in gone) + sum(entry.size_bytes for entry in caches) // 1024**2
        print_message(f"deleted {count(len(gone), 'prepared machine')} and {count(len(caches), 'cache')}, {size_mb} MB")
    return 0


cache.add_command(runtimes)
