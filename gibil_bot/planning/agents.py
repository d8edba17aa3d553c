"""Which agents can work here, for planning: engines, and the vendors whose keys the bot has. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gibil_bot.planning.workflow import SHIPPED_ENGINES

VENDOR_NAMES = {"anthropic": "Anthropic", "openai": "OpenAI", "gemini": "Google"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSupport:
    """Which agents can work here."""

    engines: tuple[str, ...] = SHIPPED_ENGINES
    """All engines that exist."""
    default_engine: str = SHIPPED_ENGINES[0]
    """The engine of a task that names none."""
    unusable: Mapping[str, str] = field(default_factory=dict)
    """Engine → why it can't work here and what to do about it, as a clause."""


def agent_support(
    vendors: Mapping[str, str], keys: Collection[str], *, default: str = "", has_bot: bool = True
) -> AgentSupport:
    """Return what works with these keys.

    `vendors`: engine → the vendor whose key it needs, or ""; `keys`: the vendors whose keys the bot has; `default`: the
    operator's engine for tasks that name none. Without it, that is the first engine that has a key. `has_bot`: False for
    commands, whose user sets the keys.
    """
    unusable = {engine: _no_key(engine, vendor, keys) for engine, vendor in vendors.items() if vendor and vendor not in keys}
    usable = (engine for engine in (*SHIPPED_ENGINES, *vendors) if vendors.get(engine) and engine not in unusable)
    chosen = default or next(usable, SHIPPED_ENGINES[0])
    if not keys:
        reason = (
            "it needs an agent, and this bot has no key of a model's vendor. The operator sets GIBIL_MODEL_KEY_ANTHROPIC, "
            "GIBIL_MODEL_KEY_OPENAI or GIBIL_MODEL_KEY_GEMINI and restarts the bot; until then no machine is created for it"
        )
        if not has_bot:
            reason = (
                "it needs an agent, and no key of a model's vendor is set: set GIBIL_MODEL_KEY_ANTHROPIC, "
                "GIBIL_MODEL_KEY_OPENAI or GIBIL_MODEL_KEY_GEMINI"
            )
        unusable = dict.fromkeys(unusable, reason)
    return AgentSupport(engines=tuple(vendors), default_engine=chosen, unusable=unusable)


def _no_key(engine: str, vendor: str, keys: Collection[str]) -> str:
    others = ", ".join(VENDOR_NAMES.get(each, each) for each in sorted(keys))
    return (
        f"the engine {engine!r} needs a key of {VENDOR_NAMES.get(vendor, vendor)}, and this bot has those of {others}. The "
        f"operator sets GIBIL_MODEL_KEY_{vendor.upper()}, or the workflow names another engine"
    )
