"""The result of detection: tasks for a run, and their reasons for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gibil_bot.detection.facts import Facts

Kind = Literal["prepare", "run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectedTask:
    """One task: `runtime` and `install` prepare, `test` or `lint` runs."""

    name: str
    run: str
    """The script."""
    kind: Kind
    shell: str = "bash"
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A command that the project's own CI or documents name."""

    command: str
    path: str
    line: int
    is_preparation: bool = False
    """Whether it prepares the project instead of testing it."""
    is_service: bool = False
    """Whether it isn't a command, but an image that a job's `services` name."""

    def __str__(self) -> str:
        return f"`{self.command}` ({self.path}:{self.line})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """What would run, and why."""

    facts: tuple[Facts, ...]
    """Of all folders; the paths in their evidence are those of the repository."""
    runtime: Mapping[str, str]
    """Name → version or the beginning of one; empty if any version will do."""
    packages: tuple[str, ...]
    tasks: tuple[DetectedTask, ...]
    """In order. There is always a last one, named `test` or `lint`; if nothing was found, it says so and fails (a missing
    linter is neutral)."""
    evidence: tuple[str, ...]
    """What would be done and which file and line says so, one line each, for people."""
    quotes: tuple[Quote, ...]
    """What the project's own CI runs, the most relevant first."""
    suggestion: str
    """A `.gibil.yml`, ready to paste; empty if nothing is known."""
    key_files: tuple[str, ...]
    """The files that decide what is installed."""
    caches: tuple[str, ...]
    """Folders of download caches."""
    submodules: str = ""
    """What `checkout.submodules` has to be; empty: no matter."""
    problem: str | None = None
    """Why nothing can be tested or linted, in one sentence; None if something can."""
