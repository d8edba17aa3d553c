"""From `create` to `destroy` on a cloud server that boots: Debian's cloud-init and OpenSSH, and gibil's client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncssh
import pytest
from msgspec.structs import replace

from gibil_bot.errors import AnotherHost, MachineLost, SSHError
from gibil_bot.model import Chunk, Endpoint, Exit, Job, Machine
from gibil_bot.ports import Shell
from gibil_bot.providers.hetzner.labels import CREATED_BY, OURS
from gibil_bot.providers.hetzner.project import KEY, new_pair
from gibil_bot.providers.keyring import ProjectKeyring
from gibil_bot.providers.lifecycle import MachineFactory, script_runner
from gibil_bot.ssh import client
from gibil_bot.ssh.host_keys import public_line
from tests.doubles.hetzner import HetznerDouble, hetzner_double
from tests.doubles.hetzner_guests import Image, LocalGuests, local_guests
from tests.doubles.hetzner_state import State
from tests.doubles.machines import open_connection, shared_folder
from tests.doubles.patience import patient
from tests.doubles.tools import needs

USER_DATA = "http://169.254.169.254/hetzner/v1/userdata"


@dataclass
class Cloud:
    factory: MachineFactory
    guests: LocalGuests
    double: HetznerDouble

    async def expect_closed_metadata(self, name: str, shell: Shell) -> None:
        """Check that the metadata address, which was open for cloud-init, is closed to a task."""
        read = tuple(self.guests.metadata_read(name))
        assert USER_DATA.partition("169.254.169.254")[2] in read
        refused = await shell.run(f"curl -sS -m 5 {USER_DATA}")
        assert refused.exit_status == 7, "curl(1): failed to connect to host"
        assert tuple(self.guests.metadata_read(name)) == read

    @contextlib.asynccontextmanager
    async def machine(self, name: str) -> AsyncIterator[tuple[Machine, Shell]]:
        machine, shell = await self.factory.create(name, "tests", 600, labels={"run": "1", "repo": "ada/engine"})
        try:
            yield machine, shell
        finally:
            await shell.close()


@pytest.fixture
async def cloud(hetzner_image: Image, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cloud]:
    async with (
        local_guests(tmp_path / "data", shared_folder(tmp_path_factory), hetzner_image) as guests,
        hetzner_double(State(guests=guests)) as double,
    ):
        keyring = ProjectKeyring(tmp_path / "keys", double.token)
        provider = double.provider(reuse=True, ssh_port=guests.port, run_on=script_runner(keyring, client.connect))
        factory = MachineFactory(provider=provider, keyring=keyring, connect_shell=client.connect)
        try:
            yield Cloud(factory, guests, double)
        finally:
            await factory.close()


@needs("jq", "curl", "tmux")  # missing packages are installed at boot, and there is no network
async def test_a_server_boots_with_gibils_keys_and_accepts_no_others(cloud: Cloud, tmp_path: Path) -> None:
    project_key = new_pair()
    number = cloud.double.state.new_id()
    cloud.double.state.ssh_keys[number] = {
        "id": number,
        "name": KEY,
        "labels": {CREATED_BY: OURS},
        "public_key": project_key[1],
        "fingerprint": "b7:2f:30:a0:2f:6c:58:6c:21:04:58:61:ba:06:3b:2f",
        "created": cloud.double.state.now(),
    }
    async with cloud.machine("closed") as (machine, shell):
        # The first command waits for the base packages, but not for the rest of the boot.
        first = await shell.run("git --version && jq --version && hostname")
        assert first.exit_status == 0, first.stderr
        assert first.stdout.endswith(b"closed\n")
        # cloud-init has read the user-data at the metadata address; for the first command it is already closed.
        await cloud.expect_closed_metadata("closed", shell)
        await cloud.guests.booted("closed")
        assert "status: done" in str((await cloud.guests.run("closed", "cloud-init status --long")).stdout)
        assert (await shell.run("test -e /etc/ssh/sshrc")).exit_status == 1

        (user_data,) = cloud.double.state.user_data.values()
        await shell.put("/run/user-data", user_data.encode())
        valid = await cloud.guests.run("closed", "cloud-init schema --config-file /run/user-data; rm /run/user-data")
        assert valid.exit_status == 0, valid.stderr

        # The private host key of the user-data is nowhere else on the machine.
        keys = cloud.factory.keyring
        find = "cat >/run/line; grep -rlF -f /run/line /etc /var /run /root /usr/local --exclude=line | sort"
        for private, places in (
            (keys.first_host_key("closed"), []),
            (keys.host_key("closed"), ["/etc/ssh/ssh_host_ed25519_key"]),
        ):
            found = await shell.run(find, stdin="\n".join(private.splitlines()[2:-2]).encode())
            assert found.stdout.decode().splitlines() == places
        assert machine.endpoint.host_key == public_line(keys.host_key("closed"))
        with_the_first = replace(machine.endpoint, host_key=public_line(keys.first_host_key("closed")))
        with pytest.raises(AnotherHost):
            await client.connect(with_the_first, keys.client_key("closed"))
        laptop = MachineFactory(cloud.factory.provider, ProjectKeyring(tmp_path / "laptop", cloud.double.token), client.connect)
        (seen,) = await laptop.list()
        elsewhere_shell = await laptop.open(seen)
        assert (await elsewhere_shell.run("hostname")).stdout == b"closed\n"
        await elsewhere_shell.close()

        # Hetzner writes the project's keys to /root/.ssh, where sshd doesn't read them.
        assert project_key[1].split()[1].encode() in (await shell.run("cat /root/.ssh/authorized_keys")).stdout
        with pytest.raises(SSHError, match="rejects the key"):
            await client.connect(machine.endpoint, project_key[0])
        stranger, other_host = new_pair(), new_pair()
        with pytest.raises(SSHError, match="rejects the key"):
            await client.connect(machine.endpoint, stranger[0])
        elsewhere = Endpoint(host_key=other_host[1], host=machine.endpoint.host, port=machine.endpoint.port)
        with pytest.raises(SSHError, match="another host"):
            await client.connect(elsewhere, stranger[0])
        key = asyncssh.import_private_key(cloud.factory.keyring.client_key("closed"))
        with pytest.raises(asyncssh.PermissionDenied):
            await open_connection(machine, key, username="nobody")
        with pytest.raises(asyncssh.PermissionDenied):
            await open_connection(machine, key, client_keys=[], password="root")

        # Root can open the address again, but finds only the key that is no longer accepted.
        found = await shell.run(f"ip route delete blackhole 169.254.169.254 && curl -sS -m 5 {USER_DATA}")
        assert public_line(keys.first_host_key("closed")) in found.stdout.decode()
        assert machine.endpoint.host_key not in found.stdout.decode()

    # After a power cycle it boots from the same address, closes it again, and shows its permanent key from the start.
    (server,) = cloud.double.state.servers.values()
    await cloud.double.state.stop(server)
    await cloud.double.state.start(server, cloud.double.state.action("start_server"))
    await cloud.guests.booted("closed")
    shell = await cloud.factory.open(machine)
    await cloud.expect_closed_metadata("closed", shell)
    await shell.close()


async def test_work_is_done_and_the_machine_powers_off_at_its_expiry(cloud: Cloud) -> None:
    provider = cloud.factory.provider
    async with cloud.machine("worker") as (machine, shell):
        assert (await shell.run("mkdir /root/project")).exit_status == 0
        await shell.put("/root/project/input", b"6 7\n")
        script = 'read a b <input\necho "$((a * b)) $WORD"\nexit 3'
        job = Job(id="t1", script=script, env={"WORD": "so"}, working_directory="/root/project")
        await shell.start(job)
        output = [event async for event in shell.attach("t1")]
        assert b"".join(event.data for event in output if isinstance(event, Chunk)) == b"42 so\n"
        assert output[-1] == Exit(3)

        later = datetime.now(UTC) + timedelta(hours=3)
        assert (await provider.extend("worker", later)).expires_at == later
        assert 0 <= int((await shell.run("cat /etc/gibil/expires-at")).stdout) - later.timestamp() < 1

        await cloud.guests.booted("worker")  # the guard is running by now
        await provider.extend("worker", datetime.now(UTC) - timedelta(seconds=1))
        async with asyncio.timeout(patient(20)):  # it checks every two seconds
            while (found := await provider.get("worker")) is not None and found.status != "off":
                await asyncio.sleep(0.05)
    assert found is not None, "switched off, it still exists and costs"
    with pytest.raises(MachineLost):
        await client.connect(machine.endpoint, cloud.factory.keyring.client_key("worker"), timeout_s=0.5)
    assert await provider.sweep("tests") == ["worker"]
    assert cloud.double.state.servers == {}


@needs("jq", "curl")
async def test_a_server_that_vanishes_during_its_work_is_lost_and_gives_no_result(cloud: Cloud) -> None:
    """The server here is a reused one: it got a new host key, and closes the address, too."""
    async with cloud.machine("before") as (before, _shell):
        await cloud.factory.destroy("before")
    async with cloud.machine("ghost") as (machine, shell):
        assert machine.id == before.id
        assert machine.endpoint.host_key == public_line(cloud.factory.keyring.host_key("ghost")) != before.endpoint.host_key
        await cloud.expect_closed_metadata("ghost", shell)
        await shell.start(Job(id="t1", script="echo up; sleep 600", working_directory="/root"))
        (server,) = cloud.double.state.servers.values()
        with pytest.raises(MachineLost):
            await _follow(shell, "t1", lambda: cloud.double.state.delete_server(server))
        with pytest.raises(MachineLost):
            await shell.run("true")
    while cloud.double.state.servers:
        await asyncio.sleep(0.01)
    assert await cloud.factory.destroy("ghost") is False


async def _follow(shell: Shell, job: str, at_first_output: Callable[[], object]) -> None:
    async with asyncio.timeout(patient(30)):
        async for event in shell.attach(job):
            assert isinstance(event, Chunk)
            if event.data:
                at_first_output()
