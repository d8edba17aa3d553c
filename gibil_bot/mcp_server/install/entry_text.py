"""One more server in a client's configuration, by text: everything else in the file stays as it is, byte for byte. Pure.

Every function raises ValueError, with a reason for people, where that cannot be done safely.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class _Object:
    """Where an object is in a text, and its members: (name, begin of the value, end of the value)."""

    begin: int
    end: int
    members: tuple[tuple[str, int, int], ...]

    def find(self, name: str) -> tuple[int, int] | None:
        """The last one counts, as for a parser."""
        return next(((begin, end) for each, begin, end in reversed(self.members) if each == name), None)


def find_json(text: str, table: str, name: str) -> object | None:
    """The entry that is there already."""
    return _servers(_parsed_json(text), table).get(name)


def add_json(text: str, table: str, name: str, entry: Mapping[str, object]) -> str:
    """`{table: {name: entry}}`, merged into a JSON object that has no such entry."""
    if not text.strip():
        return json.dumps({table: {name: entry}}, indent=2, ensure_ascii=False) + "\n"
    wanted = _merged(_parsed_json(text), table, name, entry)
    root = _object_at(text, _skip(text, 0))
    there = root.find(table)
    if there is None:
        changed = _insert(text, root, 1, table, {name: entry})
    else:
        changed = _insert(text, _object_at(text, there[0]), 2, name, entry)
    if json.loads(changed) != wanted:
        raise ValueError("it is written in a way that is not understood")
    return changed


def find_toml(text: str, table: str, name: str) -> object | None:
    """The entry that is there already."""
    return _servers(_parsed_toml(text), table).get(name)


def add_toml(text: str, table: str, name: str, entry: Mapping[str, object]) -> str:
    """`[table.name]` at the end of a TOML file that has no such entry."""
    wanted = _merged(_parsed_toml(text), table, name, entry)
    lines = [f"{key} = {_toml(value)}" for key, value in entry.items()]
    gap = "" if not text.strip() else "\n" if text.endswith("\n") else "\n\n"
    changed = f"{text}{gap}[{table}.{name}]\n" + "".join(f"{line}\n" for line in lines)
    try:
        if tomllib.loads(changed) == wanted:
            return changed
    except tomllib.TOMLDecodeError:
        pass
    raise ValueError(f"its {table} is written in a way to which nothing can be added at the end")


def _parsed_json(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no plain JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    return content


def _parsed_toml(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"it is no TOML ({error})") from None


def _servers(content: dict[str, Any], table: str) -> dict[str, Any]:
    servers = content.get(table, {})
    if not isinstance(servers, dict):
        raise ValueError(f"its {table} is no table of servers")
    return servers


def _merged(content: dict[str, Any], table: str, name: str, entry: Mapping[str, object]) -> dict[str, Any]:
    return {**content, table: {**_servers(content, table), name: dict(entry)}}


def _object_at(text: str, begin: int) -> _Object:
    members = []
    place = _skip(text, begin + 1)
    while text[place] != "}":
        if text[place] == ",":
            place = _skip(text, place + 1)
        name, place = scanstring(text, place + 1)
        value_begin = _skip(text, _skip(text, place) + 1)  # behind the colon
        _, value_end = _DECODER.raw_decode(text, value_begin)
        members.append((name, value_begin, value_end))
        place = _skip(text, value_end)
    return _Object(begin, place, tuple(members))


def _skip(text: str, place: int) -> int:
    blanks = _BLANKS.match(text, place)
    assert blanks is not None
    return blanks.end()


def _insert(text: str, into: _Object, depth: int, name: str, value: Mapping[str, object]) -> str:
    """As the last member, in the manner of the file."""
    in_lines = "\n" in (text[into.begin : into.end] if into.members else text.strip())
    newline = "\r\n" if "\r\n" in text else "\n"
    unit = _unit(text)
    key = json.dumps(name, ensure_ascii=False)
    if not in_lines:
        member = f"{key}: {json.dumps(value, ensure_ascii=False)}"
        comma = ", " if into.members else ""
        place = into.members[-1][2] if into.members else into.begin + 1
        return f"{text[:place]}{comma}{member}{text[place:]}"
    lines = f"{key}: {json.dumps(value, indent=unit, ensure_ascii=False)}".split("\n")
    member = "".join(f"{newline}{unit * depth}{line}" for line in lines)
    if into.members:
        place = into.members[-1][2]
        return f"{text[:place]},{member}{text[place:]}"
    return f"{text[: into.begin + 1]}{member}{newline}{unit * (depth - 1)}{text[into.end :]}"


def _unit(text: str) -> str:
    """What a level is indented by."""
    found = re.search(r'^\{\s*\n([ \t]+)"', text.replace("\r\n", "\n").lstrip())
    return found[1] if found else "  "


def _toml(value: object) -> str:
    """JSON's strings and lists are TOML's, too."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
