"""`gibil template`: keep copies of machines' disks, list and delete them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.completers import complete_names, complete_templates
from gibil_bot.cli.machine import connected, provider_option, run_async, table
from gibil_bot.cli.output import Paint, json_option, print_json, print_message, print_text

if TYPE_CHECKING:
    from gibil_bot.model import Template

_CELL = 60


@click.group()
def template() -> None:
    """Keep copies of machines' disks, from which new machines start.

    A template is a disk without processes. On this computer it is a layer that costs only its space; at Hetzner it is a
    snapshot, with a price for each month. It has all files of the machine, but not the variables of --env, which are in memory.

    \b
    gibil template create ready --from agent-task
    gibil create --template ready --fleet 3
    gibil template delete ready
    """


@template.command()
@click.argument("name")
@click.option("--from", "machine", metavar="MACHINE", required=True, help="The machine.", shell_complete=complete_names)
@click.option("--stop", is_flag=True, help="End the processes that run on a local machine.")
@provider_option
@json_option
def create(name: str, machine: str, stop: bool, provider: str | None, as_json: bool) -> None:
    """Keep a copy of MACHINE's disk as the template NAME. MACHINE goes on.

    A local machine must have no process meanwhile: --stop ends them. Its open SSH connections close.

    \b
    gibil template create ready --from agent-task
    gibil template create ready --from agent-task --stop --json
    """
    sys.exit(run_async(_create(name, machine, stop, provider, as_json)))


async def _create(name: str, machine: str, stop: bool, provider: str | None, as_json: bool) -> int:
    from gibil_bot.views import template_view

    async with connected(provider) as machines:
        saved = await machines.save_template(machine, name, stop=stop)
    if as_json:
        print_json({**template_view(saved), "machine": machine})
    else:
        print_text(f"{saved.name}\n")
        price = f", {_price(saved)}" if saved.price_monthly is not None else ""
        print_message(f"{saved.size_mb} MB{price}; create machines from it: gibil create --template {saved.name}")
    return 0


@template.command(name="list")
@provider_option
@json_option
def list_(provider: str | None, as_json: bool) -> None:
    """List templates, oldest first.

    \b
    gibil template list
    gibil template list --json | jq -r '.[].name'
    """
    sys.exit(run_async(_list(provider, as_json)))


async def _list(provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines.templates import templating
    from gibil_bot.ssh.answers import printable
    from gibil_bot.views import template_view, timestamp

    async with connected(provider) as machines:
        found = await templating(machines.factory.provider).templates()
    if as_json:
        print_json([template_view(each) for each in found])
        return 0
    if not found:
        print_message("no template exists; keep a machine's disk: gibil template create NAME --from MACHINE")
        return 0
    paint = Paint(sys.stdout)
    rows: list[tuple[str, ...]] = [("NAME", "PROVIDER", "SIZE", "PRICE", "REPOSITORY", "CREATED")]
    for each in found:
        row = (
            each.name,
            each.provider,
            f"{each.size_mb} MB",
            _price(each),
            each.labels.get("repo", ""),
            timestamp(each.created_at),
        )
        rows.append(tuple(printable(str(cell), _CELL) for cell in row))
    print_text(table(rows, style=lambda number, line: paint.bold(line) if number == 0 else line))
    return 0


@template.command()
@click.argument("name", shell_complete=complete_templates)
@provider_option
@json_option
def delete(name: str, provider: str | None, as_json: bool) -> None:
    """Delete a template. One that doesn't exist is not a failure. Machines of this computer that started from it keep it.

    \b
    gibil template delete ready --json
    """
    sys.exit(run_async(_delete(name, provider, as_json)))


async def _delete(name: str, provider: str | None, as_json: bool) -> int:
    from gibil_bot.machines.templates import templating

    async with connected(provider) as machines:
        existed = await templating(machines.factory.provider).delete_template(name)
    if as_json:
        print_json({"name": name, "deleted": True, "was_already_deleted": not existed})
    else:
        print_message(f"{name} {'is deleted' if existed else 'did not exist'}")
    return 0


def _price(template: Template) -> str:
    return "" if template.price_monthly is None else f"{template.price_monthly:.2f} {template.currency} a month"
