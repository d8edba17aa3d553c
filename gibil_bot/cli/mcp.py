"""`gibil mcp`: machines for agents, over MCP on stdin and stdout."""

from __future__ import annotations

import logging
import os
import sys

import click

from gibil_bot.cli.machine import as_terminal
from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.config import load_settings
from gibil_bot.errors import UsageError
from gibil_bot.mcp_server.install.entry import entry


@click.command()
@click.option("--print-config", is_flag=True, help="Print the entry for a client's configuration, and exit.")
@json_option
def mcp(print_config: bool, as_json: bool) -> None:
    """Serve machines to agents over MCP, on stdin and stdout.

    A client starts it: `gibil init` registers it with the clients on this computer. It ends when the client disconnects; its
    machines exist until their expiry.

    \b
    gibil mcp --print-config
    """
    if print_config:
        view = {"mcpServers": {"gibil": entry()}}
        if as_json:
            print_json(view)
        else:
            import json

            print_text(json.dumps(view, indent=2) + "\n")
        return
    if as_json:
        raise UsageError("--json needs --print-config: otherwise stdout carries MCP")
    if sys.stdin is None or sys.stdout is None:
        raise UsageError("stdin or stdout is closed: gibil mcp must be started by an MCP client")
    if sys.stderr is None:  # its number would be used for the next opened file
        os.open(os.devnull, os.O_WRONLY)
    import asyncio

    settings = load_settings()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="gibil: %(message)s")
    if as_terminal(0):
        print_message("gibil mcp expects an MCP client on stdin; Ctrl-C ends it. See gibil mcp --help")
    from gibil_bot.mcp_server.server import serve

    asyncio.run(serve(settings))
