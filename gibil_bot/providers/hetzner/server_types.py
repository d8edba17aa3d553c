"""Hetzner's server types: which ones fit a request, in which order to try them, and what they cost.

The code names no server type and no price, because types are retired and prices change several times a year. A size states
requirements, and the API lists what exists (GET /server_types, `locations[].available`). All functions are pure; `Catalogue`
reads the lists and caches them for some minutes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from gibil_bot.errors import GibilError, ProviderError, UsageError
from gibil_bot.model import MachineSpec

if TYPE_CHECKING:
    from gibil_bot.providers.hetzner.api import HetznerApi

Json = Mapping[str, Any]

SOLD_OUT = "RESOURCE_UNAVAILABLE"

LOCATIONS = ("nbg1", "fsn1", "hel1")
"""Tried when no location is requested; all are in one network zone. Locations with equal prices are tried in this order."""
TYPES_PER_SIZE = 3
"""How many types are tried for a size, the cheapest first: a much larger machine is not what was requested."""


READ_AGAIN_S = 600.0
"""Lists that are older than this are read again."""
SOLD_OUT_FOR_S = 300.0
"""For that long, a candidate that Hetzner rejected because it has no room is tried last."""


@dataclass(frozen=True, slots=True)
class Size:
    """The minimum resources of a machine of that size."""

    cores: int
    memory_gb: int
    disk_gb: int


SIZES: Mapping[str, Size] = {
    "small": Size(2, 4, 20),
    "medium": Size(4, 8, 40),
    "large": Size(8, 16, 80),
}


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one machine including its address, net of VAT. Every started hour is billed, up to the monthly cap."""

    hourly: Decimal
    monthly: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """A server type in a location that a server can be requested with."""

    server_type: str
    location: str

    def __str__(self) -> str:
        return f"{self.server_type} in {self.location}"


def candidates(
    server_types: Sequence[Json],
    *,
    size: str,
    server_type: str | None = None,
    location: str | None = None,
    memory_mb: int | None = None,
    disk_mb: int | None = None,
    now: datetime,
    sold_out: Collection[Candidate] = (),
    allowed: Collection[str] | None = None,
) -> list[Candidate]:
    """Return what to request, in this order: the cheapest type in every location, then the next type.

    Those in `sold_out` come last. Prices differ by location, so types are compared by their price in the locations in question.
    `allowed`: the operator's server types; None: a named type may cost no more than the most expensive one that a size can
    get. Raises UsageError for a type or location that doesn't exist, and ProviderError when all are sold out.
    """
    if server_type:
        chosen = _named(server_types, server_type)
        _check_allowed(server_types, chosen[0], allowed)
    else:
        chosen = _fitting(server_types, size, memory_mb, disk_mb)
        if allowed is not None:
            chosen = [kind for kind in chosen if kind["name"] in allowed]
    wanted = (location,) if location else LOCATIONS
    available = [(kind, [name for name in wanted if _is_available(kind, name, now)]) for kind in chosen]
    available = [(kind, sorted(where, key=lambda name: _hourly(kind, name))) for kind, where in available if where]
    available.sort(key=lambda each: (_hourly(each[0], each[1][0]), each[0]["cpu_type"] != "shared", each[0]["name"]))
    found = [Candidate(kind["name"], name) for kind, where in available for name in where]
    if server_type is None:
        first = list(dict.fromkeys(candidate.server_type for candidate in found))[:TYPES_PER_SIZE]
        found = [candidate for candidate in found if candidate.server_type in first]
    if not found:
        raise _none_available(server_types, chosen, server_type or f"a {size} machine", location, now)
    return sorted(found, key=lambda candidate: candidate in sold_out)


def price(pricing: Json, candidate: Candidate) -> Price | None:
    """Return the price from the answer of GET /pricing, or None if it lists no price for that candidate."""
    kinds = [kind for kind in pricing.get("server_types", ()) if kind["name"] == candidate.server_type]
    server = _in_location(kinds[0]["prices"], candidate.location) if kinds else None
    if server is None:
        return None
    addresses = [ip for ip in pricing.get("primary_ips", ()) if ip["type"] == "ipv4"]
    address = _in_location(addresses[0]["prices"], candidate.location) if addresses else None
    parts = [part for part in (server, address) if part is not None]
    return Price(
        hourly=sum((_amount(part["price_hourly"]["net"]) for part in parts), Decimal(0)),
        monthly=sum((_amount(part["price_monthly"]["net"]) for part in parts), Decimal(0)),
        currency=str(pricing.get("currency", "EUR")),
    )


