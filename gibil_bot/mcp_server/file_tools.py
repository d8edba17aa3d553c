"""The tools that read, write and search files on a machine."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

from mcp.server.mcpserver import MCPServer
from mcp.types import CallToolResult, ToolAnnotations
from pydantic import Field

from gibil_bot.machines.session import MachineSession
from gibil_bot.machines.tools import files
from gibil_bot.mcp_server.connections import MachineConnections
from gibil_bot.mcp_server.results import Edited, Listing, Matches, Server, TextPage, Written, add, answer
from gibil_bot.views import timestamp

MOST_ENTRIES = 500
MOST_MATCHES = 200

Path: TypeAlias = Annotated[
    str, Field(description="Absolute, or relative to /root/project (to /root without a project); `~` is /root.")
]


class FileTools:
    def __init__(self, connections: MachineConnections) -> None:
        self._connections = connections

    def register(self, server: MCPServer[Any]) -> None:
        read_only = {"read_only_hint": True}
        add(server, self.vm_read, annotations=ToolAnnotations(title="Read a file", **read_only))
        add(
            server,
            self.vm_write,
            annotations=ToolAnnotations(title="Write a file", destructive_hint=True, idempotent_hint=True),
        )
        add(server, self.vm_edit, annotations=ToolAnnotations(title="Edit a file", destructive_hint=True))
        add(server, self.vm_ls, annotations=ToolAnnotations(title="List files", **read_only))
        add(server, self.vm_grep, annotations=ToolAnnotations(title="Search files", **read_only))

    async def vm_read(
        self,
        path: Path,
        offset: Annotated[int, Field(description="The first line to show, counted from 1.")] = 1,
        limit: Annotated[int, Field(description="The number of lines, at most 2000.")] = files.MOST_LINES,
        server: Server = None,
    ) -> Annotated[CallToolResult, TextPage]:
        """Read a text file on a machine, by lines. Continue at next_offset; the text form has line numbers."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            page = await files.read(session, path, offset, limit)
            last = page.first + len(page.lines) - 1
            notes = []
            if page.cut:
                notes.append(f"long lines are cut: {page.cut}")
            if not page.is_utf8:
                notes.append("the file is not UTF-8: some characters are shown as \ufffd")
            if page.next is None and page.total and not page.ends_with_newline:
                notes.append("no newline at the end of the file")
            further = [f"lines {page.first} to {last} of {page.total}; continue with offset={page.next}"] if page.next else []
            width = len(str(last))
            lines = [f"{number:>{width}}\t{line}" for number, line in enumerate(page.lines, page.first)]
            ending = "\n" if page.next or page.ends_with_newline else ""
            view = {
                "server": session.name, "path": path, "content": "\n".join(page.lines) + (ending if page.lines else ""),
                "first_line": page.first, "last_line": last, "total_lines": page.total, "size": page.size,
                "next_offset": page.next, "notes": notes,
            }  # fmt: skip
            text = "\n".join([*lines, *(f"[{note}]" for note in (*further, *notes))])
            return answer(text or "[the file is empty]", view)

        return await self._connections.work(server, on_machine, repeatable=True)

    async def vm_write(
        self,
        path: Path,
        content: Annotated[str, Field(description="The whole text of the file.")],
        server: Server = None,
    ) -> Annotated[CallToolResult, Written]:
        """Write or replace a file on a machine. Missing directories are created; an existing file keeps its mode."""
        data = content.encode("utf-8", "surrogatepass")

        async def on_machine(session: MachineSession) -> CallToolResult:
            created = await files.write(session, path, data)
            view = {"server": session.name, "path": path, "size": len(data), "created": created}
            return answer(f"{'created' if created else 'replaced'} {path} on {session.name}, {len(data)} bytes", view)

        return await self._connections.work(server, on_machine, repeatable=True)

    async def vm_edit(
        self,
        path: Path,
        old_string: Annotated[str, Field(description="The exact text in the file, with blanks and line ends.")],
        new_string: Annotated[str, Field(description="The text to replace it with.")],
        replace_all: Annotated[bool, Field(description="Replace every occurrence. By default only one may exist.")] = False,
        server: Server = None,
    ) -> Annotated[CallToolResult, Edited]:
        """Replace text in a file on a machine. A text that doesn't occur, or occurs more than once, is an error that changes
        nothing."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            count, line = await files.edit(session, path, old_string, new_string, everywhere=replace_all)
            where = f"line {line}" if count == 1 else f"{count} occurrences, the first in line {line}"
            return answer(
                f"edited {path} on {session.name}: {where}",
                {"server": session.name, "path": path, "replacements": count, "line": line},
            )

        return await self._connections.work(server, on_machine, repeatable=False)

    async def vm_ls(
        self,
        path: Annotated[str, Field(description="A directory. Default /root/project, or /root without a project.")] = ".",
        glob: Annotated[
            str | None, Field(description="Below the directory: `*.py`, `src/**/*.ts`. Hidden files only if named.")
        ] = None,
        server: Server = None,
    ) -> Annotated[CallToolResult, Listing]:
        """List a directory on a machine, or a glob's matches below it, by name, with types and sizes. At most 500 entries."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            found, complete = await files.entries(session, path, glob)
            shown = found[:MOST_ENTRIES]
            left_out = len(found) - len(shown)
            lines = [
                f"{each.kind:<6} {each.size:>10} {each.name}" + (f" -> {each.target}" if each.target else "") for each in shown
            ]
            if left_out or not complete:
                more = f"{left_out} more" if complete else f"more than {left_out} more"
                lines.append(f"[{more}: narrow it with path or glob]")
            views = [
                {
                    "name": each.name, "type": each.kind, "size": each.size,
                    "modified_at": timestamp(datetime.fromtimestamp(each.modified_s, UTC)),
                    **({"target": each.target} if each.target else {}),
                }
                for each in shown
            ]  # fmt: skip
            view = {"server": session.name, "path": path, "entries": views, "left_out": left_out, "complete": complete}
            return answer("\n".join(lines) or "[nothing]", view)

        return await self._connections.work(server, on_machine, repeatable=True)

    async def vm_grep(
        self,
        pattern: Annotated[str, Field(description="A Perl-compatible regular expression; `(?i)` in front ignores case.")],
        path: Annotated[str, Field(description="A file or directory. Default /root/project, or /root.")] = ".",
        include: Annotated[str | None, Field(description="Only files with such names: `*.py`, `*.{ts,tsx}`.")] = None,
        server: Server = None,
    ) -> Annotated[CallToolResult, Matches]:
        """Search text files on a machine line by line: file:line:text, at most 200 matches. Skips binary files and .git, but
        not what .gitignore names."""

        async def on_machine(session: MachineSession) -> CallToolResult:
            found, complete = await files.search(session, pattern, path, include)
            shown = found[:MOST_MATCHES]
            left_out = len(found) - len(shown)
            lines = [f"{each.file}:{each.line}:{each.text}" for each in shown]
            if not found and not complete:
                lines.append("[the first matching line is too long: look at it with vm_bash and grep -o]")
            elif left_out or not complete:
                more = f"{left_out} more" if complete else f"more than {left_out} more"
                lines.append(f"[{more}: narrow it with path, include or the pattern]")
            views = [{"file": each.file, "line": each.line, "text": each.text} for each in shown]
            view = {"server": session.name, "pattern": pattern, "matches": views, "left_out": left_out, "complete": complete}
            return answer("\n".join(lines) or "[no match]", view)

        return await self._connections.work(server, on_machine, repeatable=True)
