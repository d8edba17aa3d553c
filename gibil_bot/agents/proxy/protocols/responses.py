"""OpenAI's Responses API. https://platform.openai.com/docs/api-reference/responses

The request's types are those of the vendor's library, `openai` 3.57: `types/responses/response_create_params.py`,
`response_input_item_param.py` and `tool_param.py`. Names of newer items are those of the Codex CLI.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from gibil_bot.agents.proxy.protocols.base import (
    Bounds,
    Counts,
    Endpoint,
    Json,
    OpenAIDetails,
    OpenAIProtocol,
    Prepared,
    Rejected,
    Size,
    count,
    data_url_bytes,
    flag,
    is_pdf_url,
    kind,
    known_fields,
    names,
    objects,
    reject_fields,
    reject_kind,
    size,
    text_field,
)

_FIELDS = names(
    "client_metadata context_management include input instructions max_output_tokens max_tool_calls metadata model "
    "parallel_tool_calls prompt_cache_key reasoning safety_identifier stream stream_options temperature text tool_choice "
    "tools top_logprobs top_p truncation user"
)
"""Without `service_tier`, which changes the price, and `background`, which would run on after the task."""
_REJECTED = {
    "previous_response_id": "responses aren't stored; send the whole conversation",
    "conversation": "conversations aren't stored at the vendor",
    "prompt": "stored prompts aren't available",
}
_INCLUDED = frozenset({"reasoning.encrypted_content", "message.output_text.logprobs"})
_ITEMS = names(
    "message reasoning function_call function_call_output custom_tool_call custom_tool_call_output local_shell_call "
    "local_shell_call_output shell_call shell_call_output apply_patch_call apply_patch_call_output additional_tools "
    "tool_search_call tool_search_output compaction compaction_summary compaction_trigger context_compaction"
)
_PARTS = names("input_text output_text text summary_text reasoning_text input_image input_file encrypted_content") | {"refusal"}
_TOOLS = frozenset({"function", "custom", "local_shell", "apply_patch"})
_LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})


class _Usage(Struct):
    input_tokens: int
    output_tokens: int
    input_tokens_details: OpenAIDetails | None = None


class _Response(Struct):
    usage: _Usage | None = None


class _Event(Struct):
    type: str = ""
    response: _Response | None = None
    usage: _Usage | None = None
    delta: Raw = Raw()


_event = msgspec.json.Decoder(_Event)


class Responses(OpenAIProtocol):
    name = "responses"
    path = "/v1/responses"
    least_output_tokens = 16
    refused_status = 400
    ends_with_error = True

    def prepare(self, endpoint: Endpoint, query: str, body: Json, bounds: Bounds) -> Prepared:
        reject_fields(body, _REJECTED)
        sent = known_fields(body, _FIELDS)
        model = text_field(sent, "model")
        streams = flag(sent, "stream")
        seen = Size()
        _check_tools(sent.get("tools"), "tools")
        if not isinstance(sent.get("input"), str):
            for item in objects(sent.get("input"), "input"):
                _check_item(item, seen)
        if "include" in sent:
            listed = sent["include"] if isinstance(sent["include"], list) else []
            sent["include"] = [each for each in listed if isinstance(each, str) and each in _INCLUDED]
        most = max(self.least_output_tokens, bounds.output_tokens(count(sent, "max_output_tokens")))
        sent["max_output_tokens"] = most
        sent["store"] = False
        encoded = msgspec.json.encode(sent)
        return Prepared(
            path=endpoint.path,
            body=encoded,
            model=model,
            streams=streams,
            is_paid=True,
            input_tokens=seen.tokens(encoded),
            max_output_tokens=most,
        )

    def read(self, data: bytes, counts: Counts) -> None:
        event = _event.decode(data)
        counts.text_bytes += max(0, size(event.delta) - 2)
        usage = event.usage or (event.response.usage if event.response is not None else None)
        if usage is None:
            return
        self.set_counts(counts, usage.input_tokens, usage.input_tokens_details, usage.output_tokens)
        counts.is_final = counts.is_final or event.type in _LAST or event.response is None

    def error_event(self, message: str) -> bytes:
        """Return `response.failed`, after which Codex ends; it reads an `error` event as a reason to try again."""
        error = {"code": "server_is_silent", "message": message}
        failed: Json = {
            "id": "resp_gibil",
            "object": "response",
            "status": "failed",
            "output": [],
            "usage": None,
            "error": error,
        }
        event = {"type": "response.failed", "sequence_number": 1_000_000, "response": failed}
        return b"event: response.failed\ndata: " + msgspec.json.encode(event) + b"\n\n"


def _check_tools(tools: object, where: str) -> None:
    for tool in objects(tools, where):
        found = kind(tool, where)
        _check_tools(tool.get("tools"), where)
        if found == "namespace":
            continue
        if found == "tool_search":
            if tool.get("execution") != "client":
                raise reject_kind(found, where)
        elif found == "shell":
            environment = tool.get("environment")
            if environment is not None and not (isinstance(environment, dict) and environment.get("type") == "local"):
                raise reject_kind("shell with a container", where)
        elif found not in _TOOLS:
            raise reject_kind(found, where)


def _check_item(item: Json, seen: Size) -> None:
    found = kind(item, "input", "message" if "role" in item else "")
    if found not in _ITEMS:
        raise reject_kind(found, "input")
    _check_tools(item.get("tools"), "input")
    for name in ("content", "output", "summary"):
        value = item.get(name)
        if not isinstance(value, str):
            for part in objects(value, f"input.{name}"):
                # What a command printed has no type.
                _check_part(part, seen, "text" if found == "shell_call_output" and name == "output" else "")


def _check_part(part: Json, seen: Size, default: str) -> None:
    found = kind(part, "input", default)
    if found not in _PARTS:
        raise reject_kind(found, "input")
    if part.get("file_id") is not None or part.get("file_url") is not None:
        raise Rejected("files and URLs aren't allowed in 'input': the vendor would fetch them from outside of the machine")
    # Whatever the type is: servers that speak this protocol may look for the field.
    if found == "input_image" or part.get("image_url") is not None:
        seen.image(data_url_bytes(part.get("image_url"), "input"))
    if found == "input_file" or part.get("file_data") is not None:
        data = part.get("file_data")
        if not isinstance(data, str):
            raise Rejected("an input_file needs 'file_data'")
        if "://" in data[:16]:
            raise Rejected("only data: URLs are allowed in 'file_data'")
        seen.document(len(data), is_pdf=is_pdf_url(data))
