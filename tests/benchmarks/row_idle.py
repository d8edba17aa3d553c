"""CPU time of the local-machine daemon while its machines do nothing, as a share of one core."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from gibil_bot.model import Machine
from gibil_bot.providers.local.paths import LocalPaths, own_privilege, read_daemon
from tests.benchmarks.comparison import Aim, Comparison, at_most
from tests.benchmarks.context import Context
from tests.benchmarks.machines import Yard, yard

COUNTS = (7, 20)
QUIET_S = 6.0
"""Longer than the longest polling interval: the time right after a machine's creation isn't idle."""
MEASURE_S = 15.0
PROMISED_PERCENT = 1.0
_SLEEPER = "setsid sleep 600 >/dev/null 2>&1 </dev/null &"


def idle(context: Context) -> list[Comparison]:
    return asyncio.run(_idle(context))


async def _idle(context: Context) -> list[Comparison]:
    data_dir = context.folder("gibil") / "data"
    rows = []
    async with yard(data_dir) as machines:
        made: list[Machine] = []
        for count in COUNTS:
            while len(made) < count:
                made.append(await machines.create_by_hand())
            rows.append(await _measure(data_dir, f"{count} idle machines", at_most(1)))
        await asyncio.gather(*(_leave_a_sleeper(machines, machine) for machine in made))
        rows.append(await _measure(data_dir, f"{len(made)} machines with a process that sleeps", None))
    return rows


async def _measure(data_dir: Path, what: str, aim: Aim | None) -> Comparison:
    daemon = await asyncio.to_thread(read_daemon, LocalPaths(data_dir.absolute()))
    assert daemon is not None
    await asyncio.sleep(QUIET_S)
    before = cpu_s(daemon.pid)
    await asyncio.sleep(MEASURE_S)
    percent = 100 * (cpu_s(daemon.pid) - before) / MEASURE_S
    return Comparison(
        what=f"CPU of the daemon, {what}, tier {own_privilege()}",
        peer="what was promised",
        unit="% of a core",
        ours=[percent],
        peers=[PROMISED_PERCENT],
        aim=aim,
        facts={"seconds": MEASURE_S, "tier": own_privilege()},
    )


async def _leave_a_sleeper(machines: Yard, machine: Machine) -> None:
    connection = await machines.connect_by_hand(machine)
    try:
        await connection.run(_SLEEPER, check=True)
    finally:
        connection.abort()
        await connection.wait_closed()


def cpu_s(pid: int) -> float:
    """Return user and system time of the process and of the children that it waited for (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return sum(int(field) for field in fields[11:15]) / os.sysconf("SC_CLK_TCK")
