"""OpenAI's Chat Completions API, which many other servers speak. https://platform.openai.com/docs/api-reference/chat

The request's types are those of the vendor's library, `openai` 3.57: `types/chat/completion_create_params.py`. Some fields of
other servers that change only how tokens are chosen are known, too.
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
    sizes,
    text_field,
)

_FIELDS = names(
    "frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens messages min_p model "
    "parallel_tool_calls presence_penalty prompt_cache_key reasoning reasoning_effort repetition_penalty "
    "response_format safety_identifier seed stop stream temperature thinking tool_choice tools top_k top_logprobs top_p "
    "user verbosity"
)
"""Without `n`, `service_tier`, `audio`, `modalities` and `prediction` (whose text is billed as output), which change the
price, and `store`.
"""
_REJECTED = {"web_search_options": "the vendor would search the web", "plugins": "the vendor would run them"}
_TOOLS = frozenset({"function", "custom"})
_PARTS = frozenset({"text", "refusal", "image_url", "input_audio", "file"})


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: OpenAIDetails | None = None


class _Chunk(Struct):
    choices: list[Raw] = []
    usage: _Usage | None = None


_chunk = msgspec.json.Decoder(_Chunk)
_FRAME_BYTES = 60
"""Of a choice in a chunk, without its text."""


class Chat(OpenAIProtocol):
    name = "chat"
    path = "/v1/chat/completions"
    refused_status = 402

    def prepare(self, endpoint: Endpoint, query: str, body: Json, bounds: Bounds) -> Prepared:
        reject_fields(body, _REJECTED)
        sent = known_fields(body, _FIELDS)
        model = text_field(sent, "model")
        streams = flag(sent, "stream")
        seen = Size()
        for tool in objects(sent.get("tools"), "tools"):
            if (found := kind(tool, "tools")) not in _TOOLS:
                raise reject_kind(found, "tools")
        for message in objects(sent.get("messages"), "messages"):
            _check_message(message, seen)
        limits = [name for name in ("max_completion_tokens", "max_tokens") if name in sent]
        # Other servers know only the older name, and the vendor's newer models only the newer one.
        for name in limits or ["max_completion_tokens" if bounds.is_vendor else "max_tokens"]:
            sent[name] = bounds.output_tokens(count(sent, name))
        most = max(sent.get("max_completion_tokens", 0), sent.get("max_tokens", 0))
        if streams:
            sent["stream_options"] = {"include_usage": True}  # else a stream ends without counts
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
        chunk = _chunk.decode(data)
        if chunk.choices:
            counts.text_bytes += max(0, sizes(chunk.choices) - _FRAME_BYTES * len(chunk.choices))
        if chunk.usage is None:
            return
        usage = chunk.usage
        self.set_counts(counts, usage.prompt_tokens, usage.prompt_tokens_details, usage.completion_tokens)
        counts.is_final = True  # some servers send counts with every chunk: the last ones replace the others


def _check_message(message: Json, seen: Size) -> None:
    if isinstance(message.get("audio"), dict):
        raise Rejected("'audio' in 'messages' isn't allowed: the vendor would have stored it")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return
    for part in objects(content, "messages"):
        found = kind(part, "messages")
        if found not in _PARTS:
            raise reject_kind(found, "messages")
        # Whatever the type is: servers that speak this protocol may look for the field.
        if found == "image_url" or part.get("image_url") is not None:
            value = part.get("image_url")
            seen.image(data_url_bytes(value.get("url") if isinstance(value, dict) else value, "messages"))
            _check_embedded(value)
        for name, field in (("file", "file_data"), ("input_audio", "data")):
            if found == name or part.get(name) is not None:
                value = part.get(name)
                data = value.get(field) if isinstance(value, dict) else None
                if not isinstance(data, str) or "://" in data[:16]:
                    raise Rejected(
                        "a file in 'messages' must contain its data: the vendor would fetch it from outside of the machine"
                    )
                seen.document(len(data), is_pdf=name != "file" or is_pdf_url(data))
                _check_embedded(value)


def _check_embedded(value: object) -> None:
    """Reject a file that has its data and also an id or an address, either of which the vendor could prefer."""
    if isinstance(value, dict) and any(value.get(name) is not None for name in ("file_id", "file_url")):
        raise Rejected("files and URLs aren't allowed in 'messages': the vendor would fetch them from outside of the machine")
