"""A command through the SDK, asynchronous and synchronous, against bare asyncssh on the same machine."""

from __future__ import annotations

import asyncio
import time

import gibil

from gibil_bot.config import Settings
from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import connect_by_hand, yard

COMMANDS, WARM_UPS = 60, 5


def sdk(context: Context) -> list[Comparison]:
    return asyncio.run(_sdk(context))


async def _sdk(context: Context) -> list[Comparison]:
    awaited: list[float] = []
    blocking: list[float] = []
    bare: list[float] = []
    data_dir = context.folder("d")
    async with yard(data_dir) as machines:
        settings = Settings(data_dir=data_dir, database_url="")
        async with gibil.create(name="sdk", settings=settings) as m:
            machine = await machines.factory.get("sdk")
            assert machine is not None
            connection = await connect_by_hand(machine.endpoint, machines.factory.keyring.client_key("sdk"))
            with gibil.open("sdk", settings=settings) as same:
                for number in range(COMMANDS + WARM_UPS):
                    begun = time.perf_counter()
                    assert (await m.run("true")).exit_code == 0
                    ended = time.perf_counter()
                    assert same.run("true").exit_code == 0
                    also = time.perf_counter()
                    assert (await connection.run("true")).exit_status == 0
                    last = time.perf_counter()
                    if number >= WARM_UPS:
                        for series, spent in zip(
                            (awaited, blocking, bare), (ended - begun, also - ended, last - also), strict=True
                        ):
                            series.append(spent * 1000)
            connection.close()
            await connection.wait_closed()
    peer = "bare asyncssh, same machine"
    return [
        Comparison(what="`await m.run(…)` of the SDK", peer=peer, unit="ms", ours=awaited, peers=bare, aim=at_most(1.5)),
        Comparison(what="`m.run(…)` of the SDK", peer=peer, unit="ms", ours=blocking, peers=bare, aim=at_most(1.5)),
    ]
