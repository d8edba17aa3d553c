"""Egress proxy: a local machine's only way out, which connects to public and allowed addresses only.

A machine's network namespace has nothing but this proxy's listener. Connections that were redirected to it (route.py) are
served by redirected.py; all others have to be HTTP proxy requests. Each carries one request or one tunnel, so each request is
checked and no second one can be smuggled.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from gibil_bot.providers.local.egress_policy import AllowList, parse_rules
from gibil_bot.providers.local.error_response import http_error, send_last
from gibil_bot.providers.local.http_exchange import exchange, read_request
from gibil_bot.providers.local.listed import ListedConnections
from gibil_bot.providers.local.outbound import Outbound, Rejected
from gibil_bot.providers.local.packet_log import read_packet_log
from gibil_bot.providers.local.proxy_request import parse_request
from gibil_bot.providers.local.redirected import RedirectedConnections
from gibil_bot.providers.local.relay import Connections, Streams, accept, closing, relay
from gibil_bot.providers.local.resolver import Resolver
from gibil_bot.providers.local.route import original_destination

_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"

Destination = Callable[[socket.socket], tuple[str, int] | None]


class EgressProxy:
    """The proxy of one machine, for programs that use it and for redirected connections; `serve` closes `outbound` at its end.

    Time limits: `head_s` for receiving a request's head, `idle_s` for silence in both directions. `destination` returns where
    an accepted connection was redirected from.
    """

    def __init__(
        self,
        outbound: Outbound,
        *,
        head_s: float = 30.0,
        idle_s: float = 900.0,
        destination: Destination = original_destination,
    ) -> None:
        self._outbound = outbound
        self._head_s, self._idle_s = head_s, idle_s
        self._destination = destination
        self._resolver = Resolver(self._outbound)
        self._listed = ListedConnections(self._outbound, idle_s)
        self._redirected = RedirectedConnections(self._outbound, self._resolver, self._listed, idle_s)
        self._connections = Connections()

    async def restrict(self, allow: tuple[str, ...] | None) -> None:
        """From now on, connect to endpoints of this list only, as far as they are allowed at all; None: to all of these.

        Returns when the connections that were open have ended, if there is a list; the same list again ends none. `allow`: see
        egress_policy.parse_rules. Raises ConfigurationError for an invalid entry.
        """
        only = None if allow is None else AllowList(parse_rules(allow))
        if only == self._outbound.only:
            return
        self._outbound.only = only
        self._resolver.forget()
        if allow is not None:
            await self._connections.end()

    async def serve(
        self, listener: socket.socket, questions: socket.socket | None = None, dropped: socket.socket | None = None
    ) -> None:
        """Serve until cancelled; then the sockets and every connection are closed. `questions`, `dropped`: see route.set_up."""
        try:
            async with asyncio.TaskGroup() as tasks:
                if questions is not None:
                    tasks.create_task(self._resolver.serve(questions))
                if dropped is not None:
                    tasks.create_task(read_packet_log(dropped, self._outbound.refusals.add))
                tasks.create_task(accept(listener, self._connection, self._connections))
        finally:
            for each in (listener, questions, dropped):
                if each is not None:
                    each.close()
            self._outbound.close()

    async def _connection(self, client: Streams) -> None:
        reader, writer = client
        if (destination := self._destination(writer.get_extra_info("socket"))) is not None:
            await self._redirected.serve(client, *destination)
            return
        try:
            request = await read_request(reader, self._head_s, parse_request)
            if request.tunnel and self._listed.has_endpoint(request.host, request.port):
                writer.write(_ESTABLISHED)
                await self._listed.serve(client, request.host, request.host, request.port)
                return
            server = await self._outbound.connect(request.host, request.port)
        except Rejected as refused:
            self._outbound.record(refused)
            await send_last(client, http_error(refused))
            return
        async with closing(server):
            if request.tunnel:
                writer.write(_ESTABLISHED)
                await relay(client, server, self._idle_s)
            else:
                await exchange(request, client, server, self._idle_s)
