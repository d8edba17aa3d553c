"""Which addresses a local machine may reach: all public ones, and those that the operator allows. No I/O.

A machine shares the host's network, so without this policy a pull request could connect to services of the host's own network:
databases on loopback, the cloud's metadata address, the router. The policy checks addresses and not names, because the owner of
a name chooses what it resolves to; only the operator's own entries are names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from gibil_bot.errors import ConfigurationError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_NAME = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")

# In addition to what ipaddress calls not global, which differs between Python versions, so the important ones are repeated.
_NEVER_PUBLIC = tuple(
    ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata lives here
        "168.63.129.16/32",  # Azure's wire server: a public number that answers only inside
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.88.99.0/24",  # 6to4 relays
        "198.18.0.0/15",  # benchmarks
        "240.0.0.0/4",
        "::/96",  # IPv4-compatible, unspecified, loopback
        "64:ff9b:1::/48",  # local NAT64
        "100::/64",
        "2001::/23",  # Teredo and other protocol assignments
        "2001:db8::/32",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",  # site-local, deprecated and still routed in old networks
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")


def plain(address: Address) -> Address:
    """Return the IPv4 address of a mapped one (`::ffff:10.0.0.1`): the same destination, so the same rules apply."""
    return getattr(address, "ipv4_mapped", None) or address


def spellings(address: Address) -> tuple[Address, ...]:
    """Return the address and, if it contains one, the IPv4 address in it (mapped, NAT64, 6to4)."""
    address = plain(address)
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return address, IPv4Address(int(address) & 0xFFFFFFFF)
        if address.sixtofour is not None:
            return address, address.sixtofour
    return (address,)


def is_itself(address: Address) -> bool:
    """Return whether it is a loopback or unspecified address, which means the computer that the program runs on."""
    return any(spelling.is_loopback or spelling.is_unspecified for spelling in spellings(address))


def is_own_name(name: str, own: str) -> bool:
    """Return whether it is `localhost`, a name below it (RFC 6761, section 6.3), or the machine's own name."""
    return name in ("localhost", own) or name.endswith(".localhost")


def is_public(address: Address) -> bool:
    """Return whether the address, and an IPv4 address that it contains (NAT64, 6to4), belong to the public Internet."""
    *wrappers, address = spellings(address)
    if wrappers:
        return is_public(address)
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    return not any(address in network for network in _NEVER_PUBLIC if network.version == address.version)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of the operator's list: a name (`git.example.com`, `*.example.com`) or a network. Port None: all ports."""

    name: str | None
    network: IPv4Network | IPv6Network | None
    port: int | None

    def matches(self, name: str, address: Address, port: int) -> bool:
        if self.network is not None:
            return self.port in (None, port) and plain(address) in self.network
        return self.names(name, port)

    def names(self, name: str, port: int) -> bool:
        """Return whether the endpoint is allowed by its name, whatever it resolves to."""
        if self.name is None or self.port not in (None, port):
            return False
        if self.name.startswith("*."):
            return name.endswith(self.name[1:]) and len(name) >= len(self.name)
        return name == self.name


@dataclass(frozen=True, slots=True)
class AllowList:
    """The only endpoints that a machine may reach during an agent task, if the policy for all machines allows them, too."""

    rules: tuple[Rule, ...]

    def has_endpoint(self, name: str, port: int) -> bool:
        """Return whether the endpoint is listed by its name, whatever it resolves to."""
        return any(rule.names(name, port) for rule in self.rules)

    def has_name(self, name: str) -> bool:
        """Return whether any port of the name is listed."""
        return any(rule.names(name, rule.port or 0) for rule in self.rules)

    def has_address(self, address: Address, port: int) -> bool:
        """Return whether the endpoint is listed by its address, which only operators do."""
        return any(rule.network is not None and rule.matches("", address, port) for rule in self.rules)


def parse_rules(entries: tuple[str, ...]) -> tuple[Rule, ...]:
    """Parse `host`, `host:port`, `*.example.com`, `10.0.0.0/8`, `[::1]:80`. Raises ConfigurationError with every bad entry."""
    rules, problems = [], []
    for entry in entries:
        try:
            rules.append(_rule(entry.strip().lower()))
        except ValueError:
            problems.append(
                f"GIBIL_EGRESS_ALLOW: invalid entry {entry!r}; write a host, host:port, *.example.com, 10.0.0.0/8 or [::1]:80"
            )
    if problems:
        raise ConfigurationError(tuple(problems))
    return tuple(rules)


def loopback_ports(allow: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """Return the entries with an IPv4 loopback address and a port, which are forwarded to the machine without the proxy.

    `localhost` is 127.0.0.1. `[::1]:80` is reached through the proxy only.
    """
    found: dict[tuple[str, int], None] = {}
    for rule in parse_rules(allow):
        if rule.port is None:
            continue
        if rule.name == "localhost":
            found["127.0.0.1", rule.port] = None
            continue
        network = rule.network
        if isinstance(network, IPv4Network) and network.num_addresses == 1 and network.is_loopback:
            found[str(network.network_address), rule.port] = None
    return tuple(found)


def allowed_networks(allow: tuple[str, ...]) -> list[tuple[str, int | None]]:
    """Return the entries that are IPv4 networks, with their ports."""
    return [(str(rule.network), rule.port) for rule in parse_rules(allow) if isinstance(rule.network, IPv4Network)]


def _rule(entry: str) -> Rule:
    port: int | None = None
    host = entry
    bracketed = re.fullmatch(r"\[([0-9a-f:.]+)\](?::([0-9]{1,5}))?", entry)
    if bracketed:
        host, port = bracketed[1], int(bracketed[2]) if bracketed[2] else None
    elif entry.count(":") == 1:
        host, _, digits = entry.partition(":")
        if not re.fullmatch(r"[0-9]{1,5}", digits):
            raise ValueError(entry)
        port = int(digits)
    if port is not None and not 1 <= port <= 65535:
        raise ValueError(entry)
    network: IPv4Network | IPv6Network
    try:
        network = ip_network(host, strict=False)
    except ValueError:
        host = host.removesuffix(".")
        # A name of only digits and dots is a mistyped address.
        if not _NAME.fullmatch(host) or re.fullmatch(r"[0-9./]+", host):
            raise
        return Rule(host, None, port)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            network = ip_network(f"{mapped}/{network.prefixlen - 96}", strict=False)
    return Rule(None, network, port)


def endpoint(host: str, port: int) -> str:
    """Return `host:80` or `[::1]:80`, as in a URL and in the operator's list."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> Address:
    """Parse an address from getaddrinfo, without its zone (`%eth0`)."""
    return ip_address(text.partition("%")[0])
