"""A double of the models' APIs: Anthropic Messages, OpenAI Responses and Chat Completions, and Gemini, on one port.

What the model says is a script (`model_script`). Like a model, it has no memory: the number of tool results in a request is the
number of the step. Rules of the APIs that clients can break are checked, and each names its page. Faults are those that agents'
programs meet: limits, cut and silent streams, and others.

    async with model_double(Script(steps=(Run("pytest -q"), Say("Done.")))) as model:
        …  # model.url, model.key, model.requests
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import secrets
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from gibil_bot.demo.model_script import TITLE, Say, Script, ToolCall, choose, tool_call
from gibil_bot.demo.server import serving

Json: TypeAlias = dict[str, Any]
Event: TypeAlias = tuple[str, Json | str]
"""Name (empty: none) and data."""
FaultKind: TypeAlias = Literal["status", "cut", "refuse", "silence", "pings", "slow", "error"]

_RESULT = re.compile(
    r'"type": "(?:tool_result|(?:function|custom_tool|local_shell)_call_output)"|"role": "tool"|"functionResponse"'
)
_KEY_HEADERS = frozenset({"authorization", "x-api-key", "x-goog-api-key"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """The tokens of every reply. They don't overlap."""

    input: int = 800
    cache_read: int = 200
    cache_write: int = 0
    output: int = 50
    """With `reasoning`."""
    reasoning: int = 10


@dataclass(slots=True, kw_only=True)
class Fault:
    """What goes wrong with the next calls."""

    kind: FaultKind
    status: int = 0
    times: int = 1
    after: int = 0
    """Calls that are answered before."""
    headers: dict[str, str] = field(default_factory=dict)
    message: str = "the double fails on request"
    code: str = ""
    """Of OpenAI's errors."""
    wait_s: float = 0.0
    """Between pings, or between events of a slow stream."""
    pings: int = 3


@dataclass(slots=True, kw_only=True)
class Recorded:
    """A request. Headers are without keys."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Json
    has_key: bool
    """It had the vendor's key."""
    sent: bytes = b""
    """The body of the answer, as far as it was sent."""
    was_left: bool = False
    """The client closed the connection before the end of the answer."""


