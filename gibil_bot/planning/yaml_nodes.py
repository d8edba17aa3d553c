"""Parses YAML into a small tree whose nodes know their line and column.

Stricter than YAML on purpose, because these files decide what runs: one document, no tags, no duplicate keys, no alias bombs,
limited size and depth. Scalars are typed as in YAML 1.2, so `on:` is a key and `yes` a string: only `true` and `false` are
booleans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import yaml

from gibil_bot.errors import InvalidWorkflow
from gibil_bot.limits import WORKFLOW_FILE_BYTES
from gibil_bot.model import UnusableFile

MAX_DEPTH = 16
MAX_NODES = 10_000
"""An alias counts as many nodes as its expansion, each time it is used."""

Scalar = str | bool | int | float | None

_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,30}|[0-9]{1,30}(?:\.[0-9]{0,30})?)(?:[eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One value of the file, of exactly one of the three kinds. `line` and `column` count from 1."""

    path: str
    line: int
    column: int
    kind: str
    """scalar | list | mapping"""
    text: str = ""
    """A scalar as it is written, without quotes."""
    style: str = "plain"
    """plain | quoted | block (`|`) | folded (`>`): how a scalar is written."""
    items: tuple[Node, ...] = ()
    entries: tuple[tuple[Node, Node], ...] = ()
    """Keys (always scalars) and values, in the order of the file."""

    def value(self) -> Scalar:
        """Return a scalar's value by the core schema of YAML 1.2; quoted scalars are strings."""
        if self.style != "plain":
            return self.text
        if self.text in ("", "~", "null", "Null", "NULL"):
            return None
        if self.text in ("true", "True", "TRUE"):
            return True
        if self.text in ("false", "False", "FALSE"):
            return False
        if _INTEGER.fullmatch(self.text):
            return int(self.text)
        if _FLOAT.fullmatch(self.text):
            return float(self.text)
        return self.text

    @property
    def is_null(self) -> bool:
        return self.kind == "scalar" and self.value() is None

    @property
    def what(self) -> str:
        """Its name in errors: "a list", "the number 3"."""
        if self.kind != "scalar":
            return f"a {self.kind}"
        value = self.value()
        if value is None:
            return "nothing"
        if isinstance(value, bool):
            return f"the boolean {self.text}"
        if isinstance(value, int | float):
            return f"the number {self.text}"
        shown = self.text if len(self.text) <= 40 else self.text[:37] + "..."
        return f"the string {shown!r}"

    def at(self, *steps: str | int) -> Node:
        """Return the descendant at these keys and indices, or the deepest existing one, so that errors have a position."""
        node = self
        for step in steps:
            below = node._step(step)
            if below is None:
                return node
            node = below
        return node

    def _step(self, step: str | int) -> Node | None:
        if isinstance(step, int):
            return self.items[step] if step < len(self.items) else None
        return next((value for key, value in self.entries if key.text == step), None)

    def key(self, name: str) -> Node:
        """Return the node of a key itself; this node if there is no such key."""
        return next((key for key, _ in self.entries if key.text == name), self)

    def error(self, problem: str, *, offset: int | None = None) -> InvalidWorkflow:
        """Create the error for this node. With an `offset` into a block's text, its position is that line of the file."""
        if self.style == "block" and offset is not None:
            before = self.text[:offset].count("\n")
            return InvalidWorkflow(self.path, self.line + 1 + before, 1, _short(problem))
        return InvalidWorkflow(self.path, self.line, self.column, _short(problem))


def _short(problem: str) -> str:
    """Truncate a problem: it may quote words of a file that are as long as the file."""
    return problem if len(problem) <= 1000 else problem[:997] + "..."


def read_yaml(path: str, data: bytes) -> Node:
    """Parse the only document of a file. Raises InvalidWorkflow at the first problem."""
    if isinstance(data, UnusableFile):
        raise InvalidWorkflow(path, 1, 1, data.problem)
    if len(data) > WORKFLOW_FILE_BYTES:
        raise InvalidWorkflow(path, 1, 1, f"the file is larger than {WORKFLOW_FILE_BYTES // 1024} KiB")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8")) + 1
        raise InvalidWorkflow(path, line, column, "not UTF-8 text") from None
    try:
        return _Builder(path, yaml.parse(text, Loader=yaml.SafeLoader)).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise InvalidWorkflow(path, line, column, _yaml_problem(error)) from None
    except yaml.reader.ReaderError as error:
        before_text = text[: error.position]
        line = before_text.count("\n") + 1
        column = len(before_text) - (before_text.rfind("\n") + 1) + 1
        raise InvalidWorkflow(path, line, column, f"the character U+{ord(text[error.position]):04X} is not allowed") from None


