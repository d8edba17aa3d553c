"""Claude Code's `--output-format stream-json` (https://code.claude.com/docs/en/headless), and Qwen Code's of the same shapes.

An answer of n blocks arrives as n events with the same message id, each with one of the blocks. The subtype of the last event
is `success` even after an error of the API, so `is_error` and the exit status decide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from gibil_bot.agents.dialects import events
from gibil_bot.agents.transcript import TEXT_LIMIT, Ended, Entry, Printed, Retried, Said, Thought

_TURN_LIMIT_STATUS = 53
"""Qwen Code's exit status at its turn limit, where it prints no last event."""
_REJECTED = re.compile(r"\A<tool_use_error>(.*?)(?:</tool_use_error>)?\Z", re.DOTALL)
"""The result of a call that the program itself rejected, such as a command that only waits."""
_EXIT_CODE = re.compile(r"\A(?:Error: )?Exit code (\d{1,3})\n?")


class _Event(Struct, frozen=True):
    type: str
    subtype: Raw = Raw()
    message: Raw = Raw()
    tool_use_result: Raw = Raw()
    error_status: Raw = Raw()
    error: Raw = Raw()


class _Message(Struct, frozen=True):
    model: Raw = Raw()
    content: Raw = Raw()


class _Block(Struct, frozen=True):
    type: Raw = Raw()
    text: Raw = Raw()
    thinking: Raw = Raw()
    id: Raw = Raw()
    name: Raw = Raw()
    input: Raw = Raw()
    tool_use_id: Raw = Raw()
    content: Raw = Raw()
    is_error: Raw = Raw()


class _Hunk(Struct, frozen=True):
    oldStart: Raw = Raw()
    newStart: Raw = Raw()
    lines: Raw = Raw()


class _ToolResult(Struct, frozen=True):
    type: Raw = Raw()
    stdout: Raw = Raw()
    stderr: Raw = Raw()
    interrupted: Raw = Raw()
    structuredPatch: Raw = Raw()


class _Denial(Struct, frozen=True):
    tool_name: Raw = Raw()


class _Result(Struct, frozen=True):
    is_error: bool
    subtype: str
    permission_denials: list[_Denial] | None = None
    terminal_reason: Raw = Raw()
    api_error_status: Raw = Raw()
    result: Raw = Raw()
    errors: Raw = Raw()
    num_turns: Raw = Raw()
    total_cost_usd: Raw = Raw()


_EVENT = msgspec.json.Decoder(_Event)
_MESSAGE = msgspec.json.Decoder(_Message)
_BLOCKS = msgspec.json.Decoder(list[_Block])
_HUNKS = msgspec.json.Decoder(list[_Hunk])
_TOOL_RESULT = msgspec.json.Decoder(_ToolResult)
_RESULT = msgspec.json.Decoder(_Result)


