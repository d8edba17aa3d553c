"""The Hetzner provider against an API double whose servers never boot: its requests, their number, and its results."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import hcloud
import pytest
from msgspec.structs import replace

from gibil_bot.errors import MachineNotFound, NameTaken, ProviderError, Unavailable
from gibil_bot.model import Machine
from gibil_bot.providers.hetzner import labels
from gibil_bot.providers.hetzner.project import FIREWALL, KEY, new_pair
from gibil_bot.providers.hetzner.provider import HetznerProvider
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_kit import CLIENT, HOST, spec
from tests.doubles.hetzner_routes import Fault
from tests.doubles.hetzner_state import NoGuests, State
from tests.doubles.patience import patient


async def test_a_server_is_created_as_requested(double: HetznerDouble, provider: HetznerProvider) -> None:
    before = datetime.now(UTC)
    machine = await provider.create(spec(labels={"run": "1", "repo": "ada/engine"}, image="debian-12"))
    (server,) = double.state.servers.values()
    assert (machine.provider, machine.name, machine.status) == ("hetzner", "ada", "running")
    assert (machine.endpoint.host, machine.endpoint.port) == (server["public_net"]["ipv4"]["ip"], 22)
    assert machine.endpoint.host_key == HOST[1]
    assert dict(machine.labels) == {
        **{"run": "1", "repo": "ada/engine"},
        **{"server-type": "cx23", "location": "nbg1", "image": "debian-12"},
    }
    assert before <= machine.created_at <= datetime.now(UTC)
    assert abs((machine.expires_at - machine.created_at).total_seconds() - 600) < 2
    (user_data,) = double.state.user_data.values()
    assert user_data.startswith("#cloud-config\n")
    assert CLIENT[1] in user_data


async def test_another_process_with_the_token_sees_the_same_machines(double: HetznerDouble, provider: HetznerProvider) -> None:
    machine = await provider.create(spec(labels={"run": "1"}))
    other = double.provider()
    try:
        assert await other.get("ada") == machine
        assert await other.list_machines("tests") == [machine]
        assert await other.list_machines("others") == []
        assert await other.destroy("ada") is True
    finally:
        await other.close()
    assert await provider.get("ada") is None


async def test_another_machine_costs_one_call_and_one_list_call_for_all(
    double: HetznerDouble, provider: HetznerProvider
) -> None:
    await provider.create(spec("first"))
    await provider.destroy("first")
    double.api.calls.clear()
    double.state.starting_s = 0.1
    await asyncio.gather(*(provider.create(spec(f"m{number}")) for number in range(20)))
    lists = double.called("GET /servers")
    assert double.called("POST /servers") == 20
    assert len(double.api.calls) == 20 + lists
    assert lists <= 20, "one list call per round, not one per machine"
    double.api.calls.clear()
    double.state.starting_s = 0.0
    await provider.create(spec("last"))
    assert double.api.calls == ["POST /servers", "GET /servers"]


async def test_deletion_is_confirmed_and_takes_three_calls(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec("first"))
    await provider.destroy("first")
    await provider.create(spec())
    double.api.calls.clear()
    (number,) = double.state.servers
    assert await provider.destroy("ada") is True
    assert double.api.calls == ["GET /servers", f"DELETE /servers/{number}", f"GET /servers/{number}"]
    double.state.deleting_s = 0.1
    await provider.create(spec())
    assert await provider.destroy("ada") is True
    assert double.state.servers == {}


async def test_more_machines_than_one_page_are_listed(double: HetznerDouble, provider: HetznerProvider) -> None:
    made = await asyncio.gather(*(provider.create(spec(f"m{number}")) for number in range(60)))
    listed = await provider.list_machines("tests")
    assert {machine.name for machine in listed} == {machine.name for machine in made}
    assert listed == sorted(listed, key=lambda machine: machine.created_at)


async def test_the_project_gets_one_firewall_and_one_unusable_key(double: HetznerDouble) -> None:
    providers = [double.provider() for _ in range(3)]
    try:
        await asyncio.gather(*(each.create(spec(f"m{number}")) for number, each in enumerate(providers)))
    finally:
        for each in providers:
            await each.close()
    (firewall,) = double.state.firewalls.values()
    (key,) = double.state.ssh_keys.values()
    assert (firewall["name"], key["name"]) == (FIREWALL, KEY)
    (rule,) = firewall["rules"]
    assert (rule["direction"], rule["protocol"], rule["port"]) == ("in", "tcp", "22")
    for server in double.state.servers.values():
        assert [each["id"] for each in server["public_net"]["firewalls"]] == [firewall["id"]]
        assert server["public_net"]["ipv6"] is None
    assert set(map(tuple, double.state.keys_of.values())) == {(key["public_key"],)}


async def test_changed_firewall_rules_are_restored(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec("one"))
    (firewall,) = double.state.firewalls.values()
    firewall["rules"].append({"direction": "in", "protocol": "tcp", "port": "1-65535", "source_ips": ["0.0.0.0/0"]})
    other = double.provider()
    try:
        await other.create(spec("two"))
    finally:
        await other.close()
    assert [rule["port"] for rule in firewall["rules"]] == ["22"]


@pytest.mark.parametrize("status", [404, 422])
@pytest.mark.parametrize("what", ["firewalls", "ssh_keys"])
async def test_a_deleted_firewall_or_key_is_created_again_by_a_running_process(
    double: HetznerDouble, provider: HetznerProvider, what: str, status: int
) -> None:
    """Neither response names a field, as for every missing object."""
    await provider.create(spec("one"))
    await provider.destroy("one")
    double.state.absent_status = status
    getattr(double.state, what).clear()
    await asyncio.gather(*(provider.create(spec(f"m{number}")) for number in range(3)))
    assert len(getattr(double.state, what)) == 1
    assert double.called(f"POST /{what}") == 2


async def test_creating_an_existing_machine_returns_it(provider: HetznerProvider) -> None:
    machines = await asyncio.gather(*(provider.create(spec()) for _ in range(4)))
    assert len({machine.id for machine in machines}) == 1
    assert await provider.list_machines() == machines[:1]


@pytest.mark.parametrize("other", [{"authorized_key": new_pair()[1]}, {"owner": "others"}, {"host_key": new_pair()[0]}])
async def test_a_name_with_another_key_or_owner_is_rejected(provider: HetznerProvider, other: dict[str, str]) -> None:
    await provider.create(spec())
    with pytest.raises(NameTaken, match="ada"):
        await provider.create(spec(**other))


async def test_servers_that_gibil_did_not_create_are_never_changed(double: HetznerDouble, provider: HetznerProvider) -> None:
    body = {"name": "shop", "server_type": "cx23", "image": "debian-12", "location": "nbg1"}
    await double.state.create_server(body)
    assert await provider.get("shop") is None
    assert await provider.list_machines() == []
    with pytest.raises(NameTaken, match="shop"):
        await provider.create(spec("shop"))
    with pytest.raises(NameTaken, match="not created by gibil-bot"):
        await provider.destroy("shop")
    with pytest.raises(MachineNotFound):
        await provider.extend("shop", datetime.now(UTC) + timedelta(hours=1))
    assert await provider.sweep("tests") == []
    assert [server["name"] for server in double.state.servers.values()] == ["shop"]


async def test_extend_updates_the_machine_before_the_label(double: HetznerDouble) -> None:
    calls: list[tuple[str, str]] = []

    async def run_on(machine: Machine, script: str) -> None:
        calls.append((machine.name, script))

    provider = double.provider(run_on=run_on)
    try:
        await provider.create(spec(labels={"run": "1"}))
        later = datetime.now(UTC) + timedelta(hours=5)
        machine = await provider.extend("ada", later)
        assert machine.expires_at == later
        assert machine.labels["run"] == "1"
        assert await provider.get("ada") == machine
        ((name, script),) = calls
        assert name == "ada"
        assert str(int(later.timestamp()) + 1) in script
    finally:
        await provider.close()


async def test_a_machine_that_rejects_the_login_is_not_extended(double: HetznerDouble, provider: HetznerProvider) -> None:
    machine = await provider.create(spec())
    with pytest.raises(ProviderError, match="powers itself off"):
        await provider.extend("ada", machine.expires_at + timedelta(hours=1))
    assert await provider.get("ada") == machine
    sooner = machine.expires_at - timedelta(seconds=60)
    assert (await provider.extend("ada", sooner)).expires_at == sooner


async def test_sweep_destroys_expired_machines_of_the_owner(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec("fresh"))
    await provider.create(spec("old", ttl_s=-1))
    await provider.create(spec("theirs", ttl_s=-1, owner="others"))  # whose process may never run again
    assert await provider.sweep("tests") == ["old", "theirs"]
    assert [server["name"] for server in double.state.servers.values()] == ["fresh"]


@pytest.mark.parametrize("auto_delete", [True, False])
async def test_addresses_are_deleted_with_their_server(auto_delete: bool) -> None:
    async with hetzner_double(State(auto_delete=auto_delete)) as double:
        provider = double.provider()
        try:
            for _ in range(2):
                await provider.create(spec())
                assert len(double.state.primary_ips) == 1
                await provider.destroy("ada")
                assert double.state.primary_ips == {}
        finally:
            await provider.close()


async def test_a_leftover_address_is_deleted_by_sweep(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec())
    (address,) = double.state.primary_ips.values()
    address["labels"] = {labels.CREATED_BY: labels.OURS, labels.OWNER: "tests"}
    address["auto_delete"] = False
    (server,) = double.state.servers.values()
    double.state.delete_server(server)  # by a process that was killed right afterwards
    while double.state.servers:
        await asyncio.sleep(0.01)
    assert await provider.sweep("tests") == [address["name"]]
    assert double.state.primary_ips == {}


async def test_the_cost_is_computed_from_the_apis_price_list(provider: HetznerProvider) -> None:
    machine = await provider.create(spec(size="medium"))
    price = await provider.price_of(machine)
    assert price is not None
    assert (price.hourly, price.currency) == (Decimal("0.0112"), "EUR")
    assert await provider.cost_so_far(machine) == Decimal("0.0112")


async def test_probe_checks_read_and_write_access_and_creates_nothing(double: HetznerDouble, provider: HetznerProvider) -> None:
    capabilities = await provider.probe()
    assert (capabilities.tier, capabilities.memory_limit, capabilities.forged_in_s) == ("vm", "hardware", 0.0)
    assert [call for call in double.api.calls if not call.startswith("GET ")] == ["POST /ssh_keys"]  # which is rejected
    assert double.state.ssh_keys == {}
    assert double.state.servers == {}


async def test_probe_reports_the_problem_and_a_remedy(double: HetznerDouble) -> None:
    provider = double.provider(token="x" * 64)
    try:
        with pytest.raises(Unavailable, match="HCLOUD_TOKEN") as caught:
            await provider.probe()
    finally:
        await provider.close()
    assert "GIBIL_PROVIDER=local" in caught.value.remedies[0]


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 60])
async def test_destroy_removes_everything_that_a_cancelled_create_left(double: HetznerDouble, turns: int) -> None:
    provider = double.provider()
    try:
        task = asyncio.ensure_future(provider.create(spec()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await provider.destroy("ada")
        assert double.state.servers == {}
    finally:
        await provider.close()
    assert double.state.servers == {}


# The double's API as two independent clients see it.


async def test_hcloud_python_drives_the_double(double: HetznerDouble) -> None:
    client = hcloud.Client(double.token, api_endpoint=double.endpoint, poll_interval=0.02, timeout=5)

    def drive() -> None:
        server_type = client.server_types.get_by_name("cx23")
        image = client.images.get_by_name_and_architecture("debian-12", "x86")
        assert server_type is not None
        assert image is not None
        created = client.servers.create(
            name="by-hcloud",
            server_type=server_type,
            image=image,
            location=client.locations.get_by_name("hel1"),
        )
        for action in (created.action, *created.next_actions):
            action.wait_until_finished()
        assert created.root_password
        server = client.servers.get_by_name("by-hcloud")
        assert server is not None
        assert server.status == "running"
        assert server.public_net is not None
        assert server.public_net.ipv4 is not None
        assert server.public_net.ipv4.ip.startswith("203.0.113.")
        assert server.server_type is not None
        assert server.image is not None
        with pytest.raises(hcloud.APIException, match="uniqueness_error"):
            client.servers.create(name="by-hcloud", server_type=server.server_type, image=server.image)
        client.servers.power_off(server).wait_until_finished()
        client.servers.rebuild(server, image=server.image, user_data="#cloud-config\n").action.wait_until_finished()
        client.servers.power_on(server).wait_until_finished()
        client.servers.delete(server).wait_until_finished()
        assert client.servers.get_all() == []

    await asyncio.to_thread(drive)
    client._client._session.close()
    assert isinstance(double.state.guests, NoGuests)
    assert double.state.guests.user_data["by-hcloud"] == "#cloud-config\n"


async def test_debians_hcloud_command_drives_the_double(double: HetznerDouble, provider: HetznerProvider) -> None:
    program = shutil.which("hcloud")
    if program is None:
        pytest.skip("hcloud is not installed here: apt-get install hcloud-cli")
    env = {"HCLOUD_TOKEN": double.token, "HCLOUD_ENDPOINT": double.endpoint, "HOME": "/nonexistent", "PATH": os.defpath}

    async def run(*arguments: str) -> str:
        done = await asyncio.to_thread(
            subprocess.run, [program, *arguments], env=env, capture_output=True, text=True, timeout=patient(30)
        )
        assert done.returncode == 0, done.stderr
        return str(done.stdout)

    await provider.create(spec())
    assert "ada" in await run("server", "list", "-l", labels.selector("tests"))
    assert "ada" not in await run("server", "list", "-l", labels.selector("others"))
    wanted = ("--type", "cx23", "--image", "debian-12", "--location", "nbg1")
    assert "IPv4: 203.0.113." in await run("server", "create", "--name", "by-hand", *wanted)
    assert "deleted" in await run("server", "delete", "by-hand")
    assert FIREWALL in await run("firewall", "list")
    assert [server["name"] for server in double.state.servers.values()] == ["ada"]


async def test_lists_of_the_double_end_and_have_at_most_fifty_items_per_page(double: HetznerDouble) -> None:
    body = {"server_type": "cx23", "image": "debian-12", "location": "nbg1"}
    for number in range(60):
        await double.state.create_server({"name": f"m{number}", **body})
    client = hcloud.Client(double.token, api_endpoint=double.endpoint, timeout=5)
    first = await asyncio.to_thread(client.request, "GET", "/servers", params={"per_page": 50})
    assert len(first["servers"]) == 50
    assert first["meta"]["pagination"]["next_page"] == 2
    second = await asyncio.to_thread(client.request, "GET", "/servers", params={"per_page": 50, "page": 2})
    assert (len(second["servers"]), second["meta"]["pagination"]["next_page"]) == (10, None)
    client._client._session.close()


# Paid hours


@pytest.fixture
async def thrifty(double: HetznerDouble) -> AsyncIterator[HetznerProvider]:
    provider = double.provider(reuse=True)
    yield provider
    await provider.close()


async def test_a_server_is_reused_within_its_paid_hour_by_the_same_repository(
    double: HetznerDouble, thrifty: HetznerProvider
) -> None:
    first = await thrifty.create(spec("first", labels={"repository": "7", "run": "1"}))
    assert await thrifty.destroy("first") is True
    (server,) = double.state.servers.values()
    assert server["status"] == "off"
    assert await thrifty.get("first") is None
    assert await thrifty.list_machines() == []
    assert await thrifty.destroy("first") is False

    client, host, first_host = new_pair(), new_pair(), new_pair()
    keys = {"authorized_key": client[1], "host_key": host[0], "first_host_key": first_host[0]}
    second = await thrifty.create(spec("second", labels={"repository": "7", "run": "2"}, image="debian-12", **keys))
    assert second.id == first.id
    assert (second.status, second.labels["run"], second.labels["image"]) == ("running", "2", "debian-12")
    assert (second.endpoint.host_key, second.endpoint.first_host_key) == (host[1], first_host[1])
    (user_data,) = double.state.user_data.values()
    assert client[1] in user_data
    assert CLIENT[1] not in user_data
    assert first_host[1] in user_data
    assert host[1] not in user_data
    assert double.called("POST /servers") == 1
    (listed,) = await thrifty.list_machines("tests")
    assert (listed.id, listed.endpoint) == (second.id, replace(second.endpoint, first_host_key=None))


@pytest.mark.parametrize(
    "other",
    [
        {"labels": {"repository": "8"}},
        {"labels": {"repository": "7"}, "untrusted": True},
        {"labels": {"repository": "7"}, "owner": "others"},
        {"labels": {"repository": "7"}, "size": "large"},
        {"labels": {}},
    ],
)
async def test_no_other_repository_or_owner_gets_a_used_server(
    double: HetznerDouble, thrifty: HetznerProvider, other: dict[str, Any]
) -> None:
    first = await thrifty.create(spec("first", labels={"repository": "7"}))
    await thrifty.destroy("first")
    second = await thrifty.create(spec("second", **other))
    assert second.id != first.id


async def test_servers_are_deleted_at_once_without_the_setting(double: HetznerDouble, provider: HetznerProvider) -> None:
    await provider.create(spec("first", labels={"repository": "7"}))
    await provider.destroy("first")
    assert double.state.servers == {}


@pytest.mark.parametrize("minutes", [0, 49, 51, 59, 60, 115])
async def test_only_servers_with_paid_time_are_pooled(double: HetznerDouble, thrifty: HetznerProvider, minutes: int) -> None:
    await thrifty.create(spec("first", labels={"repository": "7"}))
    (server,) = double.state.servers.values()
    created = datetime.now(UTC) - timedelta(minutes=minutes)
    server["created"] = created.isoformat()
    await thrifty.destroy("first")
    kept = minutes % 60 < 47
    assert [each["status"] for each in double.state.servers.values()] == (["off"] if kept else [])
    if kept:
        assert 0 < (labels.expires_at(server["labels"]) or created).timestamp() - datetime.now(UTC).timestamp() <= 57 * 60


async def test_pooled_servers_are_deleted_after_the_paid_hour_and_by_every_sweep(
    double: HetznerDouble, provider: HetznerProvider
) -> None:
    thrifty = double.provider(reuse=True)
    await thrifty.create(spec("first", labels={"repository": "7"}))
    await thrifty.destroy("first")
    (server,) = double.state.servers.values()
    server["labels"][labels.EXPIRES] = labels.time_value(datetime.now(UTC) - timedelta(seconds=1))
    assert await provider.sweep("tests") == [server["name"]]
    await thrifty.create(spec("second", labels={"repository": "7"}))
    await thrifty.destroy("second")
    assert len(double.state.servers) == 1
    await thrifty.close()
    assert double.state.servers == {}


@pytest.mark.parametrize("what", ["rebuild", "poweroff"])
async def test_servers_that_cannot_be_reused_are_deleted(double: HetznerDouble, thrifty: HetznerProvider, what: str) -> None:
    double.api.faults.append(Fault("POST", rf"/servers/\d+/actions/{what}", status=422, code="unsupported_error"))
    first = await thrifty.create(spec("first", labels={"repository": "7"}))
    await thrifty.destroy("first")
    second = await thrifty.create(spec("second", labels={"repository": "7"}))
    assert second.id != first.id
    assert [str(number) for number in double.state.servers] == [second.id]


async def test_a_server_behind_the_firewall_of_agents_is_not_reused(double: HetznerDouble, thrifty: HetznerProvider) -> None:
    await thrifty.create(spec("first", labels={"repository": "7"}))
    (server,) = double.state.servers.values()
    server["public_net"]["firewalls"].append({"id": 7, "status": "applied"})
    await thrifty.destroy("first")
    assert double.state.servers == {}
