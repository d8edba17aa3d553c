"""What a project at the double can buy. The JSON has the documented form; names and prices are examples."""

from __future__ import annotations

from typing import Any

LOCATIONS: list[dict[str, Any]] = [
    {
        "id": number,
        "name": name,
        "description": f"{city} DC Park 1",
        "country": country,
        "city": city,
        "latitude": 50.0,
        "longitude": 10.0,
        "network_zone": zone,
    }
    for number, name, city, country, zone in (
        (1, "fsn1", "Falkenstein", "DE", "eu-central"),
        (2, "nbg1", "Nuremberg", "DE", "eu-central"),
        (3, "hel1", "Helsinki", "FI", "eu-central"),
        (4, "ash", "Ashburn, VA", "US", "us-east"),
    )
]

IMAGES: list[dict[str, Any]] = [
    {
        "id": number,
        "type": "system",
        "status": "available",
        "name": name,
        "description": name,
        "image_size": None,
        "disk_size": 5,
        "created": "2024-04-25T13:26:27Z",
        "created_from": None,
        "bound_to": None,
        "os_flavor": name.partition("-")[0],
        "os_version": name.partition("-")[2],
        "rapid_deploy": True,
        "protection": {"delete": False},
        "deprecated": None,
        "deleted": None,
        "labels": {},
        "architecture": architecture,
    }
    for number, name, architecture in (
        (114690387, "debian-12", "x86"),
        (114690389, "debian-12", "arm"),
        (161547269, "ubuntu-24.04", "x86"),
        (161547270, "ubuntu-24.04", "arm"),
    )
]
"""The images of both architectures have the same name (reference, Images, `architecture`)."""

_RETIRED = {"announced": "2025-10-01T00:00:00Z", "unavailable_after": "2026-01-01T00:00:00Z"}


def server_type(
    number: int,
    name: str,
    cores: int,
    memory: float,
    disk: int,
    hourly: str,
    *,
    cpu: str = "shared",
    arch: str = "x86",
    elsewhere: str | None = None,
) -> dict[str, Any]:
    """Return one server type. `elsewhere`: its price in the US, or None if it isn't sold there."""
    prices = {place["name"]: elsewhere if place["country"] == "US" else hourly for place in LOCATIONS}
    return {
        "id": number,
        "name": name,
        "description": name.upper(),
        "category": "cost_optimized",
        "cores": cores,
        "memory": memory,
        "disk": disk,
        "deprecated": False,
        "deprecation": None,
        "prices": [
            {
                "location": place,
                **_price(price),
                "included_traffic": (1 if place == "ash" else 20) * 2**40,
                "price_per_tb_traffic": {"net": "1.0000", "gross": "1.1900"},
            }
            for place, price in prices.items()
            if price is not None
        ],
        "storage_type": "local",
        "cpu_type": cpu,
        "architecture": arch,
        "locations": [
            {"id": place["id"], "name": place["name"], "available": True, "recommended": True, "deprecation": None}
            for place in LOCATIONS
            if prices[place["name"]] is not None
        ],
    }


def _price(hourly: str) -> dict[str, dict[str, str]]:
    monthly = f"{float(hourly) * 624:.4f}"
    return {
        "price_hourly": {"net": hourly, "gross": f"{float(hourly) * 1.19:.10f}"},
        "price_monthly": {"net": monthly, "gross": f"{float(monthly) * 1.19:.10f}"},
    }


def server_types() -> list[dict[str, Any]]:
    """Return fresh copies, which tests may change."""
    types = [
        server_type(114, "cx23", 2, 4.0, 40, "0.0060"),
        server_type(115, "cx33", 4, 8.0, 80, "0.0104"),
        server_type(116, "cx43", 8, 16.0, 160, "0.0180"),
        server_type(22, "cpx11", 2, 2.0, 40, "0.0050", elsewhere="0.0040"),
        server_type(109, "cpx22", 2, 4.0, 80, "0.0090", elsewhere="0.0055"),
        server_type(110, "cpx32", 4, 8.0, 160, "0.0170", elsewhere="0.0100"),
        server_type(45, "cax11", 2, 4.0, 40, "0.0055", arch="arm"),
        server_type(96, "ccx13", 2, 8.0, 80, "0.0200", cpu="dedicated", elsewhere="0.0250"),
        server_type(97, "ccx23", 4, 16.0, 160, "0.0400", cpu="dedicated", elsewhere="0.0500"),
        server_type(98, "ccx33", 8, 32.0, 240, "0.0800", cpu="dedicated", elsewhere="0.1000"),
        server_type(3, "cx21", 2, 4.0, 40, "0.0030", elsewhere="0.0030"),
    ]
    for location in types[-1]["locations"]:
        location |= {"available": False, "deprecation": dict(_RETIRED)}
    return types


def pricing(types: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the response of GET /pricing with every required key; prices of other products are empty."""
    address = [
        {
            "location": location["name"],
            "price_hourly": {"net": "0.0008", "gross": "0.0009520000"},
            "price_monthly": {"net": "0.5000", "gross": "0.5950000000"},
        }
        for location in LOCATIONS
    ]
    return {
        "currency": "EUR",
        "vat_rate": "19.000000",
        "image": {"price_per_gb_month": {"net": "0.0110", "gross": "0.0131"}},
        "server_backup": {"percentage": "20.0000000000"},
        "server_types": [{"id": kind["id"], "name": kind["name"], "prices": kind["prices"]} for kind in types],
        "primary_ips": [{"type": kind, "prices": address} for kind in ("ipv6", "ipv4")],
        "floating_ip": {"price_monthly": {"net": "3.0000", "gross": "3.5700"}},
        "floating_ips": [],
        "load_balancer_types": [],
        "volume": {"price_per_gb_month": {"net": "0.0440", "gross": "0.0524"}},
    }
