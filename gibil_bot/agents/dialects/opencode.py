"""opencode's `run --format json` (https://github.com/anomalyco/opencode, `cli/cmd/run.ts`).

A call of a tool is one event, when it is completed or has failed. There is no closing event: the last step's reason `stop` is
the end, and a new step after it means that there is more.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Raw, Struct

from gibil_bot.agents.dialects import events
from gibil_bot.agents.transcript import Ended, Entry, Said, Thought


class _Event(Struct, frozen=True):
    type: str
    part: Raw = Raw()
    error: Raw = Raw()


class _Part(Struct, frozen=True):
    text: Raw = Raw()
    tool: Raw = Raw()
    callID: Raw = Raw()
    state: Raw = Raw()
    reason: Raw = Raw()
    cost: Raw = Raw()


class _State(Struct, frozen=True):
    status: Raw = Raw()
    input: Raw = Raw()
    output: Raw = Raw()
    error: Raw = Raw()
    metadata: Raw = Raw()


class _Metadata(Struct, frozen=True):
    exit: Raw = Raw()
    exists: Raw = Raw()
    diff: Raw = Raw()


class _Error(Struct, frozen=True):
    name: Raw = Raw()
    data: Raw = Raw()


class _ErrorData(Struct, frozen=True):
    message: Raw = Raw()
    statusCode: Raw = Raw()


_EVENT = msgspec.json.Decoder(_Event)
_PART = msgspec.json.Decoder(_Part)
_STATE = msgspec.json.Decoder(_State)
_METADATA = msgspec.json.Decoder(_Metadata)
_ERROR = msgspec.json.Decoder(_Error)
_ERROR_DATA = msgspec.json.Decoder(_ErrorData)


class OpencodeDialect:
    """Implements `Dialect`."""

    def __init__(self) -> None:
        self._calls = events.OpenCalls()
        self._has_begun = False
        self._answer = ""
        self._finish = ""
        self._turns = 0
        self._usd = 0.0
        self._failure: Ended | None = None
        self._denial = ""

    @property
    def has_ended(self) -> bool:
        return self._finish == "stop" or self._failure is not None

    def feed(self, line: bytes) -> Iterator[Entry]:
        event = events.event(_EVENT, line)
        self._has_begun = self._has_begun or event is not None
        if event is None:
            yield events.unreadable(line)
            return
        part = events.decode(_PART, event.part) or _Part()
        if event.type == "step_start":
            self._finish, self._failure = "", None
        elif event.type == "text":
            self._answer = events.text(part.text) or self._answer
            yield Said(text=events.text(part.text))
        elif event.type == "reasoning":
            yield Thought(text=events.text(part.text))
        elif event.type == "tool_use":
            yield from self._tool(part)
        elif event.type == "step_finish":
            self._finish = events.text(part.reason, 50)
            self._turns += 1
            self._usd += max(0.0, min(events.number(part.cost) or 0.0, 1e6))
        elif event.type == "error":
            self._failure = _failure(event.error)

    def _tool(self, part: _Part) -> Iterator[Entry]:
        state = events.decode(_STATE, part.state) or _State()
        status, identifier = events.text(state.status), events.text(part.callID)
        call = events.call(events.text(part.tool), state.input)
        if status not in ("completed", "error"):
            yield from self._calls.start(identifier, call)
        elif done := self._calls.finish(identifier, lambda: call):
            error = events.text(state.error)
            if error.startswith("The user rejected permission"):
                self._denial = events.text(part.tool, 100)
            metadata = events.decode(_METADATA, state.metadata) or _Metadata()
            diff = events.text(metadata.diff)
            yield events.result(
                done,
                is_error=status == "error",
                output=error or events.tail(state.output).removeprefix("(no output)"),
                exit_status=events.whole(metadata.exit, 255),
                patch=diff[max(0, diff.find("@@")) :],
                is_new=not events.is_true(metadata.exists) if metadata.exists else None,
            )

    def rest(self) -> list[Entry]:
        return self._calls.rest()

    def end(self, exit_status: int | None, stderr_tail: str = "") -> Ended:
        ended = self._judged(exit_status, stderr_tail)
        return msgspec.structs.replace(ended, turns=self._turns, reported_usd=self._usd)

    def _judged(self, exit_status: int | None, stderr_tail: str) -> Ended:
        if self._failure is not None:
            return self._failure
        if not self._finish:
            return events.without_end(exit_status, stderr_tail, has_begun=self._has_begun)
        if self._denial:
            return Ended(reason="misconfigured", is_success=False, text=f"denied: {self._denial}")
        if self._finish == "tool-calls":
            return events.without_end(exit_status, stderr_tail, has_begun=self._has_begun)
        if self._finish != "stop":
            return Ended(reason="failed", is_success=False, text=f"the last step ended with the reason {self._finish!r}")
        if exit_status not in (0, None):
            return Ended(reason="failed", is_success=False, text=events.last_lines(stderr_tail) or self._answer)
        return Ended(reason="completed", is_success=True, text=self._answer)


def _failure(raw: Raw) -> Ended:
    error = events.decode(_ERROR, raw) or _Error()
    data = events.decode(_ERROR_DATA, error.data) or _ErrorData()
    name, status = events.text(error.name, 100), events.whole(data.statusCode, 599)
    is_model = status is not None or name in ("APIError", "ProviderAuthError")
    return Ended(
        reason="model_error" if is_model else "failed",
        is_success=False,
        text=events.text(data.message) or name,
        status=status,
    )
