"""`gibil engines`: the programs that agent tasks can use."""

from __future__ import annotations

import sys
from textwrap import fill
from typing import TYPE_CHECKING, Any

import click

from gibil_bot.cli.machine import table
from gibil_bot.cli.output import Paint, json_option, print_json, print_text
from gibil_bot.config import load_settings

if TYPE_CHECKING:
    from gibil_bot.agents.engine import Engine
    from gibil_bot.model_settings import ModelSettings


@click.command()
@click.option("--verified", is_flag=True, help="Also print what was seen of each engine, and when.")
@json_option
def engines(verified: bool, as_json: bool) -> None:
    """List the programs that agent tasks can use: versions, models, keys.

    KEY tells whether the bot has the key of the engine's provider; keys are never printed. The files in the folder
    GIBIL_ENGINES add engines, or replace those of the same name.

    \b
    gibil engines
    gibil engines --verified
    gibil engines --json | jq -r '.[] | select(.has_key) | .name'
    """
    from gibil_bot.agents.engines.loading import load_engines

    settings = load_settings().models
    found = load_engines(settings.engines)
    if as_json:
        print_json([_view(engine, settings) for engine in found.values()])
        return
    paint = Paint(sys.stdout)
    rows: list[tuple[str, ...]] = [("ENGINE", "PROGRAM", "VERSION", "MODEL", "PROTOCOL", "KEY", "VERIFIED", "FROM")]
    rows += [_row(engine, settings) for engine in found.values()]
    print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
    if verified:
        for engine in found.values():
            seen = [
                fill(f"{each.on}  {each.what}", 100, initial_indent="  ", subsequent_indent=" " * 14)
                for each in engine.verified
            ]
            print_text("\n".join(["", paint.bold(engine.name), *(seen or ["  nothing"]), ""]))


def _row(engine: Engine, settings: ModelSettings) -> tuple[str, ...]:
    key = "-"
    if engine.provider:
        key = "set" if settings.keys.get(engine.provider) else f"GIBIL_MODEL_KEY_{engine.provider.upper()} is not set"
    return (
        engine.name,
        engine.title,
        engine.version or "-",
        engine.default_model or "-",
        engine.protocol or "-",
        key,
        max((each.on for each in engine.verified), default="never"),
        engine.source or "gibil",
    )


def _view(engine: Engine, settings: ModelSettings) -> dict[str, Any]:
    return {
        "name": engine.name,
        "title": engine.title,
        "version": engine.version or None,
        "packages": [f"{each.registry}:{each.name}@{each.version}" for each in engine.packages],
        "protocol": engine.protocol,
        "provider": engine.provider or None,
        "has_key": bool(settings.keys.get(engine.provider)) if engine.provider else None,
        "default_model": engine.default_model or None,
        "limits_turns": engine.limits_turns,
        "file": engine.source or None,
        "verified": [{"on": each.on, "what": each.what} for each in engine.verified],
    }
