"""Makefile, justfile and Taskfile: targets that test or lint the whole project."""

from __future__ import annotations

from gibil_bot.detection.facts import Facts
from gibil_bot.detection.project import Project

WANTED = ("GNUmakefile", "makefile", "Makefile", "justfile", "Justfile", ".justfile", "Taskfile.yml", "Taskfile.yaml")


def facts(project: Project) -> Facts | None:
    return None
