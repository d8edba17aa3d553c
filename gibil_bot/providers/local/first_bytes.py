"""The host that a client names in the first bytes of a connection: TLS's server name, or HTTP's Host field. No I/O.

The client is hostile, so the name is only a question to the policy, and never more than that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_BYTES = 16 * 1024
"""A ClientHello with post-quantum keys has two kilobytes."""

_HANDSHAKE, _CLIENT_HELLO, _SERVER_NAME, _HOST_NAME = 22, 1, 0, 0
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")
_METHOD = re.compile(rb"[A-Z]{1,16} ")
_MOST_RECORDS = 32
"""Over which a ClientHello may be split: two kilobytes in small pieces."""


@dataclass(frozen=True, slots=True)
class FirstBytes:
    """`protocol`: `tls`, `http` or `` for all others. `host`: lower case, `` if the client names none. `complete`: whether more
    bytes can't change the result."""

    protocol: str
    host: str
    complete: bool


class _Incomplete(Exception):
    pass


class _Malformed(Exception):
    pass


def read_first_bytes(data: bytes) -> FirstBytes:
    if not data:
        return FirstBytes("", "", complete=False)
    enough = len(data) >= MOST_BYTES
    if data[0] == _HANDSHAKE:
        try:
            return FirstBytes("tls", _checked(_server_name(_handshake(data))), complete=True)
        except _Incomplete:
            return FirstBytes("tls", "", complete=enough)
        except _Malformed:
            return FirstBytes("tls", "", complete=True)
    if _METHOD.match(data):
        head, end, _rest = data.partition(b"\r\n\r\n")
        fields = (line.partition(b":") for line in head.split(b"\r\n")[1:])
        found = [value.strip(b" \t") for name, _, value in fields if name.lower() == b"host"]
        # Several fields are an attempt to be read in two ways.
        host = found[0].decode("latin-1") if len(found) == 1 else ""
        return FirstBytes("http", _checked(re.sub(r":[0-9]{1,5}\Z", "", host)), complete=bool(end) or enough)
    return FirstBytes("", "", complete=len(data) > len("PROPPATCH "))


def _checked(name: str) -> str:
    name = name.lower().removesuffix(".")
    return name if _HOST.fullmatch(name) else ""


def _handshake(data: bytes) -> bytes:
    """Return the body of the ClientHello, which may be split over records (RFC 8446, section 5.1)."""
    message = b""
    for _record in range(_MOST_RECORDS):
        if len(data) < 5:
            raise _Incomplete
        kind, length = data[0], int.from_bytes(data[3:5])
        if kind != _HANDSHAKE or data[1] != 3 or not 0 < length <= 1 << 14:
            raise _Malformed
        message += data[5 : 5 + length]
        if not message:
            raise _Incomplete
        if message[0] != _CLIENT_HELLO:
            raise _Malformed
        if len(message) >= 4 and len(message) >= 4 + (size := int.from_bytes(message[1:4])):
            return message[4 : 4 + size]
        if len(data) < 5 + length:
            raise _Incomplete
        data = data[5 + length :]
    raise _Malformed


def _server_name(hello: bytes) -> str:
    """Return the name of the extension server_name (RFC 6066, section 3), "" if it is missing."""
    body = _Reader(hello)
    body.take(2 + 32)
    for size in (1, 2, 1):  # session, cipher suites, compression methods
        body.block(size)
    if not body.left:
        return ""
    extensions = _Reader(body.block(2))
    while extensions.left:
        kind = int.from_bytes(extensions.take(2))
        value = extensions.block(2)
        if kind == _SERVER_NAME:
            names = _Reader(_Reader(value).block(2))
            if names.take(1)[0] != _HOST_NAME:
                raise _Malformed
            name = names.block(2)
            if names.left:
                raise _Malformed
            return name.decode("latin-1")
    return ""


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def left(self) -> int:
        return len(self._data)

    def take(self, count: int) -> bytes:
        if len(self._data) < count:
            raise _Malformed
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    def block(self, size_bytes: int) -> bytes:
        """Return what follows a length of so few bytes."""
        return self.take(int.from_bytes(self.take(size_bytes)))
