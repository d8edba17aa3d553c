"""Prices of models: exact arithmetic, the operator's file, and the library's prices by the library's own arithmetic."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from genai_prices import Usage as LibraryUsage
from genai_prices import calc_price
from genai_prices.data import providers

from gibil_bot.agent_task import Price, Rates, Usage
from gibil_bot.agents.prices import Prices, affordable_output, cost, library_price, override, worst_cost
from gibil_bot.errors import UnknownModelPrice
from gibil_bot.model_settings import parse_prices

SONNET = Rates(
    input=Decimal(3),
    output=Decimal(15),
    cache_read=Decimal("0.3"),
    cache_write_5m=Decimal("3.75"),
    cache_write_1h=Decimal(6),
)
LONG = Rates(
    input=Decimal(6),
    output=Decimal("22.5"),
    cache_read=Decimal("0.6"),
    cache_write_5m=Decimal("7.5"),
    cache_write_1h=Decimal(12),
)
PRICE = Price(base=SONNET, above_tokens=200_000, above=LONG)


@pytest.mark.parametrize(
    ("usage", "usd"),
    [
        (Usage(), "0"),
        (Usage(input=1), "0.000003"),
        (Usage(input=2400, cache_read=600, cache_write_5m=300, output=150), "0.010755"),
        (Usage(cache_write_1h=1000), "0.006"),
        (Usage(input=200_000), "0.6"),
        (Usage(input=200_001), "1.200006"),
        (Usage(cache_read=200_000, input=1, output=1000), "0.142506"),
        (Usage(output=300_000), "4.5"),
    ],
)
def test_the_cost_of_a_call(usage: Usage, usd: str) -> None:
    assert cost(PRICE, usage) == Decimal(usd)


def test_a_cost_is_rounded_up_to_a_billionth_of_a_dollar() -> None:
    cheap = Price(
        base=Rates(**dict.fromkeys(("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"), Decimal("0.0125")))
    )
    assert cost(cheap, Usage(input=1)) == Decimal("0.000000013")


def test_no_call_costs_more_than_its_worst_cost() -> None:
    worst = worst_cost(PRICE, input_tokens=1000, max_output_tokens=500)
    assert worst == Decimal("0.0135")
    for usage in (Usage(input=1000), Usage(cache_read=1000), Usage(cache_write_5m=1000), Usage(cache_write_1h=1000)):
        assert cost(PRICE, usage + Usage(output=500)) <= worst
    assert worst_cost(PRICE, input_tokens=200_001, max_output_tokens=0) == Decimal("2.400012")


def test_the_affordable_output_costs_no_more_than_what_is_left() -> None:
    left = Decimal("0.05")
    tokens = affordable_output(PRICE, left, input_tokens=1000)
    assert tokens == 2933
    assert worst_cost(PRICE, input_tokens=1000, max_output_tokens=tokens) <= left
    assert worst_cost(PRICE, input_tokens=1000, max_output_tokens=tokens + 1) > left
    assert affordable_output(PRICE, Decimal("0.005"), input_tokens=1000) == -1
    free = Price(base=Rates(**dict.fromkeys(("input", "output", "cache_read", "cache_write_5m", "cache_write_1h"), Decimal(0))))
    assert affordable_output(free, Decimal(0), input_tokens=1000) is None


def _names() -> list[tuple[str, str]]:
    """Return every model of the three vendors that is named by its id."""
    library = {"anthropic": "anthropic", "openai": "openai", "google": "gemini"}
    return [
        (library[provider.id], model.id)
        for provider in providers
        if provider.id in library
        for model in provider.models
        if provider.find_model(model.id) is model
    ]


def test_every_price_of_the_library_gives_the_same_costs_as_its_own_arithmetic() -> None:
    at = datetime(2026, 11, 27, tzinfo=UTC)
    compared = 0
    for vendor, model in _names():
        try:
            price = library_price(vendor, model, at=at)
        except UnknownModelPrice:
            continue  # audio, images, embeddings
        for scale in (1, 100_000, 300_000):
            usage = Usage(input=scale, cache_read=2 * scale, cache_write_5m=scale // 2, cache_write_1h=scale // 4, output=scale)
            theirs = calc_price(
                LibraryUsage(
                    input_tokens=usage.tokens - usage.output,
                    cache_read_tokens=usage.cache_read,
                    cache_write_tokens=usage.cache_write_5m + usage.cache_write_1h,
                    cache_write_1h_tokens=usage.cache_write_1h,
                    output_tokens=usage.output,
                ),
                model,
                provider_id={"gemini": "google"}.get(vendor, vendor),
                genai_request_timestamp=at,
            )
            assert 0 <= cost(price, usage) - theirs.total_price < Decimal("1e-9"), (vendor, model)
            compared += 1
    assert compared > 300


@pytest.mark.parametrize(
    ("vendor", "model", "rates"),
    [
        ("anthropic", "claude-sonnet-4-5-20250929", SONNET),
        ("openai", "gpt-5", ("1.25", "10", "0.125", "1.25", "1.25")),
        ("gemini", "gemini-2.5-flash", ("0.30", "2.5", "0.03", None, None)),
    ],
)
def test_prices_that_the_vendors_publish(vendor: str, model: str, rates: Rates | tuple[str | None, ...]) -> None:
    found = library_price(vendor, model).base
    expected = [getattr(rates, name) for name in Rates.__struct_fields__] if isinstance(rates, Rates) else rates
    for name, rate in zip(Rates.__struct_fields__, expected, strict=True):
        assert rate is None or getattr(found, name) == Decimal(rate), name


@pytest.mark.parametrize("model", ["gpt-99-enormous", "", "x" * 10_000, "text-embedding-3-small", "gpt-5\n", "whisper-1"])
async def test_a_model_without_a_price_is_rejected_with_the_setting_to_change(model: str) -> None:
    with pytest.raises(UnknownModelPrice, match="GIBIL_MODEL_PRICES") as caught:
        await Prices().of("openai", model)
    assert len(caught.value.message) < 500
    assert "\n" not in caught.value.message


async def test_a_gateway_has_its_own_prices() -> None:
    price = await Prices().of("openai", "anthropic/claude-sonnet-4.5", url="https://openrouter.ai/api")
    assert price.base.input == 3
    with pytest.raises(UnknownModelPrice):
        await Prices().of("openai", "anthropic/claude-sonnet-4.5", url="https://models.example.com")


async def test_the_operators_prices_come_first() -> None:
    prices, problems = parse_prices(
        "claude-*: {input: 1, output: 2}\nClaude-Sonnet-*: {input: 3, output: 4}\nclaude-x: {input: 5, output: 6}\n"
    )
    assert problems == []
    for model, rate in (("claude-y", 1), ("claude-sonnet-4-5", 3), ("CLAUDE-X", 5)):
        assert (await Prices(prices).of("anthropic", model)).base.input == rate
    assert override(prices, "gpt-5") is None
    assert (await Prices(prices).of("openai", "gpt-5")).base.input == Decimal("1.25")


def test_a_rate_that_is_missing_is_that_of_input() -> None:
    prices, _ = parse_prices("m: {input: 0.1, output: 2, cache_read: 0.01, above: {tokens: 1000, input: 0.2, output: 4}}")
    price = prices["m"]
    assert (price.base.input, price.base.cache_read, price.base.cache_write_1h) == (
        Decimal("0.1"),
        Decimal("0.01"),
        Decimal("0.1"),
    )
    assert price.above is not None
    assert (price.above_tokens, price.above.cache_read) == (1000, Decimal("0.2"))


def test_all_problems_of_a_file_of_prices_are_reported_with_line_and_column() -> None:
    text = """\
