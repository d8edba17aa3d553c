"""Anthropic's Messages API. https://platform.claude.com/docs/en/api/messages

The request's types are those of the vendor's library, `anthropic` 2.14: `types/beta/message_create_params.py`,
`beta_content_block_param.py` and `beta_tool_union_param.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec
from msgspec import Raw, Struct

from gibil_bot.agents.proxy.protocols.base import (
    Bounds,
    Counts,
    Endpoint,
    Json,
    ModelProtocol,
    Prepared,
    Rejected,
    Size,
    count,
    flag,
    kind,
    known_fields,
    names,
    objects,
    reject_fields,
    reject_kind,
    size,
    text_field,
    total,
)

_FIELDS = names(
    "cache_control context_management max_tokens messages metadata model output_config output_format stop_sequences stream "
    "system temperature thinking tool_choice tools top_k top_p"
)
"""Without `service_tier`, `speed` and `inference_geo`, which change the price."""
_REJECTED = {
    "mcp_servers": "the vendor would connect to these servers",
    "container": "it is a machine of the vendor",
    "fallbacks": "other models would answer",
    "thread": "the vendor would store it",
}
_CLIENT_TOOL = re.compile(r"custom|(?:bash|text_editor|memory)_\d{8}")
_BLOCKS = names("text image document search_result thinking redacted_thinking tool_use tool_result tool_reference compaction")
_SOURCES = frozenset({"base64", "text", "content"})
_LEAST_THINKING = 1024
"""https://platform.claude.com/docs/en/build-with-claude/extended-thinking: at least 1024, and below max_tokens."""
_BETA = re.compile(r"[A-Za-z0-9-]{1,64}")
_REJECTED_BETAS = re.compile(
    r"(?:mcp-|files-api-|code-execution-|web-fetch-|web-search-|fast-mode-|skills-|server-side-fallback-|fallback-credit-|user-profiles-"
    r"|managed-agents-|advisor-tool-|agent-memory-|message-threads-|message-batches-|computer-use-)"
)
_ERRORS = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 504: "timeout_error",
}  # fmt: skip
"""https://platform.claude.com/docs/en/api/errors"""


class _Creation(Struct):
    ephemeral_1h_input_tokens: int | None = None


class _Iteration(Struct):
    type: str = ""
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens: int | None = None


class _Usage(Struct):
    input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation: _Creation | None = None
    output_tokens: int | None = None
    iterations: list[_Iteration] | None = None


class _Message(Struct):
    usage: _Usage | None = None


class _Event(Struct):
    type: str = ""
    message: _Message | None = None
    usage: _Usage | None = None
    delta: Raw = Raw()


_event = msgspec.json.Decoder(_Event)


