"""Reads tox's configuration: what the tests of its default environment need, and the command that it would run.

The format: https://tox.wiki/en/stable/config.html.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

from gibil_bot.detection.environments import BAD, POSARGS, Environment, EnvironmentFacts, candidate, extras_of, substituted
from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import parse_ini, string, strings, table, without_comment
from gibil_bot.detection.python_versions import DISTRIBUTED

_VARIABLES = {"PYTHONHASHSEED": "1"}
"""What tox sets, to another number in each run: without it, the processes of pytest-xdist may see sets in other orders."""
_MOST_LINES = 1000
_DEEPEST = 5
_MOST_ALTERNATIVES = 200
_FACTORS = frozenset(("py", "py3", "test", "tests", "testing", "unit"))
_CONDITION = re.compile(r"([!A-Za-z0-9_.,{}-]+):\s+(.*)")
_PYTHON = re.compile(r"py(py)?[0-9.]*t?|3\.[0-9]+t?|python")
_OTHERS = frozenset(
    (
        *(
            "lint",
            "linters",
            "flake8",
            "pylint",
            "black",
            "style",
            "format",
            "mypy",
            "typing",
            "types",
            "pyright",
            "pre",
            "commit",
        ),
        *("doc", "docs", "coverage", "report", "clean", "build", "dist", "release", "publish", "package", "packaging", "check"),
        *("bench", "benchmark", "perf", "integration", "security", "fix"),
        # not what most people use
        *("main", "master", "dev", "latest", "trunk", "git", "nightly", "pre", "lowest", "oldest", "minimal", "mindeps", "min"),
        # what a machine would need besides
        *("postgres", "postgresql", "mysql", "mariadb", "oracle", "redis", "mongodb"),
    )
)
"""Factors of environments that aren't the usual one for tests."""


def read(project: Project) -> EnvironmentFacts | None:
    """Return the default environment for tests; None if tox isn't configured."""
    environment = _read(project)
    if environment is None:
        return None
    line = project.line_of(environment.path, environment.heading)
    evidence = Evidence(path=environment.path, line=line, text=f"tox {environment.heading.strip('[]')}")
    return EnvironmentFacts(
        evidence=evidence,
        requirements=tuple(words for dep in environment.deps if (words := _requirement(dep))),
        extras=extras_of(environment),
        groups=tuple(environment.groups),
        # tox installs these groups and no others.
        options=frozenset(("--no-default-groups",) if environment.groups else ()),
        candidate=candidate(project, environment, evidence),
        variables=_VARIABLES,
    )


def _read(project: Project) -> Environment | None:
    pyproject = table(project.toml("pyproject.toml"), "tool", "tox")
    legacy = string(pyproject.get("legacy_tox_ini"))
    if project.has("tox.toml"):
        return _from_toml(project.toml("tox.toml"), "tox.toml", "")
    if project.has("tox.ini"):
        return _from_ini(parse_ini(project, "tox.ini", project.text("tox.ini") or ""), "tox.ini")
    if legacy:
        return _from_ini(parse_ini(project, "pyproject.toml", legacy), "pyproject.toml")
    if pyproject:
        return _from_toml(pyproject, "pyproject.toml", "tool.tox.")
    setup = parse_ini(project, "setup.cfg", project.text("setup.cfg") or "")
    return _from_ini(setup, "setup.cfg") if "testenv" in setup else None


def _from_ini(sections: dict[str, dict[str, str]], path: str) -> Environment | None:
    name = _section(sections, "testenv", "testenv:", lambda section: "commands" in section)
    if name is None:
        return None
    section = {**sections.get("testenv", {}), **sections[name]}
    factors = _factors(sections)

    def lines(*keys: str) -> list[str]:
        text = next((section[key] for key in keys if key in section), "")
        return list(_lines(sections, text, factors))

    environment = Environment(path, f"[{name}]")
    environment.deps = lines("deps")
    environment.extras = [word for line in lines("extras") for word in re.split(r"[\s,]+", line) if word]
    environment.groups = [word for line in lines("dependency_groups") for word in re.split(r"[\s,]+", line) if word]
    # `[]` is the arguments, as in tox 1.
    environment.commands = [re.sub(r"(?<=\s)\[\](?=\s|$)", "{posargs}", line) for line in lines("commands")]
    environment.folder = next(iter(lines("changedir", "change_dir")), "")
    environment.unset = _unset([word for line in lines("passenv", "pass_env") for word in re.split(r"[\s,]+", line)])
    for line in lines("setenv", "set_env"):
        variable, sign, value = line.partition("=")
        if sign:
            environment.variables[variable.strip()] = value.strip()
    return environment


def _section(sections: Any, base: str, prefix: str, has_commands: Any) -> str | None:
    """Return the section for tests: the base, or one named for tests if only that has commands."""
    if base in sections and has_commands(sections[base]):
        return base
    named = next((f"{prefix}{each}" for each in ("tests", "test", "py", "py3", "unit") if f"{prefix}{each}" in sections), None)
    if named is None:
        pythons = {f"py{version.replace('.', '')}" for version in DISTRIBUTED}
        names = (name for name in sections if name.startswith(prefix) and has_commands(sections[name]))
        # `py{310,311}` is both py310 and py311.
        named = next((name for name in names if pythons.intersection(_alternatives(name.removeprefix(prefix)))), None)
    return named or (base if base in sections else None)