m1: {input: 3}
m2: {input: -1, output: 1e9}
m3: [1, 2]
"m 4": {input: 1, output: 1}
m5: {input: 1, output: 1, cached: 1}
m6: {input: 1, output: 1, above: {input: 1, output: 1}}
m6: {input: 1, output: 1}
m7: {input: 1, output: [2]}
m8: {input: nan, output: 1, input: 2}
m9: {input: 1, output: 1, above: {tokens: 5, output: 1}}
good: {input: 1, output: 1}
"""
    prices, problems = parse_prices(text)
    assert list(prices) == ["good"]
    assert problems == [
        "1:5: output missing",
        "2:13: input must be USD per million tokens, such as 3 or 0.25, got '-1'",
        "2:25: output must be USD per million tokens, such as 3 or 0.25, got '1e9'",
        "3:5: write input: 3 and output: 15, in USD per million tokens",
        "4:1: 'm 4' is not a model's name or a pattern such as claude-sonnet-4-5*",
        "5:27: unknown key 'cached', expected input, output, cache_read, cache_write_5m, cache_write_1h, above",
        "6:34: above: needs tokens, a number such as 200000",
        "7:1: 'm6' occurs twice",
        "8:24: output must be USD per million tokens, such as 3 or 0.25, got a list or mapping",
        "9:13: input must be USD per million tokens, such as 3 or 0.25, got 'nan'",
        "9:29: 'input' occurs twice",
        "10:34: input missing",
    ]


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [", "? [a]\n: {input: 1}", "&a x: *a", "[" * 5000])
def test_a_file_that_is_no_mapping_is_a_problem(text: str) -> None:
    prices, problems = parse_prices(text)
    assert prices == {}
    assert len(problems) == 1


def test_an_empty_file_has_no_prices() -> None:
    assert parse_prices("# nothing yet\n") == ({}, [])


def test_importing_the_prices_doesnt_import_the_library() -> None:
    code = "import gibil_bot.agents.prices, sys; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
