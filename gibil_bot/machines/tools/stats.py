"""Statistics of a machine: processors, memory, disk, its busiest processes."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from gibil_bot.errors import GibilError
from gibil_bot.machines.session import MachineSession
from gibil_bot.model import Usage
from gibil_bot.ports import Metered
from gibil_bot.scripts.templates import text
from gibil_bot.ssh.answers import decimal, number, printable

MOST_PROCESSES = 10
_LIMIT = re.compile(r"[0-9]{1,20}")
"""Without a limit, version 1 of control groups reports 2^63 minus a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    pid: int
    cpu_percent: float
    memory_mb: float
    age_s: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Megabytes are 1024² bytes. `load` is the average over 1, 5 and 15 minutes."""

    cpus: int
    load: tuple[float, ...]
    memory_total_mb: int
    memory_available_mb: int
    memory_is_its_own: bool
    """False: no limit is known below the kernel's total, which the machine may share with its host."""
    limits_are_known: bool
    """Whether the provider reports them."""
    disk_total_mb: int
    disk_free_mb: int
    disk_is_its_own: bool
    """False: no limit is known below the size of the file system, which the machine may share with its host."""
    processes: int
    busiest: tuple[Busy, ...]


def read_stats(answer: bytes, usage: Usage | None = None) -> Stats:
    """Parse the script's output, and apply the machine's limits. Raises ValueError and LookupError for any other text."""
    values: dict[str, list[str]] = {}
    processes: list[Busy] = []
    for line in answer.decode("utf-8", "replace").splitlines():
        name, _, rest = line.partition(" ")
        if name == "process":
            pid, cpu, memory, age, command = rest.split(" ", 4)
            processes.append(
                Busy(
                    pid=number(pid),
                    cpu_percent=decimal(cpu),
                    memory_mb=round(number(memory) / 1024, 1),
                    age_s=number(age),
                    command=printable(command),
                )
            )
        else:
            values[name] = rest.split()
    total, available = (number(values[name][0]) // 1024 for name in ("MemTotal:", "MemAvailable:"))
    limit = values.get("limit", ["max"])[0]
    memory_is_its_own = disk_is_its_own = False
    if usage is not None:
        memory_is_its_own = usage.memory_limit_mb <= total
        total, available = _within(usage.memory_limit_mb, usage.memory_used_mb, total, available)
    elif _LIMIT.fullmatch(limit) and int(limit) // 1024**2 < total and "used" in values:
        memory_is_its_own = True
        total, available = _within(int(limit) // 1024**2, number(values["used"][0]) // 1024**2, total, available)
    size, _used, free = (number(value) // 1024 for value in values["disk"])
    if usage is not None:
        disk_is_its_own = usage.disk_limit_mb <= size or usage.disk_used_mb is None
        if usage.disk_used_mb is not None:
            size, free = _within(usage.disk_limit_mb, usage.disk_used_mb, size, free)
    return Stats(
        cpus=number(values["cpus"][0]),
        load=tuple(decimal(value) for value in values["load"][:3]),
        memory_total_mb=total,
        memory_available_mb=available,
        memory_is_its_own=memory_is_its_own,
        limits_are_known=usage is not None,
        disk_total_mb=size,
        disk_free_mb=free,
        disk_is_its_own=disk_is_its_own,
        processes=len(processes),
        busiest=tuple(processes[:MOST_PROCESSES]),
    )


def _within(limit: int, used: int, total: int, free: int) -> tuple[int, int]:
    """Return the total and the free amount under a limit, on a host with `total` and `free`."""
    return min(limit, total), max(0, min(free, limit - used))


def stats_view(found: Stats) -> dict[str, object]:
    """Return the statistics as JSON."""
    view: dict[str, object] = {
        "cpus": found.cpus,
        "load": list(found.load),
        "memory_total_mb": found.memory_total_mb,
        "memory_available_mb": found.memory_available_mb,
        "memory_is_its_own": found.memory_is_its_own,
        "disk_total_mb": found.disk_total_mb,
        "disk_free_mb": found.disk_free_mb,
        "disk_is_its_own": found.disk_is_its_own,
        "processes": found.processes,
        "busiest": [asdict(each) for each in found.busiest],
    }
    return view


async def stats(session: MachineSession) -> Stats:
    """Query a machine's statistics. Raises GibilError when it doesn't answer, or gives an invalid answer."""
    # A local machine's own figures are refreshed by the question for its usage, so that comes first.
    usage = await session.provider.usage(session.name) if isinstance(session.provider, Metered) else None
    result = await session.shell.run(text("stats"))
    try:
        return read_stats(result.stdout, usage)
    except (ValueError, LookupError) as error:
        raise GibilError(f"machine {session.name} sent invalid statistics: {printable(str(error))}", code="STATS") from error
