"""What a project's own CI runs, as evidence for choices that its manifests leave open: a version, a build before the tests.

Only GitHub's workflows are read. Nothing here decides that something runs: a hint selects among what a manifest allows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from gibil_bot.detection import ci_files
from gibil_bot.detection.ci_files import Command, Job
from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import shown

__all__ = ["WANTED", "Command", "commands", "expanded", "versions"]

WANTED = ci_files.WORKFLOWS
_WORKFLOWS = 20
_COMMANDS = 500
_MOST_VERSIONS = 40
_OTHER_PURPOSES = re.compile(
    r"release|publish|deploy|docs?\b|website|codeql|stale|label|docker|bench|sponsor|notify|preview|size|toc\b|links?\b"
)
_MATRIX = re.compile(r"\$\{\{\s*matrix\.([\w-]+)\s*\}\}")

Values = list[tuple[str, int]]


def commands(project: Project, *, linting: bool = False) -> tuple[Command, ...]:
    """Return the commands of the workflows that test (or lint), at most 500."""
    found = (command for job in _jobs(project, linting=linting) for command in job.commands())
    return tuple(command for command, _ in zip(found, range(_COMMANDS), strict=False))


def versions(project: Project, action: str, key: str) -> tuple[tuple[str, Evidence], ...]:
    """Return the versions that steps pass to an action (`setup-node`) as `key` (`node-version`), those of a matrix included."""
    found: dict[str, Evidence] = {}
    for job in _jobs(project):
        matrix: dict[str, Values] | None = None
        for step in job.steps():
            if action not in ci_files.value(ci_files.get(step, "uses")):
                continue
            matrix = _matrix(job) if matrix is None else matrix
            for text, line in ci_files.values(ci_files.get(step, "with", key)):
                for version, place in _expanded(text, line, matrix):
                    if version and "${{" not in version:
                        words = f"its CI tests with {shown(version)}"
                        found.setdefault(version, Evidence(path=job.path, line=place, text=words))
    return tuple(found.items())


def expanded(job: Job, node: yaml.Node | None) -> Values:
    """Return (text, line) of a value of a job, with the matrix's values in place of one reference to it."""
    matrix = _matrix(job)
    return [found for text, line in ci_files.values(node) for found in _expanded(text, line, matrix)]


def _jobs(project: Project, *, linting: bool = False) -> Iterator[Job]:
    # Workflows named for testing come first, so that their commands are the ones that count.
    by_path: dict[str, list[Job]] = {}
    for job in ci_files.jobs(project):
        name = job.path.rpartition("/")[2].casefold()
        if not _OTHER_PURPOSES.search(name) and (linting or "lint" not in name or "test" in name):
            by_path.setdefault(job.path, []).append(job)
    paths = sorted(by_path, key=lambda path: (not re.search(r"test|ci\b|main|build", path.rpartition("/")[2]), path))
    for path in paths[:_WORKFLOWS]:
        yield from by_path[path]


def _matrix(job: Job) -> dict[str, Values]:
    matrix = ci_files.get(job.node, "strategy", "matrix")
    found = {name: ci_files.values(node) for name, node in ci_files.items(matrix)}
    include = ci_files.get(matrix, "include")
    for extra in include.value[:_MOST_VERSIONS] if include is not None and isinstance(include.value, list) else ():
        for name, node in ci_files.items(extra):
            found.setdefault(name, []).extend(ci_files.values(node)[:1])
    return found


def _expanded(text: str, line: int, matrix: dict[str, Values]) -> Values:
    reference = _MATRIX.search(text)
    if reference is None:
        return [(text, line)]
    listed = [each for each in matrix.get(reference[1], ()) if each[0]][:_MOST_VERSIONS]
    return [(text[: reference.start()] + value + text[reference.end() :], place) for value, place in listed]
