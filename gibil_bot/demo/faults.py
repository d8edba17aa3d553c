"""Faults between the bot and GitHub, armed for a number of matching requests."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    ERROR_BEFORE = "error_before"
    """An error response with `status` (502); the request has no effect."""
    ERROR_AFTER = "error_after"
    """An error response with `status` (502), although the request took effect."""
    UNAUTHORIZED = "unauthorized"
    """401 Bad credentials."""
    HANG = "hang"
    """No response for `seconds`, then the connection is dropped; without effect."""
    HANG_AFTER = "hang_after"
    """Like HANG, although the request took effect."""
    DROP_BEFORE = "drop_before"
    """The connection is dropped, without effect."""
    DROP_AFTER = "drop_after"
    """The connection is dropped, although the request took effect."""
    PRIMARY_LIMIT = "primary_limit"
    """403 with x-ratelimit-remaining: 0 and a reset in `seconds`."""
    SECONDARY_LIMIT = "secondary_limit"
    """403 with retry-after: `seconds`."""
    SECONDARY_LIMIT_BARE = "secondary_limit_bare"
    """403 with the message of a secondary limit and neither header: GitHub's page says to wait a minute then."""
    SLOW_BODY = "slow_body"
    """The correct response, spread over `seconds`."""


AFTER_EFFECT = frozenset({FaultKind.ERROR_AFTER, FaultKind.HANG_AFTER, FaultKind.DROP_AFTER})


@dataclass(slots=True)
class Fault:
    method: str
    """Upper case, or * for any."""
    path: re.Pattern[str]
    """A regular expression that is searched for in the path."""
    kind: FaultKind
    left: int
    status: int
    seconds: float


class Faults:
    """The armed faults, in order; each request gets at most one."""

    def __init__(self) -> None:
        self._armed: list[Fault] = []
        self.cleared = asyncio.Event()
        """Set by the next `clear`."""

    def arm(self, method: str, path: str, kind: str, *, times: int, status: int, seconds: float) -> None:
        self._armed.append(Fault(method.upper(), re.compile(path), FaultKind(kind), times, status, seconds))

    def take(self, method: str, path: str) -> Fault | None:
        for fault in self._armed:
            if fault.method in ("*", method) and fault.path.search(path):
                fault.left -= 1
                if fault.left <= 0:
                    self._armed.remove(fault)
                return fault
        return None

    @property
    def left(self) -> int:
        return sum(fault.left for fault in self._armed)

    def clear(self) -> None:
        """Disarm all faults and cut hanging requests."""
        self._armed.clear()
        self.cleared.set()
        self.cleared = asyncio.Event()
