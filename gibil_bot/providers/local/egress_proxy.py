"""Egress proxy: an HTTP proxy that is a local machine's only way out, and connects to public and allowed addresses only.

A machine's network namespace has nothing but this proxy's listener. The proxy resolves a name itself and connects to the
address that it has checked, so a name whose answer changes in between (DNS rebinding) gains nothing. Every connection carries
one request or one tunnel, so each request is checked and no second one can be smuggled.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gibil_bot.model import Refusal, Refusals
from gibil_bot.providers.local.egress_policy import (
    Address,
    endpoint,
    is_itself,
    is_own_name,
    is_public,
    parse_address,
    parse_rules,
)
from gibil_bot.providers.local.host_network import HostNetwork
from gibil_bot.providers.local.proxy_request import MAX_HEAD, BadRequest, ProxyRequest, close_after, parse_request
from gibil_bot.providers.local.relay import BLOCK, Streams, accept, close, pump, relay, reset, streams

SockAddress = tuple[Any, ...]
Resolver = Callable[[str, int], Awaitable[list[SockAddress]]]
MOST_REFUSALS = 50
"""Endpoints that are remembered per machine; the oldest are forgotten first."""
_RESOLVER_THREADS = 4
_REASONS = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 431: "Too Large", 502: "Bad Gateway", 504: "Timeout"}


class _Refused(Exception):
    """The request is answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class _Blocked(_Refused):
    """The destination isn't allowed, which is reported to the user of the machine."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(403, message)
        self.refusal = refusal


class RefusalLog:
    """The endpoints that one machine's egress proxy blocked, each once, the newest last.

    Programs often show nothing of a proxy's answer, so blocked endpoints are reported after their output.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, int], tuple[float, Refusal]] = OrderedDict()
        self._forgotten_until = float("-inf")

    def add(self, refusal: Refusal) -> None:
        endpoint = refusal.host, refusal.port
        self._seen[endpoint] = time.monotonic(), refusal
        self._seen.move_to_end(endpoint)
        if len(self._seen) > MOST_REFUSALS:
            _endpoint, (self._forgotten_until, _refusal) = self._seen.popitem(last=False)

    def since(self, moment: float) -> Refusals:
        """Return what was blocked since that moment of time.monotonic(), which is the same for all processes of a host."""
        found = tuple(refusal for at, refusal in self._seen.values() if at >= moment)
        return Refusals(refused=found, more=self._forgotten_until >= moment)


