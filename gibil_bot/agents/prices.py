"""Prices of models: the operator's (GIBIL_MODEL_PRICES), else those of the library genai-prices, which needs no network.

A model without a price is rejected: no budget could limit it. Amounts are exact to a billionth of a dollar, rounded up.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from gibil_bot.agent_task import Price, Rates, Usage
from gibil_bot.errors import UnknownModelPrice

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, Provider

NANO = Decimal("1e-9")
"""The unit in which amounts are stored and added."""
_MILLION = Decimal(1_000_000)
_PROVIDERS = {"anthropic": "anthropic", "openai": "openai", "gemini": "google"}
"""A vendor, as in model_settings.VENDORS → the library's provider."""
_LONGEST_NAME = 200
_CACHED = 256
"""How many prices are remembered. Names come from machines, so there may be any number of them."""


class Prices:
    """The prices of models. The library is imported with the first model that the operator's prices lack, in a thread."""

    def __init__(self, overrides: Mapping[str, Price] | None = None) -> None:
        """`overrides`: patterns in lower case, as in ModelSettings.prices."""
        self._overrides = dict(overrides or {})
        self._known: dict[tuple[str, str, str], Price] = {}

    async def of(self, vendor: str, model: str, *, url: str = "") -> Price:
        """Return the present price of the model. Raises UnknownModelPrice.

        `vendor`: whose API is called. `url`: its address, because a gateway such as openrouter.ai has its own prices.
        """
        if (price := override(self._overrides, model)) is not None:
            return price
        key = (vendor, url, f"{model}@{datetime.now(UTC):%Y-%m-%dT%H}")
        if key not in self._known:
            price = await asyncio.to_thread(library_price, vendor, model, url)
            if len(self._known) >= _CACHED:
                self._known.clear()
            self._known[key] = price
        return self._known[key]


def override(overrides: Mapping[str, Price], model: str) -> Price | None:
    """Return the price of the exact name, else of the pattern with the most letters that matches."""
    name = model.lower()
    if len(name) > _LONGEST_NAME:
        return None
    if name in overrides:
        return overrides[name]
    matching = [pattern for pattern in overrides if "*" in pattern and fnmatchcase(name, pattern)]
    return overrides[max(matching, key=lambda pattern: (len(pattern.replace("*", "")), pattern))] if matching else None


def library_price(vendor: str, model: str, url: str = "", at: datetime | None = None) -> Price:
    """Return the library's price. Blocks: the first call imports the library, 0.2 to 0.9 s. Raises UnknownModelPrice."""
    found = None
    if 0 < len(model) <= _LONGEST_NAME:
        providers = _library()
        wanted = _provider(providers, vendor, url)
        # Not calc_price: the library remembers every name that it is asked for.
        info = wanted.find_model(model, all_providers=list(providers)) if wanted is not None else None
        found = None if info is None else _price(info.get_prices(at or datetime.now(UTC)))
    if found is None:
        raise UnknownModelPrice(
            f"the model {model[:_LONGEST_NAME]!r} has no known price, so no budget could limit it; choose another model, or "
            "the operator adds its price to the file of GIBIL_MODEL_PRICES"
        )
    return found


def cost(price: Price, usage: Usage) -> Decimal:
    """Return what a call costs in USD."""
    rates = _rates(price, usage.tokens - usage.output)
    exact = (
        usage.input * rates.input
        + usage.cache_read * rates.cache_read
        + usage.cache_write_5m * rates.cache_write_5m
        + usage.cache_write_1h * rates.cache_write_1h
        + usage.output * rates.output
    ) / _MILLION
    return exact.quantize(NANO, ROUND_CEILING)


def worst_cost(price: Price, *, input_tokens: int, max_output_tokens: int) -> Decimal:
    """Return the most that a call can cost: all input at its highest rate, usually that of a cache that is written."""
    rates = _rates(price, input_tokens)
    highest = max(rates.input, rates.cache_read, rates.cache_write_5m, rates.cache_write_1h)
    return ((input_tokens * highest + max_output_tokens * rates.output) / _MILLION).quantize(NANO, ROUND_CEILING)


def affordable_output(price: Price, left_usd: Decimal, *, input_tokens: int) -> int | None:
    """Return how many output tokens a call may have at its worst; negative if not even its input is affordable.

    None: any number, since output costs nothing and the input is affordable.
    """
    rates = _rates(price, input_tokens)
    left = left_usd - worst_cost(price, input_tokens=input_tokens, max_output_tokens=0)
    if left < 0:
        return -1
    return None if rates.output == 0 else int(left * _MILLION / rates.output)


def _rates(price: Price, input_tokens: int) -> Rates:
    return price.above if price.above is not None and input_tokens > price.above_tokens else price.base


_KEYS = {
    "input": ("input_mtok",),
    "output": ("output_mtok",),
    "cache_read": ("cache_read_mtok", "input_mtok"),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_mtok", "input_mtok"),
}
"""A rate → the library's names of it. The first one that has a price counts."""


@functools.cache
def _library() -> tuple[Provider, ...]:
    from genai_prices.data import providers

    return tuple(providers)


def _provider(providers: tuple[Provider, ...], vendor: str, url: str) -> Provider | None:
    if url:
        for provider in providers:
            if re.match(provider.api_pattern, url):
                return provider
    return next((provider for provider in providers if provider.id == _PROVIDERS.get(vendor)), None)


def _price(prices: ModelPrice) -> Price | None:
    """Convert the library's prices. None if the model doesn't produce text from text for a price per token."""
    from genai_prices.types import TieredPrices

    if prices.input_mtok is None or prices.output_mtok is None or prices.requests_kcount is not None:
        return None
    chosen = {name: next(found for key in keys if (found := getattr(prices, key)) is not None) for name, keys in _KEYS.items()}
    thresholds = {tier.start for rate in chosen.values() if isinstance(rate, TieredPrices) for tier in rate.tiers}

    def rates(input_tokens: int) -> Rates:
        amounts = {}
        for name, rate in chosen.items():
            if isinstance(rate, TieredPrices):
                reached = [tier for tier in rate.tiers if input_tokens > tier.start]
                amounts[name] = max(reached, key=lambda tier: tier.start).price if reached else rate.base
            else:
                amounts[name] = rate
        return Rates(**amounts)

    if not thresholds:
        return Price(base=rates(0))
    # Few models have several thresholds, and none of the three vendors' own: the highest rates then apply above the first one.
    return Price(base=rates(0), above_tokens=min(thresholds), above=rates(max(thresholds) + 1))
