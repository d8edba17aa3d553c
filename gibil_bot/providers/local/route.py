"""A machine's way out without proxy variables: its TCP connections and DNS questions end at the daemon's listener.

The network namespace has only `lo`. It gets an address and the default route, and nf_tables redirects TCP to public addresses,
and DNS to any server, to the port of the egress proxy on 127.0.0.1. The proxy reads the original destination from the accepted
connection (SO_ORIGINAL_DST). The kernel drops all other packets silently, because `lo` receives them and their destination
isn't local: such connections time out, as private addresses do elsewhere.

These rules don't protect anything: without them, nothing leaves the namespace. Whether a connection may leave is decided in the
daemon (egress_proxy.py). IPv6 has no route, so that programs continue with IPv4 at once.

PID 1 imports this module, so it imports little.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, collapse_addresses

from gibil_bot.providers.local import nf_tables

PROXY = ("127.0.0.1", 3128)
"""The listener of the egress proxy, for TCP; the resolver listens here for UDP."""

NAMESERVER = "192.0.0.53"
"""In /etc/resolv.conf. Questions to every address are redirected; this one is in no use elsewhere (RFC 6890, section 2.2.2)."""

DNS_PORT = 53

PLACEHOLDERS = IPv4Network("198.19.0.0/16")
"""Addresses that the resolver returns instead of those that a machine may not use directly (resolver.py). Reserved for
benchmarks (RFC 2544), so no public host has one."""

_OWN = IPv4Address("192.0.0.8")
"""The machine's address: the dummy address of RFC 7600. With a loopback address alone, programs would ask only for IPv6
addresses."""

_OWN_IPV6 = IPv6Address("fe80::1")
"""A link-local address, as every network card has one. Without it, getaddrinfo leaves `::1` out of the addresses of `localhost`
(AI_ADDRCONFIG). It has no network, so that there is no route to others."""

_LOOPBACK = IPv4Network("127.0.0.0/8")
_NOT_REDIRECTED = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.168.0.0/16",
        "198.18.0.0/16",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
"""Networks in which a connection times out. The proxy blocks more (egress_policy.py) and reports what it blocks."""

MOST_ALLOWED = 256
"""Networks of the operator that are redirected. They are one transaction with the kernel, which has a limited size."""

_NEW_CONNECTIONS_PER_S, _BURST = 200, 2000
"""The kernel's memory for tracked connections isn't charged to the machine."""

# Built once, and not by PID 1 of every machine.
_TCP, _UDP = nf_tables.protocol(socket.IPPROTO_TCP), nf_tables.protocol(socket.IPPROTO_UDP)
_FIRST: tuple[nf_tables.Rule, ...] = (
    (*nf_tables.to_network(_LOOPBACK), *nf_tables.dont_track()),
    # Answers to redirected packets, whose source address the kernel has to change back.
    *(
        (*nf_tables.from_network(IPv4Network(PROXY[0])), *protocol, *nf_tables.from_port(PROXY[1]), *nf_tables.accept())
        for protocol in (_TCP, _UDP)
    ),
    *((*protocol, *nf_tables.to_port(DNS_PORT), *nf_tables.accept()) for protocol in (_TCP, _UDP)),
)
_LAST: tuple[nf_tables.Rule, ...] = (
    *((*nf_tables.to_network(network), *nf_tables.dont_track()) for network in collapse_addresses(_NOT_REDIRECTED)),
    (*_TCP, *nf_tables.accept()),
    nf_tables.dont_track(),
)
_OTHER_CHAINS = (
    nf_tables.Chain(
        "limit",
        "filter",
        nf_tables.AFTER_TRACKING,
        ((*nf_tables.new_connection(), *nf_tables.over_rate(_NEW_CONNECTIONS_PER_S, _BURST), *nf_tables.drop()),),
    ),
    nf_tables.Chain("redirection", "nat", nf_tables.ADDRESS_TRANSLATION, (nf_tables.redirect(PROXY[1]),)),
)

_LOG_GROUP = 1
_LOGGED_PER_S, _LOGGED_BURST = 10, 50
_LOG_CHAIN = nf_tables.Chain(
    "dropped",
    "filter",
    nf_tables.AFTER_TRACKING,
    (
        *(
            (*nf_tables.to_network(network), *nf_tables.accept())
            for network in (_LOOPBACK, IPv4Network("0.0.0.0/8"), IPv4Network(_OWN))
        ),
        (
            *nf_tables.untracked(),
            *nf_tables.opens_connection(),
            *nf_tables.within_rate(_LOGGED_PER_S, _LOGGED_BURST),
            *nf_tables.log(_LOG_GROUP),
        ),
    ),
)

_ADD_ADDRESS, _ADD_ROUTE = 20, 24
_REQUEST, _ACKNOWLEDGE, _CREATE, _EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
_ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, interface."""
_NO_DAD = 0x2
"""Use an IPv6 address at once, instead of after asking whether another computer has it; IPv4 has no such flag."""
_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, prefix lengths of destination and source, TOS, table, protocol, scope, type, flags."""
_TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST = 254, 4, 0, 1
_LAST_METRIC = 1 << 16
"""So that a route that a test's network card gets takes precedence."""

