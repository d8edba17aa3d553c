"""The current time, and time that has passed."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return an aware datetime in UTC."""
    return datetime.now(UTC)


def passed_s() -> float:
    """Return seconds since some moment. Unlike those of time.monotonic(), they go on while the computer is suspended."""
    return time.clock_gettime(_CLOCK)


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # of Linux
