"""The event streams of coding agents: recorded streams of the real programs, and whatever else a machine may print.

The files in samples/agents are the standard output of Claude Code 2.1.332, Codex 0.171.0, Gemini CLI 0.61.0 and opencode
1.18.33 against doubles of their models' APIs, without times, ids and counts, and with shorter outputs.
"""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.agents.dialects import DIALECTS, events, new_dialect
from gibil_bot.agents.dialects.events import OPEN_LIMIT
from gibil_bot.agents.output import LOG_LIMIT, AgentOutput
from gibil_bot.agents.transcript import (
    TEXT_LIMIT,
    Changed,
    Dialect,
    Ended,
    Entry,
    Printed,
    Ran,
    Read,
    Retried,
    Said,
    Thought,
    Used,
)
from gibil_bot.agents.transcript_summary import TranscriptSummary, log_lines
from tests.doubles.patience import patient

SAMPLES = Path(__file__).parent / "samples" / "agents"
REPO = "/home/agent/repo"
PROGRAMS = ("claude", "codex", "gemini", "opencode")
DONE = "Done: all of it."


def sample(name: str) -> list[bytes]:
    return (SAMPLES / f"{name}.jsonl").read_bytes().splitlines()


def read(dialect: Dialect, lines: Iterable[bytes]) -> list[Entry]:
    return [entry for line in lines for entry in dialect.feed(line)] + list(dialect.rest())


def read_sample(name: str, exit_status: int | None = 0, stderr: str = "") -> tuple[list[Entry], Ended]:
    dialect = new_dialect(name.partition("-")[0])
    entries = read(dialect, sample(name))
    return entries, dialect.end(exit_status, stderr)


def lines(*events: object) -> list[bytes]:
    return [json.dumps(each).encode() for each in events]


def end_of(name: str, *events: object, exit_status: int | None = 0, stderr: str = "") -> Ended:
    dialect = new_dialect(name)
    read(dialect, lines(*events))
    return dialect.end(exit_status, stderr)


# --- recorded streams ------------------------------------------------------------------------------------------------


def test_claude_reports_commands_reads_and_changes_with_their_results() -> None:
    entries, ended = read_sample("claude-tools")
    assert entries[0] == Ran(command="echo out; echo err >&2; exit 3", exit_status=3, output="out\nerr")
    assert entries[1] == Used(
        tool="Read",
        detail=f"{REPO}/missing.txt: File does not exist. Note: your current working directory is {REPO}.",
        is_error=True,
    )
    assert entries[2] == Read(path=f"{REPO}/README.md")
    assert entries[3] == Changed(path=f"{REPO}/README.md", kind="update", patch="@@ -1 +1 @@\n-# Scratch\n+# New")
    assert isinstance(entries[4], Used)
    assert entries[4].is_error
    assert entries[5] == Ran(command="true", exit_status=0)
    assert entries[-1] == Said(text=DONE)
    assert ended == Ended(reason="completed", is_success=True, text=DONE, turns=10, reported_usd=0.03585)


def test_claude_reports_a_written_file_as_new_by_its_result() -> None:
    entries, _ = read_sample("claude-edit")
    assert entries == [
        Read(path=f"{REPO}/README.md"),
        Changed(path=f"{REPO}/NEW.md", kind="add", patch="+written by the agent\n"),
        Said(text="Done: NOTES.md has a new line."),
    ]


def test_codex_reports_each_command_once() -> None:
    entries, ended = read_sample("codex-tools")
    assert entries[0] == Ran(command="echo out; echo err >&2; exit 3", exit_status=3, output="err\nout\n")
    assert [type(entry) for entry in entries] == [Ran, Ran, Ran, Changed, Ran, Ran, Ran, Ran, Said]
    assert entries[3] == Changed(path=f"{REPO}/README.md", kind="update")
    assert ended == Ended(reason="completed", is_success=True, text=DONE)


def test_gemini_reports_no_exit_status_of_commands() -> None:
    entries, ended = read_sample("gemini-tools")
    assert entries[0] == Ran(command="echo out; echo err >&2; exit 3", exit_status=None, output="out\nerr")
    assert entries[1] == Used(tool="read_file", detail=f"{REPO}/missing.txt: File not found.", is_error=True)
    assert entries[3] == Changed(path=f"{REPO}/README.md", kind="update", patch="-# Scratch\n+# New\n")
    assert entries[5:7] == [Used(tool="glob", detail="*.md"), Used(tool="grep_search", detail="Scratch")]
    assert ended == Ended(reason="completed", is_success=True, text=DONE)


