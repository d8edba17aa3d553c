"""A machine that booted with a key that others can read gets its permanent key before it is used.

The machine here is a directory, the key that an sshd has loaded, and the real script.
"""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from gibil_bot.errors import AnotherHost, MachineLost, SSHError
from gibil_bot.model import Endpoint, Result
from gibil_bot.providers.hetzner.project import new_pair
from gibil_bot.providers.keyring import Keyring
from gibil_bot.providers.lifecycle import MachineFactory
from gibil_bot.ssh.host_keys import HOST_KEY, MARK, public_line, replace_script
from tests.doubles.provider import MemoryProvider
from tests.doubles.tools import needs
from tests.unit.test_lifecycle import NoShell


class Host:
    """Shows the key that its sshd read at start or reload. `cut`: where its connection is lost."""

    def __init__(self, folder: Path) -> None:
        self.key = folder / "ssh" / HOST_KEY.rpartition("/")[2]
        self.mark = folder / "gibil" / MARK.rpartition("/")[2]
        self.programs = folder / "bin"
        for path in (self.key.parent, self.programs):
            path.mkdir(parents=True)
        systemctl = self.programs / "systemctl"
        systemctl.write_text(f'#!/bin/sh\ntest "$*" = "reload sshd.service" || exit 5\n: >{folder}/reloaded\n')
        systemctl.chmod(0o755)
        self.reloaded = folder / "reloaded"
        self.memory = ""
        self.looks_until_reload = 1
        self.cut = ""
        self.pinned: list[str] = []
        self.open = 0

    def boot(self, key: str) -> None:
        self.key.write_text(key)
        self.memory = key

    async def connect(self, endpoint: Endpoint, client_key: str) -> HostShell:
        self.pinned.append(endpoint.host_key)
        assert endpoint.first_host_key is None, "one key is accepted at a time"
        if self.reloaded.exists():
            if self.looks_until_reload == 0:
                self.memory = self.key.read_text()
            self.looks_until_reload -= 1
        if public_line(self.memory) != endpoint.host_key:
            raise AnotherHost("another host")
        self.open += 1
        return HostShell(self)


class HostShell(NoShell):
    def __init__(self, host: Host) -> None:
        self.host = host

    async def run(
        self,
        script: str,
        *,
        stdin: bytes | AsyncIterator[bytes] = b"",
        timeout_s: float = 60.0,
        env: Mapping[str, str] | None = None,
        **_: object,
    ) -> Result:
        assert isinstance(stdin, bytes)
        assert b"PRIVATE KEY" in stdin
        assert "PRIVATE" not in script
        if self.host.cut == "before":
            raise MachineLost("cut")
        if self.host.cut == "on the way":
            stdin = stdin[: len(stdin) // 2]
        script = script.replace("/etc/ssh", str(self.host.key.parent)).replace("/etc/gibil", str(self.host.mark.parent))
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", script),
            env={"PATH": f"{self.host.programs}:/usr/bin:/bin"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate(stdin)
        if self.host.cut == "after":
            raise MachineLost("cut")
        assert process.returncode is not None
        return Result(exit_status=process.returncode, stdout=out, stderr=err)

    async def close(self) -> None:
        self.host.open -= 1


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


@pytest.fixture
def provider() -> MemoryProvider:
    provider = MemoryProvider()
    provider.first_host_keys = True
    return provider


@pytest.fixture
def factory(provider: MemoryProvider, host: Host, tmp_path: Path) -> MachineFactory:
    return MachineFactory(provider=provider, keyring=Keyring(tmp_path), connect_shell=host.connect)


@needs("ssh-keygen")
async def test_a_new_machine_has_its_permanent_key_before_it_is_returned(factory: MachineFactory, host: Host) -> None:
    keys = factory.keyring
    host.boot(keys.first_host_key("m"))
    machine, _shell = await factory.create("m", "me", 60)
    first, lasting = public_line(keys.first_host_key("m")), public_line(keys.host_key("m"))
    assert host.pinned == [first, lasting, lasting], "sshd needs a moment to load the key"
    assert host.open == 1, "the connection with the first key is closed"
    assert host.key.read_text() == keys.host_key("m")
    assert stat.S_IMODE(host.key.stat().st_mode) == 0o600
    assert host.key.with_suffix(".pub").read_text().split()[:2] == lasting.split()
    assert sorted(path.name for path in host.key.parent.iterdir()) == [host.key.name, f"{host.key.name}.pub"]
    assert host.mark.exists()
    assert (machine.endpoint.host_key, machine.endpoint.first_host_key) == (lasting, None)


@needs("ssh-keygen")
async def test_later_logins_do_not_accept_the_first_key(factory: MachineFactory, host: Host, provider: MemoryProvider) -> None:
    host.boot(factory.keyring.first_host_key("m"))
    await factory.create("m", "me", 60)
    host.boot(factory.keyring.first_host_key("m"))
    host.reloaded.unlink()
    for machine in (provider.machines["m"], await factory.get("m")):
        assert machine is not None
        with pytest.raises(AnotherHost):
            await factory.open(machine)
    assert {*host.pinned[3:]} == {public_line(factory.keyring.host_key("m"))}


@needs("ssh-keygen")
@pytest.mark.parametrize("taken", [False, True])
async def test_an_interrupted_creation_is_resumed(factory: MachineFactory, host: Host, taken: bool) -> None:
    """After the interruption nothing is undone; the machine stays as it was at that moment."""
    keys = factory.keyring
    host.boot(keys.first_host_key("m"))
    await factory.create("m", "me", 60)
    if not taken:  # the file is replaced, and the signal was never sent
        host.reloaded.unlink()
        host.memory, host.looks_until_reload = keys.first_host_key("m"), 0
    host.pinned.clear()
    machine, _shell = await factory.create("m", "me", 60)
    assert host.pinned == [public_line(keys.first_host_key("m")), public_line(keys.host_key("m"))]
    assert public_line(host.memory) == machine.endpoint.host_key == public_line(keys.host_key("m"))


@pytest.mark.parametrize(("cut", "error"), [("before", MachineLost), ("on the way", SSHError), ("after", MachineLost)])
async def test_a_machine_whose_key_cannot_be_replaced_is_destroyed(
    factory: MachineFactory, host: Host, provider: MemoryProvider, cut: str, error: type[Exception]
) -> None:
    host.boot(factory.keyring.first_host_key("m"))
    host.cut = cut
    with pytest.raises(error):
        await factory.create("m", "me", 60)
    assert provider.machines == {}
    assert host.open == 0
    if cut != "after":
        assert host.key.read_text() == factory.keyring.first_host_key("m"), "an incomplete key isn't installed"


async def test_another_host_gets_no_command(factory: MachineFactory, host: Host, provider: MemoryProvider) -> None:
    host.boot(new_pair()[0])
    with pytest.raises(AnotherHost):
        await factory.create("m", "me", 60)
    assert provider.machines == {}


def test_the_script_contains_no_secret() -> None:
    private, public = new_pair()
    script = replace_script(private)
    assert public in script
    assert not any(line in script for line in private.strip().splitlines()[1:-1])