def _yaml_problem(error: yaml.MarkedYAMLError) -> str:
    problem = str(error.problem or error.context or "can't be read")
    if "'\\t'" in problem:
        return "not valid YAML: a tab in the indentation; use spaces"
    return _short("not valid YAML: " + " ".join(f"{error.context or ''} {problem}".split()))


class _Builder:
    """Builds nodes from parser events, so the depth is known before any recursion, and aliases are counted."""

    def __init__(self, path: str, events: Iterator[yaml.Event]) -> None:
        self._path = path
        self._events = events
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._open: set[str] = set()
        self._count = 0

    def document(self) -> Node:
        self._next()  # StreamStart
        event = self._next()
        if isinstance(event, yaml.StreamEndEvent):
            raise InvalidWorkflow(self._path, 1, 1, "the file is empty")
        root = self._node(self._next(), 1)
        self._next()  # DocumentEnd
        after = self._next()
        if not isinstance(after, yaml.StreamEndEvent):
            raise self._error(after, "a second document starts here; a file can have only one")
        return root

    def _next(self) -> yaml.Event:
        return next(self._events)

    def _error(self, event: yaml.Event, problem: str) -> InvalidWorkflow:
        line, column = _position(event)
        return InvalidWorkflow(self._path, line, column, _short(problem))

    def _grow(self, event: yaml.Event, nodes: int) -> None:
        self._count += nodes
        if self._count > MAX_NODES:
            raise self._error(event, f"more than {MAX_NODES} values, counting each use of an alias")

    def _node(self, event: yaml.Event, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self._error(event, f"nested more than {MAX_DEPTH} deep")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self._open:
                raise self._error(event, f"the alias *{event.anchor} is inside the value that it refers to")
            if event.anchor not in self._anchors:
                raise self._error(event, f"the alias *{event.anchor} refers to an anchor that doesn't exist above it")
            node, nodes = self._anchors[event.anchor]
            self._grow(event, nodes)
            if depth + _depth(node) > MAX_DEPTH:
                raise self._error(event, f"nested more than {MAX_DEPTH} deep")
            return node
        assert isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
        if event.tag is not None:
            raise self._error(event, self._tag_problem(str(event.tag)))
        before = self._count
        self._grow(event, 1)
        anchor = event.anchor
        if anchor is not None:
            self._open.add(anchor)
        if isinstance(event, yaml.ScalarEvent):
            style = {None: "plain", "|": "block", ">": "folded"}.get(event.style, "quoted")
            node = self._make(event, "scalar", text=str(event.value), style=style)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._make(event, "list", items=tuple(self._items(depth)))
        else:
            node = self._make(event, "mapping", entries=tuple(self._entries(depth)))
        if anchor is not None:
            self._open.discard(anchor)
            self._anchors[anchor] = (node, self._count - before)
        return node

    def _make(
        self,
        event: yaml.Event,
        kind: str,
        *,
        text: str = "",
        style: str = "plain",
        items: tuple[Node, ...] = (),
        entries: tuple[tuple[Node, Node], ...] = (),
    ) -> Node:
        line, column = _position(event)
        return Node(
            path=self._path,
            line=line,
            column=column,
            kind=kind,
            text=text,
            style=style,
            items=items,
            entries=entries,
        )

    def _items(self, depth: int) -> Iterator[Node]:
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            yield self._node(event, depth + 1)

    def _entries(self, depth: int) -> Iterator[tuple[Node, Node]]:
        seen: dict[str, int] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if key.kind != "scalar":
                raise self._error(event, f"expected a key, got {key.what}")
            if key.text == "<<" and key.style == "plain":
                raise self._error(event, "the merge key << is not supported; write the keys out")
            if key.text in seen:
                raise self._error(event, f"the key {key.text!r} exists twice; the first one is in line {seen[key.text]}")
            seen[key.text] = key.line
            yield key, self._node(self._next(), depth + 1)

    @staticmethod
    def _tag_problem(tag: str) -> str:
        if tag.startswith("!") and not tag.startswith("!!"):
            return f"YAML reads {tag} as a tag; put the whole value in quotes, or in ${{{{ }}}}"
        return "tags are not supported; remove it"


def _position(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    assert mark is not None, "the reader always sets the start of an event"
    return mark.line + 1, mark.column + 1


def _depth(node: Node) -> int:
    """Return how many levels a node has below itself."""
    below = [*node.items, *(value for _, value in node.entries)]
    return 1 + max(map(_depth, below)) if below else 0
