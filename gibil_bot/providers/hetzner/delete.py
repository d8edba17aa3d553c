"""Deleting servers at Hetzner, together with their addresses.

Only deletion stops the billing; a server that is switched off costs the same (https://docs.hetzner.com/cloud/billing/faq). A
server's address is deleted with it if the address has `auto_delete`. The default for addresses that Hetzner creates with a
server isn't documented, so it is read from the first one; where it is off, it is switched on and the address is labelled.
"""

from __future__ import annotations

import asyncio
import logging
import time

from gibil_bot.errors import ProviderError
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import HetznerApi, Json, Rejected

_log = logging.getLogger(__name__)


class ServerDeleter:
    """Deletes servers. `within_s`: how long Hetzner may take to delete one."""

    def __init__(self, api: HetznerApi, look_every_s: float, within_s: float) -> None:
        self._api = api
        self._look_every_s, self._within_s = look_every_s, within_s
        self._addresses_auto_delete = False

    async def mark_address(self, server: Json) -> int | None:
        """Ensure that a server's address is deleted with it, whichever client deletes the server. Never raises.

        Called as soon as the server exists: the address has no label by which it could be found once it is unassigned. Returns
        the ID of an address that may remain.
        """
        address = (server["public_net"].get("ipv4") or {}).get("id")
        if address is None or await self._is_deleted_with_server(address, server["labels"].get(labels.OWNER, "")):
            return None
        return int(address)

    async def delete(self, server: Json) -> None:
        """Delete a server; returns when the API doesn't list it any more. Raises ProviderError."""
        address = await self.mark_address(server)
        await self._delete(server["name"], f"/servers/{server['id']}")
        if address is not None:
            try:
                await self._release(address)
            except ProviderError as error:  # Hetzner may not know yet that the address is unassigned
                _log.warning("%s; the next sweep deletes it", error)

    async def release_leftovers(self) -> list[str]:
        """Delete our addresses that no server has, and return their names."""
        query = {"label_selector": labels.selector()}
        released = []
        for address in await self._api.pages("/primary_ips", "primary_ips", "list addresses", query=query, deleting=True):
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
            await self._api.call("DELETE", path, f"delete machine {name}", deleting=True)
            while True:
                await self._api.call("GET", path, f"check whether machine {name} is deleted", deleting=True)
                if time.monotonic() > deadline:
                    raise ProviderError(f"Hetzner did not delete machine {name} within {self._within_s:.0f} s; try again")
                await asyncio.sleep(pause)
                pause = min(pause * 2, self._look_every_s)
        except Rejected as error:
            if error.reason != "not_found":
                raise

    async def _is_deleted_with_server(self, address_id: int, owner: str) -> bool:
        """Return whether the address is deleted with its server by default. Where it isn't, change that and label the address.

        Never raises, because a failure must not prevent the deletion of the server.
        """
        if self._addresses_auto_delete:
            return True
        path = f"/primary_ips/{address_id}"
        try:
            found = await self._api.call("GET", path, "read whether an address is deleted with its server", deleting=True)
            address = found["primary_ip"]
            if address["auto_delete"]:
                # Hetzner's default, unless we changed this address.
                self._addresses_auto_delete = labels.CREATED_BY not in address["labels"]
                return True
            ours = {labels.CREATED_BY: labels.OURS, labels.OWNER: owner}
            body = {"auto_delete": True, "labels": {**address["labels"], **ours}}
            await self._api.call("PUT", path, "label an address", body=body, deleting=True)
        except ProviderError as error:
            _log.warning("%s", error)
        return False

    async def _release(self, address_id: int) -> bool:
        """Delete an address that no server has. False if it doesn't exist any more."""
        try:
            await self._api.call("DELETE", f"/primary_ips/{address_id}", "release an address", deleting=True)
        except Rejected as error:
            if error.reason != "not_found":
                raise
            return False
        return True
