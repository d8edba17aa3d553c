"""Which languages a project has at its top, by their manifests."""

from __future__ import annotations

from collections.abc import Iterator

from gibil_bot.detection.project import Project

MANIFESTS = (
    *("pyproject.toml", "setup.py", "setup.cfg", "requirements.txt", "Pipfile", "tox.ini"),
    *("package.json", "go.mod", "go.work", "Cargo.toml", "Gemfile", "composer.json", "mix.exs"),
    *("pom.xml", "build.gradle", "build.gradle.kts", "CMakeLists.txt", "meson.build", "configure.ac"),
)
LAST_RESORT = 85
"""The rank of a language's tests next to a package of another language, of which they are only a part."""
MAKE = ("Makefile", "makefile", "GNUmakefile", "justfile", "Justfile", "Taskfile.yml", "Taskfile.yaml")


_LONGEST_LINE = 1000


def short_lines(project: Project, path: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of lines that aren't too long for patterns whose time grows with the square of the length."""
    return ((number, line) for number, line in project.lines(path) if len(line) <= _LONGEST_LINE)


def is_only(project: Project, *own: str) -> bool:
    """Return whether the project has no manifests but the given ones."""
    return not project.has(*(path for path in MANIFESTS if path not in own))
