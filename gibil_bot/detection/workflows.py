"""Quotes of the project's own CI and documents: what its people run to test it."""

from __future__ import annotations

from gibil_bot.detection.detected import Quote
from gibil_bot.detection.project import Project

WANTED = (*(".github/workflows/*.yml", ".github/workflows/*.yaml", ".gitlab-ci.yml", ".travis.yml", "AGENTS.md"),)


def quotes(project: Project, purpose: str) -> tuple[Quote, ...]:
    """Return the commands that test (or lint) the project, the most relevant first."""
    return ()
