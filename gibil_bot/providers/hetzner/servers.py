"""Servers as Hetzner's API shows them: finding one by name, and converting it to a `Machine`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from gibil_bot.limits import MACHINE_NAME
from gibil_bot.model import Endpoint, Machine
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import HetznerApi
from gibil_bot.providers.hetzner.server_types import Json
from gibil_bot.ssh.host_keys import from_label

_STATUS = {"initializing": "creating", "starting": "creating"}
_WITHOUT_LABEL = timedelta(days=1)
"""Time to live of a machine whose label is damaged: it is neither deleted at once nor billed for ever."""


async def find_server(api: HetznerApi, name: str, *, deleting: bool = False) -> Json | None:
    """Return the server of that name, ours or not. Names are unique in a project."""
    if not MACHINE_NAME.fullmatch(name):
        return None
    answer = await api.call("GET", "/servers", f"look for machine {name}", query={"name": name}, deleting=deleting)
    found: list[Json] = answer["servers"]
    return found[0] if found else None


def is_ours(server: Json) -> bool:
    """Return whether gibil-bot created it. Nothing else in the project is changed or deleted."""
    return bool(server["labels"].get(labels.CREATED_BY) == labels.OURS)


def is_machine(server: Json) -> bool:
    """Return whether it is ours and not pooled (rebuild_pool.py)."""
    return is_ours(server) and labels.POOLED not in server["labels"]


def machine_of(server: Json, ssh_port: int, clock_ahead_s: float) -> Machine:
    """Convert a server to a Machine, with times by our clock and with its server type, location and image among the labels."""
    ahead = timedelta(seconds=clock_ahead_s)
    created_at = datetime.fromisoformat(server["created"]).astimezone(UTC) - ahead
    expiry = labels.expires_at(server["labels"])
    address = server["public_net"]["ipv4"]
    image = server.get("image")
    actual = {
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
        expires_at=expiry - ahead if expiry is not None else created_at + _WITHOUT_LABEL,
        endpoint=Endpoint(
            host_key=from_label(server["labels"].get(labels.HOST_KEY, "")) or "",
            host=address["ip"] if address else None,
            port=ssh_port,
        ),
        labels={**actual, **labels.decode(server["labels"])},
        status=_STATUS.get(status, status),
    )
