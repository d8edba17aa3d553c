"""Requests for a machine, or for a fleet of equal machines: checked and resolved before anything is created. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gibil_bot.caps import NO_CAPS, Caps, capped, check_server_type
from gibil_bot.config import Settings
from gibil_bot.errors import UsageError
from gibil_bot.humanize import duration_setting
from gibil_bot.machines import validation
from gibil_bot.model import MachinePlan, MachineResources


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """What the user asked for. None: use the value of the repository's `.gibil.yml`, or the default."""

    name: str | None = None
    repo: str | None = None
    """URL, `owner/repo`, path or file:// URL."""
    branch: str | None = None
    ttl: validation.Duration | None = None
    size: str | None = None
    server_type: str | None = None
    location: str | None = None
    image: str | None = None
    template: str | None = None
    """The name of a template whose disk the machine starts with."""
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    made_by: str = "gibil create"
    """The command or program that creates the machine; a label of the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The disk that a machine starts with. `kind`: `plain`; `template`; `fork`, which has everything of another machine."""

    kind: Literal["plain", "template", "fork"] = "plain"
    layer: str | None = None
    environment: bytes = field(default=b"", repr=False)
    """The file with the environment of the forked machine's commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """A request that was checked and completed with the repository's `.gibil.yml` and the limits of this installation."""

    name: str
    ttl_s: int
    plan: MachinePlan
    env: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()
    """Messages for people about values that differ from the request."""
    start: Start = field(default_factory=Start)


def check(request: CreateRequest, settings: Settings, caps: Caps = NO_CAPS) -> None:
    """Check everything that doesn't depend on the repository. Raises UsageError."""
    validation.check(name=request.name, ttl=request.ttl, size=request.size, max_ttl_s=settings.max_ttl_s)
    if request.template is not None:
        validation.check_template(request.template)
        if request.image is not None:
            raise UsageError("a machine starts from a template or from an image: leave out --template or --image")
    check_server_type(request.server_type, caps)
    validation.check_environment(dict(request.env))


def resolve(request: CreateRequest, defaults: MachineResources, settings: Settings, caps: Caps = NO_CAPS) -> ResolvedRequest:
    """Complete the request with `defaults`, the `machine:` of a `.gibil.yml`; the request has precedence. Raises UsageError."""
    check(request, settings, caps)
    notes: list[str] = []
    if request.ttl is not None:
        ttl_s = validation.ttl_seconds(request.ttl, settings.max_ttl_s)
    else:
        wanted = max(defaults.ttl_s or validation.DEFAULT_TTL_S, validation.MIN_TTL_S)
        ttl_s = min(wanted, settings.max_ttl_s)
        if defaults.ttl_s is not None and ttl_s != defaults.ttl_s:
            wanted_text = duration_setting(defaults.ttl_s)
            notes.append(f"the machine's time to live is {duration_setting(ttl_s)}, not the {wanted_text} of .gibil.yml")
    requested = MachineResources(
        size=request.size or None,
        image=request.image or None,
        server_type=request.server_type or None,
        location=request.location or None,
        ttl_s=ttl_s,
    )
    plan = MachinePlan(**defaults.overridden_by(requested).specified())
    plan, cap_notes = capped(plan, caps)
    notes += cap_notes
    return ResolvedRequest(
        name=request.name or validation.random_name(), ttl_s=ttl_s, plan=plan, env=dict(request.env), notes=tuple(notes)
    )
