"""Connections of a machine during an agent task, which may reach the endpoints of its allow-list and nothing else.

Clients of the web announce the host that they want: TLS in its first message, HTTP in every request. The announced name has to
be in the list, and the connection goes to the addresses that this name has here, never to an address that the client chose.
Port 443 has to be TLS. A connection to port 80 carries one HTTP request, so that the next one can't name another host. At other
ports, which are in the list only if it names them, the server may speak first; then the name counts that the client looked up.

What is inside of TLS can't be seen: a server that has several sites may serve another one than the client announced.
"""

from __future__ import annotations

import asyncio
import contextlib

from gibil_bot.providers.local.egress_policy import parse_address
from gibil_bot.providers.local.error_response import end_blocked, http_error, send_last
from gibil_bot.providers.local.first_bytes import MOST_BYTES, FirstBytes, read_first_bytes
from gibil_bot.providers.local.http_exchange import exchange, read_request
from gibil_bot.providers.local.outbound import Blocked, Outbound, Rejected
from gibil_bot.providers.local.proxy_request import parse_direct_request
from gibil_bot.providers.local.relay import Replayed, Streams, closing, relay, reset

_FIRST_BYTES_S = 10.0
_SERVER_FIRST_S = 1.0
"""How long a client may be silent at a port where the server may speak first."""
_HEAD_S = 30.0
_HTTP, _HTTPS = 80, 443
_MOST_READS = 64


class ListedConnections:
    """`idle_s`: see EgressProxy."""

    def __init__(self, outbound: Outbound, idle_s: float) -> None:
        self._outbound, self._idle_s = outbound, idle_s

    def decides(self, host: str, port: int) -> bool:
        """Return whether such a connection needs a name of the allow-list: there is one, and it doesn't have the address."""
        only = self._outbound.only
        if only is None:
            return False
        with contextlib.suppress(ValueError):
            return not only.has_address(parse_address(host), port)
        return True

    def has_endpoint(self, name: str, port: int) -> bool:
        """Return whether there is an allow-list that has this endpoint by its name."""
        only = self._outbound.only
        return only is not None and only.has_endpoint(name, port)

    async def serve(self, client: Streams, name: str, address: str, port: int) -> None:
        """Serve a connection to this endpoint. `name`: what the client looked up, if that is known."""
        read, first = await receive_first_bytes(client, _FIRST_BYTES_S if port in (_HTTP, _HTTPS) else _SERVER_FIRST_S)
        wanted = {_HTTP: ("http",), _HTTPS: ("tls",)}.get(port, ("tls", "http", ""))
        target = first.host if first.protocol else name
        if first.protocol not in wanted or not target or not self.has_endpoint(target, port):
            await self._end(client, self._outbound.unlisted(target or name or address, port), first)
            return
        try:
            if port == _HTTP:
                await self._serve_request((Replayed(read, client[0]), client[1]), target)
                return
            server = await self._outbound.connect(target, port)
        except Blocked as blocked:
            await self._end(client, blocked, first)
            return
        except Rejected:
            reset(client[1])
            return
        async with closing(server):
            server[1].write(read)
            await relay(client, server, self._idle_s)

    async def _serve_request(self, client: Streams, host: str) -> None:
        """Forward one request to that host. Raises Blocked."""
        try:
            request = await read_request(client[0], _HEAD_S, parse_direct_request)
            if request.host != host:
                raise Rejected(400, "the request names two hosts")
            server = await self._outbound.connect(host, _HTTP)
        except Blocked:
            raise
        except Rejected as rejected:
            await send_last(client, http_error(rejected))
            return
        async with closing(server):
            await exchange(request, client, server, self._idle_s)

    async def _end(self, client: Streams, blocked: Blocked, first: FirstBytes) -> None:
        self._outbound.record(blocked)
        await end_blocked(client, blocked, first.protocol)


async def receive_first_bytes(client: Streams, within_s: float) -> tuple[bytes, FirstBytes]:
    """Read until the host is known, for a limited time and number of bytes."""
    read = b""
    first = read_first_bytes(read)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            for _attempt in range(_MOST_READS):
                data = await client[0].read(MOST_BYTES - len(read))
                read += data
                first = read_first_bytes(read)
                if not data or first.complete:
                    break
    return read, first
