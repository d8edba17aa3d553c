"""Failures at Hetzner and of the connection: nothing leaks or hangs, and one line says what to do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gibil_bot.errors import GibilError, MachineLost, ProviderError
from gibil_bot.model import Endpoint
from gibil_bot.ports import Shell
from gibil_bot.providers.hetzner.provider import HetznerProvider
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.ssh import client
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_kit import arm, spec
from tests.doubles.hetzner_state import State
from tests.doubles.patience import patient


@pytest.fixture
async def provider(double: HetznerDouble) -> AsyncIterator[HetznerProvider]:
    provider = double.provider(http_timeout_s=(1.0, 0.5))
    yield provider
    await provider.close()


# Creating


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_server_created_before_an_error_is_found(double: HetznerDouble, provider: HetznerProvider, status: int) -> None:
    arm(double, "POST", "/servers", status=status, after=True)
    machine = await provider.create(spec())
    assert [str(number) for number in double.state.servers] == [machine.id]
    assert double.called("POST /servers") == 2


async def test_a_server_created_without_a_response_is_found(double: HetznerDouble, provider: HetznerProvider) -> None:
    arm(double, "POST", "/servers", after=True, hang=asyncio.Event())
    machine = await provider.create(spec())
    assert [str(number) for number in double.state.servers] == [machine.id]


async def test_an_api_that_keeps_failing_is_reported_in_one_line(double: HetznerDouble, provider: HetznerProvider) -> None:
    arm(double, "POST", "/servers", times=100)
    with pytest.raises(
        ProviderError, match=r"cannot create machine ada: Hetzner's API failed .*status\.hetzner\.com"
    ) as caught:
        await provider.create(spec())
    assert "\n" not in caught.value.message
    assert double.called("POST /servers") == 5


async def test_an_unreachable_api_is_reported_in_one_line() -> None:
    provider = HetznerProvider("token", endpoint="http://127.0.0.1:9/v1", backoff_s=0.01)
    try:
        with pytest.raises(ProviderError, match="can't be reached; check the network and HCLOUD_ENDPOINT") as caught:
            await provider.create(spec())
    finally:
        await provider.close()
    assert caught.value.code == "PROVIDER_UNREACHABLE"


@pytest.mark.parametrize(
    ("token", "code", "output"),
    [("wrong" * 12, "UNAUTHORIZED", "rejected HCLOUD_TOKEN"), (None, "TOKEN_READONLY", "is read-only")],
)
async def test_a_wrong_token_is_reported_in_one_line_without_the_token(
    double: HetznerDouble, token: str | None, code: str, output: str
) -> None:
    token = token or double.api.readonly_token
    provider = double.provider(token=token)
    try:
        with pytest.raises(ProviderError, match=output) as caught:
            await provider.create(spec())
    finally:
        await provider.close()
    assert caught.value.code == code
    assert caught.value.exit_status == 3
    assert "\n" not in caught.value.message
    assert token not in repr(caught.value)
    assert token not in repr(provider.__dict__)
    assert double.state.servers == {}


async def test_the_projects_limit_is_reported(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.server_limit = 0
    with pytest.raises(ProviderError, match="limit of this Hetzner project") as caught:
        await provider.create(spec())
    assert caught.value.code == "LIMIT_EXCEEDED"
    assert double.called("POST /servers") == 1


@pytest.mark.parametrize("later", [False, True])
async def test_a_sold_out_server_type_is_replaced_and_reported(
    double: HetznerDouble, provider: HetznerProvider, caplog: pytest.LogCaptureFixture, later: bool
) -> None:
    sold_out = {("cx23", "nbg1"), ("cx23", "fsn1"), ("cx23", "hel1"), ("cpx22", "nbg1")}
    (double.state.sold_out_later if later else double.state.sold_out).update(sold_out)
    machine = await provider.create(spec())
    assert (machine.labels["server-type"], machine.labels["location"]) == ("cpx22", "fsn1")
    assert machine.labels["instead-of"] == "cx23.nbg1"
    assert "cx23 in nbg1 is not available (resource_unavailable)" in caplog.text
    double.api.calls.clear()
    second = await provider.create(spec("next"))  # knows it by now
    assert (second.labels["server-type"], double.called("POST /servers")) == ("cpx22", 1)


async def test_a_type_retired_meanwhile_is_replaced(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec("before"))  # reads the list of types
    for location in double.state.types[0]["locations"]:
        location["deprecation"] = {"announced": "2026-01-01T00:00:00Z", "unavailable_after": "2026-02-01T00:00:00Z"}
    machine = await provider.create(spec())
    assert machine.labels["server-type"] == "cpx22"


async def test_if_everything_is_sold_out_the_error_lists_the_attempts(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.sold_out |= {(kind["name"], place["name"]) for kind in double.state.types for place in kind["locations"]}
    with pytest.raises(ProviderError, match=r"no room for cx23 in nbg1, .*cx33 in hel1; choose another") as caught:
        await provider.create(spec())
    assert caught.value.code == "RESOURCE_UNAVAILABLE"


async def test_waiting_for_a_server_that_never_runs_ends(double: HetznerDouble) -> None:
    double.state.initializing_s = 0.6
    provider = double.provider(boot_s=0.2)
    try:
        with pytest.raises(ProviderError, match=r"after 0 s its server doesn't run yet"):
            await provider.create(spec())
        assert await provider.destroy("ada") is True  # locked until its creation has ended
    finally:
        await provider.close()
    assert double.state.servers == {}


async def test_a_server_that_vanishes_while_it_boots_is_reported(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.initializing_s = 600
    task = asyncio.create_task(provider.create(spec()))
    while not double.state.servers:
        await asyncio.sleep(0.005)
    (server,) = double.state.servers.values()
    double.state.lose(server)
    with pytest.raises(ProviderError, match="deleted by another client while it booted"):
        await task


async def test_a_failing_list_fails_the_creations_that_wait_for_it(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec("warm"))
    double.state.initializing_s = 600
    arm(double, "GET", "/servers", times=5)
    waiting = [asyncio.create_task(provider.create(spec(name))) for name in ("one", "two")]
    failed = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, ProviderError) for error in failed)
    double.state.initializing_s = 0
    assert (await provider.create(spec("three"))).status == "running"


# Cancelling


async def test_a_cancelled_creation_waits_for_the_call_that_creates_the_server(
    double: HetznerDouble, provider: HetznerProvider
) -> None:
    """Otherwise `destroy` would run before a thread that can't be cancelled creates the server, and would find nothing."""
    await provider.create(spec("warm"))
    response = asyncio.Event()
    fault = arm(double, "POST", "/servers", late=True, hang=response)
    task = asyncio.create_task(provider.create(spec()))
    while fault.times:
        await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()  # a second cancellation must not interrupt this, either
    await asyncio.sleep(0.05)
    assert not task.done(), "the call is in flight: the cancellation waits for it"
    assert len(double.state.servers) == 1
    response.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(double.state.servers) == 2
    await provider.destroy("ada")
    assert [server["name"] for server in double.state.servers.values()] == ["warm"]


