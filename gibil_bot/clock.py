"""The current time."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """An aware datetime in UTC, as the model has them."""
    return datetime.now(UTC)