def started_hours(created_at: datetime, now: datetime) -> int:
    """Return the hours that are billed: every started hour counts whole (https://docs.hetzner.com/cloud/billing/faq)."""
    return max(1, math.ceil((now - created_at).total_seconds() / 3600))


def cost_so_far(price: Price, created_at: datetime, now: datetime) -> Decimal:
    """Return the net cost from the creation until now.

    The monthly cap is applied once, so the result is too low for a machine that exists in two calendar months.
    """
    return min(price.hourly * started_hours(created_at, now), price.monthly)


def _named(server_types: Sequence[Json], name: str) -> list[Json]:
    found = [kind for kind in server_types if kind["name"] == name]
    if not found:
        names = ", ".join(sorted(kind["name"] for kind in server_types))
        raise UsageError(f"Hetzner has no server type {name!r}; choose one of {names}")
    return found


def _check_allowed(server_types: Sequence[Json], kind: Json, allowed: Collection[str] | None) -> None:
    """Raise UsageError if the type isn't allowed."""
    name = kind["name"]
    if allowed is not None:
        if name not in allowed:
            raise UsageError(f"the server type {name!r} is not allowed; GIBIL_SERVER_TYPES allows {', '.join(allowed)}")
        return
    named = [
        each for size in SIZES for each in sorted(_fitting(server_types, size, None, None), key=_cheapest)[:TYPES_PER_SIZE]
    ]
    if named and _cheapest(kind) > max(map(_cheapest, named)):
        raise UsageError(
            f"the server type {name!r} costs more than those of every size; to allow it, add it to GIBIL_SERVER_TYPES"
        )


def _fitting(server_types: Sequence[Json], size: str, memory_mb: int | None, disk_mb: int | None) -> list[Json]:
    """Return the x86 types with at least those resources. Most projects are built for x86, so a size never means ARM."""
    if size not in SIZES:
        raise UsageError(f"unknown size {size!r}; choose one of {', '.join(SIZES)}")
    least = SIZES[size]
    memory_gb = max(least.memory_gb, (memory_mb or 0) / 1024)
    disk_gb = max(least.disk_gb, (disk_mb or 0) / 1024)
    return [
        kind
        for kind in server_types
        if kind["architecture"] == "x86"
        and kind["cores"] >= least.cores
        and kind["memory"] >= memory_gb
        and kind["disk"] >= disk_gb
    ]


def _cheapest(kind: Json) -> Decimal:
    return min((_amount(each["price_hourly"]["net"]) for each in kind["prices"]), default=Decimal("Infinity"))


def _hourly(kind: Json, location: str) -> Decimal:
    found = _in_location(kind["prices"], location)
    return Decimal("Infinity") if found is None else _amount(found["price_hourly"]["net"])


def _is_available(kind: Json, location: str, now: datetime) -> bool:
    for each in kind.get("locations") or ():
        if each["name"] == location:
            return bool(each.get("available", True)) and not _is_retired(each.get("deprecation"), now)
    return False


def _is_retired(deprecation: Json | None, now: datetime) -> bool:
    if not deprecation:
        return False
    after = deprecation.get("unavailable_after")
    return bool(after) and datetime.fromisoformat(str(after)) <= now


def _none_available(
    server_types: Sequence[Json], chosen: Sequence[Json], what: str, location: str | None, now: datetime
) -> GibilError:
    known = sorted({each["name"] for kind in server_types for each in kind.get("locations") or ()})
    if location is not None and location not in known:
        return UsageError(f"Hetzner has no location {location!r}; choose one of {', '.join(known)}")
    elsewhere = sorted({name for kind in chosen for name in known if _is_available(kind, name, now)})
    where = location or ", ".join(LOCATIONS)
    if elsewhere:
        text = f"Hetzner does not offer {what} in {where} now; choose another location: {', '.join(elsewhere)}"
    else:
        text = f"Hetzner does not offer {what} anywhere now; choose another size or server type"
    return ProviderError(text, code=SOLD_OUT)


