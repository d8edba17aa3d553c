"""Codex's `exec --json`: threads, turns and items (https://github.com/openai/codex, `exec/src/exec_events.rs`).

An item is reported when it starts and when it is completed; commands count once. An `error`, as an event or as an item, isn't
the end: `turn.failed` is.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from gibil_bot.agents.dialects import events
from gibil_bot.agents.transcript import SUBJECT_LIMIT, Changed, Ended, Entry, Printed, Retried, Said, Thought, Used

_KINDS: dict[str, Literal["add", "delete"]] = {"add": "add", "delete": "delete"}
_SHELLS = ("bash", "sh", "zsh")


class _Event(Struct, frozen=True):
    type: str
    item: Raw = Raw()
    message: Raw = Raw()
    error: Raw = Raw()


class _Item(Struct, frozen=True):
    id: Raw = Raw()
    type: Raw = Raw()
    text: Raw = Raw()
    message: Raw = Raw()
    command: Raw = Raw()
    aggregated_output: Raw = Raw()
    exit_code: Raw = Raw()
    status: Raw = Raw()
    changes: Raw = Raw()
    items: Raw = Raw()
    query: Raw = Raw()
    server: Raw = Raw()
    tool: Raw = Raw()


class _Change(Struct, frozen=True):
    path: Raw = Raw()
    kind: Raw = Raw()


class _Error(Struct, frozen=True):
    message: Raw = Raw()


_EVENT = msgspec.json.Decoder(_Event)
_ITEM = msgspec.json.Decoder(_Item)
_CHANGES = msgspec.json.Decoder(list[_Change])
_ERROR = msgspec.json.Decoder(_Error)


class CodexDialect:
    """Implements `Dialect`."""

    def __init__(self) -> None:
        self._calls = events.OpenCalls()
        self._has_begun = False
        self._answer = ""
        self._error = ""
        self._end: Literal["completed", "failed"] | None = None
        self._commands = 0
        self._denied = 0
        self._denial = ""

    @property
    def has_ended(self) -> bool:
        return self._end is not None

    def feed(self, line: bytes) -> Iterator[Entry]:
        event = events.event(_EVENT, line)
        self._has_begun = self._has_begun or event is not None
        if event is None:
            yield events.unreadable(line)
        elif event.type in ("item.started", "item.completed"):
            item = events.decode(_ITEM, event.item)
            if item is not None:
                yield from self._item(item, is_completed=event.type == "item.completed")
        elif event.type == "turn.started":
            self._end = None
        elif event.type == "turn.completed":
            self._end = "completed"
        elif event.type == "turn.failed":
            self._end = "failed"
            error = events.decode(_ERROR, event.error) or _Error()
            self._error = events.text(error.message) or self._error
        elif event.type == "error":
            words = events.text(event.message)
            self._error = words or self._error
            if words.startswith("Reconnecting"):
                yield Retried(status=events.http_status(words), text=words[:1000])

    def _item(self, item: _Item, *, is_completed: bool) -> Iterator[Entry]:
        kind, identifier = events.text(item.type), events.text(item.id)
        if kind == "command_execution":
            call = events.Call(kind="run", tool=kind, subject=_without_shell(events.text(item.command, SUBJECT_LIMIT)))
            if not is_completed:
                yield from self._calls.start(identifier, call)
            elif done := self._calls.finish(identifier, lambda: call):
                output = events.tail(item.aggregated_output)
                self._count(item, output)
                yield events.result(done, is_error=False, output=output, exit_status=events.whole(item.exit_code, 255))
        elif not is_completed:
            return
        elif kind == "agent_message":
            self._answer = events.text(item.text)
            yield Said(text=self._answer)
        elif kind == "reasoning":
            yield Thought(text=events.text(item.text))
        elif kind == "file_change":
            is_error = events.text(item.status) == "failed"
            for change in (events.decode(_CHANGES, item.changes) or [])[:1000]:
                path = events.text(change.path, SUBJECT_LIMIT)
                if is_error:
                    yield Used(tool="apply_patch", detail=path, is_error=True)
                else:
                    yield Changed(path=path, kind=_KINDS.get(events.text(change.kind), "update"))
        elif kind == "error":
            yield Printed(text=events.text(item.message, 1000))
        elif kind:
            detail = events.text(item.query, SUBJECT_LIMIT)
            if kind == "mcp_tool_call":
                detail = f"{events.text(item.server, 100)}: {events.text(item.tool, 100)}"
            yield Used(tool=kind[:200], detail=detail, is_error=events.text(item.status) == "failed")

    def _count(self, item: _Item, output: str) -> None:
        """Count the commands that its own sandbox rejected: it exits with 0 even if these are all."""
        self._commands += 1
        if events.text(item.status) == "declined" or output.startswith("bwrap: "):
            self._denied += 1
            self._denial = events.last_lines(output) or self._denial

    def rest(self) -> list[Entry]:
        return self._calls.rest()

    def end(self, exit_status: int | None, stderr_tail: str = "") -> Ended:
        if self._end is None:
            return events.without_end(exit_status, stderr_tail, self._error, has_begun=self._has_begun)
        if self._end == "failed":
            return Ended(reason="model_error", is_success=False, text=self._error, status=events.http_status(self._error))
        if exit_status not in (0, None):
            return Ended(reason="failed", is_success=False, text=events.last_lines(stderr_tail) or self._answer)
        if self._commands and self._denied == self._commands:
            return Ended(reason="misconfigured", is_success=False, text=self._denial)
        return Ended(reason="completed", is_success=True, text=self._answer)


def _without_shell(command: str) -> str:
    """Return the command of `/bin/bash -lc 'command'`."""
    head, found, rest = command.partition(" -lc ")
    if not found or head.rpartition("/")[2] not in _SHELLS:
        return command
    try:
        words = shlex.split(rest)
    except ValueError:  # it was cut
        return command
    return words[0] if len(words) == 1 else command
