"""CPU time of the local-machine daemon while its machines do nothing, as a share of one core."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from gibil_bot.machines.local.home import Home, read_keeper
from gibil_bot.machines.local.tier import own_tier
from tests.benchmarks.comparison import Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import yard

COUNTS = (7, 20)
SETTLE_S = 6.0
"""Longer than the polling intervals grow: what follows the creation of a machine isn't idleness."""
MEASURE_S = 15.0
PROMISED_PERCENT = 1.0


def idle(context: Context) -> list[Comparison]:
    return asyncio.run(_idle(context))


async def _idle(context: Context) -> list[Comparison]:
    data_dir = context.folder("gibil") / "data"
    rows = []
    async with yard(data_dir) as machines:
        made = 0
        for count in COUNTS:
            while made < count:
                await machines.create_by_hand()
                made += 1
            keeper = await asyncio.to_thread(read_keeper, Home(data_dir.absolute()))
            assert keeper is not None
            await asyncio.sleep(SETTLE_S)
            before = cpu_s(keeper.pid)
            await asyncio.sleep(MEASURE_S)
            percent = 100 * (cpu_s(keeper.pid) - before) / MEASURE_S
            rows.append(
                Comparison(
                    what=f"CPU of the daemon, {count} idle machines, tier {own_tier()}",
                    peer="what was promised",
                    unit="% of a core",
                    ours=[percent],
                    peers=[PROMISED_PERCENT],
                    aim=at_most(1),
                    facts={"machines": count, "seconds": MEASURE_S, "tier": own_tier()},
                )
            )
    return rows


def cpu_s(pid: int) -> float:
    """User and system time of the process and of those children that it waited for (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
