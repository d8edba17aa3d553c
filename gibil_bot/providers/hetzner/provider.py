"""The `hetzner` provider: machines at Hetzner Cloud.

The project's own list is the truth. A machine's name is the idempotency key, and its labels store the owner and the expiry, so
every process with the token sees and deletes the same machines, and a crash loses nothing. Times in labels are by Hetzner's
clock (the header `Date`), which the machines have too: with a wrong clock on this host, no machine is deleted early or late.

https://docs.hetzner.cloud/reference/cloud
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from msgspec.structs import replace

from gibil_bot.errors import GibilError, MachineNotFound, NameTaken, ProviderError, Unavailable, UsageError
from gibil_bot.limits import MACHINE_NAME, MACHINE_NAME_RULE
from gibil_bot.model import Capabilities, EgressRestriction, Machine, MachineSpec, Refusals, SizeOffer, Template
from gibil_bot.ports import Shell
from gibil_bot.providers.cloudinit import move_expiry_script, user_data
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.agent_network import AgentNetworks, ForwardPort, is_limited
from gibil_bot.providers.hetzner.api import ENDPOINT, HTTP_TIMEOUT_S, HetznerApi, Json, Rejected
from gibil_bot.providers.hetzner.boot_wait import BootWait
from gibil_bot.providers.hetzner.create import ServerCreator
from gibil_bot.providers.hetzner.delete import ServerDeleter
from gibil_bot.providers.hetzner.rebuild_pool import RebuildPool
from gibil_bot.providers.hetzner.server_types import SIZES, Candidate, Catalogue, Price, cost_so_far
from gibil_bot.providers.hetzner.servers import find_server, is_machine, is_ours, machine_of
from gibil_bot.providers.hetzner.snapshots import Snapshots
from gibil_bot.providers.lifecycle import RunOn
from gibil_bot.ssh.host_keys import public_line

_log = logging.getLogger(__name__)


class HetznerProvider:
    """Implements ports.Provider, Filtering, Offering, Priced, Restricting and Templating.

    `forward` gives a machine the way out that an agent on it needs: see agent_network.py.
    `run_on` runs a script on a machine; `extend` needs it, because a machine powers itself off when it expires.
    `look_every_s`: how often the list of servers is read while some of them boot. `boot_s`: how long a server may take to
    run, `delete_s` to be deleted, and `snapshot_s` a snapshot to be complete. `ssh_port`: 22 at Hetzner; a double may not
    have that port. `reuse`: see rebuild_pool.py. `server_types`: which may be used; None: a type requested by name may cost
    no more than the sizes do.
    """

    name = "hetzner"
    is_local = False

    def __init__(
        self,
        token: str,
        *,
        endpoint: str = ENDPOINT,
        run_on: RunOn | None = None,
        forward: ForwardPort | None = None,
        ssh_port: int = 22,
        look_every_s: float = 1.0,
        boot_s: float = 180.0,
        delete_s: float = 120.0,
        snapshot_s: float = 1800.0,
        http_timeout_s: tuple[float, float] = HTTP_TIMEOUT_S,
        backoff_s: float = 0.3,
        rate_limited_s: float = 150.0,
        reuse: bool = False,
        server_types: tuple[str, ...] | None = None,
    ) -> None:
        self._api = HetznerApi(token, endpoint, timeout_s=http_timeout_s, backoff_s=backoff_s, rate_limited_s=rate_limited_s)
        self._boot_wait = BootWait(self._api, self._our_servers, look_every_s)
        self._catalogue = Catalogue(self._api, server_types)
        self._deleter = ServerDeleter(self._api, look_every_s, delete_s)
        self._rebuild_pool = RebuildPool(self._api, look_every_s, delete_s) if reuse else None
        self._creator = ServerCreator(self._api, self._catalogue, self._boot_wait, self._deleter, self._rebuild_pool, boot_s)
        self._snapshots = Snapshots(self._api, look_every_s, snapshot_s)
        self._run_on = run_on
        self._agent_networks = AgentNetworks(self._api, forward, look_every_s)
        self._ssh_port = ssh_port
        self._deleting: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def probe(self) -> Capabilities:
        """Check that the token may read and write, and that a server type is available.

        No machine is created, because every started hour is billed; `forged_in_s` is 0.
        """
        try:
            await self._catalogue.candidates(size="small")
            await self._servers(None)
            await self._check_write_access()
        except GibilError as error:
            remedies = ("set GIBIL_PROVIDER=local to create machines on this host",)
            raise Unavailable(error.message, remedies) from error
        return Capabilities(tier="vm", package_installs=True, several_users=True, memory_limit="hardware", forged_in_s=0.0)

    async def create(self, spec: MachineSpec) -> Machine:
        """Create a machine; returns when its server runs. SSH answers some seconds later.

        A server type that is sold out isn't an error while another type or location is available. The labels `server-type`,
        `location` and, if it wasn't the first choice, `instead-of` say what was created.
        """
        if not MACHINE_NAME.fullmatch(spec.name):
            raise UsageError(f"{spec.name!r} is not a valid machine name: use {MACHINE_NAME_RULE}")
        user_data(spec, _now())  # reports invalid values before anything exists
        labels.encode(spec.labels)
        machine = self._machine(await self._creator.create(spec))
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
        """Move the expiry on the machine first, then in its label: after a failure in between, the label is never too late."""
        server = await self._existing(name, is_ours)
        machine = self._machine(server)
        expiry = expires_at + self._ahead()
        if self._run_on is not None:
            await self._run_on(machine, move_expiry_script(expiry))
        elif expires_at > machine.expires_at:
            raise ProviderError(
                f"cannot extend machine {name}: it powers itself off, and this process has no key to log in and move its expiry"
            )
        path, doing = f"/servers/{server['id']}", f"extend machine {name}"
        try:
            # Logging in took seconds, and PUT replaces all labels: read them again to keep those that were written meanwhile.
            server = (await self._api.call("GET", path, doing))["server"]
            body = {"labels": {**server["labels"], labels.EXPIRES: labels.time_value(expiry)}}
            answer = await self._api.call("PUT", path, doing, body=body)
        except Rejected as error:
            if error.reason == "not_found":
                raise MachineNotFound(f"machine {name} was deleted while it was being extended") from None
            raise
        return self._machine(answer["server"])

    async def destroy(self, name: str) -> bool:
        await self._agent_networks.forget(name)
        lock = self._deleting.get(name) or asyncio.Lock()
        self._deleting[name] = lock
        async with lock:  # of several concurrent calls one deletes, and the others find that the server is gone
            server = await find_server(self._api, name, deleting=True)
            if server is None:
                return False
            if not is_ours(server):
                raise NameTaken(f"server {name} at Hetzner was not created by gibil-bot, so gibil doesn't delete it")
            if is_limited(server) or self._rebuild_pool is None or not await self._rebuild_pool.add(server):
                await self._deleter.delete(server)
            return True

    async def sweep(self, owner: str) -> list[str]:
        """Delete expired servers of every owner, whose own process may be gone, and addresses that no server has.

        What can't be deleted now is left to the next sweep.
        """
        gone = []
        for server in await self._servers(None):
            expiry = labels.expires_at(server["labels"])
            if expiry is not None and expiry <= _now() + self._ahead():
                _log.warning("deleting server %s, which has expired", server["name"])
                if self._rebuild_pool is not None:
                    self._rebuild_pool.forget(server["id"])
                try:
                    await self._deleter.delete(server)
                except ProviderError as error:
                    _log.warning("%s", error)
                else:
                    gone.append(str(server["name"]))
        return gone + await self._deleter.release_leftovers()

    async def close(self) -> None:
        for server in self._rebuild_pool.forget_all() if self._rebuild_pool is not None else ():
            try:
                await self._deleter.delete(server)
            except ProviderError as error:  # a later sweep deletes it when it expires
                _log.warning("%s", error)
        await self._agent_networks.close()
        await self._boot_wait.close()
        await self._creator.close()
        await self._api.close()

    # Agents

    async def restrict_egress(self, name: str, allow: tuple[str, ...], shell: Shell) -> EgressRestriction:
        """As Restricting.restrict_egress. Root on the server could still send data to Hetzner's name servers."""
        return await self._agent_networks.limit(self._machine(await self._existing(name)), allow, shell)

    async def lift_egress(self, name: str, shell: Shell) -> None:
        await self._agent_networks.lift(self._machine(await self._existing(name)), shell)

    async def _existing(self, name: str, is_it: Callable[[Json], bool] = is_machine) -> Json:
        server = await find_server(self._api, name)
        if server is None or not is_it(server):
            raise MachineNotFound(f"no machine named {name} exists at Hetzner")
        return server

    async def refusals(self, name: str, since: float) -> Refusals:
        """As `Filtering` requires; empty unless an agent works on the machine."""
        return self._agent_networks.refusals(name, since)

    # Templates

    async def save_template(self, name: str, template: str, *, stop: bool = False) -> Template:
        """Take a snapshot. The server's processes go on, whatever `stop` says; files that they are writing may be torn."""
        server = await self._existing(name)
        machine = self._machine(server)
        if self._run_on is not None:
            await self._run_on(machine, "sync")
        return await self._snapshots.create(server, template, machine.labels)

    async def templates(self) -> list[Template]:
        return await self._snapshots.templates()

    async def delete_template(self, template: str) -> bool:
        return await self._snapshots.delete(template)

    # Sizes and prices

    async def sizes(self) -> list[SizeOffer]:
        """Return the server type that each size would get now, and its locations."""
        found = []
        for size, least in SIZES.items():
            candidates = await self._catalogue.candidates(size)
            server_type = candidates[0].server_type
            price = await self._catalogue.price(candidates[0])
            found.append(
                SizeOffer(
                    size=size,
                    what=f"{server_type}: at least {least.cores} cores, {least.memory_gb} GB of memory, "
                    f"{least.disk_gb} GB of disk",
                    locations=tuple(dict.fromkeys(each.location for each in candidates if each.server_type == server_type)),
                    price_hourly=price.hourly if price else None,
                    currency=price.currency if price else None,
                )
            )
        return found

    async def price_of(self, machine: Machine) -> Price | None:
        """Return today's price of an existing machine's server type and location."""
        return await self._catalogue.price(Candidate(machine.labels.get("server-type", ""), machine.labels.get("location", "")))

    async def cost_so_far(self, machine: Machine) -> Decimal | None:
        """Return the net cost in the currency of `price_of`. Every started hour is billed whole."""
        price = await self.price_of(machine)
        return None if price is None else cost_so_far(price, machine.created_at, _now())

    async def _check_write_access(self) -> None:
        """Raise Rejected if the token may only read. With write access, an empty SSH key is rejected for another reason."""
        body = {"name": "", "public_key": ""}
        try:
            created = await self._api.call("POST", "/ssh_keys", "write to this Hetzner project", body=body)
        except Rejected as error:
            if error.status in (401, 403):
                raise
        else:  # the API documents no such success; delete the key
            path = f"/ssh_keys/{created['ssh_key']['id']}"
            await self._api.call("DELETE", path, "delete an empty SSH key", deleting=True)

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
