"""Google's Gemini API. https://ai.google.dev/api/generate-content

Names have two forms, `fileData` and `file_data` (https://protobuf.dev/programming-guides/json/); requests are passed on with
the first form only. The types are those of the vendor's library, `google-genai` 3.6: `types.py`.
"""

from __future__ import annotations

import re

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
    known_fields,
    names,
    objects,
    reject_fields,
    reject_kind,
    size,
    sizes,
    total,
)

_PATH = re.compile(r"/v1beta/models/([A-Za-z0-9][\w.-]{0,127}):(generateContent|streamGenerateContent|countTokens)", re.ASCII)
_FIELDS = frozenset(["contents", "generationConfig", "safetySettings", "systemInstruction", "toolConfig", "tools"])
"""Without `serviceTier`, which changes the price, `store` and `labels`."""
_REJECTED = {"cachedContent": "the vendor would have stored it", "model": "the path names the model"}
_CONFIG = names(
    "frequencyPenalty logprobs maxOutputTokens mediaResolution presencePenalty responseJsonSchema responseLogprobs "
    "responseMimeType responseSchema seed stopSequences temperature thinkingConfig topK topP"
)
_PARTS = names(
    "text thought thoughtSignature inlineData functionCall functionResponse videoMetadata mediaResolution partMetadata"
)
_ERRORS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
}
_FRAME_BYTES = 60


class _Usage(Struct, rename="camel"):
    prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None


class _Answer(Struct, rename="camel"):
    candidates: list[Raw] = []
    prompt_feedback: Raw = Raw()
    usage_metadata: _Usage | None = None


_answer = msgspec.json.Decoder(_Answer)


class Gemini(ModelProtocol):
    name = "gemini"
    refused_status = 403

    def endpoint(self, path: str) -> Endpoint | None:
        match = _PATH.fullmatch(path)
        if match is None:
            return None
        method = match[2]
        return Endpoint(path=path, model=match[1], is_paid=method != "countTokens", streams=method == "streamGenerateContent")

    def prepare(self, endpoint: Endpoint, query: str, body: Json, bounds: Bounds) -> Prepared:
        if endpoint.streams and "alt=sse" not in query.split("&"):
            raise Rejected("add the parameter alt=sse: streams as JSON arrays aren't supported")
        seen = Size()
        wrapped: Json = {}
        body = _one_form(body, "the request")
        if not endpoint.is_paid and isinstance(body.get("generateContentRequest"), dict):
            # https://ai.google.dev/api/tokens: what is counted may be a whole request
            inner = _one_form(body["generateContentRequest"], "generateContentRequest")
            inner.pop("model", None)
            wrapped, body = {"model": f"models/{endpoint.model}"}, inner
        reject_fields(body, _REJECTED)
        sent = known_fields(body, _FIELDS)
        if "tools" in sent:
            sent["tools"] = [_tool(tool) for tool in objects(sent["tools"], "tools")]
        if "systemInstruction" in sent:
            sent["systemInstruction"] = _content(sent["systemInstruction"], seen)
        contents = sent.get("contents")
        sent["contents"] = [_content(each, seen) for each in (contents if isinstance(contents, list) else [contents])]
        most = 0
        if endpoint.is_paid:
            sent["generationConfig"] = config = _config(sent.get("generationConfig"), bounds)
            most = config["maxOutputTokens"]
        encoded = msgspec.json.encode({"generateContentRequest": wrapped | sent} if wrapped else sent)
        return Prepared(
            path=f"{endpoint.path}?alt=sse" if endpoint.streams else endpoint.path,
            body=encoded,
            model=endpoint.model,
            streams=bool(endpoint.streams),
            is_paid=endpoint.is_paid,
            input_tokens=seen.tokens(encoded),
            max_output_tokens=most,
        )

    def read(self, data: bytes, counts: Counts) -> None:
        answer = _answer.decode(data)
        counts.text_bytes += max(0, sizes(answer.candidates) - _FRAME_BYTES * len(answer.candidates))
        usage = answer.usage_metadata
        if usage is None:
            return
        if usage.prompt_token_count is not None:
            counts.cache_read = usage.cached_content_token_count or 0
            counts.input = total(usage.prompt_token_count, usage.tool_use_prompt_token_count) - counts.cache_read
        counts.output = total(usage.candidates_token_count, usage.thoughts_token_count)
        # Earlier counts of a stream are partial: those with a finish reason are the last.
        is_last = size(answer.prompt_feedback) > 0 or any(b'"finishReason"' in bytes(each) for each in answer.candidates)
        counts.is_final = counts.is_final or is_last

    def error(self, status: int, message: str, code: str = "") -> Json:
        return {"error": {"code": status, "message": message, "status": _ERRORS.get(status, "INTERNAL")}}

    def key_headers(self, key: str) -> dict[str, str]:
        return {"x-goog-api-key": key}


