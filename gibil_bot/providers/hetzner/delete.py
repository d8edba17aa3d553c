"""Burning at Hetzner: a server is gone when the API does not know it any more, and its address must not stay behind.

Only deletion stops the bill; a server that is switched off costs the same (https://docs.hetzner.com/cloud/billing/faq). The
address that a server was given leaves with it if `auto_delete` says so. What auto-made ones say is not documented, so it is
read from the first, and those that would stay are told to leave and marked as ours.
"""

from __future__ import annotations

import asyncio
import logging
import time

from gibil_bot.errors import ProviderError
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import HetznerApi, Json, Refused

_log = logging.getLogger(__name__)


class ServerDeleter:
    """`within_s`: how long Hetzner may take to delete a server."""

    def __init__(self, api: HetznerApi, look_every_s: float, within_s: float) -> None:
        self._api = api
        self._look_every_s, self._within_s = look_every_s, within_s
        self._addresses_leave = False

    async def mark_address(self, server: Json) -> int | None:
        """Ensure that a server's address is deleted with it, whichever client deletes the server. Never raises.

        Called as soon as the server exists: the address has no label by which it could be found once it is unassigned. Returns
        the ID of an address that may remain.
        """
        address = (server["public_net"].get("ipv4") or {}).get("id")
        if address is None or await self._leaves(address, server["labels"].get(labels.OWNER, "")):
            return None
        return int(address)

    async def burn(self, server: Json) -> None:
        """Returns when it is gone for certain. Raises ProviderError."""
        address = await self.mark_address(server)
        await self._delete(server["name"], f"/servers/{server['id']}")
        if address is not None:
            try:
                await self._release(address)
            except ProviderError as error:  # it may not know yet that its server is gone
                _log.warning("%s; it is left to the sweep", error)

    async def release_leftovers(self) -> list[str]:
        """Delete the addresses of ours that no server has; their names."""
        query = {"label_selector": labels.selector()}
        released = []
        for address in await self._api.pages("/primary_ips", "primary_ips", "list addresses", query=query, burning=True):
            if address["assignee_id"] is not None:
                continue
            try:
                if await self._release(address["id"]):
                    released.append(str(address["name"]))
            except ProviderError as error:
                _log.warning("%s", error)
        return released

    async def _delete(self, name: str, path: str) -> None:
        deadline = time.monotonic() + self._within_s
        pause = self._look_every_s / 4  # most are gone at once
        try:
            await self._api.call("DELETE", path, f"burn machine {name}", burning=True)
            while True:
                await self._api.call("GET", path, f"see whether machine {name} is burned", burning=True)
                if time.monotonic() > deadline:
                    raise ProviderError(f"Hetzner has not burned machine {name} within {self._within_s:.0f} s; try again")
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._look_every_s)
        except Refused as error:
            if error.reason != "not_found":
                raise

    async def _leaves(self, address_id: int, owner: str) -> bool:
        """Whether the address goes with its server by itself. One that does not is told to, and marked for the sweep.

        A failure must not keep the server from being burned.
        """
        if self._addresses_leave:
            return True
        path = f"/primary_ips/{address_id}"
        try:
            found = await self._api.call("GET", path, "see whether an address leaves with its server", burning=True)
            address = found["primary_ip"]
            if address["auto_delete"]:
                # This is Hetzner's default, unless this one was changed by us.
                self._addresses_leave = labels.CREATED_BY not in address["labels"]
                return True
            ours = {labels.CREATED_BY: labels.OURS, labels.OWNER: owner}
            body = {"auto_delete": True, "labels": {**address["labels"], **ours}}
            await self._api.call("PUT", path, "mark an address as ours", body=body, burning=True)
        except ProviderError as error:
            _log.warning("%s", error)
        return False

    async def _release(self, address_id: int) -> bool:
        """Delete an address that no server has; False when it was gone already."""
        try:
            await self._api.call("DELETE", f"/primary_ips/{address_id}", "release an address", burning=True)
        except Refused as error:
            if error.reason != "not_found":
                raise
            return False
        return True