def test_opencode_reports_patches_and_ends_with_its_last_step() -> None:
    entries, ended = read_sample("opencode-tools")
    assert entries[0] == Ran(command="echo out; echo err >&2; exit 3", exit_status=3, output="out\nerr\n")
    assert entries[3] == Changed(path=f"{REPO}/README.md", patch="@@ -1,1 +1,1 @@\n-# Scratch\n+# New\n")
    assert (ended.reason, ended.text, ended.turns) == ("completed", DONE, 10)


@pytest.mark.parametrize(
    ("name", "exit_status", "reason", "status"),
    [
        ("claude-402", 1, "model_error", 402),  # its subtype is `success`
        ("claude-turns", 1, "max_turns", None),
        ("codex-402", 1, "model_error", 402),
        ("gemini-402", 146, "model_error", 402),
        ("gemini-drop", 1, "model_error", None),
        ("gemini-loop", 0, "loop", None),  # its status is `success`
        ("gemini-turns", 53, "max_turns", None),
        ("opencode-402", 1, "model_error", 402),
    ],
)
def test_a_failed_program_ends_with_its_reason(name: str, exit_status: int, reason: str, status: int | None) -> None:
    _, ended = read_sample(name, exit_status)
    assert (ended.reason, ended.status, ended.is_success) == (reason, status, False)
    if status:
        assert "the budget of this task is used up (2.00 USD)" in ended.text


def test_denied_permissions_are_no_success_even_if_everything_else_is() -> None:
    _, ended = read_sample("claude-denied")
    assert (ended.reason, ended.is_success, ended.text) == ("misconfigured", False, "denied: Bash")


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_error_before_the_first_event_is_a_wrong_configuration(program: str) -> None:
    ended = end_of(program, exit_status=1, stderr="Error finding codex home\n")
    assert (ended.reason, ended.text) == ("misconfigured", "Error finding codex home")
    assert end_of(program, {"type": "init"}, exit_status=1).reason == "no_end"
    assert end_of(program, exit_status=0).reason == "no_end"


@pytest.mark.parametrize("name", ["claude-429", "codex-drop", "codex-402"])
def test_repeated_calls_of_the_model_are_reported(name: str) -> None:
    entries, _ = read_sample(name)
    statuses = [entry.status for entry in entries if isinstance(entry, Retried)]
    assert statuses == {"claude-429": [429, 429], "codex-drop": [None], "codex-402": [402] * 4}[name]


@pytest.mark.parametrize("name", [path.stem for path in sorted(SAMPLES.glob("*.jsonl"))])
def test_a_stream_is_read_alike_in_chunks_that_end_anywhere(name: str) -> None:
    data = (SAMPLES / f"{name}.jsonl").read_bytes()
    logs = []
    for step in (1, 7, 1000, len(data)):
        output = AgentOutput(new_dialect(name.partition("-")[0]), folder=REPO)
        shown = "".join(output.feed(data[start : start + step]) for start in range(0, len(data), step))
        logs.append((shown + output.end(0), output.ended, output.summary.markdown(5000)))
    assert logs[1:] == logs[:1] * 3
    assert output.has_ended


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_ends_early_has_no_success(program: str) -> None:
    whole = sample(f"{program}-tools")
    for length in range(len(whole)):
        dialect = new_dialect(program)
        entries = read(dialect, whole[:length])
        assert not dialect.has_ended
        assert not dialect.end(0).is_success
        assert dialect.end(0).reason == "no_end"
        assert dialect.end(None).reason == "killed"
        assert not list(dialect.rest()), "the rest is returned once"
        assert all(isinstance(entry, Ran | Used) for entry in entries[-1:] if length < 4)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_that_is_killed_after_its_last_event_has_ended_well(program: str) -> None:
    assert read_sample(f"{program}-tools", None)[1].is_success


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_exit_status_after_a_good_end_is_a_failure_with_the_words_of_standard_error(program: str) -> None:
    _, ended = read_sample(f"{program}-tools", 1, "warning\n\nout of memory\n")
    assert (ended.reason, ended.is_success, ended.text) == ("failed", False, "warning\nout of memory")


# --- single events ---------------------------------------------------------------------------------------------------


