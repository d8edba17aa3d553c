"""What machines cost and what each size is, as JSON. Local machines cost nothing."""

from __future__ import annotations

import logging

from gibil_bot.errors import GibilError
from gibil_bot.model import Machine
from gibil_bot.ports import Offering, Priced, Provider

log = logging.getLogger("gibil.sandbox")


async def cost_view(provider: Provider, machine: Machine) -> dict[str, object]:
    """`{"cost": {"so_far", "hourly", "currency"}}`, amounts as text; {} where none can be told now."""
    if not isinstance(provider, Priced):
        return {}
    try:
        price, so_far = await provider.price_of(machine), await provider.cost_so_far(machine)
    except GibilError as error:  # a machine is not lost for want of its price
        log.info("the cost of machine %s: %s", machine.name, error)
        return {}
    if price is None or so_far is None:
        return {}
    return {"cost": {"so_far": f"{so_far:f}", "hourly": f"{price.hourly:f}", "currency": price.currency}}


async def sizes_view(provider: Provider) -> list[dict[str, object]]:
    """Sizes for programs, amounts as text; [] for a provider that names none. Raises ProviderError."""
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
