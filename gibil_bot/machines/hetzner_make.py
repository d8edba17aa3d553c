"""Making a server at Hetzner: what is asked for, in which order, and what is made of the answers."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta

from gibil_bot.errors import NameTaken, ProviderError
from gibil_bot.machines import hetzner_labels as labels
from gibil_bot.machines import hetzner_offers as shop
from gibil_bot.machines.cloudinit import user_data
from gibil_bot.machines.hetzner_api import HetznerApi, Refused
from gibil_bot.machines.hetzner_burn import Burner
from gibil_bot.machines.hetzner_catalogue import Catalogue
from gibil_bot.machines.hetzner_machine import find_server, is_ours
from gibil_bot.machines.hetzner_offers import Json
from gibil_bot.machines.hetzner_project import Shared, shared
from gibil_bot.machines.hetzner_spares import Spares, reuse_value
from gibil_bot.machines.hetzner_watch import Watch
from gibil_bot.model import MachineSpec

_log = logging.getLogger(__name__)

DEFAULT_IMAGE = "ubuntu-24.04"

_NO_ROOM = frozenset(("resource_unavailable", "placement_error"))


class Maker:
    """`spares` is None where hours are not reused; `boot_s`: how long a server may take until it runs."""

    def __init__(
        self, api: HetznerApi, catalogue: Catalogue, watch: Watch, burner: Burner, spares: Spares | None, boot_s: float
    ) -> None:
        self._api, self._catalogue, self._watch, self._burner, self._spares = api, catalogue, watch, burner, spares
        self._boot_s = boot_s
        self._shared: asyncio.Task[Shared] | None = None

    async def make(self, spec: MachineSpec) -> Json:
        """The server, running. Raises what `ports.Provider.create` may; then `destroy` finds by the name what there is."""
        offers = await self._catalogue.offers_for(spec)
        deadline = time.monotonic() + self._boot_s
        if (
            self._spares is not None
            and (rebuilt := await self._make_of_spare(self._spares, spec, offers, deadline)) is not None
        ):
            return rebuilt
        refused: ProviderError | None = None
        for offer in offers:
            try:
                return await self._make(spec, offer, offers[0], deadline)
            except Refused as error:
                if error.reason not in _NO_ROOM and not error.fields & {"server_type", "location"}:
                    raise
                self._catalogue.is_sold_out(offer)
                _log.warning("machine %s: %s is not to be had (%s)", spec.name, offer, error.reason)
                refused = error
        if refused is not None and len(offers) == 1:
            raise refused
        tried = ", ".join(map(str, offers))
        raise ProviderError(
            f"cannot make machine {spec.name}: Hetzner has no room in {tried}; choose another size or location, or wait",
            code=shop.SOLD_OUT,
        ) from refused

    async def close(self) -> None:
        if self._shared is not None:
            await asyncio.wait({self._shared})
            self._shared.exception()  # seen: who waited for it has it

    async def _make(self, spec: MachineSpec, offer: shop.Offer, first: shop.Offer, deadline: float) -> Json:
        doing = f"make machine {spec.name}"
        project = await self._project()
        hour, written = self._labels(spec)
        if offer != first:
            written["instead-of"] = f"{first.server_type}.{first.location}"
        body = {
            "name": spec.name,
            "server_type": offer.server_type,
            "location": offer.location,
            "image": spec.image or DEFAULT_IMAGE,
            "labels": written,
            "user_data": user_data(spec, hour),
            "firewalls": [{"firewall": project.firewall_id}],
            "ssh_keys": [project.key_id],
            "public_net": {"enable_ipv4": True, "enable_ipv6": False},
            "start_after_create": True,
        }
        try:
            answer = await self._api.call("POST", "/servers", doing, body=body)
        except Refused as error:
            if error.fields & {"firewalls", "ssh_keys"} or error.reason == "not_found":
                self._shared = None  # somebody deleted them: the next creation makes them anew
            if error.reason != "uniqueness_error":
                raise
            server, action = await self._adopt(spec), None
        else:
            server, action = answer["server"], answer["action"]["id"]
        if server["status"] == "running":
            return server
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                running = await self._watch.running(server["id"])
        except TimeoutError:
            raise ProviderError(f"cannot {doing}: after {self._boot_s:.0f} s its server does not run yet") from None
        if running is None:
            raise await self._why_gone(action, doing)
        return running

    def _labels(self, spec: MachineSpec) -> tuple[datetime, dict[str, str]]:
        """Its hour by Hetzner's clock, and what is written on it."""
        hour = datetime.now(UTC) + timedelta(seconds=spec.ttl_s) + timedelta(seconds=self._api.clock_ahead_s)
        written = labels.machine_labels(spec, hour)
        if self._spares is not None and (reuse := reuse_value(spec)) is not None:
            written[labels.REUSE] = reuse
        return hour, written

    async def _make_of_spare(self, spares: Spares, spec: MachineSpec, offers: list[shop.Offer], deadline: float) -> Json | None:
        """A server that was set aside for this repository becomes the machine; None: there is none, or it did not work."""
        server = spares.take(spec, offers)
        if server is None:
            return None
        hour, written = self._labels(spec)
        try:
            image = spec.image or DEFAULT_IMAGE
            await spares.rebuild(server, spec.name, written, image, user_data(spec, hour))
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                running = await self._watch.running(server["id"])
        except (ProviderError, TimeoutError) as error:
            _log.info("machine %s: not from a spare server (%s)", spec.name, error)
            await self._burner.burn(server)
            return None
        except asyncio.CancelledError:
            await self._burner.burn(server)  # it may not have the name yet by which it would be found
            raise
        return running

    async def _adopt(self, spec: MachineSpec) -> Json:
        """The server that has the name: ours, when an earlier request of the same creation made it."""
        server = await find_server(self._api, spec.name)
        if server is None:  # burned between the two requests
            raise ProviderError(f"cannot make machine {spec.name}: one of that name has just gone; try again")
        if not is_ours(server) or server["labels"].get(labels.SPEC) != labels.spec_value(spec):
            raise NameTaken(f"there is another machine named {spec.name} at Hetzner; choose another name")
        return server

    async def _why_gone(self, action: int | None, doing: str) -> ProviderError:
        """Hetzner takes a server away again when it finds no place for it after all; its action says so."""
        if action is not None:
            found = (await self._api.call("GET", f"/actions/{action}", f"read why it could not {doing}"))["action"]
            if error := found.get("error"):
                reason, said = str(error["code"]), " ".join(str(error["message"]).split())[:200]
                code = shop.SOLD_OUT if reason in _NO_ROOM else "PROVIDER"
                return Refused(f"cannot {doing}: {said} ({reason})", code=code, reason=reason, status=0)
        return ProviderError(f"cannot {doing}: its server vanished while it booted; somebody burned it")

    async def _project(self) -> Shared:
        """Made by the first who needs it; a failure is not remembered."""
        if self._shared is None or (self._shared.done() and (self._shared.cancelled() or self._shared.exception())):
            self._shared = asyncio.create_task(shared(self._api))
        return await asyncio.shield(self._shared)
