"""The state behind the Hetzner double: resources, actions, and servers with realistic delays."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from tests.doubles import hetzner_catalogue as catalogue

Json = dict[str, Any]


class ApiError(Exception):
    """An error response in Hetzner's form. `details`: its schema depends on the code (reference, Errors)."""

    def __init__(self, status: int, code: str, message: str, details: Json | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details

    def body(self) -> Json:
        return {"error": {"code": self.code, "message": self.message, "details": self.details}}


def fields(*names: str, message: str | None = None) -> Json:
    """Return the documented `details` of `invalid_input` and `uniqueness_error`."""
    messages = {} if message is None else {"messages": [message]}
    return {"fields": [{"name": name, **messages} for name in names]}


def malformed(field_name: str, message: str) -> ApiError:
    """Return the error of a malformed request: it names the field (reference, Errors; reported for malformed requests only)."""
    whole = f"invalid input in field '{field_name}': {message}" if field_name else f"invalid input: {message}"
    return ApiError(422, "invalid_input", whole, fields(field_name, message=message) if field_name else {})


def unsuitable(message: str) -> ApiError:
    """Return the error for a referenced object that doesn't exist or fit: no field is named (autobase-tech/autobase#1403)."""
    return ApiError(422, "invalid_input", message, {})


def limit_exceeded(what: str) -> ApiError:
    """The form is documented; the names of limits other than `project_limit` aren't."""
    details = {"limits": [{"name": f"{what.replace(' ', '_')}_limit"}]}
    return ApiError(403, "resource_limit_exceeded", f"{what} limit exceeded", details)


LOCKED = ApiError(423, "locked", "cannot perform operation because resource is locked")
ACTION_FAILED = ApiError(0, "action_failed", "Action failed")
NO_PLACE = ApiError(412, "resource_unavailable", "error during placement")
TAKEN = ApiError(409, "uniqueness_error", "server name is already used", fields("name"))


class Guests(Protocol):
    """The computers behind the servers."""

    async def address(self) -> str: ...

    async def boot(self, name: str, address: str, user_data: str, keys: list[str], powered_off: Callable[[], None]) -> None:
        """Return when the computer is switched on; its system is still booting. `powered_off`: called at a power-off."""

    async def switch_off(self, name: str) -> None: ...

    async def remove(self, name: str) -> None: ...

    async def close(self) -> None: ...


class NoGuests:
    """Servers that never boot: enough for tests of the API alone. Addresses of TEST-NET-3."""

    def __init__(self) -> None:
        self._count = 0
        self.user_data: dict[str, str] = {}

    async def address(self) -> str:
        self._count += 1
        return f"203.0.113.{self._count % 250 + 1}"

    async def boot(self, name: str, address: str, user_data: str, keys: list[str], powered_off: Callable[[], None]) -> None:
        self.user_data[name] = user_data

    async def switch_off(self, name: str) -> None: ...

    async def remove(self, name: str) -> None: ...

    async def close(self) -> None: ...


@dataclass
class State:
    """Every field may be changed by a test."""

    guests: Guests = field(default_factory=NoGuests)
    initializing_s: float = 0.0
    off_s: float = 0.0
    """How long a server is `off` between its creation and its start (terraform-provider-hcloud#505)."""
    starting_s: float = 0.0
    stopping_s: float = 0.0
    rebuilding_s: float = 0.0
    deleting_s: float = 0.0
    snapshot_s: float = 0.0
    snapshot_fails: bool = False
    """Whether the action `create_image` fails, after which the image is `unavailable` (inferred)."""
    locked_longer_s: float = 0.0
    """How long a server stays locked after its action has ended."""
    firewalls_s: float = 0.0
    """How long a firewall is `pending` on a server that runs; below 0: for ever."""
    auto_delete: bool = True
    """Whether automatically assigned addresses are deleted with their server: reported, not documented."""
    sold_out: set[tuple[str, str]] = field(default_factory=set)
    """(type, location): 412 at once."""
    sold_out_later: set[tuple[str, str]] = field(default_factory=set)
    """(type, location): 201, and then the action fails and the server is removed."""
    start_fails: set[tuple[str, str]] = field(default_factory=set)
    """(type, location): the server is created, the action `start_server` fails, and it stays `off`."""
    create_fails: set[tuple[str, str]] = field(default_factory=set)
    """(type, location): the action `create_server` fails, and the server stays `initializing`."""
    never_started: set[tuple[str, str]] = field(default_factory=set)
    """(type, location): both actions succeed, and the server is still `off` (terraform-provider-hcloud#505)."""
    rebuild_starts: bool = False
    """Whether a server that was off runs after a rebuild; not documented."""
    maintained: set[str] = field(default_factory=set)
    """Locations that answer 403 `maintenance`."""
    absent_status: int = 422
    """Status for a server whose firewall or SSH key doesn't exist: 422 `invalid_input` or 404 `not_found`; not documented."""
    server_limit: int = 1000
    dedicated_limit: int = 1000
    address_limit: int = 1000
    clock_ahead_s: float = 0.0
    types: list[Json] = field(default_factory=catalogue.server_types)
    servers: dict[int, Json] = field(default_factory=dict)
    user_data: dict[int, str] = field(default_factory=dict)
    keys_of: dict[int, list[str]] = field(default_factory=dict)
    primary_ips: dict[int, Json] = field(default_factory=dict)
    firewalls: dict[int, Json] = field(default_factory=dict)
    ssh_keys: dict[int, Json] = field(default_factory=dict)
    snapshots: dict[int, Json] = field(default_factory=dict)
    actions: dict[int, Json] = field(default_factory=dict)
    locked: set[int] = field(default_factory=set)
    guest_names: dict[int, str] = field(default_factory=dict)
    """The name of a server's computer when it booted: a renamed server keeps its computer."""
    _last_id: int = 1000
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def now(self) -> str:
        return datetime.fromtimestamp(time.time() + self.clock_ahead_s, UTC).isoformat(timespec="microseconds")

    def action(self, command: str, *resources: tuple[str, int], status: str = "running") -> Json:
        action: Json = {
            "id": self.new_id(),
            "command": command,
            "status": status,
            "progress": 100 if status == "success" else 0,
            "started": self.now(),
            "finished": self.now() if status == "success" else None,
            "resources": [{"id": number, "type": kind} for kind, number in resources],
            "error": None,
        }
        self.actions[action["id"]] = action
        return action

    def images(self) -> list[Json]:
        return [*catalogue.IMAGES, *self.snapshots.values()]

    def create_image(self, server: Json, body: Json) -> tuple[Json, Json]:
        """https://docs.hetzner.cloud/reference/cloud#server-actions-create-image-from-a-server. Returns (image, action)."""
        if server["id"] in self.locked:
            raise LOCKED
        number = self.new_id()
        action = self.action("create_image", ("server", server["id"]), ("image", number))
        image = {
            **copy.deepcopy(server["image"]),
            "id": number,
            "type": body.get("type", "snapshot"),
            "status": "creating",
            "name": None,
            "description": body.get("description") or f"snapshot {self.now()}",
            "image_size": None,
            "disk_size": server["server_type"]["disk"],
            "created": self.now(),
            "created_from": {"id": server["id"], "name": server["name"]},
            "rapid_deploy": False,
            "labels": body.get("labels", {}),
        }
        self.snapshots[number] = image

        async def complete() -> None:
            self.locked.add(server["id"])
            await asyncio.sleep(self.snapshot_s)
            self.locked.discard(server["id"])
            if self.snapshot_fails:
                image["status"] = "unavailable"
                self.end(action, ACTION_FAILED)
            else:
                image.update(status="available", image_size=2.5)
                self.end(action)

        self.spawn(complete())
        return image, action

    def end(self, action: Json, error: ApiError | None = None) -> None:
        action |= {"status": "error" if error else "success", "progress": 100, "finished": self.now()}
        if error:
            action["error"] = {"code": error.code, "message": error.message}

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.guests.close()

    # Servers

    async def create_server(self, body: Json) -> Json:
        """`body` has the documented form (hetzner_schema.py)."""
        kind = self._named(self.types, body["server_type"], "server type")
        image = self._image(body["image"], kind)
        place = self._named(catalogue.LOCATIONS, body.get("location", "fsn1"), "location")
        name, where = body["name"], (kind["name"], place["name"])
        for each in body.get("firewalls", ()):
            if each["firewall"] not in self.firewalls:
                raise self._absent(f"firewall with ID '{each['firewall']}' not found")
        keys = [self._key(each) for each in body.get("ssh_keys", ())]
        if any(server["name"] == name for server in self.servers.values()):
            raise TAKEN
        with_address = body.get("public_net", {}).get("enable_ipv4", True)
        if len(self.servers) >= self.server_limit:
            raise limit_exceeded("server")
        dedicated = [each for each in self.servers.values() if each["server_type"]["cpu_type"] == "dedicated"]
        if kind["cpu_type"] == "dedicated" and len(dedicated) >= self.dedicated_limit:
            raise limit_exceeded("dedicated core")
        if with_address and len(self.primary_ips) >= self.address_limit:
            raise limit_exceeded("primary ip")
        offered = next((each for each in kind["locations"] if each["name"] == place["name"]), None)
        if offered is None or offered["deprecation"]:
            raise unsuitable("unsupported location for server type")
        if place["name"] in self.maintained:
            raise ApiError(403, "maintenance", "cannot perform operation due to maintenance")
        if where in self.sold_out:
            raise NO_PLACE
        number: int = self.new_id()
        address = await self._assign_address(number, place) if with_address else None
        server: Json = {
            "id": number,
            "name": name,
            "status": "initializing",
            "created": self.now(),
            "public_net": {
                "ipv4": address and {"id": address["id"], "ip": address["ip"], "blocked": False, "dns_ptr": "double.example"},
                "ipv6": None,
                "floating_ips": [],
                "firewalls": [{"id": each["firewall"], "status": "pending"} for each in body.get("firewalls", ())],
            },
            "private_net": [],
            "server_type": kind,
            "location": place,
            "image": image,
            "iso": None,
            "rescue_enabled": False,
            "locked": True,
            "backup_window": None,
            "outgoing_traffic": 0,
            "ingoing_traffic": 0,
            "included_traffic": 20 * 2**40,
            "protection": {"delete": False, "rebuild": False},
            "labels": body.get("labels", {}),
            "volumes": [],
            "load_balancers": [],
            "primary_disk_size": kind["disk"],
            "placement_group": None,
        }
        self.servers[number] = server
        self.user_data[number] = body.get("user_data", "")
        self.keys_of[number] = keys
        created = self.action("create_server", ("server", number))
        following = [self.action("start_server", ("server", number))] if body.get("start_after_create", True) else []
        answer = copy.deepcopy({"server": server, "action": created, "next_actions": following})
        self.spawn(self._come_up(server, created, following))
        return {**answer, "root_password": None if keys else secrets.token_urlsafe(12)}

    async def _come_up(self, server: Json, created: Json, following: list[Json]) -> None:
        async with self._locked(server):
            await asyncio.sleep(self.initializing_s)
            where = (server["server_type"]["name"], server["location"]["name"])
            if where in self.sold_out_later:
                self.end(created, NO_PLACE)
                self._forget_server(server)
                return
            if where in self.create_fails:
                for action in (created, *following):
                    self.end(action, ACTION_FAILED)
                return
            self.end(created)
            server["status"] = "off"
            await asyncio.sleep(self.off_s)
            for action in following:
                if where in self.start_fails:
                    self.end(action, ACTION_FAILED)
                elif where in self.never_started:
                    self.end(action)
                else:
                    await self.start(server, action)
            await self.apply_firewalls(server)

    @contextlib.asynccontextmanager
    async def _locked(self, server: Json) -> AsyncIterator[None]:
        """Reject the call while an action runs (reference, Errors, `locked`), and right after the server's creation."""
        server["locked"] = True
        try:
            yield
        finally:
            if self.locked_longer_s:
                await asyncio.sleep(self.locked_longer_s)
            server["locked"] = False

    async def apply_firewalls(self, server: Json) -> None:
        if self.firewalls_s < 0:
            return
        await asyncio.sleep(self.firewalls_s)
        for each in server["public_net"]["firewalls"]:
            each["status"] = "applied"

    async def start(self, server: Json, action: Json) -> None:
        server["status"] = "starting"
        await asyncio.sleep(self.starting_s)
        if server["id"] not in self.servers:
            return
        address = (server["public_net"]["ipv4"] or {}).get("ip", "")
        number = server["id"]
        name = self.guest_names.setdefault(number, server["name"])
        await self.guests.boot(
            name, address, self.user_data[number], self.keys_of[number], lambda: self._switched_itself_off(server)
        )
        if server["status"] == "starting":
            server["status"] = "running"
        self.end(action)

    async def stop(self, server: Json) -> None:
        await self.guests.switch_off(self.guest_names.get(server["id"], ""))
        server["status"] = "off"

    def power_off(self, server: Json) -> Json:
        """Return a running action; the server is locked meanwhile (jenkinsci/hetzner-cloud-plugin#92)."""
        self._free(server)
        return self._act(server, "stop_server", self._stop)

    async def _stop(self, server: Json, action: Json) -> None:
        server["status"] = "stopping"
        await asyncio.sleep(self.stopping_s)
        await self.stop(server)
        self.end(action)

    def power_on(self, server: Json) -> Json:
        self._free(server)
        return self._act(server, "start_server", self.start)

    def delete_server(self, server: Json) -> Json:
        if server["protection"]["delete"]:
            raise ApiError(423, "protected", "server is delete protected")
        self._free(server)
        server["status"] = "deleting"
        return self._act(server, "delete_server", self._remove_server)

    def lose(self, server: Json) -> None:
        """Remove the server at once, whatever runs on it, as another client or the vendor would."""
        self._forget_server(server)

    def rebuild(self, server: Json, body: Json) -> Json:
        """https://docs.hetzner.cloud/reference/cloud#server-actions-rebuild-a-server-from-an-image"""
        self._free(server)
        server["image"] = self._image(body["image"], server["server_type"])
        self.user_data[server["id"]] = body.get("user_data", self.user_data[server["id"]])
        starts = self.rebuild_starts or server["status"] == "running"
        server["status"] = "rebuilding"

        async def rebuild(server: Json, action: Json) -> None:
            await asyncio.sleep(self.rebuilding_s)
            await self._remove_guest(server)
            if starts:
                await self.start(server, action)
            else:
                server["status"] = "off"
                self.end(action)

        return self._act(server, "rebuild_server", rebuild)

    def _act(self, server: Json, command: str, work: Callable[[Json, Json], Coroutine[Any, Any, None]]) -> Json:
        action = self.action(command, ("server", server["id"]))

        async def act() -> None:
            async with self._locked(server):
                await work(server, action)

        answer = dict(action)
        server["locked"] = True
        self.spawn(act())
        return answer

    async def _remove_guest(self, server: Json) -> None:
        await self.guests.remove(self.guest_names.pop(server["id"], ""))

    async def _remove_server(self, server: Json, action: Json) -> None:
        await asyncio.sleep(self.deleting_s)
        await self._remove_guest(server)
        self._forget_server(server)
        self.end(action)

    def _forget_server(self, server: Json) -> None:
        self.servers.pop(server["id"], None)
        for address in tuple(self.primary_ips.values()):
            if address["assignee_id"] == server["id"]:
                address |= {"assignee_id": None, "assignee_type": "unassigned"}
                if address["auto_delete"]:
                    del self.primary_ips[address["id"]]

    def _switched_itself_off(self, server: Json) -> None:
        if server["status"] in ("running", "starting"):
            server["status"] = "off"

    def _free(self, server: Json) -> None:
        if server["locked"] or server["id"] in self.locked or server["status"] == "deleting":
            raise LOCKED

    async def _assign_address(self, number: int, place: Json) -> Json:
        address: Json = {
            "id": self.new_id(),
            "name": f"primary_ip-{self._last_id}",
            "ip": await self.guests.address(),
            "type": "ipv4",
            "assignee_id": number,
            "assignee_type": "server",
            "auto_delete": self.auto_delete,
            "blocked": False,
            "created": self.now(),
            "location": place,
            "dns_ptr": [],
            "labels": {},
            "protection": {"delete": False},
        }
        self.primary_ips[address["id"]] = address
        return address

    def delete_address(self, address: Json) -> None:
        if address["assignee_id"] is not None:
            raise ApiError(422, "must_be_unassigned", "primary IP must be unassigned")
        del self.primary_ips[address["id"]]

    # Names

    def _image(self, wanted: object, kind: Json) -> Json:
        """Return the first image with this name: whether Hetzner chooses by architecture isn't documented."""
        image = self._named(self.images(), wanted, "image")
        if image["status"] != "available":
            raise unsuitable("image is not available")
        if kind["disk"] < image["disk_size"]:
            raise unsuitable("image disk is bigger than server type disk")
        if image["architecture"] != kind["architecture"]:
            raise unsuitable("image has incompatible architecture")
        return image

    @staticmethod
    def _named(things: list[Json], wanted: object, what: str) -> Json:
        if (thing := _find(things, wanted)) is None:
            raise unsuitable(f"{what} '{wanted}' not found")
        return thing

    def _key(self, wanted: object) -> str:
        if (key := _find(self.ssh_keys.values(), wanted)) is None:
            raise self._absent(f"SSH key '{wanted}' not found")
        return str(key["public_key"])

    def _absent(self, message: str) -> ApiError:
        return ApiError(404, "not_found", message) if self.absent_status == 404 else unsuitable(message)


def _find(things: Iterable[Json], wanted: object) -> Json | None:
    """Find an object by its ID or its name."""
    return next((thing for thing in things if str(wanted) in (str(thing["id"]), thing["name"])), None)
