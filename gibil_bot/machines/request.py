"""What is asked for: one machine, or a fleet of the same, before anything exists. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gibil_bot.caps import NO_CAPS, Caps, capped, check_server_type
from gibil_bot.config import Settings
from gibil_bot.humanize import duration_setting
from gibil_bot.machines import validation
from gibil_bot.model import MachinePlan, MachineResources


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """None leaves it to the repository's `.gibil.yml`, then to the default."""

    name: str | None = None
    repo: str | None = None
    """URL, `owner/repo`, path or file:// URL."""
    branch: str | None = None
    ttl: validation.Duration | None = None
    size: str | None = None
    server_type: str | None = None
    location: str | None = None
    image: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    made_by: str = "gibil create"
    """Which command or program asked; a label of the machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """An order that was checked against what the repository says and what is allowed here."""

    name: str
    ttl_s: int
    plan: MachinePlan
    env: Mapping[str, str] = field(repr=False)
    notes: tuple[str, ...] = ()
    """What was decided otherwise than asked, for people."""


def check(order: CreateRequest, settings: Settings, caps: Caps = NO_CAPS) -> None:
    """Everything that can be said without looking at the repository. Raises UsageError."""
    validation.check(name=order.name, ttl=order.ttl, size=order.size, max_ttl_s=settings.max_ttl_s)
    check_server_type(order.server_type, caps)
    validation.check_environment(dict(order.env))


def terms(order: CreateRequest, wish: MachineResources, settings: Settings, caps: Caps = NO_CAPS) -> ResolvedRequest:
    """The order, completed by the `machine:` of a `.gibil.yml`. What the person says beats the file. Raises UsageError."""
    check(order, settings, caps)
    notes: list[str] = []
    if order.ttl is not None:
        ttl_s = validation.ttl_seconds(order.ttl, settings.max_ttl_s)
    else:
        wanted = max(wish.ttl_s or validation.DEFAULT_TTL_S, validation.MIN_TTL_S)
        ttl_s = min(wanted, settings.max_ttl_s)
        if wish.ttl_s is not None and ttl_s != wish.ttl_s:
            notes.append(f"the machine lives {duration_setting(ttl_s)}, not the {duration_setting(wish.ttl_s)} of .gibil.yml")
    order_says = MachineResources(
        size=order.size or None,
        image=order.image or None,
        server_type=order.server_type or None,
        location=order.location or None,
        ttl_s=ttl_s,
    )
    plan = MachinePlan(**wish.overridden_by(order_says).said())
    plan, cap_notes = capped(plan, caps)
    notes += cap_notes
    return ResolvedRequest(
        name=order.name or validation.made_up_name(), ttl_s=ttl_s, plan=plan, env=dict(order.env), notes=tuple(notes)
    )
