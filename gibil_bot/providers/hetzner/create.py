"""Making a server at Hetzner: what is asked for, in which order, and what is made of the answers."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from datetime import UTC, datetime, timedelta

from gibil_bot.errors import NameTaken, ProviderError
from gibil_bot.model import MachineSpec
from gibil_bot.providers.cloudinit import user_data
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner import server_types as shop
from gibil_bot.providers.hetzner.api import NO_ROOM, HetznerApi, Refused, action_error
from gibil_bot.providers.hetzner.boot_wait import BootWait, is_ready
from gibil_bot.providers.hetzner.catalogue import Catalogue
from gibil_bot.providers.hetzner.delete import ServerDeleter
from gibil_bot.providers.hetzner.project import ProjectResources, shared
from gibil_bot.providers.hetzner.rebuild_pool import RebuildPool, delete_one, reuse_value
from gibil_bot.providers.hetzner.server_types import Json
from gibil_bot.providers.hetzner.servers import find_server, is_ours

_log = logging.getLogger(__name__)

DEFAULT_IMAGE = "ubuntu-24.04"

_ELSEWHERE = NO_ROOM | {"maintenance", "service_error"}
"""Answers that concern a type in a location: another one may do."""
_FAILED_STARTS = 3
"""After so many servers that don't start, the creation fails: a started hour of each is billed."""


class ServerCreator:
    """`spares` is None where hours are not reused; `boot_s`: how long a server may take until it runs."""

    def __init__(
        self,
        api: HetznerApi,
        catalogue: Catalogue,
        watch: BootWait,
        burner: ServerDeleter,
        spares: RebuildPool | None,
        boot_s: float,
    ) -> None:
        self._api, self._catalogue, self._watch, self._burner, self._spares = api, catalogue, watch, burner, spares
        self._boot_s = boot_s
        self._shared: asyncio.Task[ProjectResources] | None = None
        self._marking: set[asyncio.Task[int | None]] = set()

    async def make(self, spec: MachineSpec) -> Json:
        """The server, running. Raises what `ports.Provider.create` may; then `destroy` finds by the name what there is."""
        offers = await self._catalogue.offers_for(spec)
        if self._spares is not None and (rebuilt := await self._make_of_spare(self._spares, spec, offers)) is not None:
            return rebuilt
        refusals: list[Refused] = []
        try:
            return await self._first_of(offers, spec, refusals)
        finally:
            if any(error.reason in ("invalid_input", "not_found") for error in refusals):
                self._catalogue.is_outdated()

    async def _first_of(self, offers: list[shop.Offer], spec: MachineSpec, refusals: list[Refused]) -> Json:
        """The server of the first offer that Hetzner accepts; the rejections of others are added to `refusals`."""
        cpu_types = {offer: await self._catalogue.cpu_type(offer) for offer in offers}
        deadline = time.monotonic() + self._boot_s
        at_limit: set[str] = set()
        for offer in offers:
            if cpu_types[offer] in at_limit:
                continue
            try:
                return await self._try(spec, offer, offers[0], deadline)
            except Refused as error:
                refusals.append(error)
                if error.reason == "resource_limit_exceeded":  # it may concern dedicated cores alone, or shared ones
                    at_limit.add(cpu_types[offer])
                elif _blames(error) in ("offer", "unknown"):
                    self._catalogue.is_sold_out(offer)
                else:
                    raise
                _log.warning("machine %s: %s is not to be had (%s)", spec.name, offer, error.reason)
                if sum(_is_failed_start(each) for each in refusals) == _FAILED_STARTS:
                    raise
        raise _none_left(spec, offers, refusals)

    async def close(self) -> None:
        if self._shared is not None:
            await asyncio.wait({self._shared})
            self._shared.exception()  # seen: who waited for it has it
        if self._marking:
            await asyncio.wait(self._marking)

    async def _try(self, spec: MachineSpec, offer: shop.Offer, first: shop.Offer, deadline: float) -> Json:
        """One offer; again after making room below a limit, or after creating what was deleted from the project.

        Raises Refused.
        """
        checked = False
        while True:
            project = await self._project()
            try:
                return await self._make(spec, offer, first, project, deadline)
            except Refused as error:
                if error.reason == "resource_limit_exceeded":
                    dedicated_only = "dedicated" in error.message
                    if not await delete_one(self._api, self._burner, self._spares, dedicated_only):
                        raise
                elif not checked and _blames(error) in ("project", "unknown"):
                    checked = True
                    if await self._project(instead_of=project) == project:
                        raise
                else:
                    raise

    async def _make(
        self, spec: MachineSpec, offer: shop.Offer, first: shop.Offer, project: ProjectResources, deadline: float
    ) -> Json:
        doing = f"make machine {spec.name}"
        hour, written = self._labels(spec)
        if offer != first:
            written["instead-of"] = f"{first.server_type}.{first.location}"
        body = {
            "name": spec.name,
            "server_type": offer.server_type,
            "location": offer.location,
            "image": await self._catalogue.image(spec.image or DEFAULT_IMAGE, offer),
            "labels": written,
            "user_data": user_data(spec, hour),
            "firewalls": [{"firewall": project.firewall_id}],
            "ssh_keys": [project.key_id],
            "public_net": {"enable_ipv4": True, "enable_ipv6": False},
            "start_after_create": True,
        }
        actions: tuple[int, ...] = ()
        try:
            answer = await self._api.call("POST", "/servers", doing, body=body)
        except Refused as error:
            if error.reason != "uniqueness_error":
                raise
            server = await self._adopt(spec)
            if is_ready(server):
                return server
        else:
            server = answer["server"]
            actions = tuple(int(each["id"]) for each in (answer["action"], *answer["next_actions"]))
        marking = asyncio.create_task(self._burner.mark_address(server))
        self._marking.add(marking)
        marking.add_done_callback(self._marking.discard)
        try:
            return await self._until_running(server, actions, doing, deadline)
        except Refused as error:
            if error.status == 0:  # its action failed and it still exists: the next offer needs its name
                await self._burner.burn(server)
            raise
        finally:
            await asyncio.wait({marking})

    async def _until_running(self, server: Json, actions: tuple[int, ...], doing: str, deadline: float) -> Json:
        """Raises Refused of status 0 when one of its actions failed, or when it stays off."""
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                found = await self._watch.running(server["id"], actions, doing)
                if found is not None and found["status"] == "off":
                    found = await self._power_on(server["id"], doing)
        except TimeoutError:
            raise ProviderError(
                f"cannot {doing}: after {self._boot_s:.0f} s its server does not run yet, or not behind its firewall"
            ) from None
        if found is None:
            raise await self._why_gone(actions, doing)
        if found["status"] == "off":
            said = "its server does not stay switched on"
            raise Refused(f"cannot {doing}: {said}", code="PROVIDER", reason="off", status=0, said=said)
        return found

    async def _power_on(self, number: int, doing: str) -> Json | None:
        """Reported: a server that should start with its creation stays off (hetznercloud/terraform-provider-hcloud#505)."""
        path = f"/servers/{number}"
        actions: tuple[int, ...] = ()
        if (await self._api.call("GET", path, doing))["server"]["status"] == "off":
            answer = await self._api.call("POST", f"{path}/actions/poweron", doing)
            actions = (int(answer["action"]["id"]),)
        return await self._watch.running(number, actions, doing)

    def _labels(self, spec: MachineSpec) -> tuple[datetime, dict[str, str]]:
        """Its hour by Hetzner's clock, and what is written on it."""
        hour = datetime.now(UTC) + timedelta(seconds=spec.ttl_s) + timedelta(seconds=self._api.clock_ahead_s)
        written = labels.machine_labels(spec, hour)
        if self._spares is not None and (reuse := reuse_value(spec)) is not None:
            written[labels.REUSE] = reuse
        return hour, written

    async def _make_of_spare(self, spares: RebuildPool, spec: MachineSpec, offers: list[shop.Offer]) -> Json | None:
        """A server that was set aside for this repository becomes the machine; None: there is none, or it did not work."""
        server = spares.take(spec, offers)
        if server is None:
            return None
        hour, written = self._labels(spec)
        try:
            async with asyncio.timeout(self._boot_s):
                offer = shop.Offer(server["server_type"]["name"], server["location"]["name"])
                image = await self._catalogue.image(spec.image or DEFAULT_IMAGE, offer)
                actions = await spares.rebuild(server, spec.name, written, image, user_data(spec, hour))
                running = await self._watch.running(server["id"], actions, f"make machine {spec.name}")
            if running is None or running["status"] != "running":
                raise ProviderError("it is not switched on")
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

    async def _why_gone(self, actions: tuple[int, ...], doing: str) -> ProviderError:
        """Hetzner takes a server away again when it finds no place for it after all; its action says so."""
        for number in actions:
            found = (await self._api.call("GET", f"/actions/{number}", f"read why it could not {doing}"))["action"]
            if (failed := action_error(found, doing)) is not None:
                return failed
        return ProviderError(f"cannot {doing}: its server vanished while it booted; somebody burned it")

    async def _project(self, instead_of: ProjectResources | None = None) -> ProjectResources:
        """Created by the first caller that needs it; a failure is not remembered. `instead_of`: read it again, once for all."""
        task = self._shared
        if (
            task is None
            or (task.done() and (task.cancelled() or task.exception()))
            or (instead_of is not None and task.done() and task.result() is instead_of)
        ):
            task = self._shared = asyncio.create_task(shared(self._api))
        return await asyncio.shield(task)


