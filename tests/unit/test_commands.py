"""A command is visible plain text at the start of a line; quoted, displayed and hidden text is none."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.github.commands import parse
from gibil_bot.model import Command
from tests.doubles.patience import patient


def words(body: str) -> list[str]:
    return [command.word for command in parse(body)]


def only(body: str) -> Command:
    (command,) = parse(body)
    return command


def test_a_line_that_begins_with_the_prefix_is_a_command() -> None:
    assert parse("/gibil test browser=firefox") == (Command(word="test", arguments={"browser": "firefox"}),)


def test_the_prefix_alone_is_help() -> None:
    assert parse("/gibil") == (Command(word="help"),)
    assert parse("/gibil \t ") == (Command(word="help"),)


def test_commands_ignore_case_because_phones_capitalize() -> None:
    assert words("/Gibil Test") == ["test"]


@pytest.mark.parametrize(
    "body", ["please /gibil test", "a/gibil test", "/gibiltest", "/gibil-test", "//gibil test", "", "\n\n"]
)
def test_other_lines_are_no_commands(body: str) -> None:
    assert parse(body) == ()


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_ending_separates_lines(end: str) -> None:
    assert words(end.join(["Hello", "/gibil test", "", "/gibil lint"])) == ["test", "lint"]


@pytest.mark.parametrize("separator", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\u00a0"])
def test_a_character_not_rendered_as_a_line_ending_starts_no_line(separator: str) -> None:
    assert parse(f"hello{separator}/gibil test") == ()
    assert parse(f"{separator}/gibil test") == ()


@pytest.mark.parametrize(
    "body",
    [
        "```\n/gibil test\n```",
        "```bash\n/gibil test\n```",
        "~~~\n/gibil test\n~~~",
        "`````\n```\n/gibil test\n`````",
        "```\n~~~\n/gibil test\n```",
        "   ```\n/gibil test\n   ```",
        "```\n/gibil test",
        "text\n```\n\n\n/gibil test\n\n```",
        "- ```\n  /gibil test\n  ```",
        "1. a\n   - b\n     ```\n  /gibil test\n     ```",
        "~~~ a`b\n/gibil test\n~~~",
    ],
)
def test_a_command_in_fenced_code_is_ignored(body: str) -> None:
    assert parse(body) == ()


@pytest.mark.parametrize(
    "body",
    [
        "```\ncode\n```\n/gibil test",
        "```\ncode\n``````\n/gibil test",
        "- ```\n  code\n/gibil test",
        "- ```\n  code\n  ```\n\n/gibil test",
        "``` not a fence ```\n/gibil test",
        "``\n/gibil test",
        "a ```\n\n/gibil test",
    ],
)
def test_a_command_after_code_is_a_command(body: str) -> None:
    assert words(body) == ["test"]


@pytest.mark.parametrize(
    "body", ["    /gibil test", "\t/gibil test", "  \t/gibil test", "text\n\n    /gibil test", "        /gibil test"]
)
def test_a_command_in_indented_code_is_ignored(body: str) -> None:
    assert parse(body) == ()


def test_a_line_indented_by_up_to_three_spaces_is_not_code() -> None:
    assert words("   /gibil test") == ["test"]


@pytest.mark.parametrize("body", ["`/gibil test`", "`a\n/gibil test\nb`", "``a `\n/gibil test\n``", "`a` `b\n/gibil test`"])
def test_a_command_in_inline_code_is_ignored_on_every_line(body: str) -> None:
    assert parse(body) == ()


@pytest.mark.parametrize("body", ["`a`\n/gibil test", "`a\n\n/gibil test\n`", "\\`a\n/gibil test `", "``a\n/gibil test `b"])
def test_unmatched_backticks_hide_no_command(body: str) -> None:
    assert words(body) == ["test"]


@pytest.mark.parametrize(
    "body",
    [
        "<!-- /gibil test -->",
        "<!--\n/gibil test\n-->",
        "<!--\n\n/gibil test\n\n-->",
        "text <!-- a\n/gibil test\n-->",
        "<!--\n/gibil test",
        "<pre>\n\n/gibil test\n</pre>",
        "<PRE>\n/gibil test\n</PRE>",
        "<script>\n/gibil test\n</script>",
        "- <!--\n  /gibil test",
    ],
)
def test_a_command_in_hiding_or_verbatim_html_is_ignored(body: str) -> None:
    assert parse(body) == ()


@pytest.mark.parametrize(
    "body", ["<!-- a -->\n/gibil test", "<!--\na\n-->\n/gibil test", "text <!-- a\n\n/gibil test", "<previous>\n/gibil test"]
)
def test_an_ended_html_comment_hides_no_command(body: str) -> None:
    assert words(body) == ["test"]


def test_an_html_comment_in_the_line_is_not_an_argument() -> None:
    assert parse("/gibil test <!-- a note --> a=1") == (Command(word="test", arguments={"a": "1"}),)


@pytest.mark.parametrize("body", ["> /gibil test", ">/gibil test", "  > /gibil test", "> ```\n> /gibil test"])
def test_a_command_in_a_quotation_is_ignored(body: str) -> None:
    assert parse(body) == ()


def test_a_reply_below_a_quotation_is_a_command() -> None:
    assert words("> /gibil lint\n\n/gibil test") == ["test"]


@pytest.mark.parametrize("sign", ["\u200b", "\u200d", "\u202e", "\ufeff", "\u2066", "\x00", "\x1b"])
def test_invisible_characters_start_no_command_and_are_rejected_inside_one(sign: str) -> None:
    assert parse(f"{sign}/gibil test") == ()
    assert parse(f"/gi{sign}bil test") == ()
    hidden = only(f"/gibil te{sign}st")
    assert hidden.problem is not None
    assert f"U+{ord(sign):04X}" in hidden.problem
    assert only(f"/gibil test a=x{sign}").problem is not None


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ('a="b c"', {"a": "b c"}),
        ("a='b c'", {"a": "b c"}),
        ('"a=b c"', None),
        ('a="say \\"hi\\""', {"a": 'say "hi"'}),
        ("a='it\\'s'", {"a": "it's"}),
        ("a=b\\ c", {"a": "b c"}),
        ("a=C:\\dir", {"a": "C:\\dir"}),
        ("a=1=2", {"a": "1=2"}),
        ("a=", {"a": ""}),
        ("a=“b c”", {"a": "b c"}),
        ("a=1\tb=2   c=3", {"a": "1", "b": "2", "c": "3"}),
        ('a="x"y', {"a": "xy"}),
        ("a-b_1=ü", {"a-b_1": "ü"}),
        ("a=$(id) b=`id`", {"a": "$(id)", "b": "`id`"}),
    ],
)
def test_arguments_are_parsed_with_quotes_and_escapes(line: str, arguments: dict[str, str] | None) -> None:
    command = only(f"/gibil test {line}")
    if arguments is None:
        assert command.problem is not None
    else:
        assert (command.problem, command.arguments) == (None, arguments)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("please", "write key=value"),
        ("a=1 a=2", "twice"),
        ('a="b', "not closed"),
        ("1a=b", "is not a valid argument name"),
        ("=b", "is not a valid argument name"),
        ("a=" + "x" * 5000, "longer than 4096"),
    ],
)
def test_an_unreadable_line_is_reported_with_the_reason(line: str, says: str) -> None:
    command = only(f"/gibil test {line}")
    assert command.word == "test"
    assert command.problem is not None
    assert says in command.problem
    assert "\n" not in command.problem


def test_built_in_commands_take_one_argument_without_a_key() -> None:
    assert only("/gibil approve 1a2b3c4").arguments == {"sha": "1a2b3c4"}
    assert only("/gibil retest docs").arguments == {"workflow": "docs"}
    assert only("/gibil approve 1a2b3c4 5d6e").problem is not None


def test_a_comment_has_at_most_ten_commands_and_reports_ignored_ones() -> None:
    commands = parse("\n".join(f"/gibil c{n}" for n in range(50)))
    assert [command.word for command in commands[:10]] == [f"c{n}" for n in range(10)]
    assert all(command.problem is None for command in commands[:10])
    assert len(commands) == 11
    assert "ignored" in (commands[10].problem or "")


@pytest.mark.parametrize(
    "body",
    [
        "`" * 1_000_000,
        "` `` " * 200_000,
        "".join("`" * n + " " for n in range(1, 1400)) + "\n/gibil test",
        "<!-- " * 200_000 + "\n/gibil test",
        "- " * 500_000,
        "> " * 500_000,
        "\\" * 1_000_000 + "`",
        "/gibil test " + "a" * 1_000_000,
        "/gibil test\n" * 80_000,
        " " * 1_000_000,
        "\t" * 1_000_000,
        "1. " * 330_000,
        "\n" * 1_000_000,
        ("a\n" * 2 + "`\n/gibil\n") * 90_000,
        "<pre " * 200_000,
    ],
    ids=range(15),
)
def test_a_megabyte_is_parsed_in_linear_time(body: str) -> None:
    # Quadratic work on a megabyte takes minutes. The bound is far from both, so that a busy machine doesn't exceed it.
    began = time.process_time()
    parse(body)
    assert time.process_time() - began < patient(5)


@given(st.text(alphabet=st.sampled_from("/gibil test`~<!->\n\r\t \"'=\\\u200b1.*"), max_size=200))
def test_any_text_can_be_parsed(body: str) -> None:
    for command in parse(body):
        assert command.word
        assert command.problem is None or "\n" not in command.problem


@given(st.text(max_size=100))
def test_a_fence_hides_any_content(inside: str) -> None:
    fence = "`" * (inside.count("`") + 3)
    assert parse(f"{fence}\n{inside}\n/gibil test\n{fence}") == ()
