"""Git submodules on GitHub that the project's CI checks out as well: `checkout.submodules` has to name them."""

from __future__ import annotations

import re

from gibil_bot.detection import ci_hints
from gibil_bot.detection.facts import Facts
from gibil_bot.detection.languages import short_lines
from gibil_bot.detection.project import Project

WANTED = (".gitmodules", *ci_hints.WANTED)

_URL = re.compile(r"\s*url\s*=\s*(\S+)\s*")
_ON_GITHUB = re.compile(r"(https://github\.com/|git@github\.com:|ssh://git@github\.com/|\.\.?/)[!-~]+")


def facts(project: Project) -> Facts | None:
    evidence = ci_hints.submodules(project) if project.has(".gitmodules") else None
    if evidence is None:
        return None
    addresses = [found[1] for _, line in short_lines(project, ".gitmodules") if (found := _URL.fullmatch(line))]
    if not addresses or not all(_ON_GITHUB.fullmatch(address) for address in addresses):
        return None
    return Facts(ecosystem="Git", submodules="recursive", submodules_evidence=(evidence,))
