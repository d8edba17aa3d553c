"""The variables that the CI's job for tests sets, such as a time zone: tests may rely on them.

Only values that mean the same on a machine: no expressions, and no variables of the CI or of package managers, and no paths.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

from gibil_bot.detection import ci_files, workflows
from gibil_bot.detection.ci_files import Job
from gibil_bot.detection.facts import Evidence
from gibil_bot.detection.project import Project
from gibil_bot.scripts.task_script import reserved_name

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_MOST = 20
_LONGEST = 500
_OF_ANOTHER_PLACE = re.compile(
    r"(GITHUB|RUNNER|ACTIONS|GIBIL|CODECOV|COVERALLS|SONAR|AWS|AZURE|GCP|DOCKER|SSH|GIT|LC|LD)_.*"
    r"|(UV|PIP|PIPX|PIPENV|POETRY|PDM|HATCH|CONDA|MAMBA|NPM|YARN|PNPM|COREPACK|BUNDLE|GEM|RUSTUP|GRADLE|MAVEN|M2|TURBO|NX)_.*"
    r"|(GOPROXY|GOSUMDB|GOPRIVATE|GONOSUMDB|GONOPROXY|GOTOOLCHAIN|GOPATH|GOROOT|PYTHONHOME|VIRTUAL_ENV|TOXENV|TOX_ENV|NOXSESSION)"
    r"|(PATH|HOME|SHELL|USER|LANG|LANGUAGE|TERM|PWD|CI|TMPDIR|DISPLAY|DEBIAN_FRONTEND)"
    r"|.*(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|CACHE|VERSION|_DIR|_HOME|_URL|_URI|_DSN|_HOST|_PORT)\w*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CIEnvironment:
    """Variables for the tests, and where they are set."""

    variables: Mapping[str, str] = field(default_factory=dict)
    evidence: Evidence | None = None


def read(project: Project) -> CIEnvironment:
    """Return the variables of the job that tests. Those of a job with services are left out: they name the services."""
    commands = workflows.test_job(project)
    job = next((job for job in ci_files.jobs(project) if commands and job.id == commands[-1].job), None)
    if job is None or ci_files.get(job.node, "services") is not None:
        return CIEnvironment()
    found = {name: node for name, node in _nodes(job, commands[-1].run).items() if _fits(name)}
    if not found:
        return CIEnvironment()
    variables = {name: ci_files.value(node) for name, node in found.items()}
    line = next(iter(found.values())).start_mark.line + 1
    shown = " ".join(f"{name}={value}" for name, value in variables.items())
    return CIEnvironment(
        variables=variables,
        evidence=Evidence(path=job.path, line=line, text=f"its CI sets {shown[:100]}"),
    )


def of_job(job: Job, command: str) -> dict[str, str]:
    """Return all variables of a job, and of its step with that command, whose values mean the same outside the workflow."""
    return {name: ci_files.value(node) for name, node in _nodes(job, command).items()}


def literal(node: yaml.Node | None) -> dict[str, str]:
    """Return the variables of one `env:` whose values mean the same outside the workflow."""
    return {name: ci_files.value(value) for name, value in _literal(node).items()}


def _nodes(job: Job, command: str) -> dict[str, yaml.Node]:
    found = _literal(job.workflow_env) | _literal(ci_files.get(job.node, "env"))
    for step in job.steps():
        if any(run == command for run in ci_files.script(ci_files.get(step, "run"))):
            found |= _literal(ci_files.get(step, "env"))
    return dict(list(found.items())[:_MOST])


def _literal(node: yaml.Node | None) -> dict[str, yaml.Node]:
    found: dict[str, yaml.Node] = {}
    for name, value in ci_files.items(node):
        text = ci_files.value(value)
        if (
            isinstance(value, yaml.ScalarNode)
            and _VARIABLE.fullmatch(name)
            and "${{" not in text
            and text.isprintable()
            and len(text) <= _LONGEST
        ):
            found[name] = value
    return found


def _fits(name: str) -> bool:
    return not _OF_ANOTHER_PLACE.fullmatch(name) and not reserved_name(name)
