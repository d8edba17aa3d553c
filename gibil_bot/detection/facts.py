"""Facts about a project, each with the file and line that supports it. Values only; one module per ecosystem makes them.

Preparing and testing are separate questions: which runtimes a project needs, how its dependencies are installed (from every
manifest that exists), and which commands test it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Where a file says something."""

    path: str
    line: int | None = None
    """Counts from 1; None: the file as a whole, or its existence."""
    text: str = ""
    """What the file states, shortened: `requires-python >=3.10`."""

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        return f"{place} ({self.text})" if self.text else place


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """A program that has to exist before anything is installed: a language, or a package manager."""

    name: str
    """A name that the machine's tool `gibil-runtime` knows: python, node, go, rust, ruby, java, php, uv, pnpm, yarn …"""
    version: str = ""
    """A version or the beginning of one: `3.12`. Empty: the machine's, else the newest stable one."""
    accepts: tuple[str, ...] = ()
    """Other beginnings that will do if the machine has such a version already: (`3.13`, `3.14`)."""
    optional: bool = False
    """Whether installing can go on without it."""
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One command that installs dependencies, run at the top of the checkout by `bash -e`."""

    run: str
    shown: str = ""
    """The command for people, if `run` is longer than that."""
    short: str = ""
    """The command for a `.gibil.yml` that people keep, if it isn't `run`."""
    evidence: Evidence
    inputs: tuple[str, ...] = ()
    """The manifests and lock files that decide what it installs: a prepared machine is reused only while they are the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A command that may test, lint or format the project. Whether it can run is known only on the prepared machine."""

    run: str
    """One line of shell, to which the requester's arguments are appended, or that has `"$@"` where they belong."""
    shown: str = ""
    """The command for people, if it isn't `run`."""
    evidence: Evidence
    needs: tuple[str, ...] = ()
    """Programs that have to be on PATH once the project is prepared; otherwise the next candidate is tried."""
    check: str = ""
    """A shell condition that has to hold as well, without side effects. Empty: none."""
    otherwise: str = ""
    """What it means if the condition doesn't hold, for people."""
    rank: int = 50
    """Candidates of all ecosystems are tried by rank, the lowest first; see combine.py for what the numbers mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What one ecosystem's files say."""

    ecosystem: str
    """Its name for people: Python, Node.js, Go …"""
    runtimes: tuple[Runtime, ...] = ()
    steps: tuple[Step, ...] = ()
    tests: tuple[Candidate, ...] = ()
    linters: tuple[Candidate, ...] = ()
    formatters: tuple[Candidate, ...] = ()
    packages: tuple[str, ...] = ()
    """Packages of Debian and Ubuntu that building or testing needs."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment of the install and test tasks."""
    caches: tuple[str, ...] = ()
    """Folders of download caches: `~/.cache/uv`."""
    submodules: str = ""
    """`true` or `recursive`: the submodules have to be checked out. Empty: they don't."""
    submodules_evidence: tuple[Evidence, ...] = ()
    problems: tuple[Evidence, ...] = ()
    """Manifests that can't be read, with the reason as the text."""

    def candidates(self, purpose: str) -> tuple[Candidate, ...]:
        """Return the commands for that purpose: test | lint | format."""
        return {"test": self.tests, "lint": self.linters, "format": self.formatters}[purpose]

    def inside(self, prefix: str) -> Facts:
        """Return these facts about the folder `prefix` with the repository's own paths."""

        def moved(evidence: Evidence) -> Evidence:
            return replace(evidence, path=prefix + evidence.path)

        return replace(
            self,
            runtimes=tuple(replace(each, evidence=moved(each.evidence)) for each in self.runtimes),
            steps=tuple(
                replace(each, evidence=moved(each.evidence), inputs=tuple(prefix + path for path in each.inputs))
                for each in self.steps
            ),
            tests=tuple(replace(each, evidence=moved(each.evidence)) for each in self.tests),
            linters=tuple(replace(each, evidence=moved(each.evidence)) for each in self.linters),
            formatters=tuple(replace(each, evidence=moved(each.evidence)) for each in self.formatters),
            problems=tuple(moved(each) for each in self.problems),
        )
