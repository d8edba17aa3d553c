"""What Hetzner sells and for how much, read from its API and believed for some minutes."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from gibil_bot.errors import UsageError
from gibil_bot.model import MachineSpec
from gibil_bot.providers.hetzner import server_types as shop
from gibil_bot.providers.hetzner.api import HetznerApi
from gibil_bot.providers.hetzner.server_types import Json, Offer, Price

READ_AGAIN_S = 600.0
SOLD_OUT_FOR_S = 300.0
"""What was refused for want of room is tried last for that long."""


class Catalogue:
    def __init__(self, api: HetznerApi, allowed: tuple[str, ...] | None = None) -> None:
        self._api, self._allowed = api, allowed
        self._types: tuple[float, list[Json]] | None = None
        self._pricing: tuple[float, Json] | None = None
        self._arm_images: dict[str, tuple[float, str]] = {}
        self._sold_out: dict[Offer, float] = {}

    async def offers_for(self, spec: MachineSpec) -> list[Offer]:
        """What to ask for, in this order. Raises UsageError and ProviderError as `hetzner_offers.offers` does."""
        return await self.offers(spec.size, spec.server_type, spec.location, spec.memory_mb, spec.disk_mb)

    async def offers(
        self,
        size: str,
        server_type: str | None = None,
        location: str | None = None,
        memory_mb: int | None = None,
        disk_mb: int | None = None,
    ) -> list[Offer]:
        types = await self._server_types()
        now = time.monotonic()
        self._sold_out = {offer: until for offer, until in self._sold_out.items() if until > now}
        return shop.offers(
            types,
            size=size,
            server_type=server_type,
            location=location,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            now=datetime.now(UTC),
            sold_out=self._sold_out,
            allowed=self._allowed,
        )

    def is_sold_out(self, offer: Offer) -> None:
        """Hetzner has just rejected it: try it last for some minutes."""
        self._sold_out[offer] = time.monotonic() + SOLD_OUT_FOR_S

    def is_outdated(self) -> None:
        """The API rejected something from the list of types: read the list again before its next use."""
        self._types = None

    async def cpu_type(self, offer: Offer) -> str:
        """`shared` or `dedicated`: limits of a project may concern one of them alone."""
        return await self._property(offer, "cpu_type")

    async def image(self, wanted: str, offer: Offer) -> str:
        """The value of `image` in a request: an image has one name for both architectures, and an ID for each.

        For x86 it is the name. Raises UsageError when there is no such image for ARM.
        """
        architecture = await self._property(offer, "architecture")
        if architecture != "arm" or wanted.isdigit():
            return wanted
        now = time.monotonic()
        if wanted not in self._arm_images or self._arm_images[wanted][0] < now:
            query = {"name": wanted, "architecture": architecture}
            found = await self._api.pages("/images", "images", f"look for the image {wanted}", query=query)
            if not found:
                raise UsageError(f"Hetzner has no image {wanted!r} for {architecture}, as {offer.server_type} needs it")
            self._arm_images[wanted] = (now + READ_AGAIN_S, str(found[0]["id"]))
        return self._arm_images[wanted][1]

    async def _server_types(self) -> list[Json]:
        now = time.monotonic()
        if self._types is None or self._types[0] < now:
            found = await self._api.pages("/server_types", "server_types", "read what machines there are")
            self._types = (now + READ_AGAIN_S, found)
        return self._types[1]

    async def _property(self, offer: Offer, name: str) -> str:
        """Of its type; empty for a type that is no longer listed."""
        return next((str(kind[name]) for kind in await self._server_types() if kind["name"] == offer.server_type), "")

    async def price(self, offer: Offer) -> Price | None:
        """Today's; None where there is none."""
        now = time.monotonic()
        if self._pricing is None or self._pricing[0] < now:
            answer = await self._api.call("GET", "/pricing", "read prices")
            self._pricing = (now + READ_AGAIN_S, answer["pricing"])
        return shop.price(self._pricing[1], offer)
