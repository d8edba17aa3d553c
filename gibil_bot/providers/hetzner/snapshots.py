"""Templates at Hetzner: snapshots of servers, with the template's name in a label.

A snapshot can be taken while the server runs, and is then what the disk would be after a power failure; the caller writes
everything to the disk before. It is billed for each GB of `image_size` and month
(https://docs.hetzner.cloud/reference/cloud#server-actions-create-image-from-a-server, #images, #pricing).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation

from gibil_bot.errors import ProviderError
from gibil_bot.model import Template
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import HetznerApi, Json, Rejected, action_error
from gibil_bot.providers.templates import CODE_LABELS, name_taken


class Snapshots:
    """The snapshots of one project. `within_s`: how long Hetzner may take to create one."""

    def __init__(self, api: HetznerApi, look_every_s: float, within_s: float) -> None:
        self._api = api
        self._look_every_s, self._within_s = look_every_s, within_s

    async def create(self, server: Json, template: str, code: Mapping[str, str]) -> Template:
        """Take a snapshot; returns when machines can start from it. Raises UsageError for a taken name, ProviderError."""
        doing = f"take a snapshot of machine {server['name']}"
        if await self._find(template):
            raise name_taken(template)
        kept = {key: value for key, value in code.items() if key in CODE_LABELS}
        body = {
            "type": "snapshot",
            "description": f"gibil template {template}",
            "labels": {
                **labels.encode(kept),
                labels.CREATED_BY: labels.OURS,
                labels.OWNER: server["labels"].get(labels.OWNER, ""),
                labels.TEMPLATE: template,
            },
        }
        answer = await self._api.call("POST", f"/servers/{server['id']}/actions/create_image", doing, body=body)
        number = int(answer["image"]["id"])
        try:
            image = await self._available(number, int(answer["action"]["id"]), doing)
        except BaseException:
            await asyncio.shield(self._delete(number))  # it costs money, and the user doesn't know it
            raise
        return (await self._templates([image]))[0]

    async def templates(self) -> list[Template]:
        """Return the project's templates, oldest first. Raises ProviderError."""
        return await self._templates(await self._find(None))

    async def delete(self, template: str) -> bool:
        """Delete a template; False if it doesn't exist. Raises ProviderError."""
        found = await self._find(template)
        for image in found:
            await self._delete(image["id"])
        return bool(found)

    async def _find(self, template: str | None) -> list[Json]:
        ours = labels.selector()
        query = {
            "type": "snapshot",
            "label_selector": f"{ours},{labels.TEMPLATE}" + ("" if template is None else f"={template}"),
        }
        found = await self._api.pages("/images", "images", "list templates", query=query)
        return sorted(found, key=lambda image: (image["created"], image["id"]))

    async def _available(self, number: int, action: int, doing: str) -> Json:
        deadline = time.monotonic() + self._within_s
        while True:
            image: Json = (await self._api.call("GET", f"/images/{number}", doing))["image"]
            if image["status"] == "available":
                return image
            state = (await self._api.call("GET", f"/actions/{action}", doing))["action"]
            if (failed := action_error(state, doing)) is not None:
                raise failed
            if time.monotonic() > deadline:
                raise ProviderError(f"cannot {doing}: it isn't complete after {self._within_s:.0f} s; try again")
            await asyncio.sleep(self._look_every_s)

    async def _delete(self, number: int) -> None:
        try:
            await self._api.call("DELETE", f"/images/{number}", f"delete snapshot {number}", deleting=True)
        except Rejected as error:
            if error.reason != "not_found":
                raise

    async def _templates(self, images: list[Json]) -> list[Template]:
        if not images:
            return []
        pricing = (await self._api.call("GET", "/pricing", "read prices"))["pricing"]
        try:
            per_gb = Decimal(str(pricing["image"]["price_per_gb_month"]["net"]))
        except (KeyError, TypeError, InvalidOperation):
            per_gb = None
        return [_template(image, per_gb, str(pricing.get("currency", "EUR"))) for image in images]


def _template(image: Json, per_gb: Decimal | None, currency: str) -> Template:
    size_gb = Decimal(str(image["image_size"] or 0))
    return Template(
        name=str(image["labels"].get(labels.TEMPLATE, "")),
        provider="hetzner",
        id=str(image["id"]),
        size_mb=int(size_gb * 1024),
        created_at=datetime.fromisoformat(image["created"]).astimezone(UTC),
        labels=labels.decode(image["labels"]),
        image=str(image["id"]),
        price_monthly=None if per_gb is None else per_gb * size_gb,
        currency=None if per_gb is None else currency,
    )
