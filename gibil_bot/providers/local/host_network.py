"""The host's own networks: its addresses, the networks of its interfaces, and its routers.

A neighbour on a link can have a global address (IPv6 at home, a shared public VLAN), so `is_public` alone would let machines
reach the router, a printer or another server there, bypassing the firewall to the Internet. They are read from the kernel over
rtnetlink(7), with all routing tables, and read again as soon as the kernel announces a change.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

from gibil_bot.providers.local.egress_policy import Address, Network, spellings

_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_ADDRESS = struct.Struct("=BBBBI")
"""struct ifaddrmsg: family, prefix length, flags, scope, interface."""
_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, destination's prefix length, source's, TOS, table, protocol, scope, type, flags."""

_GET_ADDRESS, _NEW_ADDRESS = 22, 20
_GET_ROUTE, _NEW_ROUTE = 26, 24
_DUMP = 0x1 | 0x300
_INTERRUPTED = 0x10
_ERROR, _DONE = 2, 3
_ADDRESS_OF_PEER, _ADDRESS_OF_HOST = 1, 2
_DESTINATION, _GATEWAY, _NEXT_HOPS, _VIA, _NEXT_HOP_ID = 1, 5, 9, 18, 30
_CLONED = 0x200
_UNICAST, _LOCAL, _BROADCAST, _ANYCAST, _MULTICAST = range(1, 6)
_GROUPS = 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE."""

_SHORTEST = {4: 8, 6: 16}
"""A route without a gateway and with a shorter prefix (`default dev ppp0`, `2000::/3 dev tun0`) leads to the Internet."""

_READ_S = 5.0
_REST = 20
"""Reading takes at most a twentieth of the time: the million routes of a core router change all the time."""


@dataclass(frozen=True, slots=True)
class HostLinks:
    """Addresses of the host, of its networks and of its routers."""

    own: frozenset[Network] = frozenset()
    neighbours: frozenset[Network] = frozenset()
    routers: frozenset[Address] = frozenset()

    def relation_to(self, address: Address) -> str:
        """Return how an address is related to this host, to follow the address in a sentence; "" if it isn't."""
        for spelling in spellings(address):
            if _is_in(spelling, self.own):
                return "is an address of the host itself"
            if spelling in self.routers:
                return "is a router of the host"
            if _is_in(spelling, self.neighbours):
                return "is in a network that the host is directly connected to"
        return ""


def _is_in(address: Address, networks: frozenset[Network]) -> bool:
    return any(address in network for network in networks if network.version == address.version)


@dataclass
class HostNetwork:
    """The current networks of the host. One per process: it keeps a socket open from the first call on."""

    _links: HostLinks | None = field(default=None, init=False)
    _changes: socket.socket | None = field(default=None, init=False)
    _stale: bool = field(default=True, init=False)
    _read_at: float = field(default=0.0, init=False)
    _rest_s: float = field(default=0.0, init=False)
    _reading: asyncio.Task[HostLinks] | None = field(default=None, init=False)

    async def links(self) -> HostLinks:
        """Return the networks of the host. Raises OSError if the kernel doesn't say."""
        self._notice_changes()
        if self._links is None or (self._stale and time.monotonic() - self._read_at >= self._rest_s):
            if self._reading is None or self._reading.done():
                self._reading = asyncio.get_running_loop().create_task(self._read())
            return await asyncio.shield(self._reading)
        return self._links

    def _notice_changes(self) -> None:
        if self._changes is None:
            self._changes = _netlink(_GROUPS)
            self._changes.setblocking(False)
            self._stale = True
        while True:
            try:
                self._changes.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # more changes than the socket could buffer; it works again after that
                    raise
            self._stale = True

    async def _read(self) -> HostLinks:
        self._stale = False  # before reading, so that a change meanwhile is read again
        began = time.monotonic()
        try:
            self._links = await asyncio.to_thread(read_links)
        except BaseException:
            self._stale = True
            raise
        self._read_at = time.monotonic()
        self._rest_s = _REST * (self._read_at - began) if self._read_at - began > 0.05 else 0.0
        return self._links

    def close(self) -> None:
        if self._changes is not None:
            self._changes.close()
            self._changes = None


def read_links() -> HostLinks:
    """Read the networks from the kernel. Blocks for milliseconds. Raises OSError."""
    own: set[Network] = set()
    neighbours: set[Network] = set()
    routers: set[Address] = set()
    for message in _dump(_GET_ADDRESS, _NEW_ADDRESS):
        _read_address(message, own, neighbours)
    for message in _dump(_GET_ROUTE, _NEW_ROUTE):
        _read_route(message, own, neighbours, routers)
    return HostLinks(frozenset(own), frozenset(neighbours), frozenset(routers))