def test_an_answer_of_several_blocks_is_several_entries() -> None:
    message = {"id": "msg_1", "model": "m"}
    entries = read(
        new_dialect("claude"),
        lines(
            {"type": "assistant", "message": message | {"content": [{"type": "thinking", "thinking": "hm"}]}},
            {"type": "assistant", "message": message | {"content": [{"type": "text", "text": "I look."}]}},
            {"type": "assistant", "message": message | {"content": [tool_use("1", "Bash", command="ls")]}},
            {"type": "assistant", "message": message | {"content": [tool_use("1", "Bash", command="ls")]}},
            {"type": "user", "message": {"content": [tool_result("1", "a\n")]}},
            {"type": "user", "message": {"content": [tool_result("1", "a\n")]}},
        ),
    )
    assert entries == [Thought(text="hm"), Said(text="I look."), Ran(command="ls", exit_status=0, output="a\n")]


def tool_use(identifier: str, name: str, **arguments: object) -> dict[str, object]:
    return {"type": "tool_use", "id": identifier, "name": name, "input": arguments}


def tool_result(identifier: str, content: object, is_error: bool = False) -> dict[str, object]:
    return {"type": "tool_result", "tool_use_id": identifier, "content": content, "is_error": is_error}


def test_results_of_parallel_calls_go_to_their_calls() -> None:
    calls = [tool_use("1", "Bash", command="a"), tool_use("2", "Read", file_path="b"), tool_use("3", "Bash", command="c")]
    results = [tool_result("2", "text"), tool_result("1", [{"type": "text", "text": "Exit code 2\nbad"}], is_error=True)]
    entries = read(
        new_dialect("claude"),
        lines({"type": "assistant", "message": {"content": calls}}, {"type": "user", "message": {"content": results}}),
    )
    assert entries == [Read(path="b"), Ran(command="a", exit_status=2, output="bad"), Ran(command="c")]


def test_a_command_that_claude_rejected_was_not_run() -> None:
    rejected = tool_result("1", "<tool_use_error>Blocked: sleep 600</tool_use_error>", is_error=True)
    entries = read(
        new_dialect("claude"),
        lines(
            {"type": "assistant", "message": {"content": [tool_use("1", "Bash", command="sleep 600")]}},
            {"type": "user", "message": {"content": [rejected]}},
        ),
    )
    assert entries == [Used(tool="Bash", detail="sleep 600: Blocked: sleep 600", is_error=True)]


RESULT = {"type": "result", "subtype": "success", "is_error": False, "result": "fine", "permission_denials": []}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "completed"),
        ({"is_error": True}, "failed"),
        ({"subtype": "error_during_execution"}, "failed"),
        ({"subtype": "error_max_budget_usd", "is_error": True}, "budget"),
        ({"permission_denials": [{"tool_name": "Bash"}]}, "misconfigured"),
        ({"is_error": "no"}, "no_end"),
        ({"is_error": None}, "no_end"),
        ({"permission_denials": "none"}, "no_end"),
        ({"num_turns": [], "total_cost_usd": {}, "errors": 1, "result": 5}, "completed"),
    ],
)
def test_the_flags_of_claudes_last_event_decide(changes: dict[str, object], reason: str) -> None:
    assert end_of("claude", RESULT | changes).reason == reason


def test_an_end_without_its_error_flag_is_no_end() -> None:
    assert end_of("claude", {key: value for key, value in RESULT.items() if key != "is_error"}).reason == "no_end"


def test_qwen_at_its_turn_limit_prints_no_last_event() -> None:
    assert end_of("claude", exit_status=53).reason == "max_turns"


def test_commands_that_codexs_own_sandbox_rejected_are_no_success() -> None:
    item = {"id": "1", "type": "command_execution", "command": "ls", "exit_code": 1, "status": "failed"}
    denied = item | {"aggregated_output": "bwrap: execvp codex-linux-sandbox: Permission denied\n"}
    completed = {"type": "turn.completed"}
    ended = end_of("codex", {"type": "item.completed", "item": denied}, completed)
    assert (ended.reason, ended.text) == ("misconfigured", "bwrap: execvp codex-linux-sandbox: Permission denied")
    fine = {"type": "item.completed", "item": item | {"id": "2"}}
    assert end_of("codex", {"type": "item.completed", "item": denied}, fine, completed).reason == "completed"


