"""Completes values of arguments. Errors are never shown: a failing completion offers nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot.limits import WORKFLOW_FILE_BYTES, WORKFLOW_FOLDER

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from gibil_bot.machines.service import MachineService

_WITHIN_S = 5.0
_AT_MACHINE_S = 8.0


def complete_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete names of machines, without those already on the line."""

    async def names(machines: MachineService) -> list[str]:
        return [machine.name for machine in await machines.list_machines()]

    given = context.params.get("names") or ()
    return [name for name in _query(context, names) if name.startswith(incomplete) and name not in given]


def complete_copied(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a local path, or the name of a machine with a colon."""
    from click.shell_completion import CompletionItem

    names = [] if "/" in incomplete or ":" in incomplete else complete_names(context, parameter, incomplete)
    return [CompletionItem(f"{name}:") for name in names] or [CompletionItem(incomplete, type="file")]


def complete_fleets(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    async def fleets(machines: MachineService) -> list[str]:
        return [machine.labels.get("fleet", "") for machine in await machines.list_machines()]

    return _starting(_query(context, fleets), incomplete)


def complete_jobs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete background jobs of the machine on the line."""
    machine = context.params.get("name")

    async def jobs(machines: MachineService) -> list[str]:
        session = await machines.open(str(machine))
        try:
            return [job.id for job in await session.jobs()]
        finally:
            await session.close()

    return _starting(_query(context, jobs, within_s=_AT_MACHINE_S), incomplete) if machine else []


def complete_commands(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Complete the first word of a command that has JSON output."""
    from gibil_bot.cli.json_output import OUTPUTS

    return [] if context.params.get("command") else _starting((name.partition(" ")[0] for name in OUTPUTS), incomplete)


def complete_sizes(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from gibil_bot.limits import MACHINE_SIZES

    return [size for size in MACHINE_SIZES if size.startswith(incomplete)]


def complete_templates(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    async def names(machines: MachineService) -> list[str]:
        from gibil_bot.machines.templates import templating

        return [template.name for template in await templating(machines.factory.provider).templates()]

    return _starting(_query(context, names), incomplete)


def complete_providers(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    from gibil_bot.wiring import PROVIDERS

    return [name for name in PROVIDERS if name.startswith(incomplete)]


def complete_workflows(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete commands of the operator's and the checkout's workflows; files, if no command matches."""
    from click.shell_completion import CompletionItem

    try:
        # click leaves arguments unparsed before an option whose value is missing, as here.
        paths = [Path(word) for word in (*context.args, str(context.params.get("path") or "."))]
        words = _starting(_commands(next(path for path in paths if path.is_dir())), incomplete)
    except Exception:
        words = []
    return [CompletionItem(word) for word in words] or [CompletionItem(incomplete, type="file")]


def _commands(path: Path) -> list[str]:
    """Return the commands of the workflow files in the folder, committed or not."""
    from gibil_bot.config import load_settings
    from gibil_bot.planning.plan import catalogue
    from gibil_bot.wiring import operator_workflows

    folder = next((each for each in (path, *path.resolve().parents) if (each / ".gibil" / "workflows").is_dir()), None)
    paths = sorted((folder / ".gibil" / "workflows").glob("*.y*ml"))[:100] if folder is not None else []
    files = {f"{WORKFLOW_FOLDER}/{each.name}": each.read_bytes()[: WORKFLOW_FILE_BYTES + 1] for each in paths if each.is_file()}
    found = catalogue(operator_workflows(load_settings())(), files, base_ref="HEAD")
    return [each.command for each in found.workflows if each.command]


def _query(
    context: click.Context, query: Callable[[MachineService], Awaitable[list[str]]], *, within_s: float = _WITHIN_S
) -> list[str]:
    from gibil_bot.cli.machine import connected

    async def answer() -> list[str]:
        async with asyncio.timeout(within_s), connected(context.params.get("provider")) as machines:
            return await query(machines)

    try:
        return asyncio.run(answer())
    except Exception:
        return []


def _starting(words: Iterable[str], incomplete: str) -> list[str]:
    return sorted({word for word in words if word and word.startswith(incomplete)})
