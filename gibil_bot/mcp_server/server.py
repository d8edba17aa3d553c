"""The server of `gibil mcp` and of the bot's /mcp: its tools, its errors, its shutdown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolRequestParams, CallToolResult, InputRequiredResult, ListToolsResult, PaginatedRequestParams
from pydantic import ValidationError

from gibil_bot import __version__
from gibil_bot.config import Settings
from gibil_bot.errors import ConfigurationError, GibilError, Unavailable, UsageError
from gibil_bot.mcp_server.commit_tools import PushTools
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.file_tools import FileTools
from gibil_bot.mcp_server.job_tools import JobTools
from gibil_bot.mcp_server.local_files import LocalFiles
from gibil_bot.mcp_server.local_runs import LocalRuns
from gibil_bot.mcp_server.machine_tools import MachineTools
from gibil_bot.mcp_server.results import refusal
from gibil_bot.mcp_server.run_tools import LocalRunTools
from gibil_bot.mcp_server.stdio import standard_streams
from gibil_bot.mcp_server.tool_calls import ToolCalls
from gibil_bot.mcp_server.transfer_tools import TransferTools
from gibil_bot.mcp_server.work_tools import WorkTools

log = logging.getLogger("gibil.mcp")

_CLEANUP_S = 10.0
INSTRUCTIONS = (
    "Disposable Linux machines. Create one with create_server (its repository is cloned to /root/project), work on it with the "
    "vm_ tools, copy it with fork for several attempts, destroy it with destroy_server. Commit on the machine, then hand the "
    "work in with push or pr_create. A machine is destroyed at its expiry, which extend_server moves. `server` is optional "
    "while exactly one machine is running. run_workflow runs a workflow of a checkout on the user's computer, as the bot would "
    "on its pull request."
)
MACHINE = "server"
"""The argument that names a machine, in every tool."""
_ALIASES = ("name", "machine")
"""Other names of that argument, which clients use from habit and from earlier versions."""


class Tools(Protocol):
    """A group of tools."""

    def register(self, server: MCPServer[Any]) -> None: ...


async def serve(settings: Settings) -> None:
    """Serve until the client disconnects, SIGTERM or SIGINT. Machines exist until their expiry."""
    async with machine_server(settings) as server:
        serving = asyncio.create_task(_serve(server))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, serving.cancel)
        await asyncio.wait({serving})
    # From here on a signal changes nothing: cancelled calls clean up, in a bounded time.
    if not serving.cancelled():
        serving.result()


@contextlib.asynccontextmanager
async def machine_server(settings: Settings) -> AsyncIterator[Server[Any]]:
    """Yield a server with the tools of the user's computer. Leaving the block ends its calls and runs, but not machines."""
    connections, calls, runs = MachineConnections(settings), ToolCalls(), LocalRuns(settings)
    folder = Path.cwd()
    groups: list[Tools] = [
        MachineTools(connections),
        WorkTools(connections),
        FileTools(connections),
        JobTools(connections),
        PushTools(connections),
        TransferTools(connections, LocalFiles(folder, settings.data_dir)),
        LocalRunTools(runs, folder),
    ]
    try:
        yield create_server(groups, calls, INSTRUCTIONS)
    finally:
        await calls.finish(_CLEANUP_S)
        await runs.close(_CLEANUP_S)
        await connections.close()


async def _serve(server: Server[Any]) -> None:
    async with standard_streams() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def create_server(groups: Sequence[Tools], calls: ToolCalls, instructions: str) -> Server[Any]:
    registry: MCPServer[Any] = MCPServer("gibil", log_level="WARNING")
    for tools in groups:
        tools.register(registry)

    async def list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=await registry.list_tools())

    async def call_tool(
        request: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        context: Context[Any, Any] = Context(request_context=request, mcp_server=registry, input_params=params)
        return await calls.run(_call(registry, params.name, params.arguments or {}, context))

    return Server(
        "gibil", version=__version__, title="gibil: disposable machines", instructions=instructions,
        on_list_tools=list_tools, on_call_tool=call_tool,
    )  # fmt: skip


async def _call(
    registry: MCPServer[Any], name: str, arguments: dict[str, Any], context: Context[Any, Any]
) -> CallToolResult | InputRequiredResult:
    tools = {tool.name: tool.input_schema for tool in await registry.list_tools()}
    arguments_of = {tool: list(schema.get("properties", {})) for tool, schema in tools.items()}
    if name not in arguments_of:
        return refusal(f"there is no tool {name!r}; the tools are: {', '.join(arguments_of)}", "USAGE")
    try:
        arguments = _with_machine(arguments, arguments_of[name])
    except UsageError as error:
        return refusal(f"{name}: {error.message}", error.code)
    for argument in arguments:
        if argument not in arguments_of[name]:
            return refusal(f"{name} has no argument {argument!r}; it has: {', '.join(arguments_of[name]) or 'none'}", "USAGE")
    # Some clients and models write null for every argument that they don't need.
    required = tools[name].get("required", ())
    arguments = {key: value for key, value in arguments.items() if value is not None or key in required}
    try:
        return await registry.call_tool(name, arguments, context)
    except ToolError as error:
        return _result_text(name, error.__cause__ or error)


def _with_machine(arguments: dict[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """Return the arguments with the machine under its one name. Raises UsageError if two names have different values."""
    if MACHINE not in known:
        return arguments
    found = dict(arguments)
    for alias in _ALIASES:
        if alias in found and alias not in known:
            value = found.pop(alias)
            if value is None:
                continue
            if found.get(MACHINE) not in (None, value):
                raise UsageError(f"{MACHINE} and {alias} name different machines; use {MACHINE} alone")
            found[MACHINE] = value
    return found


def _result_text(tool: str, error: BaseException) -> CallToolResult:
    match error:
        case ValidationError() if error.title == f"{tool}Arguments":  # with another title, our own result is invalid
            return refusal("; ".join(_wrong(tool, error)), "USAGE")
        case ConfigurationError():
            return refusal("; ".join(error.problems), error.code)
        case Unavailable():
            return refusal("; ".join((error.message, *error.remedies)), error.code)
        case GibilError():
            return refusal(error.message, error.code)
        case _:
            log.error("%s failed", tool, exc_info=error)
            return refusal(f"internal error: {type(error).__name__}: {error}", "INTERNAL")


def _wrong(tool: str, error: ValidationError) -> Iterator[str]:
    """Describe the invalid arguments without their values, which may be secret. The types of one argument are alternatives."""
    wanted: dict[str, list[str]] = {}
    for problem in error.errors():
        # In a union the library adds the name of a type; the types of the tools' arguments are the only such names.
        path = ".".join(str(part) for part in problem["loc"] if part not in _TYPES)
        message = str(problem["msg"]).partition(", unable to")[0]
        for theirs, ours in _MESSAGES:
            message = message.replace(theirs, ours)
        wanted.setdefault(path, []).append("" if problem["type"] == "missing" else message)
    for path, messages in wanted.items():
        if "" in messages:
            yield f"{tool} needs the argument {path}"
        else:
            yield f"{tool}: {path} must be {' or '.join(dict.fromkeys(messages))}"


_TYPES = ("str", "int", "dict[str,str]")
_MESSAGES = (
    ("Input should be ", ""),
    ("a valid integer", "an integer"),
    ("a valid dictionary", "an object"),
    ("a valid ", "a "),
)
