"""How a machine is doing: processors, memory, disk, its busiest processes."""

from __future__ import annotations

from dataclasses import dataclass

from gibil_bot.errors import GibilError
from gibil_bot.sandbox.live import LiveMachine

MOST_PROCESSES = 10

# A machine of a container's kind has limits of its own, below what its kernel tells.
_SCRIPT = r"""export LC_ALL=C
read -r load </proc/loadavg; echo "load $load"
echo "cpus $(nproc)"
while read -r name value _; do
    case $name in MemTotal:|MemAvailable:) echo "$name $value" ;; esac
done <"/proc/meminfo"
for f in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
    [ -r $f ] && echo "limit $(cat $f)"
done
for f in /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory/memory.usage_in_bytes; do
    [ -r $f ] && echo "used $(cat $f)"
done
df -Pk / | { read -r _; read -r _ size used free _; echo "disk $size $used $free"; }
command -v ps >/dev/null || exit 0
ps -eo pid=,pcpu=,rss=,etimes=,args= --sort=-pcpu,-rss | while read -r p c r e a; do
    case $a in *--sort=-pcpu,-rss*) continue ;; esac  # ourselves
    printf 'process %s %s %s %s %.300s\n' "$p" "$c" "$r" "$e" "$a"
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    pid: int
    cpu_percent: float
    memory_mb: float
    age_s: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Megabytes are 1024² bytes. `load`: over the last 1, 5 and 15 minutes."""

    cpus: int
    load: tuple[float, ...]
    memory_total_mb: int
    memory_available_mb: int
    memory_is_its_own: bool
    """False: the machine sees no limit below what its kernel has, which it may share with its host."""
    disk_total_mb: int
    disk_free_mb: int
    processes: int
    busiest: tuple[Busy, ...]


def read_stats(answer: bytes) -> Stats:
    """What the script answered. Raises ValueError and KeyError for what did not come from it."""
    values: dict[str, list[str]] = {}
    processes: list[Busy] = []
    for line in answer.decode("utf-8", "replace").splitlines():
        name, _, rest = line.partition(" ")
        if name == "process":
            pid, cpu, memory, age, command = rest.split(" ", 4)
            processes.append(
                Busy(
                    pid=int(pid),
                    cpu_percent=float(cpu),
                    memory_mb=round(int(memory) / 1024, 1),
                    age_s=int(age),
                    command=command,
                )
            )
        else:
            values[name] = rest.split()
    total, available = (int(values[name][0]) // 1024 for name in ("MemTotal:", "MemAvailable:"))
    limit = values.get("limit", ["max"])[0]
    is_limited = limit.isdigit() and int(limit) // 1024**2 < total and "used" in values
    if is_limited:
        total = int(limit) // 1024**2
        available = max(0, min(available, total - int(values["used"][0]) // 1024**2))
    size, _used, free = (int(value) // 1024 for value in values["disk"])
    return Stats(
        cpus=int(values["cpus"][0]),
        load=tuple(float(value) for value in values["load"][:3]),
        memory_total_mb=total,
        memory_available_mb=available,
        memory_is_its_own=is_limited,
        disk_total_mb=size,
        disk_free_mb=free,
        processes=len(processes),
        busiest=tuple(processes[:MOST_PROCESSES]),
    )


async def stats(live: LiveMachine) -> Stats:
    result = await live.shell.run(_SCRIPT)
    try:
        return read_stats(result.stdout)
    except (ValueError, KeyError) as error:
        raise GibilError(f"machine {live.name} does not tell how it is: {error}", code="STATS") from error
