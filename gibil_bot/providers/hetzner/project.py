"""Resources that all machines of one Hetzner project share: a firewall that admits only SSH, one that lets nothing out, and an
SSH key without a holder.

For every server that is created without an SSH key, Hetzner generates a root password and e-mails it to the project's owner.
That password has expired, which also blocks logins by key. So every server gets one shared key whose private half was discarded
when it was generated. The user-data says which key may log in, and sshd reads nothing else (cloudinit.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from gibil_bot.errors import ProviderError
from gibil_bot.providers.hetzner.api import HetznerApi, Json, Rejected
from gibil_bot.providers.hetzner.labels import CREATED_BY, OURS

FIREWALL = "gibil-ssh-only"
AGENT_FIREWALL = "gibil-agents"
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
_AGENT_RULES = (
    *_RULES,
    {
        "direction": "out",
        "protocol": "tcp",
        "port": "9",
        "destination_ips": ["192.0.2.1/32"],
        "description": "nothing: with a rule for outgoing traffic, all other is dropped",
    },
)
"""The address is for documentation (RFC 5737). Answers to SSH connections pass, because the firewall is stateful, and so does
what servers ask Hetzner's own name servers: docs.hetzner.com/cloud/firewalls/faq."""


@dataclass(frozen=True, slots=True)
class ProjectResources:
    """IDs of the shared firewall and SSH key."""

    firewall_id: int
    key_id: int


async def ensure_resources(api: HetznerApi) -> ProjectResources:
    """Return both, created where they are missing. May be called concurrently, by several processes."""
    firewall, key = await asyncio.gather(_firewall(api), _key(api))
    return ProjectResources(firewall, key)


async def ensure_agent_firewall(api: HetznerApi) -> int:
    """Return the id of the firewall that lets nothing out, created where it is missing. May be called concurrently."""
    return await _firewall(api, AGENT_FIREWALL, _AGENT_RULES)


async def _firewall(api: HetznerApi, name: str = FIREWALL, rules: Sequence[Json] = _RULES) -> int:
    body: Json = {"name": name, "labels": {CREATED_BY: OURS}, "rules": list(rules)}
    found = await _find_or_create(api, "firewall", name, body)
    if not _lets_only_ssh_in(found) or _goes_out(body) not in ([], _goes_out(found)):
        await api.call(
            "POST",
            f"/firewalls/{found['id']}/actions/set_rules",
            f"restore the rules of firewall {name}",
            body={"rules": list(rules)},
        )
    return int(found["id"])


async def _key(api: HetznerApi) -> int:
    _private, public = await asyncio.to_thread(new_pair)
    body: Json = {"name": KEY, "labels": {CREATED_BY: OURS}, "public_key": f"{public} gibil-bot: its private half is gone"}
    return int((await _find_or_create(api, "ssh_key", KEY, body))["id"])


async def _find_or_create(api: HetznerApi, kind: str, name: str, body: Json) -> Json:
    path, doing = f"/{kind}s", f"create the {kind} {name}"
    for _attempt in range(3):
        listed = (await api.call("GET", path, f"look for the {kind} {name}", query={"name": name}))[f"{kind}s"]
        if listed:
            found: Json = listed[0]
            if found["labels"].get(CREATED_BY) != OURS:
                raise ProviderError(f"this Hetzner project has a {kind} named {name} that gibil-bot did not create; rename it")
            return found
        try:
            created: Json = (await api.call("POST", path, doing, body=body))[kind]
        except Rejected as error:
            if error.reason != "uniqueness_error":  # another process created it first: look again
                raise
        else:
            return created
    raise ProviderError(f"cannot {doing}: Hetzner reports that it exists but does not list it; try again")


def _lets_only_ssh_in(firewall: Json) -> bool:
    rules = firewall.get("rules") or ()
    incoming = [rule for rule in rules if rule["direction"] == "in"]
    return len(incoming) == 1 and incoming[0]["protocol"] == "tcp" and incoming[0]["port"] == "22"


def _goes_out(firewall: Json) -> list[tuple[str, str, list[str]]]:
    """Return where traffic may go; [] if it isn't limited."""
    rules = firewall.get("rules") or ()
    return [(rule["protocol"], rule.get("port"), rule["destination_ips"]) for rule in rules if rule["direction"] == "out"]


def new_pair() -> tuple[str, str]:
    """Generate an ed25519 key. Returns the private half as OpenSSH PEM and the public half as one line."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
