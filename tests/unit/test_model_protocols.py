"""What the model proxy makes of requests and answers of each API, as pure functions."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.agent_task import Usage
from gibil_bot.agents.proxy.protocols import PROTOCOLS
from gibil_bot.agents.proxy.protocols.base import Bounds, Counts, Prepared, Rejected, Tap
from tests.doubles.models import PATHS, request

BOUNDS = Bounds(max_output_tokens=10_000)


def prepare(protocol: str, path: str = "", bounds: Bounds = BOUNDS, **more: Any) -> Prepared:
    """Prepare the usual request with other fields."""
    path, _, query = (path or PATHS[protocol]).partition("?")
    endpoint = PROTOCOLS[protocol].endpoint(path)
    assert endpoint is not None
    body = request(protocol) | more
    return PROTOCOLS[protocol].prepare(endpoint, query, body, bounds)


def sent(protocol: str, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(prepare(protocol, **more).body)
    return body


def rejection(protocol: str, **more: Any) -> str:
    with pytest.raises(Rejected) as rejected:
        prepare(protocol, **more)
    return rejected.value.message


# --- paths


@pytest.mark.parametrize(
    "path",
    [
        "/v1/messages/", "//v1/messages", "/v1/messages/batches", "/v1/messages/count_tokens/x", "/v1/Messages",
        "/v1/messages%2f", "/v1/responses/resp_1", "/v1/files", "/v1/fine_tuning/jobs", "/v1/chat/completions/",
        "/v1/completions", "/v1/embeddings",
        "/v1beta/models/x:predict", "/v1beta/models/../files:generateContent", "/v1beta/models/x/y:generateContent",
        "/v1beta/models/:generateContent", "/v1beta/models/x:generateContent/", "/v1beta/models/x%3agenerateContent",
        "/v1beta/models/x:batchGenerateContent", "/v1beta/tunedModels/x:generateContent", "/v1/models/x:generateContent",
    ],
)  # fmt: skip
def test_other_paths_do_not_exist(path: str) -> None:
    assert [protocol.endpoint(path) for protocol in PROTOCOLS.values()] == [None] * 4


# --- ways out of the machine

CLIENT_TOOLS: dict[str, list[dict[str, Any]]] = {
    "anthropic": [
        {"name": "Edit", "input_schema": {}},
        {"type": "custom", "name": "Edit", "input_schema": {}},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
    ],
    "responses": [
        {"type": "function", "name": "f"},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
        {"type": "local_shell"},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "tool_search", "execution": "client"},
        {"type": "namespace", "name": "n", "tools": [{"type": "function", "name": "f"}]},
    ],
    "chat": [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "custom": {"name": "c"}}],
    "gemini": [{"functionDeclarations": [{"name": "f"}]}, {"function_declarations": [{"name": "f"}]}],
}
SERVER_TOOLS: dict[str, list[dict[str, Any]]] = {
    "anthropic": [
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "web_fetch_20250910", "name": "web_fetch"},
        {"type": "code_execution_20250825", "name": "code_execution"},
        {"type": "computer_20250124", "name": "computer"},
        {"type": "mcp_toolset", "mcp_server_name": "x"},
        {"type": "advisor_20260301", "name": "advisor"},
        {"type": "something_new_20270101", "name": "x"},
    ],
    "responses": [
        {"type": "web_search"},
        {"type": "web_search_preview"},
        {"type": "file_search", "vector_store_ids": ["vs"]},
        {"type": "code_interpreter", "container": {"type": "auto"}},
        {"type": "image_generation"},
        {"type": "mcp", "server_url": "https://x.example"},
        {"type": "computer_use_preview"},
        {"type": "shell", "environment": {"type": "container_auto"}},
        {"type": "programmatic_tool_calling"},
        {"type": "tool_search", "execution": "server"},
        {"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]},
        {"type": "tool_search", "execution": "client", "tools": [{"type": "web_search"}]},
        {"name": "no type"},
    ],
    "chat": [{"type": "web_search"}, {"type": "openrouter:web_search"}, {"function": {"name": "f"}}],
    "gemini": [
        {"googleSearch": {}},
        {"google_search": {}},
        {"google_search_retrieval": {}},
        {"urlContext": {}},
        {"url_context": {}},
        {"codeExecution": {}},
        {"fileSearch": {}},
        {"mcpServers": [{}]},
        {"functionDeclarations": [], "googleSearch": {}},
    ],
}


@pytest.mark.parametrize(("protocol", "tool"), [(name, tool) for name, tools in CLIENT_TOOLS.items() for tool in tools])
def test_tools_of_the_machine_are_allowed(protocol: str, tool: dict[str, Any]) -> None:
    assert len(sent(protocol, tools=[tool])["tools"]) == 1


@pytest.mark.parametrize(("protocol", "tool"), [(name, tool) for name, tools in SERVER_TOOLS.items() for tool in tools])
def test_tools_that_the_vendor_runs_are_rejected(protocol: str, tool: dict[str, Any]) -> None:
    assert "in 'tools' isn't allowed" in rejection(protocol, tools=[*CLIENT_TOOLS[protocol], tool])


URL = "https://x.example/?data=secret"
IMAGE = "data:image/png;base64,AAAA"


def _message(protocol: str, *parts: Any) -> dict[str, Any]:
    match protocol:
        case "anthropic":
            return {"messages": [{"role": "user", "content": list(parts)}]}
        case "responses":
            return {"input": [{"role": "user", "content": list(parts)}]}
        case "chat":
            return {"messages": [{"role": "user", "content": list(parts)}]}
        case _:
            return {"contents": [{"role": "user", "parts": list(parts)}]}


FETCHED: list[tuple[str, dict[str, Any]]] = [
    ("anthropic", {"type": "image", "source": {"type": "url", "url": URL}}),
    ("anthropic", {"type": "document", "source": {"type": "file", "file_id": "f"}}),
    ("anthropic", {"type": "image", "source": URL}),
    ("anthropic", {"type": "container_upload", "file_id": "f"}),
    ("anthropic", {"type": "mcp_tool_use", "name": "x"}),
    ("anthropic", {"type": "tool_addition", "tools": []}),
    ("anthropic", {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {"type": "url"}}]}),
    (
        "anthropic",
        {"type": "document", "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url"}}]}},
    ),
    ("anthropic", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA", "url": URL}}),
    ("anthropic", {"type": "document", "source": {"type": "text", "data": "text", "file_id": "f"}}),
    ("responses", {"type": "input_image", "image_url": URL}),
    ("responses", {"type": "input_text", "text": "text", "image_url": URL}),
    ("responses", {"type": "input_text", "text": "text", "file_data": URL}),
    ("responses", {"type": "input_image", "file_id": "f", "image_url": IMAGE}),
    ("responses", {"type": "input_file", "file_url": URL}),
    ("responses", {"type": "input_file", "file_data": URL}),
    ("chat", {"type": "image_url", "image_url": {"url": URL}}),
    ("chat", {"type": "image_url", "image_url": URL}),
    ("chat", {"type": "file", "file": {"file_id": "f"}}),
    ("chat", {"type": "file", "file": {"file_id": "f", "file_data": "data:application/pdf;base64,AAAA"}}),
    ("chat", {"type": "image_url", "image_url": {"url": IMAGE, "file_id": "f"}}),
    ("chat", {"type": "text", "text": "text", "image_url": {"url": URL}}),
    ("chat", {"type": "text", "text": "text", "file": {"file_data": URL}}),
    ("gemini", {"fileData": {"fileUri": URL}}),
    ("gemini", {"file_data": {"file_uri": URL}}),
    ("gemini", {"functionResponse": {"name": "f", "response": {}, "parts": [{"file_data": {"fileUri": URL}}]}}),
    ("gemini", {"executableCode": {"language": "PYTHON", "code": "1"}}),
]


@pytest.mark.parametrize(("protocol", "part"), FETCHED)
def test_sources_that_the_vendor_would_fetch_are_rejected(protocol: str, part: dict[str, Any]) -> None:
    assert "allowed" in rejection(protocol, **_message(protocol, part)) or part.get("file")


EMBEDDED: list[tuple[str, dict[str, Any]]] = [
    ("anthropic", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}),
    ("anthropic", {"type": "tool_use", "id": "t", "name": "Bash", "input": {"source": {"type": "url", "url": URL}}}),
    ("anthropic", {"type": "tool_result", "tool_use_id": "t", "content": "text"}),
    ("responses", {"type": "input_image", "image_url": IMAGE}),
    ("responses", {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"}),
    ("chat", {"type": "image_url", "image_url": {"url": IMAGE}}),
    ("gemini", {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}),
    ("gemini", {"functionCall": {"name": "f", "args": {"file_data": URL, "fileData": URL}}}),
    ("gemini", {"functionResponse": {"name": "f", "response": {"google_search": {}}, "parts": [{"inlineData": {}}]}}),
]


@pytest.mark.parametrize(("protocol", "part"), EMBEDDED)
def test_content_in_the_request_itself_passes_unchanged(protocol: str, part: dict[str, Any]) -> None:
    assert json.dumps(part) in json.dumps(sent(protocol, **_message(protocol, part)))


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "msg_1"},
        {"type": "mcp_approval_response", "approve": True},
        {"type": "code_interpreter_call", "id": "x"},
        {"type": "configuration_update"},
        {"id": "msg_1"},
        {"type": "additional_tools", "tools": [{"type": "web_search"}]},
        {"type": "additional_tools", "tools": [{"type": "namespace", "tools": [{"type": "mcp"}]}]},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": URL}]},
        {"type": "shell_call_output", "call_id": "c", "output": [{"type": "input_image", "image_url": URL}]},
        {"type": "shell_call_output", "call_id": "c", "output": [{"stdout": "", "image_url": URL}]},
    ],
)
def test_items_of_responses_that_refer_to_the_vendors_store_or_tools_are_rejected(item: dict[str, Any]) -> None:
    assert "allowed" in rejection("responses", input=[item])


@pytest.mark.parametrize("field", ["content", "output", "summary"])
def test_one_object_in_place_of_a_list_is_not_passed_on_unchecked(field: str) -> None:
    item = {"type": "message", "role": "user", field: {"type": "input_image", "image_url": URL}}
    assert "must be a list" in rejection("responses", input=[item])


def test_what_commands_printed_passes_unchanged() -> None:
    printed = {"stdout": f"see {URL}", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
    item = {"type": "shell_call_output", "call_id": "c", "output": [printed]}
    assert sent("responses", input=[item])["input"] == [item]


@pytest.mark.parametrize(
    ("protocol", "field", "value"),
    [
        ("anthropic", "mcp_servers", [{"type": "url", "url": URL}]),
        ("anthropic", "container", {"skills": []}),
        ("anthropic", "fallbacks", [{"model": "claude-opus-4-1"}]),
        ("responses", "previous_response_id", "resp_1"),
        ("responses", "conversation", "conv_1"),
        ("responses", "prompt", {"id": "pmpt_1"}),
        ("chat", "web_search_options", {"search_context_size": "low"}),
        ("chat", "plugins", [{"id": "web"}]),
        ("gemini", "cachedContent", "cachedContents/1"),
        ("gemini", "cached_content", "cachedContents/1"),
    ],
)
def test_fields_that_reach_beyond_the_call_are_rejected(protocol: str, field: str, value: object) -> None:
    assert "isn't allowed" in rejection(protocol, **{field: value})


# --- limits and prices


@pytest.mark.parametrize(
    ("protocol", "field", "value"),
    [
        ("anthropic", "service_tier", "auto"),
        ("anthropic", "speed", "fast"),
        ("anthropic", "inference_geo", "us"),
        ("responses", "service_tier", "priority"),
        ("responses", "background", True),
        ("responses", "prompt_cache_retention", "24h"),
        ("chat", "service_tier", "priority"),
        ("chat", "n", 8),
        ("chat", "best_of", 8),
        ("chat", "modalities", ["audio"]),
        ("chat", "store", True),
        ("chat", "models", ["gpt-9"]),
        ("chat", "prediction", {"type": "content", "content": "billed as output"}),
        ("gemini", "serviceTier", "priority"),
        ("gemini", "service_tier", "priority"),
        ("gemini", "labels", {"a": "b"}),
    ],
)
def test_fields_that_change_the_price_or_are_unknown_are_not_sent(protocol: str, field: str, value: object) -> None:
    assert field not in sent(protocol, **{field: value})


def test_responses_are_not_stored() -> None:
    assert sent("responses", store=True)["store"] is False
    assert sent("responses", include=["reasoning.encrypted_content", "web_search_call.results"])["include"] == [
        "reasoning.encrypted_content"
    ]


@pytest.mark.parametrize(
    ("protocol", "given_fields", "field", "expected"),
    [
        ("anthropic", {"max_tokens": 64_000}, "max_tokens", 10_000),
        ("anthropic", {"max_tokens": 500}, "max_tokens", 500),
        ("responses", {}, "max_output_tokens", 10_000),
        ("responses", {"max_output_tokens": 99_999}, "max_output_tokens", 10_000),
        ("responses", {"max_output_tokens": 1}, "max_output_tokens", 16),
        ("chat", {}, "max_completion_tokens", 10_000),
        ("chat", {"max_tokens": 99_999}, "max_tokens", 10_000),
        ("chat", {"max_completion_tokens": 99_999}, "max_completion_tokens", 10_000),
        ("gemini", {}, "generationConfig", {"maxOutputTokens": 10_000}),
        ("gemini", {"generation_config": {"max_output_tokens": 99_999}}, "generationConfig", {"maxOutputTokens": 10_000}),
        ("gemini", {"generationConfig": {"candidateCount": 8}}, "generationConfig", {"maxOutputTokens": 10_000}),
    ],
)
def test_the_output_is_limited_by_rewriting(protocol: str, given_fields: dict[str, Any], field: str, expected: object) -> None:
    assert sent(protocol, **given_fields)[field] == expected
    bound = prepare(protocol, **given_fields).max_output_tokens
    assert bound == (expected["maxOutputTokens"] if isinstance(expected, dict) else expected)


def test_servers_that_only_speak_the_vendors_protocol_get_the_older_name_of_the_limit() -> None:
    own = prepare("chat", bounds=Bounds(max_output_tokens=10_000, is_vendor=False))
    assert json.loads(own.body)["max_tokens"] == 10_000


@pytest.mark.parametrize(
    ("most", "expected"),
    [(10_000, {"type": "enabled", "budget_tokens": 9_999}), (1_024, None), (1_025, {"budget_tokens": 1_024})],
)
def test_the_thinking_budget_stays_below_the_limit(most: int, expected: dict[str, Any] | None) -> None:
    thinking = {"type": "enabled", "budget_tokens": 31_999}
    prepared = prepare("anthropic", bounds=Bounds(max_output_tokens=most), max_tokens=32_000, thinking=thinking)
    assert json.loads(prepared.body).get("thinking") == (None if expected is None else thinking | expected)


def test_a_chat_stream_is_asked_for_its_counts() -> None:
    assert sent("chat", stream_options={"include_usage": False})["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent("chat", stream=False, stream_options={"include_usage": True})


@pytest.mark.parametrize("protocol", ["anthropic", "responses", "chat", "gemini"])
@pytest.mark.parametrize("wrong", [None, 1, "x", [1], {"a": 1}, [[]], [{"type": 1}], [{"role": "user", "content": [1]}]])
def test_requests_of_another_form_are_rejected_and_raise_nothing_else(protocol: str, wrong: object) -> None:
    fields = ("tools", "messages", "input", "contents", "system", "systemInstruction", "generationConfig", "thinking", "stream")
    for field in fields:
        given_fields: dict[str, Any] = {field: wrong}
        with contextlib.suppress(Rejected):
            prepare(protocol, **given_fields)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "content", "parts", "x"]), inner),
    max_leaves=8,
)


@given(
    protocol=st.sampled_from(sorted(PROTOCOLS)), name=st.sampled_from(["tools", "messages", "input", "contents"]), value=_json
)
def test_any_json_is_either_prepared_or_rejected(protocol: str, name: str, value: Any) -> None:
    try:
        prepared = prepare(protocol, **{name: value})
    except Rejected:
        return
    assert prepared.input_tokens > 0


@pytest.mark.parametrize("query", ["", "alt=json", "alt=sse2", "alt=media&x=alt=sse"])
def test_gemini_streams_are_events_only(query: str) -> None:
    with pytest.raises(Rejected, match="alt=sse"):
        prepare("gemini", path=f"/v1beta/models/m:streamGenerateContent?{query}")
    assert prepare("gemini", path="/v1beta/models/m:streamGenerateContent?key=K&alt=sse&fields=x").path.endswith("?alt=sse")


def test_names_of_gemini_in_both_forms_are_rejected() -> None:
    assert "occurs twice" in rejection("gemini", generation_config={}, generationConfig={})


# --- estimates


def test_images_are_estimated_by_their_number_not_by_their_bytes() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 3_000_000}}
    assert 4_000 < prepare("anthropic", **_message("anthropic", image)).input_tokens < 5_000
    assert 33_000 < prepare("anthropic", **_message("anthropic", {"type": "text", "text": "x" * 100_000})).input_tokens < 34_000


@pytest.mark.parametrize(
    ("protocol", "part"),
    [
        ("responses", lambda data: {"type": "input_file", "file_data": f"data:text/plain;base64,{data}"}),
        ("chat", lambda data: {"type": "file", "file": {"file_data": f"data:text/csv;base64,{data}"}}),
        ("gemini", lambda data: {"inlineData": {"mimeType": "text/plain", "data": data}}),
    ],
)
def test_a_text_in_base64_is_estimated_like_a_text(protocol: str, part: Callable[[str], dict[str, Any]]) -> None:
    data = base64.b64encode(b"word " * 60_000).decode()
    assert prepare(protocol, **_message(protocol, part(data))).input_tokens >= 100_000


# --- counts


def count(protocol: str, *events: Any, streams: bool = True) -> Counts:
    tap = Tap(PROTOCOLS[protocol], streams=streams)
    for event in events:
        tap.feed(b"data: " + json.dumps(event).encode() + b"\n\n" if streams else json.dumps(event).encode())
    tap.end()
    return tap.counts


def test_anthropics_counts_are_the_last_ones_and_have_both_kinds_of_caches() -> None:
    creation = {"ephemeral_5m_input_tokens": 70, "ephemeral_1h_input_tokens": 30}
    begin = {
        "input_tokens": 10, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 5, "cache_creation": creation,
        "output_tokens": 1,
    }  # fmt: skip
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"input_tokens": 12, "output_tokens": 50}}
    found = count("anthropic", {"type": "message_start", "message": {"usage": begin}}, end)
    expected = Usage(input=12, cache_read=5, cache_write_5m=70, cache_write_1h=30, output=50)
    assert found.usage(input_tokens=999) == expected
    compaction = {"type": "compaction", "input_tokens": 1000, "output_tokens": 200}
    end["usage"] = {
        "input_tokens": 12,
        "output_tokens": 50,
        "iterations": [compaction, {"type": "message", "input_tokens": 12}],
    }
    found = count("anthropic", {"type": "message_start", "message": {"usage": begin}}, end)
    assert (found.input, found.output) == (1012, 250)


def test_openais_counts_include_cached_tokens_and_ours_do_not() -> None:
    usage = {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 20}, "output_tokens": 7}
    found = count("responses", {"type": "response.incomplete", "response": {"usage": usage}})
    assert found.usage(input_tokens=9) == Usage(input=50, cache_read=30, cache_write_5m=20, output=7)
    chat = {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": None}}
    assert count("chat", {"choices": [{"delta": {"content": "x"}}]}, chat, "[DONE]").usage(input_tokens=9) == Usage(
        input=100, output=7
    )


def test_geminis_output_has_its_thoughts_and_partial_counts_are_estimates() -> None:
    usage = {"promptTokenCount": 100, "cachedContentTokenCount": 30, "candidatesTokenCount": 5, "thoughtsTokenCount": 2}
    part = {"candidates": [{"content": {"parts": [{"text": "x" * 400}]}}], "usageMetadata": usage}
    assert count("gemini", part).usage(input_tokens=9).is_estimated
    last = {"candidates": [{"finishReason": "STOP"}], "usageMetadata": usage | {"candidatesTokenCount": 90}}
    assert count("gemini", part, last).usage(input_tokens=9) == Usage(input=70, cache_read=30, output=92)


@pytest.mark.parametrize("protocol", ["anthropic", "responses", "chat", "gemini"])
def test_an_answer_without_counts_is_estimated(protocol: str) -> None:
    found = count(protocol, {"type": "something", "usage": None}, "x", [1], {"usage": {"input_tokens": "many"}})
    assert found.usage(input_tokens=77) == Usage(input=77, output=0, is_estimated=True)


@given(cuts=st.lists(st.integers(0, 400), max_size=8))
def test_counts_do_not_depend_on_where_the_chunks_are_cut(cuts: list[int]) -> None:
    begin = {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}}
    end = {"type": "message_delta", "usage": {"output_tokens": 50}}
    stream = b"".join(
        b"event: x\r\ndata: " + json.dumps(each).encode() + b"\r\n\r\n" for each in (begin, {"type": "ping"}, end)
    )
    tap = Tap(PROTOCOLS["anthropic"], streams=True)
    points = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts)})
    for first, last in itertools.pairwise(points):
        tap.feed(stream[first:last])
    tap.end()
    assert tap.counts.usage(input_tokens=0) == Usage(input=10, output=50)
