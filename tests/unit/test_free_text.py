"""The text after a command: which lines belong to it, what is left out, and how it becomes an input."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.errors import InvalidWorkflow, UsageError
from gibil_bot.github.commands import around_commands, parse
from gibil_bot.model import Command, Plan
from gibil_bot.planning.plan import catalogue, for_command, free_text_words
from gibil_bot.planning.schema import parse_workflow
from gibil_bot.runs.context import help_text
from tests.doubles.facts import facts
from tests.doubles.patience import patient

DO = (
    "on: {command: do}\ninputs:\n  engine: {type: choice, options: [claude, codex], default: claude}\n  tries: {type: number}\n"
)
DO += "  what: {type: text, required: true, description: what to change}\n"
DO += "tasks: [{agent: '${{ inputs.what }}'}]\n"
FIX = "on: {command: fix}\ninputs: {what: {type: text}}\ntasks: [{agent: 'Fix it. ${{ inputs.what }}'}]\n"
TEST = "on: {command: test}\ntasks: [{run: x}]"
KNOWN = catalogue({f"{n}.yml": text.encode() for n, text in (("do", DO), ("fix", FIX), ("test", TEST))}, {}, base_ref="main")


def text(body: str) -> str:
    (command,) = parse(body, {"do"})
    assert (command.word, command.arguments, command.problem) == ("do", {}, None)
    return command.text


def planned(body: str) -> Plan:
    (command,) = parse(body, free_text_words(KNOWN))
    (plan,) = for_command(KNOWN, command, facts())
    return plan


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("/gibil do rename a to b", "rename a to b"),
        ("/gibil   DO \t rename  a ", "rename  a"),
        ("Hello.\n\n/gibil do rename a\nand b,\n\nthen c.\n", "rename a\nand b,\n\nthen c."),
        ("/gibil do\n\nrename a", "rename a"),
        ("/gibil do", ""),
        ("/gibil do it's 5\" \"wide", "it's 5\" \"wide"),
        (
            "/gibil do use `a = \"b` and\r\n```py\r\nx = '<!-- y -->'\r\n> z\r\n```\r\ndone",
         "use `a = \"b` and\n```py\nx = '<!-- y -->'\n> z\n```\ndone"),
        ("/gibil do a\n~~~\n/gibil test\n~~~\nb", "a\n~~~\n/gibil test\n~~~\nb"),
        ("/gibil do a\n> ignore the above\n\nb", "a\n\nb"),
        ("/gibil do yes\n\nOn Monday, Eve wrote:\n> /gibil do push to main\n> now", "yes\n\nOn Monday, Eve wrote:"),
        ("/gibil do a <!-- hidden --> b\nc <!-- also\nhidden --> d `<!-- shown -->`", "a  b\nc  d `<!-- shown -->`"),
        ("/gibil do a\n<!--\n\nhidden\n\n--> b\n<!-- c --> d", "a\nb\nd"),
        ("/gibil do a\n<!-- never closed\nb", "a"),
        ("/gibil do Überprüfe 日本語 \U0001f469\u200d\U0001f4bb", "Überprüfe 日本語 \U0001f469\u200d\U0001f4bb"),
        ("/gibil do a\u200bb\u202ec\ufeff \U000e0041\U000e0101d\x07", "abc d"),
        ("/gibil do a\u200d\u200cb", "ab"),
        ("/gibil do " + "x" * 5000, "x" * 5000),
    ],
)  # fmt: skip
def test_the_text_of_a_command(body: str, expected: str) -> None:
    assert text(body) == expected


def test_the_text_ends_at_the_next_command_and_other_commands_have_none() -> None:
    asked = parse("/gibil do one\ntwo\n/gibil test a=b\nnot read\n/gibil do three", {"do"})
    assert asked == (
        Command(word="do", text="one\ntwo"),
        Command(word="test", arguments={"a": "b"}),
        Command(word="do", text="three"),
    )


def test_at_most_ten_commands_have_a_text() -> None:
    asked = parse("/gibil do x\n" * 30, {"do"})
    assert [command.text for command in asked] == ["x"] * 10 + [""]
    assert asked[-1].problem is not None


@pytest.mark.parametrize(
    ("body", "words", "quotes"),
    [
        ("/gibil do a\nb", "", ""),
        ("It breaks on tabs.\n\n/gibil do a", "It breaks on tabs.", ""),
        ("/gibil test\n\nThe cause\nis in a.py.", "The cause\nis in a.py.", ""),
        ("One.\n/gibil test a=b\nTwo.\n/gibil do three\nfour", "One.\nTwo.", ""),
        ("> eve wrote\n>> mallory wrote\n\nYes.\n\n/gibil do a\n > also", "Yes.", "> eve wrote\n>> mallory wrote\n > also"),
        ("> `/gibil test`\n\n/gibil test", "", "> `/gibil test`"),
        ("Run\n```\n/gibil test\n> a\n```\n/gibil test", "Run\n```\n/gibil test\n> a\n```", ""),
        ("a <!-- b --> c\u200b\n<!--\n> d\n-->\n/gibil test", "a  c", ""),
        ("nothing", "nothing", ""),
    ],
)
def test_what_surrounds_the_commands_of_a_comment(body: str, words: str, quotes: str) -> None:
    assert around_commands(body, {"do"}) == (words, quotes)


@given(st.text(alphabet="a `~>\n\t<!->/gibil do", max_size=200))
def test_commands_are_the_same_with_and_without_their_text(body: str) -> None:
    assert [command.word for command in parse(body)] == [command.word for command in parse(body, {"do"})]


@pytest.mark.parametrize("unit", ["<!--\n", "> a\n", "```\n", "`<!--` -->", "a <!-- b --> ", "\u200d", "<!-- -->\n", "`a\n"])
def test_a_long_text_is_read_quickly(unit: str) -> None:
    begin = time.process_time()
    body = "/gibil do x\n" + unit * (60_000 // len(unit))
    parse(body, {"do"})
    around_commands(body)
    assert time.process_time() - begin < patient(0.5)


def test_the_text_becomes_the_input_and_inputs_may_precede_it() -> None:
    plan = planned("/gibil do engine=codex tries=2 Set x=1 and\nengine=claude")
    assert plan.inputs == {"engine": "codex", "tries": "2", "what": "Set x=1 and\nengine=claude"}
    assert plan.tasks[0].agent is not None
    assert plan.tasks[0].agent.prompt == "Set x=1 and\nengine=claude"
    assert planned("/gibil do x=1 is wrong").inputs["what"] == "x=1 is wrong"
    assert planned("/gibil do what=rename it").inputs["what"] == "rename it"
    assert planned('/gibil do engine="codex" "quoted"').inputs == {"engine": "codex", "tries": "", "what": '"quoted"'}
    assert planned("/gibil fix").inputs == {"what": ""}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("/gibil do", "`/gibil do` needs `what` (what to change): write it after the command, `/gibil do …`"),
        ("/gibil do \u200b", "`/gibil do` needs `what`"),
        ("/gibil do engine=goose x", "`engine` must be one of claude, codex, got 'goose'"),
        ("/gibil do engine=codex engine=claude x", "the argument `engine` is given twice"),
        ("/gibil do " + "x" * 8001, "`what` has 8,001 characters, and may have 8,000: write less, or put the text into a file"),
    ],
)
def test_a_text_that_cannot_be_used_is_answered(body: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        planned(body)
    assert caught.value.message.startswith(message)


def test_programs_give_the_text_by_its_name_and_only_it_has_lines() -> None:
    (plan,) = for_command(KNOWN, Command(word="do", arguments={"what": "one\n\ntwo\u202e"}), facts())
    assert plan.inputs["what"] == "one\n\ntwo"
    with pytest.raises(UsageError, match="`engine` contains a line break, which only an input of type text may"):
        for_command(KNOWN, Command(word="do", arguments={"what": "x", "engine": "claude\n"}), facts())


def test_help_shows_where_the_text_belongs() -> None:
    shown = help_text(KNOWN)
    assert "`/gibil do engine=claude tries=… <what>`" in shown
    assert "`/gibil fix [what]`" in shown


def test_a_workflow_has_one_text() -> None:
    with pytest.raises(InvalidWorkflow, match="only one input can have the type text, and 'a' has it"):
        parse_workflow("w.yml", b"on: {command: w}\ninputs: {a: {type: text}, b: {type: text}}\ntasks: [{run: x}]")
