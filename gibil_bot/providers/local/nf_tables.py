"""Rules of the kernel's packet filter (nf_tables) for this network namespace, over netlink, without the program `nft`.

A rule is a sequence of expressions that work on registers: load a value, compare it, act (linux/netfilter/nf_tables.h). The
whole table is one transaction, which the kernel accepts or rejects as a whole. Netlink's own fields have the byte order of the
host, those of nf_tables that of the network.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Network

Expression = bytes
Rule = tuple[Expression, ...]

OUTPUT_HOOK = 3
BEFORE_TRACKING, AFTER_TRACKING, ADDRESS_TRANSLATION = -300, -150, -100
"""Priorities of chains in linux/netfilter_ipv4.h: NF_IP_PRI_RAW, _MANGLE, _NAT_DST."""

_NETLINK_NETFILTER = 12
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_ERROR = 2
_REQUEST, _ACKNOWLEDGE, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = (_SUBSYSTEM << 8 | kind for kind in (0, 3, 6))
_NESTED = 0x8000
_ANSWER_S = 5.0

_VERDICT, _REGISTER = 0, 1
"""Registers: the one with the verdict, and the first with 16 bytes."""
_DROP, _ACCEPT = 0, 1
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL = 0
_META_PROTOCOL = 16
_CONNECTION_STATE = 0
_STATE_NEW, _STATE_UNTRACKED = 1 << 3, 1 << 6
_SYN, _ACK = 0x02, 0x10
_LOG_SUBSYSTEM, _LOG_CONFIGURE = 4, 1
_LOG_BIND, _LOG_PACKET = 1, 2
_LOG_BYTES = 64
"""Of a packet: the headers of IPv4 (without unusual options) and the ports."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A base chain of the output hook. `kind`: `filter` or `nat`."""

    name: str
    kind: str
    priority: int
    rules: tuple[Rule, ...]


def _attribute(kind: int, value: bytes | int | str | list[bytes]) -> bytes:
    """Encode a struct nlattr: a list is nested, a number is 32 bits, a string ends with a zero."""
    if isinstance(value, list):
        kind, value = kind | _NESTED, b"".join(value)
    elif isinstance(value, int):
        value = struct.pack(">i" if value < 0 else ">I", value)
    elif isinstance(value, str):
        value = value.encode() + b"\0"
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _expression(name: str, *attributes: bytes) -> Expression:
    return _attribute(1, [_attribute(1, name), _attribute(2, list(attributes))])


def _data(value: bytes) -> list[bytes]:
    return [_attribute(1, value)]


def _equals(value: bytes) -> Expression:
    return _expression("cmp", _attribute(1, _REGISTER), _attribute(2, _EQUAL), _attribute(3, _data(value)))


def _and(mask: bytes) -> Expression:
    zero = _data(bytes(len(mask)))
    return _expression(
        "bitwise",
        _attribute(1, _REGISTER),
        _attribute(2, _REGISTER),
        _attribute(3, len(mask)),
        _attribute(4, _data(mask)),
        _attribute(5, zero),
    )


def _payload(header: int, offset: int, length: int) -> Expression:
    fields = (_REGISTER, header, offset, length)
    return _expression("payload", *(_attribute(number, field) for number, field in enumerate(fields, start=1)))


def _address(offset: int, network: IPv4Network) -> Rule:
    loaded = _payload(_NETWORK_HEADER, offset, 4)
    masked = () if network.prefixlen == 32 else (_and(network.netmask.packed),)
    return (loaded, *masked, _equals(network.network_address.packed))


def from_network(network: IPv4Network) -> Rule:
    return _address(12, network)


def to_network(network: IPv4Network) -> Rule:
    return _address(16, network)


def from_port(port: int) -> Rule:
    """Match the source port of TCP and UDP."""
    return (_payload(_TRANSPORT_HEADER, 0, 2), _equals(struct.pack(">H", port)))


def to_port(port: int) -> Rule:
    return (_payload(_TRANSPORT_HEADER, 2, 2), _equals(struct.pack(">H", port)))


def protocol(number: int) -> Rule:
    """Match the transport protocol, which `from_port` and `to_port` don't check."""
    return (_expression("meta", _attribute(1, _REGISTER), _attribute(2, _META_PROTOCOL)), _equals(bytes([number])))


def opens_connection() -> Rule:
    """Match the first packet of a TCP connection, tracked or not."""
    return (
        *protocol(socket.IPPROTO_TCP),
        _payload(_TRANSPORT_HEADER, 13, 1),
        _and(bytes([_SYN | _ACK])),
        _equals(bytes([_SYN])),
    )


def new_connection() -> Rule:
    """Match the first packet of a tracked connection."""
    return _in_state(_STATE_NEW)


def untracked() -> Rule:
    return _in_state(_STATE_UNTRACKED)


def _in_state(bit: int) -> Rule:
    state = struct.pack("=I", bit)
    loaded = _expression("ct", _attribute(1, _REGISTER), _attribute(2, _CONNECTION_STATE))
    return (loaded, _and(state), _equals(state))


