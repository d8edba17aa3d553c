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
    str, Field(description="Absolute, or from /root/project (from /root, where no project is); `~` is /root.")
]


class FileTools:
    def __init__(self, links: MachineConnections) -> None:
        self._links = links

    def register(self, server: MCPServer[Any]) -> None:
        looks = {"read_only_hint": True}
        add(server, self.vm_read, annotations=ToolAnnotations(title="Read a file", **looks))
        add(
            server,
            self.vm_write,
            annotations=ToolAnnotations(title="Write a file", destructive_hint=True, idempotent_hint=True),
        )
        add(server, self.vm_edit, annotations=ToolAnnotations(title="Edit a file", destructive_hint=True))
        add(server, self.vm_ls, annotations=ToolAnnotations(title="List files", **looks))
        add(server, self.vm_grep, annotations=ToolAnnotations(title="Search files", **looks))

    async def vm_read(
        self,
        path: Path,
        offset: Annotated[int, Field(description="The first line to show, counted from 1.")] = 1,
        limit: Annotated[int, Field(description="At most so many lines, up to 2000.")] = files.MOST_LINES,
        server: Server = None,
    ) -> Annotated[CallToolResult, TextPage]:
        """Read a text file on a machine, by lines. next_offset says where to go on; the text form has line numbers in front."""

        async def at(session: MachineSession) -> CallToolResult:
            page = await files.read(session, path, offset, limit)
            last = page.first + len(page.lines) - 1
            notes = []
            if page.cut:
                notes.append(f"{page.cut} lines are longer than what is shown of them")
            if not page.is_utf8:
                notes.append("it is not UTF-8 throughout: some characters are shown as \ufffd")
            if page.next is None and page.total and not page.ends_with_newline:
                notes.append("no newline at the end of the file")
            going_on = [f"lines {page.first} to {last} of {page.total}; go on with offset={page.next}"] if page.next else []
            width = len(str(last))
            lines = [f"{number:>{width}}\t{line}" for number, line in enumerate(page.lines, page.first)]
            ending = "\n" if page.next or page.ends_with_newline else ""
            view = {
                "server": session.name, "path": path, "content": "\n".join(page.lines) + (ending if page.lines else ""),
                "first_line": page.first, "last_line": last, "total_lines": page.total, "size": page.size,
                "next_offset": page.next, "notes": notes,
            }  # fmt: skip
            text = "\n".join([*lines, *(f"[{note}]" for note in (*going_on, *notes))])
            return answer(text or "[the file is empty]", view)

        return await self._links.work(server, at, repeatable=True)

    async def vm_write(
        self,
        path: Path,
        content: Annotated[str, Field(description="All of the file's text.")],
        server: Server = None,
    ) -> Annotated[CallToolResult, Written]:
        """Write a whole file on a machine, in place of what it held; missing folders are made, its mode is kept."""
        data = content.encode("utf-8", "surrogatepass")

        async def at(session: MachineSession) -> CallToolResult:
            created = await files.write(session, path, data)
            view = {"server": session.name, "path": path, "size": len(data), "created": created}
            return answer(f"{'made' if created else 'replaced'} {path} on {session.name}, {len(data)} bytes", view)

        return await self._links.work(server, at, repeatable=True)

    async def vm_edit(
        self,
        path: Path,
        old_string: Annotated[str, Field(description="Exactly as it is in the file, with its blanks and line ends.")],
        new_string: Annotated[str, Field(description="What comes in its place.")],
        replace_all: Annotated[bool, Field(description="Every occurrence, and not just the only one.")] = False,
        server: Server = None,
    ) -> Annotated[CallToolResult, Edited]:
        """Replace a piece of a file on a machine. A text that is absent, or there more than once, is an error, and changes
        nothing."""

        async def at(session: MachineSession) -> CallToolResult:
            count, line = await files.edit(session, path, old_string, new_string, everywhere=replace_all)
            where = f"line {line}" if count == 1 else f"{count} places, the first in line {line}"
            return answer(
                f"edited {path} on {session.name}: {where}",
                {"server": session.name, "path": path, "replacements": count, "line": line},
            )

        return await self._links.work(server, at, repeatable=False)

    async def vm_ls(
        self,
        path: Annotated[str, Field(description="A folder; default /root/project, or /root where no project is.")] = ".",
        glob: Annotated[
            str | None, Field(description="Below the folder: `*.py`, `src/**/*.ts`. Hidden files only if named.")
        ] = None,
        server: Server = None,
    ) -> Annotated[CallToolResult, Listing]:
        """List a folder on a machine, by name, with types and sizes; or what a glob finds below it. At most 500 entries."""

        async def at(session: MachineSession) -> CallToolResult:
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

        return await self._links.work(server, at, repeatable=True)

    async def vm_grep(
        self,
        pattern: Annotated[str, Field(description="A Perl-compatible regular expression; `(?i)` in front leaves case aside.")],
        path: Annotated[str, Field(description="A file or folder; default /root/project, or /root.")] = ".",
        include: Annotated[str | None, Field(description="Only files with such names: `*.py`, `*.{ts,tsx}`.")] = None,
        server: Server = None,
    ) -> Annotated[CallToolResult, Matches]:
        """Search text files on a machine line by line: file:line:text, at most 200 matches. Binary files and .git are left out,
        what .gitignore names is not."""

        async def at(session: MachineSession) -> CallToolResult:
            found, complete = await files.search(session, pattern, path, include)
            shown = found[:MOST_MATCHES]
            left_out = len(found) - len(shown)
            lines = [f"{each.file}:{each.line}:{each.text}" for each in shown]
            if left_out or not complete:
                more = f"{left_out} more" if complete else f"more than {left_out} more"
                lines.append(f"[{more}: narrow it with path, include or the pattern]")
            views = [{"file": each.file, "line": each.line, "text": each.text} for each in shown]
            view = {"server": session.name, "pattern": pattern, "matches": views, "left_out": left_out, "complete": complete}
            return answer("\n".join(lines) or "[no match]", view)

        return await self._links.work(server, at, repeatable=True)
