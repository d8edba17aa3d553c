"""The `hetzner` provider: machines at Hetzner Cloud.

The project's own list is the truth. A machine's name is the idempotency key, its labels say whose it is and until when, so that
every process with the token sees and burns the same machines, and a crash forgets nothing. Times on labels are by Hetzner's
clock (the header `Date`), which the machines have too: a wrong clock here burns nothing early and keeps nothing late.

https://docs.hetzner.cloud/reference/cloud
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
import weakref
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from gibil_bot.errors import GibilError, MachineNotFound, NameTaken, ProviderError, Unavailable, UsageError
from gibil_bot.machines import hetzner_labels as labels
from gibil_bot.machines import hetzner_offers as shop
from gibil_bot.machines.cloudinit import move_expiry_script, user_data
from gibil_bot.machines.hetzner_api import ENDPOINT, HTTP_TIMEOUT_S, HetznerApi, Json, Refused
from gibil_bot.machines.hetzner_burn import Burner
from gibil_bot.machines.hetzner_catalogue import Catalogue
from gibil_bot.machines.hetzner_machine import is_machine, is_ours, machine_of
from gibil_bot.machines.hetzner_project import Shared, new_pair, shared
from gibil_bot.machines.hetzner_spares import Spares, reuse_value
from gibil_bot.machines.hetzner_watch import Watch
from gibil_bot.machines.reach import RunOn
from gibil_bot.model import Capabilities, Machine, MachineSpec, SizeOffer

_log = logging.getLogger(__name__)

DEFAULT_IMAGE = "ubuntu-24.04"

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NO_ROOM = frozenset(("resource_unavailable", "placement_error"))


class HetznerProvider:
    """Implements ports.Provider. Where the name of an argument does not say it:

    `run_on`: the way onto a machine that `extend` needs, as the machine powers itself off at its hour.
    `look_every_s`: how often the list is read while machines boot. `boot_s`: how long a server may take until it runs.
    `ssh_port`: 22 at Hetzner; a double may not have that one. `reuse`: of hours that are paid, see hetzner_spares.py.
    """

    name = "hetzner"

    def __init__(
        self,
        token: str,
        *,
        endpoint: str = ENDPOINT,
        run_on: RunOn | None = None,
        ssh_port: int = 22,
        look_every_s: float = 1.0,
        boot_s: float = 180.0,
        burn_s: float = 120.0,
        http_timeout_s: tuple[float, float] = HTTP_TIMEOUT_S,
        backoff_s: float = 0.3,
        probe_forges: bool = False,
        reuse: bool = False,
    ) -> None:
        self._api = HetznerApi(token, endpoint, timeout_s=http_timeout_s, backoff_s=backoff_s)
        self._spares = Spares(self._api, look_every_s)
        self._reuse = reuse
        self._watch = Watch(self._our_servers, look_every_s)
        self._catalogue = Catalogue(self._api)
        self._burner = Burner(self._api, look_every_s, burn_s)
        self._run_on = run_on
        self._ssh_port = ssh_port
        self._burning: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._boot_s = boot_s
        self._probe_forges = probe_forges
        self._shared: asyncio.Task[Shared] | None = None

    async def probe(self) -> Capabilities:
        """Reads: the token works, and there is something to forge. Forges only if the provider was told to: it costs an hour.

        Without forging `forged_in_s` is 0: nobody has measured it.
        """
        began = time.monotonic()
        try:
            await self._catalogue.offers(size="small")
            await self._servers(None)
            if self._probe_forges:
                began = time.monotonic()
                await self._forge_and_burn()
        except GibilError as error:
            remedies = ("set GIBIL_PROVIDER=local to forge machines on this box",)
            raise Unavailable(error.message, remedies) from error
        return Capabilities(
            tier="vm",
            package_installs=True,
            several_users=True,
            memory_limit="hardware",
            forged_in_s=time.monotonic() - began if self._probe_forges else 0.0,
        )

    async def create(self, spec: MachineSpec) -> Machine:
        """Returns when the server runs; SSH answers some seconds later.

        Sold out is not an error while there is another type or location that does: which one it became is in the labels
        `server-type`, `location` and, if it was not the first choice, `instead-of`.
        """
        if not _NAME.fullmatch(spec.name):
            raise UsageError(f"{spec.name!r} cannot be the name of a machine: lower-case letters, digits and '-', at most 63")
        user_data(spec, _now())  # whatever is wrong with it is said before anything exists
        labels.encode(spec.labels)
        offers = await self._catalogue.offers_for(spec)
        deadline = time.monotonic() + self._boot_s
        if self._reuse and (rebuilt := await self._make_of_spare(spec, offers, deadline)) is not None:
            return self._machine(rebuilt)
        refused: ProviderError | None = None
        for offer in offers:
            try:
                return self._machine(await self._make(spec, offer, offers[0], deadline))
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

    async def get(self, name: str) -> Machine | None:
        server = await self._find(name)
        return self._machine(server) if server is not None and is_machine(server) else None

    async def list_machines(self, owner: str | None = None) -> list[Machine]:
        machines = [self._machine(server) for server in await self._servers(owner) if is_machine(server)]
        return sorted(machines, key=lambda machine: (machine.created_at, machine.id))

    async def extend(self, name: str, expires_at: datetime) -> Machine:
        """The machine first, then its label: whatever fails between the two, it never lives on without a label that says so."""
        server = await self._find(name)
        if server is None or not is_ours(server):
            raise MachineNotFound(f"there is no machine named {name} at Hetzner")
        machine = self._machine(server)
        hour = expires_at + self._ahead()
        if self._run_on is not None:
            await self._run_on(machine, move_expiry_script(hour))
        elif expires_at > machine.expires_at:
            raise ProviderError(f"cannot extend machine {name}: nobody here can log in to it, and it powers itself off")
        body = {"labels": {**server["labels"], labels.EXPIRES: labels.time_value(hour)}}
        answer = await self._api.call("PUT", f"/servers/{server['id']}", f"extend machine {name}", body=body)
        return self._machine(answer["server"])

    async def destroy(self, name: str) -> bool:
        lock = self._burning.get(name) or asyncio.Lock()
        self._burning[name] = lock
        async with lock:  # of many at once one burns, and the others find that it is gone
            server = await self._find(name, burning=True)
            if server is None:
                return False
            if not is_ours(server):
                raise NameTaken(f"the server {name} at Hetzner is not gibil-bot's: it stays")
            if not (self._reuse and await self._spares.set_aside(server)):
                await self._burner.burn(server)
            return True

    async def sweep(self, owner: str) -> list[str]:
        """Burns what is beyond its hour, whoever forged it: nobody else may be left to do it. And addresses that stayed behind.

        What cannot be burned now is left to the next sweep.
        """
        gone = []
        for server in await self._servers(None):
            hour = labels.expires_at(server["labels"])
            if hour is not None and hour <= _now() + self._ahead():
                _log.warning("burning %s: its time is up", server["name"])
                self._spares.forget(server["id"])
                try:
                    await self._burner.burn(server)
                except ProviderError as error:
                    _log.warning("%s", error)
                else:
                    gone.append(str(server["name"]))
        return gone + await self._burner.release_leftovers()

    async def close(self) -> None:
        for server in self._spares.forget_all():
            try:
                await self._burner.burn(server)
            except ProviderError as error:  # its hour is on it: some sweep burns it
                _log.warning("%s", error)
        await self._watch.close()
        if self._shared is not None:
            await asyncio.wait({self._shared})
            self._shared.exception()  # seen: who waited for it has it
        await self._api.close()

    # What it costs

    async def sizes(self) -> list[SizeOffer]:
        """What each size would be made of now, and where."""
        found = []
        for size, least in shop.SIZES.items():
            offers = await self._catalogue.offers(size)
            kind = offers[0].server_type
            price = await self._catalogue.price(offers[0])
            found.append(
                SizeOffer(
                    size=size,
                    what=f"{kind}: {least.cores} cores, {least.memory_gb} GB of memory, {least.disk_gb} GB of disk at least",
                    locations=tuple(dict.fromkeys(offer.location for offer in offers if offer.server_type == kind)),
                    price_hourly=price.hourly if price else None,
                    currency=price.currency if price else None,
                )
            )
        return found

    async def price(self, spec: MachineSpec) -> shop.Price | None:
        """Of the offer that would be tried first; net, with the address."""
        offers = await self._catalogue.offers_for(spec)
        return await self._catalogue.price(offers[0])

    async def price_of(self, machine: Machine) -> shop.Price | None:
        """Of a machine that exists: today's price of what it is."""
        offer = shop.Offer(machine.labels.get("server-type", ""), machine.labels.get("location", ""))
        return await self._catalogue.price(offer)

    async def cost_so_far(self, machine: Machine) -> Decimal | None:
        """Net, in the currency of `price_of`; started hours are billed whole."""
        price = await self.price_of(machine)
        return None if price is None else shop.cost_so_far(price, machine.created_at, _now())

    # Making

    async def _forge_and_burn(self) -> None:
        """With keys that nobody keeps."""
        client, host = await asyncio.gather(asyncio.to_thread(new_pair), asyncio.to_thread(new_pair))
        name = f"gibil-probe-{secrets.token_hex(4)}"
        spec = MachineSpec(name=name, owner=name, ttl_s=600, authorized_key=client[1], host_key=host[0])
        try:
            await self.create(spec)
        finally:
            await asyncio.shield(self.destroy(name))

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
        hour = _now() + timedelta(seconds=spec.ttl_s) + self._ahead()
        written = labels.machine_labels(spec, hour)
        if self._reuse and (reuse := reuse_value(spec)) is not None:
            written[labels.REUSE] = reuse
        return hour, written

    async def _make_of_spare(self, spec: MachineSpec, offers: list[shop.Offer], deadline: float) -> Json | None:
        """A server that was set aside for this repository becomes the machine; None: there is none, or it did not work."""
        server = self._spares.take(spec, offers)
        if server is None:
            return None
        hour, written = self._labels(spec)
        try:
            image = spec.image or DEFAULT_IMAGE
            await self._spares.rebuild(server, spec.name, written, image, user_data(spec, hour))
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
        server = await self._find(spec.name)
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

    # Finding

    async def _servers(self, owner: str | None) -> list[Json]:
        query = {"label_selector": labels.selector(owner)}
        return await self._api.pages("/servers", "servers", "list machines", query=query)

    async def _our_servers(self) -> list[Json]:
        return await self._servers(None)

    async def _find(self, name: str, *, burning: bool = False) -> Json | None:
        """By name, ours or not: names are unique in a project."""
        if not _NAME.fullmatch(name):
            return None
        answer = await self._api.call("GET", "/servers", f"look for machine {name}", query={"name": name}, burning=burning)
        found: list[Json] = answer["servers"]
        return found[0] if found else None

    def _ahead(self) -> timedelta:
        return timedelta(seconds=self._api.clock_ahead_s)

    def _machine(self, server: Json) -> Machine:
        return machine_of(server, self._ssh_port, self._api.clock_ahead_s)


def _now() -> datetime:
    return datetime.now(UTC)
