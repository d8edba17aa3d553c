"""Git submodules on GitHub that the CI's jobs for tests check out as well: `checkout.submodules` has to name them."""

from __future__ import annotations

import re

from gibil_bot.detection import ci_files, workflows
from gibil_bot.detection.facts import Evidence, Facts
from gibil_bot.detection.languages import short_lines
from gibil_bot.detection.project import Project

WANTED = (".gitmodules", *ci_files.WORKFLOWS)

_URL = re.compile(r"\s*url\s*=\s*(\S+)\s*")
_ON_GITHUB = re.compile(r"(https://github\.com/|git@github\.com:|ssh://git@github\.com/|\.\.?/)[!-~]+")


def facts(project: Project) -> Facts | None:
    evidence = _evidence(project) if project.has(".gitmodules") else None
    if evidence is None:
        return None
    addresses = [found[1] for _, line in short_lines(project, ".gitmodules") if (found := _URL.fullmatch(line))]
    if not addresses or not all(_ON_GITHUB.fullmatch(address) for address in addresses):
        return None
    return Facts(ecosystem="Git", submodules="recursive", submodules_evidence=(evidence,))


def _evidence(project: Project) -> Evidence | None:
    """Return where a job that tests checks out submodules. Jobs for other purposes, such as documentation, don't matter."""
    jobs = {job.id: job for job in ci_files.jobs(project)}
    for job in (jobs[name] for name in workflows.jobs_that_test(project) if name in jobs):
        for step in job.steps():
            for wanted, line in ci_files.values(ci_files.get(step, "with", "submodules")):
                if wanted in ("true", "recursive"):
                    return Evidence(path=job.path, line=line, text="its CI checks out submodules")
        for command in job.commands():
            if command.run.startswith("git submodule update --init"):
                return Evidence(path=job.path, line=command.line, text=f"its CI runs `{command.run}`")
    return None
