"""The Hetzner double's HTTP: routes, tokens, pages, rate limit, and the faults that a test arms."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from tests.doubles import hetzner_catalogue as catalogue
from tests.doubles.hetzner_schema import Finding, findings
from tests.doubles.hetzner_selector import selects
from tests.doubles.hetzner_state import TAKEN, ApiError, Json, State, fields, malformed

_CODES = {
    400: ("json_error",),
    401: ("unauthorized", "token_readonly"),
    403: ("forbidden", "maintenance", "resource_limit_exceeded"),
    404: ("not_found",),
    405: ("method_not_allowed",),
    409: ("uniqueness_error", "conflict"),
    410: ("deprecated_api_endpoint",),
    412: ("resource_unavailable",),
    422: ("invalid_input", "service_error", "unsupported_error", "placement_error"),
    423: ("locked", "protected"),
    429: ("rate_limit_exceeded",),
    500: ("server_error",),
    502: ("bad_gateway",),
    503: ("unavailable",),
    504: ("timeout",),
}
"""https://docs.hetzner.cloud/reference/cloud#errors; `placement_error` is from Create a Server."""


@dataclass
class Fault:
    """The next `times` matching requests get this status and code. `after`: the request is carried out first.

    `code` is the documented one of that status unless another is given; a code that isn't documented for that status has to
    be marked `undocumented`. `hang`: no response until it is set. `late`: the request is only carried out then, and succeeds.
    `text`: the response is this instead of JSON, without the API's headers, like one of an intermediary.
    """

    method: str
    path: str
    status: int = 500
    code: str = ""
    message: str = "armed by a test"
    after: bool = False
    times: int = 1
    hang: asyncio.Event | None = None
    late: bool = False
    details: Json | None = None
    undocumented: bool = False
    text: str | None = None

    def __post_init__(self) -> None:
        self.code = self.code or _CODES[self.status][0]
        assert self.undocumented or self.code in _CODES.get(self.status, ()), (
            f"the code {self.code} isn't documented for status {self.status}"
        )

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.fullmatch(self.path, path) is not None


Handler = Callable[..., Awaitable[tuple[int, Json | None]]]


