"""The operator's limits for machines, which no repository, workflow or flag can raise. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from gibil_bot.errors import UsageError
from gibil_bot.model import MachinePlan


class Caps(Struct, frozen=True, kw_only=True):
    """Limits for one machine. None: no limit."""

    memory_mb: int | None = None
    disk_mb: int | None = None
    pids: int | None = None
    server_types: tuple[str, ...] | None = None
    """The provider's machine types that may be requested by name."""
    sizes_mb: Mapping[str, int] = field(default_factory=dict)
    """Memory of each size at this provider; empty if sizes aren't limits there."""
    default_disk_mb: int | None = None
    """Disk size of a machine whose plan doesn't set one; None if it isn't limited."""

    def allows(self, server_type: str | None) -> bool:
        """Return whether a machine of that type may be created. None: the provider chooses a type."""
        return server_type is None or self.server_types is None or server_type in self.server_types


NO_CAPS = Caps()


def capped(plan: MachinePlan, caps: Caps) -> tuple[MachinePlan, tuple[str, ...]]:
    """Return the plan within the caps, and a note for people about each request that was reduced."""
    changes: dict[str, int | None] = {}
    notes = []
    for name, what, unit, setting, default in (
        ("memory_mb", "memory", "MB", "GIBIL_MAX_MEMORY", caps.sizes_mb.get(plan.size)),
        ("disk_mb", "disk", "MB", "GIBIL_MAX_DISK", caps.default_disk_mb),
        ("pids", "processes", "", "GIBIL_MAX_PIDS", None),
    ):
        cap, requested = getattr(caps, name), getattr(plan, name)
        wanted = requested or default
        if cap is not None and wanted is not None and wanted > cap:
            changes[name] = cap
            if requested is not None or (name == "memory_mb" and plan.size != MachinePlan().size):
                amount = f"{cap} {unit} of {what}" if unit else f"{cap} {what}"
                notes.append(f"The machine has {amount}, not {wanted}: that is the limit here ({setting}).")
    plan = replace(plan, **changes)
    if not caps.allows(plan.server_type):
        notes.append(
            f"The server type {plan.server_type!r} is not allowed (GIBIL_SERVER_TYPES); a machine of size {plan.size} is used."
        )
        plan = replace(plan, server_type=None)
    return plan, tuple(notes)


def check_server_type(server_type: str | None, caps: Caps) -> None:
    """Check a server type that a user requested. Raises UsageError."""
    if not caps.allows(server_type):
        allowed = ", ".join(caps.server_types or ())
        raise UsageError(f"the server type {server_type!r} is not allowed; GIBIL_SERVER_TYPES allows {allowed}")
