"""The current time."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """Return an aware datetime in UTC."""
    return datetime.now(UTC)
