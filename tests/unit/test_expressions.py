"""Conditions mean the same as in GitHub Actions, an error names its column, and no input crashes or slows the evaluation."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.planning.expressions import (
    GITHUB_NAMES,
    MAX_DEPTH,
    MAX_LENGTH,
    InvalidExpression,
    bind,
    check,
    combine,
    evaluate,
    interpolate,
)
from tests.doubles.patience import patient

INPUTS = {"target": "Staging", "empty": "", "dry-run": "false"}
GITHUB = {name: name for name in GITHUB_NAMES} | {"number": "7", "actor": "Ada", "head_ref": "fix/login"}


def holds(text: str, status: str = "success") -> bool:
    return evaluate(text, status=status, inputs=INPUTS, github=GITHUB, env={"MODE": "fast"})


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "!false",
        "success()",
        "SUCCESS()",
        "always()",
        "${{ true }}",
        "  ${{ github.actor == 'ada' }}  ",
        "'a' == 'A'",
        "'it''s' == 'IT''S'",
        "'ß' != 'x'",
        "1 == 1.0",
        "0x10 == 16",
        "-2.5e-1 == -.25",
        "github.number == 7",
        "github.number > 6.5",
        "null == ''",
        "null == 0",
        "true == 1",
        "'1' == true",
        "'' == 0",
        "' ' == 0",
        "'x' != 0",
        "!('x' > 0)",
        "!('x' <= 0)",
        "'abc' < 'ABD'",
        "'b' >= 'A'",
        "2 <= 2 && 3 >= 3",
        "false || 'x'",
        "!('' || 0 || null)",
        "true || false && false",
        "1 < 2 == true",
        "inputs.target == 'staging'",
        "inputs.unknown == null",
        "env.MODE == 'fast' && env.NOTHING == null",
        "inputs.dry-run",
        "contains('Hello', 'ELL')",
        "contains(github.head_ref, '/')",
        "startsWith(github.head_ref, 'FIX')",
        "endswith('abc', 'bc')",
        "contains(12, 2)",
        "!contains(null, 'x')",
        "(((true)))",
        "'}}' == '}}'",
        "${{ '}}' == '}}' }}",
    ],
)
def test_the_condition_holds(text: str) -> None:
    check(text)
    assert holds(text)


@pytest.mark.parametrize(
    "text", ["false", "null", "0", "-0", "''", "${{ false }}", "failure()", "cancelled()", "!success()", "'a' == 'b'", "1 > 2"]
)
def test_the_condition_does_not_hold(text: str) -> None:
    check(text)
    assert not holds(text)


@pytest.mark.parametrize(
    ("text", "success", "failure", "cancelled"),
    [
        ("success()", True, False, False),
        ("failure()", False, True, False),
        ("cancelled()", False, False, True),
        ("always()", True, True, True),
        ("!cancelled()", True, True, False),
        ("true", True, False, False),
        ("failure() || true", True, True, True),
        ("contains('x', 'x')", True, False, False),
        ("!(success())", False, True, True),
    ],
)
def test_without_a_status_function_success_is_implied(text: str, success: bool, failure: bool, cancelled: bool) -> None:
    assert (holds(text, "success"), holds(text, "failure"), holds(text, "cancelled")) == (success, failure, cancelled)


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("", 1, "an empty expression"),
        ("   ", 1, "an empty expression"),
        ("${{ }}", 4, "an empty expression"),
        ("${{ true", 1, "a ${{ without its }}"),
        ("${{ true }} && x", 12, "put ${{ }} around the whole condition, or leave it out"),
        ("a", 1, "'a' is unknown; write strings in 'single quotes' and inputs as inputs.NAME"),
        ("true && main", 9, "'main' is unknown"),
        ("success", 1, "success is a function: write success()"),
        ("sucess()", 1, "there is no function 'sucess' (did you mean 'success'?)"),
        ("fromJSON('x')", 1, "there is no function 'fromJSON'"),
        ("github.actr", 8, "there is no github.actr here (did you mean 'actor'?)"),
        ("github.token", 8, "there is no github.token here"),
        ("input.x", 1, "'input' is unknown; the contexts are inputs, github and env (did you mean 'inputs'?)"),
        ("secrets.KEY", 1, "'secrets' is unknown"),
        ("inputs.", 8, "expected a name after inputs."),
        ("inputs['x']", 7, "an index is not supported; write inputs.NAME"),
        ('"x"', 1, "write strings in 'single quotes'"),
        ("'x", 1, "this string has no closing quote"),
        ("1 = 1", 3, "comparison is written =="),
        ("true & true", 6, "and is written &&"),
        ("true | true", 6, "or is written ||"),
        ("true true", 6, "unexpected 'true' after the end of the expression"),
        ("(true", 6, "expected a )"),
        ("true)", 5, "unexpected ')'"),
        ("true &&", 8, "the expression is incomplete"),
        ("== 1", 1, "'==' is unexpected here"),
        ("contains('x')", 1, "contains() takes 2 arguments, got 1"),
        ("always(1)", 1, "always() takes no arguments, got 1"),
        ("1.2.3", 1, "unexpected character '1'"),
        ("$HOME", 1, "put ${{ }} around the whole condition, or leave it out"),
        ("true ? 1", 6, "unexpected character '?'"),
        ("__import__('os')", 1, "there is no function '__import__'"),
    ],
)
def test_an_error_names_the_column_and_a_remedy(text: str, column: int, problem: str) -> None:
    with pytest.raises(InvalidExpression) as caught:
        check(text)
    assert caught.value.problem.startswith(problem)
    assert caught.value.column == column


def test_unknown_inputs_are_rejected_if_the_inputs_are_known() -> None:
    check("inputs.anything")
    check("inputs.target", inputs=["target"])
    with pytest.raises(InvalidExpression, match="there is no input 'tagret' \\(did you mean 'target'\\?\\)"):
        check("inputs.tagret == 1", inputs=["target"])
    with pytest.raises(InvalidExpression, match="there is no input 'x'; the workflow has none"):
        check("inputs.x", inputs=[])


def test_length_and_depth_are_bounded_and_a_checked_condition_survives_planning() -> None:
    with pytest.raises(InvalidExpression, match=f"more than {MAX_LENGTH} characters"):
        check("'" + "x" * MAX_LENGTH + "'")
    for shape in ("({})", "!{}", "contains({}, 1)"):
        text = "true"
        for _ in range(MAX_DEPTH):
            text = shape.format(text)
        check(text)
        evaluate(combine(text, text), status="success", inputs={}, github={})
        with pytest.raises(InvalidExpression, match="deep"):
            check(shape.format(text))


def test_booleans_and_numbers_keep_their_type() -> None:
    bound = bind(
        "${{ inputs.dry-run || inputs.workers >= 4 && inputs.target == 'inputs.dry-run' }}", {"dry-run": False, "workers": 4.0}
    )
    assert bound == "${{ false || 4 >= 4 && inputs.target == 'inputs.dry-run' }}"
    assert holds("inputs.dry-run")
    assert not holds(bind("inputs.dry-run", {"dry-run": False}))


@pytest.mark.parametrize(
    ("outer", "inner", "status", "expected"),
    [
        ("true", "always()", "failure", False),
        ("always()", "true", "failure", False),
        ("failure()", "always()", "failure", True),
        ("${{ true }}", "${{ true || false }}", "success", True),
        ("false || true", "false", "success", False),
    ],
)
def test_combined_conditions_hold_if_both_hold(outer: str, inner: str, status: str, expected: bool) -> None:
    assert holds(combine(outer, inner), status) is expected


def test_placeholders_in_a_text_are_replaced() -> None:
    text = "deploy-${{ github.base_ref }}/${{ inputs.target || 'none' }}-${{ 1 == 1 }}${{ null }}${{ 2.50 }}"
    assert interpolate(text, inputs=INPUTS, github=GITHUB) == "deploy-base_ref/Staging-true2.5"
    assert interpolate("plain", inputs={}, github={}) == "plain"
    with pytest.raises(InvalidExpression, match="allowed only in if:"):
        interpolate("x-${{ success() }}", inputs={}, github={})


PIECES = st.sampled_from(
    ["success()", "failure()", "inputs.x", "github.actor", "&&", "||", "!", "(", ")", "==", "<", "'a'", "''", "1", "-", ".",
     ",", "${{", "}}", "contains(", " ", "true", "null", "0x", "1e9999", "'", "é"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=120), st.lists(PIECES, max_size=40).map("".join)))
def test_any_text_is_evaluated_or_rejected(text: str) -> None:
    try:
        check(text)
    except InvalidExpression:
        return
    for status in ("success", "failure", "cancelled"):
        assert holds(text, status) in (True, False)
    assert holds(bind(text, {"x": True})) in (True, False)


@pytest.mark.parametrize("piece", ["(", "!", "'x", "1==", "a.", "contains(", "${{", "&&", "0 ", "1.", "'' ", "true||"])
def test_the_longest_invalid_text_is_rejected_at_once(piece: str) -> None:
    began = time.monotonic()
    with pytest.raises(InvalidExpression):
        evaluate(piece * (4000 // len(piece)), status="success", inputs={}, github={})
    assert time.monotonic() - began < patient(2)
