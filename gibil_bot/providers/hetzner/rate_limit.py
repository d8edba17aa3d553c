"""Hetzner's rate limit: the number of calls that a token has left. If there is none, a call waits until its deadline.

Every answer says how many calls are left (`RateLimit-Remaining` of `RateLimit-Limit` per hour, refilled evenly:
https://docs.hetzner.cloud/reference/cloud#rate-limiting). The limit applies to the project, so all clients with the same token
share one `RateLimit` in this process.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import time
import weakref
from collections.abc import Callable, Mapping

_log = logging.getLogger(__name__)

RESERVE = 5
"""Calls that are reserved for deletions, because a machine costs money until it is deleted."""


class RateLimit:
    """A token bucket that is corrected by every answer. Used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = 3600.0
        self._left = self._limit
        self._as_of = clock()
        self._in_flight = 0

    def left(self) -> float:
        """Return the number of calls that may be made now."""
        return min(self._limit, self._left + (self._clock() - self._as_of) * self._limit / 3600)

    def wait_s(self, reserve: int = RESERVE) -> float:
        """Return the seconds until one call may be made."""
        return max(0.0, (1 + reserve - self.left()) * 3600 / self._limit)

    async def acquire(self, reserve: int = RESERVE, until: float = math.inf) -> bool:
        """Wait until a call may be made, and count it. False if none may be made by `until`.

        After the call, the caller calls `answered`.
        """
        while (wait := self.wait_s(reserve)) > 0:
            if self._clock() + wait > until:
                return False
            if wait > 2:
                _log.warning("Hetzner's rate limit is exhausted; waiting %.0f s", wait)
            await asyncio.sleep(wait)
        self._set(self.left() - 1)
        self._in_flight += 1
        return True

    def answered(self, status: int | None, headers: Mapping[str, str]) -> None:
        """Correct the count by an answer. `status` is None if there was no answer."""
        self._in_flight -= 1
        limit, remaining = headers.get("RateLimit-Limit", ""), headers.get("RateLimit-Remaining", "")
        if limit.isdigit() and int(limit) > 0:
            self._limit = float(limit)
        if status == 429:
            self._set(0.0)  # whatever its headers say: another call at once would get another 429
        elif remaining.isdigit():
            self._set(float(remaining) - self._in_flight)

    def _set(self, left: float) -> None:
        self._left, self._as_of = left, self._clock()


_rate_limits: weakref.WeakValueDictionary[bytes, RateLimit] = weakref.WeakValueDictionary()


def rate_limit_of(token: str, endpoint: str) -> RateLimit:
    """Return the rate limit of that token, shared by all clients in this process."""
    key = hashlib.sha256(f"{endpoint}\n{token}".encode()).digest()
    rate_limit = _rate_limits.get(key)
    if rate_limit is None:
        rate_limit = _rate_limits[key] = RateLimit()
    return rate_limit
