"""The tools that copy files and directories between the user's computer and a machine."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any, TypeAlias

from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from gibil_bot.humanize import count
from gibil_bot.machines.session import MachineSession
from gibil_bot.machines.tools import transfer
from gibil_bot.machines.tools.copy_report import MOST_BYTES, CopyReport, Transfer
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.file_tools import Path
from gibil_bot.mcp_server.local_files import LocalFiles
from gibil_bot.mcp_server.results import Copied, Server, add, answer

LocalPath: TypeAlias = Annotated[
    str, Field(description="On the user's computer, in or below the directory in which gibil mcp was started.")
]


class TransferTools:
    def __init__(self, connections: MachineConnections, local_files: LocalFiles) -> None:
        self._connections = connections
        self._local = local_files

    def register(self, server: MCPServer[Any]) -> None:
        add(
            server,
            self.upload,
            annotations=ToolAnnotations(title="Copy files to a machine", destructive_hint=True, idempotent_hint=True),
        )
        add(
            server,
            self.download,
            annotations=ToolAnnotations(title="Copy files from a machine", destructive_hint=True, idempotent_hint=True),
        )

    async def upload(self, local_path: LocalPath, path: Path, server: Server = None) -> Annotated[CallToolResult, Copied]:
        """Copy a file, or a directory's content, from the user's computer to a machine, replacing files. At most 1 GiB.

        Missing directories are created. A file may go into an existing directory `path`.
        """
        source, descriptor = await asyncio.to_thread(self._local.open, local_path)
        try:

            async def on_machine(session: MachineSession) -> CallToolResult:
                os.lseek(descriptor, 0, os.SEEK_SET)  # the call may be repeated
                done = await transfer.upload_open(
                    session, descriptor, str(source), path, CopyReport(MOST_BYTES),
                    timeout_s=transfer.TIMEOUT_S, omit=self._local.unreadable(source),
                )  # fmt: skip
                return _copied(session, done, local_path, done.path, f"{local_path} to {done.path} on {session.name}")

            return await self._connections.work(server, on_machine, repeatable=True)
        finally:
            os.close(descriptor)

    async def download(
        self,
        path: Path,
        local_path: LocalPath,
        overwrite: Annotated[bool, Field(description="Replace a file that exists on the user's computer.")] = False,
        server: Server = None,
    ) -> Annotated[CallToolResult, Copied]:
        """Copy a file or a directory from a machine to the user's computer. At most 1 GiB.

        A directory is only copied to a path that doesn't exist, without links that lead out of it, and without files that git,
        agents or editors obey: .git, CLAUDE.md, .vscode …
        """
        target = await asyncio.to_thread(self._local.writable, local_path, overwrite=overwrite)

        async def on_machine(session: MachineSession) -> CallToolResult:
            done = await transfer.download(
                session, path, str(target), CopyReport(MOST_BYTES),
                timeout_s=transfer.TIMEOUT_S, overwrite=overwrite, omit=self._local.unwritable(target),
            )  # fmt: skip
            return _copied(session, done, local_path, path, f"{path} from {session.name} to {local_path}")

        return await self._connections.work(server, on_machine, repeatable=True)


def _copied(session: MachineSession, done: Transfer, local_path: str, path: str, what: str) -> CallToolResult:
    view = {
        "server": session.name, "local_path": local_path, "path": path, "files": done.files, "size": done.bytes,
        "left_out": list(done.left_out), "left_out_total": done.left_out_total,
    }  # fmt: skip
    lines = [f"copied {what}: {count(done.files, 'file')}, {done.bytes} bytes", *(f"left out {each}" for each in done.left_out)]
    if done.left_out_total > len(done.left_out):
        lines.append(f"left out {done.left_out_total - len(done.left_out)} more")
    return answer("\n".join(lines), view)
