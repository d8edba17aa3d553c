"""The DNS server of one machine: it answers with addresses that the machine may connect to.

Names are resolved as the host resolves them. The answer has the real addresses of a name if the machine may connect to all
ports of them. Otherwise it has a placeholder, which belongs to this name on this machine: connections to it are decided by name
and port (redirected.py), which also lets a report name the host. So a machine doesn't learn addresses of the host's networks,
and a name that has only IPv6 addresses is reachable although machines have no IPv6. Loopback addresses are the machine's own.

A question costs a machine little, so everything is bounded: questions per second, names that are resolved at a time and over
time (which also limits what can be smuggled out in names), cached answers, placeholders.

During an agent task only the names of its allow-list exist, and each has a placeholder.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from collections import OrderedDict
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

from gibil_bot.providers.local import dns_message as dns
from gibil_bot.providers.local.egress_policy import Address, is_own_name, plain
from gibil_bot.providers.local.outbound import Outbound
from gibil_bot.providers.local.relay import Streams, readable
from gibil_bot.providers.local.route import PLACEHOLDERS

TTL_S = 30
NEGATIVE_TTL_S = 5
MOST_NAMES = 2048
"""Cached answers, placeholders and addresses; the oldest are forgotten first."""
MOST_AT_A_TIME = 64
RESOLVE_S = 10.0
NAMES_PER_S, NAMES_BURST = 20.0, 500.0
"""Names that the host's resolver is asked for, not counting cached ones."""
_QUESTIONS_PER_S, _QUESTIONS_BURST = 1000.0, 2000.0
_STREAM_IDLE_S = 10.0
_NEVER_EXIST = ("invalid", "onion", "local")
"""RFC 6761, RFC 7686; `local` belongs to multicast, which machines don't have."""