def test_an_error_of_codex_alone_isnt_the_end() -> None:
    ended = end_of("codex", {"type": "error", "message": "unexpected"}, {"type": "turn.completed"})
    assert ended.is_success
    assert end_of("codex", {"type": "error", "message": "no config"}, exit_status=1).text == "no config"


def test_pieces_of_a_text_are_joined_until_another_event() -> None:
    say = {"type": "message", "role": "assistant", "delta": True}
    dialect = new_dialect("gemini")
    pieces = [say | {"content": piece} for piece in ("I ", "look", ".")]
    call = {"type": "tool_use", "tool_name": "read_file", "tool_id": "1", "parameters": {"file_path": "a"}}
    entries = [e for line in lines(*pieces, call, say | {"content": "Do"}) for e in dialect.feed(line)]
    assert entries == [Said(text="I look.")]
    assert list(dialect.rest()) == [Said(text="Do"), Used(tool="read_file", detail="a")]


def test_a_text_of_endless_pieces_is_cut() -> None:
    piece = lines({"type": "message", "role": "assistant", "delta": True, "content": "x" * 1000})
    assert read(new_dialect("gemini"), piece * 100) == [Said(text="x" * TEXT_LIMIT)]


def test_a_rejected_permission_of_opencode_is_misconfigured() -> None:
    state = {"status": "error", "input": {"command": "ls"}, "error": "The user rejected permission to use this tool call."}
    ended = end_of(
        "opencode",
        {"type": "tool_use", "part": {"tool": "bash", "callID": "1", "state": state}},
        {"type": "step_finish", "part": {"reason": "stop"}},
    )
    assert (ended.reason, ended.text) == ("misconfigured", "denied: bash")


def test_a_step_after_an_error_of_opencode_goes_on() -> None:
    error = {"type": "error", "error": {"name": "APIError", "data": {"message": "busy", "statusCode": 529}}}
    stop = {"type": "step_finish", "part": {"reason": "stop"}}
    assert end_of("opencode", error, {"type": "step_start"}, stop).is_success
    assert end_of("opencode", {"type": "step_start"}, stop, error, exit_status=1).status == 529
    assert end_of("opencode", {"type": "step_finish", "part": {"reason": "length"}}).reason == "failed"


@pytest.mark.parametrize("program", DIALECTS)
@pytest.mark.parametrize(("exit_status", "reason"), [(127, "misconfigured"), (137, "killed"), (None, "killed")])
def test_a_program_that_doesnt_start_or_is_killed_says_why(program: str, exit_status: int | None, reason: str) -> None:
    ended = end_of(program, exit_status=exit_status, stderr="sh: 1: claude: not found\n")
    assert (ended.reason, ended.is_success, ended.text) == (reason, False, "sh: 1: claude: not found")


def test_text_is_judged_by_its_exit_status() -> None:
    dialect = new_dialect("text")
    assert read(dialect, [b"one", b"\xfftwo"]) == [Printed(text="one"), Printed(text="\ufffdtwo")]
    assert dialect.end(0) == Ended(reason="completed", is_success=True, text="one\n\ufffdtwo")
    assert dialect.end(3) == Ended(reason="failed", is_success=False, text="one\n\ufffdtwo")


# --- hostile output --------------------------------------------------------------------------------------------------


