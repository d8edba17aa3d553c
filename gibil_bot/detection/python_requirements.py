"""What a Python project's tests need, from every file that says so: extras, groups, requirements files, hatch."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project

TEST_NAMES = ("test", "tests", "testing")
_MOST = 100
"""The maximum number of requirements that are taken from one table."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][^\x00-\x1f]{0,300}")

REQUIREMENTS = (
    *(
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-test.txt",
        "requirements-tests.txt",
        "requirements-testing.txt",
    ),
    *("requirements_dev.txt", "requirements_test.txt", "requirements_tests.txt", "requirements_testing.txt"),
    *(
        "dev-requirements.txt",
        "test-requirements.txt",
        "tests-requirements.txt",
        "test_requirements.txt",
        "dev_requirements.txt",
    ),
    *(
        f"requirements/{name}.txt"
        for name in ("test", "tests", "testing", "pytest", "test-ci", "requirements-tests", "ci", "dev", "development")
    ),
    *("test/requirements.txt", "tests/requirements.txt"),
)
_DEVELOPMENT = re.compile(r"(^|[/_-])(dev|development|ci)([_-]|\.|$)")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the resolution. `words`: arguments of `pip install`."""

    words: tuple[str, ...]
    evidence: Evidence
    is_optional: bool = True

    @property
    def shown(self) -> str:
        return " ".join(self.words)


def string(value: Any) -> str:
    return value if isinstance(value, str) else ""


def table(value: Any, *keys: str) -> dict[str, Any]:
    """Return the table under these keys; empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def strings(value: Any) -> list[str]:
    return [each for each in value if isinstance(each, str)][:_MOST] if isinstance(value, list) else []


def normalized(name: str) -> str:
    """Return the name of an extra, group or package as the standards compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_names(names: Iterable[str]) -> list[str]:
    """Return the names that are for tests, or else for development."""
    known = [name for name in names if _NAME.fullmatch(name)]
    for wanted in (TEST_NAMES, ("dev", "develop", "development")):
        found = [name for name in known if normalized(name) in wanted]
        if found:
            return found
    return []


def requirements(values: Iterable[str]) -> list[str]:
    """Return the values that are requirements; options of pip and anything with control characters aren't."""
    return [value for value in map(without_comment, values) if _REQUIREMENT.fullmatch(value)][:_MOST]


def without_comment(line: str) -> str:
    """Return a line of requirements without its comment; `#` in an address isn't one."""
    return re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()


def groups(project: Project) -> dict[str, list[Any]]:
    """Return `[dependency-groups]` of pyproject.toml."""
    found = table(project.toml("pyproject.toml"), "dependency-groups")
    return {name: value for name, value in found.items() if isinstance(value, list)}


def group_requirements(all_groups: dict[str, list[Any]], name: str) -> list[str]:
    """Return a group's requirements with those of included groups; a cycle ends (PEP 735)."""
    known = {normalized(each): value for each, value in all_groups.items()}
    found: dict[str, None] = {}
    waiting, seen = [normalized(name)], set()
    while waiting and len(found) < 1000:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for entry in known.get(current, []):
            if isinstance(entry, str):
                found[entry] = None
            elif included := string(table(entry).get("include-group")):
                waiting.append(normalized(included))
    return list(found)


def extras(project: Project) -> dict[str, Evidence]:
    """Return the extras of pyproject.toml, setup.cfg and setup.py, with their evidence."""
    found: dict[str, Evidence] = {}
    for name in table(project.toml("pyproject.toml"), "project", "optional-dependencies"):
        found.setdefault(name, evidence_in(project, "pyproject.toml", "[project.optional-dependencies]", name))
    for name in table(project.toml("pyproject.toml"), "tool", "poetry", "extras"):
        found.setdefault(name, evidence_in(project, "pyproject.toml", "[tool.poetry.extras]", name))
    for name in ini(project, "setup.cfg").get("options.extras_require", {}):
        found.setdefault(name, evidence_in(project, "setup.cfg", "[options.extras_require]", name))
    setup = project.text("setup.py") or ""
    if "extras_require" in setup:
        for name in (*TEST_NAMES, "dev"):
            if re.search(rf"""["']{name}["']\s*:""", setup):
                found.setdefault(name, project.evidence("setup.py", "extras_require", f"extra {name}"))
    return found


def evidence_in(project: Project, path: str, section: str, name: str) -> Evidence:
    """Return the line of `name = …` after the heading of its section."""
    heading = project.line_of(path, section) or 0
    word = re.compile(rf"""\s*["']?{re.escape(name)}["']?\s*=""")
    line = next((number for number, text in project.lines(path) if number > heading and word.match(text)), heading or None)
    return Evidence(path=path, line=line, text=name)


def ini(project: Project, path: str) -> dict[str, dict[str, str]]:
    """Return the sections of an INI file; empty if it can't be read."""
    return parse_ini(project, path, project.text(path) or "")


