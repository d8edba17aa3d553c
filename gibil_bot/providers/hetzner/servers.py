"""A server, as Hetzner's API shows it: found by its name, and made a `Machine`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from gibil_bot.model import Endpoint, Machine
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import HetznerApi
from gibil_bot.providers.hetzner.server_types import Json
from gibil_bot.ssh.host_keys import from_label

NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

_STATUS = {"initializing": "creating", "starting": "creating"}
_WITHOUT_LABEL = timedelta(days=1)
"""A damaged label must not burn a machine at once, nor keep it for ever."""


async def find_server(api: HetznerApi, name: str, *, burning: bool = False) -> Json | None:
    """Ours or not: names are unique in a project."""
    if not NAME.fullmatch(name):
        return None
    answer = await api.call("GET", "/servers", f"look for machine {name}", query={"name": name}, burning=burning)
    found: list[Json] = answer["servers"]
    return found[0] if found else None


def is_ours(server: Json) -> bool:
    """Made by gibil-bot: nothing else in the project is ever touched."""
    return bool(server["labels"].get(labels.CREATED_BY) == labels.OURS)


def is_machine(server: Json) -> bool:
    """Ours, and not one that is set aside until its hour is over (hetzner_spares.py)."""
    return is_ours(server) and labels.SPARE not in server["labels"]


def machine_of(server: Json, ssh_port: int, clock_ahead_s: float) -> Machine:
    """Its times by our clock. What it became (server type, location, image) is among its labels."""
    ahead = timedelta(seconds=clock_ahead_s)
    created_at = datetime.fromisoformat(server["created"]).astimezone(UTC) - ahead
    hour = labels.expires_at(server["labels"])
    address = server["public_net"]["ipv4"]
    image = server.get("image")
    became = {
        "server-type": str(server["server_type"]["name"]),
        "location": str(server["location"]["name"]),
        "image": str(image["name"] or image["id"]) if image else "",  # only the vendor's own images have a name
    }
    status = str(server["status"])
    return Machine(
        provider="hetzner",
        id=str(server["id"]),
        name=server["name"],
        created_at=created_at,
        expires_at=hour - ahead if hour is not None else created_at + _WITHOUT_LABEL,
        endpoint=Endpoint(
            host_key=from_label(server["labels"].get(labels.HOST_KEY, "")) or "",
            host=address["ip"] if address else None,
            port=ssh_port,
        ),
        labels={**became, **labels.decode(server["labels"])},
        status=_STATUS.get(status, status),
    )