def test_half_a_surrogate_pair_and_invalid_utf8_cost_one_character() -> None:
    command = b'{"type":"item.completed","item":{"id":"1","type":"command_execution","command":"ls","aggregated_output":"%s"}}'
    for given_text, expected in [
        (rb"a\ud83d", "a\ufffd"),
        (rb"\ude00b", "\ufffdb"),
        (rb"\ud83d\ude00 \ud83d!", "\U0001f600 \ufffd!"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (b"a\xffb", "a\ufffdb"),
    ]:
        assert read(new_dialect("codex"), [command % given_text]) == [Ran(command="ls", output=expected)]


@pytest.mark.parametrize(
    "part",
    [
        rb"\ud800" * 9000 + b"a" * 2_000_000,
        (b"\\\\" * 200 + rb"\ud8") * 9000,
        b"\\\\" * 1_900_000 + rb"\ud800",
    ],
    ids=["text", "no half", "backslashes"],
)
def test_halves_of_surrogate_pairs_are_replaced_in_linear_time(part: bytes) -> None:
    line = b'{"type":"assistant","message":{"content":"%s"}}' % part
    started = time.process_time()
    events.event(msgspec.json.Decoder(dict[str, msgspec.Raw]), line)
    assert time.process_time() - started < patient(0.1)


NASTY = [
    b"",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"{}",
    b"\x00",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"type":"assistant","message":' + b"[" * 100_000,
    b'{"type":"assistant","message":' + b'{"content":' * 50_000 + b"1" + b"}" * 50_001,
    b'{"type":' * 49_000 + b"1" + b"}" * 49_000,
    b'{"type":"result","is_error":false,"subtype":"success","num_turns":' + b"9" * 10_000 + b',"total_cost_usd":1e999}',
    b'{"type":"item.completed","item":{"id":"1","type":"command_execution","exit_code":' + b"9" * 5000 + b"}}",
    b'{"type":"tool_use","part":{"tool":["bash"],"callID":7,"state":[]}}',
    b'{"type":"step_finish","part":{"cost":-1e308,"reason":{}}}',
    b'{"type":"error","error":"text","message":{"a":1}}',
    b'{"type":"message","role":"assistant","delta":"yes","content":{"a":["b"]}}',
    b'{"type":"result","status":["success"]}',
    b'{"type":"user","message":{"content":[{"type":"tool_result","tool_use_id":null}]},"tool_use_result":[[[]]]}',
    b'{"type":"turn.failed"}',
]


@pytest.mark.parametrize("program", DIALECTS)
def test_unexpected_events_neither_raise_nor_succeed(program: str) -> None:
    for nasty in NASTY:
        dialect = new_dialect(program)
        entries = read(dialect, [nasty])
        assert len(entries) <= 1
        assert all(len(msgspec.json.encode(entry)) < 10_000 for entry in entries if program != "text")
        if not nasty.startswith(b'{"type":"result","is_error":false') and program != "text":
            assert not dialect.end(0).is_success


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def replaced(value: object, path: list[int], other: object) -> object:
    """Return a JSON value with one part of it replaced."""
    if not path or not isinstance(value, dict | list) or not value:
        return other
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    copy = value.copy()
    copy[key] = replaced(value[key], path[1:], other)
    return copy


@given(
    name=st.sampled_from([path.stem for path in sorted(SAMPLES.glob("*.jsonl"))]),
    changes=st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(0, 9), max_size=6), JSON), max_size=5),
    cuts=st.lists(st.tuples(st.integers(0, 20_000), st.binary(max_size=3)), max_size=3),
    program=st.sampled_from([*DIALECTS]),
    exit_status=st.none() | st.integers(-20, 300),
)
def test_changed_streams_never_raise_and_never_imitate_the_log(
    name: str,
    changes: list[tuple[int, list[int], object]],
    cuts: list[tuple[int, bytes]],
    program: str,
    exit_status: int | None,
) -> None:
    events = [json.loads(line) for line in sample(name)]
    for index, path, other in changes:
        events[index % len(events)] = replaced(events[index % len(events)], path, other)
    data = b"\n".join(lines(*events))
    for at, garbage in cuts:
        data = data[: at % (len(data) + 1)] + garbage + data[at % (len(data) + 1) :]
    for each in (program, name.partition("-")[0]):
        output = AgentOutput(new_dialect(each), folder=REPO)
        shown = output.feed(data) + output.end(exit_status, "\x1b[31mred\x00\ud800")
        assert output.ended is not None
        if exit_status not in (0, None):
            assert not output.ended.is_success
        words = ("    ", "agent: ", "thought: ", "read: ", "ran: ", "changed: ", "used: ", "model: ")
        assert all(line.startswith(words) for line in shown.splitlines() if line)
        assert "\x1b" not in shown
        assert len(output.summary.markdown(3000).encode()) <= 3000


@given(st.binary(max_size=300), st.sampled_from([*DIALECTS]))
def test_random_bytes_never_raise(data: bytes, program: str) -> None:
    output = AgentOutput(new_dialect(program))
    output.feed(data)
    output.end(0)
    assert output.ended is not None


