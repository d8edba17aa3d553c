"""Patterns of inputs agree with Python's `re`, and none is slow."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.planning.patterns import MAX_VALUE, InvalidPattern, compile_pattern
from tests.doubles.patience import patient

ATOMS = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "[a-c0-9_-]", r"\d", r"\w", r"\S", r"\.", "é", "(?:ab|b)", "(a|)"])
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,}", "{0,2}"])
ROWS = st.lists(st.tuples(ATOMS, REPEATS).map("".join), max_size=4).map("".join)
PATTERNS = st.one_of(
    st.lists(ROWS, min_size=1, max_size=3).map("|".join),
    st.tuples(ROWS, REPEATS).map(lambda pair: f"({pair[0]}){pair[1]}"),
    ROWS.map(lambda row: f"^{row}$"),
)


@given(PATTERNS, st.text(alphabet="abcé01._-\n", max_size=8))
def test_patterns_agree_with_re(pattern: str, value: str) -> None:
    assert compile_pattern(pattern).fullmatch(value) == bool(re.fullmatch(pattern, value, re.ASCII))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a*)*b", "(.*)(.*)(.*)(.*)x", "([a-z]+){3,9}!", "(((a?)*)*)*b"])
def test_patterns_that_are_slow_elsewhere_are_fast(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    began = time.monotonic()
    assert not compiled.fullmatch("a" * (MAX_VALUE - 1) + "?")
    assert time.monotonic() - began < patient(3)


def test_a_value_that_is_too_long_never_matches() -> None:
    assert compile_pattern(".*").fullmatch("x" * MAX_VALUE)
    assert not compile_pattern(".*").fullmatch("x" * (MAX_VALUE + 1))


def test_a_value_that_is_not_valid_unicode_never_matches() -> None:
    assert not compile_pattern(".*").fullmatch("\ud800")


@pytest.mark.parametrize(("pattern", "value"), [(r"(?i)main", "MAIN"), (r"\bword\b", "word"), (r"\pL+", "né"), ("a{2", "a{2")])
def test_the_syntax_is_that_of_re2(pattern: str, value: str) -> None:
    assert compile_pattern(pattern).fullmatch(value)


def test_a_line_break_matches_neither_a_dot_nor_the_end() -> None:
    assert not compile_pattern("a.*$").fullmatch("a\n")


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "a ( without its )"),
        (")", "a ) without its ("),
        ("[a", "a [ without its ]"),
        ("[b-a]", "the range b-a is reversed"),
        ("*a", "there is nothing before * to repeat"),
        ("a**", "** is a repetition of a repetition"),
        ("a{3,2}", "the repetition {3,2} is reversed"),
        ("a{9999}", "the repetition {9999} is reversed, or too large"),
        ("((a{100}){100}){100}", "the repetition {100} is reversed, or too large"),
        (r"(\pL{1,30}){1,30}", "too large when its repetitions are expanded"),
        (r"(a)\1", r"\1 is not supported"),
        ("(?=a)", "(?=…) is not supported"),
        ("(?P<a b>x)", "(?P<a b> is not a group with a name"),
        ("\\", "the pattern ends after a \\"),
        ("a" * 201, "more than 200 characters"),
        ("\ud800", "not valid Unicode"),
    ],
)
def test_a_pattern_that_is_not_supported_is_rejected_with_the_reason(
    pattern: str, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidPattern, match=re.escape(problem)):
        compile_pattern(pattern)
    assert capfd.readouterr().err == "", "RE2 logs nothing"


@given(st.text(alphabet="ab()[]{}*+?|^$\\-,.0123d:", max_size=40))
def test_any_text_is_a_pattern_or_rejected(pattern: str) -> None:
    try:
        answer = compile_pattern(pattern).fullmatch("aab0")
    except InvalidPattern:
        return
    assert answer in (True, False)
