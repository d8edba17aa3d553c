"""Parsing of requests to the egress proxy (RFC 9110, RFC 9112). No I/O.

The parser is strict: whatever two HTTP implementations could read differently (folded lines, a length and chunks together, bare
line feeds) is rejected, because the proxy would check one reading and the server could follow the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_HEAD = 64 * 1024

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HOST = re.compile(r"[a-z0-9_.-]{1,253}")
_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"host"))


class BadRequest(ValueError):
    """The proxy can't handle the request; the text says why."""


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """A parsed request. `length`: bytes of body after the head; None: chunked. A tunnel has neither head nor length."""

    host: str
    port: int
    tunnel: bool
    head: bytes = b""
    """The head for the server: origin form, our Host, `Connection: close`."""
    length: int | None = 0


def parse_request(head: bytes) -> ProxyRequest:
    """Parse a head, which ends with the empty line: `CONNECT host:port` or an absolute `http://` URL. Raises BadRequest."""
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    if any(sign in line for line in lines for sign in (b"\r", b"\n", b"\0")):
        raise BadRequest("bare control characters in the head")
    words = lines[0].split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise BadRequest("not an HTTP/1.1 proxy request")
    method, target = words[0], words[1].decode("latin-1")
    if method == b"CONNECT":
        host, port = _authority(target, None)
        return ProxyRequest(host, port, tunnel=True)
    if not target.lower().startswith("http://"):
        raise BadRequest("use the absolute URL http://host/path; for https use CONNECT")
    match = re.fullmatch(r"([^/?#]*)([^#]*)(#.*)?", target[len("http://") :])
    assert match  # every text without line ends fits
    authority, path = match[1], match[2]
    host, port = _authority(authority, 80)
    fields, length = _fields(lines[1:])
    origin = path if path.startswith("/") else "/" + path
    start = b"%s %s HTTP/1.1" % (method, origin.encode("latin-1"))
    return ProxyRequest(
        host,
        port,
        tunnel=False,
        head=b"\r\n".join((start, b"Host: " + authority.encode("latin-1"), *fields, b"Connection: close", b"", b"")),
        length=length,
    )


def parse_direct_request(head: bytes) -> ProxyRequest:
    """Parse the head of a request that a client sent to the server itself: origin form, and one Host. Raises BadRequest."""
    start, _, rest = head.partition(b"\r\n")
    words = start.split(b" ")
    hosts = [line for line in rest.split(b"\r\n") if line.partition(b":")[0].strip().lower() == b"host"]
    if len(words) != 3 or not words[1].startswith(b"/") or len(hosts) != 1:
        raise BadRequest("not a request for a path with one Host field")
    host = hosts[0].partition(b":")[2].strip(b" \t")
    if not re.fullmatch(rb"[A-Za-z0-9_.:\[\]-]+", host):
        raise BadRequest("the host or the port is malformed")
    return parse_request(b"%s http://%s%s %s\r\n%s" % (words[0], host, words[1], words[2], rest))


def close_after(head: bytes) -> tuple[int, bytes]:
    """Return the status of a server's response head, and the head changed to close the connection after this response.

    Raises BadRequest if the server's answer isn't HTTP.
    """
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    match = re.match(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |$)", lines[0])
    if not match:
        raise BadRequest("the server does not speak HTTP/1.1")
    status = int(match[1])
    fields = [line for line in lines if line.partition(b":")[0].strip().lower() not in (b"connection", b"keep-alive")]
    if status >= 200:
        fields.append(b"Connection: close")
    return status, b"\r\n".join((*fields, b"", b""))


def _authority(text: str, default_port: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit("//" + text)
        host, port = (parts.hostname or "").removesuffix("."), parts.port
    except ValueError:
        raise BadRequest("the host or the port is malformed") from None
    if port is None:
        port = default_port
    is_address = text.startswith("[") and re.fullmatch(r"[0-9a-f:.]+", host)
    if not port or "@" in text or not (is_address or _HOST.fullmatch(host)):
        raise BadRequest("the host or the port is malformed")
    return host, port


def _fields(lines: list[bytes]) -> tuple[list[bytes], int | None]:
    """Return the header fields to forward, and the length of the body."""
    dropped = set(_HOP_BY_HOP)
    parsed = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise BadRequest("a malformed header field")
        parsed.append((name.lower(), value.strip(b" \t"), line))
        if name.lower() == b"connection":
            dropped |= {word.strip(b" \t").lower() for word in value.split(b",")}
    lengths = {value for name, value, _ in parsed if name == b"content-length"}
    codings = [value.lower() for name, value, _ in parsed if name == b"transfer-encoding"]
    if len(lengths) > 1 or (lengths and codings) or codings not in ([], [b"chunked"]):
        raise BadRequest("a body whose length is ambiguous")
    length: int | None = 0
    if codings:
        length = None
    elif lengths:
        digits = lengths.pop()
        if not re.fullmatch(rb"[0-9]{1,18}", digits):
            raise BadRequest("a malformed Content-Length")
        length = int(digits)
    dropped -= {b"content-length", b"transfer-encoding"}  # `Connection: content-length` must not hide the framing
    return [line for name, _, line in parsed if name not in dropped and not name.startswith(b"proxy-")], length
