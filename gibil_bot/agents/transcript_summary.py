"""Shows a transcript: as plain text for the live log, entry by entry, and as short Markdown for a check run.

Pure functions and bounded memory. All texts come from the machine. In the log they follow one of our words on its line, or are
indented, so that no output looks like another entry. In the Markdown they are code: no mention, link, image or tag acts.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from typing import assert_never

from msgspec import Struct

from gibil_bot.agents.transcript import Changed, Entry, Printed, Ran, Read, Retried, Said, Thought, Used
from gibil_bot.github import markdown
from gibil_bot.humanize import count

LINE_WIDTH = 300
HEAD_LINES = 5
TAIL_LINES = 20
"""Of an output in the live log."""
_INDENT = "    "
_SHOWN_TEXT = 16 << 10
_FIRST_BLOCKS = 10
_LAST_BLOCKS = 60
_BLOCK_LIMIT = 1500
_BLOCK_LINES = 12
_WRAP_AT = 110
_NOUNS = {
    "command": ("command", "commands"),
    "read": ("file read", "files read"),
    "change": ("change of a file", "changes of files"),
    "retry": ("repeated call of the model", "repeated calls of the model"),
}


def log_lines(entry: Entry, folder: str = "") -> str:
    """Return the lines of an entry, each with its newline. `folder`: paths below it are shown relative to it."""
    match entry:
        case Said():
            return _spoken("agent", entry.text, lines=100)
        case Thought():
            return _spoken("thought", entry.text, lines=HEAD_LINES)
        case Read():
            return f"read: {_one_line(_relative(entry.path, folder))}\n"
        case Ran():
            command = _spoken("ran", entry.command, lines=10)
            status = f"{_INDENT}exit status {entry.exit_status}\n" if entry.exit_status else ""
            return command + _indented(entry.output, HEAD_LINES, TAIL_LINES) + status
        case Changed():
            head = f"changed: {_one_line(_relative(entry.path, folder))} ({entry.kind})\n"
            return head + _indented(entry.patch, TAIL_LINES, HEAD_LINES)
        case Used():
            failed = "failed: " if entry.is_error else ""
            return f"used: {failed}{_one_line(f'{entry.tool} {_relative(entry.detail, folder)}')}\n"
        case Retried():
            why = f"status {entry.status}" if entry.status is not None else "no answer"
            return f"model: a call failed ({why}) and is repeated{': ' * bool(entry.text)}{_one_line(entry.text)}\n"
        case Printed():
            return _indented(entry.text, HEAD_LINES, TAIL_LINES)
    assert_never(entry)


def _spoken(who: str, text: str, lines: int) -> str:
    shown = markdown.clean(text[:_SHOWN_TEXT]).strip().split("\n")
    if shown == [""]:
        return ""
    more = f"{_INDENT}… {count(len(shown) - lines, 'line')} omitted …\n" if len(shown) > lines else ""
    first, *others = (line[:LINE_WIDTH] for line in shown[:lines])
    return f"{who}: {first}\n" + "".join(f"{_INDENT}{line}\n" for line in others) + more


def _indented(text: str, head: int, tail: int) -> str:
    shown = markdown.clean(text).strip("\n").split("\n")
    if shown == [""]:
        return ""
    if len(shown) > head + tail + 1:
        shown = [*shown[:head], f"… {len(shown) - head - tail:,} lines omitted …", *shown[-tail:]]
    return "".join(f"{_INDENT}{line[:LINE_WIDTH]}\n" for line in shown)


def _one_line(text: str) -> str:
    return markdown.line(text[:_SHOWN_TEXT], LINE_WIDTH)


def _relative(text: str, folder: str) -> str:
    return text.replace(folder.rstrip("/") + "/", "") if folder else text


class _Item(Struct):
    """A part of the account: one line, or a line with a block of text."""

    line: str
    block: str = ""
    paths: list[str] | None = None
    """Of files that were read one after another."""
    more: int = 0
    """Files that aren't in `paths`, or all printed lines."""
    printed: str = ""
    """The end of lines that aren't events."""


