"""Retry policies: how many attempts, how long to wait between them, and which failures are retried."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Exponential back-off with jitter.

    The wait after the nth failure in a row is `first_wait_s * factor ** (n - 1)`, at most `longest_wait_s`, multiplied by a
    random number from the range `jitter`, so that callers which failed together don't come back together.
    """

    attempts: int | None
    """Including the first one. None: unlimited; set `within_s`, or let the caller stop."""
    first_wait_s: float
    factor: float = 2.0
    """1: the wait never grows."""
    longest_wait_s: float = 3600.0
    jitter: tuple[float, float] = (0.5, 1.5)
    within_s: float | None = None
    """No attempt starts later than this after the first one started."""

    def wait_s(self, failures: int, *, elapsed_s: float = 0.0, at_least_s: float = 0.0) -> float | None:
        """Return the seconds to wait before the next attempt, or None if there is none.

        `failures` counts attempts that failed (1 after the first), `elapsed_s` is the time since the first attempt started, and
        `at_least_s` is the other side's minimum (a Retry-After header).
        """
        if self.attempts is not None and failures >= self.attempts:
            return None
        # The exponent is bounded because an unlimited policy would overflow a float after a thousand failures.
        wait_s = min(self.longest_wait_s, self.first_wait_s * self.factor ** min(failures - 1, 64))
        wait_s = max(at_least_s, wait_s * random.uniform(*self.jitter))
        if self.within_s is not None and elapsed_s + wait_s > self.within_s:
            return None
        return wait_s

    async def call(
        self,
        action: Callable[[], Awaitable[T]],
        *,
        retry_after_s: Callable[[Exception], float | None],
        before_retry: Callable[[Exception, int], object] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> T:
        """Await `action()` until it succeeds, and return its result. Raises its last exception.

        `retry_after_s` decides about each exception: None raises it, a number retries after at least that many seconds.
        `before_retry` gets the exception and the number of failures so far, for a log line. Cancellation is never retried.
        """
        started_s = time.monotonic()
        failures = 0
        while True:
            try:
                return await action()
            except Exception as error:
                failures += 1
                at_least_s = retry_after_s(error)
                if at_least_s is None:
                    raise
                wait_s = self.wait_s(failures, elapsed_s=time.monotonic() - started_s, at_least_s=at_least_s)
                if wait_s is None:
                    raise
                if before_retry is not None:
                    before_retry(error, failures)
            await sleep(wait_s)
