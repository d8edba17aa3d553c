"""Shell: bats, shellspec, and test scripts that the project's CI runs."""

from __future__ import annotations

import re

from gibil_bot.detection import ci_hints
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime
from gibil_bot.detection.languages import LAST_RESORT, is_only
from gibil_bot.detection.project import Project
from gibil_bot.detection.values import quoted

WANTED = ("package.json", "Makefile", *ci_hints.WANTED)

_SCRIPT = re.compile(r"(?:(?:bash|sh|dash|zsh) )?(?:\./)?((?:[\w.-]+/)*(?:run[-_]?)?tests?[\w-]*(?:\.sh|\.bash)?)")
_SUITES = ("test", "tests", "spec")


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
    return Facts(ecosystem="Shell", tests=tuple(tests), runtimes=runtimes) if tests else None


def _scripts(project: Project, rank: int) -> list[Candidate]:
    """Return the test scripts of the repository that its CI runs."""
    for command in ci_hints.commands(project):
        found = _SCRIPT.fullmatch(command.run)
        if found and not command.folder and found[1] in project.paths:
            interpreter = command.run.split()[0] if " " in command.run else "bash"
            run = f"{interpreter} {quoted(found[1])}" if found[1].endswith((".sh", ".bash")) else f"./{quoted(found[1])}"
            return [Candidate(run=run, evidence=command.evidence(), rank=max(rank, 65))]
    return []
