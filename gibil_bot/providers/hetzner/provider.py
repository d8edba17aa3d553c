"""The `hetzner` provider: machines at Hetzner Cloud.

The project's own list is the truth. A machine's name is the idempotency key, its labels say whose it is and until when, so that
every process with the token sees and burns the same machines, and a crash forgets nothing. Times on labels are by Hetzner's
clock (the header `Date`), which the machines have too: a wrong clock here burns nothing early and keeps nothing late.

https://docs.hetzner.cloud/reference/cloud
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import weakref
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from msgspec.structs import replace

from gibil_bot.errors import GibilError, MachineNotFound, NameTaken, ProviderError, Unavailable, UsageError
from gibil_bot.model import Capabilities, Machine, MachineSpec, SizeOffer
from gibil_bot.providers.cloudinit import move_expiry_script, user_data
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner import server_types as shop
from gibil_bot.providers.hetzner.api import ENDPOINT, HTTP_TIMEOUT_S, HetznerApi, Json, Refused
from gibil_bot.providers.hetzner.boot_wait import BootWait
from gibil_bot.providers.hetzner.catalogue import Catalogue
from gibil_bot.providers.hetzner.create import ServerCreator
from gibil_bot.providers.hetzner.delete import ServerDeleter
from gibil_bot.providers.hetzner.project import new_pair
from gibil_bot.providers.hetzner.rebuild_pool import RebuildPool
from gibil_bot.providers.hetzner.servers import NAME, find_server, is_machine, is_ours, machine_of
from gibil_bot.providers.machine_script import RunOn
from gibil_bot.ssh.host_keys import public_line

_log = logging.getLogger(__name__)


class HetznerProvider:
    """Implements ports.Provider. Where the name of an argument does not say it:

    `run_on`: the way onto a machine that `extend` needs, as the machine powers itself off at its hour.
    `look_every_s`: how often the list is read while machines boot. `boot_s`: how long a server may take until it runs.
    `ssh_port`: 22 at Hetzner; a double may not have that one. `reuse`: of hours that are paid, see hetzner_spares.py.
    `server_types`: what may be used; None: by name, what costs no more than the sizes.
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
        rate_limited_s: float = 150.0,
        probe_forges: bool = False,
        reuse: bool = False,
        server_types: tuple[str, ...] | None = None,
    ) -> None:
        self._api = HetznerApi(token, endpoint, timeout_s=http_timeout_s, backoff_s=backoff_s, rate_limited_s=rate_limited_s)
        self._watch = BootWait(self._api, self._our_servers, look_every_s)
        self._catalogue = Catalogue(self._api, server_types)
        self._burner = ServerDeleter(self._api, look_every_s, burn_s)
        self._spares = RebuildPool(self._api, look_every_s, burn_s) if reuse else None
        self._maker = ServerCreator(self._api, self._catalogue, self._watch, self._burner, self._spares, boot_s)
        self._run_on = run_on
        self._ssh_port = ssh_port
        self._burning: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._probe_forges = probe_forges

    async def probe(self) -> Capabilities:
        """Check that the token may read and write, and that a server type is offered.

        It creates a machine only with `probe_forges`, as an hour is billed; otherwise `forged_in_s` is 0.
        """
        began = time.monotonic()
        try:
            await self._catalogue.offers(size="small")
            await self._servers(None)
            await self._may_write()
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
        if not NAME.fullmatch(spec.name):
            raise UsageError(f"{spec.name!r} cannot be the name of a machine: lower-case letters, digits and '-', at most 63")
        user_data(spec, _now())  # whatever is wrong with it is said before anything exists
        labels.encode(spec.labels)
        machine = self._machine(await self._maker.make(spec))
        if not spec.first_host_key:
            return machine
        return replace(machine, endpoint=replace(machine.endpoint, first_host_key=public_line(spec.first_host_key)))

    async def get(self, name: str) -> Machine | None:
        server = await find_server(self._api, name)
        return self._machine(server) if server is not None and is_machine(server) else None

    async def list_machines(self, owner: str | None = None) -> list[Machine]:
        machines = [self._machine(server) for server in await self._servers(owner) if is_machine(server)]
        return sorted(machines, key=lambda machine: (machine.created_at, machine.id))

    async def extend(self, name: str, expires_at: datetime) -> Machine:
        """The machine first, then its label: whatever fails between the two, it never lives on without a label that says so."""
        server = await find_server(self._api, name)
        if server is None or not is_ours(server):
            raise MachineNotFound(f"there is no machine named {name} at Hetzner")
        machine = self._machine(server)
        hour = expires_at + self._ahead()
        if self._run_on is not None:
            await self._run_on(machine, move_expiry_script(hour))
        elif expires_at > machine.expires_at:
            raise ProviderError(f"cannot extend machine {name}: nobody here can log in to it, and it powers itself off")
        path, doing = f"/servers/{server['id']}", f"extend machine {name}"
        try:
            # Logging in took seconds, and PUT replaces all labels: those that were written meanwhile are kept.
            server = (await self._api.call("GET", path, doing))["server"]
            body = {"labels": {**server["labels"], labels.EXPIRES: labels.time_value(hour)}}
            answer = await self._api.call("PUT", path, doing, body=body)
        except Refused as error:
            if error.reason == "not_found":
                raise MachineNotFound(f"machine {name} was burned while it was being extended") from None
            raise
        return self._machine(answer["server"])

    async def destroy(self, name: str) -> bool:
        lock = self._burning.get(name) or asyncio.Lock()
        self._burning[name] = lock
        async with lock:  # of many at once one burns, and the others find that it is gone
            server = await find_server(self._api, name, burning=True)
            if server is None:
                return False
            if not is_ours(server):
                raise NameTaken(f"the server {name} at Hetzner is not gibil-bot's: it stays")
            if self._spares is None or not await self._spares.set_aside(server):
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
                if self._spares is not None:
                    self._spares.forget(server["id"])
                try:
                    await self._burner.burn(server)
                except ProviderError as error:
                    _log.warning("%s", error)
                else:
                    gone.append(str(server["name"]))
        return gone + await self._burner.release_leftovers()

    async def close(self) -> None:
        for server in self._spares.forget_all() if self._spares is not None else ():
            try:
                await self._burner.burn(server)
            except ProviderError as error:  # its hour is on it: some sweep burns it
                _log.warning("%s", error)
        await self._watch.close()
        await self._maker.close()
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

    async def _may_write(self) -> None:
        """Raises Refused if the token may only read. With write access, an empty SSH key is rejected for another reason."""
        body = {"name": "", "public_key": ""}
        try:
            made = await self._api.call("POST", "/ssh_keys", "write to this Hetzner project", body=body)
        except Refused as error:
            if error.status in (401, 403):
                raise
        else:  # not documented; delete it
            await self._api.call("DELETE", f"/ssh_keys/{made['ssh_key']['id']}", "delete an empty SSH key", burning=True)

    async def _forge_and_burn(self) -> None:
        """With keys that nobody keeps."""
        client, host = await asyncio.gather(asyncio.to_thread(new_pair), asyncio.to_thread(new_pair))
        name = f"gibil-probe-{secrets.token_hex(4)}"
        spec = MachineSpec(name=name, owner=name, ttl_s=600, authorized_key=client[1], host_key=host[0])
        try:
            await self.create(spec)
        finally:
            await asyncio.shield(self.destroy(name))

    # Finding

    async def _servers(self, owner: str | None) -> list[Json]:
        query = {"label_selector": labels.selector(owner)}
        return await self._api.pages("/servers", "servers", "list machines", query=query)

    async def _our_servers(self) -> list[Json]:
        return await self._servers(None)

    def _ahead(self) -> timedelta:
        return timedelta(seconds=self._api.clock_ahead_s)

    def _machine(self, server: Json) -> Machine:
        return machine_of(server, self._ssh_port, self._api.clock_ahead_s)


def _now() -> datetime:
    return datetime.now(UTC)
