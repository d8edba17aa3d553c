"""What a project's own CI runs, as evidence for choices that its manifests leave open: a version, a build before the tests.

Only GitHub's workflows are read. Nothing here decides that something runs: a hint selects among what a manifest allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import items, shown, string, table

WANTED = (".github/workflows/*.yml", ".github/workflows/*.yaml")
_WORKFLOWS = 20
_COMMANDS = 500
_LONGEST = 1000
_FILE_CHARACTERS = 64 * 1024
_CHARACTERS = 256 * 1024
"""How much YAML is parsed, which takes about a second per 256 KiB."""
_OTHER_PURPOSES = re.compile(
    r"release|publish|deploy|docs?\b|website|codeql|stale|label|docker|bench|sponsor|notify|preview|size|toc\b|links?\b"
)
_MATRIX = re.compile(r"\$\{\{\s*matrix\.([\w-]+)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a job. `job` is the same for commands of one job, in their order."""

    job: str
    run: str
    path: str
    line: int | None
    folder: str = ""
    """Where it runs; empty: the top of the checkout."""

    @property
    def literal(self) -> bool:
        """Whether the command means the same outside its workflow."""
        return "${{" not in self.run and self.run.isprintable()

    def evidence(self) -> Evidence:
        return Evidence(path=self.path, line=self.line, text=f"its CI runs `{shown(self.run)}`")


def commands(project: Project, *, linting: bool = False) -> tuple[Command, ...]:
    """Return the commands of the workflows that test (or lint), at most 500."""
    found: list[Command] = []
    for path, job_name, job in _jobs(project, linting=linting):
        numbers = _numbers(project.text(path) or "")
        for step in items(job.get("steps")):
            run, folder = table(step).get("run"), string(table(step).get("working-directory"))
            if not isinstance(run, str):
                continue
            for first, text in _joined(run):
                if not text.startswith("#") and len(text) <= _LONGEST and len(found) < _COMMANDS:
                    number = numbers.get(_bare(first))
                    found.append(Command(f"{path}:{job_name}", text, path, number, folder.removeprefix("./").strip("./")))
    return tuple(found)


def versions(project: Project, action: str, key: str) -> tuple[tuple[str, Evidence], ...]:
    """Return the versions that steps pass to an action (`setup-node`) as `key` (`node-version`), those of a matrix included."""
    found: dict[str, Evidence] = {}
    for path, _, job in _jobs(project):
        matrix = _matrix(job)
        for step in items(job.get("steps")):
            fields = table(step)
            if action not in string(fields.get("uses")):
                continue
            for text in (string(value) for value in items(table(fields.get("with")).get(key))):
                for version in _expanded(text, matrix):
                    if version and "${{" not in version:
                        line, words = project.line_of(path, version), f"its CI tests with {shown(version)}"
                        found.setdefault(version, Evidence(path=path, line=line, text=words))
    return tuple(found.items())


def submodules(project: Project) -> Evidence | None:
    """Return where the CI checks out submodules."""
    for path, _, job in _jobs(project):
        for step in items(job.get("steps")):
            wanted = table(table(step).get("with")).get("submodules")
            if wanted is True or (isinstance(wanted, str) and wanted in ("true", "recursive")):
                return project.evidence(path, "submodules", "its CI checks out submodules")
            if "git submodule update --init" in str(table(step).get("run")):
                return project.evidence(path, "git submodule update", "its CI runs `git submodule update --init`")
    return None


def _jobs(project: Project, *, linting: bool = False) -> Iterator[tuple[str, str, dict[str, Any]]]:
    paths = [*project.matching(WANTED[0]), *project.matching(WANTED[1])]
    # workflows named for testing come first, so that their commands are the ones that count
    paths.sort(key=lambda path: (not re.search(r"test|ci\b|main|build", path.rsplit("/", 1)[1]), path))
    size = 0
    for path in paths[:_WORKFLOWS]:
        name = path.rsplit("/", 1)[1].casefold()
        if _OTHER_PURPOSES.search(name) or (not linting and "lint" in name):
            continue
        text = project.text(path)
        if text is not None and len(text) <= _FILE_CHARACTERS and size + len(text) <= _CHARACTERS:
            size += len(text)
            for job_name, job in table(_workflow(path, text).get("jobs")).items():
                yield path, job_name, table(job)


def _joined(script: str) -> Iterator[tuple[str, str]]:
    """Yield (first line, command) of a script, with the lines that a backslash continues joined."""
    lines: list[str] = []
    for line in script.splitlines():
        lines.append(line.strip())
        if not line.endswith("\\"):
            if text := " ".join(each.removesuffix("\\").strip() for each in lines).strip():
                yield lines[0], text
            lines = []


def _bare(line: str) -> str:
    """Return a line without what YAML puts around a command."""
    return re.sub(r"^\s*(?:- )?(?:run: *)?[|>]?[\"']?", "", line).rstrip("\\\"' \t")


@lru_cache(maxsize=64)
def _numbers(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) <= _LONGEST:
            found.setdefault(_bare(line), number)
    return found


@lru_cache(maxsize=64)
def _workflow(path: str, text: str) -> dict[str, Any]:
    """Parsing is the slow part, and several ecosystems ask for the same files."""
    return Project(frozenset({path}), {path: text.encode("utf-8", "replace")}).yaml(path)


def _matrix(job: dict[str, Any]) -> dict[str, list[str]]:
    matrix = table(table(job.get("strategy")).get("matrix"))
    found: dict[str, list[str]] = {name: [string(value) for value in items(values)] for name, values in matrix.items()}
    for extra in items(matrix.get("include")):
        for name, value in table(extra).items():
            found.setdefault(name, []).append(string(value))
    return found


def _expanded(text: str, matrix: dict[str, list[str]]) -> list[str]:
    reference = _MATRIX.search(text)
    if reference is None:
        return [text]
    values = [value for value in matrix.get(reference[1], ()) if value][:40]
    return [text[: reference.start()] + value + text[reference.end() :] for value in values]
