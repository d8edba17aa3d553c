"""Egress proxy: a local machine's only way out, which connects to public and allowed addresses only.

A machine's network namespace has nothing but this proxy's listener. Connections that were redirected to it (route.py) are
served by redirected.py; all others have to be HTTP proxy requests. Each carries one request or one tunnel, so each request is
checked and no second one can be smuggled.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from gibil_bot.providers.local.egress_policy import endpoint
from gibil_bot.providers.local.error_response import http_error, send_last
from gibil_bot.providers.local.outbound import Outbound, Rejected
from gibil_bot.providers.local.packet_log import read_packet_log
from gibil_bot.providers.local.proxy_request import MAX_HEAD, BadRequest, ProxyRequest, close_after, parse_request
from gibil_bot.providers.local.redirected import RedirectedConnections
from gibil_bot.providers.local.relay import BLOCK, Streams, accept, close, pump, relay, reset
from gibil_bot.providers.local.resolver import Resolver
from gibil_bot.providers.local.route import original_destination

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
        self._redirected = RedirectedConnections(self._outbound, self._resolver, idle_s)

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
                tasks.create_task(accept(listener, self._connection))
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
            request = await self._read_request(reader)
            server = await self._outbound.connect(request.host, request.port)
        except Rejected as refused:
            self._outbound.record(refused)
            await send_last(client, http_error(refused))
            return
        try:
            if request.tunnel:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                await relay(client, server, self._idle_s)
            else:
                await self._exchange(request, client, server)
        finally:
            await close(server[1])

    async def _read_request(self, reader: asyncio.StreamReader) -> ProxyRequest:
        try:
            async with asyncio.timeout(self._head_s):
                return parse_request(await reader.readuntil(b"\r\n\r\n"))
        except TimeoutError:
            raise Rejected(408, f"no complete request within {self._head_s:g} s") from None
        except asyncio.LimitOverrunError:
            raise Rejected(431, f"the request's head is longer than {MAX_HEAD // 1024} KiB") from None
        except asyncio.IncompleteReadError:
            raise Rejected(400, "the request ended too early") from None
        except BadRequest as error:
            raise Rejected(400, str(error)) from None

    async def _exchange(self, request: ProxyRequest, client: Streams, server: Streams) -> None:
        """Forward one request with its body and one response. What the client sends after that isn't read."""
        loop = asyncio.get_running_loop()
        server[1].write(request.head)
        answered = False
        try:
            async with asyncio.timeout(self._idle_s) as idle, asyncio.TaskGroup() as tasks:

                def alive() -> None:
                    idle.reschedule(loop.time() + self._idle_s)

                # A server may answer before it has read the body (413): the response ends the exchange, not the request.
                sending = tasks.create_task(_send_body(request.length, client[0], server[1], alive))
                while True:
                    status, head = close_after(await server[0].readuntil(b"\r\n\r\n"))
                    client[1].write(head)
                    answered = True
                    if status >= 200:
                        break
                await pump(server[0], client[1], alive)
                sending.cancel()
        except* (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, BadRequest):
            if answered:
                reset(client[1])  # an incomplete response must not look complete
            else:
                refused = Rejected(502, f"{endpoint(request.host, request.port)} sent an invalid response")
                await send_last(client, http_error(refused))


async def _send_body(
    length: int | None, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alive: Callable[[], None]
) -> None:
    """Forward exactly the body: `length` bytes, or the chunks and their trailer (RFC 9112 section 7.1)."""
    if length is not None:
        await _send(length, reader, writer, alive)
        return
    while True:
        line = await reader.readuntil(b"\r\n")
        size_text = line[:-2].partition(b";")[0].rstrip(b" \t")
        if not size_text or len(size_text) > 16 or size_text.strip(b"0123456789abcdefABCDEF"):
            raise BadRequest("a malformed chunk")
        writer.write(b"%s\r\n" % size_text)
        size = int(size_text, 16)
        if size == 0:
            break
        await _send(size, reader, writer, alive)
        if await reader.readexactly(2) != b"\r\n":
            raise BadRequest("a malformed chunk")
        writer.write(b"\r\n")
    trailer_size = 0
    while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
        trailer_size += len(line)
        if trailer_size > MAX_HEAD:
            raise BadRequest("a trailer without end")
    writer.write(b"\r\n")  # the trailer itself is dropped, since nothing depends on it
    await writer.drain()


async def _send(size: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alive: Callable[[], None]) -> None:
    while size:
        data = await reader.read(min(size, BLOCK))
        if not data:
            raise BadRequest("the body ended too early")
        size -= len(data)
        alive()
        writer.write(data)
        await writer.drain()
