"""What can go wrong on the way to GitHub and back, armed for the next so many matching requests."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from enum import StrEnum


class FaultKind(StrEnum):
    ERROR_BEFORE = "error_before"
    """`status` (502), and nothing happened."""
    ERROR_AFTER = "error_after"
    """`status` (502), although the request took effect."""
    UNAUTHORIZED = "unauthorized"
    """401 Bad credentials."""
    HANG = "hang"
    """No answer for `seconds`, then the connection is dropped; nothing happened."""
    HANG_AFTER = "hang_after"
    """The same, although the request took effect."""
    DROP_BEFORE = "drop_before"
    """The connection is cut, and nothing happened."""
    DROP_AFTER = "drop_after"
    """The connection is cut, although the request took effect."""
    PRIMARY_LIMIT = "primary_limit"
    """403 with x-ratelimit-remaining: 0 and a reset in `seconds`."""
    SECONDARY_LIMIT = "secondary_limit"
    """403 with retry-after: `seconds`."""
    SECONDARY_LIMIT_BARE = "secondary_limit_bare"
    """403 with the words of a secondary limit and neither header: GitHub's page says to wait a minute then."""
    SLOW_BODY = "slow_body"
    """The right answer, spread over `seconds`."""


AFTER_EFFECT = frozenset({FaultKind.ERROR_AFTER, FaultKind.HANG_AFTER, FaultKind.DROP_AFTER})


@dataclass(slots=True)
class Fault:
    method: str
    """Upper case, or * for any."""
    path: re.Pattern[str]
    """Found anywhere in the path."""
    kind: FaultKind
    left: int
    status: int
    seconds: float


class Faults:
    """The armed ones, in the order of arming; each request meets at most one."""

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

    def clear(self) -> None:
        """Nothing more goes wrong, and what hangs is cut."""
        self._armed.clear()
        self.cleared.set()
        self.cleared = asyncio.Event()
