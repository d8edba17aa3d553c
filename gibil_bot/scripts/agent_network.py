"""What limits the network of a cloud machine during an agent task on the machine itself: the kernel's packet filter.

A local machine needs none of it: its daemon limits it from outside.
"""

from __future__ import annotations

from collections.abc import Mapping

from gibil_bot.scripts.templates import script

_TABLE = "inet gibil_agent"
_NO_RULES = f"table {_TABLE}\ndelete table {_TABLE}"
_CONTAINERS = ("docker0", "br-*", "podman*", "cni*")
"""Interfaces of containers. What containers send elsewhere is forwarded, and so dropped."""

RULES = f"""{_NO_RULES}
table {_TABLE} {{
    chain output {{
        type filter hook output priority 0; policy drop;
        oifname "lo" accept
{"".join(f'        oifname "{name}" accept{chr(10)}' for name in _CONTAINERS)}\
        tcp sport 22 ct state established accept
        meta skuid 0 udp sport 68 udp dport 67 accept
        icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
        reject with icmpx type admin-prohibited
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
{"".join(f'        oifname "{name}" accept{chr(10)}' for name in _CONTAINERS)}\
    }}
}}"""
"""nft(8): the machine itself and its containers, answers of sshd, and what keeps its addresses (DHCP, IPv6 neighbours)."""


def limit_script() -> str:
    """Return POSIX sh that limits the machine's network. Run by root; exits with 1 and a message if that fails."""
    return script("agent_network_limit", RULES=RULES)


def lift_script() -> str:
    """Return POSIX sh that undoes `limit_script`."""
    return script("agent_network_lift", RULES=_NO_RULES)


def proxy_environment(port: int) -> Mapping[str, str]:
    """Return the variables that programs read to find a proxy. Java reads none."""
    url, itself = f"http://127.0.0.1:{port}", "localhost,127.0.0.1,::1"
    found = {"NODE_USE_ENV_PROXY": "1"}
    for name in ("http_proxy", "https_proxy"):
        found[name] = found[name.upper()] = url
    found["no_proxy"] = found["NO_PROXY"] = itself
    return found