def _in_location(prices: Sequence[Json], location: str) -> Json | None:
    return next((each for each in prices if each["location"] == location), None)


def _amount(text: object) -> Decimal:
    try:
        return Decimal(str(text))
    except InvalidOperation:
        return Decimal("Infinity")


class Catalogue:
    """The server types and prices of one project, read when they are needed and cached. `allowed`: see `candidates`."""

    def __init__(self, api: HetznerApi, allowed: tuple[str, ...] | None = None) -> None:
        self._api, self._allowed = api, allowed
        self._types: tuple[float, list[Json]] | None = None
        self._pricing: tuple[float, Json] | None = None
        self._arm_images: dict[str, tuple[float, str]] = {}
        self._sold_out: dict[Candidate, float] = {}

    async def candidates_for(self, spec: MachineSpec) -> list[Candidate]:
        """Return what to request for a machine, in this order. Raises UsageError and ProviderError as `candidates` does."""
        return await self.candidates(spec.size, spec.server_type, spec.location, spec.memory_mb, spec.disk_mb)

    async def candidates(
        self,
        size: str,
        server_type: str | None = None,
        location: str | None = None,
        memory_mb: int | None = None,
        disk_mb: int | None = None,
    ) -> list[Candidate]:
        """Call the function `candidates` with the current lists. Raises what it raises, and what the API raises."""
        types = await self._server_types()
        now = time.monotonic()
        self._sold_out = {candidate: until for candidate, until in self._sold_out.items() if until > now}
        return candidates(
            types,
            size=size,
            server_type=server_type,
            location=location,
            memory_mb=memory_mb,
            disk_mb=disk_mb,
            now=datetime.now(UTC),
            sold_out=self._sold_out,
            allowed=self._allowed,
        )

    def mark_sold_out(self, candidate: Candidate) -> None:
        """Try it last for some minutes, because Hetzner has just rejected it."""
        self._sold_out[candidate] = time.monotonic() + SOLD_OUT_FOR_S

    def mark_outdated(self) -> None:
        """Read the list of types again before its next use, because the API rejected something from it."""
        self._types = None

    async def cpu_type(self, candidate: Candidate) -> str:
        """Return `shared` or `dedicated`. A limit of a project may apply to only one of them."""
        return await self._property(candidate, "cpu_type")

    async def image(self, wanted: str, candidate: Candidate) -> str:
        """Return the value of `image` in a request: the name for x86, the ID for ARM.

        An image has one name for both architectures and an ID for each. Raises UsageError when none exists for ARM.
        """
        architecture = await self._property(candidate, "architecture")
        if architecture != "arm" or wanted.isdigit():
            return wanted
        now = time.monotonic()
        if wanted not in self._arm_images or self._arm_images[wanted][0] < now:
            query = {"name": wanted, "architecture": architecture}
            found = await self._api.pages("/images", "images", f"look for the image {wanted}", query=query)
            if not found:
                raise UsageError(
                    f"Hetzner has no image {wanted!r} for {architecture}, which server type {candidate.server_type!r} needs; "
                    "choose another image or server type"
                )
            self._arm_images[wanted] = (now + READ_AGAIN_S, str(found[0]["id"]))
        return self._arm_images[wanted][1]

    async def _server_types(self) -> list[Json]:
        now = time.monotonic()
        if self._types is None or self._types[0] < now:
            found = await self._api.pages("/server_types", "server_types", "list server types")
            self._types = (now + READ_AGAIN_S, found)
        return self._types[1]

    async def _property(self, candidate: Candidate, name: str) -> str:
        """Return a property of its server type, or "" for a type that is no longer listed."""
        return next((str(kind[name]) for kind in await self._server_types() if kind["name"] == candidate.server_type), "")

    async def price(self, candidate: Candidate) -> Price | None:
        """Return today's price, or None if the price list has none."""
        now = time.monotonic()
        if self._pricing is None or self._pricing[0] < now:
            answer = await self._api.call("GET", "/pricing", "read prices")
            self._pricing = (now + READ_AGAIN_S, answer["pricing"])
        return price(self._pricing[1], candidate)
