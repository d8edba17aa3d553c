"""Tokens: what a machine shows instead of a key. One for each task, and dead when the task ends."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from gibil_bot.agent_task import Usage
from gibil_bot.agents.budget import TaskBudget
from gibil_bot.agents.proxy.protocols.base import Bounds, ModelProtocol
from gibil_bot.agents.proxy.upstream import Upstream
from gibil_bot.operator_secrets import Secret

PREFIX = "gibil-"
_BYTES = 32
_FORM = re.compile(re.escape(PREFIX) + r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a machine needs to reach the proxy."""

    token: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessSummary:
    """What one access was used for. The budget has the exact records."""

    answered: int = 0
    """Calls that a vendor answered to the end."""
    refused: int = 0
    """Calls that the proxy rejected."""
    failed: int = 0
    """Calls that a vendor didn't answer, answered with an error status, or cut."""
    limit: str = ""
    """The message of the first budget that rejected a call, with its numbers."""
    problem: str = ""
    """Why the last call failed, in words for people. Empty: it was answered, or rejected."""
    vendor_status: int | None = None
    """The error status with which the vendor answered the last call."""
    rejection: str = ""
    """Why the proxy rejected the last call, apart from budgets."""
    usage: Usage = field(default_factory=Usage)


class Connection(Protocol):
    """A machine's connection to the proxy."""

    def cut(self) -> None:
        """Close it after what was sent, without the end of the answer."""

    def drop(self) -> None:
        """Close it at once."""


@dataclass(slots=True, kw_only=True, eq=False)
class OpenAccess:
    """One task's use of the proxy."""

    run_id: str
    task: int
    attempt: int
    protocol: ModelProtocol
    upstream: Upstream
    models: tuple[str, ...]
    budget: TaskBudget
    bounds: Bounds
    token: Secret
    slots: asyncio.Semaphore
    parsing: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    body_bytes: int = 0
    """Of the requests that are being handled."""
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    listener: asyncio.Server | None = None
    """Of the port that is only for this task."""
    handled: dict[asyncio.Task[object], Connection] = field(default_factory=dict)
    """The requests that are being handled, and their connections."""
    silences: int = 0
    """Streams in a row that ended because the vendor was silent."""
    answered: int = 0
    counted: int = 0
    """Calls that count tokens."""
    refused: int = 0
    failed: int = 0
    limit: str = ""
    problem: str = ""
    vendor_status: int | None = None
    rejection: str = ""
    usage: Usage = field(default_factory=Usage)

    def ended(self, *, problem: str = "", vendor_status: int | None = None, rejection: str = "") -> None:
        """Remember how the last call ended; without arguments: well."""
        self.problem, self.vendor_status, self.rejection = problem, vendor_status, rejection

    def allows(self, model: str) -> bool:
        # Claude Code takes `claude-sonnet-4-5[1m]`, and asks for that model without the suffix and with another header.
        return any(
            model == pattern.partition("[")[0] or fnmatch.fnmatchcase(model, pattern.replace("[", "[[]"))
            for pattern in self.models
        )

    def summary(self) -> AccessSummary:
        return AccessSummary(
            answered=self.answered,
            refused=self.refused,
            failed=self.failed,
            limit=self.limit,
            problem=self.problem,
            vendor_status=self.vendor_status,
            rejection=self.rejection,
            usage=self.usage,
        )


def new_token() -> Secret:
    """Return a token of 256 random bits."""
    return Secret(PREFIX + secrets.token_urlsafe(_BYTES))


def token_from(secret: bytes) -> Secret:
    """Return the token that 32 secret bytes stand for."""
    return Secret(PREFIX + base64.urlsafe_b64encode(secret[:_BYTES]).decode().rstrip("="))


class Tokens:
    """The open accesses. They are found by the hash of their token, so that the time of a search reveals nothing."""

    def __init__(self) -> None:
        self._open: dict[bytes, list[OpenAccess]] = {}
        """Oldest first. There are several of one token for a moment if this process lost a run and claims it again."""

    def add(self, access: OpenAccess) -> None:
        self._open.setdefault(_digest(access.token.reveal()), []).append(access)

    def remove(self, token: Secret) -> OpenAccess | None:
        """Remove the oldest access of a token, and return it."""
        digest = _digest(token.reveal())
        accesses = self._open.get(digest, [])
        found = accesses.pop(0) if accesses else None
        if not accesses:
            self._open.pop(digest, None)
        return found

    def all(self) -> tuple[OpenAccess, ...]:
        return tuple(access for accesses in self._open.values() for access in accesses)

    def find(self, presented: Iterable[str]) -> OpenAccess | None:
        """Return the newest access of a request's token. A request that shows several different ones has none."""
        distinct = set(presented)
        if len(distinct) != 1 or not _FORM.fullmatch(token := distinct.pop()):
            return None
        found = self._open.get(_digest(token))
        return found[-1] if found and secrets.compare_digest(found[-1].token.reveal(), token) else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
