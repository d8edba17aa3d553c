"""Which server types fit what was asked, in the order to try them, and what they cost. Pure.

No type's name and no price is written down here: types are retired and prices change several times a year, so a size says how
much of a machine it is, and the API's own list says what there is (GET /server_types, `locations[].available`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from gibil_bot.errors import GibilError, ProviderError, UsageError

Json = Mapping[str, Any]

SOLD_OUT = "RESOURCE_UNAVAILABLE"

LOCATIONS = ("nbg1", "fsn1", "hel1")
"""The locations to try when none is asked for, in one network zone; at one price in this order."""
TYPES_PER_SIZE = 3
"""The cheapest ones that fit: when all of them are sold out, a much larger machine is not what was asked for."""


@dataclass(frozen=True, slots=True)
class Size:
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
    """Of one machine with its address: net of VAT, in `currency`. Every started hour is billed, up to the monthly cap."""

    hourly: Decimal
    monthly: Decimal
    currency: str


@dataclass(frozen=True, slots=True)
class Offer:
    """One thing that can be asked for: a server type in a location."""

    server_type: str
    location: str

    def __str__(self) -> str:
        return f"{self.server_type} in {self.location}"


def offers(
    server_types: Sequence[Json],
    *,
    size: str,
    server_type: str | None = None,
    location: str | None = None,
    memory_mb: int | None = None,
    disk_mb: int | None = None,
    now: datetime,
    sold_out: Collection[Offer] = (),
    allowed: Collection[str] | None = None,
) -> list[Offer]:
    """What to try, in this order: the cheapest type in every location, then the next. Those just sold out come last.

    Prices differ by location, so only those of the locations that come into question count. `allowed`: the operator's server
    types; None: a named type may cost no more than the dearest that a size names.

    Raises UsageError for a type or a place that does not exist, ProviderError when all are sold out; both say what there is.
    """
    if server_type:
        chosen = _named(server_types, server_type)
        _check_allowed(server_types, chosen[0], allowed)
    else:
        chosen = _fitting(server_types, size, memory_mb, disk_mb)
        if allowed is not None:
            chosen = [kind for kind in chosen if kind["name"] in allowed]
    places = (location,) if location else LOCATIONS
    sold = [(kind, [place for place in places if _is_offered(kind, place, now)]) for kind in chosen]
    sold = [(kind, sorted(where, key=lambda place: _hourly(kind, place))) for kind, where in sold if where]
    sold.sort(key=lambda each: (_hourly(each[0], each[1][0]), each[0]["cpu_type"] != "shared", each[0]["name"]))
    found = [Offer(kind["name"], place) for kind, where in sold for place in where]
    if server_type is None:
        first = list(dict.fromkeys(offer.server_type for offer in found))[:TYPES_PER_SIZE]
        found = [offer for offer in found if offer.server_type in first]
    if not found:
        raise _nothing(server_types, chosen, server_type or f"a {size} machine", location, now)
    return sorted(found, key=lambda offer: offer in sold_out)


def price(pricing: Json, offer: Offer) -> Price | None:
    """From the answer of GET /pricing; None where it has no price for that offer."""
    kinds = [kind for kind in pricing.get("server_types", ()) if kind["name"] == offer.server_type]
    server = _in_location(kinds[0]["prices"], offer.location) if kinds else None
    if server is None:
        return None
    addresses = [ip for ip in pricing.get("primary_ips", ()) if ip["type"] == "ipv4"]
    address = _in_location(addresses[0]["prices"], offer.location) if addresses else None
    parts = [part for part in (server, address) if part is not None]
    return Price(
        hourly=sum((_amount(part["price_hourly"]["net"]) for part in parts), Decimal(0)),
        monthly=sum((_amount(part["price_monthly"]["net"]) for part in parts), Decimal(0)),
        currency=str(pricing.get("currency", "EUR")),
    )


def started_hours(created_at: datetime, now: datetime) -> int:
    """Every started hour is billed whole, the first one too (https://docs.hetzner.com/cloud/billing/faq)."""
    return max(1, math.ceil((now - created_at).total_seconds() / 3600))


def cost_so_far(price: Price, created_at: datetime, now: datetime) -> Decimal:
    """Net, from the creation until now. The cap is a month's; a machine that crosses months is billed more than we say."""
    return min(price.hourly * started_hours(created_at, now), price.monthly)


def _named(server_types: Sequence[Json], name: str) -> list[Json]:
    found = [kind for kind in server_types if kind["name"] == name]
    if not found:
        names = ", ".join(sorted(kind["name"] for kind in server_types))
        raise UsageError(f"Hetzner has no server type {name!r}; it has {names}")
    return found


def _check_allowed(server_types: Sequence[Json], kind: Json, allowed: Collection[str] | None) -> None:
    """Raises UsageError."""
    name = kind["name"]
    if allowed is not None:
        if name not in allowed:
            raise UsageError(f"the server type {name!r} is not allowed here; GIBIL_SERVER_TYPES allows {', '.join(allowed)}")
        return
    named = [
        each for size in SIZES for each in sorted(_fitting(server_types, size, None, None), key=_cheapest)[:TYPES_PER_SIZE]
    ]
    if named and _cheapest(kind) > max(map(_cheapest, named)):
        raise UsageError(
            f"the server type {name!r} costs more than any that a size names; to allow it, name it in GIBIL_SERVER_TYPES"
        )


def _fitting(server_types: Sequence[Json], size: str, memory_mb: int | None, disk_mb: int | None) -> list[Json]:
    """Only x86: what runs here was built for the machine that most people have."""
    if size not in SIZES:
        raise UsageError(f"there is no size {size!r}; write {', '.join(SIZES)}")
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


def _hourly(kind: Json, place: str) -> Decimal:
    found = _in_location(kind["prices"], place)
    return Decimal("Infinity") if found is None else _amount(found["price_hourly"]["net"])


def _is_offered(kind: Json, place: str, now: datetime) -> bool:
    for each in kind.get("locations") or ():
        if each["name"] == place:
            return bool(each.get("available", True)) and not _is_retired(each.get("deprecation"), now)
    return False


def _is_retired(deprecation: Json | None, now: datetime) -> bool:
    if not deprecation:
        return False
    after = deprecation.get("unavailable_after")
    return bool(after) and datetime.fromisoformat(str(after)) <= now


def _nothing(
    server_types: Sequence[Json], chosen: Sequence[Json], what: str, location: str | None, now: datetime
) -> GibilError:
    known = sorted({each["name"] for kind in server_types for each in kind.get("locations") or ()})
    if location is not None and location not in known:
        return UsageError(f"Hetzner has no location {location!r}; it has {', '.join(known)}")
    elsewhere = sorted({place for kind in chosen for place in known if _is_offered(kind, place, now)})
    where = location or ", ".join(LOCATIONS)
    if elsewhere:
        text = f"Hetzner does not offer {what} in {where} now; it does in {', '.join(elsewhere)}: choose a location"
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
