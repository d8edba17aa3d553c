"""`gibil budget`: what agents spent on a day, by person and repository."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import UsageError
from gibil_bot.humanize import dollars, duration

if TYPE_CHECKING:
    from decimal import Decimal

    from gibil_bot.agent_task import Spent


@click.command()
@click.option("--day", metavar="YYYY-MM-DD", help="A day of UTC.  [default: today]")
@json_option
def budget(day: str | None, as_json: bool) -> None:
    """Print what agents spent on a day (UTC), by person and repository.

    Calls in progress don't count yet. `~` marks sums with estimates, of calls that were cut off.

    \b
    gibil budget
    gibil budget --day 2026-11-27 --json
    """
    from gibil_bot.cli.machine import table

    try:
        chosen = date.fromisoformat(day) if day is not None else datetime.now(UTC).date()
    except ValueError:
        raise UsageError(f"--day: {day!r} is not a day; write it as 2026-11-27") from None
    settings = load_settings()
    persons, repositories = asyncio.run(_spent(settings, chosen))
    limits = settings.models.budgets
    if as_json:
        print_json({
            "day": chosen.isoformat(),
            "persons": [_view(name, spent, limits.person_usd) for name, spent in persons.items()],
            "repositories": [_view(name, spent, limits.day_usd) for name, spent in repositories.items()],
        })  # fmt: skip
        return
    if not persons:
        print_message(f"no agent spent anything on {chosen.isoformat()} (UTC)")
        return
    rows: list[tuple[str, ...]] = [("", "SPENT", "OF", "CALLS", "TOKENS", "MACHINE TIME")]
    rows += [_row(f"@{name}", spent, limits.person_usd) for name, spent in persons.items()]
    rows += [_row(name, spent, limits.day_usd) for name, spent in repositories.items()]
    print_text(table(rows))


async def _spent(settings: Settings, day: date) -> tuple[dict[str, Spent], dict[str, Spent]]:
    from gibil_bot.wiring import open_store

    store = await open_store(settings, exclusive=False)
    try:
        return await store.ledger.spent_on(day, "person"), await store.ledger.spent_on(day, "repository")
    finally:
        await store.close()


def _row(name: str, spent: Spent, most: Decimal | None) -> tuple[str, ...]:
    mark = "~" if spent.usage.is_estimated else ""
    return (
        name,
        f"{mark}{dollars(spent.usd)}",
        "–" if most is None else f"{most:.2f}",
        f"{spent.calls:,}",
        f"{mark}{spent.usage.tokens:,}",
        duration(spent.seconds),
    )


def _view(name: str, spent: Spent, most: Decimal | None) -> dict[str, Any]:
    return {
        "name": name,
        "usd": f"{spent.usd:f}",
        "limit_usd": None if most is None else f"{most:f}",
        "tokens": spent.usage.tokens,
        "calls": spent.calls,
        "rejected_calls": spent.refused,
        "machine_time_s": spent.seconds,
        "estimated": spent.usage.is_estimated,
    }
