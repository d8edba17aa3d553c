"""When a machine expires: at its expiry, or when its time to live has passed, whichever comes first.

The expiry is a time of day, since people and other processes are given that. The time left is also measured by a clock that
cannot be set and goes on while the host sleeps (CLOCK_BOOTTIME, clock_gettime(2)): setting the time of day back doesn't keep a
machine longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _now() -> datetime:
    return datetime.now(UTC)


class Expiry:
    """Counts from when it is made. `now` and `boot_s` are the two clocks."""

    def __init__(
        self, expires_at: datetime, *, now: Callable[[], datetime] = _now, boot_s: Callable[[], float] = _boot_s
    ) -> None:
        self._now, self._boot_s = now, boot_s
        self._expires_at = expires_at
        self._deadline_s = boot_s() + (expires_at - now()).total_seconds()

    def left_s(self) -> float:
        """Seconds until then; 0 or less: it has expired."""
        return min((self._expires_at - self._now()).total_seconds(), self._deadline_s - self._boot_s())
