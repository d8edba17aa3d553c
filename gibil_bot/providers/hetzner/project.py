"""What all machines of one Hetzner project share: a firewall that lets only SSH in, and a key that opens nothing.

Hetzner makes up a root password and e-mails it to the project's owner for every server that is made without an SSH key, and
that password has expired, which also stops logins by key. So every server is given one shared key whose private half was
thrown away as soon as it was made. Who may really log in stands in the user-data, and sshd reads nothing else (cloudinit.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from gibil_bot.errors import ProviderError
from gibil_bot.providers.hetzner.api import HetznerApi, Json, Refused
from gibil_bot.providers.hetzner.labels import CREATED_BY, OURS

FIREWALL = "gibil-ssh-only"
KEY = "gibil-opens-nothing"

_RULES = (
    {
        "direction": "in",
        "protocol": "tcp",
        "port": "22",
        "source_ips": ["0.0.0.0/0", "::/0"],
        "description": "SSH, by key only",
    },
)


@dataclass(frozen=True, slots=True)
class ProjectResources:
    firewall_id: int
    key_id: int


async def shared(api: HetznerApi) -> ProjectResources:
    """Both, made where they are missing. Safe to be called by many at once, in many processes."""
    firewall, key = await asyncio.gather(_firewall(api), _key(api))
    return ProjectResources(firewall, key)


async def _firewall(api: HetznerApi) -> int:
    body: Json = {"name": FIREWALL, "labels": {CREATED_BY: OURS}, "rules": list(_RULES)}
    found = await _find_or_make(api, "firewall", FIREWALL, body)
    if not _lets_only_ssh_in(found):
        await api.call(
            "POST",
            f"/firewalls/{found['id']}/actions/set_rules",
            f"put firewall {FIREWALL} right",
            body={"rules": list(_RULES)},
        )
    return int(found["id"])


async def _key(api: HetznerApi) -> int:
    _private, public = await asyncio.to_thread(new_pair)
    body: Json = {"name": KEY, "labels": {CREATED_BY: OURS}, "public_key": f"{public} gibil-bot: its private half is gone"}
    return int((await _find_or_make(api, "ssh_key", KEY, body))["id"])


async def _find_or_make(api: HetznerApi, kind: str, name: str, body: Json) -> Json:
    path, doing = f"/{kind}s", f"make the {kind} {name}"
    for _attempt in range(3):
        listed = (await api.call("GET", path, f"look for the {kind} {name}", query={"name": name}))[f"{kind}s"]
        if listed:
            found: Json = listed[0]
            if found["labels"].get(CREATED_BY) != OURS:
                raise ProviderError(f"this Hetzner project has a {kind} {name} that is not gibil-bot's; give it another name")
            return found
        try:
            made: Json = (await api.call("POST", path, doing, body=body))[kind]
        except Refused as error:
            if error.reason != "uniqueness_error":  # somebody was faster: look again
                raise
        else:
            return made
    raise ProviderError(f"cannot {doing}: Hetzner says that it exists, and does not show it")


def _lets_only_ssh_in(firewall: Json) -> bool:
    rules = firewall.get("rules") or ()
    incoming = [rule for rule in rules if rule["direction"] == "in"]
    return len(incoming) == 1 and incoming[0]["protocol"] == "tcp" and incoming[0]["port"] == "22"


def new_pair() -> tuple[str, str]:
    """A new ed25519 key: OpenSSH's PEM of the private half, one line of the public one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
