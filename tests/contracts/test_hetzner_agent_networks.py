"""No agent starts on a server whose network can't be limited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from gibil_bot.errors import ConfigurationError, GibilError
from gibil_bot.model import Machine, Result
from gibil_bot.ports import Shell
from gibil_bot.providers.hetzner.provider import HetznerProvider
from gibil_bot.ssh.remote_forwarding import KeptForward
from tests.doubles.hetzner import HetznerDouble
from tests.doubles.hetzner_kit import arm, spec


@dataclass
class Computer:
    """What a server does: its answer to scripts, and the ports that are forwarded to it."""

    stderr: bytes = b""
    forwarded: list[int] = field(default_factory=list)
    port = 40000

    @property
    def lost(self) -> asyncio.Future[GibilError]:
        """The forward is never lost."""
        return asyncio.get_running_loop().create_future()

    async def run(self, script: str, **_more: Any) -> Result:
        return Result(exit_status=1 if self.stderr else 0, stdout=b"", stderr=self.stderr)

    @contextlib.asynccontextmanager
    async def forward(self, _machine: Machine, port: int) -> AsyncIterator[KeptForward]:
        self.forwarded.append(port)
        try:
            yield cast(KeptForward, self)
        finally:
            self.forwarded.remove(port)


@pytest.fixture
def computer() -> Computer:
    return Computer()


@pytest.fixture
async def limiting(double: HetznerDouble, computer: Computer) -> AsyncIterator[HetznerProvider]:
    provider = double.provider(forward=computer.forward)
    yield provider
    await provider.close()
    assert computer.forwarded == []


async def test_a_server_is_behind_the_firewall_before_an_agent_starts(
    double: HetznerDouble, limiting: HetznerProvider, computer: Computer
) -> None:
    double.state.firewalls_s = 0.05
    await limiting.create(spec("ada"))
    shell = cast(Shell, computer)
    limited = await limiting.restrict_egress("ada", ("pypi.org:443",), shell)
    assert limited.environment["https_proxy"] == "http://127.0.0.1:40000"
    (server,) = double.state.servers.values()
    assert [each["status"] for each in server["public_net"]["firewalls"]] == ["applied", "applied"]
    await limiting.restrict_egress("ada", (), shell)
    assert len(computer.forwarded) == 1
    await limiting.destroy("ada")
    assert computer.forwarded == []


@pytest.mark.parametrize("failure", ["firewall", "script", "list"])
async def test_an_error_is_raised_if_any_part_fails(
    double: HetznerDouble, limiting: HetznerProvider, computer: Computer, failure: str
) -> None:
    await limiting.create(spec("ada"))
    if failure == "firewall":
        arm(double, "POST", r"/firewalls/\d+/actions/apply_to_resources", status=403, code="resource_limit_exceeded")
    if failure == "script":
        computer.stderr = b"gibil: the kernel rejects the rules\n"
    with pytest.raises(ConfigurationError if failure == "list" else GibilError):
        await limiting.restrict_egress("ada", ("a b",) if failure == "list" else (), cast(Shell, computer))


async def test_an_agents_server_needs_a_key_to_log_in(provider: HetznerProvider, computer: Computer) -> None:
    await provider.create(spec("ada"))
    with pytest.raises(GibilError, match="no key to log in"):
        await provider.restrict_egress("ada", (), cast(Shell, computer))
