"""YAML with line numbers: what is read, what is rejected, and that invalid input of any kind is cheap."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.humanize import nearest
from gibil_bot.limits import WORKFLOW_FILE_BYTES
from gibil_bot.planning.yaml_nodes import MAX_NODES, Node, read_yaml
from tests.doubles.patience import patient


def read(text: str) -> Node:
    return read_yaml("w.yml", text.encode())


def refusal(data: bytes | str) -> InvalidWorkflow:
    with pytest.raises(InvalidWorkflow) as caught:
        read_yaml("w.yml", data.encode() if isinstance(data, str) else data)
    return caught.value


def test_every_node_has_its_position() -> None:
    root = read("a: 1\nb:\n  - x\n  - {c: 'ü'}\n")
    assert (root.line, root.column) == (1, 1)
    assert (root.at("b", 1, "c").line, root.at("b", 1, "c").column) == (4, 9)
    assert root.at("b", 1, "c").text == "ü"
    assert (root.at("b", 7).line, root.at("b", 7).kind) == (3, "list")
    assert (root.key("b").line, root.key("b").column) == (2, 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("12", 12),
        ("-3", -3),
        ("1.50", 1.5),
        ("1e3", 1000.0),
        ("012", 12),
        ("0o14", "0o14"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("'12'", "12"),
        ('"true"', "true"),
        (".inf", ".inf"),
        ("9" * 40, "9" * 40),
    ],
)
def test_a_scalar_has_its_yaml_1_2_type(text: str, value: object) -> None:
    read_value = read(f"k: {text}").at("k").value()
    assert (read_value, type(read_value)) == (value, type(value))


def test_on_is_a_key() -> None:
    assert [key.text for key, _ in read("on: x\nyes: y\n").entries] == ["on", "yes"]


def test_a_block_scalar_keeps_its_lines() -> None:
    node = read("run: |\n  one\n  \ttwo\n").at("run")
    assert (node.text, node.style) == ("one\n\ttwo\n", "block")


def test_an_alias_has_the_value_of_its_anchor() -> None:
    root = read("a: &x {k: v}\nb: *x\n")
    assert root.at("b", "k").text == "v"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "w.yml:1:1: the file is empty"),
        (b"# nothing\n", "w.yml:1:1: the file is empty"),
        (b"a: \xff\n", "w.yml:1:4: not UTF-8 text"),
        ("ü: 1\nb: x".encode() + b"\x80", "w.yml:2:5: not UTF-8 text"),
        ("a: 1".encode("utf-16"), "w.yml:1:1: not UTF-8 text"),
        (b"a: b\x07\n", "w.yml:1:5: the character U+0007 is not allowed"),
        (b"a: !!python/object:os.system x", "w.yml:1:4: tags are not supported; remove it"),
        (b"a: {b: 1, b: 2}", "w.yml:1:11: the key 'b' exists twice; the first one is in line 1"),
        (b"? [a]\n: b\n", "w.yml:1:3: expected a key, got a list"),
        (b"a: *b", "w.yml:1:4: the alias *b refers to an anchor that doesn't exist above it"),
        (b"a: &a [*a]", "w.yml:1:8: the alias *a is inside the value that it refers to"),
        (b"a: 1\n---\nb: 2\n", "w.yml:2:1: a second document starts here; a file can have only one"),
        (b"a:\n\t- b\n", "w.yml:2:1: not valid YAML: a tab in the indentation; use spaces"),
        (b"a: [1", "w.yml:1:6: not valid YAML"),
        (b"a: 'x", "w.yml:1:6: not valid YAML"),
        (b"%YAML 3.0\n---\na: b\n", "w.yml:1:1: not valid YAML"),
        (b"a: " + b"[" * 17 + b"]" * 17, "w.yml:1:19: nested more than 16 deep"),
        (b"x" * (WORKFLOW_FILE_BYTES + 1), "w.yml:1:1: the file is larger than 64 KiB"),
    ],
)
def test_invalid_yaml_is_rejected_with_its_position(data: bytes, expected: str) -> None:
    assert str(refusal(data)).startswith(expected)


def test_exponential_aliases_are_rejected_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    began = time.monotonic()
    assert f"more than {MAX_NODES} values" in refusal("\n".join(lines)).problem
    assert time.monotonic() - began < patient(5)


@pytest.mark.parametrize("piece", ["[", "{", "- ", "? ", "a: {", "&a ", "*a ", "|\n", "'x", "- - ", "[a, ", "a:\n "])
def test_the_slowest_file_of_the_largest_size_is_read_in_seconds(piece: str) -> None:
    began = time.monotonic()
    refusal(piece * (WORKFLOW_FILE_BYTES // len(piece)))
    assert time.monotonic() - began < patient(20)


@given(st.one_of(st.binary(max_size=300), st.text(alphabet="ab:-[]{}&*!|>'\"#%@`,? \n\t~<", max_size=200).map(str.encode)))
def test_any_bytes_are_read_or_rejected(data: bytes) -> None:
    try:
        node = read_yaml("w.yml", data)
    except InvalidWorkflow as refused:
        line, column = refused.line, refused.column
    else:
        line, column = node.line, node.column
    assert (line, column) >= (1, 1)


def test_the_nearest_word_is_suggested_and_a_distant_one_is_not() -> None:
    assert nearest("tsks", ("tasks", "name")) == " (did you mean 'tasks'?)"
    assert nearest("zzz", ("tasks", "name")) == ""
