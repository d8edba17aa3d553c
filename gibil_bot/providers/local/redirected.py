"""Connections of a machine that the kernel redirected to the egress proxy (route.py).

What a connection may reach is decided by its original destination. A placeholder (resolver.py) means a name, which is resolved
and checked here. Every other address is checked itself, and connected to if it is allowed, before the client has sent a byte:
so protocols in which the server speaks first work, and what the client writes doesn't matter.

Only if the address is blocked, the first bytes are read, for a limited time: TLS and HTTP clients name a host in them. If the
operator allows this name, the connection goes to the address that the name has here, never to the one that the client chose.
"""

from __future__ import annotations

import asyncio
import contextlib
from ipaddress import IPv4Address

from gibil_bot.model import Refusal
from gibil_bot.providers.local.error_response import end_blocked
from gibil_bot.providers.local.first_bytes import FirstBytes
from gibil_bot.providers.local.listed import ListedConnections, receive_first_bytes
from gibil_bot.providers.local.outbound import Blocked, Outbound, Rejected
from gibil_bot.providers.local.relay import Streams, closing, relay, reset
from gibil_bot.providers.local.resolver import Resolver
from gibil_bot.providers.local.route import DNS_PORT, PLACEHOLDERS

FIRST_BYTES_S = 1.0


class RedirectedConnections:
    """`listed` serves them during an agent task. `idle_s`: see EgressProxy."""

    def __init__(self, outbound: Outbound, resolver: Resolver, listed: ListedConnections, idle_s: float) -> None:
        self._outbound, self._resolver, self._listed, self._idle_s = outbound, resolver, listed, idle_s

    async def serve(self, client: Streams, address: str, port: int) -> None:
        """Serve a connection that was meant for this endpoint."""
        if port == DNS_PORT:
            await self._resolver.serve_stream(client)
            return
        is_placeholder = IPv4Address(address) in PLACEHOLDERS
        host = self._resolver.name_of(address) or "" if is_placeholder else address
        if self._listed.decides(host, port):
            await self._listed.serve(client, "" if host == address else host, address, port)
            return
        read = b""
        try:
            try:
                server = await self._connect(address, port)
            except Blocked as blocked:
                read, first = await receive_first_bytes(client, FIRST_BYTES_S)
                if not first.host or not self._outbound.allows_name(first.host, port):
                    await self._explain(blocked, address, first, client)
                    return
                server = await self._outbound.connect(first.host, port)
        except Rejected:
            reset(client[1])  # a program sees the connection end, as it would if a firewall rejected it
            return
        async with closing(server):
            server[1].write(read)
            await relay(client, server, self._idle_s)

    async def _connect(self, address: str, port: int) -> Streams:
        if IPv4Address(address) in PLACEHOLDERS:
            name = self._resolver.name_of(address)
            if name is None:
                raise Rejected(502, f"{address} belongs to no name")
            return await self._outbound.connect(name, port)
        return await self._outbound.connect(address, port, self._resolver.siblings(address))

    async def _explain(self, blocked: Blocked, address: str, first: FirstBytes, client: Streams) -> None:
        """Report a blocked connection, and end it in its protocol."""
        if blocked.refusal.host == address and await self._belongs_to(address, first.host):
            blocked = Blocked(Refusal(host=first.host, port=blocked.refusal.port), blocked.message)
        self._outbound.record(blocked)
        await end_blocked(client, blocked, first.protocol)

    async def _belongs_to(self, address: str, name: str) -> bool:
        """Return whether the name has this address, so that a report may name it: clients can write any name."""
        if not name:
            return False
        with contextlib.suppress(OSError, UnicodeError):
            async with asyncio.timeout(FIRST_BYTES_S):
                return address in map(str, await self._outbound.resolve(name))
        return False
