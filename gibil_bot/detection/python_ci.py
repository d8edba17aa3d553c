"""What the job that tests installs in a Python project's CI: extras, groups and files that the project has, and packages."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from gibil_bot.detection import workflows
from gibil_bot.detection.environments import EnvironmentFacts
from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import normalized, requirements

_INSTALLS = {
    "pip": ("install",),
    "pip3": ("install",),
    "uv": ("sync", "run"),
    "poetry": ("install",),
    "pdm": ("install", "sync"),
}
_GROUPS = ("--group", "-G", "--with")
_EXTRAS = ("--extra", "--extras", "-E")
_TOOL = re.compile(r"(^|[\s/])(tox|nox|hatch)(\s|$)")
_EXPRESSION = re.compile(r"\$\{\{.*?\}\}")
_SPLIT = re.compile(r"&&|\|\||;|\|")
_OWN = re.compile(r"\.(?:/)?\[([A-Za-z0-9._,\s-]+)\]")
_FOLDER = re.compile(r"(?:\./)?([A-Za-z0-9_][A-Za-z0-9_./-]*?)/?(\[[A-Za-z0-9._,-]+\])?")
_TOOLS = frozenset(
    (
        *("pip", "setuptools", "wheel", "build", "twine", "uv", "poetry", "pdm", "pipenv", "hatch", "virtualenv", "tox", "nox"),
        *(
            "tox-uv",
            "tox-gh",
            "tox-gh-actions",
            "codecov",
            "coveralls",
            "pre-commit",
            "cibuildwheel",
            "conda",
            "flit",
            "maturin",
        ),
        *("ruff", "black", "mypy", "flake8", "isort", "pylint", "delvewheel", "auditwheel", "keyring"),
    )
)
_UNUSUAL = (
    "--pre",
    "--index-url",
    "-i",
    "--extra-index-url",
    "--find-links",
    "-f",
    "--target",
    "-t",
    "--no-deps",
    "--resolution",
)
"""Options of installs that aren't what most people have."""
_WITH_VALUE = ("--python", "-p", "--prefix")


def read(project: Project) -> EnvironmentFacts | None:
    """Return what the job that tests installs; None if it installs nothing that is known here."""
    job = workflows.test_job(project)
    if job and _TOOL.search(job[-1].run):
        return None  # what the job installs is for a tool that creates environments for the tests
    found: list[tuple[str, ...]] = []
    extras: list[str] = []
    groups: list[str] = []
    options: set[str] = set()
    evidence: Evidence | None = None
    for command in job:
        if command.folder:
            continue
        for program, words in _installs(command.run):
            before = (len(found), len(extras), len(groups), len(options))
            _read(project, program, words, found, extras, groups, options)
            if evidence is None and (len(found), len(extras), len(groups), len(options)) != before:
                evidence = command.evidence()
    if evidence is None:
        return None
    return EnvironmentFacts(
        evidence=evidence,
        requirements=tuple(dict.fromkeys(found)),
        extras=tuple(dict.fromkeys(extras)),
        groups=tuple(dict.fromkeys(groups)),
        options=frozenset(options),
    )


def _installs(line: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (program, arguments) of the commands that install."""
    for part in _SPLIT.split(_EXPRESSION.sub("$_", line)):
        try:
            words = shlex.split(part, comments=True)
        except ValueError:
            continue
        while words and (words[0] == "sudo" or re.match(r"[A-Za-z_]\w*=", words[0])):
            words = words[1:]
        if words[1:3] == ["-m", "pip"]:
            words = words[2:]
        if words[:2] == ["uv", "pip"]:
            words = words[1:]
        if any(word.partition("=")[0] in _UNUSUAL for word in words):
            continue
        if len(words) > 1 and words[1] in _INSTALLS.get(words[0], ()):
            yield words[0].removesuffix("3"), words[2:]


def _read(
    project: Project,
    program: str,
    words: list[str],
    found: list[tuple[str, ...]],
    extras: list[str],
    groups: list[str],
    options: set[str],
) -> None:
    place = 0
    while place < len(words):
        word = words[place]
        place += 1
        option, sign, value = word.partition("=")
        if option in (*_GROUPS, *_EXTRAS, "-r", "--requirement", "-c", "--constraint", *_WITH_VALUE) and not sign:
            value = words[place] if place < len(words) else ""
            place += 1
        if "$" in word or "$" in value:
            continue
        listed = [each for each in re.split(r"[\s,]+", value) if each]
        match option:
            case "--with" if program == "uv":
                found += [(each,) for each in requirements([value]) if _is_for_tests(each)]
            case "--group" | "-G" | "--with":
                groups += listed
            case "--extra" | "--extras" | "-E":
                extras += listed
            case "--all-packages" | "--no-default-groups":
                options.add(option)
            case "--no-dev" if program == "uv":
                options.add("--no-default-groups")
            case "-r" | "--requirement":
                if project.has(value.removeprefix("./")):
                    found.append(("-r", value.removeprefix("./")))
            case _ if program == "uv" and not word.startswith("-"):
                return  # the command that `uv run` runs
            case _ if program == "pip" and not word.startswith("-"):
                _read_package(project, word, found, extras)


def _read_package(project: Project, word: str, found: list[tuple[str, ...]], extras: list[str]) -> None:
    if own := _OWN.fullmatch(word):
        extras += [name for name in re.split(r"[\s,]+", own[1]) if name]
        return
    folder = _FOLDER.fullmatch(word)
    if folder and ".." not in word and project.has(f"{folder[1]}/pyproject.toml", f"{folder[1]}/setup.py"):
        found.append(("-e", f"./{folder[1]}{folder[2] or ''}"))
    elif "/" not in word:
        found += [(each,) for each in requirements([word]) if _is_for_tests(each)]


def _is_for_tests(requirement: str) -> bool:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    return name is not None and normalized(name[0]) not in _TOOLS and "*" not in requirement
