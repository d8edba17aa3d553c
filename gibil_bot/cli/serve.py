"""`gibil serve`: runs the bot."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.machine import on_end
from gibil_bot.cli.output import json_option, print_json, print_message
from gibil_bot.config import Settings, load_settings, require_github
from gibil_bot.errors import ConfigurationError

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

    from gibil_bot.http_protocol import ServerState

STOP_WITHIN_S = 10
MOST_CONNECTIONS = 1024
"""Maximum for the web server, and at most half of the file descriptors: machines and GitHub need the rest."""


@click.command()
@click.option("--host", help="The address to listen on (GIBIL_HOST).")
@click.option("--port", type=click.IntRange(0, 65535), help="The port (GIBIL_PORT); 0 for a free one.")
@click.option("--verbose", "-v", is_flag=True, help="Also log ignored deliveries.")
@json_option
def serve(host: str | None, port: int | None, verbose: bool, as_json: bool) -> None:
    """Run the bot.

    Settings come from the environment; `gibil doctor` checks them. SIGTERM stops the bot: the next start resumes its runs, in
    the middle of their output. With --json: print the address as soon as the bot listens.

    \b
    GIBIL_GITHUB_APP_ID=1234 GIBIL_GITHUB_PRIVATE_KEY=app.pem GIBIL_GITHUB_WEBHOOK_SECRET=… gibil serve
    """
    # With Python's default thresholds, garbage collection pauses the webhook: the slowest 1 % of deliveries took 48 ms instead
    # of 17.
    gc.set_threshold(25_000, 20, 20)
    settings = load_settings()
    require_github(settings)
    for note in settings.notes:
        print_message(note)
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(name)s  %(message)s",
    )
    for noisy in ("asyncio", "asyncssh", "httpx", "httpcore", "githubkit", "hishel"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("asyncpg").setLevel(
        logging.CRITICAL
    )  # tracebacks of lost connections, which the store reports in one line
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = MOST_CONNECTIONS if most == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, most // 2)
    listener = listen(host or settings.host, settings.port if port is None else port, "GIBIL_HOST, GIBIL_PORT")
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, listener, as_json, connections))


def listen(host: str, port: int, settings: str) -> socket.socket:
    """Return a listening socket. Raises ConfigurationError that names the settings."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        problem = f"{settings}: can't listen on {host}:{port}: {error.strerror}; choose another port with --port"
        raise ConfigurationError((problem,)) from error


async def _serve(settings: Settings, listener: socket.socket, as_json: bool, connections: int) -> None:
    from gibil_bot.http_protocol import ServerLimits, ServerState
    from gibil_bot.mcp_server.http import bot_endpoint
    from gibil_bot.web import app
    from gibil_bot.web.starting import Starting
    from gibil_bot.wiring import running_bot

    stop, started = asyncio.Event(), asyncio.Event()
    task = asyncio.current_task()
    assert task is not None

    def end() -> None:
        stop.set()
        if not started.is_set():  # it may wait for the database
            task.cancel()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, end)
    on_end(end)
    address, port = listener.getsockname()[:2]
    state = ServerState(limits=ServerLimits(connections=connections))
    starting = Starting()
    async with _served(web_server(starting, state), listener) as serving, contextlib.AsyncExitStack() as stack:
        try:
            bot = await stack.enter_async_context(running_bot(settings))
            mcp = await stack.enter_async_context(bot_endpoint(bot, address, port))
            started.set()
        except asyncio.CancelledError:
            if not stop.is_set():
                raise
            return
        starting.ready(app.create_app(bot, state.rejected, mcp))
        if starting.lost_deliveries:
            bot.delivery_lost()
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        print_message(f"listening on {url}")
        if as_json:
            print_json({"url": url, "host": address, "port": port, "pid": os.getpid()})
        await asyncio.wait({serving.task, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        await serving.stop()
        print_message("stopping; the next start resumes the runs in progress")


@dataclass(frozen=True, slots=True)
class _Serving:
    """A web server that runs."""

    server: uvicorn.Server
    task: asyncio.Task[None]

    async def stop(self) -> None:
        """Let it answer the requests that it has. Safe to repeat."""
        self.server.should_exit = True
        await self.task


@contextlib.asynccontextmanager
async def _served(server: uvicorn.Server, listener: socket.socket) -> AsyncIterator[_Serving]:
    """Run the server during the block."""
    serving = _Serving(server, asyncio.create_task(server.serve(sockets=[listener])))
    try:
        yield serving
    finally:
        await serving.stop()


def web_server(app: ASGIApp, state: ServerState) -> uvicorn.Server:
    """Return uvicorn with the limits of `state`."""
    import uvicorn

    class Server(uvicorn.Server):
        """Leaves signals to us: uvicorn would raise them again before the bot has suspended its runs."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(
        uvicorn.Config(
            app,
            http=state.protocol(),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # the signature authenticates the sender, not the address
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
    )
