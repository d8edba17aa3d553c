"""The tools that push commits from a machine and open pull requests, with the credentials of the user's computer."""

from __future__ import annotations

import functools
from typing import Annotated, Any

from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from gibil_bot.commits import from_machine
from gibil_bot.commits.pull_requests import PullRequestOptions, open_pull_request
from gibil_bot.machines.session import MachineSession
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.results import PullRequestView, Pushed, Server, add, answer
from gibil_bot.wiring import open_pull_requests


class PushTools:
    """Changes to workflows and `.gibil.yml` can't be pushed with these tools: a person reviews them and runs `gibil push`."""

    def __init__(self, connections: MachineConnections) -> None:
        self._connections = connections

    def register(self, server: MCPServer[Any]) -> None:
        add(
            server,
            self.push,
            annotations=ToolAnnotations(
                title="Push a machine's commits", read_only_hint=False, destructive_hint=False, open_world_hint=True
            ),
        )
        add(
            server,
            self.pr_create,
            annotations=ToolAnnotations(
                title="Open a pull request", read_only_hint=False, destructive_hint=False, open_world_hint=True
            ),
        )

    async def push(
        self,
        branch: Annotated[str | None, Field(description="The branch to push to. Default gibil/NAME of the machine.")] = None,
        server: Server = None,
    ) -> Annotated[CallToolResult, Pushed]:
        """Push the commits that were made in /root/project on a machine to a branch of the repository that it was created from.

        Commit on the machine first (vm_bash: git commit). The commits are checked on the user's computer and pushed from
        there, never by force; the machine gets no credentials. Changes to workflows or .gibil.yml are rejected: the user can
        push those with `gibil push NAME --with-workflows`.
        """
        settings = self._connections.settings

        async def on_machine(session: MachineSession) -> CallToolResult:
            async with from_machine.fetch(
                session.machine, session.shell, branch, with_workflows=False, settings=settings
            ) as found:
                await from_machine.push(found, session.shell)
            view = {"server": session.name, **from_machine.pushed_view(found)}
            return answer("\n".join(from_machine.pushed_lines(found)), view)

        return await self._connections.work(server, on_machine, repeatable=True)

    async def pr_create(
        self,
        title: Annotated[str | None, Field(description="Default: the subject of the commit, if there is only one.")] = None,
        body: Annotated[str, Field(description="The text of the pull request, in Markdown.")] = "",
        base: Annotated[
            str | None,
            Field(description="The branch to merge into. Default: the one that the machine was created from, if it exists."),
        ] = None,
        branch: Annotated[str | None, Field(description="The branch to push to. Default gibil/NAME of the machine.")] = None,
        draft: Annotated[bool, Field(description="Open it as a draft.")] = False,
        server: Server = None,
    ) -> Annotated[CallToolResult, PullRequestView]:
        """Push the commits of a machine, as the tool push does, and open a pull request on GitHub with the user's token.

        If a pull request of that branch is open, it gets the new commits and keeps its title and text. The pull request of a
        fork is opened in its parent.
        """
        settings = self._connections.settings
        options = PullRequestOptions(title=title, body=body, base=base, branch=branch, draft=draft)
        connect = functools.partial(open_pull_requests, settings)

        async def on_machine(session: MachineSession) -> CallToolResult:
            opened = await open_pull_request(session.machine, session.shell, options, settings, connect)
            state = "was already open and has the new commits" if opened.already_existed else "is open"
            lines = [
                *from_machine.pushed_lines(opened.commits),
                f"pull request #{opened.number} to {opened.base} of {opened.into} {state}: {opened.url}",
            ]
            view = {
                "server": session.name, **from_machine.pushed_view(opened.commits), "into": opened.into, "base": opened.base,
                "number": opened.number, "url": opened.url, "draft": opened.draft,
                "already_existed": opened.already_existed,
            }  # fmt: skip
            return answer("\n".join(lines), view)

        return await self._connections.work(server, on_machine, repeatable=True)
