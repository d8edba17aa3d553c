"""Combines the facts of all ecosystems and folders into the tasks `runtime`, `install` and `test` (or `lint`, or `format`).

Which command can run is known only on the prepared machine, so the last task has all candidates, and runs
the first that can.
Their ranks, the lowest first:

    10–19  covers the whole project: a target `test` (10) or `check` (12) of a Makefile, justfile or Taskfile, a lint target,
           pre-commit. Nothing else runs after it.
    20–29  the command that a tool for test environments (tox, nox) would run
    30–39  the package's own script: `test` in package.json, composer.json, a Rakefile
    40–49  a framework's runner: Django's runtests.py and manage.py
    50–59  the language's usual runner, configured or not: pytest, go test, cargo test, ctest, rspec
    60–69  a guess: unittest's discovery, bats on a folder
    80–99  the last resort, tried only if nothing else could run

From 20 to 79 each ecosystem (of each folder) runs its own first candidate that can run; the task fails if one of them fails.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gibil_bot.detection.ci_environment import CIEnvironment
from gibil_bot.detection.ci_services import CIServices
from gibil_bot.detection.detected import DetectedTask, Detection, Quote
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.python import VENV
from gibil_bot.humanize import visible
from gibil_bot.scripts.templates import text

Purpose = Literal["test", "lint", "format"]

COVERS_ALL = 20
LAST_RESORTS = 80
_ALL_EVIDENCE = 60


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder with manifests, and the facts about it. `prefix`: `backend/`, or empty for the top of the checkout."""

    prefix: str
    facts: tuple[Facts, ...]

    @property
    def path(self) -> str:
        return self.prefix.rstrip("/") or "."


@dataclass(frozen=True, slots=True)
class Group:
    """The candidates of one ecosystem in one folder, by rank."""

    name: str
    path: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Combined:
    """The facts that matter for a purpose."""

    purpose: Purpose
    folders: tuple[Folder, ...]
    runtimes: tuple[Runtime, ...]
    packages: tuple[str, ...]
    steps: tuple[tuple[str, Step], ...]
    """(folder, step)"""
    groups: tuple[Group, ...]
    env: Mapping[str, str]
    problem: str | None
    ci_packages: tuple[str, ...] = ()
    """What the project's CI installs besides; those that a distribution doesn't have are left out."""
    ci_evidence: Evidence | None = None
    services: CIServices = field(default_factory=lambda: CIServices(env={}))
    """What the project's CI starts for the tests; machines don't, unless a `.gibil.yml` says so."""
    ci_environment: CIEnvironment = field(default_factory=CIEnvironment)
    """Further variables of the tests."""

    @property
    def test_env(self) -> dict[str, str]:
        """The environment of the test task."""
        return {**self.ci_environment.variables, **self.env}


def combine(
    folders: Sequence[Folder],
    purpose: Purpose,
    ci_packages: tuple[tuple[str, ...], Evidence | None] = ((), None),
    services: CIServices | None = None,
    environment: CIEnvironment | None = None,
) -> Combined:
    """Choose what has to be prepared for the purpose, and the candidates."""
    groups = []
    for folder in folders:
        for facts in folder.facts:
            candidates = facts.candidates(purpose)
            if candidates:
                name = f"{facts.ecosystem} in {folder.path}" if folder.prefix else facts.ecosystem
                groups.append(Group(name, folder.path, tuple(sorted(candidates, key=lambda each: each.rank))))
    # A target of a Makefile may call anything; other linters need their own ecosystem only.
    targets = purpose == "lint" and any(not facts.runtimes and facts.linters for folder in folders for facts in folder.facts)
    needed = [
        (folder, facts)
        for folder in folders
        for facts in folder.facts
        if groups and (facts.tests or facts.steps if purpose == "test" or targets else facts.candidates(purpose))
    ]
    runtimes: dict[str, Runtime] = {}
    for _, facts in needed:
        for runtime in facts.runtimes:
            known = runtimes.get(runtime.name)
            if known is None or (runtime.version and not known.version):
                runtimes[runtime.name] = runtime
    env: dict[str, str] = {}
    for _, facts in needed:
        env |= {name: value for name, value in facts.env.items() if name not in env}
    packages = tuple(dict.fromkeys(package for _, facts in needed for package in facts.packages))
    more, ci_evidence = ci_packages if needed and purpose == "test" else ((), None)
    return Combined(
        purpose=purpose,
        folders=tuple(folders),
        runtimes=tuple(runtimes.values()),
        packages=packages,
        steps=tuple(
            (folder.path, step)
            for folder, facts in needed
            for step in facts.steps
            if purpose != "format" or any(each.needs != ("gofmt",) and each.needs != ("rustfmt",) for each in facts.formatters)
        ),
        groups=tuple(groups),
        env=env,
        problem=None if groups else _problem(folders, purpose),
        ci_packages=tuple(package for package in more if package not in packages),
        ci_evidence=ci_evidence,
        services=services if services is not None and purpose == "test" else CIServices(env={}),
        ci_environment=environment if environment is not None and groups and purpose == "test" else CIEnvironment(),
    )


