"""Templates and forks: which providers have them, and the request for a machine that starts from one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from gibil_bot.errors import UsageError
from gibil_bot.model import Machine, MachinePlan, Template
from gibil_bot.ports import Forking, Metered, Provider, Templating

if TYPE_CHECKING:
    from gibil_bot.machines.request import ResolvedRequest

NOT_SUPPORTED = "NOT_SUPPORTED"


def templating(provider: Provider) -> Templating:
    """Return the provider's ability to keep templates. Raises UsageError."""
    if not isinstance(provider, Templating):
        raise UsageError(f"the provider {provider.name} has no templates", code=NOT_SUPPORTED)
    return provider


def forking(provider: Provider, machine: Machine) -> Forking:
    """Return the provider's ability to fork machines. Raises UsageError with what to use instead."""
    if not isinstance(provider, Forking):
        raise UsageError(
            f"a machine of the provider {provider.name} can't be forked: keep its disk as a template "
            f"(gibil template create NAME --from {machine.name}), then create machines from it "
            "(gibil create --template NAME --fleet N)",
            code=NOT_SUPPORTED,
        )
    check_copy(machine)
    return provider


def check_copy(machine: Machine) -> None:
    """Check that a machine's disk may be copied. Raises UsageError for a machine of the bot's runs."""
    if "run" in machine.labels:
        raise UsageError(f"{machine.name} belongs to a run of the bot, so its disk can't be copied")


async def find(provider: Provider, name: str) -> Template:
    """Return the template of that name. Raises UsageError."""
    found = await templating(provider).templates()
    for template in found:
        if template.name == name:
            return template
    names = ", ".join(template.name for template in found[:10]) or "none exists"
    raise UsageError(
        f"there is no template {name!r} ({names}); create it: gibil template create {name} --from MACHINE",
        code="TEMPLATE_NOT_FOUND",
    )


def on_template(request: ResolvedRequest, template: Template) -> ResolvedRequest:
    """Return the request for a machine that starts from the template."""
    from gibil_bot.machines.request import Start

    plan = request.plan if template.image is None else structs.replace(request.plan, image=template.image)
    start = Start(kind="template", layer=template.layer)
    return replace(request, plan=plan, start=start)


async def like(provider: Provider, machine: Machine, name: str, ttl_s: int) -> ResolvedRequest:
    """Return a request for a machine with the memory and the disk of another one."""
    from gibil_bot.machines.request import ResolvedRequest

    usage = await provider.usage(machine.name) if isinstance(provider, Metered) else None
    plan = MachinePlan(ttl_s=ttl_s)
    if usage is not None:
        plan = structs.replace(plan, memory_mb=usage.memory_limit_mb, disk_mb=usage.disk_limit_mb)
    return ResolvedRequest(name=name, ttl_s=ttl_s, plan=plan, env={})