_SO_ORIGINAL_DST = 80


def set_up(allowed: list[tuple[str, int | None]]) -> list[socket.socket]:
    """Create route and rules in this network namespace, whose `lo` is up.

    `allowed`: IPv4 networks that the operator allows, and a port of them or None for all ports.
    Return the socket that receives DNS questions and, if the kernel can log, the one that receives the first packets of
    connections that the kernel drops (packet_log.py). Empty if the kernel doesn't offer what a route needs.
    """
    opened: list[socket.socket] = []
    try:
        opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        opened[0].bind(PROXY)
        nf_tables.load("gibil", _chains(allowed[:MOST_ALLOWED]))
        _add_address(socket.AF_INET, _OWN)
        _add_default_route()
    except OSError:
        for each in opened:
            each.close()
        return []
    with contextlib.suppress(OSError):  # a kernel without IPv6
        _add_address(socket.AF_INET6, _OWN_IPV6)
    with contextlib.suppress(OSError):
        log = nf_tables.open_log(_LOG_GROUP)
        opened.append(log)
        nf_tables.load("gibil-log", (_LOG_CHAIN,))
    return opened


def original_destination(connection: socket.socket) -> tuple[str, int] | None:
    """Return where a redirected connection was meant to go; None if it was made to the listener itself."""
    try:
        raw = connection.getsockopt(socket.IPPROTO_IP, _SO_ORIGINAL_DST, 16)
    except OSError:
        return None  # not tracked, so not redirected
    port, packed = struct.unpack_from(">2xH4s", raw)
    destination = socket.inet_ntoa(packed), port
    return None if destination == connection.getsockname() else destination


def _chains(allowed: list[tuple[str, int | None]]) -> tuple[nf_tables.Chain, ...]:
    """Return the rules. Only tracked packets are redirected, and only packets that have to be redirected are tracked."""
    exceptions = [
        (*nf_tables.to_network(IPv4Network(network)), *_TCP, *(nf_tables.to_port(port) if port else ()), *nf_tables.accept())
        for network, port in allowed
    ]
    selection = nf_tables.Chain("selection", "filter", nf_tables.BEFORE_TRACKING, (*_FIRST, *exceptions, *_LAST))
    return (selection, *_OTHER_CHAINS)


def _add_default_route() -> None:
    index = socket.if_nametoindex("lo")
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        output, metric, source = 4, 6, 7
        route = _ROUTE.pack(socket.AF_INET, 0, 0, 0, _TABLE_MAIN, _PROTOCOL_STATIC, _SCOPE_UNIVERSE, _UNICAST, 0)
        numbers = _attribute(output, struct.pack("=I", index)) + _attribute(metric, struct.pack("=I", _LAST_METRIC))
        _request(connection, _ADD_ROUTE, route + numbers + _attribute(source, _OWN.packed))


def _add_address(family: int, address: IPv4Address | IPv6Address) -> None:
    """Give `lo` an address."""
    local_address, interface_address = 2, 1
    body = _ADDRESS.pack(family, address.max_prefixlen, _NO_DAD, 0, socket.if_nametoindex("lo"))
    body += _attribute(local_address, address.packed) + _attribute(interface_address, address.packed)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as connection:
        _request(connection, _ADD_ADDRESS, body)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value


def _request(connection: socket.socket, kind: int, body: bytes) -> None:
    flags = _REQUEST | _ACKNOWLEDGE | _CREATE | _EXCLUSIVE
    connection.send(struct.pack("=IHHII", len(body) + 16, kind, flags, 1, 0) + body)
    code = struct.unpack_from("=i", connection.recv(4096), 16)[0]
    if code:
        raise OSError(-code, f"rtnetlink: {os.strerror(-code)}")
