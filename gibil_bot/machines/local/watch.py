"""Limits that no kernel mechanism keeps for us: memory where there are no control groups, and disks that are folders.

Memory is the sum of the proportional set sizes of a machine's processes (proc(5), smaps_rollup). Above the limit the
largest process is killed, as the kernel's own OOM killer would. Both run in a thread: they read a lot of small files.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path


def has_processes(init: int) -> bool:
    """Whether anything but PID 1 runs in the machine; True where the kernel does not say (CONFIG_PROC_CHILDREN)."""
    try:
        with open(f"/proc/{init}/task/{init}/children", "rb") as file:
            return bool(file.read(16))
    except FileNotFoundError:
        return os.path.exists(f"/proc/{init}")
    except OSError:
        return True


def family(ancestor: int) -> list[int]:
    """Host pids of all processes below `ancestor`: everything in a machine descends from its PID 1."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(name))
    found: list[int] = []
    waiting = [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def proportional_kb(pid: int) -> int:
    """The process's share of memory in kB; 0 when it is gone or not ours to look at."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def memory_mb(init: int) -> int:
    """What all processes of the machine take together: the number that `hold_memory` holds against the limit."""
    return sum(proportional_kb(pid) for pid in family(init)) // 1024


def hold_memory(init: int, limit_mb: int) -> int | None:
    """Kill the largest process of the machine if all of them together are above the limit; its host pid."""
    handles: dict[int, int] = {}
    try:
        for pid in family(init):
            try:
                handles[pid] = os.pidfd_open(pid)  # opened before it is measured: a pid that is used again is not hit
            except OSError:
                continue
        sizes = {pid: proportional_kb(pid) for pid in handles}
        if not sizes or sum(sizes.values()) <= limit_mb * 1024:
            return None
        largest = max(sizes, key=lambda pid: sizes[pid])
        signal.pidfd_send_signal(handles[largest], signal.SIGKILL)
        return largest
    except ProcessLookupError:
        return None
    finally:
        for handle in handles.values():
            os.close(handle)


def disk_mb(folder: Path) -> int:
    """What the folder takes on the disk. Unreadable parts are skipped, files that vanish meanwhile too."""
    blocks = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        blocks += entry.stat(follow_symlinks=False).st_blocks
                    except OSError:
                        continue
        except OSError:
            continue
    return blocks * 512 // (1024 * 1024)
