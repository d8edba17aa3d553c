"""The command line. Each command is a file here; heavy imports wait until a command needs them."""

from __future__ import annotations

import sys

import click

from gibil_bot import __version__
from gibil_bot.cli import check, demo, doctor, replay, serve, try_
from gibil_bot.cli.output import fail


class _Commands(click.Group):
    """Lists the commands in the order in which people meet them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every command takes --json: one JSON value on stdout, everything else on stderr. "
    "Exit status: 0 ok, 1 the work failed, 2 wrong use, 3 provider, 4 SSH, 5 GitHub, 6 configuration.",
)
@click.version_option(__version__, prog_name="gibil")
def gibil() -> None:
    """Pull-request work on disposable machines.

    \b
    gibil demo                 watch a comment become a check run, with nothing but this box
    gibil try                  run this checkout's tests on a disposable machine
    gibil serve                the bot itself
    """


for command in (demo.demo, try_.try_, serve.serve, doctor.doctor, check.check, check.plan, replay.replay):
    gibil.add_command(command)


def main() -> None:
    """The entry point: every failure is one line for people, or one JSON value, and a documented exit status."""
    try:
        gibil.main(prog_name="gibil", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except BaseException as error:
        sys.exit(fail(error, as_json="--json" in sys.argv[1:]))
