"""The demonstration's output is readable on every terminal, with and without colours, and never moves the cursor."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gibil_bot.demo import project
from gibil_bot.demo.story import RunStory, Tail
from gibil_bot.demo.terminal import Terminal, harmless, readable
from gibil_bot.humanize import precise_duration


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


class Old(io.TextIOWrapper):
    """A stream that encodes ASCII only."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="ascii")


def test_colours_need_a_terminal_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Terminal(Screen()).style("word", "green") == "\x1b[32mword\x1b[0m"
    assert Terminal(io.StringIO()).style("word", "green") == "word"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Terminal(Screen()).style("word", "green") == "word"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert Terminal(Screen()).style("word", "green") == "word"


def test_a_stream_without_unicode_gets_ascii_signs() -> None:
    old = Old()
    Terminal(old).print_line("✓ “done” → 𒁹 …")
    buffer = old.buffer
    assert isinstance(buffer, io.BytesIO)
    assert buffer.getvalue() == b'+ "done" > ? .\n'


def test_output_cannot_move_the_cursor() -> None:
    assert harmless("a\x1b[2J\x07b\tc\u202ed\r") == "a[2Jb   cd"


def test_markdown_is_converted_to_readable_text() -> None:
    text = (
        "<!-- marker -->\n### ✅ **test**\n\n\n| task | took |\n|---|---:|\n| `a \\| b` | 1 s |\n| long one | 2 s |\n\n"
        "<details><summary>more</summary>\n\n````\n```\n**not bold**\n````\n\n</details>\n"
        "[link](https://example.com) &lt;tag&gt;\n"
    )
    assert readable(text) == [
        "✅ test",
        "",
        "task       took",
        "a | b      1 s",
        "long one   2 s",
        "",
        "more",
        "",
        "    ```",
        "    **not bold**",
        "",
        "link <tag>",
    ]


def test_durations_are_short() -> None:
    assert [precise_duration(seconds) for seconds in (0.0004, 0.12, 1.0, 75.5)] == ["0 ms", "120 ms", "1.00 s", "75.50 s"]


def test_a_growing_file_is_read_in_whole_lines(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "log")
    assert tail.lines() == []
    with tail.path.open("ab", buffering=0) as file:
        file.write(b"one\ntw")
        assert tail.lines() == ["one"]
        file.write("o ünd".encode()[:-2])
        assert tail.lines() == []
        file.write(b"\nlast")
    assert tail.lines() == ["two ü"]
    assert tail.lines(last=True) == ["last"]
    assert tail.lines(last=True) == []


def test_progress_is_printed_once_and_starts_again_for_a_second_machine(tmp_path: Path) -> None:
    story = RunStory(tmp_path)
    journal = tmp_path / "events.jsonl"
    journal.write_text(
        '{"at": "2026-01-01T00:00:00+00:00", "phase": "forging", "machine": "gibil-abc-1"}\n'
        '{"at": "2026-01-01T00:00:01+00:00", "phase": "task_started", "index": 0, "name": "build"}\n'
    )
    (tmp_path / "0.log").write_text("compiling\nlin")
    assert [step.phase for step in story.steps()] == ["forging", "task_started"]
    assert story.output() == ["compiling"]
    with journal.open("a") as file:
        file.write(
            '{"at": "2026-01-01T00:00:02+00:00", "phase": "task_finished", "index": 0, "status": "failure", "seconds": 1.5}\n'
        )
    (finished,) = story.steps()
    assert (finished.status, finished.seconds, finished.output) == ("failure", 1.5, ("lin",))
    assert (story.steps(), story.output()) == ([], [])
    (tmp_path / "machine-2").mkdir()
    (tmp_path / "machine-2" / "0.log").write_text("again\n")
    with journal.open("a") as file:
        file.write('{"at": "2026-01-01T00:00:03+00:00", "phase": "forging", "machine": "gibil-abc-2"}\n')
        file.write('{"at": "2026-01-01T00:00:04+00:00", "phase": "task_started", "index": 0, "name": "build"}\n')
    story.steps()
    assert story.output() == ["again"]


def test_progress_uses_the_doubles_clock(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"at": "2026-01-01T00:00:00+00:00", "phase": "forging"}\n')
    story = RunStory(tmp_path, ahead=timedelta(seconds=2))
    assert [step.at for step in story.steps()] == [datetime(2026, 1, 1, 0, 0, 2, tzinfo=UTC)]


def test_the_failing_change_differs_in_one_line() -> None:
    good, bad = project.changed_files(failing=False), project.changed_files(failing=True)
    differing = [path for path in good if good[path] != bad[path]]
    assert differing == ["sexagesimal/reciprocals.py"]
    pairs = zip(good[differing[0]].splitlines(), bad[differing[0]].splitlines(), strict=True)
    assert len([1 for left, right in pairs if left != right]) == 1
    assert ".gibil.yml" in project.base_files()