def test_many_small_events_need_bounded_memory() -> None:
    """Calls without results, texts without end, ids that are never repeated."""
    claude = '{"type":"tool_use","id":"%d","name":"Bash","input":{"command":"x"}}'
    state = '{"status":"completed","input":{"path":"x"}}'
    streams = {
        "claude": f'{{"type":"assistant","message":{{"content":[{claude}]}}}}',
        "codex": '{"type":"item.started","item":{"id":"%d","type":"command_execution","command":"x"}}',
        "gemini": '{"type":"message","role":"assistant","delta":true,"content":"%d"}',
        "opencode": f'{{"type":"tool_use","part":{{"tool":"read","callID":"%d","state":{state}}}}}',
        "text": "%d",
    }
    outputs = {program: AgentOutput(new_dialect(program)) for program in streams}
    tracemalloc.start()
    try:
        for start in range(0, 4000, 1000):
            for program, event in streams.items():
                outputs[program].feed("".join(event % number + "\n" for number in range(start, start + 1000)).encode())
            if start == 1000:
                before, _ = tracemalloc.get_traced_memory()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 500_000
    assert len(outputs["claude"].end(None).splitlines()) == OPEN_LIMIT


def test_a_line_of_many_small_values_needs_bounded_memory() -> None:
    size = 4_000_000
    hostile = [
        b'{"type":"assistant","message":{"content":[' + b"{}," * (size // 3) + b"{}]}}",
        b'{"type":"assistant","message":{"content":[' + b'{"type":""},' * 49_000 + b"{}]}}",
        b'{"type":"user","message":{"content":[{"type":"tool_result","content":[' + b'"a",' * (size // 4) + b'"a"]}]}}',
        b'{"type":"assistant","message":{"content":[{"type":"tool_use","id":"1","name":"Bash","input":{"command":['
        + b'"ab",' * (size // 5)
        + b'"a"]}}]}}',
        b'{"type":"result","subtype":"x","is_error":true,"errors":[' + b'"ab",' * (size // 5) + b'"a"]}',
    ]
    for line in hostile:
        dialect = new_dialect("claude")
        tracemalloc.start()
        try:
            entries = read(dialect, [line])
            dialect.end(0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 80_000_000
        assert sum(len(msgspec.json.encode(entry)) for entry in entries) < 4 * TEXT_LIMIT


def test_the_log_of_a_program_that_prints_forever_is_limited() -> None:
    output = AgentOutput(new_dialect("text"))
    chunk = (b"x" * 200 + b"\n") * 2000
    shown = "".join(output.feed(chunk) for _ in range(2 * LOG_LIMIT // len(chunk)))
    assert LOG_LIMIT <= len(shown) < LOG_LIMIT + 1000
    assert shown.endswith("further entries aren't shown: the program printed too many]\n")


@pytest.mark.parametrize("line", [b"2\n", b"x" * 1000])
def test_a_program_that_prints_too_much_is_judged_by_its_last_lines(line: bytes) -> None:
    output = AgentOutput(new_dialect("claude"))
    chunk = line * (1_000_000 // len(line))
    while not output.is_full:
        output.feed(chunk)
    output.skip(5_000_000_000)
    assert not output.has_ended
    output.feed(b'{"type":"result","subtype":"success","is_error":false,"result":"Done."}\n')
    output.end(0)
    assert output.ended is not None
    assert output.ended.is_success


# --- redaction -------------------------------------------------------------------------------------------------------


def test_a_secret_that_two_events_share_is_masked() -> None:
    pieces = [{"type": "message", "role": "assistant", "delta": True, "content": piece} for piece in ("key: s3c", "r3t!")]
    output = AgentOutput(new_dialect("gemini"), redact=lambda text: text.replace("s3cr3t", "***"))
    shown = output.feed(b"\n".join(lines(*pieces, {"type": "result", "status": "success"}))) + output.end(0)
    assert shown == "agent: key: ***!\n"
    assert output.ended is not None
    assert output.ended.text == output.summary.last_words == "key: ***!"


def test_every_entry_has_lines_in_the_log_and_a_part_in_the_summary() -> None:
    entries: list[Entry] = [
        Said(text="a"),
        Thought(text="b"),
        Read(path="c"),
        Ran(command="d", exit_status=1, output="e"),
        Changed(path="f", kind="delete", patch="-g"),
        Used(tool="h", detail="i"),
        Retried(status=429, text="j"),
        Printed(text="k"),
    ]
    summary = TranscriptSummary()
    for entry in entries:
        summary.add(entry)
        assert log_lines(entry).endswith("\n")
    shown = summary.markdown(5000)
    assert all(f"`{name}`" in shown or f"\n{name}\n" in shown for name in "acdefhik")
