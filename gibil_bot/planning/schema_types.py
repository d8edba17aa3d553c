"""The kinds of values in a workflow file.

Each kind reads a node, or rejects it with its position, and exports the same rules as JSON Schema, so that editors reject what
the bot would reject. `file_schema.py` builds the schemas of both file kinds from these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from typing import Protocol, TypeVar, cast

from gibil_bot.config import parse_duration
from gibil_bot.errors import InvalidWorkflow
from gibil_bot.humanize import nearest
from gibil_bot.planning.yaml_nodes import Node

MAX_PROBLEMS = 50
"""Maximum number of problems reported for one file; a hostile file could have thousands."""

T = TypeVar("T")
Check = Callable[[str], str | None]
"""Returns what is wrong with a text, or None."""


class Problems:
    """Collects the problems with the parts of one value, so that a file reports all of its problems at once."""

    def __init__(self) -> None:
        self._found: list[InvalidWorkflow] = []

    def add(self, problem: InvalidWorkflow) -> None:
        self._found += problem.all[: MAX_PROBLEMS - len(self._found)]

    def collect(self, read: Callable[[], T]) -> T | None:
        """Return the result of `read`. If it raises InvalidWorkflow, return the part that could be read, else None."""
        try:
            return read()
        except InvalidWorkflow as problem:
            self.add(problem)
            return cast("T | None", problem.partial)

    @property
    def full(self) -> bool:
        """Whether further problems would be dropped, so that reading further is useless."""
        return len(self._found) >= MAX_PROBLEMS

    def raise_with(self, readable: object = None) -> None:
        """Raise InvalidWorkflow with all problems in the order of the file, if there are any."""
        if not self._found:
            return
        first, *others = sorted(self._found, key=lambda problem: (problem.line, problem.column))
        joined = InvalidWorkflow(first.path, first.line, first.column, first.problem)
        joined.others, joined.partial = tuple(others), readable
        raise joined from None


class Kind(Protocol):
    """One kind of value. `read` raises InvalidWorkflow with every problem.

    `what` is its name in errors: "a list of names".
    """

    @property
    def what(self) -> str: ...

    def read(self, node: Node) -> object: ...

    def schema(self) -> dict[str, object]: ...


def _wrong_kind(node: Node, what: str) -> Exception:
    return node.error(f"expected {what}, got {node.what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Text of limited length. `any_scalar` also accepts numbers and booleans as written: `3.10` stays `3.10`."""

    what: str = "text"
    pattern: str | None = None
    shortest: int = 1
    longest: int = 1000
    any_scalar: bool = False
    check: Check | None = None

    def read(self, node: Node) -> str:
        if node.kind != "scalar" or node.is_null:
            raise _wrong_kind(node, self.what)
        value = node.value()
        if not isinstance(value, str) and not self.any_scalar:
            raise node.error(f"expected {self.what}, got {node.what}; put it in quotes")
        text = str(value).lower() if isinstance(value, bool) else node.text
        if len(text) < self.shortest:
            raise node.error(f"{self.what} can't be empty")
        if len(text) > self.longest:
            raise node.error(f"{self.what} of more than {self.longest} characters")
        if "\0" in text:
            raise node.error(f"{self.what} can't contain a NUL character")
        if self.pattern is not None and not re.fullmatch(self.pattern, text):
            raise node.error(f"{text[:60]!r} is not {self.what}")
        problem = self.check(text) if self.check is not None else None
        if problem:
            raise node.error(problem)
        return text

    def schema(self) -> dict[str, object]:
        schema: dict[str, object] = {"type": ["string", "number", "boolean"] if self.any_scalar else "string"}
        if self.shortest:
            schema["minLength"] = self.shortest
        schema["maxLength"] = self.longest
        if self.pattern is not None:
            schema["pattern"] = f"^(?:{self.pattern})$"
        return schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]
    what: str = "a word"
    hint: Callable[[str], str | None] = lambda _: None
    """Returns the message for another word that users may expect to be allowed, or None."""
    booleans_too: bool = False
    """The words `true` and `false` may be written as booleans."""

    def read(self, node: Node) -> str:
        if node.kind != "scalar" or node.is_null:
            raise _wrong_kind(node, f"one of {', '.join(self.words)}")
        if node.text not in self.words:
            hint = self.hint(node.text)
            if hint is not None:
                raise node.error(hint)
            raise node.error(f"{node.text[:60]!r} is not one of {', '.join(self.words)}{nearest(node.text, self.words)}")
        return node.text

    def schema(self) -> dict[str, object]:
        return {"enum": [*self.words, *((False, True) if self.booleans_too else ())]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    what: str = "true or false"

    def read(self, node: Node) -> bool:
        value = node.value() if node.kind == "scalar" else None
        if not isinstance(value, bool):
            raise _wrong_kind(node, self.what)
        return value

    def schema(self) -> dict[str, object]:
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """A number between two bounds, both included."""

    lowest: float
    highest: float
    whole: bool = True

    @property
    def what(self) -> str:
        return f"a {'whole ' if self.whole else ''}number from {self.lowest:g} to {self.highest:.15g}"

    def read(self, node: Node) -> float:
        value = node.value() if node.kind == "scalar" else None
        if isinstance(value, bool) or not isinstance(value, int | float) or (self.whole and not isinstance(value, int)):
            raise _wrong_kind(node, self.what)
        if not self.lowest <= value <= self.highest:
            raise _wrong_kind(node, self.what)
        return value

    def schema(self) -> dict[str, object]:
        return {"type": "integer" if self.whole else "number", "minimum": self.lowest, "maximum": self.highest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """An amount of US dollars above 0, with at most six decimals. Read as Decimal, exactly as written."""

    highest: int

    @property
    def what(self) -> str:
        return f"an amount of US dollars above 0, at most {self.highest}"

    def read(self, node: Node) -> Decimal:
        value = node.value() if node.kind == "scalar" else None
        text = node.text.strip()
        if isinstance(value, str) and re.fullmatch(r"(?:\$|USD ?)[0-9.]{1,12}|[0-9.]{1,12} ?(?:\$|USD)", text):
            raise node.error(f"expected {self.what}, got {node.what}; write the number alone")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not re.fullmatch(r"\+?[0-9]{0,7}\.?[0-9]{0,6}", text)
        ):
            raise _wrong_kind(node, self.what)
        amount = Decimal(text)
        if not 0 < amount <= self.highest:
            raise _wrong_kind(node, self.what)
        return amount

    def schema(self) -> dict[str, object]:
        return {"type": "number", "exclusiveMinimum": 0, "maximum": self.highest}


@dataclass(frozen=True, slots=True, kw_only=True)
class Duration:
    """`90s 20m 2h 7d`; a bare number is minutes. Read as seconds, at least a minute."""

    what: str = "a duration such as 30m"

    def read(self, node: Node) -> int:
        if node.kind != "scalar" or isinstance(node.value(), bool | float | None):
            raise _wrong_kind(node, self.what)
        try:
            seconds = parse_duration(node.text[:40])
        except ValueError as error:
            raise node.error(str(error)) from None
        if seconds < 60:
            raise node.error("a machine's time to live is at least one minute")
        return seconds

    def schema(self) -> dict[str, object]:
        return {
            "type": ["string", "integer"],
            "pattern": "^ *[0-9]+ *([sS]|[mM]|[hH]|[dD]|[wW]|[mM][oO]|[yY])? *$",
            "minimum": 1,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """`512m` or `2g`; a bare number is megabytes. Read as megabytes."""

    lowest_mb: int
    what: str = "a size such as 512m or 2g"

    def read(self, node: Node) -> int:
        match = re.fullmatch(r"(\d{1,9})\s*([mMgG])?[bB]?", node.text.strip()) if node.kind == "scalar" else None
        if match is None:
            raise _wrong_kind(node, self.what)
        size_mb = int(match[1]) * (1024 if (match[2] or "m").lower() == "g" else 1)
        if not self.lowest_mb <= size_mb <= 4 * 1024 * 1024:
            raise node.error(f"expected a size from {self.lowest_mb}m to {4 * 1024}g")
        return size_mb

    def schema(self) -> dict[str, object]:
        return {"type": ["string", "integer"], "pattern": "^ *[0-9]{1,9} *[mMgG]?[bB]? *$", "minimum": self.lowest_mb}


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOf:
    """A list; with `one_too`, a single value is read as a list of one."""

    item: Kind
    fewest: int = 1
    most: int = 100
    one_too: bool = False

    @property
    def what(self) -> str:
        return f"a list of {self.item.what}"

    def read(self, node: Node) -> list[object]:
        if self.one_too and node.kind == "scalar" and not node.is_null:
            return [self.item.read(node)]
        if node.kind != "list":
            raise _wrong_kind(node, "a list")
        if not self.fewest <= len(node.items) <= self.most:
            bound = f"at least {self.fewest}" if len(node.items) < self.fewest else f"at most {self.most}"
            noun = "entry" if bound.endswith(" 1") else "entries"
            raise node.error(f"expected {bound} {noun} in this list, got {len(node.items)}")
        problems = Problems()
        values: list[object] = []
        for item in node.items:
            if problems.full:
                break
            # An entry that can't be read keeps its position, as None.
            values.append(problems.collect(partial(self.item.read, item)))
        problems.raise_with(values)
        return values

    def schema(self) -> dict[str, object]:
        schema: dict[str, object] = {
            "type": "array",
            "items": self.item.schema(),
            "minItems": self.fewest,
            "maxItems": self.most,
        }
        return {"anyOf": [self.item.schema(), schema]} if self.one_too else schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A mapping whose keys are names that the author chooses."""

    key: Text
    value: Kind
    most: int = 100

    @property
    def what(self) -> str:
        return f"a mapping of {self.key.what} to {self.value.what}"

    def read(self, node: Node) -> dict[str, object]:
        if node.kind != "mapping":
            raise _wrong_kind(node, "a mapping")
        if len(node.entries) > self.most:
            raise node.error(f"expected at most {self.most} entries, got {len(node.entries)}")
        problems = Problems()
        values: dict[str, object] = {}
        for key, value in node.entries:
            if problems.full:
                break
            name = problems.collect(partial(self._name, key))
            content = problems.collect(partial(self.value.read, value))
            if name is not None and content is not None:
                values[name] = content
        problems.raise_with(values)
        return values

    def _name(self, key: Node) -> str:
        if len(key.text) > self.key.longest or (self.key.pattern and not re.fullmatch(self.key.pattern, key.text)):
            raise key.error(f"{key.text[:60]!r} is not {self.key.what}")
        problem = self.key.check(key.text) if self.key.check is not None else None
        if problem:
            raise key.error(problem)
        return key.text

    def schema(self) -> dict[str, object]:
        names = {name: value for name, value in self.key.schema().items() if name != "type"}
        return {
            "type": "object",
            "propertyNames": names,
            "additionalProperties": self.value.schema(),
            "maxProperties": self.most,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key of a record. `rejection` is the message for a key that users may expect but that isn't supported."""

    name: str
    kind: Kind | None = None
    description: str
    required: bool = False
    rejection: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A mapping with a fixed set of keys. Read as a dict of the keys that are present."""

    what: str
    fields: tuple[Field, ...]
    null_too: bool = False
    """Null is read as an empty record: `inputs: {browser: }`."""

    def read(self, node: Node) -> dict[str, object]:
        if self.null_too and node.is_null:
            return {}
        if node.kind != "mapping":
            raise _wrong_kind(node, f"a mapping ({self.what})")
        by_name = {entry.name: entry for entry in self.fields}
        hints: list[str] = []
        problems = Problems()
        values: dict[str, object] = {}
        for key, value in node.entries:
            if problems.full:
                break
            entry = by_name.get(key.text)
            if entry is None:
                names = [entry.name for entry in self.fields if entry.rejection is None]
                hint = nearest(key.text, names)
                all_names = f"; its keys are {', '.join(names)}"
                problems.add(key.error(f"{self.what} has no key {key.text[:60]!r}{hint or all_names}"))
                hints.append(hint)
            elif entry.rejection is not None or entry.kind is None:
                problems.add(key.error(f"{entry.name}: {entry.rejection}"))
                hints.append(entry.rejection or "")
            else:
                content = problems.collect(partial(entry.kind.read, value))
                if content is not None:
                    values[entry.name] = content
        written = {key.text for key, _ in node.entries}
        for entry in self.fields:
            # A key that another problem suggests isn't also reported as missing.
            if entry.required and entry.name not in written and not any(entry.name in hint for hint in hints):
                problems.add(node.error(f"{self.what} needs the key {entry.name!r}"))
        problems.raise_with(values)
        return values

    def schema(self) -> dict[str, object]:
        properties: dict[str, object] = {}
        for entry in self.fields:
            if entry.kind is None:
                # Editors shouldn't suggest it: doNotSuggest is a VS Code extension that other programs ignore.
                properties[entry.name] = {
                    "not": {},
                    "doNotSuggest": True,
                    "description": f"{entry.description} {entry.rejection}".strip(),
                }
            else:
                properties[entry.name] = entry.kind.schema() | {"description": entry.description}
        schema: dict[str, object] = {
            "type": ["object", "null"] if self.null_too else "object",
            "additionalProperties": False,
            "properties": properties,
        }
        required = [entry.name for entry in self.fields if entry.required]
        return schema | {"required": required} if required else schema


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A value that may be written in several shapes, distinguished by the kind of its node."""

    what: str
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    """scalar | list | mapping → how to read it."""

    def read(self, node: Node) -> object:
        kind = self.kinds.get(node.kind)
        if kind is None or (node.is_null and node.kind == "scalar"):
            raise _wrong_kind(node, self.what)
        return kind.read(node)

    def schema(self) -> dict[str, object]:
        return {"anyOf": [kind.schema() for kind in self.kinds.values()]}
