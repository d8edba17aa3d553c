"""An agent as its client sees it: the real `gibil mcp` as a process, called by the protocol library's client in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mcp.client.session import ClientSession
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.types import CallToolResult

from tests.doubles.commandline import CommandLine
from tests.doubles.patience import patient

ANSWER_S = 60.0


class ToolError(Exception):
    """A tool error: its code and its message."""

    def __init__(self, code: str, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
        self.sentence = sentence


class Agent:
    """Calls may come from any thread, also concurrently."""

    def __init__(self, command: str, arguments: list[str], environment: dict[str, str], folder: Path) -> None:
        self._parameters = StdioServerParameters(command=command, args=arguments, env=environment, cwd=folder)
        self._errors = (folder / "mcp.stderr").open("a+")
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._leave = asyncio.Event()
        self._problem: BaseException | None = None
        self.session: ClientSession
        self.progress: list[str] = []
        """Progress messages of the last calls."""
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()
        assert self._ready.wait(ANSWER_S)
        if self._problem is not None:
            raise self._problem

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._live())
        except BaseException as problem:
            self._problem = problem
        finally:
            self._ready.set()
            self._loop.close()

    async def _live(self) -> None:
        async with stdio_client(self._parameters, self._errors) as (source, sink), ClientSession(source, sink) as session:
            self.session = session
            await session.initialize()
            self._ready.set()
            await self._leave.wait()

    def tools(self) -> dict[str, Any]:
        listed = asyncio.run_coroutine_threadsafe(self.session.list_tools(), self._loop).result(patient(ANSWER_S))
        return {tool.name: tool for tool in listed.tools}

    def begin(self, tool: str, **arguments: Any) -> concurrent.futures.Future[CallToolResult]:
        """Start a call; `cancel()` on the future cancels it at the server."""

        async def report(progress: float, total: float | None, message: str | None) -> None:
            self.progress.append(message or "")

        async def call() -> CallToolResult:
            result: CallToolResult = await self.session.call_tool(tool, arguments, progress_callback=report)
            return result

        return asyncio.run_coroutine_threadsafe(call(), self._loop)

    def full(self, tool: str, **arguments: Any) -> tuple[dict[str, Any], str]:
        """Return the structured result and the text for the model. Raises ToolError."""
        return opened(self.begin(tool, **arguments).result(patient(ANSWER_S)))

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return self.full(tool, **arguments)[0]

    def stderr_text(self) -> str:
        """Return what the server wrote to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def hang_up(self) -> None:
        """Close the server's stdin, and wait until the server has ended."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._leave.set)
            self._thread.join(ANSWER_S)
        assert not self._thread.is_alive()

    def close(self) -> None:
        with contextlib.suppress(AssertionError, RuntimeError):
            self.hang_up()
        self._errors.close()


def opened(result: CallToolResult) -> tuple[dict[str, Any], str]:
    (content,) = result.content
    text: str = content.text  # type: ignore[union-attr]
    view = result.structured_content
    if result.is_error:
        assert view is None, "clients that check the output schema would hide the message"
        code, _, sentence = text.partition(": ")
        raise ToolError(code, sentence)
    assert view is not None
    return view, text


@contextlib.contextmanager
def agent_of(line: CommandLine) -> Iterator[Agent]:
    """Start an agent with the configuration of `gibil mcp --print-config`, the environment that a client passes on, and
    the command line's settings, as a user would write them into the client's configuration."""
    server = json.loads(line.gibil("mcp", "--print-config").stdout)["mcpServers"]["gibil"]
    kept = {name: value for name, value in line.environment().items() if name.startswith("GIT_")} | line.settings
    agent = Agent(
        server["command"], server["args"], {**kept, **server["env"], "HOME": os.fspath(line.folder / "home")}, line.here
    )
    try:
        yield agent
    finally:
        agent.close()


@contextlib.contextmanager
def over_http(line: CommandLine) -> Iterator[dict[str, Any]]:
    """Start `gibil mcp --http`; yield its URL and the headers of a client."""
    token = line.json("token", "create", "ada", "--scope", "machines")["token"]
    process = line.start("mcp", "--http", "--port", "0", "--json", stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield {"url": json.loads(process.stdout.readline())["url"], "headers": {"Authorization": f"Bearer {token}"}}
    finally:
        process.terminate()
        assert process.wait(timeout=patient(30)) == 0
