"""Parses the quantities of settings and workflow files. Every function raises ValueError with a message for the user."""

from __future__ import annotations

import re
from decimal import Decimal

_DURATION = re.compile(r"(\d+)\s*(s|m|h|d|w|mo|y)?", re.ASCII)
_SIZE = re.compile(r"(\d{1,9})\s*([mMgG])?[bB]?", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800, "mo": 2592000, "y": 31536000}
_USD = re.compile(r"\d{1,6}(\.\d{1,6})?", re.ASCII)
_COUNT = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([km])?", re.ASCII)


def parse_duration(text: str) -> int:
    """Parse `90s`, `20m`, `2h`, `7d`, `1w`, `1mo` or `1y` to seconds; a bare number is minutes."""
    match = _DURATION.fullmatch(text.strip().lower())
    if not match:
        raise ValueError(f"{text!r} is not a duration: write 90s, 20m, 2h, 7d, 1w, 1mo or 1y (a bare number is minutes)")
    return int(match[1]) * _UNIT_S[match[2] or "m"]


def parse_size(text: str) -> int:
    """Parse `512m` or `2g` to megabytes; a bare number is megabytes."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size: write 512m or 2g (a bare number is megabytes)")
    return int(match[1]) * (1024 if (match[2] or "m").lower() == "g" else 1)


def parse_usd(text: str) -> Decimal:
    """Parse an amount of US dollars: `2`, `2.50`. It is exact, never a float."""
    if not _USD.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not an amount in US dollars: write 2 or 2.50, below a million")
    return Decimal(text.strip())


def parse_count(text: str) -> int:
    """Parse `500000`, `500k` or `20m` (millions) to a number."""
    match = _COUNT.fullmatch(text.strip().lower().replace("_", ""))
    number = Decimal(match[1]) * {"k": 1_000, "m": 1_000_000}.get(match[2] or "", 1) if match else Decimal("0.5")
    if number != int(number):
        raise ValueError(f"{text!r} is not a number of tokens: write 500000, 500k or 20m (millions)")
    return int(number)
