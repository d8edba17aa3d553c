"""Responses that Hetzner documents or is reported to send, and how the provider reacts. Sources: doubles/hetzner.py."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import hcloud
import pytest

from gibil_bot.errors import MachineNotFound, ProviderError, Unavailable, UsageError
from gibil_bot.model import Machine
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.api import disable_retries
from gibil_bot.providers.hetzner.provider import HetznerProvider
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_kit import arm, spec
from tests.doubles.hetzner_state import State
from tests.doubles.patience import patient

CX23 = {("cx23", location) for location in ("nbg1", "fsn1", "hel1")}


def became(machine: Machine) -> tuple[str, str]:
    return machine.labels["server-type"], machine.labels["location"]


# Rejected server types and locations


@pytest.mark.parametrize(
    "details",
    [None, {}, {"fields": [{"name": "location", "messages": ["unsupported"]}]}, {"fields": None}, {"fields": ["location"]}],
    ids=json.dumps,
)
@pytest.mark.parametrize("message", ["unsupported location for server type", "location 'nbg1' not found", "a reason of 2027"])
async def test_a_rejected_type_or_location_is_replaced_by_the_next_candidate(
    double: HetznerDouble, provider: HetznerProvider, details: Any, message: str
) -> None:
    arm(double, "POST", "/servers", status=422, message=message, details=details)
    assert became(await provider.create(spec())) == ("cx23", "fsn1")
    assert double.called("POST /servers") == 2


async def test_a_rejected_type_makes_the_next_creation_read_the_list_again(
    double: HetznerDouble, provider: HetznerProvider
) -> None:
    await provider.create(spec("before"))
    for location in double.state.types[0]["locations"]:
        location["deprecation"] = {"announced": "2026-01-01T00:00:00Z", "unavailable_after": "2026-02-01T00:00:00Z"}
    assert became(await provider.create(spec("one")))[0] == "cpx22"
    assert double.called("GET /server_types") == 1
    double.api.calls.clear()
    assert became(await provider.create(spec("two")))[0] == "cpx22"
    assert became(await provider.create(spec("three")))[0] == "cpx22"
    assert (double.called("POST /servers"), double.called("GET /server_types")) == (2, 1)


@pytest.mark.parametrize("image", ["ubuntu-99", "161547270"], ids=["absent", "of the other architecture"])
async def test_a_wrong_image_costs_one_request_and_is_reported(
    double: HetznerDouble, provider: HetznerProvider, image: str
) -> None:
    with pytest.raises(ProviderError, match=r"Hetzner rejected it: image .*invalid_input"):
        await provider.create(spec(image=image))
    assert double.called("POST /servers") == 1


async def test_an_unknown_rejection_ends_the_creation_and_is_shown(double: HetznerDouble, provider: HetznerProvider) -> None:
    arm(double, "POST", "/servers", status=422, message="computer says no", times=100)
    with pytest.raises(ProviderError, match=r"rejected cx23 in nbg1, .*last answer was: computer says no \(invalid_input\)"):
        await provider.create(spec())
    assert double.called("POST /servers") <= 10


async def test_maintenance_in_one_location_selects_the_next(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.maintained = {"nbg1"}
    assert became(await provider.create(spec())) == ("cx23", "fsn1")
    double.state.maintained = {"nbg1", "fsn1", "hel1"}
    with pytest.raises(ProviderError, match="due to maintenance"):
        await provider.create(spec("next"))


@pytest.mark.parametrize(("times", "location"), [(1, "nbg1"), (5, "fsn1")])
async def test_a_service_error_is_retried_and_then_tried_in_the_next_location(
    double: HetznerDouble, provider: HetznerProvider, times: int, location: str
) -> None:
    arm(double, "POST", "/servers", status=422, code="service_error", times=times)
    assert became(await provider.create(spec())) == ("cx23", location)


async def test_a_limit_of_dedicated_cores_does_not_affect_shared_ones(double: HetznerDouble, provider: HetznerProvider) -> None:
    dedicated = next(kind for kind in double.state.types if kind["name"] == "ccx13")
    for price in dedicated["prices"]:
        price["price_hourly"]["net"] = "0.0010"
    double.state.dedicated_limit = 0
    assert became(await provider.create(spec())) == ("cx23", "nbg1")
    assert double.called("POST /servers") == 2
    double.state.server_limit = 1
    with pytest.raises(ProviderError, match="limit exceeded") as caught:
        await provider.create(spec("next"))
    assert caught.value.code == "LIMIT_EXCEEDED"
    assert double.called("POST /servers") == 4


async def test_the_remedy_for_an_address_limit_is_not_to_destroy_machines(
    double: HetznerDouble, provider: HetznerProvider
) -> None:
    double.state.address_limit = 0
    with pytest.raises(ProviderError, match="delete unassigned Primary IPs") as caught:
        await provider.create(spec())
    assert "burn" not in caught.value.message


# Servers that are created and don't run


@pytest.mark.parametrize("what", ["start_fails", "create_fails"])
async def test_a_failed_creation_is_cleaned_up_and_tried_in_the_next_location(
    double: HetznerDouble, provider: HetznerProvider, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    getattr(double.state, what).add(("cx23", "nbg1"))
    machine = await provider.create(spec())
    assert became(machine) == ("cx23", "fsn1")
    assert [str(number) for number in double.state.servers] == [machine.id]
    assert "cx23 in nbg1 is not available (action_failed)" in caplog.text


async def test_creation_fails_after_three_billed_servers_that_failed(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.start_fails = {
        (kind["name"], location["name"]) for kind in double.state.types for location in kind["locations"]
    }
    with pytest.raises(
        ProviderError, match=r"cannot create machine ada: .*start_server failed: Action failed \(action_failed\)"
    ):
        await provider.create(spec())
    assert double.called("POST /servers") == 3
    assert double.state.servers == {}


async def test_a_server_that_stays_off_is_powered_on(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.never_started = {("cx23", "nbg1")}
    machine = await provider.create(spec())
    assert (became(machine), machine.status) == (("cx23", "nbg1"), "running")
    assert double.called(f"POST /servers/{machine.id}/actions/poweron") == 1


async def test_unreadable_actions_do_not_fail_a_creation(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.never_started = {("cx23", "nbg1")}
    arm(double, "GET", "/actions", status=404, times=100)
    assert became(await provider.create(spec())) == ("cx23", "nbg1")


async def test_a_server_that_is_briefly_off_is_not_powered_on(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec("warm"))
    double.state.off_s = 0.15
    double.api.calls.clear()
    machine = await provider.create(spec())
    assert machine.status == "running"
    assert not [call for call in double.api.calls if "poweron" in call]
    assert double.called("GET /actions") <= 4


async def test_a_resumed_creation_powers_its_server_on(double: HetznerDouble, provider: HetznerProvider) -> None:
    machine = await provider.create(spec())
    await double.state.stop(double.state.servers[int(machine.id)])
    again = await provider.create(spec())
    assert (again.id, again.status) == (machine.id, "running")


@pytest.mark.parametrize("firewalls_s", [0.2, -1.0])
async def test_a_server_whose_firewall_is_pending_is_not_ready(firewalls_s: float) -> None:
    async with hetzner_double(State(firewalls_s=firewalls_s)) as double:
        provider = double.provider(boot_s=10 if firewalls_s > 0 else 0.3)
        try:
            if firewalls_s < 0:
                with pytest.raises(ProviderError, match="its firewall isn't applied"):
                    await provider.create(spec())
                return
            await provider.create(spec())
            (server,) = double.state.servers.values()
            assert {each["status"] for each in server["public_net"]["firewalls"]} == {"applied"}
        finally:
            await provider.close()


# Locks and rate limits


async def test_a_lock_is_waited_for_with_few_calls(double: HetznerDouble, provider: HetznerProvider) -> None:
    machine = await provider.create(spec())
    number = int(machine.id)
    double.state.locked.add(number)
    deleting = asyncio.create_task(provider.destroy("ada"))
    await asyncio.wait({deleting}, timeout=0.6)
    assert 2 <= double.called(f"DELETE /servers/{number}") <= 8
    double.state.locked.clear()
    assert await deleting is True


async def test_a_server_that_is_locked_after_its_creation_is_deleted(double: HetznerDouble, provider: HetznerProvider) -> None:
    double.state.locked_longer_s = 0.2
    machine = await provider.create(spec())
    assert await provider.destroy("ada") is True
    assert double.called(f"DELETE /servers/{machine.id}") > 1


async def test_permanent_rate_limiting_ends_with_an_error(double: HetznerDouble) -> None:
    provider = double.provider(rate_limited_s=0.5)
    try:
        arm(double, "GET", "/servers", status=429, times=10**6)  # although its headers say that calls are left
        async with asyncio.timeout(patient(20)):
            with pytest.raises(ProviderError, match=r"cannot list machines: the rate limit .* no call within") as caught:
                await provider.list_machines()
        assert caught.value.code == "RATE_LIMITED"
        assert double.called("GET /servers") <= 2
    finally:
        await provider.close()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (429, "<html>Too Many Requests</html>"),
        (429, '{"error": "slow down"}'),
        (429, "[]"),
        (503, "<html>"),
        (502, '{"error": "bad gateway"}'),
        (502, '{"error": {"status": 502}}'),
        (504, "null"),
    ],
)
async def test_responses_of_an_intermediary_are_recognized_by_status(double: HetznerDouble, status: int, text: str) -> None:
    double.api.limit = 3600 * 50  # the limit regains fifty calls each second
    provider = double.provider()
    try:
        await provider.list_machines()
        arm(double, "GET", "/servers", status=status, text=text, times=2)
        assert await provider.list_machines() == []
        assert double.called("GET /servers") == 4
    finally:
        await provider.close()


async def test_a_response_that_is_not_from_hetzners_api_is_reported(double: HetznerDouble, provider: HetznerProvider) -> None:
    arm(double, "GET", "/servers", status=404, text="<html>nginx</html>")
    with pytest.raises(ProviderError, match=r"HTTP 404 Not Found\) isn't from Hetzner's API; check HCLOUD_ENDPOINT"):
        await provider.list_machines()


# Tokens


@pytest.mark.parametrize("error", [(401, "token_readonly"), (403, "forbidden")])
async def test_probe_rejects_a_read_only_token(double: HetznerDouble, error: tuple[int, str]) -> None:
    double.api.readonly_error = error
    provider = double.provider(token=double.api.readonly_token)
    try:
        with pytest.raises(Unavailable, match="Read & Write"):
            await provider.probe()
    finally:
        await provider.close()
    assert double.state.ssh_keys == {}


def test_an_incompatible_hcloud_version_is_rejected() -> None:
    client = hcloud.Client("token")
    disable_retries(client)
    assert client._client._retry_max_retries == 0
    client._client._session.close()
    del client._client._retry_max_retries
    with pytest.raises(ProviderError, match=r"install hcloud 2\.27"):
        disable_retries(client)


# Images and addresses


@pytest.mark.parametrize("image", [None, "debian-12", "114690389"])
async def test_an_arm_type_gets_an_arm_image(double: HetznerDouble, provider: HetznerProvider, image: str | None) -> None:
    await provider.create(spec(server_type="cax11", image=image))
    (server,) = double.state.servers.values()
    assert server["image"]["architecture"] == "arm"
    assert server["image"]["name"] == ("debian-12" if image else "ubuntu-24.04")


async def test_an_image_that_arm_lacks_is_rejected_before_anything_is_created(
    double: HetznerDouble, provider: HetznerProvider
) -> None:
    with pytest.raises(UsageError, match="no image 'windows-11' for arm, which server type 'cax11' needs"):
        await provider.create(spec(server_type="cax11", image="windows-11"))
    assert double.called("POST /servers") == 0


async def test_an_image_without_a_name_is_shown_by_its_number(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec())
    (server,) = double.state.servers.values()
    server["image"] = {**server["image"], "name": None, "id": 4711, "type": "snapshot"}
    (machine,) = await provider.list_machines()
    assert machine.labels["image"] == "4711"


async def test_an_address_is_deleted_with_a_server_that_another_client_deleted() -> None:
    async with hetzner_double(State(auto_delete=False)) as double:
        provider = double.provider()
        try:
            for name in ("one", "two"):
                await provider.create(spec(name))
        finally:
            await provider.close()
        for server in tuple(double.state.servers.values()):
            double.state.lose(server)
        assert double.state.primary_ips == {}


async def test_labelling_an_address_keeps_its_other_labels() -> None:
    async with hetzner_double(State(auto_delete=False, initializing_s=0.1)) as double:
        provider = double.provider()
        creating = asyncio.create_task(provider.create(spec()))
        try:
            while not double.state.primary_ips:
                await asyncio.sleep(0)
            (address,) = double.state.primary_ips.values()
            address["labels"] = {"team": "blue"}
            await creating
            assert address["labels"] == {"team": "blue", labels.CREATED_BY: labels.OURS, labels.OWNER: "tests"}
        finally:
            await provider.close()


async def test_extend_keeps_labels_that_were_set_meanwhile(double: HetznerDouble) -> None:
    async def run_on(machine: Machine, script: str) -> None:
        (server,) = double.state.servers.values()
        server["labels"] = {**server["labels"], "team": "blue"}

    provider = double.provider(run_on=run_on)
    try:
        await provider.create(spec())
        later = datetime.now(UTC) + timedelta(hours=5)
        machine = await provider.extend("ada", later)
        assert (machine.labels["team"], machine.expires_at) == ("blue", later)
        (server,) = double.state.servers.values()
        assert server["labels"]["team"] == "blue"
    finally:
        await provider.close()


async def test_a_machine_that_is_deleted_while_it_is_extended_is_not_found(double: HetznerDouble) -> None:
    async def run_on(machine: Machine, script: str) -> None:
        double.state.lose(double.state.servers[int(machine.id)])

    provider = double.provider(run_on=run_on)
    try:
        await provider.create(spec())
        with pytest.raises(MachineNotFound, match="ada was deleted"):
            await provider.extend("ada", datetime.now(UTC) + timedelta(hours=5))
    finally:
        await provider.close()


# Paid hours


@pytest.fixture
async def thrifty(double: HetznerDouble) -> AsyncIterator[HetznerProvider]:
    provider = double.provider(reuse=True, delete_s=patient(0.2), boot_s=patient(1.0))
    yield provider
    await provider.close()


@pytest.mark.parametrize("rebuild_starts", [True, False])
async def test_a_rebuilt_server_runs_whether_or_not_the_rebuild_powers_it_on(
    double: HetznerDouble, thrifty: HetznerProvider, rebuild_starts: bool
) -> None:
    double.state.rebuild_starts = rebuild_starts
    first = await thrifty.create(spec("first", labels={"repository": "7"}))
    await thrifty.destroy("first")
    second = await thrifty.create(spec("second", labels={"repository": "7"}))
    assert (second.id, second.status) == (first.id, "running")


async def test_a_server_that_is_slow_to_power_off_is_deleted(double: HetznerDouble, thrifty: HetznerProvider) -> None:
    await thrifty.create(spec("first", labels={"repository": "7"}))
    double.state.stopping_s = patient(1.0)
    async with asyncio.timeout(patient(20)):
        assert await thrifty.destroy("first") is True
    assert double.state.servers == {}


async def test_a_slow_rebuild_is_replaced_by_a_new_server(double: HetznerDouble, thrifty: HetznerProvider) -> None:
    first = await thrifty.create(spec("first", labels={"repository": "7"}))
    await thrifty.destroy("first")
    double.state.rebuilding_s = patient(2.0)
    async with asyncio.timeout(patient(30)):
        second = await thrifty.create(spec("second", labels={"repository": "7"}))
    assert [str(number) for number in double.state.servers] == [second.id] != [first.id]


@pytest.mark.parametrize("own", [True, False], ids=["of this process", "of another process"])
async def test_a_pooled_server_is_deleted_when_the_limit_is_reached(double: HetznerDouble, own: bool) -> None:
    double.state.server_limit = 1
    saver, other = double.provider(reuse=True), double.provider()
    try:
        first = await saver.create(spec("first", labels={"repository": "7"}))
        await saver.destroy("first")
        assert [str(number) for number in double.state.servers] == [first.id]
        second = await (saver if own else other).create(spec("second", labels={"repository": "8"}))
        assert [str(number) for number in double.state.servers] == [second.id]
        with pytest.raises(ProviderError, match="server limit exceeded"):  # a machine in use isn't a spare one
            await other.create(spec("third"))
        assert [str(number) for number in double.state.servers] == [second.id]
        await saver.destroy("second")
        assert (await saver.create(spec("fourth", labels={"repository": "7"}))).status == "running"
    finally:
        await saver.close()
        await other.close()