class TranscriptSummary:
    """Collects the entries of one task: all are counted, and the first and the last ones are shown."""

    def __init__(self, folder: str = "") -> None:
        self._folder = folder
        self._first: list[_Item] = []
        self._last: deque[_Item] = deque(maxlen=_LAST_BLOCKS)
        self._items = 0
        self._counts = dict.fromkeys(_NOUNS, 0)
        self.last_words = ""
        """What the agent said last."""

    def add(self, entry: Entry) -> None:
        match entry:
            case Said():
                if block := _wrapped(entry.text):
                    self.last_words = entry.text
                    self._add(_Item(line="The agent:", block=block))
            case Thought():
                pass
            case Read():
                self._counts["read"] += 1
                self._read(self._path(entry.path))
            case Ran():
                self._counts["command"] += 1
                failed = f", exit status {entry.exit_status}" if entry.exit_status else ""
                output = entry.output.strip("\n") if entry.exit_status != 0 else ""
                block = _last_lines(output, output.count("\n") + 1)
                command = markdown.code(_relative(entry.command[:1000], self._folder), 200)
                self._add(_Item(line=f"Ran {command}{failed}", block=block))
            case Changed():
                self._counts["change"] += 1
                done = {"add": "Added", "update": "Changed", "delete": "Deleted"}[entry.kind]
                self._add(_Item(line=f"{done} {self._path(entry.path)}"))
            case Used():
                detail = f" {markdown.code(_relative(entry.detail[:1000], self._folder), 160)}" if entry.detail.strip() else ""
                failed = ", which failed" if entry.is_error else ""
                self._add(_Item(line=f"Used {markdown.code(entry.tool, 60)}{detail}{failed}"))
            case Retried():
                self._counts["retry"] += 1
                why = f"status {entry.status}" if entry.status is not None else "no answer"
                self._add(_Item(line=f"A call of the model failed ({why}) and was repeated"))
            case Printed():
                self._print(entry.text)
            case _:
                assert_never(entry)

    def _path(self, path: str) -> str:
        return markdown.code(_relative(path, self._folder)[:1000], 120)

    def _read(self, path: str) -> None:
        item = self._newest
        if item is None or item.paths is None:
            self._add(_Item(line="", paths=[path]))
        elif len(item.paths) < 5:
            item.paths.append(path)
        else:
            item.more += 1

    def _print(self, text: str) -> None:
        item = self._newest
        if item is None or not item.printed:
            item = _Item(line="Printed:")
            self._add(item)
        item.more += text.count("\n") + 1
        item.printed = (item.printed + text[-2 * _BLOCK_LIMIT :] + "\n")[-2 * _BLOCK_LIMIT :]

    @property
    def _newest(self) -> _Item | None:
        return self._last[-1] if self._last else self._first[-1] if self._first else None

    def _add(self, item: _Item) -> None:
        self._items += 1
        (self._first if len(self._first) < _FIRST_BLOCKS else self._last).append(item)

    @property
    def title(self) -> str:
        """What was done, in numbers: 12 commands, 3 files read, 2 changes of files."""
        parts = [
            f"{number:,} {one if number == 1 else many}" for key, (one, many) in _NOUNS.items() if (number := self._counts[key])
        ]
        return ", ".join(parts) or "no command, no file"

    def markdown(self, limit: int) -> str:
        """Return a closed, folded block of at most `limit` bytes. Empty if there were no entries, or `limit` is tiny."""
        head = f"<details><summary>What the agent did: {self.title}</summary>\n\n"
        foot = "\n\n</details>"
        room = limit - markdown.size(head + foot) - 100
        if not self._items or room < 200:
            return ""
        first = [_shown(item) for item in self._first]
        last = [_shown(item) for item in self._last]
        # The end says more than the beginning, so it gets what the first entries leave of the room.
        begun = _fitting(first, room // 3)
        room -= sum(markdown.size(block) + 2 for block in begun)
        ended = _fitting(reversed([*first[len(begun) :], *last]), room)[::-1]
        hidden = self._items - len(begun) - len(ended)
        note = [f"- … {hidden:,} further steps are in the log …"] if hidden else []
        return head + _list([*begun, *note, *ended]) + foot


def _fitting(blocks: Iterable[str], room: int) -> list[str]:
    found: list[str] = []
    for block in blocks:
        room -= markdown.size(block) + 2
        if room < 0:
            break
        found.append(block)
    return found


def _list(blocks: list[str]) -> str:
    """Join the blocks: lines one below the other, and code blocks as closed paragraphs."""
    joined = blocks[:1]
    for before, block in pairwise(blocks):
        joined += ["\n\n" if "\n" in before else "\n", block]
    return "".join(joined)


def _shown(item: _Item) -> str:
    """Return an item of a list, whose code block isn't part of the list, so that its lines need no indentation."""
    if item.paths is not None:
        return f"- Read {', '.join(item.paths)}{f' and {item.more:,} more' if item.more else ''}"
    block = markdown.fenced(_last_lines(item.printed, item.more) if item.printed else item.block, _BLOCK_LIMIT)
    return f"- {item.line}\n\n{block}" if block else f"- {item.line}"


def _last_lines(text: str, total: int) -> str:
    """Return the end of an output of `total` lines."""
    lines = markdown.clean(text[-4 * _BLOCK_LIMIT :]).strip("\n").split("\n")
    more = [f"… {total - _BLOCK_LINES:,} lines before …"] if total > _BLOCK_LINES else []
    return markdown.cut("\n".join([*more, *(line[:LINE_WIDTH] for line in lines[-_BLOCK_LINES:])]), _BLOCK_LIMIT)


def _wrapped(text: str) -> str:
    """Return words as short lines, because a code block doesn't wrap them."""
    lines = markdown.clean(text[: 2 * _BLOCK_LIMIT]).strip().split("\n")
    return "\n".join(textwrap.fill(line, _WRAP_AT, break_on_hyphens=False) if len(line) > _WRAP_AT else line for line in lines)
