"""Messages of MCP: lines that aren't messages, arguments that are wrong, and errors as agents read them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import pytest
from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, ToolAnnotations

from gibil_bot.mcp_server.results import Server, add, answer, for_agents
from gibil_bot.mcp_server.server import _call
from gibil_bot.mcp_server.stdio import InvalidMessage, read_message


def call(**arguments: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": arguments}).encode()


def test_half_of_a_surrogate_pair_becomes_a_replacement_character() -> None:
    """Clients in JavaScript send it for an emoji that was cut in two, and would wait for an answer."""
    whole = read_message(call(text="\U0001f600"))
    assert whole.params == {"text": "\U0001f600"}  # type: ignore[union-attr]
    for line in (call(text="a\ud83d"), b'{"jsonrpc":"2.0","id":7,"method":"x","params":{"text":"a\xff"}}'):
        assert read_message(line).params == {"text": "a\ufffd"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("line", "number", "code"),
    [
        (b"{", None, -32700),
        (b"[" * 100_000, None, -32700),
        (b"hello", None, -32700),
        (b"[]", None, -32600),
        (b"5", None, -32600),
        (b'{"jsonrpc":"2.0","id":7,"method":5}', 7, -32600),
        (b'{"jsonrpc":"2.0","id":"a","method":"x","params":5}', "a", -32600),
        (b'{"jsonrpc":"1.0","id":3,"method":"x"}', 3, -32600),
    ],
)
def test_a_line_that_is_no_message_is_answered(line: bytes, number: object, code: int) -> None:
    with pytest.raises(InvalidMessage) as caught:
        read_message(line)
    assert caught.value.answer is not None
    error: Any = caught.value.answer["error"]
    assert (caught.value.answer["id"], error["code"]) == (number, code)


def test_an_invalid_notification_is_not_answered() -> None:
    with pytest.raises(InvalidMessage) as caught:
        read_message(b'{"jsonrpc":"2.0","method":"x","params":5}')
    assert caught.value.answer is None


async def tool(
    count: int,
    ttl: str | int | None = None,
    env: dict[str, str] | None = None,
    kind: Literal["a", "b"] = "a",
    deep: bool = False,
    server: Server = None,
) -> Annotated[CallToolResult, dict[str, object]]:
    """Do it."""
    return answer("done", {"count": count, "ttl": ttl, "kind": kind, "deep": deep, "server": server})


@pytest.fixture(scope="module")
def registry() -> MCPServer[Any]:
    server: MCPServer[Any] = MCPServer("test")
    add(server, tool, annotations=ToolAnnotations(title="x"))
    return server


async def respond(registry: MCPServer[Any], **arguments: Any) -> Any:
    context: Any = None
    return await _call(registry, "tool", arguments, context)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "USAGE: tool needs the argument count"),
        ({"count": None}, "USAGE: tool: count must be an integer"),
        ({"count": "many"}, "USAGE: tool: count must be an integer"),
        ({"count": 1, "ttl": []}, "USAGE: tool: ttl must be a string or an integer"),
        ({"count": 1, "env": "A=1"}, "USAGE: tool: env must be an object"),
        ({"count": 1, "env": {"A": 1}}, "USAGE: tool: env.A must be a string"),
        ({"count": 1, "kind": "c"}, "USAGE: tool: kind must be 'a' or 'b'"),
        ({"count": 1, "deep": 5}, "USAGE: tool: deep must be a boolean"),
        ({"count": [], "deep": 5}, "USAGE: tool: count must be an integer; tool: deep must be a boolean"),
        ({"number": 1}, "USAGE: tool has no argument 'number'; it has: count, ttl, env, kind, deep, server"),
        (
            {"count": 1, "name": "a", "machine": "b"},
            "USAGE: tool: server and machine name different machines; use server alone",
        ),
    ],
)
async def test_wrong_arguments_are_described_without_their_values(
    registry: MCPServer[Any], arguments: dict[str, Any], message: str
) -> None:
    result = await respond(registry, **arguments)
    assert (result.is_error, result.content[0].text) == (True, message)


async def test_null_is_the_default_of_every_optional_argument(registry: MCPServer[Any]) -> None:
    """Some clients and models write null for what they don't need."""
    result = await respond(registry, count=1, ttl=None, env=None, kind=None, deep=None, server=None, name=None)
    assert not result.is_error, result.content
    assert result.structured_content == {"count": 1, "ttl": None, "kind": "a", "deep": False, "server": None}
    named = await respond(registry, count=1, name="m", server=None, machine=None)
    assert named.structured_content["server"] == "m"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("there is no job x on machine m; `gibil jobs m` lists them", "there is no job x on machine m; vm_job_list lists them"),
        (
            "it was stopped; for a command that survives a lost connection: gibil run m COMMAND --background",
            "it was stopped; for a command that survives a lost connection, pass background=true",
        ),
        ("wait for their end, or end them with --stop", "wait for their end, or pass stop=true to end them"),
        ("m has 2 new commits: describe them with --title", "m has 2 new commits: describe them with title"),
        (
            "a machine named m exists; or destroy it: gibil destroy m",
            "a machine named m exists; or destroy it with destroy_server",
        ),
        (
            "it can't be forked: keep its disk as a template (gibil template create NAME --from m), "
            "then create machines from it (gibil create --template NAME --fleet N)",
            "it can't be forked: keep its disk as a template (ask the user for `gibil template create NAME --from m`), "
            "then create machines from it (create_server with template=NAME, once for each)",
        ),
        (
            "there is no template 't' (none exists); create it: gibil template create t --from MACHINE",
            "there is no template 't' (none exists); ask the user for `gibil template create t --from MACHINE`",
        ),
        ("the template is ext4; pass --template only", "the template is ext4; pass template only"),
        ("a\x1b[31m\u202eb", "a [31m b"),
        ("x" * 5000, f"{'x' * 1000} […]"),
    ],
)
def test_advice_names_tools_and_quotes_are_short(message: str, shown: str) -> None:
    assert for_agents(message) == shown
    assert len(for_agents("line\n" * 1000).splitlines()) == 40