def _blames(error: Refused) -> str:
    """What a refused creation is about: `offer`, `project` (its firewall or key), `request`, or `unknown`.

    An `invalid_input` may name fields. For something that doesn't exist none were seen, and the message is all there is:
    "unsupported location for server type" (autobase-tech/autobase#1403), "image has incompatible architecture".
    """
    if error.status == 0 or error.reason in _ELSEWHERE:
        return "offer"
    if error.reason not in ("invalid_input", "not_found"):
        return "request"
    if error.fields:
        if error.fields & {"server_type", "location"}:
            return "offer"
        return "project" if error.fields & {"firewalls", "ssh_keys"} else "request"
    said = error.said.lower()
    for what, pattern in (
        ("offer", r"server.?type|location"),
        ("project", r"firewall|ssh.?key"),
        ("request", r"image|user.?data|label|name"),
    ):
        if re.search(pattern, said):
            return what
    return "unknown"


def _is_failed_start(error: Refused) -> bool:
    return error.status == 0 and error.reason not in NO_ROOM


def _none_left(spec: MachineSpec, offers: list[shop.Offer], refusals: list[Refused]) -> ProviderError:
    """One line about all that was tried."""
    limits = [error for error in refusals if error.reason == "resource_limit_exceeded"]
    if limits or len(refusals) == 1:
        return limits[0] if limits else refusals[0]
    tried = ", ".join(map(str, offers))
    if all(error.reason in NO_ROOM for error in refusals):
        why, code = f"Hetzner has no room in {tried}", shop.SOLD_OUT
    else:
        last = refusals[-1]
        why, code = f"Hetzner refuses it in {tried}; the last answer was: {last.said} ({last.reason})", last.code
    return ProviderError(f"cannot make machine {spec.name}: {why}; choose another size or location, or wait", code=code)
