"""The allowed requests to Hetzner's API, written by hand for the operations that are used, with every object closed.

Source: the vendor's OpenAPI description of 2026-07-08 (https://docs.hetzner.cloud/cloud.spec.json, 3.1.2), request bodies and
query parameters, and its prose for what the schemas leave out: label grammar, host names, 32 KiB, `per_page` at most 50.
The description doesn't close every object; here any unknown key is a finding, because the vendor may ignore or reject it.
An "ID or name" has the type string; SSH keys have "IDs (integer)", and the vendor's own hcloud-python and
hcloud-go send integers for types, images and locations, too: both are allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

LABEL_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
LABEL_VALUE = re.compile(rf"(?:{LABEL_NAME})?")
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
LABEL_KEY = re.compile(rf"(?:(?=[^/]{{1,253}}/){_DNS_LABEL}(?:\.{_DNS_LABEL})*/)?{LABEL_NAME}")
_HOST_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
HOSTNAME = re.compile(rf"(?=.{{1,253}}$){_HOST_LABEL}(?:\.{_HOST_LABEL})*")
USER_DATA_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing in a request that the description doesn't allow. `field` is the top-level key, as in `details.fields`."""

    field: str
    text: str


Shape = Callable[[object, str], Iterator[Finding]]
"""Yields the findings of a value; the second argument is the name of its field."""


def text(value: object, field: str) -> Iterator[Finding]:
    if not isinstance(value, str):
        yield Finding(field, f"must be a string, got {value!r}")


def integer(value: object, field: str) -> Iterator[Finding]:
    if not isinstance(value, int) or isinstance(value, bool):
        yield Finding(field, f"must be an integer, got {value!r}")


def boolean(value: object, field: str) -> Iterator[Finding]:
    if not isinstance(value, bool):
        yield Finding(field, f"must be a boolean, got {value!r}")


def matches(pattern: str | re.Pattern[str], what: str) -> Shape:
    def check(value: object, field: str) -> Iterator[Finding]:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            yield Finding(field, f"must be {what}, got {value!r}")

    return check


def user_data(value: object, field: str) -> Iterator[Finding]:
    yield from text(value, field)
    if isinstance(value, str) and len(value.encode()) > USER_DATA_BYTES:
        yield Finding(field, "exceeds 32KiB")


def labels(value: object, field: str) -> Iterator[Finding]:
    """https://docs.hetzner.cloud/reference/cloud#labels"""
    if not isinstance(value, dict):
        yield Finding(field, f"must be an object, got {value!r}")
        return
    for key, each in value.items():
        if not LABEL_KEY.fullmatch(key) or key.startswith("hetzner.cloud/"):
            yield Finding(field, f"label key {key!r} is not valid")
        if not isinstance(each, str) or not LABEL_VALUE.fullmatch(each):
            yield Finding(field, f"label value {each!r} is not valid")


def several(shape: Shape, most: int | None = None) -> Shape:
    def check(value: object, field: str) -> Iterator[Finding]:
        if not isinstance(value, list):
            yield Finding(field, f"must be a list, got {value!r}")
            return
        if most is not None and len(value) > most:
            yield Finding(field, f"has more than {most} entries")
        for each in value:
            yield from shape(each, field)

    return check


def either(*shapes: Shape) -> Shape:
    def check(value: object, field: str) -> Iterator[Finding]:
        found = [tuple(shape(value, field)) for shape in shapes]
        if all(found):
            yield from found[0]

    return check


def closed(required: str = "", /, **shapes: Shape) -> Shape:
    """Check an object that may have only these keys."""

    def check(value: object, field: str) -> Iterator[Finding]:
        if not isinstance(value, dict):
            yield Finding(field, f"must be an object, got {value!r}")
            return
        for key in value.keys() - shapes.keys():
            yield Finding(field or key, f"unknown key {key!r}")
        for key in set(required.split()) - value.keys():
            yield Finding(field or key, f"key {key!r} is missing")
        for key in value.keys() & shapes.keys():
            yield from shapes[key](value[key], field or key)

    return check


