"""The networks of cloud servers on which agents work: one server doesn't delay another, and a lost way out is opened again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

from gibil_bot.errors import GibilError, MachineLost
from gibil_bot.model import Endpoint, Machine, Result
from gibil_bot.ports import Shell
from gibil_bot.providers.hetzner.agent_network import AgentNetworks
from gibil_bot.providers.hetzner.api import HetznerApi
from gibil_bot.ssh.remote_forwarding import KeptForward
from tests.doubles.patience import patient


class Api:
    """Hetzner, where every server has the firewall of agents already."""

    async def call(self, method: str, path: str, doing: str, **more: Any) -> Any:
        if path == "/firewalls":
            return {"firewalls": [], "firewall": {"id": 7, **more.get("body", {})}}
        if path.startswith("/servers/"):
            return {"server": {"public_net": {"firewalls": [{"id": 7, "status": "applied"}]}}}
        return {}


class Kept:
    def __init__(self, port: int) -> None:
        self.port = port
        self.lost: asyncio.Future[GibilError] = asyncio.get_running_loop().create_future()


class Waiting:
    """A machine whose scripts end when it wants."""

    def __init__(self) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()

    async def run(self, script: str, **_: Any) -> Result:
        self.begun.set()
        await self.may_end.wait()
        return Result(exit_status=0, stdout=b"", stderr=b"")


def machine(name: str) -> Machine:
    now = datetime.now(UTC)
    return Machine(
        provider="hetzner", id="1", name=name, endpoint=Endpoint(host="127.0.0.1", host_key=""), created_at=now, expires_at=now
    )


async def test_a_machine_whose_scripts_do_not_end_delays_no_other() -> None:
    opened: list[Kept] = []

    @asynccontextmanager
    async def forward(machine: Machine, port: int) -> AsyncIterator[KeptForward]:
        opened.append(Kept(20_000 + len(opened)))
        yield opened[-1]

    networks = AgentNetworks(cast(HetznerApi, Api()), forward, 0.01)
    hostile, other = Waiting(), Waiting()
    other.may_end.set()
    held = asyncio.create_task(networks.limit(machine("a"), (), cast(Shell, hostile)))
    try:
        async with asyncio.timeout(patient(5)):
            await hostile.begun.wait()
            await networks.limit(machine("b"), (), cast(Shell, other))
            hostile.may_end.set()
            await held
            assert await networks.limit(machine("a"), (), cast(Shell, other)) == held.result()
            opened[0].lost.set_result(MachineLost("gone"))
            assert await networks.limit(machine("a"), (), cast(Shell, other)) != held.result(), "a way that was lost is used"
    finally:
        held.cancel()
        await networks.close()
