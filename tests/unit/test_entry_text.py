"""One more server in a client's file: everything else stays as it is, byte for byte."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.mcp_server.install.entry_text import add_json, add_toml, find_json, find_toml

ENTRY = {"type": "stdio", "command": "/opt/gibil", "args": ["mcp"], "env": {}}
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", '{\n  "mcpServers": {\n    "gibil": {\n      "command": "g"\n    }\n  }\n}\n'),
        ("{}", '{"mcpServers": {"gibil": {"command": "g"}}}'),
        ('{"a":1}', '{"a":1, "mcpServers": {"gibil": {"command": "g"}}}'),
        (
            '{\n\t"a": {"b": [1,2]},\n\t"mcpServers": {}\n}\n',
            '{\n\t"a": {"b": [1,2]},\n\t"mcpServers": {\n\t\t"gibil": {\n\t\t\t"command": "g"\n\t\t}\n\t}\n}\n',
        ),
        (
            '{\r\n    "mcpServers": {\r\n        "x" : {"command":"x"}\r\n    },\r\n    "z": "}{"\r\n}',
            '{\r\n    "mcpServers": {\r\n        "x" : {"command":"x"},\r\n        "gibil": {\r\n            "command": "g"\r\n'
            '        }\r\n    },\r\n    "z": "}{"\r\n}',
        ),
        (
            '{\n  "mcpServers": {"x": {"command": "\\"x"}},\n  "k": 1e5\n}\n',
            '{\n  "mcpServers": {"x": {"command": "\\"x"}, "gibil": {"command": "g"}},\n  "k": 1e5\n}\n',
        ),
    ],
)
def test_an_entry_comes_to_a_json_file_in_the_files_own_manner(before: str, after: str) -> None:
    assert add_json(before, "mcpServers", "gibil", {"command": "g"}) == after


def common(one: str, other: str) -> int:
    """How long they begin with the same."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@given(
    content=st.dictionaries(st.text(max_size=8) | st.just("mcpServers"), VALUES, max_size=4),
    servers=st.dictionaries(st.text(max_size=8), VALUES, max_size=3),
    indent=st.sampled_from([None, 1, 2, 4, "\t"]),
    separators=st.sampled_from([None, (",", ":"), (" , ", " : ")]),
    ascii_only=st.booleans(),
)
def test_whatever_else_is_in_a_json_file_stays_and_in_its_order(
    content: dict[str, object],
    servers: dict[str, object],
    indent: int | str | None,
    separators: tuple[str, str] | None,
    ascii_only: bool,
) -> None:
    servers.pop("gibil", None)
    content["mcpServers"] = servers
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=ascii_only)
    changed = add_json(text, "mcpServers", "gibil", ENTRY)
    expected = {**content, "mcpServers": {**servers, "gibil": ENTRY}}
    assert json.dumps(json.loads(changed)) == json.dumps(expected)  # as texts: the order, too
    assert find_json(changed, "mcpServers", "gibil") == ENTRY
    assert common(text, changed) + common(text[::-1], changed[::-1]) >= len(text)  # nothing but an insertion


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"a": 1,}', '// why\n{"a": 1}', '{"mcpServers": []}', '{"mcpServers": null}', "\ufeff{}", "{}{}"],
)
def test_what_is_no_plain_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        find_json(text, "mcpServers", "gibil")
    with pytest.raises(ValueError):
        add_json(text, "mcpServers", "gibil", ENTRY)


@pytest.mark.parametrize(
    "before",
    ["", "# mine\nmodel = 'x'", "[mcp_servers.other]\ncommand = 'x'\n\n\n", "[[a.b]]\nc = 1 # end", "[mcp_servers]\n"],
)
def test_a_table_comes_to_the_end_of_a_toml_file(before: str) -> None:
    entry = {"command": '/a "b"\\ä', "args": ["-m", "x"], "env": {"GIBIL_DATA_DIR": "/d"}}
    changed = add_toml(before, "mcp_servers", "gibil", entry)
    assert changed.startswith(before)
    assert find_toml(changed, "mcp_servers", "gibil") == entry
    servers = tomllib.loads(before).get("mcp_servers", {})
    assert tomllib.loads(changed) == {**tomllib.loads(before), "mcp_servers": {**servers, "gibil": entry}}


@pytest.mark.parametrize("text", ["mcp_servers = { other = { command = 'x' } }", "mcp_servers = 1", "a = ", "[a]\n[a]\n"])
def test_a_toml_file_to_which_nothing_can_be_added_at_the_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        add_toml(text, "mcp_servers", "gibil", ENTRY)
