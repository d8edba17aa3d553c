"""What people see of an agent's work: the log, Markdown in a check run, the sentence about its end, and the artifact."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.agents.lines import EventFile, LineSplitter
from gibil_bot.agents.transcript import Changed, Ended, Entry, Printed, Ran, Read, Reason, Retried, Said, Thought, Used
from gibil_bot.agents.transcript_summary import TranscriptSummary, log_lines
from gibil_bot.agents.verdict import verdict
from gibil_bot.model import TaskStatus
from gibil_bot.runs.redact import Redactor

HOSTILE = (
    "@octocat #1 GH-2 <img src=x> ![a](http://x/y) [b](http://x) https://x.example/ </details> </summary> &#64; ``` ~~~~ `x` "
    "\n# heading\n```\n</details>\n@octocat\n> quote\n| a | b |\n\u202eevil\u200b\x1b]0;title\x07\x1b[2J\r\nend"
)

TEXT = st.text(max_size=50) | st.sampled_from([HOSTILE, "`" * 40, "```\n", "\n", "a\rb", "</details>", "x" * 3000])
ENTRIES = (
    st.builds(Said, text=TEXT)
    | st.builds(Thought, text=TEXT)
    | st.builds(Read, path=TEXT)
    | st.builds(Ran, command=TEXT, exit_status=st.none() | st.integers(0, 255), output=TEXT)
    | st.builds(Changed, path=TEXT, kind=st.sampled_from(["add", "update", "delete"]), patch=TEXT)
    | st.builds(Used, tool=TEXT, detail=TEXT, is_error=st.booleans())
    | st.builds(Retried, status=st.none() | st.integers(400, 599), text=TEXT)
    | st.builds(Printed, text=TEXT)
)


def summary(*entries: Entry) -> TranscriptSummary:
    collected = TranscriptSummary("/repo")
    for entry in entries:
        collected.add(entry)
    return collected


def outside_code(markdown: str) -> str:
    """Return the Markdown without its code blocks and inline code, which the end of a line closes here."""
    outside, fence = [], ""
    for line in markdown.split("\n"):
        if fence:
            if line == fence:
                fence = ""
        elif found := re.match(r"(`{3,})text\Z", line):
            fence = found[1]
        else:
            outside.append(re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", " ", line))
    assert not fence, "a code block is left open"
    return "\n".join(outside)


@given(st.lists(ENTRIES, max_size=100), st.integers(0, 4000))
def test_text_of_a_machine_is_code_in_the_account_and_cant_imitate_the_log(entries: list[Entry], limit: int) -> None:
    shown = summary(*entries).markdown(limit)
    assert len(shown.encode()) <= limit
    outside = outside_code(shown)
    words = r"[A-Za-z0-9 ,():….']"
    assert re.fullmatch(rf"(<details><summary>{words}*</summary>\n\n(-?{words}*\n)*\n</details>)?", outside), outside
    for entry in entries:
        lines = log_lines(entry)
        assert re.fullmatch(r"((    |agent: |thought: |read: |ran: |changed: |used: |model: )[^\n]*\n)*", lines)
        assert lines.count("\n") <= 102
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202e]", lines)


def test_the_account_is_a_folded_list() -> None:
    shown = summary(
        Said(text="I run the tests."),
        Read(path="/repo/a.py"),
        Read(path="/repo/b.py"),
        Ran(command="pytest -q", exit_status=1, output="\n".join(f"line {number}" for number in range(100))),
        Changed(path="/repo/a.py"),
        Ran(command="cd /repo/x && pytest -q", exit_status=0, output="fine"),
        Used(tool="Grep", detail="foo", is_error=True),
        Retried(status=529),
    )
    assert shown.markdown(10_000) == (
        "<details><summary>What the agent did: 2 commands, 2 files read, 1 change of a file, 1 repeated call of the model"
        "</summary>\n\n"
        "- The agent:\n\n```text\nI run the tests.\n```\n\n"
        "- Read `a.py`, `b.py`\n"
        "- Ran `pytest -q`, exit status 1\n\n"
        "```text\n… 88 lines before …\n" + "".join(f"line {number}\n" for number in range(88, 100)) + "```\n\n"
        "- Changed `a.py`\n"
        "- Ran `cd x && pytest -q`\n"
        "- Used `Grep` `foo`, which failed\n"
        "- A call of the model failed (status 529) and was repeated\n\n"
        "</details>"
    )


def test_the_end_of_a_long_account_is_shown_and_the_rest_is_counted() -> None:
    shown = summary(*(Ran(command=f"step {number}") for number in range(500))).markdown(2000)
    assert "What the agent did: 500 commands" in shown
    assert "`step 0`" in shown
    assert "`step 499`" in shown
    found = re.search(r"… (\d+) further steps are in the log …", shown)
    assert found is not None
    assert int(found[1]) == 500 - shown.count("- Ran")


def test_printed_lines_are_one_block() -> None:
    shown = summary(*(Printed(text=f"line {number}") for number in range(1000))).markdown(2000)
    assert shown.count("```") == 2
    assert "… 988 lines before …\nline 988\n" in shown


def test_outputs_are_folded_in_the_log() -> None:
    lines = log_lines(Ran(command="seq\n99", exit_status=2, output="\n".join(map(str, range(1, 100))) + "\n")).split("\n")
    assert lines[:2] == ["ran: seq", "    99"]
    assert lines[2:7] == [f"    {number}" for number in range(1, 6)]
    assert lines[7] == "    … 74 lines omitted …"
    assert lines[8:] == [*(f"    {number}" for number in range(80, 100)), "    exit status 2", ""]
    assert log_lines(Said(text=HOSTILE)).split("\n")[7] == "    ‹U+202E›evil"


# --- the verdict -----------------------------------------------------------------------------------------------------

GOOD = Ended(reason="completed", is_success=True, text="Done.", turns=3)


def failed(reason: Reason, text: str = "", status: int | None = None) -> Ended:
    return Ended(reason=reason, is_success=False, text=text, status=status)


def judge(ended: Ended, **facts: object) -> tuple[TaskStatus, str]:
    return verdict(ended, **({"good_calls": 3, "changed_files": 1} | facts))  # type: ignore[arg-type]


def test_success_needs_a_good_end_a_good_call_and_what_the_task_asks_for() -> None:
    assert judge(GOOD) == (TaskStatus.SUCCESS, "The agent ended after 3 turns and changed 1 file.")
    assert judge(GOOD, writes=False, changed_files=0) == (TaskStatus.SUCCESS, "The agent ended after 3 turns.")
    assert judge(GOOD, has_model=False, good_calls=0)[0] is TaskStatus.SUCCESS
    assert judge(GOOD, refused_calls=1)[0] is TaskStatus.SUCCESS  # such as a title by another model
    assert judge(GOOD, changed_files=0)[0] is TaskStatus.FAILURE
    assert judge(GOOD, good_calls=0)[0] is TaskStatus.FAILURE
    assert judge(GOOD, limit="task: 2.00 USD, 1.98 USD spent")[0] is TaskStatus.FAILURE


@pytest.mark.parametrize(
    ("ended", "facts", "sentence"),
    [
        (
            GOOD,
            {"limit": "the task's limit of $2.00; $1.98 was spent"},
            "by a budget: the task's limit of $2.00; $1.98 was spent.",
        ),
        (GOOD, {"changed_files": 0}, "without changing a file"),
        (GOOD, {"good_calls": 0}, "reports success, but it never reached its model"),
        (GOOD, {"good_calls": 0, "refused_calls": 2}, "reports success, but the bot rejected 2 calls"),
        (GOOD, {"good_calls": 0, "vendor_status": 401}, "GIBIL_MODEL_KEY"),
        (failed("max_turns"), {"max_turns": 40}, "its limit of 40 turns before it was done. Raise `max-turns`"),
        (failed("budget", "used $2"), {}, 'its own limit of money: "used $2". Raise `budget`'),
        (failed("loop"), {}, "repeated the same call"),
        (failed("misconfigured", "denied: Bash"), {}, 'isn\'t set up correctly: "denied: Bash". An operator'),
        (failed("killed"), {}, "memory is too small"),
        (failed("killed"), {"good_calls": 0}, "before it had an answer of its model. Run it again"),
        (failed("no_end", "panic"), {}, 'without its last event, so it may have crashed: "panic"'),
        (failed("no_end"), {"good_calls": 0}, "never reached its model. The connection"),
        (failed("model_error", "Connection refused"), {"good_calls": 0}, "couldn't reach its model"),
        (failed("model_error", "stream disconnected"), {}, "connection to its model was interrupted"),
        (failed("model_error", "Quota exceeded."), {}, 'error of its model\'s API: "Quota exceeded". Run it again'),
        (failed("model_error", "x", 529), {"vendor_status": 529}, "vendor had an error (status 529)"),
        (failed("model_error", "x", 401), {}, "reports status 401 of its model's API"),  # the machine's words only
        (failed("model_error", "x", 402), {"refused_calls": 1}, "the bot rejected 1 call"),
        (failed("model_error", "x", 429), {"vendor_status": 429}, "limits the rate of calls"),
        (
            failed("model_error", "x", 400),
            {"vendor_status": 400, "problem": "openai answered 400: 'too long'"},
            "400: 'too long'). C",
        ),
        (
            failed("model_error", "cut"),
            {"problem": "the vendor sent nothing"},
            "stopped because the vendor sent nothing. Run it",
        ),
        (failed("failed", "cut"), {"problem": "the vendor sent nothing"}, "stopped because the vendor sent nothing. Run it"),
        (failed("no_end"), {"problem": "the vendor sent nothing"}, "stopped because the vendor sent nothing. Run it"),
        (failed("failed"), {"refused_calls": 1}, "failed. The log"),  # such as a title by another model, before
        (
            failed("failed"),
            {"refused_calls": 1, "rejection": "no `n` above 1"},
            "rejected 1 call of the model: no `n` above 1. C",
        ),
        (failed("killed"), {"lost": "port 5 is taken"}, 'lost its way to the model: "port 5 is taken". Run it again'),
        (GOOD, {"good_calls": 0, "problem": "the vendor sent nothing"}, "reports success, but the vendor sent nothing. Run"),
        (failed("failed", 'a "b"\nc'), {}, "failed: \"a 'b' c\". The log"),
    ],
)
def test_each_end_is_a_sentence_with_what_to_do(ended: Ended, facts: dict[str, object], sentence: str) -> None:
    status, shown = judge(ended, **facts)
    assert status is TaskStatus.FAILURE
    assert sentence in shown


def test_limits_of_time_and_a_cancellation_have_their_own_status() -> None:
    assert judge(failed("killed"), timed_out_s=1200.0) == (
        TaskStatus.TIMED_OUT,
        "The agent was stopped after 20 min 0 s, the task's time limit. Raise `timeout-minutes`, or ask for less.",
    )
    assert judge(failed("killed"), silent_s=600.0)[0] is TaskStatus.TIMED_OUT
    assert judge(GOOD, is_cancelled=True, timed_out_s=1.0)[0] is TaskStatus.CANCELLED


@given(st.text() | st.just(HOSTILE), st.sampled_from(get_args(Reason)), st.integers(0, 2), st.none() | st.integers(400, 599))
def test_a_sentence_is_one_short_line(text: str, reason: Reason, calls: int, status: int | None) -> None:
    for facts in ({}, {"limit": text}, {"vendor_status": status}, {"refused_calls": 1}):
        _, shown = judge(failed(reason, text, status), **({"good_calls": calls} | facts))
        assert "\n" not in shown
        assert len(shown) < 1200
        assert shown[0].isupper()
        assert "\x1b" not in shown


# --- lines and the artifact ------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b" ", b"d" * 9])), st.integers(1, 12))
def test_lines_are_the_same_for_all_chunks(chunks: list[bytes], limit: int) -> None:
    def split(parts: list[bytes]) -> list[bytes | int]:
        splitter = LineSplitter(limit)
        return [line for part in parts for line in splitter.feed(part)] + list(splitter.rest())

    whole = b"".join(chunks)
    expected: list[bytes | int] = [
        len(line) if len(line) > limit else line.removesuffix(b"\r")
        for line in whole.split(b"\n")
        if len(line) > limit or line.strip()
    ]
    assert split(chunks) == split([whole]) == split([bytes([byte]) for byte in whole]) == expected


def test_the_artifact_of_a_short_stream_is_the_redacted_stream() -> None:
    redactor = Redactor(["hunter22"])
    file = EventFile(redactor.feed, redactor.flush)
    data = b'{"text":"hunter22"}\n{"text":"b"}\nrest hunter22'
    stored = b"".join(file.feed(data[start : start + 5]) for start in range(0, len(data), 5)) + file.close()
    assert stored == b'{"text":"***"}\n{"text":"b"}\nrest ***\n'


@given(st.lists(st.integers(0, 400), max_size=60), st.integers(1, 300), st.binary(max_size=5))
def test_the_artifact_of_a_long_stream_has_its_beginning_and_its_end(lengths: list[int], step: int, rest: bytes) -> None:
    lines = [json.dumps({"n": number, "x": "x" * length}).encode() + b"\n" for number, length in enumerate(lengths)]
    data = b"".join(lines)
    file = EventFile(bytes, limit=2000, end=600)
    stored = b"".join(file.feed(data[start : start + step]) for start in range(0, len(data), step)) + file.close()
    assert len(stored) <= 2000
    numbers = [json.loads(line).get("n") for line in stored.splitlines()]
    if len(data) <= 2000 - 600 - 100:
        assert stored == data
    else:
        assert numbers[0] == 0
        assert numbers[-1] == len(lines) - 1
        assert numbers.count(None) <= 1
        if None in numbers:
            omitted = next(json.loads(line)["bytes"] for line in stored.splitlines() if b"gibil.omitted" in line)
            note = next(line for line in stored.splitlines(keepends=True) if b"gibil.omitted" in line)
            assert omitted == len(data) - len(stored) + len(note)


def test_an_endless_line_isnt_stored() -> None:
    file = EventFile(bytes)
    stored = file.feed(b'{"a":1}\n')
    for _ in range(9):
        stored += file.feed(b"x" * (1 << 20))
    stored += file.feed(b'y\n{"a":2}\n') + file.close()
    assert stored == b'{"a":1}\n{"a":2}\n{"type":"gibil.omitted","bytes":9437186}\n'
