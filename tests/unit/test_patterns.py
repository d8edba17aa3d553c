"""Patterns of inputs: they agree with Python's `re`, and no pattern makes them slow."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
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


@settings(deadline=None)
@given(PATTERNS, st.text(alphabet="abcé01._-\n", max_size=8))
def test_it_agrees_with_re(pattern: str, value: str) -> None:
    assert compile_pattern(pattern).fullmatch(value) == bool(re.fullmatch(pattern, value, re.ASCII))


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(a*)*b", "(.*)(.*)(.*)(.*)x", "([a-z]+){3,9}!", "(((a?)*)*)*b"])
def test_the_patterns_that_ruin_others_are_answered_at_once(pattern: str) -> None:
    compiled = compile_pattern(pattern)
    began = time.monotonic()
    assert not compiled.fullmatch("a" * (MAX_VALUE - 1) + "?")
    assert time.monotonic() - began < patient(3)


def test_a_value_that_is_too_long_never_matches() -> None:
    assert compile_pattern(".*").fullmatch("x" * MAX_VALUE)
    assert not compile_pattern(".*").fullmatch("x" * (MAX_VALUE + 1))


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", "a ( without its )"),
        (")", "a ) without its ("),
        ("[a", "the pattern ends too early"),
        ("[b-a]", "upside down"),
        ("*a", "nothing stands before *"),
        ("a**", "a repetition of a repetition"),
        ("a{2", "a { without its }"),
        ("a{x}", "a repetition is {n}"),
        ("a{3,2}", "upside down"),
        ("a{9999}", "too large"),
        ("((a{100}){100}){100}", "too large"),
        (r"(a)\1", r"\1 is not supported"),
        ("(?=a)", "only (?:…) is supported"),
        ("(?P<x>a)", "only (?:…) is supported"),
        (r"\bword", r"\b is not supported"),
        ("a^b", "only allowed at the end it stands for"),
        ("\\", "the pattern ends too early"),
        ("a" * 201, "more than 200 characters"),
        ("(" * 60 + ")" * 60, "nested more than"),
    ],
)
def test_what_is_not_of_the_language_is_refused_with_a_sentence(pattern: str, problem: str) -> None:
    with pytest.raises(InvalidPattern, match=re.escape(problem)):
        compile_pattern(pattern)


@settings(deadline=None)
@given(st.text(alphabet="ab()[]{}*+?|^$\\-,.0123d:", max_size=40))
def test_any_text_is_a_pattern_or_refused(pattern: str) -> None:
    try:
        answer = compile_pattern(pattern).fullmatch("aab0")
    except InvalidPattern:
        return
    assert answer in (True, False)
