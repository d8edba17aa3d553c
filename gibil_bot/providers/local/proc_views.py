"""Files of /proc and /sys that show a machine's share of its host: memory and processors.

The kernel shows the host's values in every namespace, and lxcfs needs FUSE. So PID 1 mounts a file in memory, read-only, over
each of these files, and passes its descriptor to the daemon, which writes the current values. Nothing on the machine can write
to them. /proc/stat, /proc/cpuinfo and /sys/devices/system/cpu/online are replaced only on machines that use a part of the
host's processors, which keep their numbers, as sched_getaffinity(2) has them.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Mapping, Sequence

from gibil_bot.providers.local import syscalls as sc

_SAME = ("Hugepagesize", "VmallocTotal")
"""Fields of /proc/meminfo that don't depend on what is used."""
_LINE = re.compile(r"([^:]+):\s+(\d+)(.*)")
_PROCESSOR = re.compile(r"cpu(\d+) ")
_CPUINFO_PROCESSOR = re.compile(r"processor\s*:\s*(\d+)")
_MEMINFO, _STAT, _CPUINFO, _ONLINE = "proc/meminfo", "proc/stat", "proc/cpuinfo", "sys/devices/system/cpu/online"


def meminfo(hosts: str, limit_kb: int, used_kb: int, reclaimable_kb: int, fields: Mapping[str, int]) -> str:
    """Return the host's /proc/meminfo with a machine's values, always of the same length (proc_meminfo(5)).

    `used_kb`: what counts against the limit, including `reclaimable_kb`, which the kernel frees before it kills. `fields`: kB
    of further fields; those of the host that aren't known for a machine are 0.
    """
    free_kb = max(0, limit_kb - used_kb)
    values = {
        **fields,
        "MemTotal": limit_kb,
        "MemFree": free_kb,
        "MemAvailable": min(limit_kb, free_kb + reclaimable_kb),
        "CommitLimit": limit_kb,
    }
    width = max(8, len(str(limit_kb)))
    lines = []
    for line in hosts.splitlines():
        if match := _LINE.fullmatch(line):
            name, host, unit = match.groups()
            value = int(host) if name in _SAME else min(values.get(name, 0), limit_kb)
            lines.append(f"{name + ':':<16}{value:>{width}}{unit}\n" if unit else f"{name}:{value:>{23 - len(name)}}\n")
    return "".join(lines)


def stat(hosts: str, cpus: Collection[int]) -> str:
    """Return /proc/stat with only these processors. Its other lines remain the host's."""
    own: list[list[str]] = []
    lines: list[str] = []
    for line in hosts.splitlines():
        if match := _PROCESSOR.match(line):
            if int(match[1]) in cpus:
                own.append(line.split()[1:])
                lines.append(line)
        elif not line.startswith("cpu "):
            lines.append(line)
    total = " ".join(str(sum(map(int, column))) for column in zip(*own, strict=True))
    return "\n".join([f"cpu  {total}", *lines, ""])


def cpuinfo(hosts: str, cpus: Collection[int]) -> str:
    """Return /proc/cpuinfo with only these processors."""
    kept = []
    for block in hosts.split("\n\n"):
        match = _CPUINFO_PROCESSOR.match(block)
        if match is None or int(match[1]) in cpus:
            kept.append(block)
    return "\n\n".join(kept)


def mount_views(root: str, cpus: Sequence[int], memory_mb: int) -> list[int]:
    """Mount the files over those of the tree `root`, whose /proc and /sys are mounted and whose /run is free.

    Returns descriptors for `Views`. Raises OSError.
    """
    contents = {_MEMINFO: meminfo(_read(f"{root}/{_MEMINFO}"), memory_mb * 1024, 0, 0, {})}
    if os.cpu_count() != len(cpus):
        contents[_STAT] = stat(_read(f"{root}/{_STAT}"), cpus)
        contents[_CPUINFO] = cpuinfo(_read(f"{root}/{_CPUINFO}"), cpus)
        contents[_ONLINE] = ",".join(map(str, cpus)) + "\n"
    folder = f"{root}/run"
    sc.mount("views", folder, "tmpfs", sc.MS_NOSUID | sc.MS_NODEV | sc.MS_NOEXEC, "mode=755,size=16m,nr_inodes=8")
    opened: list[int] = []
    for number, (path, content) in enumerate(contents.items()):
        if not os.path.exists(f"{root}/{path}"):  # sysfs isn't available on all hosts
            continue
        fd = os.open(f"{folder}/{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o444)
        os.write(fd, content.encode())
        view = sc.open_tree(f"{folder}/{number}")
        sc.mount_setattr(view, sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID | sc.MOUNT_ATTR_NODEV)
        sc.move_mount(view, f"{root}/{path}")
        os.close(view)
        if path in (_MEMINFO, _STAT):
            opened.append(fd)
        else:
            os.close(fd)
    sc.unmount(folder, sc.MNT_DETACH)
    return opened


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


class Views:
    """The changing files of one machine, in the daemon. `descriptors`: from `mount_views`; closed by the caller."""

    def __init__(self, descriptors: Sequence[int], limit_mb: int, cpus: Collection[int]) -> None:
        self._descriptors, self._limit_kb, self._cpus = tuple(descriptors), limit_mb * 1024, cpus
        self._written: dict[int, str] = {}
        self._template = _read("/proc/meminfo") if self._descriptors else ""

    def refresh(self, used_kb: int, reclaimable_kb: int, fields: Mapping[str, int]) -> None:
        """Write the current values. Cheap."""
        contents = [meminfo(self._template, self._limit_kb, used_kb, reclaimable_kb, fields)]
        if len(self._descriptors) > 1:
            contents.append(stat(_read("/proc/stat"), self._cpus))
        for fd, content in zip(self._descriptors, contents, strict=False):
            if self._written.get(fd) == content:
                continue
            data = content.encode()
            with contextlib.suppress(OSError):  # the host is out of memory
                os.pwrite(fd, data, 0)
                if os.fstat(fd).st_size > len(data):
                    os.ftruncate(fd, len(data))
                self._written[fd] = content
