"""Shell: bats, shellspec, and test scripts that the project's CI runs."""

from __future__ import annotations

import posixpath
import re

from gibil_bot.detection import ci_hints
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime
from gibil_bot.detection.languages import LAST_RESORT, is_only
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import quoted

_SCRIPT = re.compile(
    r"(?:(?:bash|sh|dash|zsh) )?(?:\./)?"
    r"((?:[\w.-]+/){0,9}(?:(?:run[-_]?)?(?:unit)?tests?[\w-]*|(?:(?<=test/)|(?<=tests/))run[\w-]*)(?:\.sh|\.bash)?)"
)
_USUAL = (
    *(
        "test/run.sh",
        "tests/run.sh",
        "test/run",
        "tests/run",
        "test/run_tests.sh",
        "tests/run_tests.sh",
        "test/test.sh",
        "tests/test.sh",
    ),
    *(
        "run_tests.sh",
        "run-tests.sh",
        "runtests.sh",
        "run_tests",
        "run-tests",
        "runtests",
        "test_runner",
        "test.sh",
        "tests.sh",
    ),
)
_SUITES = ("test", "tests", "spec")
WANTED = ("package.json", "Makefile", *_USUAL, *ci_hints.WANTED)


def facts(project: Project) -> Facts | None:
    tests: list[Candidate] = []
    rank = 60 if is_only(project) else LAST_RESORT
    runtimes: tuple[Runtime, ...] = ()
    for folder in _SUITES:
        inside = sorted(path for path in project.paths if path.startswith(f"{folder}/") and path.endswith(".bats"))
        suites = [path for path in inside if path.count("/") == 1] or [path for path in inside if "fixtures" not in path]
        if suites:
            nested = [f"{folder}/{library}/bin/bats" for library in ("bats", "libs/bats", "lib/bats", "bats-core")]
            own = project.first("bin/bats", *nested)
            program = f"./{quoted(own)}" if own else "bats"
            recursive = "" if suites[0].count("/") == 1 else "-r "
            run = f"{program} {recursive}{folder}"
            tests.append(Candidate(run=run, evidence=Evidence(path=suites[0]), needs=() if own else ("bats",), rank=rank))
            runtimes = () if own else (Runtime(name="bats", evidence=Evidence(path=suites[0])),)
            break
    if project.has(".shellspec"):
        tests.append(Candidate(run="shellspec", evidence=Evidence(path=".shellspec"), needs=("shellspec",), rank=rank))
    tests += _scripts(project, rank)
    if not tests:
        return None
    lines = (line.partition("#")[0] for path in project.present(_USUAL) for _, line in project.lines(path))
    # The machines of GitHub's CI have it.
    packages = ("shellcheck",) if is_only(project) and any("shellcheck" in line for line in lines) else ()
    return Facts(ecosystem="Shell", tests=tuple(tests), runtimes=runtimes, packages=packages)


def _scripts(project: Project, rank: int) -> list[Candidate]:
    """Return the test script of the repository that its CI runs, or one with a usual name."""
    folder, job = "", ("", "")
    for command in ci_hints.commands(project):
        if (command.job, command.folder) != job:
            folder, job = command.folder, (command.job, command.folder)
        if changed := re.fullmatch(r"cd ([\w./-]+)", command.run):
            folder = posixpath.normpath(posixpath.join(folder, changed[1]))
        found = _SCRIPT.fullmatch(command.run)
        if found is None:
            continue
        path = posixpath.normpath(posixpath.join(folder, found[1]))
        if path not in project.paths:
            path, folder = found[1], ""
        if path in project.paths:
            interpreter = command.run.split()[0] if " " in command.run else ""
            return [Candidate(run=_run(found[1], folder, interpreter), evidence=command.evidence(), rank=max(rank, 65))]
    if usual := project.first(*_USUAL):
        return [Candidate(run=_run(usual), evidence=Evidence(path=usual), rank=max(rank, 66))]
    return []


def _run(path: str, folder: str = "", interpreter: str = "") -> str:
    script = path.endswith((".sh", ".bash"))
    command = f"{interpreter or 'bash'} {quoted(path)}" if script or interpreter else f"./{quoted(path)}"
    return f"cd {quoted(folder)} && {command}" if folder else command