def detection(found: Combined, quotes: tuple[Quote, ...], suggestion: str) -> Detection:
    """Return the tasks, and their reasons for people."""
    facts = tuple(facts for folder in found.folders for facts in folder.facts)
    keys = [path for _, step in found.steps for path in step.inputs]
    keys += [runtime.evidence.path for runtime in found.runtimes]
    if submodules(found):
        keys.append(".gitmodules")
    return Detection(
        facts=facts,
        runtime={runtime.name: runtime.version for runtime in found.runtimes},
        packages=(*found.packages, *found.ci_packages),
        tasks=tuple(_tasks(found, quotes, suggestion)),
        evidence=tuple(_evidence(found)),
        quotes=quotes,
        suggestion=suggestion,
        key_files=tuple(dict.fromkeys(keys)),
        caches=tuple(dict.fromkeys(cache for each in facts for cache in each.caches)),
        submodules=submodules(found),
        problem=found.problem,
    )


def submodules(found: Combined) -> str:
    """Return what `checkout.submodules` has to be; empty if nothing says so."""
    return next((facts.submodules for folder in found.folders for facts in folder.facts if facts.submodules), "")


def _tasks(found: Combined, quotes: tuple[Quote, ...], suggestion: str) -> Iterator[DetectedTask]:
    if found.runtimes or found.packages or found.ci_packages:
        yield DetectedTask(name="runtime", run=_runtime_script(found), kind="prepare")
    if found.steps:
        yield DetectedTask(name="install", run=_install_script(found), kind="prepare", env=found.env)
    run = _test_script(found, quotes, suggestion)
    yield DetectedTask(name=found.purpose, run=run, kind="run", env=found.test_env)


def _runtime_script(found: Combined) -> str:
    parts = [text("detect_begin")]
    if found.packages:
        # The program for packages ends with `exit`.
        parts += ["(\n", f"packages={shlex.quote(' '.join(found.packages))}\n", text("setup_packages"), ")\n"]
    if found.ci_packages:
        parts += ["install_packages() (\n", text("setup_packages"), ")\n", text("detect_packages")]
        parts.append(shlex.join(("optional_packages", visible(str(found.ci_evidence)), *found.ci_packages)) + "\n")
    if found.runtimes:
        parts.append(text("detect_runtime"))
    for runtime in found.runtimes:
        need = "optional" if runtime.optional else "required"
        accepts = [each for each in runtime.accepts if each != runtime.version]
        words = ("runtime", runtime.name, need, str(runtime.evidence), runtime.version, *accepts)
        parts.append(shlex.join(visible(word) for word in words) + "\n")
    python = next((runtime for runtime in found.runtimes if runtime.name == "python"), None)
    if python is not None:
        version = python.version or next(iter(python.accepts), "")
        parts += [f"venv={VENV} version={shlex.quote(version)}\n", text("detect_venv")]
    return "".join(parts)


def _install_script(found: Combined) -> str:
    parts = [text("detect_begin")]
    for path, step in found.steps:
        # A subshell, so that a step changes neither the folder nor the variables of the next one.
        parts += [_say(step.evidence, step.shown or step.run), "(\n", _change_folder(path), step.run.rstrip("\n"), "\n)\n"]
    return "".join(parts)


def _test_script(found: Combined, quotes: tuple[Quote, ...], suggestion: str) -> str:
    parts = [text("detect_begin")]
    for service in found.services.services:
        reason = f"{service.evidence}, which only services of a .gibil.yml start here"
        parts.append(f"say {shlex.quote(visible(reason))}\n")
    if found.ci_environment.evidence is not None:
        parts.append(f"say {shlex.quote(f'found {visible(str(found.ci_environment.evidence))}')}\n")
    if found.groups:
        parts += [text("detect_untracked")] if found.purpose == "format" else []
        parts.append(text("detect_test"))
    covering = [(group, each) for group in found.groups for each in group.candidates if each.rank < COVERS_ALL]
    parts += [_candidate("only", group, each) for group, each in sorted(covering, key=lambda pair: pair[1].rank)]
    own = [(group, [each for each in group.candidates if COVERS_ALL <= each.rank < LAST_RESORTS]) for group in found.groups]
    own = [(group, candidates) for group, candidates in own if candidates]
    for group, candidates in own:
        if len(own) > 1:
            parts.append(f"group {shlex.quote(visible(group.name))}\n")
        parts += [_candidate("one" if len(own) > 1 else "only", group, each) for each in candidates]
    if len(own) > 1:
        parts.append("finish\n")
    last = [(group, each) for group in found.groups for each in group.candidates if each.rank >= LAST_RESORTS]
    parts += [_candidate("only", group, each) for group, each in sorted(last, key=lambda pair: pair[1].rank)]
    parts.append(_nothing(found, quotes, suggestion))
    return "".join(parts)