def _factors(sections: dict[str, dict[str, str]]) -> frozenset[str]:
    """Return the factors, without Python's, of the first usual environment that most versions of Python have."""
    listed = sections.get("tox", {})
    text = re.sub(r"#.*", "", listed.get("envlist", listed.get("env_list", "")))
    chosen: dict[tuple[str, ...], set[str]] = {}
    for name in _alternatives(",".join(text.split())):
        factors = name.split("-")
        if not any(factor in _OTHERS or factor.startswith("pypy") for factor in factors):
            others = tuple(factor for factor in factors if not _PYTHON.fullmatch(factor))
            versions = {version for version in DISTRIBUTED if {version, f"py{version.replace('.', '')}"} & set(factors)}
            if versions:
                chosen.setdefault(others, set()).update(versions)
    best = max(chosen.items(), key=lambda entry: len(entry[1]), default=((), set()))
    return _FACTORS | set(best[0])


def _lines(sections: dict[str, dict[str, str]], text: str, factors: frozenset[str]) -> Iterator[str]:
    """Yield the lines that apply to an environment with these factors; `{[section]key}` lines are replaced."""
    waiting = [(text, 0)]
    lines = 0
    while waiting:
        text, depth = waiting.pop()
        rest = text.replace("\\\n", " ").splitlines()
        for place, line in enumerate(rest):
            lines += 1
            if lines > _MOST_LINES:  # sections may refer to each other many times
                return
            line = line.strip()
            if not line or line.startswith(("#", ";")):
                continue
            condition = _CONDITION.fullmatch(line)
            if condition:
                if not _applies(condition[1], factors):
                    continue
                line = condition[2].strip()
            reference = re.fullmatch(r"\{\[([^]]+)\]([^{}:]+)\}", line)
            if reference is None:
                yield line
            elif depth < _DEEPEST:
                waiting.append(("\n".join(rest[place + 1 :]), depth))
                waiting.append((sections.get(reference[1], {}).get(reference[2].strip(), ""), depth + 1))
                break


def _applies(condition: str, usual: frozenset[str]) -> bool:
    """Return whether a condition holds for the factors with each of the versions of Python that machines have."""
    alternatives = [text.strip().split("-") for text in _alternatives(condition)]
    for version in DISTRIBUTED:
        known = usual | {version, f"py{version}", f"py{version.replace('.', '')}"}
        if not any(
            all((factor[1:] not in known) if factor.startswith("!") else (factor in known) for factor in factors)
            for factors in alternatives
        ):
            return False
    return True


def _alternatives(text: str) -> list[str]:
    """Return `a{b,c},d` as [`ab`, `ac`, `d`]; nothing if there are too many."""
    found: list[str] = []
    for alternative in re.findall(r"(?:[^,{}]|\{[^{}]*\})+", text):
        expanded = [""]
        for part in re.findall(r"[^{}]+|\{[^{}]*\}", alternative):
            choices = part[1:-1].split(",") if part.startswith("{") else [part]
            expanded = [f"{before}{choice.strip()}" for before in expanded for choice in choices]
            if len(found) + len(expanded) > _MOST_ALTERNATIVES:
                return []
        found += expanded
    return [each.strip() for each in found]


def _from_toml(tox: dict[str, Any], path: str, prefix: str) -> Environment | None:
    base, heading = table(tox, "env_run_base"), f"[{prefix}env_run_base]"
    if not base.get("commands"):
        environments = table(tox, "env")
        for name in ("tests", "test", "py", "unit"):
            if table(environments, name).get("commands"):
                base, heading = base | table(environments, name), f"[{prefix}env.{name}]"
                break
    if not base:
        return None
    environment = Environment(path, heading)
    deps = base.get("deps")
    environment.deps = strings(deps) if isinstance(deps, list) else string(deps).splitlines()
    environment.extras = strings(base.get("extras"))
    environment.groups = strings(base.get("dependency_groups"))
    commands = base.get("commands")
    for command in commands if isinstance(commands, list) else ():
        if isinstance(command, list):
            environment.commands.append(" ".join(_word(word) for word in command))
    environment.folder = string(base.get("change_dir"))
    environment.unset = _unset(strings(base.get("pass_env")))
    for variable, value in table(base, "set_env").items():
        environment.variables[variable] = value if isinstance(value, str) else BAD
    return environment


def _unset(passed: list[str]) -> tuple[str, ...]:
    """Return `CI` unless it is passed on: some tests expect other output with it.

    tox passes what is in https://tox.wiki/en/stable/config.html#pass_env and no other variable.
    """
    return () if any(fnmatchcase("CI", pattern.upper()) for pattern in passed) else ("CI",)


def _word(word: Any) -> str:
    """Return a word of a command in TOML as it would be in an INI file."""
    if isinstance(word, str):
        return word if word == "{posargs}" else shlex.quote(word) if re.search(r"[\s'\"]", word) else word
    replace = string(table(word).get("replace"))
    default = word.get("default") if isinstance(word, dict) else None
    if replace == "posargs":
        return f"{{posargs:{' '.join(_word(each) for each in strings(default))}}}"
    if replace == "env":
        return string(default) or BAD
    return BAD


def _requirement(line: str) -> tuple[str, ...] | None:
    """Return a line of deps as arguments of `pip install`."""
    line = without_comment(substituted(line, ""))
    if BAD in line or POSARGS in line or not line.isprintable():
        return None
    option = re.fullmatch(r"(-r|-c|--requirement|--constraint)[\s=]*/?(\S+)", line)
    if option:
        return (option[1][:2] if not option[1].startswith("--") else f"-{option[1][2]}", option[2].lstrip("/"))
    return None if line.startswith("-") or line in (".", "poetry", "uv", "pdm", "tox") else (line,)