class ModelDouble:
    """The model's vendor."""

    def __init__(self, *scripts: Script, counts: Counts | None = None) -> None:
        self.scripts: Sequence[Script] = scripts
        self.counts = counts or Counts()
        self.key = f"sk-double-{secrets.token_hex(16)}"
        self.url = ""
        self.requests: list[Recorded] = []
        self.released = asyncio.Event()
        """Ends the silence of `silence`."""
        self.faults: list[Fault] = []
        self._changed = asyncio.Condition()

    @property
    def calls(self) -> list[Recorded]:
        """The requests for replies."""
        return [each for each in self.requests if each.method == "POST" and "ount" not in each.path]

    def fault(self, kind: FaultKind, **details: Any) -> None:
        """Let the next calls fail."""
        self.faults.append(Fault(kind=kind, **details))

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition on the requests holds."""
        async with self._changed:
            await self._changed.wait_for(condition)

    async def changed(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def next_fault(self) -> Fault | None:
        for fault in self.faults:
            if fault.after:
                fault.after -= 1
            elif fault.times:
                fault.times -= 1
                return fault
        return None


@contextlib.asynccontextmanager
async def model_double(*scripts: Script, counts: Counts | None = None, port: int = 0) -> AsyncIterator[ModelDouble]:
    """Serve a double on a free port of loopback."""
    double = ModelDouble(*scripts, counts=counts)
    app = Starlette(
        routes=[
            Route("/v1/messages", _handler(double, _Anthropic()), methods=["POST"]),
            Route("/v1/messages/count_tokens", _handler(double, _Anthropic()), methods=["POST"]),
            Route("/v1/responses", _handler(double, _Responses()), methods=["POST"]),
            Route("/v1/chat/completions", _handler(double, _Chat()), methods=["POST"]),
            Route("/v1beta/models/{call:path}", _handler(double, _Gemini()), methods=["POST"]),
        ]
    )
    async with serving(app, port=port) as double.url:
        yield double


def _handler(double: ModelDouble, api: _Api) -> Callable[[Request], Any]:
    async def handle(request: Request) -> Response:
        raw = await request.body()
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        recorded = Recorded(
            method=request.method,
            path=request.url.path,
            query=request.url.query,
            headers={name: value for name, value in request.headers.items() if name not in _KEY_HEADERS},
            body=body if isinstance(body, dict) else {},
            has_key=api.key(request) == double.key,
        )
        double.requests.append(recorded)
        await double.changed()
        if not recorded.has_key:
            return _whole(recorded, 401, api.error(401, f"invalid key: {api.key(request)[-4:]}"))
        if not isinstance(body, dict) or (problem := api.problem(request, body)) is not None:
            message = problem if isinstance(body, dict) and problem else "the body is not a JSON object"
            return _whole(recorded, 400, api.error(400, message))
        if "ount" in recorded.path:
            return _whole(recorded, 200, {"input_tokens": 1000, "totalTokens": 1000})
        fault = double.next_fault()
        if fault is not None and fault.kind == "status":
            error = api.error(fault.status, fault.message, fault.code)
            return _whole(recorded, fault.status, error, {"request-id": "req_failed", **fault.headers})
        conversation = json.dumps(body)
        step = choose(double.scripts, conversation).step(len(_RESULT.findall(conversation)))
        reply = step if isinstance(step, Say) else tool_call(step, api.tools(body), conversation) or Say(TITLE)
        model = api.model(request, body)
        if not api.streams(request, body):
            whole = api.whole(model, reply, double.counts)
            if fault is None:
                return _whole(recorded, 200, whole)
            text = json.dumps(whole).encode()
            return _Slow(double, recorded, [text[:20], text[20:]], "application/json", fault)
        events = list(api.events(body, model, reply, double.counts))
        if fault is not None and fault.kind == "error":
            events[1:] = [api.error_event(fault.message)]
        pings = fault.pings if fault is not None and fault.kind == "pings" else 0
        pieces = [_encoded(*event) for event in events]
        pieces[1:1] = [api.ping] * pings
        return _Slow(double, recorded, pieces, "text/event-stream; charset=utf-8", fault)

    return handle


def _whole(recorded: Recorded, status: int, value: Json, headers: dict[str, str] | None = None) -> Response:
    recorded.sent = json.dumps(value).encode()
    return Response(recorded.sent, status, {"request-id": "req_double", **(headers or {})}, "application/json")


def _encoded(name: str, value: Json | str) -> bytes:
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {value if isinstance(value, str) else json.dumps(value)}\n\n".encode()


class _Slow(Response):
    """An answer in pieces, with a fault after the first one."""

    def __init__(
        self, double: ModelDouble, recorded: Recorded, pieces: list[bytes], content_type: str, fault: Fault | None
    ) -> None:
        super().__init__()
        self._double, self._recorded, self._pieces, self._fault = double, recorded, pieces, fault
        self._head = [(b"content-type", content_type.encode()), (b"request-id", b"req_double")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        transport = scope["extensions"]["gibil"]["transport"]
        if self._fault is not None and self._fault.kind == "refuse":
            transport.abort()
            await _gone(receive)
            return
        sending = asyncio.ensure_future(self._send(transport, send))
        gone = asyncio.ensure_future(_gone(receive))
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        is_cut = self._fault is not None and self._fault.kind == "cut"
        self._recorded.was_left = not sending.done() and not is_cut
        for task in (sending, gone):
            task.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
        await self._double.changed()

    async def _send(self, transport: asyncio.Transport, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._head})
        kind = self._fault.kind if self._fault is not None else ""
        for index, piece in enumerate(self._pieces):
            if index == 1 and kind == "cut":
                transport.close()
                await asyncio.Event().wait()
            elif index == 1 and kind == "silence":
                await self._double.released.wait()
            elif index and self._fault is not None and kind in ("slow", "pings"):
                await asyncio.sleep(self._fault.wait_s)
            self._recorded.sent += piece
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            if index == 0:
                await self._double.changed()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


# --- the APIs


class _Api(ABC):
    ping = b": ping\n\n"

    def key(self, request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    @abstractmethod
    def problem(self, request: Request, body: Json) -> str | None:
        """Return what the vendor would reject."""

    def model(self, request: Request, body: Json) -> str:
        return str(body["model"])

    def streams(self, request: Request, body: Json) -> bool:
        return bool(body.get("stream"))

    @abstractmethod
    def tools(self, body: Json) -> dict[str, Json]: ...

    @abstractmethod
    def whole(self, model: str, reply: Say | ToolCall, counts: Counts) -> Json: ...

    @abstractmethod
    def events(self, body: Json, model: str, reply: Say | ToolCall, counts: Counts) -> Iterator[Event]: ...

    def error(self, status: int, message: str, code: str = "") -> Json:
        """https://platform.openai.com/docs/guides/error-codes/api-errors"""
        return {"error": {"message": message, "type": "error", "param": None, "code": code or None}}

    def error_event(self, message: str) -> Event:
        return "", self.error(500, message)


