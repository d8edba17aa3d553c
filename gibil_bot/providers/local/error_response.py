"""Last answers of the egress proxy on a connection that isn't forwarded, in the protocol that the program speaks."""

from __future__ import annotations

import asyncio
import contextlib

from gibil_bot.providers.local.outbound import Blocked, Rejected
from gibil_bot.providers.local.relay import BLOCK, Streams, reset

TLS_ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""A record with the fatal alert access_denied (RFC 8446, section 6): programs print its name."""

_REASONS = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 431: "Too Large", 502: "Bad Gateway", 504: "Timeout"}


def http_error(refused: Rejected) -> bytes:
    body = f"gibil: {refused.message}\n".encode()
    # Of an answer to CONNECT, programs show only the status line (pip: "Tunnel connection failed: 403 …").
    reason = refused.message if isinstance(refused, Blocked) else _REASONS[refused.status]
    head = (
        f"HTTP/1.1 {refused.status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


async def end_blocked(client: Streams, blocked: Blocked, protocol: str) -> None:
    """End a blocked connection. `protocol`: see first_bytes.FirstBytes."""
    if protocol == "http":
        await send_last(client, http_error(blocked))
    elif protocol == "tls":
        await send_last(client, TLS_ACCESS_DENIED)
    else:
        reset(client[1])


async def send_last(client: Streams, answer: bytes) -> None:
    """Send an answer and end the connection in such a way that the program receives all of it."""
    reader, writer = client
    writer.write(answer)
    with contextlib.suppress(OSError):
        writer.write_eof()
        # Closing with unread bytes would reset the connection and take the answer with it.
        async with asyncio.timeout(1):
            unread = 1024 * 1024
            while unread > 0 and (data := await reader.read(BLOCK)):
                unread -= len(data)