class EgressProxy:
    """The proxy of one machine. `allow`: see egress_policy.parse_rules. Raises ConfigurationError for an invalid entry.

    `own_name`: the machine's name. `refusals` records every endpoint that was blocked. Time limits: `head_s` for receiving a
    request's head, `connect_s` for resolving and connecting, `idle_s` for silence in both directions. `resolve` returns the
    socket addresses of a name; tests pass one that changes its answers.
    """

    def __init__(
        self,
        allow: tuple[str, ...],
        *,
        own_name: str = "",
        refusals: RefusalLog | None = None,
        host_network: HostNetwork | None = None,
        resolve: Resolver | None = None,
        head_s: float = 30.0,
        connect_s: float = 20.0,
        idle_s: float = 900.0,
    ) -> None:
        self._rules = parse_rules(allow)
        self._own_name = own_name
        self._refusals = refusals if refusals is not None else RefusalLog()
        self._host_network = host_network or HostNetwork()
        self._shares_host_network = host_network is not None
        self._resolve = resolve or self._getaddrinfo
        self._head_s, self._connect_s, self._idle_s = head_s, connect_s, idle_s
        self._resolver_threads: ThreadPoolExecutor | None = None

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled; then the listener and every connection are closed."""
        try:
            await accept(listener, self._connection)
        finally:
            if not self._shares_host_network:
                self._host_network.close()
            if self._resolver_threads is not None:
                self._resolver_threads.shutdown(wait=False, cancel_futures=True)

    async def _connection(self, client: Streams) -> None:
        reader, writer = client
        try:
            request = await self._read_request(reader)
            server = await self._connect(request.host, request.port)
        except _Refused as refused:
            if isinstance(refused, _Blocked):
                self._refusals.add(refused.refusal)
            await _refuse(client, refused)
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
            raise _Refused(408, f"no complete request within {self._head_s:g} s") from None
        except asyncio.LimitOverrunError:
            raise _Refused(431, f"the request's head is longer than {MAX_HEAD // 1024} KiB") from None
        except asyncio.IncompleteReadError:
            raise _Refused(400, "the request ended too early") from None
        except BadRequest as error:
            raise _Refused(400, str(error)) from None

    async def _connect(self, host: str, port: int) -> Streams:
        """Connect to an allowed address of `host`."""
        try:
            async with asyncio.timeout(self._connect_s):
                addresses = await self._allowed(host, port)
                reason = ""
                for address in addresses:
                    try:
                        return await self._open(address, len(addresses))
                    except OSError as error:  # includes TimeoutError
                        reason = os.strerror(error.errno) if error.errno else "no answer"
        except TimeoutError:
            raise _Refused(504, f"{endpoint(host, port)} didn't answer within {self._connect_s:g} s") from None
        raise _Refused(502, f"cannot connect to {endpoint(host, port)}: {reason}")

    async def _allowed(self, host: str, port: int) -> list[SockAddress]:
        """Return the allowed addresses of `host`, at least one. Raises _Blocked if none is allowed."""
        own = is_own_name(host, self._own_name)
        try:
            candidates = await self._resolve(host, port)
        except (OSError, UnicodeError):
            if own and not any(rule.names(host, port) for rule in self._rules):
                raise _itself(host, port) from None
            raise _Refused(502, f"cannot resolve {host}") from None
        found: list[SockAddress] = []
        why = ""
        itself = own
        for candidate in candidates:
            address = parse_address(candidate[0])
            if any(rule.matches(host, address, port) for rule in self._rules):
                found.append(candidate)
            elif not own:
                reason = await self._why_not(address)
                if not reason:
                    found.append(candidate)
                itself |= is_itself(address)
                why = why or reason
        if found:
            return found
        if itself:
            raise _itself(host, port)
        raise _Blocked(
            Refusal(host=host, port=port),
            f"{endpoint(host, port)} {why or 'has no address'}, so machines may not reach it; "
            f"the operator can allow it with GIBIL_EGRESS_ALLOW={endpoint(host, port)}",
        )

    async def _why_not(self, address: Address) -> str:
        """Return why an address that no rule allows is blocked; "" if it isn't."""
        if not is_public(address):
            return "is not a public address"
        try:
            relation = (await self._host_network.links()).relation_to(address)
        except OSError as error:
            return f"cannot be checked, because the host's networks can't be read ({error.strerror})"
        if not relation and _is_this_host(address):
            relation = "is an address of the host itself"
        return relation

    async def _open(self, address: SockAddress, candidates: int) -> Streams:
        """Connect to this socket address.

        With several candidates each gets half of the time, so that the next is tried as well.
        """
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            share = self._connect_s / 2 if candidates > 1 else self._connect_s
            async with asyncio.timeout(share):
                await asyncio.get_running_loop().sock_connect(sock, address)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return await streams(sock)
        except BaseException:
            sock.close()
            raise

    async def _getaddrinfo(self, host: str, port: int) -> list[SockAddress]:
        """Resolve in separate threads, so that names that never resolve don't use up the threads of other tasks."""
        if self._resolver_threads is None:
            self._resolver_threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="gibil-resolve")
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(
            self._resolver_threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [info[4] for info in infos]

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
                await _refuse(client, _Refused(502, f"{endpoint(request.host, request.port)} sent an invalid response"))


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


async def _refuse(client: Streams, refused: _Refused) -> None:
    body = f"gibil: {refused.message}\n".encode()
    # Of an answer to CONNECT, programs show only the status line (pip: "Tunnel connection failed: 403 …").
    reason = refused.message if isinstance(refused, _Blocked) else _REASONS[refused.status]
    head = (
        f"HTTP/1.1 {refused.status} {reason}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = client
    writer.write(head.encode() + body)
    with contextlib.suppress(OSError):
        writer.write_eof()
        # Closing with unread bytes would reset the connection and take the answer with it.
        async with asyncio.timeout(1):
            unread = 1024 * 1024
            while unread > 0 and (data := await reader.read(BLOCK)):
                unread -= len(data)


def _itself(host: str, port: int) -> _Blocked:
    return _Blocked(
        Refusal(host=host, port=port, itself=True),
        f"{endpoint(host, port)} is this machine itself: connect to it without the proxy, as localhost or with {host} in "
        "NO_PROXY (some programs ignore networks in it)",
    )


def _is_this_host(address: Address) -> bool:
    """Return whether it is an address of this host: a firewall may protect it from others, but not from this host."""
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))  # a datagram socket only looks up the route; nothing is sent
        except OSError:
            return False
        return parse_address(probe.getsockname()[0]) == address
