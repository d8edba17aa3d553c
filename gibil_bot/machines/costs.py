"""The cost of a machine and the provider's sizes, as JSON. Local machines cost nothing."""

from __future__ import annotations

import logging

from gibil_bot.errors import GibilError
from gibil_bot.model import Machine
from gibil_bot.ports import Offering, Priced, Provider

log = logging.getLogger("gibil.machines")


async def cost_view(provider: Provider, machine: Machine) -> dict[str, object]:
    """Return `{"cost": {"so_far", "hourly", "currency"}}`, amounts as text; {} if the cost is unknown now."""
    if not isinstance(provider, Priced):
        return {}
    try:
        price, so_far = await provider.price_of(machine), await provider.cost_so_far(machine)
    except GibilError as error:  # a machine without a known price is still usable
        log.info("the cost of machine %s: %s", machine.name, error)
        return {}
    if price is None or so_far is None:
        return {}
    return {"cost": {"so_far": f"{so_far:f}", "hourly": f"{price.hourly:f}", "currency": price.currency}}


async def sizes_view(provider: Provider) -> list[dict[str, object]]:
    """Return the provider's sizes, amounts as text; [] for a provider without sizes. Raises ProviderError."""
    if not isinstance(provider, Offering):
        return []
    return [
        {
            "name": offer.size,
            "what": offer.what,
            "locations": list(offer.locations),
            "price_hourly": f"{offer.price_hourly:f}" if offer.price_hourly is not None else None,
            "currency": offer.currency,
        }
        for offer in await provider.sizes()
    ]
