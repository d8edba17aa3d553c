"""Reads Hatch's environments: what the one for tests needs, and the script of it that tests.

They are in hatch.toml or pyproject.toml. The format: https://hatch.pypa.io/latest/config/environment/overview.
"""

from __future__ import annotations

import re
from typing import Any

from gibil_bot.detection.environments import Environment, EnvironmentFacts, candidate, extras_of
from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.detection.python_requirements import TEST_NAMES, requirements, string, strings, table

WANTED = ("hatch.toml",)
_OWN = "hatch-test"
_OWN_REQUIREMENTS = ("coverage[toml]", "pytest", "pytest-mock", "pytest-rerunfailures", "pytest-xdist[psutil]")
"""What `hatch test` installs, without the plugin that it has and turns off: pytest-randomly."""
_SCRIPTS = ("test", "tests")
_DEEPEST = 5
_MOST_ENVIRONMENTS = 50
_MOST_COMMANDS = 50
_FOLDER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")


def read(project: Project) -> EnvironmentFacts | None:
    """Return the environment for tests; None if there is none."""
    pyproject = table(project.toml("pyproject.toml"), "tool", "hatch", "envs")
    environments = pyproject | table(project.toml("hatch.toml"), "envs")
    usual = (_OWN, *TEST_NAMES, "default")
    rest: EnvironmentFacts | None = None
    # An environment with another name counts if a script of it tests.
    for name in (*usual, *(each for each in list(environments)[:_MOST_ENVIRONMENTS] if each not in usual)):
        own = table(environments, name)
        # Environments inherit from `default`, except that of `hatch test` and detached ones.
        is_alone = name == _OWN or own.get("detached") is True or own.get("template") == name
        default = {} if is_alone else table(environments, "default")
        found = _facts(project, name, [default, own] if name != "default" else [own])
        if found is None:
            continue
        if found.candidate is not None or (name in usual and name != "default"):
            return found
        if name == "default":
            rest = found
    return rest


def _facts(project: Project, name: str, tables: list[dict[str, Any]]) -> EnvironmentFacts | None:
    path = "hatch.toml" if project.line_of("hatch.toml", f"[envs.{name}") else "pyproject.toml"
    heading = f"[{'tool.hatch.' if path == 'pyproject.toml' else ''}envs.{name}"
    own = tables[-1]
    if not own:
        return None
    found: list[tuple[str, ...]] = []
    if name == _OWN and "dependencies" not in own:
        found += [(each,) for each in _OWN_REQUIREMENTS]
    for each in tables:
        listed = [*strings(each.get("dependencies")), *strings(each.get("extra-dependencies"))]
        found += [(requirement,) for requirement in requirements(listed)]
        for member in strings(table(each, "workspace").get("members") or each.get("workspace.members")):
            folder = member.strip("/")
            if _FOLDER.fullmatch(folder) and ".." not in folder and project.has(f"{folder}/pyproject.toml"):
                found.append(("-e", f"./{folder}"))
    environment = Environment(path, heading)
    environment.extras = [name for each in tables for name in strings(each.get("features"))]
    scripts: dict[str, Any] = {}
    for each in tables:
        scripts |= table(each, "scripts")
        environment.variables |= {key: string(value) for key, value in table(each, "env-vars").items()}
    script = next((script for script in _SCRIPTS if script in scripts), None)
    if script is not None:
        environment.commands = _commands(scripts, script, 0)
    evidence = project.evidence(path, heading, f"hatch environment {name}")
    tests = candidate(project, environment, evidence) if environment.commands else None
    if not found and tests is None:
        return None
    return EnvironmentFacts(
        evidence=Evidence(path=path, line=evidence.line, text=evidence.text),
        requirements=tuple(dict.fromkeys(found)),
        extras=extras_of(environment),
        groups=tuple(name for each in tables for name in strings(each.get("dependency-groups"))),
        candidate=tests,
    )


def _commands(scripts: dict[str, Any], name: str, depth: int) -> list[str]:
    """Return the commands of a script, with those of other scripts in place of their names."""
    value = scripts.get(name)
    found: list[str] = []
    for line in strings(value) if isinstance(value, list) else [string(value)]:
        first, _, rest = line.partition(" ")
        if first in scripts and depth < _DEEPEST:
            found += [f"{each} {rest}".strip() for each in _commands(scripts, first, depth + 1)]
        elif line:
            found.append(line)
        if len(found) > _MOST_COMMANDS:
            break
    return found
