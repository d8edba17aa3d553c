"""Git submodules that the project's CI checks out as well. They have to exist before anything is installed."""

from __future__ import annotations

import re

from gibil_bot.detection import ci_hints
from gibil_bot.detection.facts import Facts, Step
from gibil_bot.detection.languages import short_lines
from gibil_bot.detection.project import Project

WANTED = (".gitmodules", *ci_hints.WANTED)

_PATH = re.compile(r"\s*path\s*=\s*(\S+)\s*")
_UPDATE = "git -c url.https://github.com/.insteadOf=git@github.com: submodule update --init --recursive --jobs 4"
"""Machines have no SSH key for GitHub. Nothing is fetched if the checkout has the submodules already."""


def facts(project: Project) -> Facts | None:
    evidence = ci_hints.submodules(project) if project.has(".gitmodules") else None
    if evidence is None:
        return None
    paths = [found[1] for _, line in short_lines(project, ".gitmodules") if (found := _PATH.fullmatch(line))]
    # the entry of a submodule in the tree is its commit
    inputs = (".gitmodules", *(path for path in paths[:100] if path in project.paths))
    short = "git submodule update --init --recursive"
    return Facts(ecosystem="Git", steps=(Step(run=_UPDATE, shown=short, evidence=evidence, inputs=inputs),))