class Anthropic(ModelProtocol):
    name = "anthropic"
    refused_status = 402
    ends_with_error = True

    def endpoint(self, path: str) -> Endpoint | None:
        if path == "/v1/messages":
            return Endpoint(path=path, is_paid=True)
        if path == "/v1/messages/count_tokens":
            return Endpoint(path=path, is_paid=False, streams=False)
        return None

    def prepare(self, endpoint: Endpoint, query: str, body: Json, bounds: Bounds) -> Prepared:
        reject_fields(body, _REJECTED)
        sent = known_fields(body, _FIELDS)
        model = text_field(sent, "model")
        streams = endpoint.is_paid and flag(sent, "stream")
        seen = Size()
        for tool in objects(sent.get("tools"), "tools"):
            if not _CLIENT_TOOL.fullmatch(found := kind(tool, "tools", "custom")):
                raise reject_kind(found, "tools")
        _check_blocks(sent.get("system"), "system", seen)
        for message in objects(sent.get("messages"), "messages"):
            _check_blocks(message.get("content"), "messages", seen)
        most = 0
        if endpoint.is_paid:
            asked = count(sent, "max_tokens")
            if asked is None:
                raise Rejected("'max_tokens' must be a whole number")
            sent["max_tokens"] = most = bounds.output_tokens(asked)
        _clamp_thinking(sent, most)
        encoded = msgspec.json.encode(sent)
        return Prepared(
            path=f"{endpoint.path}?beta=true" if "beta=true" in query.split("&") else endpoint.path,
            body=encoded,
            model=model,
            streams=streams,
            is_paid=endpoint.is_paid,
            input_tokens=seen.tokens(encoded),
            max_output_tokens=most,
        )

    def read(self, data: bytes, counts: Counts) -> None:
        event = _event.decode(data)
        if event.type == "content_block_delta":
            counts.text_bytes += max(0, size(event.delta) - 40)  # without `{"type": "…_delta", "…": ""}`
        usage = event.usage or (event.message.usage if event.message is not None else None)
        if usage is None:
            return
        more = [each for each in usage.iterations or () if each.type != "message"]  # the others are part of the counts above
        if usage.input_tokens is not None:
            counts.input = usage.input_tokens + total(*(each.input_tokens for each in more))
        if usage.cache_read_input_tokens is not None:
            counts.cache_read = usage.cache_read_input_tokens + total(*(each.cache_read_input_tokens for each in more))
        if usage.cache_creation_input_tokens is not None:
            written = usage.cache_creation_input_tokens + total(*(each.cache_creation_input_tokens for each in more))
            if usage.cache_creation is not None:
                counts.cache_write_1h = usage.cache_creation.ephemeral_1h_input_tokens or 0
            counts.cache_write_5m = written - counts.cache_write_1h
        if usage.output_tokens is not None:
            counts.output = usage.output_tokens + total(*(each.output_tokens for each in more))
        if event.type != "message_start" and usage.output_tokens is not None:
            counts.is_final = True

    def error(self, status: int, message: str, code: str = "") -> Json:
        return {"type": "error", "error": {"type": _ERRORS.get(status, "api_error"), "message": message}}

    def error_event(self, message: str) -> bytes:
        return b"event: error\n" + super().error_event(message)

    def key_headers(self, key: str) -> dict[str, str]:
        return {"x-api-key": key}

    def headers(self, received: Mapping[str, str]) -> dict[str, str]:
        version = received.get("anthropic-version", "")
        betas = [beta.strip() for beta in received.get("anthropic-beta", "").split(",")]
        kept = [beta for beta in betas if _BETA.fullmatch(beta) and not _REJECTED_BETAS.match(beta)]
        return {
            "anthropic-version": version if re.fullmatch(r"\d{4}-\d{2}-\d{2}", version) else "2023-06-01",
            **({"anthropic-beta": ",".join(kept)} if kept else {}),
        }


def _check_blocks(content: object, where: str, seen: Size) -> None:
    if content is None or isinstance(content, str):
        return
    for block in objects(content, where):
        found = kind(block, where)
        if found not in _BLOCKS:
            raise reject_kind(found, where)
        source = block.get("source")
        if found in ("image", "document"):
            if not isinstance(source, dict) or (form := kind(source, where)) not in _SOURCES:
                raise Rejected(f"the source of an {found} in '{where}' isn't allowed: the vendor would fetch it")
            if any(source.get(name) is not None for name in ("url", "file_id")):
                raise Rejected(f"the source of an {found} in '{where}' isn't allowed: the vendor would fetch it")
            _check_blocks(source.get("content"), where, seen)
            if form == "base64":
                length = len(source["data"]) if isinstance(source.get("data"), str) else 0
                if found == "image":
                    seen.image(length)
                else:
                    seen.document(length, is_pdf=source.get("media_type") == "application/pdf")
        elif source is not None and not isinstance(source, str):  # the label of a search result
            raise Rejected(f"a source in '{where}' isn't allowed")
        if found in ("tool_result", "search_result", "compaction"):
            _check_blocks(block.get("content"), where, seen)


def _clamp_thinking(sent: Json, most: int) -> None:
    """Keep the thinking budget below max_tokens."""
    thinking = sent.get("thinking")
    if not isinstance(thinking, dict) or (budget := count(thinking, "budget_tokens")) is None or not most:
        return
    if most <= _LEAST_THINKING:
        del sent["thinking"]
    else:
        sent["thinking"] = {**thinking, "budget_tokens": min(budget, most - 1)}
