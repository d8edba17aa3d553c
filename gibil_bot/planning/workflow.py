"""The values of a parsed file: a workflow, and a repository's `.gibil.yml`. Immutable; created by `schema.py`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gibil_bot.model import MachineResources

PULL_REQUEST_ACTIONS = ("opened", "synchronize", "reopened")
"""The actions of a pull request that can start a workflow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An argument of a command: `/gibil deploy target=staging`."""

    name: str
    description: str = ""
    default: str | None = None
    required: bool = False
    type: str = "string"
    """string | boolean | number | choice"""
    options: tuple[str, ...] = ()
    pattern: str | None = None
    """What the whole value must match (see patterns.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str
    run: str | None = None
    """None only if `uses` provides the tasks."""
    condition: str = "success()"
    env: Mapping[str, str] = field(default_factory=dict)
    working_directory: str | None = None
    timeout_s: float | None = None
    continue_on_error: bool = False
    shell: str = "bash"
    uses: str | None = None
    line: int = 1
    column: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Concurrency:
    group: str
    cancel_in_progress: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workflow:
    """One workflow file. At least one of `command` and `pull_request` defines when it runs."""

    name: str
    """The file's name without `.yml`."""
    path: str
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
class RepositoryFile:
    """A repository's `.gibil.yml`: what the project needs, and its tasks."""

    path: str
    runtime: Mapping[str, str] = field(default_factory=dict)
    """python | node | go → the wanted version, or a prefix of it."""
    packages: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    tasks: tuple[Task, ...] = ()
    machine: MachineResources = field(default_factory=MachineResources)
