"""How a machine's answers about files, jobs and processes are read: values in, values out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from gibil_bot.machines.remote_layout import enter, from_code
from gibil_bot.machines.tools import file_scripts, stats, stray_processes
from gibil_bot.machines.tools.stray_processes import Tagged
from gibil_bot.machines.tools.truncate import Excerpt, whole_characters
from gibil_bot.model import Usage


@given(st.lists(st.binary(max_size=300), max_size=30), st.integers(4, 400))
def test_an_excerpt_is_bounded_and_counts_what_it_leaves_out(blocks: list[bytes], most: int) -> None:
    excerpt = Excerpt(most)
    for block in blocks:
        excerpt.add(block)
    data = b"".join(blocks)
    head, left_out, tail = excerpt.parts()
    assert excerpt.size == len(data)
    if len(data) <= most:
        assert (head, left_out, tail) == (data.decode("utf-8", "replace"), 0, "")
    else:
        assert left_out >= len(data) - most
        assert len(head) + len(tail) <= most
        assert left_out == len(data) or data.isascii() is False or (head + tail).isascii()
    if data.isascii():
        assert data.startswith(head.encode())
        assert data.endswith(tail.encode())
        assert len(head) + left_out + len(tail) == len(data)


def test_an_excerpt_is_cut_at_line_ends_and_notes_it() -> None:
    excerpt = Excerpt(40)
    excerpt.add(b"".join(b"line %d\n" % number for number in range(100)))
    assert excerpt.text("see there") == "line 0\n[... 759 bytes left out; see there ...]\nline 97\nline 98\nline 99\n"


@given(st.text())
def test_an_incomplete_character_waits_for_its_remaining_bytes(text: str) -> None:
    data = text.encode("utf-8", "replace")
    for end in range(len(data) + 1):
        first = whole_characters(data[:end])
        assert first.decode() + data[len(first) :].decode() == data.decode()


def page(data: bytes, first: int = 1, limit: int = 2000, *, newlines: int | None = None, kind: bytes = b"text") -> object:
    count = data.count(b"\n") if newlines is None else newlines
    end = b" %02x" % data[-1] if data else b""
    return file_scripts.read_page(b"\0".join((b"%d" % count, b"%d" % len(data), kind, end, data)), "f", first, limit)


def test_a_page_of_a_file_reports_the_next_line_and_the_end() -> None:
    whole = page(b"a\nb\n")
    assert (whole.lines, whole.total, whole.next, whole.ends_with_newline) == (("a", "b"), 2, None, True)  # type: ignore[attr-defined]
    part = page(b"a\nb", limit=1)
    assert (part.lines, part.total, part.next, part.ends_with_newline) == (("a",), 2, 2, False)  # type: ignore[attr-defined]
    empty = page(b"")
    assert (empty.lines, empty.total, empty.next) == ((), 0, None)  # type: ignore[attr-defined]
    broken = page(b"\xff\n")
    assert (broken.lines, broken.is_utf8) == (("\ufffd",), False)  # type: ignore[attr-defined]
    assert page(b"", kind=b"") is None


def test_a_page_is_bounded_and_the_next_one_continues() -> None:
    wide = page(b"x" * 1000 + b"\n" + b"y" * 1000 + b"\n", newlines=5000)
    assert wide.next == 3  # type: ignore[attr-defined]
    many = page((b"z" * 1999 + b"\n") * 100)
    assert (len(many.lines), many.next) == (20, 21)  # type: ignore[attr-defined]
    one = page(b"w" * file_scripts.PAGE_BYTES, newlines=1)
    assert (one.cut, len(one.lines), one.next) == (1, 1, 2) or one.next is None  # type: ignore[attr-defined]


def test_matches_have_file_and_line_and_an_incomplete_match_is_dropped() -> None:
    found, complete = file_scripts.read_matches(
        b"./src/./a:b.py\x003:def f():  # 1:2\r\nz\x0012:" + b"q" * 999 + b"\nhalf\x007:"
    )
    assert [(match.file, match.line) for match in found] == [("src/a:b.py", 3), ("z", 12)]
    assert found[0].text == "def f():  # 1:2"
    assert len(found[1].text) < 420
    assert complete is True


@pytest.mark.parametrize(
    ("include", "names"),
    [("*.py", ["*.py"]), ("*.{ts,tsx}", ["*.ts", "*.tsx"]), ("{a,b}.{c,d}", ["a.c", "a.d", "b.c", "b.d"]), ("{x}", ["{x}"])],
)
def test_alternatives_of_an_include_become_separate_patterns(include: str, names: list[str]) -> None:
    script, given_names = file_scripts.grep(include)
    assert list(given_names.values()) == names
    assert all(f'--include="${name}"' in script for name in given_names)
    assert not any(name in script for name in names)


def tagged(pid: int, tag: str, leader: str = "") -> Tagged:
    return Tagged(pid=pid, tag=tag, leader=leader, words=f"p{pid}")


def test_an_orphan_is_a_process_whose_command_or_job_has_ended() -> None:
    processes = [
        tagged(10, "command-a", "10"),  # a running command
        tagged(11, "command-a", "10"),
        tagged(21, "command-b", "20"),  # its first process has ended
        tagged(30, "command-c", "10"),  # its pid now belongs to another command
        tagged(41, "run-aaaa"),  # a running job
        tagged(51, "run-bbbb"),  # and an ended one
        tagged(61, "provision"),  # services
        tagged(62, "provision", "60"),
        tagged(71, "run-3123456789abcdef"),  # gibil's own queries
    ]
    found = stray_processes.orphans(processes, frozenset({"run-bbbb", "provision"}))
    assert [process.pid for process in found] == [21, 30, 51]


def test_the_memory_of_a_machine_is_the_smaller_limit() -> None:
    answer = b"load 0.5 0.4 0.3 1/2 3\ncpus 2\nMemTotal: 4096000\nMemAvailable: 2048000\n%sdisk 100 40 60\n"
    free = stats.read_stats(answer % b"")
    assert (free.memory_total_mb, free.memory_available_mb, free.load) == (4000, 2000, (0.5, 0.4, 0.3))
    bound = stats.read_stats(answer % b"limit 1073741824\nused 104857600\n")
    assert (bound.memory_total_mb, bound.memory_available_mb) == (1024, 924)
    assert (free.memory_is_its_own, bound.memory_is_its_own) == (False, True)
    assert stats.read_stats(answer % b"limit max\nused 1\n").memory_total_mb == 4000


def test_the_providers_limits_override_those_that_the_machine_sees() -> None:
    answer = b"load 0.5 0.4 0.3 1/2 3\ncpus 2\nMemTotal: 4096000\nMemAvailable: 2048000\ndisk 10240000 4096000 6144000\n"
    usage = Usage(memory_limit_mb=1024, memory_used_mb=100, disk_limit_mb=5000, disk_used_mb=700)
    bound = stats.read_stats(answer, usage)
    assert (bound.memory_total_mb, bound.memory_available_mb, bound.memory_is_its_own) == (1024, 924, True)
    assert (bound.disk_total_mb, bound.disk_free_mb, bound.disk_is_its_own) == (5000, 4300, True)
    over = stats.read_stats(answer, replace(usage, memory_used_mb=1100, disk_used_mb=5100))
    assert (over.memory_available_mb, over.disk_free_mb) == (0, 0)
    in_memory = stats.read_stats(answer, replace(usage, disk_limit_mb=10000, disk_used_mb=None))
    assert (in_memory.disk_total_mb, in_memory.disk_free_mb, in_memory.disk_is_its_own) == (10000, 6000, True)
    wide = stats.read_stats(answer, replace(usage, memory_limit_mb=8192, disk_limit_mb=20000))
    assert (wide.memory_total_mb, wide.memory_available_mb, wide.memory_is_its_own) == (4000, 2000, False)
    assert (wide.disk_total_mb, wide.disk_free_mb, wide.disk_is_its_own) == (10000, 6000, False)


def test_a_folder_may_be_written_in_any_usual_form() -> None:
    assert enter(None) == "cd /root/project 2>/dev/null || cd /root; "
    assert enter("/a b") == "cd '/a b' || exit 1; "
    assert enter("~/x") == "cd /root/project 2>/dev/null || cd /root; cd /root/x || exit 1; "
    assert enter("-x;y") == "cd /root/project 2>/dev/null || cd /root; cd './-x;y' || exit 1; "
    assert [from_code(path) for path in ("~", "~ada", "/x", "-n")] == ["/root", "./~ada", "/x", "./-n"]
