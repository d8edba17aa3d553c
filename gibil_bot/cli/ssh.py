"""`gibil ssh`: a shell on a machine."""

from __future__ import annotations

import contextlib
import shlex
import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli import stdin as our_stdin
from gibil_bot.cli.machine import connected, name_argument, opened, provider_option, run_async
from gibil_bot.cli.output import json_option, print_json, print_message
from gibil_bot.errors import MachineLost, UsageError

if TYPE_CHECKING:
    from gibil_bot.machines.session import MachineSession
    from gibil_bot.ssh.shell import SSHShell


@click.command(context_settings={"allow_interspersed_args": False})
@provider_option
@json_option
@click.option(
    "-L",
    "forwards",
    multiple=True,
    metavar="[ADDRESS:]PORT:HOST:PORT",
    help="Forward a port of this computer to HOST:PORT as seen from the machine; repeatable. Port 0: any free one.",
)
@click.option("-N", "no_command", is_flag=True, help="Only forward ports, until Ctrl-C.")
@name_argument
@click.argument("command", nargs=-1, metavar="[COMMAND]...")
def ssh(
    name: str,
    command: tuple[str, ...],
    forwards: tuple[str, ...],
    no_command: bool,
    provider: str | None,
    as_json: bool,
) -> None:
    """Open a shell on a machine, or run one command with your terminal.

    The machine's host key is checked. With --json: print the address and the host key, and open nothing.
    Options come before NAME; everything after it is the command.

    \b
    gibil ssh agent-task
    gibil ssh agent-task htop
    tar -c data | gibil ssh agent-task tar -x -C /root
    gibil ssh -N -L 8080:localhost:3000 agent-task
    gibil ssh --json agent-task
    """
    if as_json and (forwards or no_command):
        raise UsageError("--json opens nothing, so it can't be combined with -L and -N")
    if no_command and (command or not forwards):
        raise UsageError("-N needs -L, and no command")
    from gibil_bot.cli.run import as_line

    line = " ".join(command)  # like ssh
    if command[:1] == ("--",):  # like `gibil run` and kubectl: the program gets these words unchanged
        line = as_line(command[1:])
    sys.exit(run_async(_show(name, provider) if as_json else _ssh(name, line, forwards, no_command, provider)))


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


async def _ssh(name: str, line: str, forwards: tuple[str, ...], no_command: bool, provider: str | None) -> int:
    from gibil_bot.scripts.commands import LOAD_ENVIRONMENT

    async with opened(name, provider) as session, contextlib.AsyncExitStack() as forwarded:
        from gibil_bot.ssh.terminal import talk

        shell = await _forward(session, forwards, forwarded) if forwards else None
        if no_command and shell is not None:
            await shell.wait_closed()
            raise MachineLost(f"the connection to machine {name} ended")

        remote_command = f'exec "${{BASH:-sh}}" -c {shlex.quote(line)}' if line else 'exec "${SHELL:-/bin/sh}" -l'
        return await talk(session.shell, f"{LOAD_ENVIRONMENT}; {remote_command}", our_stdin.blocks())


async def _forward(session: MachineSession, forwards: tuple[str, ...], stack: contextlib.AsyncExitStack) -> SSHShell:
    """Forward the ports until the stack is closed; return their connection."""
    from gibil_bot.ssh.forwarding import forwarding, parse_forward
    from gibil_bot.ssh.shell import SSHShell

    parsed = [parse_forward(text) for text in forwards]
    if not isinstance(session.shell, SSHShell):
        raise UsageError(f"machine {session.name} has no SSH connection, so it can't forward ports")
    for each in parsed:
        port = await stack.enter_async_context(forwarding(session.shell, each, print_message))
        print_message(f"{each.bind or '*'}:{port} is forwarded to {each.host}:{each.host_port} on {session.name}")
    return session.shell
