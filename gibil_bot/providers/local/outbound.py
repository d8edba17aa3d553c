"""Connections of one machine to the outside: which of them are allowed, and the connection itself.

A name is resolved here, and the connection goes to the address that was checked, so a name whose answer changes in between (DNS
rebinding) gains nothing.
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
from ipaddress import ip_address
from typing import Any

from gibil_bot.model import Refusal, Refusals
from gibil_bot.providers.local.egress_policy import (
    Address,
    AllowList,
    endpoint,
    is_itself,
    is_own_name,
    is_public,
    parse_address,
    parse_rules,
)
from gibil_bot.providers.local.host_network import HostNetwork
from gibil_bot.providers.local.relay import Streams, streams

SockAddress = tuple[Any, ...]
Resolve = Callable[[str, int], Awaitable[list[SockAddress]]]
MOST_REFUSALS = 50
"""Endpoints that are remembered per machine; the oldest are forgotten first."""
_RESOLVER_THREADS = 4


class Rejected(Exception):
    """The request is answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Blocked(Rejected):
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


class Outbound:
    """The way out of one machine. `allow`: see egress_policy.parse_rules. Raises ConfigurationError for an invalid entry.

    `own_name`: the machine's name. `refusals` records every endpoint that was blocked. `connect_s`: time for resolving and
    connecting. `resolve` returns the socket addresses of a name; tests pass one that changes its answers.
    """

    def __init__(
        self,
        allow: tuple[str, ...],
        *,
        own_name: str = "",
        refusals: RefusalLog | None = None,
        host_network: HostNetwork | None = None,
        resolve: Resolve | None = None,
        connect_s: float = 20.0,
    ) -> None:
        self._rules = parse_rules(allow)
        self.own_name = own_name
        self.refusals = refusals if refusals is not None else RefusalLog()
        self._host_network = host_network or HostNetwork()
        self._shares_host_network = host_network is not None
        self._resolve = resolve or self._getaddrinfo
        self._connect_s = connect_s
        self.only: AllowList | None = None
        """What may be reached during an agent task, and nothing else."""
        self._resolver_threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        if not self._shares_host_network:
            self._host_network.close()
        if self._resolver_threads is not None:
            self._resolver_threads.shutdown(wait=False, cancel_futures=True)

    def record(self, rejected: Rejected) -> None:
        if isinstance(rejected, Blocked):
            self.refusals.add(rejected.refusal)

    def allows_name(self, name: str, port: int) -> bool:
        """Return whether the operator allows the endpoint by its name, whatever it resolves to."""
        return any(rule.names(name, port) for rule in self._rules)

    def may_forward(self, host: str, port: int) -> bool:
        """Return whether a loopback endpoint of the host may be reached now, which is allowed otherwise."""
        address = parse_address(host)
        if self.only is None or self.only.has_address(address, port):
            return True
        if is_itself(address) and self.only.has_endpoint("localhost", port):
            return True
        self.record(self.unlisted(host, port))
        return False

    def unlisted(self, host: str, port: int) -> Blocked:
        """Return the error for an endpoint that isn't in the allow-list of the agent task. `port` 0: none is known."""
        return Blocked(
            Refusal(host=host, port=port, unlisted=True),
            f"{endpoint(host, port) if port else host} isn't in the allow-list of this agent task; add the host to `allow:` of "
            "the task, or let the operator add it to GIBIL_EGRESS_ALLOW",
        )

    def has_rule_for(self, name: str) -> bool:
        """Return whether the operator allows a port of this name."""
        return any(rule.names(name, port) for rule in self._rules for port in (rule.port or 0,))

    async def is_allowed_address(self, address: Address) -> bool:
        """Return whether the machine may connect to every port of this address, whatever its name."""
        if any(rule.port is None and rule.network is not None and rule.matches("", address, 0) for rule in self._rules):
            return True
        return not await self._why_not(address)

    async def resolve(self, host: str) -> list[Address]:
        """Return all addresses of a name, allowed or not. Raises OSError, UnicodeError."""
        return [parse_address(found[0]) for found in await self._resolve(host, 0)]

    async def connect(self, host: str, port: int, others: tuple[str, ...] = ()) -> Streams:
        """Connect to an allowed address of `host`, or if none answers, of the others.

        Raises Rejected, and Blocked if no address of `host` is allowed.
        """
        try:
            async with asyncio.timeout(self._connect_s):
                addresses = await self._allowed(host, port)
                for other in others:
                    with contextlib.suppress(Rejected):
                        addresses += await self._allowed(other, port)
                reason = ""
                for address in addresses:
                    try:
                        return await self._open(address, len(addresses))
                    except OSError as error:  # includes TimeoutError
                        reason = os.strerror(error.errno) if error.errno else "no answer"
        except TimeoutError:
            raise Rejected(504, f"{endpoint(host, port)} didn't answer within {self._connect_s:g} s") from None
        raise Rejected(502, f"cannot connect to {endpoint(host, port)}: {reason}")

    async def _allowed(self, host: str, port: int) -> list[SockAddress]:
        """Return the allowed addresses of `host`, at least one. Raises Blocked if none is allowed."""
        own = is_own_name(host, self.own_name)
        # Before it is resolved: the question alone would carry the name's labels to any name server.
        if self.only is not None and not own and not self._is_listed(host, port):
            raise self.unlisted(host, port)
        try:
            candidates = await self._resolve(host, port)
        except (OSError, UnicodeError):
            if own and not any(rule.names(host, port) for rule in self._rules):
                raise _itself(host, port) from None
            raise Rejected(502, f"cannot resolve {host}") from None
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
        raise Blocked(
            Refusal(host=host, port=port),
            f"{endpoint(host, port)} {why or 'has no address'}, so machines may not reach it; "
            f"the operator can allow it with GIBIL_EGRESS_ALLOW={endpoint(host, port)}",
        )

    def _is_listed(self, host: str, port: int) -> bool:
        assert self.only is not None
        with contextlib.suppress(ValueError):
            return self.only.has_address(parse_address(host), port)
        return self.only.has_endpoint(host, port)

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
        with contextlib.suppress(ValueError):
            return [(str(ip_address(host)), port)]
        if self._resolver_threads is None:
            self._resolver_threads = ThreadPoolExecutor(_RESOLVER_THREADS, thread_name_prefix="gibil-resolve")
        loop = asyncio.get_running_loop()
        infos = await loop.run_in_executor(
            self._resolver_threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return [info[4] for info in infos]


def _itself(host: str, port: int) -> Blocked:
    return Blocked(
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
