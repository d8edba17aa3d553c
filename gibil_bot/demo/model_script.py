"""What a scripted model does, as data, and the tool call for it in the words of each agent's program."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeAlias

from msgspec import Struct


class Say(Struct, frozen=True):
    """Write text and call no tool, which ends the program's turn."""

    text: str


class Run(Struct, frozen=True):
    """Run a command in a shell."""

    command: str


class Read(Struct, frozen=True):
    """Read a file of the repository, with the program's tool for files if it has one."""

    path: str
    """Relative to the repository's folder."""


class Write(Struct, frozen=True):
    """Write a file of the repository, with the program's tool for files if it has one."""

    path: str
    """Relative to the repository's folder."""
    content: str
    is_new: bool = True
    """False: it exists, and is replaced in a shell. Programs don't overwrite files that they haven't read."""


Step: TypeAlias = Say | Run | Read | Write


class Script(Struct, frozen=True, kw_only=True):
    """The replies of one conversation, in order. After the last one it is repeated."""

    steps: tuple[Step, ...]
    when: str = ""
    """The script is for conversations that contain this text. The first script that fits is used."""
    is_endless: bool = False
    """The last step is a command, and is repeated for ever, each time a little different: programs notice repetitions."""

    def step(self, number: int) -> Step:
        step = self.steps[min(number, len(self.steps) - 1)]
        if self.is_endless and isinstance(step, Run) and number >= len(self.steps):
            return Run(f"{step.command}  # {number}")
        return step


Tools: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Name → JSON Schema of the arguments; an empty one for tools that take free text."""
ToolCall: TypeAlias = tuple[str, dict[str, Any] | str]

SHELLS = ("Bash", "bash", "exec_command", "shell", "shell_command", "local_shell", "run_shell_command")
_JAVASCRIPT = "exec"
"""Codex offers newer models one tool that takes a program, which calls the others."""
_FOLDER = re.compile(r"(?:working directory(?: is)?:?|<cwd>)\s*`?(/[^\s<\"'`\\]+)", re.IGNORECASE)
TITLE = '{"title": "A scripted model"}'
"""The reply to requests without a shell, such as for the title of a conversation."""


def tool_call(step: Run | Read | Write, tools: Tools, conversation: str) -> ToolCall | None:
    """Return the call for a step, or None if no tool can do it. `conversation`: the request as text, which names the folder."""
    if isinstance(step, Read):
        call = _file_call(("Read", "read_file", "read"), step.path, {}, tools, conversation)
        if call is not None:
            return call
        step = Run(f"cat {shlex.quote(step.path)}")
    elif isinstance(step, Write):
        call = _write_call(step, tools, conversation) if step.is_new else None
        if call is not None:
            return call
        folder = str(PurePosixPath(step.path).parent)
        quoted = shlex.quote(step.path)
        step = Run(f"mkdir -p {shlex.quote(folder)} && printf %s {shlex.quote(step.content)} > {quoted}")
    if _JAVASCRIPT in tools:
        return _JAVASCRIPT, f"text(await tools.exec_command({json.dumps({'cmd': step.command})}))"
    name = next((name for name in SHELLS if name in tools), None)
    return None if name is None else (name, _shell_arguments(step.command, tools[name]))


def _write_call(step: Write, tools: Tools, conversation: str) -> ToolCall | None:
    if "apply_patch" in tools and _JAVASCRIPT not in tools:
        lines = "".join(f"+{line}\n" for line in step.content.splitlines())
        return "apply_patch", f"*** Begin Patch\n*** Add File: {step.path}\n{lines}*** End Patch\n"
    return _file_call(("Write", "write_file", "write"), step.path, {"content": step.content}, tools, conversation)


def _file_call(
    names: tuple[str, str, str], path: str, arguments: dict[str, str], tools: Tools, conversation: str
) -> ToolCall | None:
    """`names`: of the tool in Claude Code, in Gemini CLI and in opencode."""
    folder = _FOLDER.search(conversation)
    if folder is None or _JAVASCRIPT in tools:
        return None
    for name, argument in zip(names, ("file_path", "file_path", "filePath"), strict=True):
        if name in tools:
            return name, {argument: f"{folder[1].rstrip('/')}/{path}", **arguments}
    return None


def _shell_arguments(command: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    known = schema.get("properties") or {}
    name = "cmd" if "cmd" in known else "command"
    takes_list = (known.get(name) or {}).get("type") in ("array", "ARRAY")
    arguments: dict[str, Any] = {name: ["bash", "-lc", command] if takes_list else command}
    arguments |= {extra: "a step of the script" for extra in ("description", "explanation") if extra in known}
    if "is_background" in known:
        arguments["is_background"] = False
    return arguments


def choose(scripts: Sequence[Script], conversation: str) -> Script:
    """Return the script for a conversation. `when` is compared with the text as JSON contains it."""
    fitting = (script for script in scripts if json.dumps(script.when)[1:-1] in conversation)
    return next(fitting, Script(steps=(Say("I have no script for this conversation."),)))