def _read_address(message: memoryview, own: set[Network], neighbours: set[Network]) -> None:
    _family, length, _flags, _scope, _interface = _ADDRESS.unpack_from(message)
    attributes = dict(_attributes(message[_ADDRESS.size :]))
    for kind in (_ADDRESS_OF_HOST, _ADDRESS_OF_PEER):
        if kind in attributes:
            address = ip_address(bytes(attributes[kind]))
            # Without `_ADDRESS_OF_HOST`, the address of the interface is in `_ADDRESS_OF_PEER` (IPv6, and loopback).
            if kind == _ADDRESS_OF_HOST or _ADDRESS_OF_HOST not in attributes:
                own.add(ip_network(address))
            _add_link(neighbours, address, length)


def _read_route(message: memoryview, own: set[Network], neighbours: set[Network], routers: set[Address]) -> None:
    family, length, _source, _tos, _table, _protocol, _scope, kind, flags = _ROUTE.unpack_from(message)
    if flags & _CLONED or family not in (socket.AF_INET, socket.AF_INET6):
        return
    attributes = dict(_attributes(message[_ROUTE.size :]))
    hops = [attributes]
    if _NEXT_HOPS in attributes:
        hops = list(_next_hops(attributes[_NEXT_HOPS]))
    gateways = [gateway for hop in hops if (gateway := _gateway(hop)) is not None]
    routers.update(gateways)
    if _DESTINATION in attributes:
        destination = ip_address(bytes(attributes[_DESTINATION]))
        if kind in (_LOCAL, _BROADCAST, _ANYCAST):
            own.add(ip_network((destination, length), strict=False))
        elif kind == _UNICAST and len(gateways) < len(hops) and _NEXT_HOP_ID not in attributes:
            _add_link(neighbours, destination, length)


def _add_link(neighbours: set[Network], address: Address, length: int) -> None:
    if length >= _SHORTEST[address.version]:
        neighbours.add(ip_network((address, length), strict=False))


def _gateway(hop: dict[int, memoryview]) -> Address | None:
    if _GATEWAY in hop:
        return ip_address(bytes(hop[_GATEWAY]))
    if _VIA in hop:  # struct rtvia: the family, and an address of it (an IPv4 route through an IPv6 router)
        return ip_address(bytes(hop[_VIA][2:]))
    return None


def _next_hops(value: memoryview) -> Iterator[dict[int, memoryview]]:
    """Yield the attributes of each struct rtnexthop (length, flags, hops, interface)."""
    while len(value) >= 8:
        (length,) = struct.unpack_from("=H", value)
        if length < 8:
            return
        yield dict(_attributes(value[8:length]))
        value = value[_aligned(length) :]


def _attributes(value: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield type and value of each struct rtattr (length, type, value; padded to four bytes)."""
    while len(value) >= 4:
        length, kind = struct.unpack_from("=HH", value)
        if length < 4:
            return
        yield kind & 0x3FFF, value[4:length]
        value = value[_aligned(length) :]


def _aligned(length: int) -> int:
    return length + 3 & ~3


def _dump(request: int, answer: int) -> list[memoryview]:
    """Return the bodies of all messages of type `answer`. Repeated if the data changed meanwhile."""
    for _attempt in range(5):
        with contextlib.closing(_netlink(0)) as connection:
            connection.settimeout(_READ_S)
            connection.send(_HEADER.pack(_HEADER.size + 1, request, _DUMP, 1, 0) + bytes([socket.AF_UNSPEC]))
            bodies, interrupted = _answers(connection, answer)
        if not interrupted:
            return bodies
    return bodies


def _answers(connection: socket.socket, answer: int) -> tuple[list[memoryview], bool]:
    bodies: list[memoryview] = []
    interrupted = False
    while True:
        data = memoryview(connection.recv(1 << 20))
        while len(data) >= _HEADER.size:
            length, kind, flags, _sequence, _port = _HEADER.unpack_from(data)
            interrupted |= bool(flags & _INTERRUPTED)
            body = data[_HEADER.size : length]
            if kind == _DONE:
                return bodies, interrupted
            if kind == _ERROR:
                number = -struct.unpack_from("=i", body)[0]
                raise OSError(number, f"rtnetlink: {os.strerror(number)}")
            if kind == answer:
                bodies.append(body)
            data = data[_aligned(length) :]


def _netlink(groups: int) -> socket.socket:
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        connection.bind((0, groups))
    except BaseException:
        connection.close()
        raise
    return connection
