"""A `.gibil.yml` that people can paste, made from facts or from the project's CI."""

from __future__ import annotations

from gibil_bot.detection.combine import Combined
from gibil_bot.detection.detected import Quote
from gibil_bot.detection.project import Project


def from_facts(found: Combined) -> str:
    """Return the file, formatted as prettier does."""
    return ""


def from_quotes(project: Project, quotes: tuple[Quote, ...]) -> str:
    """Return the file; empty if there is nothing to quote."""
    return ""
