"""A project as detection sees it: the paths of its commit, and the contents of the few files that matter.

Everything here comes from a repository that anyone may have written. Reading never raises: a file that can't be read counts as
missing and is reported in `problems`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import yaml
from yaml.nodes import Node

from gibil_bot.detection.facts import Evidence

FILE_BYTES = 256 * 1024
"""The largest manifest that is read."""


@dataclass(frozen=True, slots=True)
class Project:
    """`files`: path → content for the paths that detection wants (detect.wanted). Paths are relative, with `/`."""

    paths: frozenset[str]
    files: Mapping[str, bytes]
    problems: dict[str, Evidence] = field(default_factory=dict)

    def has(self, *paths: str) -> bool:
        """Return whether one of the paths exists."""
        return any(path in self.paths for path in paths)

    def first(self, *paths: str) -> str | None:
        """Return the first of the paths that exists."""
        return next((path for path in paths if path in self.paths), None)

    def present(self, paths: Iterable[str]) -> list[str]:
        """Return those of the paths that exist, in this order."""
        return [path for path in paths if path in self.paths]

    def matching(self, pattern: str) -> list[str]:
        """Return the paths that match, sorted. `*` doesn't match `/`."""
        depth = pattern.count("/")
        return sorted(path for path in self.paths if path.count("/") == depth and fnmatchcase(path, pattern))

    def inside(self, prefix: str) -> Project:
        """Return the folder `prefix` (`backend/`) as a project."""
        size = len(prefix)
        return Project(
            frozenset(path[size:] for path in self.paths if path.startswith(prefix)),
            {path[size:]: content for path, content in self.files.items() if path.startswith(prefix)},
        )

    def text(self, path: str) -> str | None:
        """Return the content; None if the file doesn't exist or wasn't read."""
        content = self.files.get(path)
        return None if content is None else content.decode("utf-8-sig", "replace")

    def lines(self, path: str) -> Iterator[tuple[int, str]]:
        """Yield (number, line), counted from 1; nothing if the file doesn't exist."""
        yield from enumerate((self.text(path) or "").splitlines(), 1)

    def line_of(self, path: str, needle: str) -> int | None:
        """Return the number of the first line that contains `needle`."""
        return next((number for number, line in self.lines(path) if needle in line), None)

    def evidence(self, path: str, needle: str = "", text: str = "") -> Evidence:
        return Evidence(path=path, line=self.line_of(path, needle) if needle else None, text=text)

    def toml(self, path: str) -> dict[str, Any]:
        """Return the table; empty if there is none."""
        return self._parsed(path, tomllib.loads)

    def json(self, path: str) -> dict[str, Any]:
        """Return the object; empty if there is none."""
        return self._parsed(path, json.loads)

    def yaml(self, path: str) -> dict[str, Any]:
        """Return the mapping; empty if there is none."""
        return self._parsed(path, lambda text: yaml.load(text, _Loader))  # noqa: S506 (a SafeLoader)

    def nodes(self, path: str) -> Node | None:
        """Return the YAML document with the positions of its nodes; None if there is none."""
        text = self.text(path)
        if text is None:
            return None
        try:
            found: Node | None = yaml.compose(text, _Loader)
            return found
        except (ValueError, yaml.YAMLError, RecursionError) as error:
            self.problems[path] = Evidence(path=path, text=f"can't be read: {_reason(error)}")
            return None

    def _parsed(self, path: str, parse: Any) -> dict[str, Any]:
        text = self.text(path)
        if text is None:
            return {}
        try:
            found = parse(text)
        except (ValueError, yaml.YAMLError, RecursionError, ArithmeticError) as error:
            self.problems[path] = Evidence(path=path, text=f"can't be read: {_reason(error)}")
            return {}
        return found if isinstance(found, dict) else {}


def _reason(error: Exception) -> str:
    return str(error).split("\n")[0][:200]


class _Loader(yaml.SafeLoader):
    """Without aliases, which let a small file become a huge value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases aren't followed")
        return super().compose_node(parent, index)