_LOOPBACK: tuple[Address, ...] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))
_OWN_NAME = (IPv4Address("127.0.1.1"),)
"""As in /etc/hosts of a machine."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Answer:
    code: int
    addresses: tuple[Address, ...] = ()
    until: float = 0.0


class _Allowance:
    """A token bucket."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = burst, time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left, self._at = min(self._burst, self._left + (now - self._at) * self._per_s), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Resolver:
    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._cache: OrderedDict[str, _Answer] = OrderedDict()
        self._pending: dict[str, asyncio.Task[_Answer]] = {}
        self._names: OrderedDict[str, IPv4Address] = OrderedDict()
        """Placeholders by name."""
        self._placeholders: dict[IPv4Address, str] = {}
        self._next = 0
        self._siblings: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        self._lookups = _Allowance(NAMES_PER_S, NAMES_BURST)
        self._questions = _Allowance(_QUESTIONS_PER_S, _QUESTIONS_BURST)

    def forget(self) -> None:
        """Forget the answers, because what the machine may reach has changed. Placeholders keep their names."""
        self._cache.clear()
        self._siblings.clear()

    def name_of(self, placeholder: str) -> str | None:
        """Return the name that a placeholder belongs to."""
        return self._placeholders.get(IPv4Address(placeholder))

    def siblings(self, address: str) -> tuple[str, ...]:
        """Return the other addresses in the last answer with this one: the program can use them as well."""
        return tuple(other for other in self._siblings.get(address, ()) if other != address)

    async def serve(self, questions: socket.socket) -> None:
        """Answer datagrams until cancelled; then the socket is closed."""
        questions.setblocking(False)
        tasks: set[asyncio.Task[None]] = set()

        async def respond(message: bytes, client: Any) -> None:
            response = await self.answer(message)
            if response is not None:
                with contextlib.suppress(OSError):
                    questions.sendto(response, client)

        try:
            while True:
                try:
                    message, client = questions.recvfrom(dns.MOST_BYTES + 1)
                except BlockingIOError:
                    await readable(questions)
                    continue
                except OSError as error:
                    if error.errno in (errno.EBADF, errno.ENOTSOCK):
                        return  # the socket was closed
                    await asyncio.sleep(0.05)
                    continue
                if not self._questions.take():
                    await asyncio.sleep(0.05)  # the kernel drops what doesn't fit into the socket's buffer meanwhile
                    continue
                if len(tasks) < 2 * MOST_AT_A_TIME:
                    task = asyncio.create_task(respond(message, client))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                await asyncio.sleep(0)  # others run in between, however many questions wait
        finally:
            questions.close()
            unfinished: list[asyncio.Task[Any]] = [*tasks, *self._pending.values()]
            for each in unfinished:
                each.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def serve_stream(self, client: Streams) -> None:
        """Answer questions on a TCP connection (RFC 7766)."""
        reader, writer = client
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            while True:
                async with asyncio.timeout(_STREAM_IDLE_S):
                    length = int.from_bytes(await reader.readexactly(2))
                    message = await reader.readexactly(length)
                if not self._questions.take():
                    await asyncio.sleep(1)
                response = await self.answer(message)
                if response is None:
                    return
                async with asyncio.timeout(_STREAM_IDLE_S):
                    writer.write(len(response).to_bytes(2) + response)
                    await writer.drain()

    async def answer(self, message: bytes) -> bytes | None:
        """Return the response to a message; None if it isn't a question."""
        try:
            question = dns.parse_question(message)
        except dns.NotAQuestion:
            return None
        if question.problem:
            return dns.answer(question, question.problem)
        if question.kind == dns.PTR:
            return dns.answer(question, dns.NAME_ERROR)
        if question.kind not in (dns.A, dns.AAAA):
            return dns.answer(question, dns.NO_ERROR)  # a name without such records
        found = await self._find(question.name)
        return dns.answer(question, found.code, found.addresses, TTL_S)

    async def _find(self, name: str) -> _Answer:
        if not name or name.rpartition(".")[2] in _NEVER_EXIST:
            return _Answer(dns.NAME_ERROR)
        if is_own_name(name, self._outbound.own_name):
            return _Answer(dns.NO_ERROR, _OWN_NAME if name == self._outbound.own_name else _LOOPBACK)
        only = self._outbound.only
        if only is not None and not only.has_name(name):
            # Not resolved: what is asked for reaches the name servers of its domain.
            self._outbound.record(self._outbound.unlisted(name, 0))
            return _Answer(dns.NAME_ERROR)
        cached = self._cache.get(name)
        if cached is not None and time.monotonic() < cached.until:
            return cached
        pending = self._pending.get(name)
        if pending is None:
            if len(self._pending) >= MOST_AT_A_TIME or not self._lookups.take():
                return _Answer(dns.SERVER_FAILURE)
            pending = self._pending[name] = asyncio.create_task(self._look_up(name))
            pending.add_done_callback(lambda _task: self._pending.pop(name, None))
        return await asyncio.shield(pending)

    async def _look_up(self, name: str) -> _Answer:
        try:
            async with asyncio.timeout(RESOLVE_S):
                addresses = await self._outbound.resolve(name)
                found = _Answer(dns.NO_ERROR, await self._presentable(name, addresses), time.monotonic() + TTL_S)
        except socket.gaierror as error:
            missing = error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
            found = _Answer(dns.NAME_ERROR if missing else dns.SERVER_FAILURE, (), time.monotonic() + NEGATIVE_TTL_S)
        except UnicodeError:
            found = _Answer(dns.NAME_ERROR, (), time.monotonic() + NEGATIVE_TTL_S)
        except OSError:  # includes TimeoutError
            found = _Answer(dns.SERVER_FAILURE, (), time.monotonic() + NEGATIVE_TTL_S)
        _remember(self._cache, name, found)
        return found

    async def _presentable(self, name: str, addresses: list[Address]) -> tuple[Address, ...]:
        """Return what the machine may know of these addresses."""
        if self._outbound.only is not None:
            return (self._placeholder(name),) if addresses else ()  # so that each connection tells its name
        versions = [address for address in map(plain, addresses) if isinstance(address, IPv4Address)]
        others = [address for address in dict.fromkeys(versions) if not address.is_loopback]
        real = [address for address in others if await self._outbound.is_allowed_address(address)]
        if real:
            texts = tuple(map(str, real))
            for text in texts:
                _remember(self._siblings, text, texts)
            return tuple(real)
        own = tuple(address for address in dict.fromkeys(versions) if address.is_loopback)
        if own and not self._outbound.has_rule_for(name):
            return own
        return (self._placeholder(name),) if addresses else ()

    def _placeholder(self, name: str) -> IPv4Address:
        address = self._names.get(name)
        if address is not None:
            self._names.move_to_end(name)
            return address
        # Addresses are used again as late as possible, so that a program with an old answer doesn't reach another name.
        self._next = self._next % (PLACEHOLDERS.num_addresses - 1) + 1
        address = PLACEHOLDERS[self._next]
        self._names[name], self._placeholders[address] = address, name
        if len(self._names) > MOST_NAMES:
            _name, oldest = self._names.popitem(last=False)
            del self._placeholders[oldest]
        return address


def _remember(memory: OrderedDict[str, V], key: str, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > MOST_NAMES:
        memory.popitem(last=False)
