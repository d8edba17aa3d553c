"""Gemini CLI's `--output-format stream-json` (https://github.com/google-gemini/gemini-cli, `output/types.ts`).

The model's text arrives in pieces. Commands that fail are a `success`, and their exit status isn't reported. When its detector
of loops stops it, the last event is a success, too, and an event before it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from gibil_bot.agents.dialects import events
from gibil_bot.agents.transcript import TEXT_LIMIT, Ended, Entry, Printed, Reason, Said

_TURN_LIMIT_STATUS = 53
_CONFIGURATION_STATUSES = (41, 44, 52, 55)
"""Authentication, sandbox, configuration and an untrusted folder."""
_API_ERROR = re.compile(r"\A\[API Error: (.*)\]\s*\Z", re.DOTALL)


class _Event(Struct, frozen=True):
    type: str
    role: Raw = Raw()
    content: Raw = Raw()
    delta: Raw = Raw()
    tool_name: Raw = Raw()
    tool_id: Raw = Raw()
    parameters: Raw = Raw()
    status: Raw = Raw()
    output: Raw = Raw()
    error: Raw = Raw()
    message: Raw = Raw()


class _Error(Struct, frozen=True):
    type: Raw = Raw()
    message: Raw = Raw()
    code: Raw = Raw()


class _Answer(Struct, frozen=True):
    error: Raw


_EVENT = msgspec.json.Decoder(_Event)
_ERROR = msgspec.json.Decoder(_Error)
_ANSWER = msgspec.json.Decoder(_Answer)


class GeminiDialect:
    """Implements `Dialect`."""

    def __init__(self) -> None:
        self._calls = events.OpenCalls()
        self._has_begun = False
        self._pieces: list[str] = []
        self._size = 0
        self._answer = ""
        self._has_looped = False
        self._status = ""
        self._error = _Error()

    @property
    def has_ended(self) -> bool:
        return bool(self._status)

    def feed(self, line: bytes) -> Iterator[Entry]:
        event = events.event(_EVENT, line)
        self._has_begun = self._has_begun or event is not None
        if event is None:
            yield from self._said()
            yield events.unreadable(line)
        elif event.type == "message":
            if events.text(event.role) == "assistant":
                if not events.is_true(event.delta):
                    yield from self._said()
                self._add(events.text(event.content))
        else:
            yield from self._said()
            yield from self._event(event)

    def _event(self, event: _Event) -> Iterator[Entry]:
        if event.type == "tool_use":
            call = events.call(events.text(event.tool_name), event.parameters)
            yield from self._calls.start(events.text(event.tool_id), call)
        elif event.type == "tool_result":
            done = self._calls.finish(events.text(event.tool_id))
            if done is not None:
                error = events.decode(_ERROR, event.error) or _Error()
                output = events.tail(event.output) or events.text(error.message)
                yield events.result(done, is_error=events.text(event.status) == "error", output=output)
        elif event.type == "error":
            words = events.text(event.message, 1000)
            self._has_looped = self._has_looped or words.startswith("Loop detected")
            yield Printed(text=words)
        elif event.type == "result":
            self._status = events.text(event.status, 20)
            self._error = events.decode(_ERROR, event.error) or _Error()
            if not self._status:
                yield Printed(text="an end without a status")

    def _add(self, piece: str) -> None:
        if self._size < TEXT_LIMIT and piece:
            self._pieces.append(piece[: TEXT_LIMIT - self._size])
            self._size += len(piece)
            if len(self._pieces) > 1000:
                self._pieces = ["".join(self._pieces)]

    def _said(self) -> Iterator[Entry]:
        if self._pieces:
            self._answer = "".join(self._pieces)
            self._pieces, self._size = [], 0
            yield Said(text=self._answer)

    def rest(self) -> list[Entry]:
        return [*self._said(), *self._calls.rest()]

    def end(self, exit_status: int | None, stderr_tail: str = "") -> Ended:
        kind, words = events.text(self._error.type), _api_message(events.text(self._error.message))
        is_api_error = words != events.text(self._error.message)
        if exit_status == _TURN_LIMIT_STATUS or kind == "FatalTurnLimitedError":
            return Ended(reason="max_turns", is_success=False, text=words)
        if exit_status in _CONFIGURATION_STATUSES:
            return Ended(reason="misconfigured", is_success=False, text=words or events.last_lines(stderr_tail))
        if not self._status:
            return events.without_end(exit_status, stderr_tail, has_begun=self._has_begun)
        if self._status != "success":
            status = events.http_status(events.text(self._error.message)) or _http_status(exit_status)
            reason: Reason = "model_error" if is_api_error or status is not None else "failed"
            return Ended(reason=reason, is_success=False, text=words, status=status)
        if self._has_looped:
            return Ended(reason="loop", is_success=False, text=self._answer)
        if exit_status not in (0, None):
            return Ended(reason="failed", is_success=False, text=events.last_lines(stderr_tail) or self._answer)
        return Ended(reason="completed", is_success=True, text=self._answer)


def _http_status(exit_status: int | None) -> int | None:
    """Return the HTTP status of an exit status after an error: it is the former modulo 256."""
    return exit_status + 256 if exit_status is not None and 400 <= exit_status + 256 <= 511 else None


def _api_message(words: str) -> str:
    """Return the message in `[API Error: …]`, whose content may be the answer of the API as JSON."""
    found = _API_ERROR.match(words)
    if found is None:
        return words
    answer = events.decode(_ANSWER, found[1].encode("utf-8", "replace"))
    error = events.decode(_ERROR, answer.error) if answer is not None else None
    return (events.text(error.message) if error is not None else "") or found[1]
