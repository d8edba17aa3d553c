"""Python: which version, how dependencies are installed, which command tests."""

from __future__ import annotations

from gibil_bot.detection.facts import Facts
from gibil_bot.detection.project import Project

WANTED = ("pyproject.toml",)


def facts(project: Project) -> Facts | None:
    return None
