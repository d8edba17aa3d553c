"""The pure parts of the Hetzner provider: labels, host keys, server types, prices, and the rate limit."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import hcloud
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gibil_bot.errors import ProviderError, UsageError
from gibil_bot.model import MachineSpec
from gibil_bot.providers.hetzner import labels, server_types
from gibil_bot.providers.hetzner.api import disable_retries
from gibil_bot.providers.hetzner.project import new_pair
from gibil_bot.providers.hetzner.rate_limit import RESERVE, RateLimit, rate_limit_of
from gibil_bot.providers.hetzner.server_types import Candidate
from gibil_bot.ssh import host_keys
from tests.doubles import hetzner_catalogue as catalogue
from tests.doubles import hetzner_schema as schema
from tests.doubles.hetzner_selector import selects

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def spec(**more: Any) -> MachineSpec:
    words: dict[str, Any] = {"name": "ada", "owner": "tests", "ttl_s": 600, "authorized_key": new_pair()[1]}
    return MachineSpec(**{**words, "host_key": new_pair()[0], **more})


# Labels


@given(st.dictionaries(st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,10}[a-z0-9])?", fullmatch=True), st.text(max_size=400)))
def test_any_value_survives_the_encoding_as_valid_labels(wanted: dict[str, str]) -> None:
    encoded = labels.encode(wanted)
    assert not list(schema.labels(encoded, "labels"))
    assert labels.decode(encoded) == wanted


def test_internal_labels_are_written_and_not_returned_to_the_caller() -> None:
    written = labels.machine_labels(spec(labels={"run": "1", "repo": "ada/engine"}), NOW)
    assert not list(schema.labels(written, "labels"))
    assert labels.decode(written) == {"run": "1", "repo": "ada/engine"}
    assert labels.expires_at(written) == NOW
    assert selects(labels.selector("tests"), written)
    assert not selects(labels.selector("others"), written)


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2200, 1, 1)))
def test_an_expiry_is_read_back_to_the_microsecond(moment: datetime) -> None:
    aware = moment.replace(tzinfo=UTC)
    assert labels.expires_at({labels.EXPIRES: labels.time_value(aware)}) == aware
    assert schema.LABEL_VALUE.fullmatch(labels.time_value(aware))


@pytest.mark.parametrize("damaged", ["", "never", "-1", "1e9", "99999999999999"])
def test_a_damaged_expiry_is_ignored(damaged: str) -> None:
    assert labels.expires_at({labels.EXPIRES: damaged}) is None


@pytest.mark.parametrize("key", ["", "-a", "a/b", "created-by", "gibil-more.00.x", "x" * 49])
def test_an_invalid_label_name_is_rejected(key: str) -> None:
    with pytest.raises(UsageError, match="label"):
        labels.encode({key: "1"})


@pytest.mark.parametrize("owner", ["a1b2", "owner/name", "", "x" * 100, "ends-"])
def test_every_owner_can_be_used_in_a_selector(owner: str) -> None:
    written = labels.machine_labels(spec(owner=owner), NOW)
    assert not list(schema.labels(written, "labels"))
    assert selects(labels.selector(owner), written)


def test_another_key_or_owner_changes_the_spec_label() -> None:
    one = spec()
    others = (spec(), MachineSpec(name="ada", owner="b", ttl_s=1, authorized_key=one.authorized_key, host_key=one.host_key))
    assert labels.spec_value(one) not in [labels.spec_value(other) for other in others]


# Host keys


def test_a_host_key_is_read_and_fits_a_label() -> None:
    for _ in range(50):  # base64 padding differs between keys
        private, public = new_pair()
        assert host_keys.public_line(private) == public
        assert schema.LABEL_VALUE.fullmatch(host_keys.to_label(public))
        assert host_keys.from_label(host_keys.to_label(public)) == public


@pytest.mark.parametrize("damaged", ["", "k", "kk", "x" * 45, "k" + "!" * 43 + "k"])
def test_a_damaged_label_is_no_host_key(damaged: str) -> None:
    assert host_keys.from_label(damaged) is None


# Server types


def candidates(**more: Any) -> list[str]:
    types = more.pop("types", None) or catalogue.server_types()
    return [str(candidate) for candidate in server_types.candidates(types, now=NOW, **{"size": "small", **more})]


def test_the_cheapest_fitting_type_is_tried_in_every_location_before_the_next() -> None:
    assert candidates() == [
        *("cx23 in nbg1", "cx23 in fsn1", "cx23 in hel1"),
        *("cpx22 in nbg1", "cpx22 in fsn1", "cpx22 in hel1"),
        *("cx33 in nbg1", "cx33 in fsn1", "cx33 in hel1"),
    ]
    assert candidates(size="large")[0] == "cx43 in nbg1"
    assert candidates(memory_mb=8192)[0] == "cx33 in nbg1"


def test_only_the_named_type_and_location_are_tried() -> None:
    assert candidates(server_type="cpx11", location="ash") == ["cpx11 in ash"]
    assert candidates(server_type="cax11") == ["cax11 in nbg1", "cax11 in fsn1", "cax11 in hel1"]
    with pytest.raises(ProviderError, match="cax11 in ash now; choose another location: fsn1"):
        candidates(server_type="cax11", location="ash")


def test_a_named_type_may_not_cost_more_than_the_sizes_unless_the_operator_allows_it() -> None:
    types = catalogue.server_types()
    large = next(kind for kind in types if kind["name"] == "cx43")
    giant = copy.deepcopy(large)
    giant |= {"name": "ccx63", "cores": 48, "memory": 192.0}
    for price in giant["prices"]:
        price["price_hourly"]["net"] = price["price_hourly"]["gross"] = "0.8"
        price["price_monthly"]["net"] = price["price_monthly"]["gross"] = "500"
    types.append(giant)
    types += [{**large, "name": name} for name in ("cx44", "cx45")]  # a size names three types
    with pytest.raises(UsageError, match="GIBIL_SERVER_TYPES"):
        candidates(types=types, server_type="ccx63")
    assert candidates(types=types, server_type="ccx63", allowed=("ccx63",))
    with pytest.raises(UsageError, match="allows ccx63"):
        candidates(types=types, server_type="cx23", allowed=("ccx63",))
    assert {each.split()[0] for each in candidates(allowed=("cx33", "cpx22"))} == {"cx33", "cpx22"}


def test_unavailable_and_retired_types_are_skipped() -> None:
    types = catalogue.server_types()
    types[0]["locations"][1]["available"] = False  # cx23 in nbg1
    types[4]["locations"][0]["deprecation"] = {"unavailable_after": "2026-11-01T00:00:00Z"}  # cpx22 in fsn1
    types[4]["locations"][2]["deprecation"] = {"unavailable_after": "2027-11-01T00:00:00Z"}  # still available in hel1
    assert candidates(types=types)[:4] == ["cx23 in fsn1", "cx23 in hel1", "cpx22 in nbg1", "cpx22 in hel1"]


def test_a_recently_sold_out_type_is_tried_last() -> None:
    order = candidates(sold_out={Candidate("cx23", "nbg1")})
    assert (order[0], order[-1]) == ("cx23 in fsn1", "cx23 in nbg1")


@pytest.mark.parametrize(
    ("wrong", "output"),
    [
        ({"size": "huge"}, "small, medium, large"),
        ({"server_type": "cx99"}, "cx23"),
        ({"location": "mars"}, "nbg1"),
    ],
)
def test_unknown_values_are_rejected_with_the_known_ones(wrong: dict[str, str], output: str) -> None:
    with pytest.raises(UsageError, match=output):
        candidates(**wrong)


def test_no_available_location_is_not_a_usage_error() -> None:
    types = catalogue.server_types()
    types[-1]["locations"][3] |= {"available": True, "deprecation": None}
    with pytest.raises(ProviderError, match="cx21 in nbg1 now") as caught:
        candidates(types=types, server_type="cx21", location="nbg1")
    assert "ash" in caught.value.message
    assert caught.value.code == "RESOURCE_UNAVAILABLE"


# Prices


def test_a_price_includes_the_address() -> None:
    pricing = catalogue.pricing(catalogue.server_types())
    found = server_types.price(pricing, Candidate("cx23", "nbg1"))
    assert found == server_types.Price(hourly=Decimal("0.0068"), monthly=Decimal("4.2440"), currency="EUR")
    assert server_types.price(pricing, Candidate("cx99", "nbg1")) is None


@pytest.mark.parametrize(("lived", "hours"), [(0, 1), (59, 1), (3600, 1), (3601, 2), (7199, 2), (-5, 1)])
def test_started_hours_are_billed_in_full(lived: int, hours: int) -> None:
    assert server_types.started_hours(NOW, NOW + timedelta(seconds=lived)) == hours
    price = server_types.Price(Decimal("0.01"), Decimal(6), "EUR")
    assert server_types.cost_so_far(price, NOW, NOW + timedelta(seconds=lived)) == hours * Decimal("0.01")


def test_the_cost_is_capped_at_the_monthly_price() -> None:
    assert server_types.cost_so_far(
        server_types.Price(Decimal("0.01"), Decimal(6), "EUR"), NOW, NOW + timedelta(days=30)
    ) == Decimal(6)


# The library


def test_hcloud_still_has_the_retry_count_that_gibil_sets_to_0() -> None:
    """It has no public setting, and hcloud's retries sleep in a thread; see api.disable_retries."""
    client = hcloud.Client("token")
    assert client._client._retry_max_retries == 5
    disable_retries(client)
    assert client._client._retry_max_retries == 0


# The rate limit


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_responses_report_the_remaining_calls_and_calls_in_flight_are_counted() -> None:
    rate_limit = RateLimit(clock := Clock())
    await rate_limit.acquire()
    await rate_limit.acquire()
    rate_limit.answered(200, {"RateLimit-Limit": "3600", "RateLimit-Remaining": "100"})
    assert rate_limit.left() == 99  # the other call is still in flight
    clock.now += 10
    assert rate_limit.left() == 109
    rate_limit.answered(None, {})
    assert rate_limit.left() == 109


async def test_calls_beyond_the_limit_wait_for_a_refill_and_deletions_wait_less() -> None:
    rate_limit = RateLimit(clock := Clock())
    await rate_limit.acquire()
    rate_limit.answered(429, {})
    assert rate_limit.wait_s() == 1 + RESERVE
    assert rate_limit.wait_s(0) == 1
    clock.now += 1
    assert rate_limit.wait_s(0) == 0


def test_all_clients_of_one_token_share_a_rate_limit() -> None:
    one = rate_limit_of("a", "https://x")
    assert rate_limit_of("a", "https://x") is one
    assert rate_limit_of("b", "https://x") is not one
