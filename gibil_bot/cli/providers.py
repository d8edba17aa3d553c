"""`gibil providers`: the providers, and the sizes and prices of their machines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cli.machine import run_async, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text
from gibil_bot.config import load_settings
from gibil_bot.errors import GibilError, Unavailable

if TYPE_CHECKING:
    from gibil_bot.config import Settings


@click.command()
@json_option
def providers(as_json: bool) -> None:
    """List the providers that forge machines: sizes, locations, prices.

    Reads everything from the provider; checks `local` by forging a machine. Prices are net, for each started hour.

    \b
    gibil providers
    gibil providers --json | jq '.[] | select(.available) | .name'
    """
    sys.exit(run_async(_providers(as_json)))


async def _providers(as_json: bool) -> int:
    from gibil_bot.wiring import PROVIDERS

    settings = load_settings()
    views = [await _view(name, settings) for name in PROVIDERS]
    if as_json:
        print_json(views)
        return 0
    paint = Paint(sys.stdout)
    rows: list[tuple[str, ...]] = [("PROVIDER", "SIZE", "WHAT", "LOCATIONS", "AN HOUR")]
    for view in views:
        for size in view["sizes"]:
            price = f"{size['price_hourly']} {size['currency']}" if size["price_hourly"] else "-"
            rows.append((view["name"], size["name"], size["what"], ", ".join(size["locations"]) or "-", price))
    print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
    for view in views:
        if not view["available"]:
            print_message(f"{view['name']}: {view['problem']}")
    return 0


async def _view(name: str, settings: Settings) -> dict[str, Any]:
    """Return one provider as JSON. An unavailable one has `problem`, and no sizes."""
    from gibil_bot.machines.costs import sizes_view
    from gibil_bot.machines.service import open_machines, settings_for

    view: dict[str, Any] = {"name": name, "default": name == settings.provider, "available": False, "sizes": []}
    try:
        async with open_machines(settings_for(settings, name)) as machines:
            capabilities = await machines.factory.provider.probe()
            sizes = await sizes_view(machines.factory.provider)
    except GibilError as error:
        remedies = error.remedies if isinstance(error, Unavailable) else ()
        return {**view, "problem": "; ".join((error.message, *remedies))}
    return {
        **view,
        "available": True,
        "tier": capabilities.tier,
        "memory_limit": capabilities.memory_limit,
        "package_installs": capabilities.package_installs,
        "sizes": sizes,
    }
