"""What only some providers can do, as calls that work with every provider (the optional Protocols are in ports.py)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from gibil_bot.errors import GibilError
from gibil_bot.model import Refusals
from gibil_bot.ports import Filtering, Noticing, Provider

_ANSWERS_S = 5.0


@contextlib.contextmanager
def notices(provider: Provider, report: Callable[[str], None]) -> Iterator[None]:
    """Call `report` with each notice of the provider during the block, about work that is rare and takes long."""
    if not isinstance(provider, Noticing):
        yield
        return
    provider.listeners[report] = set()
    try:
        yield
    finally:
        del provider.listeners[report]


async def prepare(provider: Provider, report: Callable[[str], None]) -> None:
    """Do the work that would delay the first machine, and call `report` before it begins. Never raises GibilError."""
    if isinstance(provider, Noticing):
        with notices(provider, report):
            try:
                await provider.prepare()
            except GibilError as error:
                report(f"preparing the first machine failed: {error.message}")


async def refusals(provider: Provider, name: str, since: float) -> Refusals:
    """Return which connections of a machine the egress proxy blocked since that moment of time.monotonic().

    Empty for providers without an egress proxy, and when the provider doesn't answer, since this only informs. Never raises
    GibilError.
    """
    if not isinstance(provider, Filtering):
        return Refusals()
    try:
        async with asyncio.timeout(_ANSWERS_S):
            return await provider.refusals(name, since)
    except (GibilError, TimeoutError):
        return Refusals()
