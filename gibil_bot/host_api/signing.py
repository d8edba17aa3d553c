"""Signatures of requests between hosts, and of their answers, with a key that only the bots of one database have.

A request's token is bound to the host that is asked, to the request, and to a minute, and is accepted once. The answer is bound
to the token, because hosts may reach one another over plain HTTP, and the commits of a run are among the files.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

VALID_S = 60.0
"""How far the clocks of two hosts may differ."""
SEAL = "x-gibil-seal"
"""The header with the signature of an answer."""
MOST_PART_BYTES = 4 * 1024 * 1024
"""Of a file, in one answer."""
_TOKEN = re.compile(r"1\.([0-9]{1,12})\.([0-9a-f]{32})\.([0-9a-f]{64})", re.ASCII)


_LARGE_BYTES = 256 * 1024
T = TypeVar("T")


async def in_thread_if_large(size: int, job: Callable[[], T]) -> T:
    """Return the result of a job on that many bytes; if they would delay the event loop, of a thread."""
    return job() if size < _LARGE_BYTES else await asyncio.to_thread(job)


class TokenRejected(Exception):
    """A token isn't valid for a request. `is_ours`: another bot of the database created it."""

    def __init__(self, message: str, *, is_ours: bool) -> None:
        super().__init__(message)
        self.message, self.is_ours = message, is_ours


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRequest:
    """A part of a file of a run; see ports.HostFiles."""

    run_id: str
    name: str
    offset: int | None
    most_bytes: int


class Signer:
    """Signs requests to other hosts and checks those to this one."""

    def __init__(self, key: bytes, host_id: str, clock: Callable[[], float] = time.time) -> None:
        self._key, self._host_id, self._clock = key, host_id, clock
        self._used: OrderedDict[str, float] = OrderedDict()
        """Nonce of an accepted token → when its time is over. Only bots of the database can add one."""

    def token(self, host_id: str, request: FileRequest) -> str:
        """Return a token for one request to that host."""
        at, nonce = str(int(self._clock())), secrets.token_hex(16)
        return f"1.{at}.{nonce}.{self._signature(at, nonce, host_id, request)}"

    def accept(self, token: str, request: FileRequest) -> None:
        """Check the token of a request to this host, which is valid once. Raises TokenRejected."""
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise TokenRejected("the token is malformed", is_ours=False)
        at, nonce, signature = found.groups()
        if not hmac.compare_digest(signature, self._signature(at, nonce, self._host_id, request)):
            raise TokenRejected("the token isn't for this request, or is from another key", is_ours=False)
        now = self._clock()
        if abs(now - int(at)) > VALID_S:
            difference = f"{abs(now - int(at)):.0f} s {'old' if now > int(at) else 'ahead'}"
            raise TokenRejected(f"the token is {difference}: the clocks of both hosts have to agree", is_ours=True)
        while self._used and next(iter(self._used.values())) < now:
            self._used.popitem(last=False)
        if nonce in self._used:
            raise TokenRejected("the token was used before", is_ours=True)
        self._used[nonce] = now + 2 * VALID_S

    def seal(self, token: str, body: bytes) -> str:
        """Return the signature of the answer to the request with that token."""
        return hmac.digest(self._key, b"answer\0" + token.encode() + b"\0" + body, "sha256").hex()

    def is_sealed(self, token: str, body: bytes, seal: str) -> bool:
        """Return whether the host that was asked has sent this answer."""
        return hmac.compare_digest(seal.encode(), self.seal(token, body).encode())

    def _signature(self, at: str, nonce: str, host_id: str, request: FileRequest) -> str:
        signed = [at, nonce, host_id, request.run_id, request.name, request.offset, request.most_bytes]
        return hmac.digest(self._key, b"request\0" + msgspec.json.encode(signed), "sha256").hex()
