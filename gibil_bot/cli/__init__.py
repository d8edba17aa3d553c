"""The command line. Each command is a file here, imported when it is called; heavy imports wait until a command needs them.

`gibil --help` takes 49 ms of CPU, and 130 with all commands imported; `gibil list` 111 and 143; `gibil list --help` 79, and 105
with the imports inside its functions moved to the top of the file (medians of 20 runs in turn).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from gibil_bot import __version__

_SUMMARIES = {
    "demo": "Watch a comment become a check run.",
    "try": "Run a workflow on a local checkout, on a disposable machine.",
    "create": "Forge a machine that is burned after an hour, or after --ttl.",
    "run": "Run a command on a machine, in /root.",
    "ssh": "Open a shell on a machine, or run one command with your terminal.",
    "cp": "Copy a file or a directory to a machine, or from one.",
    "fork": "Create copies of a machine's disk, for parallel attempts.",
    "template": "Keep copies of machines' disks, from which new machines start.",
    "list": "List machines.",
    "info": "Print everything about one machine.",
    "extend": "Extend a machine's time to live by DURATION: 90s, 20m, 2h; a bare number is minutes.",
    "destroy": "Burn machines.",
    "branch": "Forge a machine for one branch of this checkout's origin.",
    "logs": "Print the output of a machine's set-up and tasks, or of a background job.",
    "jobs": "List the background jobs of a machine.",
    "push": "Push the commits that were made on a machine, with your own credentials.",
    "pr": "Open pull requests with the commits that were made on a machine.",
    "cache": "List and delete what runs have stored for later runs.",
    "budget": "Print what agents spent on a day (UTC), by person and repository.",
    "db": "Show, migrate, check, prune and export the bot's database.",
    "mcp": "Serve machines to agents over MCP, on stdin and stdout or over HTTP.",
    "token": "Create, list and revoke access tokens for MCP over HTTP.",
    "providers": "List the providers that forge machines: sizes, locations, prices.",
    "engines": "List the programs that agent tasks can use: versions, models, keys.",
    "init": "Save the provider and its token; register with MCP clients. With --repo, write a `.gibil.yml`.",
    "serve": "Run the bot.",
    "doctor": "Check the set-up, and print a fix for each failure.",
    "check": "Validate workflow files and `.gibil.yml`.",
    "detect": "Print what would prepare and test a checkout, and why.",
    "plan": "Print what a workflow would do on an event, and do nothing.",
    "replay": "Post a recorded payload as GitHub would, signed with GIBIL_GITHUB_WEBHOOK_SECRET.",
    "schema": "Print the JSON Schema of a command's --json output.",
    "completion": "Print a completion script for a shell: commands, options, machines, jobs, workflows.",
}
"""The commands in the order of `--help`, with a summary of each, so that listing them imports none."""

_MODULES = {"try": "try_", "list": "list_"}
"""Modules of commands whose name is a Python keyword or built-in. Other modules and functions have the command's name."""


class _Commands(click.Group):
    """Imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_SUMMARIES)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _SUMMARIES and not args[0].startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0], _SUMMARIES, n=1, cutoff=0.6)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _SUMMARIES:
            return None
        name = _MODULES.get(cmd_name, cmd_name)
        command: click.Command = getattr(import_module(f"gibil_bot.cli.{name}"), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_SUMMARIES.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command takes --json: one JSON value on stdout, everything else on stderr. "
    "Exit status: 0 ok, 1 the work failed, 2 wrong use, 3 provider, 4 SSH, 5 GitHub, 6 configuration, "
    "7 the preparation failed.",
)
@click.version_option(__version__, prog_name="gibil")
def gibil() -> None:
    """Pull-request work on disposable machines.

    \b
    gibil demo                 watch a comment become a check run, on this computer alone
    gibil try                  run this checkout's tests on a disposable machine
    gibil serve                the bot itself
    """


def main() -> None:
    """Run the command line. Every failure becomes one line for people, or one JSON value, and a documented exit status."""
    _fill_closed_streams()
    try:
        gibil.main(prog_name="gibil", standalone_mode=False)
        status = 0
    except click.exceptions.Exit as leaving:
        status = leaving.exit_code
    except BaseException as error:
        from gibil_bot.cli.output import fail

        status = fail(error, as_json=_wants_json(sys.argv[1:]))
    _leave(status)


def _wants_json(arguments: list[str]) -> bool:
    """Return whether the arguments ask for JSON, even if they can't be parsed. A remote command may have its own `--json`."""
    if "--" in arguments:
        arguments = arguments[: arguments.index("--")]
    if arguments[:1] == ["ssh"]:  # its options come before the machine's name
        values = [number + 1 for number, word in enumerate(arguments) if word == "--provider"]
        ours = [number for number, word in enumerate(arguments) if not (word.startswith("-") or number in (0, *values))]
        arguments = arguments[: ours[0]] if ours else arguments
    return "--json" in arguments


def _leave(status: int) -> NoReturn:
    """End the process at once; everything that a command opened is closed by now.

    Python would destroy every object first: `gibil --help` takes 60 ms of CPU instead of 49, `gibil list` 140 instead of 111
    (medians of 20 runs in turn).
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                status = status or 1
            except ValueError:  # closed
                pass
    os._exit(status)


def _fill_closed_streams() -> None:
    """Open /dev/null for each closed standard stream, so that the next opened file doesn't get its number."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number is this one