def _nothing(found: Combined, quotes: tuple[Quote, ...], suggestion: str) -> str:
    """Return the end of the script, for a machine on which no candidate can run."""
    problem = found.problem or f"none of the commands that were found to {found.purpose} this project can run on this machine"
    if found.purpose != "test" and found.problem is not None:
        reason = f"{problem}; {_INSTEAD[found.purpose]}"
        return f'say {shlex.quote(reason)}\necho {shlex.quote(reason)} >"$GIBIL_NEUTRAL"\n'
    # 127: as of a command that doesn't exist, so that reports quote the CI although something was found.
    status = 1 if found.problem else 127
    lines = [problem]
    lines += [f"its CI runs {quote}" for quote in [each for each in quotes if not each.is_preparation][:3]]
    if found.purpose == "test":
        lines += ["write what is right into a .gibil.yml" + (", such as:" if suggestion else "; see gibil init --repo")]
    else:
        lines += [f"write a workflow .gibil/workflows/{found.purpose}.yml that runs what is right"]
    script = "".join(f"say {shlex.quote(visible(line))} >&2\n" for line in lines)
    return f"{script}printf '%s' {shlex.quote(suggestion)} >&2\nexit {status}\n" if suggestion else f"{script}exit {status}\n"


def _candidate(function: str, group: Group, candidate: Candidate) -> str:
    if not all(word.isprintable() for word in (candidate.check, *candidate.needs)):
        return ""  # a hostile name: no tool of a project has control characters in its own
    # The requester's arguments replace "$@" in a command that has it; others get them at the end.
    command = candidate.run if '"$@"' in candidate.run else f'{candidate.run} "$@"'
    shown = visible(candidate.shown or candidate.run.replace(' "$@"', ""))
    return (
        shlex.join(
            (
                function,
                group.path,
                visible(str(candidate.evidence)),
                shown,
                command,
                candidate.check,
                visible(candidate.otherwise),
                *candidate.needs,
            )
        )
        + "\n"
    )


def _change_folder(path: str) -> str:
    return "" if path == "." else f"cd -- {shlex.quote(path)}\n"


def _say(evidence: Evidence, command: str) -> str:
    return f"say {shlex.quote(f'found {visible(str(evidence))} → {visible(command)}')}\n"


def _evidence(found: Combined) -> Iterator[str]:
    lines = [
        f"checkout: submodules {facts.submodules} ← {evidence}"
        for folder in found.folders
        for facts in folder.facts
        for evidence in facts.submodules_evidence
    ]
    lines += [
        f"runtime: {runtime.name}{' ' + runtime.version if runtime.version else ''} ← {runtime.evidence}"
        for runtime in found.runtimes
    ]
    if found.packages:
        lines.append(f"runtime: packages {' '.join(found.packages)}")
    if found.ci_packages:
        lines.append(f"runtime: packages {' '.join(found.ci_packages)} ← {found.ci_evidence}")
    lines += [f"install: {_in(path)}{step.shown or step.run} ← {step.evidence}" for path, step in found.steps]
    lines += [f"services: none ← {each.evidence}; services of a .gibil.yml" for each in found.services.services]
    if found.ci_environment.evidence is not None:
        names = ", ".join(found.ci_environment.variables)
        lines.append(f"{found.purpose}: with {names} ← {found.ci_environment.evidence}")
    for group in found.groups:
        several = f"{group.name}: " if len(found.groups) > 1 else ""
        lines += [
            f"{found.purpose}: {several}{candidate.shown or candidate.run} ← {candidate.evidence}"
            for candidate in group.candidates
        ]
    lines += [str(problem) for folder in found.folders for facts in folder.facts for problem in facts.problems]
    yield from (visible(line) for line in lines[:_ALL_EVIDENCE])


def _in(path: str) -> str:
    return "" if path == "." else f"in {path}: "


_LOOKED_FOR = {
    "test": "a test target of a Makefile, justfile or Taskfile; tox, nox, pytest or unittest; a test script in package.json; "
    "go.mod, Cargo.toml, CMakeLists.txt, a Gemfile, pom.xml, build.gradle, composer.json, *.bats",
    "lint": "a lint target or script, pre-commit, and the linters' own files",
}
_INSTEAD = {
    "lint": "add a target lint to a Makefile, a lint script to package.json, or a ruff.toml",
    "format": "configure one, such as [tool.ruff.format] in pyproject.toml, a .prettierrc, or hooks of pre-commit",
}


def _problem(folders: Sequence[Folder], purpose: Purpose) -> str:
    names = [
        facts.ecosystem
        for folder in folders
        for facts in folder.facts
        if facts.ecosystem not in ("make", "just", "Task", "Git", "Linters", "Formatters", "Shell")
    ]
    seen = f" in this {' and '.join(dict.fromkeys(names))} project" if names else ""
    if purpose != "test":
        return f"found no {'linter' if purpose == 'lint' else 'formatter'} that this project is set up for{seen}"
    return f"found no way to test this project{seen}; looked for {_LOOKED_FOR[purpose]}"
