"""What the dialects share: they decode hostile lines of JSON into narrow structs, and match calls of tools with their results.

Fields that only inform have the type `Raw` and are read by `text`, `whole` and `number`, so that a field of another type costs
that field only. Fields that decide how a program ended have strict types: an event without them isn't an end.
"""

from __future__ import annotations

import math
import re
import shlex
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import msgspec
from msgspec import Raw, Struct

from gibil_bot.agents.transcript import SUBJECT_LIMIT, TEXT_LIMIT, Changed, Ended, Entry, Printed, Ran, Read, Used

T = TypeVar("T")

OBJECTS_LIMIT = 50_000
"""Most opening braces of a line: a list of small objects takes a hundred times their JSON in memory."""
OPEN_LIMIT = 200
"""Most calls of tools that wait for their results."""
_FINISHED_LIMIT = 1000
_HALVES_LIMIT = 10_000
_PATCH_LIMIT = 16 << 10
_ID_LIMIT = 200
_UNREADABLE_LIMIT = 500

# JavaScript cuts strings between the halves of a surrogate pair, and JSON then has one half.
_HALF = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_SECOND_HALF = re.compile(rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_STATUS = re.compile(r"\bstatus(?: code)?:? (\d{3})\b|\bAPI Error: (\d{3})\b|\"(?:code|status)\": ?(\d{3})\b")


def decode(kind: msgspec.json.Decoder[T], data: bytes | Raw) -> T | None:
    """Return the value; None if it has another shape."""
    try:
        return kind.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def event(kind: msgspec.json.Decoder[T], line: bytes) -> T | None:
    """Return the event of a line, whose text may be invalid Unicode; None if it isn't one."""
    if not line.lstrip().startswith(b"{") or line.count(b"{") > OBJECTS_LIMIT:
        return None
    return decode(kind, _valid(line))


def _valid(line: bytes) -> bytes:
    """Return the line with U+FFFD in place of what isn't Unicode: otherwise such a field would be lost as a whole."""
    try:
        line.decode()
    except UnicodeDecodeError:
        line = line.decode("utf-8", "replace").encode()
    halves = line.count(rb"\ud") + line.count(rb"\uD")
    return _with_whole_pairs(line) if 0 < halves <= _HALVES_LIMIT else line


def _with_whole_pairs(line: bytes) -> bytes:
    """Return the line with U+FFFD in place of each half of a surrogate pair without the other half. Takes linear time."""
    parts: list[bytes] = []
    copied = paired = 0
    for match in _HALF.finditer(line):
        start, end = match.span()
        if start < paired or _backslashes_before(line, start) % 2:  # the second half of a pair, or an escaped backslash
            continue
        if line[start + 3] in b"89abAB" and _SECOND_HALF.match(line, end):
            paired = end + 6
            continue
        parts += [line[copied:start], b"\\ufffd"]
        copied = end
    return b"".join([*parts, line[copied:]])


def _backslashes_before(line: bytes, end: int) -> int:
    size = 16
    while True:
        part = line[max(0, end - size) : end]
        found = len(part) - len(part.rstrip(b"\\"))
        if found < size:
            return found
        size *= 4


def unreadable(line: bytes) -> Printed:
    """Return the entry of a line that isn't an event."""
    return Printed(text=line[:_UNREADABLE_LIMIT].decode("utf-8", "replace") + ("…" if len(line) > _UNREADABLE_LIMIT else ""))


_STR = msgspec.json.Decoder(str)
_INT = msgspec.json.Decoder(int)
_FLOAT = msgspec.json.Decoder(float)
_BOOL = msgspec.json.Decoder(bool)
_STRINGS = msgspec.json.Decoder(list[str])


def text(raw: Raw, limit: int = TEXT_LIMIT) -> str:
    """Return the beginning of a string; empty if it isn't one."""
    return (decode(_STR, raw) or "")[:limit]


def tail(raw: Raw) -> str:
    """Return the end of a string; empty if it isn't one."""
    return end_of(decode(_STR, raw) or "")


def strings(raw: Raw) -> list[str]:
    """Return a list of strings; empty if it isn't one."""
    return decode(_STRINGS, raw) or []


def whole(raw: Raw, most: int = 2**31) -> int | None:
    """Return a count; None if it isn't one."""
    found = decode(_INT, raw)
    return found if found is not None and 0 <= found <= most else None


def number(raw: Raw) -> float | None:
    """Return a finite number; None if it isn't one."""
    found = decode(_FLOAT, raw)
    return found if found is not None and math.isfinite(found) else None


def is_true(raw: Raw) -> bool:
    return decode(_BOOL, raw) is True


def end_of(output: str, limit: int = TEXT_LIMIT) -> str:
    """Return the end of an output, which begins with a whole line if it was cut."""
    if len(output) <= limit:
        return output
    tail = output[-limit:]
    return tail[tail.find("\n") + 1 :] if "\n" in tail[: limit // 2] else tail


def http_status(words: str) -> int | None:
    """Return the HTTP status of an error that a program's message quotes."""
    found = _STATUS.search(words[:TEXT_LIMIT])
    status = int(next(filter(None, found.groups()))) if found else 0
    return status if 400 <= status <= 599 else None


# --- calls of tools -------------------------------------------------------------------------------------------------


class Call(Struct, frozen=True, kw_only=True):
    """A call of a tool: what it is about, without its result."""

    kind: Literal["run", "read", "change", "use"]
    tool: str
    subject: str
    """The command, the path, or what the tool looks for."""
    patch: str = ""
    is_new: bool = False
    """Whether it writes a whole file, which may be a new one."""


class _Arguments(Struct, frozen=True):
    """The parameters of all programs' tools that name what a call is about."""

    command: Raw = Raw()
    cmd: Raw = Raw()
    file_path: Raw = Raw()
    filePath: Raw = Raw()
    absolute_path: Raw = Raw()
    notebook_path: Raw = Raw()
    path: Raw = Raw()
    pattern: Raw = Raw()
    query: Raw = Raw()
    url: Raw = Raw()
    dir_path: Raw = Raw()
    description: Raw = Raw()
    prompt: Raw = Raw()
    content: Raw = Raw()
    old_string: Raw = Raw()
    oldString: Raw = Raw()
    new_string: Raw = Raw()
    newString: Raw = Raw()


_ARGUMENTS = msgspec.json.Decoder(_Arguments)
_KINDS: dict[str, Literal["run", "read", "change"]] = {
    **dict.fromkeys(("bash", "shell", "runshellcommand", "execcommand"), "run"),
    **dict.fromkeys(("read", "readfile"), "read"),
    **dict.fromkeys(("write", "writefile", "edit", "replace", "multiedit", "notebookedit"), "change"),
}


def call(tool: str, arguments: Raw) -> Call:
    """Return what a call is about, by the tools' names of Claude Code, Gemini CLI, opencode and Qwen Code."""
    tool = tool[:_ID_LIMIT]
    name = tool.lower().replace("_", "")
    kind = _KINDS.get(name)
    given = decode(_ARGUMENTS, arguments) or _Arguments()
    path = _first(given.file_path, given.filePath, given.absolute_path, given.notebook_path, given.path)
    if kind == "run":
        words = strings(given.command) or strings(given.cmd)
        command = shlex.join(words[:1000]) if words else _first(given.command, given.cmd)
        return Call(kind=kind, tool=tool, subject=command[:SUBJECT_LIMIT])
    if kind == "read" and path:
        return Call(kind=kind, tool=tool, subject=path)
    if kind == "change" and path:
        old = _first(given.old_string, given.oldString, limit=_PATCH_LIMIT)
        new = _first(given.new_string, given.newString, given.content, limit=_PATCH_LIMIT)
        return Call(
            kind=kind,
            tool=tool,
            subject=path,
            patch=_lines("-", old) + _lines("+", new),
            is_new=name.startswith("write"),
        )
    subject = _first(given.pattern, given.query, given.url, given.dir_path, given.description, given.prompt)
    return Call(kind="use", tool=tool, subject=subject or path)


def _first(*raws: Raw, limit: int = SUBJECT_LIMIT) -> str:
    return next((found for raw in raws if (found := text(raw, limit))), "")


def _lines(sign: str, content: str) -> str:
    return "".join(f"{sign}{line}\n" for line in content.removesuffix("\n").split("\n")) if content else ""


def result(
    done: Call,
    *,
    is_error: bool,
    output: str = "",
    exit_status: int | None = None,
    patch: str = "",
    is_new: bool | None = None,
    is_rejected: bool = False,
) -> Entry:
    """Return the entry of a call with its result. `is_rejected`: the program didn't run the command."""
    if done.kind == "run" and not is_rejected:
        return Ran(command=done.subject, exit_status=exit_status, output=end_of(output))
    if is_error:
        reason = " ".join(output[:SUBJECT_LIMIT].split())
        return Used(tool=done.tool, detail=": ".join(filter(None, (done.subject, reason))), is_error=True)
    if done.kind == "read":
        return Read(path=done.subject)
    if done.kind == "change":
        is_new = done.is_new if is_new is None else is_new
        return Changed(path=done.subject, kind="add" if is_new else "update", patch=(patch or done.patch)[:TEXT_LIMIT])
    return Used(tool=done.tool, detail=done.subject)


class OpenCalls:
    """Calls of tools whose results are missing, by their ids. The oldest leave first, without a result."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, Call] = OrderedDict()
        self._finished: OrderedDict[str, None] = OrderedDict()

    def start(self, identifier: str, new: Call) -> Iterator[Entry]:
        """Add a call. Yields the entry of the oldest call if there are too many. A repeated event changes nothing."""
        identifier = identifier[:_ID_LIMIT]
        if identifier in self._open or identifier in self._finished:
            return
        self._open[identifier] = new
        if len(self._open) > OPEN_LIMIT:
            yield _without_result(self._open.popitem(last=False)[1])

    def finish(self, identifier: str, otherwise: Callable[[], Call] | None = None) -> Call | None:
        """Remove a call and return it; None if it isn't open. `otherwise` is the call if the id is new."""
        identifier = identifier[:_ID_LIMIT]
        if identifier in self._finished:
            return None
        found = self._open.pop(identifier, None)
        if found is None and otherwise is not None:
            found = otherwise()
        if found is not None:
            self._finished[identifier] = None
            if len(self._finished) > _FINISHED_LIMIT:
                self._finished.popitem(last=False)
        return found

    def rest(self) -> list[Entry]:
        """Remove all calls and return their entries."""
        entries = [_without_result(each) for each in self._open.values()]
        self._open.clear()
        return entries


def _without_result(each: Call) -> Entry:
    if each.kind == "run":
        return Ran(command=each.subject)
    return Used(tool=each.tool, detail=each.subject)


# --- ends -----------------------------------------------------------------------------------------------------------


def without_end(exit_status: int | None, stderr_tail: str, printed: str = "", *, has_begun: bool = True) -> Ended:
    """Judge a program that exited without its last event. `has_begun`: it had another one."""
    words = last_lines(stderr_tail) or last_lines(printed)
    if exit_status in (126, 127):
        return Ended(reason="misconfigured", is_success=False, text=words)
    if exit_status is None or exit_status < 0 or exit_status > 128:
        return Ended(reason="killed", is_success=False, text=words)
    if exit_status and not has_begun:
        return Ended(reason="misconfigured", is_success=False, text=words)
    return Ended(reason="no_end", is_success=False, text=words, status=http_status(words))


def last_lines(words: str, lines: int = 3) -> str:
    """Return the last lines that aren't blank."""
    shown = [line.strip() for line in words[-TEXT_LIMIT:].split("\n") if line.strip()]
    return "\n".join(line[:1000] for line in shown[-lines:])
