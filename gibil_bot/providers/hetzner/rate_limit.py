"""How many calls Hetzner still accepts from one token: without any left, a call waits until its deadline.

Every answer says how many calls are left (`RateLimit-Remaining` of `RateLimit-Limit` an hour, refilled evenly:
https://docs.hetzner.cloud/reference/cloud#rate-limiting). The project has one budget, so all that use one token share it here.
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
"""Calls that only burning may use: a machine costs money until it is gone."""


class RateLimit:
    """A bucket that the answers keep in step with Hetzner's. Used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._limit = 3600.0
        self._left = self._limit
        self._as_of = clock()
        self._in_flight = 0

    def left(self) -> float:
        """The calls that may be made now."""
        return min(self._limit, self._left + (self._clock() - self._as_of) * self._limit / 3600)

    def wait_s(self, reserve: int = RESERVE) -> float:
        """How long until one call may be made."""
        return max(0.0, (1 + reserve - self.left()) * 3600 / self._limit)

    async def take(self, reserve: int = RESERVE, until: float = math.inf) -> bool:
        """Wait until a call may be made, and count it; then call `answered` when it is over. False: not by `until`."""
        while (wait := self.wait_s(reserve)) > 0:
            if self._clock() + wait > until:
                return False
            if wait > 2:
                _log.warning("Hetzner's rate limit is used up: waiting %.0f s", wait)
            await asyncio.sleep(wait)
        self._set(self.left() - 1)
        self._in_flight += 1
        return True

    def answered(self, status: int | None, headers: Mapping[str, str]) -> None:
        """What the answer says counts more than what we thought. None: there was no answer."""
        self._in_flight -= 1
        limit, remaining = headers.get("RateLimit-Limit", ""), headers.get("RateLimit-Remaining", "")
        if limit.isdigit() and int(limit) > 0:
            self._limit = float(limit)
        if status == 429:
            self._set(0.0)  # whatever its headers say: asking again at once would be another 429
        elif remaining.isdigit():
            self._set(float(remaining) - self._in_flight)

    def _set(self, left: float) -> None:
        self._left, self._as_of = left, self._clock()


_budgets: weakref.WeakValueDictionary[bytes, RateLimit] = weakref.WeakValueDictionary()


def budget_of(token: str, endpoint: str) -> RateLimit:
    """The one budget of that token in this process."""
    key = hashlib.sha256(f"{endpoint}\n{token}".encode()).digest()
    budget = _budgets.get(key)
    if budget is None:
        budget = _budgets[key] = RateLimit()
    return budget
