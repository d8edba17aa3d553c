"""Reads the files of a project's CI: its commands with their lines, and the values of its jobs.

GitHub's workflows, .gitlab-ci.yml, .travis.yml and .circleci/config.yml. Parsing is the slow part, and several readers ask for
the same files, so that a file is parsed once.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import yaml

from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown

WORKFLOWS = (".github/workflows/*.yml", ".github/workflows/*.yaml")
OTHERS = (".gitlab-ci.yml", ".travis.yml", ".circleci/config.yml")
_LONGEST = 1000
_FILE_BYTES = 128 * 1024
_ALL_BYTES = 256 * 1024
"""How much YAML is parsed, which takes about a second per 256 KiB."""
_MOST_VALUES = 2000
_NAMES_COMMAND = re.compile(r"(^|[_-])(command|run|script)s?$")
"""Inputs of a shared workflow whose values are commands."""
_ENTERS = re.compile(r"cd ([A-Za-z0-9_.][\w./-]{0,200})")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a job. `job` is the same for commands of one job, in their order."""

    job: str
    run: str
    path: str
    line: int
    folder: str = ""
    """Where it runs; empty: the top of the checkout."""
    names: str = ""
    """The names of its job and step."""

    @property
    def literal(self) -> bool:
        """Whether the command means the same outside its workflow."""
        return "${{" not in self.run and self.run.isprintable()

    def evidence(self) -> Evidence:
        return Evidence(path=self.path, line=self.line, text=f"its CI runs `{shown(self.run)}`")


@dataclass(frozen=True, slots=True)
class Job:
    """A job of one of GitHub's workflows."""

    path: str
    name: str
    node: yaml.Node
    folder: str = ""
    """Where its steps run that don't say it themselves."""
    workflow_env: yaml.Node | None = None
    """`env` of the whole workflow."""

    @property
    def id(self) -> str:
        """`job` of its commands."""
        return f"{self.path}:{self.name}"

    @property
    def is_linux(self) -> bool:
        return not value(get(self.node, "runs-on")).startswith(("windows", "macos"))

    def steps(self) -> list[yaml.Node]:
        steps = get(self.node, "steps")
        return steps.value if isinstance(steps, yaml.SequenceNode) else []

    def commands(self) -> Iterator[Command]:
        names = f"{self.name} {value(get(self.node, 'name'))}"
        if value(get(self.node, "uses")):  # a workflow that several repositories share
            for key, content in items(get(self.node, "with")):
                if _NAMES_COMMAND.search(key):
                    yield from _scripts(content, self.path, self.name, names, self.folder)
        for step in self.steps():
            folder = _path(value(get(step, "working-directory")) or self.folder)
            step_names = f"{names} {value(get(step, 'name'))}"
            yield from _scripts(get(step, "run"), self.path, self.name, step_names, folder)


def jobs(project: Project) -> Iterator[Job]:
    """Yield the jobs of GitHub's workflows; those of large workflows are left out."""
    for path, top in _files(project, WORKFLOWS):
        default = value(get(top, "defaults", "run", "working-directory"))
        for name, job in items(get(top, "jobs")):
            folder = value(get(job, "defaults", "run", "working-directory")) or default
            yield Job(path, name, job, folder, get(top, "env"))


def other_commands(project: Project) -> Iterator[Command]:
    """Yield the commands of other services' files."""
    for path, top in _files(project, OTHERS):
        match path:
            case ".travis.yml":
                for key in ("before_install", "install", "before_script", "script"):
                    yield from _scripts(get(top, key), path, "travis", key)
            case ".gitlab-ci.yml":
                for name, job in items(top):
                    for key in ("before_script", "script"):
                        yield from _scripts(get(job, key), path, name, f"{name} {key}")
            case _:
                for name, job in items(get(top, "jobs")):
                    steps = get(job, "steps")
                    for step in steps.value if isinstance(steps, yaml.SequenceNode) else ():
                        run = get(step, "run")
                        is_long = isinstance(run, yaml.MappingNode)
                        names = f"{name} {value(get(run, 'name'))}" if is_long else name
                        yield from _scripts(get(run, "command") if is_long else run, path, name, names)


def _files(project: Project, patterns: tuple[str, ...]) -> Iterator[tuple[str, yaml.Node]]:
    size = 0
    for pattern in patterns:
        for path in project.matching(pattern):
            content = project.files.get(path, b"")
            if len(content) <= _FILE_BYTES and size + len(content) <= _ALL_BYTES:
                size += len(content)
                top = _nodes(path, content)
                if top is not None:
                    yield path, top


@lru_cache(maxsize=64)
def _nodes(path: str, content: bytes) -> yaml.Node | None:
    return Project(frozenset({path}), {path: content}).nodes(path)


def _scripts(node: yaml.Node | None, path: str, job: str, names: str, folder: str = "") -> Iterator[Command]:
    for each in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(each, yaml.ScalarNode):
            for number, text in _script_lines(each):
                if entered := _ENTERS.fullmatch(text):
                    folder = _path(f"{folder}/{entered[1]}")
                elif len(text) <= _LONGEST and text.isprintable():
                    yield Command(f"{path}:{job}", text, path, number, folder, names)


def _path(text: str) -> str:
    """Return a folder of the checkout; empty for its top, and for one outside."""
    folder = posixpath.normpath(text.strip() or ".").strip("/")
    return "" if folder == "." or folder.split("/")[0] == ".." else folder


def script(node: yaml.Node | None) -> list[str]:
    """Return the commands of a step's `run`."""
    return [text for _, text in _script_lines(node)] if isinstance(node, yaml.ScalarNode) else []


def _script_lines(node: yaml.ScalarNode) -> Iterator[tuple[int, str]]:
    """Yield (number in the file, command). Lines that end with a backslash continue."""
    first = node.start_mark.line + (2 if node.style in ("|", ">") else 1)
    start = 0
    parts: list[str] = []
    for offset, line in enumerate(node.value.splitlines()):
        text = line.strip()
        if not parts:
            start = first + offset if node.style == "|" else first
        parts.append(text.removesuffix("\\").strip())
        if text.endswith("\\"):
            continue
        joined = " ".join(filter(None, parts))
        parts = []
        if joined and not joined.startswith("#"):
            yield start, joined


def items(node: yaml.Node | None) -> Iterator[tuple[str, yaml.Node]]:
    """Yield (key, value) of a mapping; nothing for other nodes."""
    if isinstance(node, yaml.MappingNode):
        for key, content in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield key.value, content


def get(node: yaml.Node | None, *keys: str) -> yaml.Node | None:
    """Return what the mapping has under these keys; None if there is nothing."""
    for key in keys:
        node = next((content for name, content in items(node) if name == key), None)
    return node


def value(node: yaml.Node | None) -> str:
    """Return a scalar's text; empty for other nodes."""
    return node.value if isinstance(node, yaml.ScalarNode) else ""


def values(node: yaml.Node | None) -> list[tuple[str, int]]:
    """Return (text, line) of a list's scalars, or of the one scalar."""
    nodes = node.value[:_MOST_VALUES] if isinstance(node, yaml.SequenceNode) else [node]
    return [
        (each.value.strip(), each.start_mark.line + 1)
        for each in nodes
        if isinstance(each, yaml.ScalarNode) and each.value.strip().isprintable()
    ]