def _one_form(value: object, where: str) -> Json:
    """Return the object with names in the form `fileData`. Raises Rejected if a name occurs in both forms."""
    if not isinstance(value, dict):
        raise Rejected(f"{where} must be an object")
    found: Json = {}
    for name, each in value.items():
        first, *others = name.split("_")
        camel = first + "".join(other[:1].upper() + other[1:] for other in others)
        if camel in found:
            raise Rejected(f"'{camel}' occurs twice")
        found[camel] = each
    return found


def _tool(value: Json) -> Json:
    tool = _one_form(value, "a tool")
    for name, each in tool.items():
        if name != "functionDeclarations" and each is not None:
            raise reject_kind(name, "tools")
    return {"functionDeclarations": tool.get("functionDeclarations") or []}


def _content(value: object, seen: Size) -> Json:
    if isinstance(value, str):  # of systemInstruction
        return {"parts": [{"text": value}]}
    content = _one_form(value, "a content")
    parts = content.get("parts")
    kept: Json = {"parts": [_part(part, seen) for part in objects(parts if isinstance(parts, list) else [parts], "parts")]}
    return {"role": content["role"], **kept} if isinstance(content.get("role"), str) else kept


def _part(value: Json, seen: Size) -> Json:
    part = _one_form(value, "a part")
    for name in part:
        if name not in _PARTS:
            raise reject_kind(name, "parts")
    if part.get("inlineData") is not None:
        part["inlineData"] = _blob(part["inlineData"], seen)
    if part.get("functionResponse") is not None:
        response = part["functionResponse"] = _one_form(part["functionResponse"], "functionResponse")
        if response.get("parts") is not None:
            response["parts"] = [_response_part(each, seen) for each in objects(response["parts"], "functionResponse.parts")]
    return part


def _response_part(value: Json, seen: Size) -> Json:
    part = _one_form(value, "a part of a functionResponse")
    for name in part:
        if name != "inlineData":
            raise reject_kind(name, "functionResponse.parts")
    return {"inlineData": _blob(part.get("inlineData"), seen)}


def _blob(value: object, seen: Size) -> Json:
    blob = _one_form(value, "inlineData")
    length = len(blob["data"]) if isinstance(blob.get("data"), str) else 0
    form = blob["mimeType"] if isinstance(blob.get("mimeType"), str) else ""
    if form.startswith("image/"):
        seen.image(length)
    else:
        seen.document(length, is_pdf=form == "application/pdf" or form.startswith(("audio/", "video/")))
    return blob


def _config(value: object, bounds: Bounds) -> Json:
    given = _one_form({} if value is None else value, "generationConfig")
    config = known_fields(given, _CONFIG)
    config["maxOutputTokens"] = bounds.output_tokens(count(config, "maxOutputTokens"))
    if "thinkingConfig" in config:
        thinking = config["thinkingConfig"] = _one_form(config["thinkingConfig"], "thinkingConfig")
        budget = thinking.get("thinkingBudget")
        if type(budget) is int and budget > config["maxOutputTokens"]:
            thinking["thinkingBudget"] = config["maxOutputTokens"]
    return config
