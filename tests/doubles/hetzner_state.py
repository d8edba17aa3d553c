"""The state behind the Hetzner double: resources, actions, and servers that take their time."""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from tests.doubles import hetzner_catalogue as catalogue

Json = dict[str, Any]

LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")
LABEL_KEY = re.compile(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
HOSTNAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9-]{1,63})*")
USER_DATA_BYTES = 32 * 1024


class ApiError(Exception):
    """An answer that is an error, in Hetzner's form."""

    def __init__(self, status: int, code: str, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.fields = status, code, message, fields

    def body(self) -> Json:
        details = {"fields": [{"name": name, "messages": [self.message]} for name in self.fields]} if self.fields else None
        return {"error": {"code": self.code, "message": self.message, "details": details}}


def invalid(field_name: str, message: str) -> ApiError:
    return ApiError(422, "invalid_input", f"invalid input in field '{field_name}': {message}", (field_name,))


class Guests(Protocol):
    """The computers behind the servers."""

    async def address(self) -> str: ...

    async def boot(self, name: str, address: str, user_data: str, keys: list[str], powered_off: Callable[[], None]) -> None:
        """Returns when the computer is switched on; its system goes on booting. `powered_off`: it switched itself off."""

    async def switch_off(self, name: str) -> None: ...

    async def remove(self, name: str) -> None: ...

    async def close(self) -> None: ...


class NoGuests:
    """Servers that never boot: enough for whoever only talks to the API. Addresses of TEST-NET-3."""

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
    """Everything a test may turn is a field here."""

    guests: Guests = field(default_factory=NoGuests)
    initializing_s: float = 0.0
    starting_s: float = 0.0
    deleting_s: float = 0.0
    auto_delete: bool = True
    """Of addresses that a server was given without asking: what Hetzner does is reported, not documented."""
    sold_out: set[tuple[str, str]] = field(default_factory=set)
    """(type, location): 412 at once."""
    sold_out_later: set[tuple[str, str]] = field(default_factory=set)
    """(type, location): 201, and then the action fails and the server goes."""
    server_limit: int = 1000
    clock_ahead_s: float = 0.0
    types: list[Json] = field(default_factory=catalogue.server_types)
    servers: dict[int, Json] = field(default_factory=dict)
    user_data: dict[int, str] = field(default_factory=dict)
    keys_of: dict[int, list[str]] = field(default_factory=dict)
    primary_ips: dict[int, Json] = field(default_factory=dict)
    firewalls: dict[int, Json] = field(default_factory=dict)
    ssh_keys: dict[int, Json] = field(default_factory=dict)
    actions: dict[int, Json] = field(default_factory=dict)
    locked: set[int] = field(default_factory=set)
    guest_names: dict[int, str] = field(default_factory=dict)
    """What a server's computer was called when it booted: a server that is renamed keeps its computer."""
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
        name = body.get("name")
        if not isinstance(name, str) or not HOSTNAME.fullmatch(name):
            raise invalid("name", "must be a valid hostname")
        kind = self._named(self.types, body.get("server_type"), "server_type")
        image = self._named(catalogue.IMAGES, body.get("image"), "image")
        place = self._named(catalogue.LOCATIONS, body.get("location") or "fsn1", "location")
        labels = check_labels(body.get("labels") or {})
        user_data = body.get("user_data") or ""
        if len(user_data.encode()) > USER_DATA_BYTES:
            raise invalid("user_data", "exceeds 32KiB")
        for each in body.get("firewalls") or ():
            if each["firewall"] not in self.firewalls:
                raise invalid("firewalls", f"firewall {each['firewall']} not found")
        keys = [self._key(each) for each in body.get("ssh_keys") or ()]
        if any(server["name"] == name for server in self.servers.values()):
            raise ApiError(409, "uniqueness_error", "server name is already used", ("name",))
        if len(self.servers) >= self.server_limit:
            raise ApiError(403, "resource_limit_exceeded", "server limit exceeded")
        offered = next((each for each in kind["locations"] if each["name"] == place["name"]), None)
        if offered is None or offered["deprecation"]:
            raise invalid("server_type", f"unsupported location for server type {kind['name']}")
        if (kind["name"], place["name"]) in self.sold_out:
            raise ApiError(412, "resource_unavailable", "error during placement")
        number: int = self.new_id()
        address = await self._assign_address(number, place) if (body.get("public_net") or {}).get("enable_ipv4", True) else None
        server: Json = {
            "id": number,
            "name": name,
            "status": "initializing",
            "created": self.now(),
            "public_net": {
                "ipv4": address and {"id": address["id"], "ip": address["ip"], "blocked": False, "dns_ptr": "double.example"},
                "ipv6": None,
                "floating_ips": [],
                "firewalls": [{"id": each["firewall"], "status": "applied"} for each in body.get("firewalls") or ()],
            },
            "private_net": [],
            "server_type": kind,
            "location": place,
            "image": image,
            "iso": None,
            "rescue_enabled": False,
            "locked": False,
            "backup_window": None,
            "outgoing_traffic": 0,
            "ingoing_traffic": 0,
            "included_traffic": 20 * 2**40,
            "protection": {"delete": False, "rebuild": False},
            "labels": labels,
            "volumes": [],
            "load_balancers": [],
            "primary_disk_size": kind["disk"],
            "placement_group": None,
        }
        self.servers[number] = server
        self.user_data[number] = user_data
        self.keys_of[number] = keys
        created = self.action("create_server", ("server", number))
        started = self.action("start_server", ("server", number))
        self.spawn(self._come_up(server, created, started))
        password = None if keys else secrets.token_urlsafe(12)
        return {"server": server, "action": created, "next_actions": [started], "root_password": password}

    async def _come_up(self, server: Json, created: Json, started: Json) -> None:
        await asyncio.sleep(self.initializing_s)
        if (server["server_type"]["name"], server["location"]["name"]) in self.sold_out_later:
            self.end(created, ApiError(412, "resource_unavailable", "error during placement"))
            self._forget_server(server)
            return
        self.end(created)
        await self.start(server, started)

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

    def delete_server(self, server: Json) -> Json:
        if server["protection"]["delete"]:
            raise ApiError(423, "protected", "server is delete protected")
        self._free(server)
        action = self.action("delete_server", ("server", server["id"]))
        server["status"] = "deleting"
        self.spawn(self._go(server, action))
        return action

    async def rebuild(self, server: Json, body: Json) -> Json:
        self._free(server)
        server["image"] = self._named(catalogue.IMAGES, body.get("image"), "image")
        if "user_data" in body:
            self.user_data[server["id"]] = body["user_data"]
        action = self.action("rebuild_server", ("server", server["id"]))
        server["status"] = "rebuilding"
        self.spawn(self._rebuild(server, action))
        return action

    async def _rebuild(self, server: Json, action: Json) -> None:
        await self._remove_guest(server)
        await self.start(server, action)

    async def _remove_guest(self, server: Json) -> None:
        await self.guests.remove(self.guest_names.pop(server["id"], ""))

    async def _go(self, server: Json, action: Json) -> None:
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
        if server["id"] in self.locked or server["status"] == "deleting":
            raise ApiError(423, "locked", "server is locked")

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

    @staticmethod
    def _named(things: list[Json], wanted: object, field_name: str) -> Json:
        for thing in things:
            if wanted is not None and str(wanted) in (str(thing["id"]), thing["name"]):
                return thing
        raise invalid(field_name, f"{field_name} {wanted} not found")

    def _key(self, wanted: object) -> str:
        with contextlib.suppress(ApiError):
            return str(self._named(list(self.ssh_keys.values()), wanted, "ssh_keys")["public_key"])
        raise invalid("ssh_keys", f"SSH key {wanted} not found")


def check_labels(labels: Json) -> Json:
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or key.startswith("hetzner.cloud/") or not LABEL_VALUE.fullmatch(str(value)):
            raise invalid("labels", f"label {key}={value} is not valid")
    return {key: str(value) for key, value in labels.items()}