class _Anthropic(_Api):
    """https://platform.claude.com/docs/en/api/messages and …/docs/en/build-with-claude/streaming"""

    ping = b'event: ping\ndata: {"type": "ping"}\n\n'
    _fields = frozenset(
        {
            *("cache_control", "container", "context_management", "inference_geo", "max_tokens", "mcp_servers", "messages"),
            *("metadata", "model", "output_config", "output_format", "service_tier", "speed", "stop_sequences", "stream"),
            *("system", "temperature", "thinking", "tool_choice", "tools", "top_k", "top_p"),
        }
    )

    def key(self, request: Request) -> str:
        return request.headers.get("x-api-key", "")

    def problem(self, request: Request, body: Json) -> str | None:
        if "anthropic-version" not in request.headers:  # https://platform.claude.com/docs/en/api/versioning
            return "anthropic-version: header is required"
        for name in body:
            if name not in self._fields:
                return f"{name}: Extra inputs are not permitted"
        if request.url.path.endswith("/count_tokens"):
            return None
        if not isinstance(body.get("max_tokens"), int):
            return "max_tokens: Field required"
        # https://platform.claude.com/docs/en/build-with-claude/extended-thinking
        budget = (body.get("thinking") or {}).get("budget_tokens")
        if budget is not None and not 1024 <= budget < body["max_tokens"]:
            return "thinking.budget_tokens: at least 1024 and less than max_tokens"
        return None

    def tools(self, body: Json) -> dict[str, Json]:
        return {tool["name"]: tool.get("input_schema") or {} for tool in body.get("tools") or []}

    def _message(self, model: str, counts: Counts, output: int) -> Json:
        usage = {
            "input_tokens": counts.input,
            "cache_creation_input_tokens": counts.cache_write,
            "cache_read_input_tokens": counts.cache_read,
            "cache_creation": {"ephemeral_5m_input_tokens": counts.cache_write, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output,
            "service_tier": "standard",
        }
        return {
            "id": f"msg_{secrets.token_hex(4)}", "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": usage,
        }  # fmt: skip

    def _block(self, reply: Say | ToolCall) -> Json:
        if isinstance(reply, Say):
            return {"type": "text", "text": reply.text}
        return {"type": "tool_use", "id": f"toolu_{secrets.token_hex(4)}", "name": reply[0], "input": reply[1]}

    def whole(self, model: str, reply: Say | ToolCall, counts: Counts) -> Json:
        stop = "end_turn" if isinstance(reply, Say) else "tool_use"
        return {**self._message(model, counts, counts.output), "content": [self._block(reply)], "stop_reason": stop}

    def events(self, body: Json, model: str, reply: Say | ToolCall, counts: Counts) -> Iterator[Event]:
        block = self._block(reply)
        if isinstance(reply, Say):
            begun, delta = {**block, "text": ""}, {"type": "text_delta", "text": reply.text}
        else:
            begun, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(reply[1])}
        stop = "end_turn" if isinstance(reply, Say) else "tool_use"
        for event in (
            {"type": "message_start", "message": self._message(model, counts, 1)},
            {"type": "content_block_start", "index": 0, "content_block": begun},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": stop, "stop_sequence": None},
                "usage": {"output_tokens": counts.output},
            },
            {"type": "message_stop"},
        ):
            yield str(event["type"]), event

    def error(self, status: int, message: str, code: str = "") -> Json:
        """https://platform.claude.com/docs/en/api/errors"""
        kinds = {401: "authentication_error", 402: "billing_error", 403: "permission_error", 429: "rate_limit_error"}
        kind = kinds.get(status, "overloaded_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}

    def error_event(self, message: str) -> Event:
        return "error", self.error(529, message)


class _Responses(_Api):
    """https://platform.openai.com/docs/api-reference/responses and …/responses-streaming"""

    def problem(self, request: Request, body: Json) -> str | None:
        if not isinstance(body.get("model"), str) or "input" not in body:
            return "Missing required parameter"
        # https://platform.openai.com/docs/api-reference/responses/create#responses_create-max_output_tokens
        if (body.get("max_output_tokens") or 16) < 16:
            return "max_output_tokens: expected a value >= 16"
        return None

    def tools(self, body: Json) -> dict[str, Json]:
        offered = list(body.get("tools") or [])
        for item in body["input"] if isinstance(body["input"], list) else []:
            if item.get("type") == "additional_tools":  # Codex sends newer models their tools in the input
                offered += [tool for each in item["tools"] for tool in each.get("tools", [each])]
        return {tool.get("name", tool.get("type")): tool.get("parameters") or {} for tool in offered}

    def _item(self, reply: Say | ToolCall) -> Json:
        number = secrets.token_hex(4)
        if isinstance(reply, Say):
            text = {"type": "output_text", "text": reply.text, "annotations": []}
            return {"type": "message", "id": f"msg_{number}", "role": "assistant", "status": "completed", "content": [text]}
        name, arguments = reply
        call = {"call_id": f"call_{number}", "name": name}
        if isinstance(arguments, str):
            return {"type": "custom_tool_call", "id": f"ctc_{number}", **call, "input": arguments}
        text_arguments = json.dumps(arguments)
        return {"type": "function_call", "id": f"fc_{number}", **call, "arguments": text_arguments, "status": "completed"}

    def _response(self, model: str) -> Json:
        return {
            "id": f"resp_{secrets.token_hex(4)}", "object": "response", "created_at": 1_700_000_000, "model": model,
            "status": "in_progress", "output": [], "usage": None, "error": None,
        }  # fmt: skip

    def _usage(self, counts: Counts) -> Json:
        total = counts.input + counts.cache_read + counts.cache_write
        return {
            "input_tokens": total,
            "input_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
            "output_tokens": counts.output,
            "output_tokens_details": {"reasoning_tokens": counts.reasoning},
            "total_tokens": total + counts.output,
        }

    def whole(self, model: str, reply: Say | ToolCall, counts: Counts) -> Json:
        return {**self._response(model), "status": "completed", "output": [self._item(reply)], "usage": self._usage(counts)}

    def events(self, body: Json, model: str, reply: Say | ToolCall, counts: Counts) -> Iterator[Event]:
        response, item = self._response(model), self._item(reply)
        done = {**response, "status": "completed", "output": [item], "usage": self._usage(counts)}
        begun = {**item, "content": []} if isinstance(reply, Say) else item
        events: list[Json] = [
            {"type": "response.created", "response": response},
            {"type": "response.output_item.added", "output_index": 0, "item": begun},
        ]
        if isinstance(reply, Say):
            place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
            events.append({"type": "response.output_text.delta", **place, "delta": reply.text})
        events += [
            {"type": "response.output_item.done", "output_index": 0, "item": item},
            {"type": "response.completed", "response": done},
        ]
        for number, event in enumerate(events):
            yield event["type"], {**event, "sequence_number": number}

    def error_event(self, message: str) -> Event:
        failed = {**self._response("m"), "status": "failed", "error": {"code": "server_error", "message": message}}
        return "response.failed", {"type": "response.failed", "response": failed, "sequence_number": 1}


class _Chat(_Api):
    """https://platform.openai.com/docs/api-reference/chat and …/chat-streaming"""

    def problem(self, request: Request, body: Json) -> str | None:
        if not isinstance(body.get("model"), str) or not isinstance(body.get("messages"), list):
            return "Missing required parameter"
        # https://platform.openai.com/docs/api-reference/chat/create#chat_create-stream_options
        if body.get("stream_options") is not None and not body.get("stream"):
            return "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        return None

    def tools(self, body: Json) -> dict[str, Json]:
        functions = [tool["function"] for tool in body.get("tools") or [] if "function" in tool]
        return {function["name"]: function.get("parameters") or {} for function in functions}

    def _message(self, reply: Say | ToolCall) -> Json:
        if isinstance(reply, Say):
            return {"role": "assistant", "content": reply.text}
        function = {"name": reply[0], "arguments": json.dumps(reply[1])}
        call = {"index": 0, "id": f"call_{secrets.token_hex(4)}", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def _usage(self, counts: Counts) -> Json:
        total = counts.input + counts.cache_read + counts.cache_write
        return {
            "prompt_tokens": total,
            "completion_tokens": counts.output,
            "total_tokens": total + counts.output,
            "prompt_tokens_details": {"cached_tokens": counts.cache_read, "cache_write_tokens": counts.cache_write},
            "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
        }

    def _frame(self, model: str) -> Json:
        return {"id": f"chatcmpl-{secrets.token_hex(4)}", "created": 1_700_000_000, "model": model}

    def whole(self, model: str, reply: Say | ToolCall, counts: Counts) -> Json:
        finish = "stop" if isinstance(reply, Say) else "tool_calls"
        choice = {"index": 0, "message": self._message(reply), "finish_reason": finish}
        return {**self._frame(model), "object": "chat.completion", "choices": [choice], "usage": self._usage(counts)}

    def events(self, body: Json, model: str, reply: Say | ToolCall, counts: Counts) -> Iterator[Event]:
        frame = {**self._frame(model), "object": "chat.completion.chunk"}
        finish = "stop" if isinstance(reply, Say) else "tool_calls"
        yield "", {**frame, "choices": [{"index": 0, "delta": self._message(reply), "finish_reason": None}]}
        yield "", {**frame, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
        if (body.get("stream_options") or {}).get("include_usage"):  # else a stream has no counts
            yield "", {**frame, "choices": [], "usage": self._usage(counts)}
        yield "", "[DONE]"


class _Gemini(_Api):
    """https://ai.google.dev/api/generate-content"""

    def key(self, request: Request) -> str:
        return request.headers.get("x-goog-api-key", "")

    def problem(self, request: Request, body: Json) -> str | None:
        method = request.path_params["call"].rpartition(":")[2]
        if method not in ("generateContent", "streamGenerateContent", "countTokens"):
            return f"unknown method {method}"
        if method == "streamGenerateContent" and request.query_params.get("alt") != "sse":
            return "the double has streams of server-sent events only: add alt=sse"
        return None if isinstance(body.get("contents") or body.get("generateContentRequest"), (list, dict)) else "no contents"

    def model(self, request: Request, body: Json) -> str:
        return str(request.path_params["call"].partition(":")[0])

    def streams(self, request: Request, body: Json) -> bool:
        return str(request.path_params["call"]).endswith(":streamGenerateContent")

    def tools(self, body: Json) -> dict[str, Json]:
        declared = [each for tool in body.get("tools") or [] for each in tool.get("functionDeclarations") or []]
        return {each["name"]: each.get("parametersJsonSchema") or each.get("parameters") or {} for each in declared}

    def _candidate(self, reply: Say | ToolCall) -> Json:
        part: Json = {"text": reply.text} if isinstance(reply, Say) else {"functionCall": {"name": reply[0], "args": reply[1]}}
        return {"content": {"role": "model", "parts": [part]}, "index": 0}

    def _usage(self, counts: Counts) -> Json:
        prompt = counts.input + counts.cache_read
        return {
            "promptTokenCount": prompt,
            "cachedContentTokenCount": counts.cache_read,
            "candidatesTokenCount": counts.output - counts.reasoning,
            "thoughtsTokenCount": counts.reasoning,
            "totalTokenCount": prompt + counts.output,
        }

    def whole(self, model: str, reply: Say | ToolCall, counts: Counts) -> Json:
        candidate = {**self._candidate(reply), "finishReason": "STOP"}
        return {"candidates": [candidate], "usageMetadata": self._usage(counts), "modelVersion": model, "responseId": "r1"}

    def events(self, body: Json, model: str, reply: Say | ToolCall, counts: Counts) -> Iterator[Event]:
        about = {"modelVersion": model, "responseId": "r1"}
        yield "", {"candidates": [self._candidate(reply)], **about}
        last = {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP", "index": 0}
        yield "", {"candidates": [last], "usageMetadata": self._usage(counts), **about}

    def error(self, status: int, message: str, code: str = "") -> Json:
        """https://ai.google.dev/gemini-api/docs/troubleshooting"""
        kinds = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED"}
        return {"error": {"code": status, "message": message, "status": kinds.get(status, "UNAVAILABLE")}}


async def _main() -> None:
    """Serve replies that say a word, until the process ends. Prints the URL and the key."""
    async with model_double(Script(steps=(Say("Done."),))) as double:
        if "--silent" in sys.argv:
            double.fault("silence", times=1_000_000)
        sys.stdout.write(json.dumps({"url": double.url, "key": double.key}) + "\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main())