class ClaudeDialect:
    """Implements `Dialect`."""

    def __init__(self) -> None:
        self._calls = events.OpenCalls()
        self._has_begun = False
        self._ended: Ended | None = None

    @property
    def has_ended(self) -> bool:
        return self._ended is not None

    def feed(self, line: bytes) -> Iterator[Entry]:
        event = events.event(_EVENT, line)
        self._has_begun = self._has_begun or event is not None
        if event is None:
            yield events.unreadable(line)
        elif event.type == "assistant":
            yield from self._assistant(event)
        elif event.type == "user":
            yield from self._results(event)
        elif event.type == "system" and events.text(event.subtype) == "api_retry":
            yield Retried(status=events.whole(event.error_status, 999), text=events.text(event.error, 200))
        elif event.type == "result":
            found = events.event(_RESULT, line)
            if found is None:
                yield events.unreadable(line)
            else:
                self._ended = _end(found)

    def _assistant(self, event: _Event) -> Iterator[Entry]:
        message = events.decode(_MESSAGE, event.message) or _Message()
        # The program puts its own messages, such as errors of the API, into the model's mouth.
        is_own = events.text(message.model) == "<synthetic>"
        if said := events.text(message.content):
            yield Said(text=said)
        for block in events.decode(_BLOCKS, message.content) or ():
            kind = events.text(block.type)
            if kind == "text" and (words := events.text(block.text)):
                yield Printed(text=words) if is_own else Said(text=words)
            elif kind == "thinking" and (words := events.text(block.thinking)):
                yield Thought(text=words)
            elif kind == "tool_use":
                call = events.call(events.text(block.name), block.input)
                yield from self._calls.start(events.text(block.id), call)

    def _results(self, event: _Event) -> Iterator[Entry]:
        message = events.decode(_MESSAGE, event.message) or _Message()
        results = [block for block in events.decode(_BLOCKS, message.content) or () if events.text(block.type) == "tool_result"]
        detail = _ToolResult()
        if len(results) == 1:
            detail = events.decode(_TOOL_RESULT, event.tool_use_result) or detail
        for block in results:
            call = self._calls.finish(events.text(block.tool_use_id))
            if call is None:
                continue
            is_error = events.is_true(block.is_error)
            output = _content(block.content)
            exit_status = None if is_error or events.is_true(detail.interrupted) else 0
            if call.kind == "run":
                if detail.stdout or detail.stderr:
                    output = _joined(events.tail(detail.stdout), events.tail(detail.stderr))
                elif is_error and (code := _EXIT_CODE.match(output)):
                    exit_status, output = int(code[1]), output[code.end() :]
            rejected = _REJECTED.match(output) if is_error else None
            written = events.text(detail.type)
            yield events.result(
                call,
                is_error=is_error,
                output=rejected[1] if rejected else output,
                exit_status=exit_status,
                is_rejected=rejected is not None,
                patch=_patch(detail.structuredPatch),
                is_new=written == "create" if written in ("create", "update") else None,
            )

    def rest(self) -> list[Entry]:
        return self._calls.rest()

    def end(self, exit_status: int | None, stderr_tail: str = "") -> Ended:
        if self._ended is None:
            if exit_status == _TURN_LIMIT_STATUS:
                return Ended(reason="max_turns", is_success=False, text=events.last_lines(stderr_tail))
            return events.without_end(exit_status, stderr_tail, has_begun=self._has_begun)
        if self._ended.is_success and exit_status not in (0, None):
            text = events.last_lines(stderr_tail) or self._ended.text
            return msgspec.structs.replace(self._ended, reason="failed", is_success=False, text=text)
        return self._ended


def _end(found: _Result) -> Ended:
    status = events.whole(found.api_error_status, 599)
    cause = events.text(found.terminal_reason)
    words = events.text(found.result) or "\n".join(events.strings(found.errors)[:10])[:TEXT_LIMIT]
    ended = Ended(
        reason="completed",
        is_success=True,
        text=words,
        status=status,
        turns=events.whole(found.num_turns),
        reported_usd=events.number(found.total_cost_usd),
    )
    failed = msgspec.structs.replace(ended, reason="failed", is_success=False)
    if found.permission_denials:
        names = dict.fromkeys(events.text(each.tool_name, 50) for each in found.permission_denials[:20])
        return msgspec.structs.replace(failed, reason="misconfigured", text="denied: " + ", ".join(filter(None, names)))
    if found.subtype == "error_max_turns" or cause == "max_turns":
        return msgspec.structs.replace(failed, reason="max_turns")
    if found.subtype == "error_max_budget_usd":
        return msgspec.structs.replace(failed, reason="budget")
    if found.is_error and (status is not None or cause == "api_error" or words.startswith("API Error")):
        return msgspec.structs.replace(failed, reason="model_error", status=status or events.http_status(words))
    return failed if found.is_error or found.subtype != "success" else ended


def _content(raw: Raw) -> str:
    """Return the text of a result: a string, or blocks of text."""
    if whole := events.tail(raw):
        return whole
    blocks = events.decode(_BLOCKS, raw) or []
    return events.end_of("\n".join(filter(None, (events.text(block.text) for block in blocks[:100]))))


def _joined(out: str, err: str) -> str:
    return out + ("\n" if out and err and not out.endswith("\n") else "") + err


def _patch(raw: Raw) -> str:
    lines: list[str] = []
    for hunk in (events.decode(_HUNKS, raw) or [])[:100]:
        lines.append(f"@@ -{events.whole(hunk.oldStart) or 0} +{events.whole(hunk.newStart) or 0} @@")
        lines += events.strings(hunk.lines)[:1000]
        if len(lines) > 2000:
            break
    return "\n".join(line[:1000] for line in lines)[:TEXT_LIMIT]