@dataclass
class Api:
    """An ASGI application over a State."""

    state: State
    token: str
    readonly_token: str
    limit: int = 3600
    remaining: float = 3600.0
    refill_s: float | None = None
    """Seconds until one call is refilled; None: 3600 / limit, as at Hetzner."""
    calls: list[str] = field(default_factory=list)
    """`POST /servers`, in order of arrival; queries left out."""
    bodies: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    readonly_error: tuple[int, str] = (401, "token_readonly")
    """The error of writing with a read-only token: 403 `forbidden` is documented, too."""
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    """Parts of requests that the vendor's description doesn't allow; a test fails if there are any (`hetzner_double`)."""
    _refilled: float = field(default_factory=time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._answer(request)
        response.headers["Date"] = formatdate(time.time() + self.state.clock_ahead_s, usegmt=True)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        method, path = request.method, request.url.path.removeprefix("/v1")
        self.calls.append(f"{method} {path}")
        raw = await request.body()
        self.bodies.append((f"{method} {path}", json.loads(raw) if raw else None))
        wrong = findings(method, path, request.query_params.multi_items(), raw)
        self.findings += [(f"{method} {path}", finding) for finding in wrong]
        text = None
        try:
            self._count()
            known = [(route, match) for route in _ROUTES if (match := re.fullmatch(route[1], path))]
            if not known:
                raise ApiError(404, "not_found", "route not found")
            token = self._authenticate(request)
            here = [(route, match) for route, match in known if route[0] == method]
            if not here:
                raise ApiError(405, "method_not_allowed", "method not allowed")
            if token == self.readonly_token and method != "GET":
                raise ApiError(*self.readonly_error, "the token is only allowed to perform GET requests")
            fault = next((each for each in self.faults if each.matches(method, path)), None)
            if fault is not None:
                fault.times -= 1
                text = fault.text
                if fault.late and fault.hang is not None:
                    await fault.hang.wait()
                elif not fault.after:
                    await self._fail(fault)
            if wrong:
                raise malformed(wrong[0].field, wrong[0].text)
            (route, match) = here[0]
            status, body = await route[2](self, request, raw, *(int(group) for group in match.groups()))
            if fault is not None and fault.after:
                await self._fail(fault)
        except ApiError as error:
            if text is not None:
                return Response(text, error.status, media_type="text/html")
            return JSONResponse(error.body(), error.status, self._headers())
        return Response(None, status, self._headers()) if body is None else JSONResponse(body, status, self._headers())

    async def _fail(self, fault: Fault) -> None:
        if fault.hang is not None:
            await fault.hang.wait()
        raise ApiError(fault.status, fault.code, fault.message, fault.details)

    def _authenticate(self, request: Request) -> str:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ApiError(401, "unauthorized", "token is required")
        if token not in (self.token, self.readonly_token):
            raise ApiError(401, "unauthorized", "the token you have provided is invalid")
        return token

    def _count(self) -> None:
        """Count every request, authenticated or not (reference, Rate Limiting)."""
        now = time.monotonic()
        per_call = self.refill_s if self.refill_s is not None else 3600 / self.limit
        self.remaining = min(self.limit, self.remaining + (now - self._refilled) / per_call)
        self._refilled = now
        if self.remaining < 1:
            raise ApiError(429, "rate_limit_exceeded", "limit of 3600 requests per hour reached")
        self.remaining -= 1

    def _headers(self) -> dict[str, str]:
        reset = time.time() + self.limit - self.remaining
        return {
            "RateLimit-Limit": str(self.limit),
            "RateLimit-Remaining": str(int(self.remaining)),
            "RateLimit-Reset": str(int(reset)),
        }

    # Lists

    def _page(self, request: Request, key: str, things: list[Json]) -> tuple[int, Json]:
        query = request.query_params
        if "name" in query:
            things = [thing for thing in things if thing.get("name") == query["name"]]
        for each in ("status", "type", "architecture"):
            if each in query:
                things = [thing for thing in things if thing.get(each) in query.getlist(each)]
        if query.get("label_selector"):
            try:
                things = [thing for thing in things if selects(query["label_selector"], thing["labels"])]
            except ValueError as error:
                raise malformed("label_selector", str(error)) from None
        page, per_page = int(query.get("page", 1)), int(query.get("per_page", 25))
        last = max(1, -(-len(things) // per_page))
        pagination = {
            "page": page,
            "per_page": per_page,
            "previous_page": page - 1 if page > 1 else None,
            "next_page": page + 1 if page < last else None,
            "last_page": last,
            "total_entries": len(things),
        }
        return 200, {key: things[(page - 1) * per_page : page * per_page], "meta": {"pagination": pagination}}

    # Servers

    async def list_servers(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return self._page(request, "servers", list(self.state.servers.values()))

    async def create_server(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return 201, await self.state.create_server(_body(raw))

    async def get_server(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        return 200, {"server": _one(self.state.servers, number, "server")}

    async def update_server(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        server, body = _one(self.state.servers, number, "server"), _body(raw)
        if any(other["name"] == body.get("name") for other in self.state.servers.values() if other is not server):
            raise TAKEN
        server |= body
        return 200, {"server": server}

    async def delete_server(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        return 200, {"action": self.state.delete_server(_one(self.state.servers, number, "server"))}

    async def power_on(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        return 201, {"action": self.state.power_on(_one(self.state.servers, number, "server"))}

    async def power_off(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        return 201, {"action": self.state.power_off(_one(self.state.servers, number, "server"))}

    async def rebuild(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        action = self.state.rebuild(_one(self.state.servers, number, "server"), _body(raw))
        return 201, {"action": action, "root_password": None}

    # Addresses, firewalls, keys

    async def list_addresses(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return self._page(request, "primary_ips", list(self.state.primary_ips.values()))

    async def get_address(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        return 200, {"primary_ip": _one(self.state.primary_ips, number, "primary_ip")}

    async def update_address(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        address, body = _one(self.state.primary_ips, number, "primary_ip"), _body(raw)
        address |= body
        return 200, {"primary_ip": address}

    async def delete_address(self, request: Request, raw: bytes, number: int) -> tuple[int, None]:
        self.state.delete_address(_one(self.state.primary_ips, number, "primary_ip"))
        return 204, None

    async def list_firewalls(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return self._page(request, "firewalls", list(self.state.firewalls.values()))

    async def create_firewall(self, request: Request, raw: bytes) -> tuple[int, Json]:
        body = _body(raw)
        _unique(self.state.firewalls, body["name"])
        rules = [{"destination_ips": [], "description": None, **rule} for rule in body.get("rules") or ()]
        firewall = {
            "id": self.state.new_id(),
            "name": body["name"],
            "labels": body.get("labels", {}),
            "created": self.state.now(),
            "rules": rules,
            "applied_to": [],
        }
        self.state.firewalls[firewall["id"]] = firewall
        return 201, {"firewall": firewall, "actions": []}

    async def set_rules(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        firewall = _one(self.state.firewalls, number, "firewall")
        firewall["rules"] = [{"destination_ips": [], "description": None, **rule} for rule in _body(raw)["rules"]]
        return 201, {"actions": [self.state.action("set_firewall_rules", ("firewall", number), status="success")]}

    async def apply_firewall(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        _one(self.state.firewalls, number, "firewall")
        actions = []
        for each in _body(raw)["apply_to"]:
            server = _one(self.state.servers, each["server"]["id"], "server")
            applied = server["public_net"]["firewalls"]
            if any(known["id"] == number for known in applied):
                raise ApiError(422, "firewall_already_applied", "firewall was already applied on resource")
            applied.append({"id": number, "status": "pending"})
            actions.append(self.state.action("apply_firewall", ("server", server["id"]), ("firewall", number)))
            self.state.spawn(self.state.apply_firewalls(server))
        return 201, {"actions": actions}

    async def remove_firewall(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        _one(self.state.firewalls, number, "firewall")
        actions = []
        for each in _body(raw)["remove_from"]:
            server = _one(self.state.servers, each["server"]["id"], "server")
            applied = server["public_net"]["firewalls"]
            if all(known["id"] != number for known in applied):
                raise ApiError(422, "firewall_already_removed", "firewall was already removed from the resource")
            applied[:] = [known for known in applied if known["id"] != number]
            actions.append(
                self.state.action("remove_firewall", ("server", server["id"]), ("firewall", number), status="success")
            )
        return 201, {"actions": actions}

    async def delete_firewall(self, request: Request, raw: bytes, number: int) -> tuple[int, None]:
        _one(self.state.firewalls, number, "firewall")
        used = [each["id"] for server in self.state.servers.values() for each in server["public_net"]["firewalls"]]
        if number in used:
            raise ApiError(422, "resource_in_use", "firewall is still in use")
        del self.state.firewalls[number]
        return 204, None

    async def list_keys(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return self._page(request, "ssh_keys", list(self.state.ssh_keys.values()))

    async def create_key(self, request: Request, raw: bytes) -> tuple[int, Json]:
        body = _body(raw)
        _unique(self.state.ssh_keys, body["name"])
        if len(body["public_key"].split()) < 2 or not body["name"]:
            raise malformed("public_key", "not a valid SSH key")
        if any(each["public_key"] == body["public_key"] for each in self.state.ssh_keys.values()):
            raise ApiError(409, "uniqueness_error", "SSH key not unique", fields("public_key"))
        key = {
            "id": self.state.new_id(),
            "name": body["name"],
            "fingerprint": "b7:2f:30:a0:2f:6c:58:6c:21:04:58:61:ba:06:3b:2f",
            "public_key": body["public_key"],
            "labels": body.get("labels", {}),
            "created": self.state.now(),
        }
        self.state.ssh_keys[key["id"]] = key
        return 201, {"ssh_key": key}

    async def delete_key(self, request: Request, raw: bytes, number: int) -> tuple[int, None]:
        _one(self.state.ssh_keys, number, "ssh_key")
        del self.state.ssh_keys[number]
        return 204, None

    # Actions, types, locations, images, prices

    async def list_actions(self, request: Request, raw: bytes) -> tuple[int, Json]:
        """Return the requested actions: listing all of them was removed on 2025-01-30. No pages."""
        wanted = {int(number) for number in request.query_params.getlist("id")}
        if not wanted:
            raise malformed("id", "missing data")
        return 200, {"actions": [action for number, action in self.state.actions.items() if number in wanted]}

    async def get_action(self, request: Request, raw: bytes, *numbers: int) -> tuple[int, Json]:
        return 200, {"action": _one(self.state.actions, numbers[-1], "action")}

    async def list_types(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return self._page(request, "server_types", self.state.types)

    async def get_type(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        return 200, {"server_type": _one({kind["id"]: kind for kind in self.state.types}, number, "server_type")}

    async def list_locations(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return self._page(request, "locations", catalogue.LOCATIONS)

    async def list_images(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return self._page(request, "images", self.state.images())

    async def get_image(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        return 200, {"image": _one({image["id"]: image for image in self.state.images()}, number, "image")}

    async def create_image(self, request: Request, raw: bytes, number: int) -> tuple[int, Json]:
        image, action = self.state.create_image(_one(self.state.servers, number, "server"), _body(raw))
        return 201, {"image": image, "action": action}

    async def delete_image(self, request: Request, raw: bytes, number: int) -> tuple[int, None]:
        _one(self.state.snapshots, number, "image")  # only snapshots and backups can be deleted
        del self.state.snapshots[number]
        return 204, None

    async def pricing(self, request: Request, raw: bytes) -> tuple[int, Json]:
        return 200, {"pricing": catalogue.pricing(self.state.types)}

    async def datacenters(self, request: Request, raw: bytes) -> tuple[int, Json]:
        raise ApiError(410, "deprecated_api_endpoint", "this endpoint has been removed")


_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/servers", Api.list_servers),
    ("POST", "/servers", Api.create_server),
    ("GET", r"/servers/(\d+)", Api.get_server),
    ("PUT", r"/servers/(\d+)", Api.update_server),
    ("DELETE", r"/servers/(\d+)", Api.delete_server),
    ("GET", r"/servers/(\d+)/actions/(\d+)", Api.get_action),
    ("POST", r"/servers/(\d+)/actions/poweron", Api.power_on),
    ("POST", r"/servers/(\d+)/actions/poweroff", Api.power_off),
    ("POST", r"/servers/(\d+)/actions/rebuild", Api.rebuild),
    ("GET", "/primary_ips", Api.list_addresses),
    ("GET", r"/primary_ips/(\d+)", Api.get_address),
    ("PUT", r"/primary_ips/(\d+)", Api.update_address),
    ("DELETE", r"/primary_ips/(\d+)", Api.delete_address),
    ("GET", "/firewalls", Api.list_firewalls),
    ("POST", "/firewalls", Api.create_firewall),
    ("POST", r"/firewalls/(\d+)/actions/set_rules", Api.set_rules),
    ("POST", r"/firewalls/(\d+)/actions/apply_to_resources", Api.apply_firewall),
    ("POST", r"/firewalls/(\d+)/actions/remove_from_resources", Api.remove_firewall),
    ("DELETE", r"/firewalls/(\d+)", Api.delete_firewall),
    ("GET", "/ssh_keys", Api.list_keys),
    ("POST", "/ssh_keys", Api.create_key),
    ("DELETE", r"/ssh_keys/(\d+)", Api.delete_key),
    ("GET", "/actions", Api.list_actions),
    ("GET", r"/actions/(\d+)", Api.get_action),
    ("GET", "/server_types", Api.list_types),
    ("GET", r"/server_types/(\d+)", Api.get_type),
    ("GET", "/locations", Api.list_locations),
    ("GET", "/images", Api.list_images),
    ("GET", r"/images/(\d+)", Api.get_image),
    ("DELETE", r"/images/(\d+)", Api.delete_image),
    ("POST", r"/servers/(\d+)/actions/create_image", Api.create_image),
    ("GET", "/pricing", Api.pricing),
    ("GET", r"/datacenters(?:/\d+)?", Api.datacenters),
)


def _body(raw: bytes) -> Json:
    body: Json = json.loads(raw)  # hetzner_schema.py has checked it
    return body


def _one(things: dict[int, Json], number: int, kind: str) -> Json:
    try:
        return things[number]
    except KeyError:
        raise ApiError(404, "not_found", f"{kind} with ID '{number}' not found") from None


def _unique(things: dict[int, Json], name: str) -> None:
    if any(thing["name"] == name for thing in things.values()):
        raise ApiError(409, "uniqueness_error", "name is already used", fields("name"))
