"""`gibil ssh`: a shell on a machine."""

from __future__ import annotations

import shlex
import sys

import click

from gibil_bot.cli import stdin as our_stdin
from gibil_bot.cli.machine import connected, name_argument, opened, provider_option, run_async
from gibil_bot.cli.output import json_option, print_json


@click.command(context_settings={"allow_interspersed_args": False})
@provider_option
@json_option
@name_argument
@click.argument("command", nargs=-1, metavar="[COMMAND]...")
def ssh(name: str, command: tuple[str, ...], provider: str | None, as_json: bool) -> None:
    """Open a shell on a machine, or run one command with your terminal.

    The machine's host key is checked. With --json: print the address and the host key, and open nothing.
    Options come before NAME; everything after it is the command.

    \b
    gibil ssh agent-task
    gibil ssh agent-task htop
    tar -c data | gibil ssh agent-task tar -x -C /root
    gibil ssh --json agent-task
    """
    from gibil_bot.cli.run import as_line

    line = " ".join(command)  # like ssh
    if command[:1] == ("--",):  # like `gibil run` and kubectl: the program gets these words unchanged
        line = as_line(command[1:])
    sys.exit(run_async(_show(name, provider) if as_json else _ssh(name, line, provider)))


async def _show(name: str, provider: str | None) -> int:
    async with connected(provider) as machines:
        machine = await machines.get(name)
    endpoint = machine.endpoint
    print_json(
        {
            "name": machine.name,
            "provider": machine.provider,
            "user": endpoint.username,
            "ip": endpoint.host,
            "port": endpoint.port if endpoint.host is not None else None,
            "unix_path": endpoint.unix_path,
            "host_key": endpoint.host_key,
            "ssh_command": f"gibil ssh {machine.name}",
        }
    )
    return 0


async def _ssh(name: str, line: str, provider: str | None) -> int:
    from gibil_bot.machines.remote_layout import LOAD_ENVIRONMENT

    async with opened(name, provider) as session:
        from gibil_bot.ssh.terminal import talk

        remote_command = f'exec "${{BASH:-sh}}" -c {shlex.quote(line)}' if line else 'exec "${SHELL:-/bin/sh}" -l'
        return await talk(session.shell, f"{LOAD_ENVIRONMENT}; {remote_command}", our_stdin.blocks())