def within_rate(per_second: int, burst: int) -> Rule:
    """Match packets up to a rate (token bucket)."""
    return _rate(per_second, burst, inverted=0)


def over_rate(per_second: int, burst: int) -> Rule:
    """Match what exceeds a rate."""
    return _rate(per_second, burst, inverted=1)


def _rate(per_second: int, burst: int, inverted: int) -> Rule:
    unit_s, packets = struct.pack(">Q", 1), 0
    return (
        _expression(
            "limit",
            _attribute(1, struct.pack(">Q", per_second)),
            _attribute(2, unit_s),
            _attribute(3, burst),
            _attribute(4, packets),
            _attribute(5, inverted),
        ),
    )


def log(group: int) -> Rule:
    """Send the packet to the socket of `open_log`."""
    return (_expression("log", _attribute(1, struct.pack(">H", group)), _attribute(3, _LOG_BYTES)),)


def dont_track() -> Rule:
    """Exclude the packet from connection tracking, and so from address translation."""
    return (_expression("notrack"), *accept())


def redirect(port: int) -> Rule:
    """Change the destination to this port of 127.0.0.1."""
    loaded = _expression("immediate", _attribute(1, _REGISTER), _attribute(2, _data(struct.pack(">H", port))))
    return (loaded, _expression("redir", _attribute(1, _REGISTER)))


def accept() -> Rule:
    return _verdict(_ACCEPT)


def drop() -> Rule:
    return _verdict(_DROP)


def _verdict(code: int) -> Rule:
    return (_expression("immediate", _attribute(1, _VERDICT), _attribute(2, [_attribute(2, [_attribute(1, code)])])),)


def load(table: str, chains: tuple[Chain, ...]) -> None:
    """Create a table for IPv4 in this network namespace. Raises OSError if the kernel rejects it or has no nf_tables."""
    messages = _transaction()
    messages.add(_NEW_TABLE, _attribute(1, table), flags=_CREATE | _ACKNOWLEDGE)
    for chain in chains:
        hook = [_attribute(1, OUTPUT_HOOK), _attribute(2, chain.priority)]
        body = _attribute(1, table) + _attribute(3, chain.name) + _attribute(4, hook) + _attribute(7, chain.kind)
        messages.add(_NEW_CHAIN, body, flags=_CREATE)
        for rule in chain.rules:
            body = _attribute(1, table) + _attribute(2, chain.name) + _attribute(4, list(rule))
            messages.add(_NEW_RULE, body, flags=_CREATE | _APPEND)
    _commit(messages)


def _transaction() -> _Messages:
    messages = _Messages()
    messages.add(_BATCH_BEGIN, b"", family=socket.AF_UNSPEC, resource=_SUBSYSTEM)
    return messages


def _commit(messages: _Messages) -> None:
    """Send a transaction, in which one message asks for an acknowledgement. Raises OSError."""
    messages.add(_BATCH_END, b"", family=socket.AF_UNSPEC, resource=_SUBSYSTEM)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as connection:
        connection.bind((0, 0))
        connection.send(bytes(messages.sent))
        connection.settimeout(_ANSWER_S)
        # Errors of the transaction arrive after the acknowledgement of its first message, in separate datagrams.
        answers = [connection.recv(65536)]
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                answers.append(connection.recv(65536))
    for answer in answers:
        _raise_error(answer)


def open_log(group: int) -> socket.socket:
    """Return a socket that receives the packets that rules log (linux/netfilter/nfnetlink_log.h). Raises OSError."""
    connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        connection.bind((0, 0))
        connection.settimeout(_ANSWER_S)
        bind = _attribute(1, bytes([_LOG_BIND]))
        copy = _attribute(2, struct.pack(">IBx", _LOG_BYTES, _LOG_PACKET))
        at_once = _attribute(5, 1)
        messages = _Messages()
        kind = _LOG_SUBSYSTEM << 8 | _LOG_CONFIGURE
        messages.add(kind, bind + copy + at_once, flags=_ACKNOWLEDGE, family=socket.AF_UNSPEC, resource=group)
        connection.send(bytes(messages.sent))
        _raise_error(connection.recv(65536))
    except BaseException:
        connection.close()
        raise
    return connection


class _Messages:
    def __init__(self) -> None:
        self.sent = bytearray()
        self._count = 0

    def add(self, kind: int, body: bytes, *, flags: int = 0, family: int = socket.AF_INET, resource: int = 0) -> None:
        payload = struct.pack(">BBH", family, 0, resource) + body
        self.sent += _HEADER.pack(len(payload) + _HEADER.size, kind, _REQUEST | flags, self._count, 0) + payload
        self._count += 1


def _raise_error(answer: bytes) -> None:
    """Raise the error in a struct nlmsgerr; zero is an acknowledgement."""
    _size, kind = struct.unpack_from("=IH", answer)
    if kind == _ERROR and (code := struct.unpack_from("=i", answer, _HEADER.size)[0]):
        raise OSError(-code, f"nf_tables: {os.strerror(-code)}")