_ID_OR_NAME = either(text, integer)
_RULE = closed(
    "direction protocol",
    description=either(text, lambda value, field: iter(() if value is None else (Finding(field, "must be null"),))),
    direction=matches("in|out", "in or out"),
    source_ips=several(matches(r"[0-9a-fA-F.:]+/\d+", "a CIDR block"), 100),
    destination_ips=several(matches(r"[0-9a-fA-F.:]+/\d+", "a CIDR block"), 100),
    protocol=matches("tcp|udp|icmp|esp|gre", "a protocol"),
    port=matches(r"\d+(-\d+)?", "a port or a range of ports"),
)
_RESOURCE = closed(
    "type",
    type=matches("server|label_selector", "server or label_selector"),
    server=closed("id", id=integer),
    label_selector=closed("selector", selector=text),
)
_HOST = matches(HOSTNAME, "a valid hostname as per RFC 1123")
_NAME = matches(r"(?s).{1,128}", "a name of 1 to 128 characters")
_SERVER = closed(
    "name server_type image",
    name=_HOST,
    location=_ID_OR_NAME,
    server_type=_ID_OR_NAME,
    start_after_create=boolean,
    image=_ID_OR_NAME,
    placement_group=integer,
    ssh_keys=several(_ID_OR_NAME),
    volumes=several(integer),
    networks=several(integer),
    firewalls=several(closed("firewall", firewall=integer)),
    user_data=user_data,
    labels=labels,
    automount=boolean,
    public_net=closed(enable_ipv4=boolean, enable_ipv6=boolean, ipv4=integer, ipv6=integer),
)

_NUMBER = matches(r"[1-9]\d*", "a positive number")
_PAGES: dict[str, Shape] = {"page": _NUMBER, "per_page": matches(r"[1-9]|[1-4]\d|50", "a number from 1 to 50")}
_LIST: dict[str, Shape] = {**_PAGES, "name": text, "label_selector": text, "sort": text}
_STATUS = matches("running|initializing|starting|stopping|off|deleting|migrating|rebuilding|unknown", "a status")
_IMAGES: dict[str, Shape] = {
    **_LIST,
    "type": matches("system|app|snapshot|backup", "a type of images"),
    "status": matches("available|creating|unavailable", "a status of images"),
    "bound_to": _NUMBER,
    "include_deprecated": matches("true|false", "a boolean"),
    "architecture": matches("x86|arm", "an architecture"),
}

_OPERATIONS: tuple[tuple[str, str, dict[str, Shape], Shape | None], ...] = (
    ("GET", "/servers", {**_LIST, "status": _STATUS}, None),
    ("POST", "/servers", {}, _SERVER),
    ("PUT", r"/servers/\d+", {}, closed(name=_HOST, labels=labels)),
    ("POST", r"/servers/\d+/actions/rebuild", {}, closed("image", image=_ID_OR_NAME, user_data=user_data)),
    (
        "POST",
        r"/servers/\d+/actions/create_image",
        {},
        closed(description=text, type=matches("snapshot|backup", "a type of images to create"), labels=labels),
    ),
    ("GET", "/primary_ips", {**_LIST, "ip": text}, None),
    ("PUT", r"/primary_ips/\d+", {}, closed(name=text, labels=labels, auto_delete=boolean)),
    ("GET", "/firewalls", _LIST, None),
    ("POST", "/firewalls", {}, closed("name", name=_NAME, labels=labels, rules=several(_RULE, 50))),
    ("POST", r"/firewalls/\d+/actions/set_rules", {}, closed("rules", rules=several(_RULE, 50))),
    ("POST", r"/firewalls/\d+/actions/apply_to_resources", {}, closed("apply_to", apply_to=several(_RESOURCE))),
    ("POST", r"/firewalls/\d+/actions/remove_from_resources", {}, closed("remove_from", remove_from=several(_RESOURCE))),
    ("GET", "/ssh_keys", {**_LIST, "fingerprint": text}, None),
    ("POST", "/ssh_keys", {}, closed("name public_key", name=text, public_key=text, labels=labels)),
    ("GET", "/actions", {"id": _NUMBER, **_PAGES}, None),  # pages are no longer documented; hcloud-go requests them
    ("GET", "/server_types", {**_PAGES, "name": text}, None),
    ("GET", "/locations", {**_PAGES, "name": text, "sort": text}, None),
    ("GET", "/images", _IMAGES, None),
)
"""Other operations have neither query nor body: reading or deleting one resource, `poweron`, `poweroff`, `/pricing`."""


def findings(method: str, path: str, query: Sequence[tuple[str, str]], raw: bytes) -> list[Finding]:
    """Return what the description doesn't allow in this request; `path` is below `/v1`."""
    shapes, body = next(
        ((shapes, body) for each, pattern, shapes, body in _OPERATIONS if each == method and re.fullmatch(pattern, path)),
        ({}, None),
    )
    found = [finding for key, value in query for finding in shapes.get(key, _unknown)(value, key)]
    if body is None:
        return found + ([Finding("", "a body, where none is described")] if raw else [])
    try:
        return found + list(body(json.loads(raw), ""))
    except ValueError:
        return [*found, Finding("", "no JSON")]


def _unknown(value: object, field: str) -> Iterator[Finding]:
    yield Finding(field, f"unknown parameter {field!r}")
