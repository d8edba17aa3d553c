"""Limits of machines, and the control groups that enforce them.

Processes: RLIMIT_NPROC, and the `pids` controller if it is available. Memory: the `memory` controller of cgroup v2 or v1;
without it the daemon polls (usage_poller.py). Processors: a share of the `cpu` controller; without it jobs run with `nice`.
Disk: up to MEMORY_DISK_MB a tmpfs, above that an ext4 image on a loop device (disk_images.py), where writes fail with ENOSPC at
the limit; without loop devices a folder of the host, whose size the daemon polls. cgroup files:
docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gibil_bot.errors import ProviderError
from gibil_bot.model import MachineSpec

NO_ROOM = "NO_ROOM"
"""Code of an error that may not occur again once another machine has ended."""

MEMORY_DISK_MB = 1024
SIZES_MB = {"small": 2048, "medium": 4096, "large": 8192}
DISK_MB = 10 * 1024
_PIDS = 2048
"""Processes and threads: a Node program has 11, Gradle 200. Ten machines leave some of the usual 32,768 to the host."""
FILES_PER_MB = 64
"""Most files per MB of a disk that is a folder, whatever their size."""
_FLOOR_MB = 512
CPU_SHARES = 256
"""Processor share of a machine; a process outside any group has 1024 (cgroup v1, cpu.shares; 100 in cpu.weight of v2)."""
_USED = {
    1: ("memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.current", ("inactive_file", "active_file", "slab_reclaimable")),
}
"""cgroup version → the file with the used memory, and the fields of memory.stat that the kernel can reclaim."""
_MEMINFO = {
    "Cached": ("total_cache", "file"),
    "Inactive(anon)": ("total_inactive_anon", "inactive_anon"),
    "Active(anon)": ("total_active_anon", "active_anon"),
    "Inactive(file)": ("total_inactive_file", "inactive_file"),
    "Active(file)": ("total_active_file", "active_file"),
    "Unevictable": ("total_unevictable", "unevictable"),
    "Dirty": ("total_dirty", "file_dirty"),
    "Writeback": ("total_writeback", "file_writeback"),
    "AnonPages": ("total_rss", "anon"),
    "Committed_AS": ("total_rss", "anon"),
    "Mapped": ("total_mapped_file", "file_mapped"),
    "Shmem": ("total_shmem", "shmem"),
    "KReclaimable": ("", "slab_reclaimable"),
    "Slab": ("", "slab"),
    "SReclaimable": ("", "slab_reclaimable"),
    "SUnreclaim": ("", "slab_unreclaimable"),
    "KernelStack": ("", "kernel_stack"),
    "PageTables": ("", "pagetables"),
}
"""Field of /proc/meminfo → field of memory.stat with cgroup v1 and v2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCounts:
    """Memory of a machine in kB."""

    used_kb: int
    """What counts against its limit."""
    reclaimable_kb: int
    """The part of it that the kernel frees before it kills a process: the page cache."""
    fields: Mapping[str, int]
    """Further fields of /proc/meminfo"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one machine."""

    memory_mb: int
    pids: int
    disk_mb: int

    @property
    def disk_in_memory(self) -> bool:
        """Whether the disk is a tmpfs. Its content counts as memory of the machine, so it has to leave memory for the jobs."""
        return self.disk_mb <= min(MEMORY_DISK_MB, self.memory_mb // 2)


def limits_of(spec: MachineSpec) -> Limits:
    """Return the limits of a machine. Raises ProviderError for an unknown size or a limit that is too low."""
    if spec.size not in SIZES_MB:
        raise ProviderError(f"machine {spec.name}: unknown size {spec.size!r}; choose one of {', '.join(SIZES_MB)}")
    limits = Limits(
        memory_mb=spec.memory_mb or SIZES_MB[spec.size],
        pids=spec.pids or _PIDS,
        disk_mb=spec.disk_mb or DISK_MB,
    )
    for name, value, lowest in (
        ("memory_mb", limits.memory_mb, 64),
        ("pids", limits.pids, 16),
        ("disk_mb", limits.disk_mb, 16),
    ):
        if value < lowest:
            raise ProviderError(f"machine {spec.name}: {name} must be at least {lowest}, got {value}")
    return limits


def share_of_processors(memory_mb: int, host_memory_mb: int, available: Collection[int]) -> list[int]:
    """Return the processors of a machine: as large a part of the host's as its memory is of the host's, and at least two.

    Programs start as many workers as they see processors (`pytest -n auto`, jest, make), and need memory for each. They are
    chosen at random, so that machines are spread over all processors.
    """
    wanted = max(2, round(len(available) * memory_mb / max(1, host_memory_mb)))
    return sorted(random.sample(sorted(available), min(wanted, len(available))))


def half_of_the_memory_mb() -> int:
    return max(64, _physical_memory() // 1024**2 // 2)


def _physical_memory() -> int:
    """Return the memory of the host in bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def half_of_the_disk_mb(data_dir: Path) -> int:
    """Return half the size of the file system that the folder is on, or will be."""
    for folder in (data_dir, *data_dir.parents):
        with contextlib.suppress(OSError):
            status = os.statvfs(folder)
            return max(64, status.f_blocks * status.f_frsize // 1024**2 // 2)
    return DISK_MB


def floor_mb(disk_mb: int) -> int:
    """Return how much of a host's disk must be free: below this, machines are destroyed and none is created."""
    return min(_FLOOR_MB, disk_mb // 50)


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """A folder of the cgroup file system in which we may create groups, and its usable controllers."""

    folder: Path
    version: int
    controllers: frozenset[str]


class Groups:
    """The control groups of one daemon's machines: `PREFIX-NAME` in every usable hierarchy."""

    def __init__(self, hierarchies: Sequence[Hierarchy], prefix: str) -> None:
        self._hierarchies, self._prefix = tuple(hierarchies), prefix

    def host_memory_mb(self) -> int:
        """Return the memory that all machines may use together: of the host, or of the control group that we are in."""
        most = _physical_memory()
        if hierarchy := self._with("memory"):
            with contextlib.suppress(OSError, ValueError):
                name = "memory.max" if hierarchy.version == 2 else "memory.limit_in_bytes"
                most = min(most, int((hierarchy.folder / name).read_text()))
        return most // 1024**2

    def _with(self, controller: str) -> Hierarchy | None:
        """Return the hierarchy with that controller, if any; a controller is in at most one."""
        return next((hierarchy for hierarchy in self._hierarchies if controller in hierarchy.controllers), None)

    def _group(self, hierarchy: Hierarchy, name: str) -> Path:
        return hierarchy.folder / f"{self._prefix}-{name}"

    @property
    def shares_cpu(self) -> bool:
        """Whether each machine gets one share of the processors, however many processes it has."""
        return self._with("cpu") is not None

    @property
    def counts_processes(self) -> bool:
        return self._with("pids") is not None

    def oom_kills(self, name: str) -> int:
        """Return how many processes of the machine the kernel has killed because of its memory limit."""
        return self._event(name, "memory", {1: "memory.oom_control", 2: "memory.events"}, b"oom_kill")

    def refused_forks(self, name: str) -> int:
        """Return how often a process could not be started because of the limit."""
        return self._event(name, "pids", {1: "pids.events", 2: "pids.events"}, b"max")

    def _event(self, name: str, controller: str, files: dict[int, str], key: bytes) -> int:
        if hierarchy := self._with(controller):
            with contextlib.suppress(OSError, ValueError):
                lines = (self._group(hierarchy, name) / files[hierarchy.version]).read_bytes().splitlines()
                return sum(int(value) for word, value in (line.split() for line in lines) if word == key)
        return 0

    @property
    def memory(self) -> str:
        """How memory is limited: a value of Capabilities.memory_limit."""
        hierarchy = self._with("memory")
        return f"cgroup-v{hierarchy.version}" if hierarchy else "polled"

    def memory_used_mb(self, name: str) -> int | None:
        """Return the memory that counts against the limit, without the page cache, which the kernel reclaims before it kills.

        None if memory is polled. Raises OSError.
        """
        counts = self.memory_counts(name)
        return None if counts is None else max(0, counts.used_kb - counts.reclaimable_kb) // 1024

    def memory_counts(self, name: str) -> MemoryCounts | None:
        """Return what the kernel counts for the machine; None if memory is polled. Raises OSError."""
        hierarchy = self._with("memory")
        if hierarchy is None:
            return None
        group = self._group(hierarchy, name)
        used, cached = _USED[hierarchy.version]
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        fields = {field: int(counts.get(names[hierarchy.version - 1], 0)) // 1024 for field, names in _MEMINFO.items()}
        fields["Inactive"] = fields["Inactive(anon)"] + fields["Inactive(file)"]
        fields["Active"] = fields["Active(anon)"] + fields["Active(file)"]
        return MemoryCounts(
            used_kb=int((group / used).read_text()) // 1024,
            reclaimable_kb=sum(int(counts.get(field, 0)) for field in cached) // 1024,
            fields=fields,
        )

    def create(self, name: str, limits: Limits) -> None:
        """Create the machine's groups with their limits."""
        for hierarchy in self._hierarchies:
            group = self._group(hierarchy, name)
            group.mkdir(exist_ok=True)
            size = str(limits.memory_mb * 1024 * 1024)
            if "memory" in hierarchy.controllers:
                if hierarchy.version == 2:
                    _set(group / "memory.max", size)
                    _set(group / "memory.swap.max", "0", optional=True)
                else:
                    _set(group / "memory.limit_in_bytes", size)
                    _set(group / "memory.memsw.limit_in_bytes", size, optional=True)
            if "pids" in hierarchy.controllers:
                _set(group / "pids.max", str(limits.pids))

    def weigh(self, name: str) -> None:
        """Lower the machine's share of the processors. Call when PID 1 is ready: on a busy host it would delay that."""
        if hierarchy := self._with("cpu"):
            group = self._group(hierarchy, name)
            if hierarchy.version == 2:
                _set(group / "cpu.weight", str(CPU_SHARES * 100 // 1024))
            else:
                _set(group / "cpu.shares", str(CPU_SHARES))

    def warm(self) -> None:
        """Prepare the kernel for `join`. Blocks for some 10 ms.

        Moving a process waits for an RCU grace period, unless another was moved just before. So this moves us into our own
        group (v1) while the machine is being created.
        """
        for hierarchy in self._hierarchies:
            if hierarchy.version == 1:
                with contextlib.suppress(OSError):
                    (hierarchy.folder / "cgroup.procs").write_text(str(os.getpid()))
                return

    def join(self, name: str, pid: int) -> None:
        """Move PID 1 of the machine into its groups, which its children inherit. Blocking."""
        for hierarchy in self._hierarchies:
            _set(self._group(hierarchy, name) / "cgroup.procs", str(pid))

    def remove(self, name: str) -> None:
        """Remove the machine's groups.

        Blocks for up to a second: a group is busy until the kernel has released its last process.
        """
        for hierarchy in self._hierarchies:
            _remove_group(self._group(hierarchy, name))

    def leftovers(self) -> list[str]:
        """Return the names of machines that have a group."""
        found = set()
        for hierarchy in self._hierarchies:
            found |= {path.name.removeprefix(f"{self._prefix}-") for path in hierarchy.folder.glob(f"{self._prefix}-*")}
        return sorted(found)


def find_hierarchies(mountinfo: str | None = None, membership: str | None = None) -> list[Hierarchy]:
    """Return where this process may create groups with limits.

    In v1 below its own group; in v2 next to it or further up, since a group with processes can't delegate controllers.
    """
    mountinfo = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    membership = Path("/proc/self/cgroup").read_text() if membership is None else membership
    paths = {controllers: path for _number, controllers, path in (line.split(":", 2) for line in membership.splitlines())}
    found: list[Hierarchy] = []
    missing = {"memory", "pids", "cpu"}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        root, mount = before.split()[3:5]
        kind, _source, options = after.split()[:3]
        if kind == "cgroup":
            ours = missing & set(options.split(","))
            own = next((path for controllers, path in paths.items() if ours & set(controllers.split(","))), None)
            if ours and own is not None and os.access(folder := _below(mount, root, own), os.W_OK):
                found.append(Hierarchy(folder, 1, frozenset(ours)))
                missing -= ours
        elif (
            kind == "cgroup2" and "" in paths and (hierarchy := _unified(Path(mount), _below(mount, root, paths[""]), missing))
        ):
            found.append(hierarchy)
            missing -= hierarchy.controllers
    return found


def _below(mount: str, root: str, own: str) -> Path:
    """Return the path of the group `own` below a mount point that shows the hierarchy from `root` on."""
    if root != "/" and (own + "/").startswith(root + "/"):
        own = own[len(root) :]
    return Path(mount) / own.lstrip("/")


def _unified(mount: Path, own: Path, wanted: set[str]) -> Hierarchy | None:
    for folder in (*(parent for parent in own.parents if parent.is_relative_to(mount)), *([own] if own == mount else [])):
        try:
            available = wanted & set((folder / "cgroup.controllers").read_text().split())
            if not available or not os.access(folder, os.W_OK):
                continue
            enabled = set((folder / "cgroup.subtree_control").read_text().split())
            for controller in sorted(available - enabled):
                (folder / "cgroup.subtree_control").write_text(f"+{controller}")
            if os.access(folder / "cgroup.procs", os.W_OK):  # moving a process needs write access to the common ancestor's
                return Hierarchy(folder, 2, frozenset(available))
        except OSError:
            continue
    return None


def _set(path: Path, value: str, *, optional: bool = False) -> None:
    try:
        path.write_text(value)
    except OSError as error:
        if not optional:
            raise ProviderError(f"cannot set the limit {path} = {value}: {error.strerror}") from error


def _remove_group(group: Path) -> None:
    deadline = time.monotonic() + 1.0
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return  # the next sweep finds it
            time.sleep(0.002)
        else:
            return