@pytest.mark.parametrize("moment_s", [0.0, 0.01, 0.03, 0.06, 0.1])
async def test_a_cancelled_lifecycle_leaks_nothing(double: HetznerDouble, tmp_path: Path, moment_s: float) -> None:
    double.state.initializing_s = 0.05
    factory = MachineFactory(provider=double.provider(), keyring=Keyring(tmp_path), connect_shell=_never)
    tasks = [asyncio.create_task(factory.create(f"m{number}", "tests", 600)) for number in range(5)]
    await asyncio.sleep(moment_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await factory.close()
    assert double.state.servers == {}
    assert double.state.primary_ips == {}


async def _never(endpoint: Endpoint, key: str) -> Shell:
    await asyncio.Event().wait()
    raise AssertionError


# Using


async def test_a_machine_whose_ssh_never_answers_is_destroyed_and_reported(double: HetznerDouble, tmp_path: Path) -> None:
    async def connect(endpoint: Endpoint, key: str) -> Shell:
        closed = Endpoint(host_key=endpoint.host_key, host="127.0.0.1", port=9)
        return await client.connect(closed, key, timeout_s=0.5)

    factory = MachineFactory(provider=double.provider(), keyring=Keyring(tmp_path), connect_shell=connect)
    try:
        with pytest.raises(MachineLost, match="does not answer SSH"):
            await factory.create("ada", "tests", 600)
    finally:
        await factory.close()
    assert double.called("POST /servers") == 1
    assert double.state.servers == {}


async def test_a_server_that_another_client_deleted_does_not_exist(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec())
    (server,) = double.state.servers.values()
    double.state.delete_server(server)
    while double.state.servers:
        await asyncio.sleep(0.005)
    assert await provider.get("ada") is None
    assert await provider.destroy("ada") is False
    assert (await provider.create(spec())).status == "running"


# Destroying


async def test_deletion_is_retried_through_errors_and_locks(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec())
    (number,) = double.state.servers
    double.state.locked.add(number)
    arm(double, "DELETE", r"/servers/\d+", status=503)
    arm(double, "GET", r"/primary_ips/\d+", times=100)  # a pending action must not prevent the deletion
    deleting = asyncio.create_task(provider.destroy("ada"))
    while double.called(f"DELETE /servers/{number}") < 4:
        await asyncio.sleep(0.005)
    double.state.locked.clear()
    assert await deleting is True
    assert double.state.servers == {}


async def test_an_error_after_the_server_was_deleted_is_ignored(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec())
    arm(double, "DELETE", r"/servers/\d+", after=True)
    assert await provider.destroy("ada") is True
    assert double.state.servers == {}


async def test_an_address_is_deleted_even_if_gibil_is_killed_right_after_its_server() -> None:
    async with hetzner_double(State(auto_delete=False)) as double:
        provider = double.provider()
        arm(double, "DELETE", r"/primary_ips/\d+", times=100)  # as if no process continued
        try:
            await provider.create(spec())
            await provider.destroy("ada")
        finally:
            await provider.close()
        assert double.state.primary_ips == {}


async def test_a_server_that_is_not_deleted_is_not_reported_as_gone(double: HetznerDouble) -> None:
    double.state.deleting_s = 600
    provider = double.provider(delete_s=0.1)
    try:
        await provider.create(spec())
        with pytest.raises(ProviderError, match="did not delete machine ada"):
            await provider.destroy("ada")
    finally:
        await provider.close()


async def test_concurrent_deletions_of_a_machine_delete_it_once(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.deleting_s = 0.05
    await provider.create(spec())
    done = await asyncio.gather(*(provider.destroy("ada") for _ in range(5)))
    assert sorted(done) == [False, False, False, False, True]
    assert double.state.servers == {}


async def test_a_server_that_cannot_be_deleted_does_not_stop_the_sweep(
    double: HetznerDouble, provider: HetznerProvider
) -> None:
    for name in ("one", "two", "three"):
        await provider.create(spec(name, ttl_s=-1))
    protected = next(server for server in double.state.servers.values() if server["name"] == "two")
    protected["protection"]["delete"] = True
    assert await provider.sweep("tests") == ["one", "three"]


# Clocks and rate limits


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
async def test_a_wrong_clock_deletes_no_machine_early_or_late(ahead_s: float) -> None:
    """Hetzner's clock, and so the machines', differs from this host's by two hours."""
    async with hetzner_double(State(clock_ahead_s=ahead_s)) as double:
        provider = double.provider()
        try:
            machine = await provider.create(spec(ttl_s=600))
            now = datetime.now(UTC)
            assert abs((machine.created_at - now).total_seconds()) < 10
            assert abs((machine.expires_at - now).total_seconds() - 600) < 10
            (user_data,) = double.state.user_data.values()
            theirs = now.timestamp() + ahead_s + 600
            assert any(f"      {theirs_s}\n" in user_data for theirs_s in range(int(theirs) - 10, int(theirs) + 10))
            assert await provider.sweep("tests") == []
            await provider.create(spec("old", ttl_s=-30))
            assert await provider.sweep("tests") == ["old"]
        finally:
            await provider.close()


async def test_an_exhausted_rate_limit_delays_calls_without_failing_them() -> None:
    async with hetzner_double(limit=3_600_000, remaining=8.0, refill_s=0.02) as double:
        providers = [double.provider() for _ in range(2)]  # one token has one rate limit
        began = time.monotonic()
        try:
            await asyncio.gather(*(each.create(spec(f"m{number}")) for number, each in enumerate(providers)))
        finally:
            for each in providers:
                await each.close()
        assert len(double.state.servers) == 2
        assert time.monotonic() - began < patient(20)


async def test_rate_limited_calls_wait_and_succeed(double: HetznerDouble) -> None:
    double.api.limit = 3600 * 50  # fifty calls are refilled each second
    provider = double.provider()
    try:
        await provider.create(spec("warm"))
        arm(double, "POST", "/servers", status=429, code="rate_limit_exceeded", times=2)
        machine = await provider.create(spec())
        assert machine.status == "running"
        assert double.called("POST /servers") == 4
    finally:
        await provider.close()


async def test_a_list_that_does_not_end_is_an_error(
    double: HetznerDouble, provider: HetznerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Observed with static mocks: an endless `next_page`, and a client that follows it for ever."""
    page = type(double.api)._page

    def endless(api: Any, request: Any, key: str, things: list[Any]) -> Any:
        status, body = page(api, request, key, things)
        body["meta"]["pagination"]["next_page"] = 2
        return status, body

    monkeypatch.setattr(type(double.api), "_page", endless)
    with pytest.raises(ProviderError, match="doesn't end"):
        await provider.list_machines()


async def test_every_failure_is_a_gibil_error(double: HetznerDouble, provider: HetznerProvider) -> None:
    machine = await provider.create(spec())
    for status, code in ((400, "json_error"), (403, "forbidden"), (422, "unsupported_error"), (418, "teapot")):
        arm(double, "GET", "/servers", status=status, code=code, message="two\nlines " + "x" * 500, undocumented=True)
        with pytest.raises(GibilError) as caught:
            await provider.get("ada")
        assert "\n" not in caught.value.message
        assert len(caught.value.message) < 400
    assert await provider.get("ada") == machine
    assert machine.expires_at > datetime.now(UTC) + timedelta(seconds=60)
