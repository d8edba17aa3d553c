"""The server of `gibil mcp`: its tools, its errors, its shutdown."""

from __future__ import annotations

import asyncio
import logging
import signal
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolRequestParams, CallToolResult, InputRequiredResult, ListToolsResult, PaginatedRequestParams
from pydantic import ValidationError

from gibil_bot import __version__
from gibil_bot.config import Settings
from gibil_bot.errors import ConfigurationError, GibilError, Unavailable
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.file_tools import FileTools
from gibil_bot.mcp_server.job_tools import JobTools
from gibil_bot.mcp_server.machine_tools import MachineTools
from gibil_bot.mcp_server.results import refusal
from gibil_bot.mcp_server.stdio import standard_streams
from gibil_bot.mcp_server.tool_calls import ToolCalls
from gibil_bot.mcp_server.work_tools import WorkTools

log = logging.getLogger("gibil.mcp")

_CLEANUP_S = 10.0
INSTRUCTIONS = (
    "Disposable Linux machines. Create one with create_server (its repository is cloned to /root/project), work on it with the "
    "vm_ tools, destroy it with destroy_server. A machine is destroyed at its expiry, which extend_server moves. `server` is "
    "optional while exactly one machine is running."
)


async def serve(settings: Settings) -> None:
    """Serve until the client disconnects, SIGTERM or SIGINT. Machines exist until their expiry."""
    connections, calls = MachineConnections(settings), ToolCalls()
    serving = asyncio.create_task(_serve(connections, calls))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    await asyncio.wait({serving})
    # From here on a signal changes nothing: cancelled calls clean up, in a bounded time.
    await calls.finish(_CLEANUP_S)
    await connections.close()
    if not serving.cancelled():
        serving.result()


async def _serve(connections: MachineConnections, calls: ToolCalls) -> None:
    async with standard_streams() as (incoming, outgoing):
        server = create_server(connections, calls)
        await server.run(incoming, outgoing, server.create_initialization_options())


def create_server(connections: MachineConnections, calls: ToolCalls) -> Server[Any]:
    registry: MCPServer[Any] = MCPServer("gibil", log_level="WARNING")
    for tools in (MachineTools(connections), WorkTools(connections), FileTools(connections), JobTools(connections)):
        tools.register(registry)

    async def list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=await registry.list_tools())

    async def call_tool(
        request: ServerRequestContext[Any], params: CallToolRequestParams
    ) -> CallToolResult | InputRequiredResult:
        context: Context[Any, Any] = Context(request_context=request, mcp_server=registry, input_params=params)
        return await calls.run(_call(registry, params.name, params.arguments or {}, context))

    return Server(
        "gibil", version=__version__, title="gibil: disposable machines", instructions=INSTRUCTIONS,
        on_list_tools=list_tools, on_call_tool=call_tool,
    )  # fmt: skip


async def _call(
    registry: MCPServer[Any], name: str, arguments: dict[str, Any], context: Context[Any, Any]
) -> CallToolResult | InputRequiredResult:
    arguments_of = {tool.name: list(tool.input_schema.get("properties", {})) for tool in await registry.list_tools()}
    if name not in arguments_of:
        return refusal(f"there is no tool {name!r}; the tools are: {', '.join(arguments_of)}", "USAGE")
    for argument in arguments:
        if argument not in arguments_of[name]:
            return refusal(f"{name} has no argument {argument!r}; it has: {', '.join(arguments_of[name]) or 'none'}", "USAGE")
    try:
        return await registry.call_tool(name, arguments, context)
    except ToolError as error:
        return _result_text(name, error.__cause__ or error)


def _result_text(tool: str, error: BaseException) -> CallToolResult:
    match error:
        case ValidationError() if error.title == f"{tool}Arguments":  # with another title, our own result is invalid
            return refusal("; ".join(_wrong(tool, problem) for problem in error.errors()), "USAGE")
        case ConfigurationError():
            return refusal("; ".join(error.problems), error.code)
        case Unavailable():
            return refusal("; ".join((error.message, *error.remedies)), error.code)
        case GibilError():
            return refusal(error.message, error.code)
        case _:
            log.error("%s failed", tool, exc_info=error)
            return refusal(f"internal error: {type(error).__name__}: {error}", "INTERNAL")


def _wrong(tool: str, problem: Any) -> str:
    """Describe an invalid argument without its value, which may be secret."""
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{tool} needs the argument {path}"
    message = str(problem["msg"])
    return f"{tool}: {path}: {message[:1].lower()}{message[1:]}"