def parse_ini(project: Project, path: str, text: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False, default_section="\0", inline_comment_prefixes=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
    except configparser.Error as error:
        project.problems[path] = Evidence(path=path, text=f"can't be read: {str(error).splitlines()[0][:200]}")
        return {}
    return {section: dict(parser.items(section)) for section in parser.sections()}


def requirement_files(project: Project) -> list[Part]:
    """Return the requirements files for tests; those for development only if there is none for tests."""
    found = project.present(REQUIREMENTS)
    for_tests = [path for path in found if path != "requirements.txt" and not _DEVELOPMENT.search(path)]
    chosen = [path for path in found if path == "requirements.txt" or path in for_tests or not for_tests]
    return [Part(("-r", path), Evidence(path=path), is_optional=path != "requirements.txt") for path in chosen]


def pipfile_requirements(project: Project) -> list[Part]:
    """Return the packages of Pipfile, for when there is no lock file or pipenv can't use it."""
    found = []
    for name in ("packages", "dev-packages"):
        values = list(table(project.toml("Pipfile"), name).items())[:_MOST]
        listed = requirements(text for package, value in values if (text := _from_pipfile(package, value)))
        if listed:
            found.append(Part(tuple(listed), project.evidence("Pipfile", f"[{name}]", name)))
    return found


def _from_pipfile(package: str, value: Any) -> str:
    details = value if isinstance(value, dict) else {}
    version = string(details.get("version", "*") if details else value)
    if not _NAME.fullmatch(package) or not version or {"path", "git", "file", "editable"} & details.keys():
        return ""
    extra = f"[{','.join(strings(details.get('extras')))}]" if strings(details.get("extras")) else ""
    marker = f" ; {details['markers']}" if string(details.get("markers")) else ""
    return f"{package}{extra}{'' if version == '*' else version}{marker}"


def optional_poetry_groups(project: Project) -> list[str]:
    """Return the names of Poetry's groups that it installs only if asked."""
    groups = table(project.toml("pyproject.toml"), "tool", "poetry", "group")
    return [name for name in groups if _NAME.fullmatch(name) and table(groups, name).get("optional") is True]


def poetry_requirements(project: Project, wanted: Iterable[str] = ()) -> Iterator[tuple[str, Part]]:
    """Yield (group, requirements) of Poetry's groups that it would install, for when Poetry itself can't.

    `wanted`: optional groups.
    """
    chosen = set(wanted)
    path = "pyproject.toml"
    poetry = table(project.toml(path), "tool", "poetry")
    tables = {"dev": table(poetry, "dev-dependencies")}
    for name, group in table(poetry, "group").items():
        if isinstance(group, dict) and (group.get("optional") is not True or name in chosen):
            tables[name] = tables.get(name, {}) | table(group, "dependencies")
    for name, dependencies in tables.items():
        found = requirements(
            text
            for package, value in list(dependencies.items())[:_MOST]
            if normalized(package) != "python" and (text := _from_poetry(package, value))
        )
        if found:
            needle = f"[tool.poetry.group.{name}.dependencies]"
            if project.line_of(path, needle) is None:
                needle = "[tool.poetry.dev-dependencies]"
            yield name, Part(tuple(found), project.evidence(path, needle, f"group {name}"))


def _from_poetry(package: str, value: Any) -> str:
    if not _NAME.fullmatch(package):
        return ""
    details = value if isinstance(value, dict) else {}
    version = string(details.get("version") if details else value)
    if details and not version:
        return ""  # a path or a repository
    extra = f"[{','.join(strings(details.get('extras')))}]" if strings(details.get("extras")) else ""
    marker = f" ; {details['markers']}" if string(details.get("markers")) else ""
    return f"{package}{extra}{_poetry_range(version)}{marker}"


def _poetry_range(version: str) -> str:
    """Return Poetry's range as a version specifier; empty (any version) if it has no equivalent."""
    clauses = []
    for text in version.split(","):
        text = text.strip()
        found = re.fullmatch(r"(\^|~|)(\d+(?:\.\d+)*)", text)
        if found is None:
            if re.fullmatch(r"(>=|<=|>|<|!=|==|~=)\s*[0-9][0-9A-Za-z.*]*", text):
                clauses.append(text.replace(" ", ""))
            elif re.fullmatch(r"\d+(\.\d+)*\.\*", text):
                clauses.append(f"=={text}")
            continue
        sign, numbers = found[1], [int(number) for number in found[2].split(".")]
        if not sign:
            clauses.append(f"=={found[2]}")
            continue
        # `^0.2.3` keeps the first number that isn't zero; `~1.2.3` keeps the minor version.
        first = next((place for place, number in enumerate(numbers) if number), len(numbers) - 1)
        keep = first + 1 if sign == "^" else min(2, len(numbers))
        above = [*numbers[: keep - 1], numbers[keep - 1] + 1]
        clauses.append(f">={found[2]},<{'.'.join(map(str, above))}")
    return ",".join(clauses)
