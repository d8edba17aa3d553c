"""`gibil mcp`: machines for agents, over MCP on stdin and stdout or over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.machine import as_terminal
from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.config import load_settings
from gibil_bot.errors import UsageError
from gibil_bot.mcp_server.install.entry import entry

if TYPE_CHECKING:
    import socket

    from gibil_bot.config import Settings

DEFAULT_PORT = 7331


@click.command()
@click.option("--print-config", is_flag=True, help="Print the entry for a client's configuration, and exit.")
@click.option("--print-agents", is_flag=True, help="Print a section for a project's AGENTS.md, and exit.")
@click.option(
    "--http", "over_http", is_flag=True, help="Serve Streamable HTTP at /mcp until SIGTERM, instead of stdin and stdout."
)
@click.option("--host", metavar="ADDRESS", help="With --http: the loopback address to listen on.  [default: 127.0.0.1]")
@click.option(
    "--port", metavar="PORT", type=click.IntRange(0, 65535), help=f"With --http: 0 for a free one.  [default: {DEFAULT_PORT}]"
)
@json_option
def mcp(print_config: bool, print_agents: bool, over_http: bool, host: str | None, port: int | None, as_json: bool) -> None:
    """Serve machines to agents over MCP, on stdin and stdout or over HTTP.

    A client starts it: `gibil init` registers it with the clients on this computer. It ends when the client disconnects; its
    machines exist until their expiry.

    With --http several clients of this computer share one server. Other users of the computer can connect to it too, so every
    request needs a token with the scope `machines` in the header `Authorization: Bearer …`. Its holder acts as you: on your
    machines, on files below this directory, and with your credentials for git.

    \b
    gibil mcp --print-config
    gibil mcp --print-agents >> AGENTS.md
    gibil token create ada --scope machines
    gibil mcp --http
    """
    if print_config + print_agents + over_http > 1:
        raise UsageError("--print-config, --print-agents and --http can't be combined")
    if print_agents:
        from gibil_bot.mcp_server.install.skill import shipped

        text = shipped("AGENTS.md")
        if as_json:
            print_json({"text": text})
        else:
            print_text(text)
        return
    if over_http:
        _serve_http(host or "127.0.0.1", DEFAULT_PORT if port is None else port, as_json)
        return
    if host is not None or port is not None:
        raise UsageError("--host and --port need --http")
    if print_config:
        view = {"mcpServers": {"gibil": entry()}}
        if as_json:
            print_json(view)
        else:
            import json

            print_text(json.dumps(view, indent=2) + "\n")
        return
    if as_json:
        raise UsageError("--json needs --print-config or --http: otherwise stdout carries MCP")
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


def _serve_http(host: str, port: int, as_json: bool) -> None:
    import asyncio

    from gibil_bot.cli.serve import listen

    if not _is_loopback(host):
        raise UsageError(
            f"--host {host!r} is not a loopback address: other computers would send their tokens without encryption; "
            "use 127.0.0.1 or ::1, and a tunnel or an HTTPS proxy in front of it"
        )
    settings = load_settings()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="gibil: %(message)s")
    listener = listen("127.0.0.1" if host == "localhost" else host, port, "--host, --port")
    asyncio.run(_run_http(settings, listener, as_json))


def _is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def _run_http(settings: Settings, listener: socket.socket, as_json: bool) -> None:
    import asyncio
    import signal

    from gibil_bot.cli.machine import on_end
    from gibil_bot.cli.serve import web_server
    from gibil_bot.http_protocol import ServerState
    from gibil_bot.mcp_server.http import machine_endpoint

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    on_end(stop.set)
    address, port = listener.getsockname()[:2]
    async with machine_endpoint(settings, address, port) as endpoint:
        server = web_server(endpoint, ServerState())
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}/mcp"
        print_message(f"listening on {url}; `gibil token create NAME --scope machines` creates a token for it")
        if as_json:
            print_json({"url": url, "host": address, "port": port, "pid": os.getpid()})
        await asyncio.wait({serving, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True  # the endpoint is closed, so that open streams have ended
    await serving
