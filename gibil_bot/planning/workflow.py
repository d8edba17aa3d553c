"""The values of a parsed file: a workflow, and a repository's `.gibil.yml`. Immutable; created by `schema.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gibil_bot.agent_task import AgentPlan
from gibil_bot.model import Cache, CommitPlan, MachineResources

PULL_REQUEST_ACTIONS = ("opened", "synchronize", "reopened")
"""The actions of a pull request that can start a workflow."""
SHIPPED_ENGINES = ("claude", "codex", "gemini", "opencode", "command")
"""The engines that agents may name if the operator has added none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An argument of a command: `/gibil deploy target=staging`."""

    name: str
    description: str = ""
    default: str | None = None
    required: bool = False
    type: str = "string"
    """string | boolean | number | choice | text (what follows the command's word)"""
    options: tuple[str, ...] = ()
    pattern: str | None = None
    """What the whole value must match (see patterns.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str
    run: str | None = None
    """None if `uses` or `detect` provides the tasks, or an agent works."""
    condition: str = "success()"
    env: Mapping[str, str] = field(default_factory=dict)
    working_directory: str | None = None
    timeout_s: float | None = None
    continue_on_error: bool = False
    shell: str = "bash"
    uses: str | None = None
    detect: str = ""
    """test | lint | format: the tasks are detected in the project's files."""
    prepare: bool = False
    """It installs what later tasks need."""
    tty: bool = False
    agent: AgentPlan | None = None
    """With expressions in its prompt, and without an engine if the file names none."""
    part_of: str = ""
    """Name of the workflow's task that this task of a `.gibil.yml` replaces."""
    line: int = 1
    column: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    group: str
    cancel_in_progress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service such as a database that runs alongside the tasks, on 127.0.0.1 of the machine."""

    name: str
    image: str
    """As container engines name it: `postgres:16`."""
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[tuple[int, int], ...] = ()
    """(port on the machine, port in the service)"""
    line: int = 1
    column: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectSetUp:
    """The keys with which both kinds of files describe what a project needs in addition to its tasks."""

    path: str
    """Where the file is, for messages."""
    runtime: Mapping[str, str] | None = None
    """python | node | go … → the wanted version, or a prefix of it. None: the file doesn't have this key."""
    packages: tuple[str, ...] | None = None
    services: tuple[Service, ...] = ()
    checkout: Mapping[str, int | str | bool] = field(default_factory=dict)
    """The fields of model.Checkout that the file sets."""
    caches: tuple[Cache, ...] | None = None

    def overridden_by(self, other: ProjectSetUp | None) -> ProjectSetUp:
        """Return this with the values of `other` where it has any: each runtime, service and option, or the whole list."""
        if other is None:
            return self
        services = {service.name: service for service in (*self.services, *other.services)}
        no_runtimes = other.runtime is not None and not other.runtime  # `runtime: none`
        return ProjectSetUp(
            path=other.path,
            runtime={} if no_runtimes else {**(self.runtime or {}), **(other.runtime or {})},
            packages=self.packages if other.packages is None else other.packages,
            services=tuple(services.values()),
            checkout={**self.checkout, **other.checkout},
            caches=self.caches if other.caches is None else other.caches,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow(ProjectSetUp):
    """One workflow file. At least one of `command` and `pull_request` defines when it runs."""

    name: str
    """The file's name without `.yml`."""
    title: str
    description: str = ""
    command: str | None = None
    pull_request: tuple[str, ...] = ()
    """The actions that start it: opened, synchronize, reopened."""
    inputs: tuple[Input, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    timeout_s: float | None = None
    concurrency: Concurrency | None = None
    machine: MachineResources = field(default_factory=MachineResources)
    comment: str = "always"
    commit: CommitPlan | None = None
    """With expressions that are evaluated when a run is planned."""
    max_attempts: int = 0
    """How often the bot's own commits may start it, per pull request and hour; 0: never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFile(ProjectSetUp):
    """A repository's `.gibil.yml`: what the project needs, and its tasks."""

    env: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()
    machine: MachineResources = field(default_factory=MachineResources)
