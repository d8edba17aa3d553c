"""GitHub's rate limits: how long a response asks us to wait, and the spacing of writes that stays below the limits.

Pure. https://docs.github.com/en/rest/using-the-rest-api/rate-limits-for-the-rest-api#exceeding-the-rate-limit
"""

from __future__ import annotations

from collections.abc import Mapping
from email.utils import parsedate_to_datetime

LONGEST_WAIT_S = 3600.0
FIRST_BLIND_WAIT_S = 60.0


def wait_s(status: int, headers: Mapping[str, str], message: str, *, now_s: float, strikes: int) -> float | None:
    """Return how many seconds to wait before the next request; None if this response isn't about a limit.

    `now_s` is our clock in seconds since 1970, used only if the response has no Date. `strikes` counts consecutive limits
    without a time: wait a minute for the first, then twice as long each, as GitHub documents.
    """
    if status not in (403, 429):
        return None
    retry_after = _number(headers.get("retry-after"))
    if retry_after is not None:
        return _bounded(retry_after)
    reset = _number(headers.get("x-ratelimit-reset"))
    if headers.get("x-ratelimit-remaining") == "0" and reset is not None:
        # Compare with GitHub's own clock, so that ours may be wrong. Add a second, because the times are whole seconds.
        return _bounded(reset - server_time_s(headers, now_s) + 1)
    if status == 429 or "rate limit" in message.lower() or "abuse" in message.lower():
        return _bounded(FIRST_BLIND_WAIT_S * 2 ** min(strikes, 10))
    return None


def server_time_s(headers: Mapping[str, str], default_s: float) -> float:
    """Return GitHub's clock at the time of the response, in seconds since 1970."""
    try:
        return parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError, TypeError):
        return default_s


def _number(text: str | None) -> float | None:
    """Parse whole seconds; None for anything else, such as a date."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 16 else None


def _bounded(seconds: float) -> float:
    return min(max(seconds, 1.0), LONGEST_WAIT_S)


class Spacing:
    """Limits writes to `per_s` a second on average; after a quiet time `burst` writes may be sent at once.

    GitHub allows 900 points a minute, five for a write, and 80 content-generating requests a minute. A day's work fits into the
    burst; longer activity is held to the rate, and a limit that is reached anyway is waited out. The first write is never
    delayed.
    """

    def __init__(self, *, burst: int, per_s: float) -> None:
        self._quiet_s = (burst - 1) / per_s
        self._step_s = 1.0 / per_s
        self.bots = 1
        """How many bots share the limits. Each one takes its part of the rate and of the burst."""
        self._full_at: dict[int, float] = {}

    def delay_s(self, key: int, now_s: float, leave: int = 0) -> float:
        """Return how long a write would wait now if it left that many writes of the burst to others. Reserves nothing."""
        return max(0.0, self._full_at.get(key, now_s) - (self._quiet_s - leave * self._step_s) - now_s)

    def take(self, key: int, now_s: float) -> None:
        """Reserve the next slot. https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm"""
        self._full_at[key] = max(self._full_at.get(key, now_s), now_s) + self._step_s * self.bots
