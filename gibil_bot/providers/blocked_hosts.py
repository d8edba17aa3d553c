"""Which connections of a machine were refused, for providers whose machines use a proxy."""

from __future__ import annotations

import asyncio
from typing import Protocol, runtime_checkable

from gibil_bot.errors import GibilError
from gibil_bot.model import Refusals
from gibil_bot.ports import Provider

_ANSWERS_S = 5.0


@runtime_checkable
class Filtering(Protocol):
    """A provider whose machines reach the network through a proxy that refuses some of it."""

    async def refusals(self, name: str, since: float) -> Refusals:
        """What the machine of that name was refused since that moment of time.monotonic(). Raises MachineNotFound."""


async def refusals(provider: Provider, name: str, since: float) -> Refusals:
    """Empty for providers without such a proxy, and when it doesn't answer: this only informs. Never raises GibilError."""
    if not isinstance(provider, Filtering):
        return Refusals()
    try:
        async with asyncio.timeout(_ANSWERS_S):
            return await provider.refusals(name, since)
    except (GibilError, TimeoutError):
        return Refusals()
