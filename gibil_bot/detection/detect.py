"""Detection from end to end: which files are read, and the tasks that follow from them.

The ecosystems' modules have two names: `WANTED`, patterns of the files that they read, and `facts(project)`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import islice
from types import ModuleType

from gibil_bot.detection import (
    ci_environment,
    ci_services,
    cmake,
    combine,
    formatters,
    go,
    java,
    linters,
    make,
    node,
    others,
    php,
    python,
    ruby,
    rust,
    shell,
    submodules,
    suggestion,
    workflows,
)
from gibil_bot.detection.combine import Folder, Purpose
from gibil_bot.detection.detected import Detection
from gibil_bot.detection.facts import Facts
from gibil_bot.detection.project import Project

ECOSYSTEMS: tuple[ModuleType, ...] = (
    submodules,
    make,
    python,
    node,
    go,
    rust,
    cmake,
    ruby,
    java,
    php,
    shell,
    others,
    linters,
    formatters,
)
"""In the order in which they are prepared and reported."""

WANTED_FILES = 400
"""The maximum number of files that are read."""
_PER_PATTERN = 40
_MANIFESTS = (
    *(
        "pyproject.toml",
        "setup.py",
        "setup.cfg",
        "requirements.txt",
        "tox.ini",
        "Pipfile",
        "package.json",
        "go.mod",
        "Cargo.toml",
    ),
    *(
        "Gemfile",
        "pom.xml",
        "build.gradle",
        "build.gradle.kts",
        "composer.json",
        "CMakeLists.txt",
        "configure.ac",
        "meson.build",
    ),
)
_SETTINGS = ("pyproject.toml", "setup.cfg", "tox.ini", "requirements.txt")
"""Manifests that may have only settings of tools, or requirements of the folders below."""
_OTHER_FOLDERS = frozenset(
    (
        *("node_modules", "vendor", "vendored", "third_party", "examples", "example", "docs", "doc", "fixtures", "testdata"),
        *(
            "test",
            "tests",
            "benchmarks",
            "benchmark",
            "scripts",
            "tools",
            "ci",
            "website",
            "site",
            "templates",
            "samples",
            "demo",
        ),
    )
)
_MOST_FOLDERS = 8
_DEEPEST = 3


def wanted(paths: Iterable[str]) -> tuple[str, ...]:
    """Return the paths whose contents detection needs, the most important first, at most WANTED_FILES."""
    known = sorted(set(paths))
    quoted = _matching(known, "", workflows.WANTED)
    found: dict[str, None] = {}
    for prefix in ("", *_subfolders(frozenset(known))):
        for module in ECOSYSTEMS:
            found |= dict.fromkeys(_matching(known, prefix, module.WANTED))
    return tuple(dict.fromkeys([*tuple(found)[: WANTED_FILES - len(quoted)], *quoted]))


def detect(project: Project, purpose: Purpose) -> Detection:
    """Return what preparing and testing (or linting, formatting) this project would run, and why.

    Never raises for a project's content.
    """
    folders = _folders(project, purpose)
    services = ci_services.read(project)
    found = combine.combine(folders, purpose, workflows.packages(project), services, ci_environment.read(project))
    quotes = workflows.quotes(project, purpose)
    quotes = (*quotes[:1], *(each.quote() for each in found.services.services), *quotes[1:])
    text = ""  # `.gibil.yml` says how a project is tested
    if purpose == "test":
        text = suggestion.from_facts(found) if found.problem is None else suggestion.from_quotes(project, quotes, purpose)
    return combine.detection(found, quotes, text)


def _folders(project: Project, purpose: Purpose) -> list[Folder]:
    """Return the top folder, and those below it that count as well.

    A top folder that is no package itself, but has requirements or settings, leaves the word to the CI: a folder in which
    the CI tests is what is tested.
    """
    top = _folder(project, "")
    names = _subfolders(project.paths)
    if not names or _is_package(project):
        return [top]
    has_candidates = any(_candidates(facts, purpose) for facts in top.facts)
    tested = [prefix for prefix in workflows.folders(project) if prefix in names]
    if tested and any(facts.runtimes for facts in top.facts if _candidates(facts, purpose)):
        top = replace(top, facts=tuple(replace(facts, tests=(), linters=(), formatters=()) for facts in top.facts))
    elif not has_candidates or not any(facts.runtimes for facts in top.facts):
        tested = names
    return [top, *(folder for prefix in tested if (folder := _folder(project, prefix)).facts)]


def _is_package(project: Project) -> bool:
    if any(project.has(path) for path in _MANIFESTS if path not in _SETTINGS):
        return True
    return python.is_installable(project)


def _matching(known: list[str], prefix: str, patterns: Iterable[str]) -> list[str]:
    inside = [path[len(prefix) :] for path in known if path.startswith(prefix)]
    found: list[str] = []
    for pattern in patterns:
        depth = pattern.count("/")
        matches = (path for path in inside if path.count("/") == depth and fnmatchcase(path, pattern))
        found += [prefix + path for path in islice(matches, _PER_PATTERN)]
    return found


def _subfolders(paths: frozenset[str]) -> list[str]:
    """Return the folders with manifests, as prefixes; none if the top folder has a language's manifest, except for settings."""
    if any(path in paths for path in _MANIFESTS if path not in _SETTINGS):
        return []
    found = set()
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name in _MANIFESTS and folder.count("/") < _DEEPEST and not _OTHER_FOLDERS & set(folder.split("/")):
            found.add(f"{folder}/")
    outermost = [each for each in sorted(found) if not any(each != other and each.startswith(other) for other in found)]
    return outermost[:_MOST_FOLDERS]


def _folder(project: Project, prefix: str) -> Folder:
    inside = project.inside(prefix) if prefix else project
    found = [facts for module in ECOSYSTEMS if (facts := module.facts(inside)) is not None]
    return Folder(prefix, tuple(facts.inside(prefix) if prefix else facts for facts in found))


def _candidates(facts: Facts, purpose: Purpose) -> bool:
    return bool(facts.candidates(purpose))
