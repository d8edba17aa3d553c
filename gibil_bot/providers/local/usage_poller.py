"""Measuring a machine's usage where the kernel enforces no limit: memory without control groups, and disks that are folders.

Memory is the sum of the proportional set sizes of a machine's processes (proc(5), smaps_rollup) and of what no process maps:
its memory file systems, memfds, SysV segments and message queues, and the buffers of pipes and sockets. Above the limit the
largest process is killed, like the kernel's OOM killer does. A disk is its folder plus files that are deleted but still open.

All of it is read from outside, so a machine can't falsify it. Not measurable are files that are neither in a folder nor open in
a process: in transit through a UNIX socket, or partly mapped without a descriptor (only the host's root may read the file
behind a mapping, proc(5)). The floor of free space on the host limits those.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gibil_bot.providers.local.syscalls import same_descriptors

PIPE_BYTES = 8192
"""Capacity of a pipe once a user has many (pipe(7): beyond pipe-user-pages-soft)."""
SOCKET_BYTES = 208 * 1024
"""Buffer of one socket: net.core.wmem_default."""
FREE_SOCKETS = 512
"""This many open sockets of a machine aren't counted, because sockets are usually empty."""

MEMORY_MOUNTS = ("/dev/shm", "/run", "/")  # noqa: S108
"""The file systems in memory that machines have. The last one only if the whole disk is in memory."""

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SHARED_SCAN_S = 0.3


def has_processes(init: int) -> bool:
    """Return whether any process but PID 1 runs on the machine; True if the kernel doesn't say (CONFIG_PROC_CHILDREN)."""
    try:
        with open(f"/proc/{init}/task/{init}/children", "rb") as file:
            return bool(file.read(16))
    except FileNotFoundError:
        return os.path.exists(f"/proc/{init}")
    except OSError:
        return True


def family(ancestor: int, *, max_age_s: float = 0.0) -> list[int]:
    """Return the host pids of all descendants of `ancestor`: all processes of a machine descend from its PID 1.

    With `max_age_s` the list of processes may be that old, so that several machines can share it.
    """
    global _last_scan
    made_at, children = _last_scan
    if not max_age_s or time.monotonic() - made_at > max_age_s:
        children = _scan()
        _last_scan = time.monotonic(), children
    found: list[int] = []
    waiting = [ancestor]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


_last_scan: tuple[float, dict[int, list[int]]] = (float("-inf"), {})


def _scan() -> dict[int, list[int]]:
    """Return parent → children of all processes of the host."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                children.setdefault(int(_stat(name)[_PARENT]), []).append(int(name))
    return children


_PARENT, _SESSION, _THREADS = 1, 3, 17


def _stat(pid: int | str) -> list[bytes]:
    """Return the fields of /proc/PID/stat after the program's name (proc(5)). Raises OSError."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def proportional_kb(pid: int, memfds: int, counted: Collection[int] = ()) -> int:
    """Return the process's share of memory in kB; 0 if it has ended or isn't readable.

    Of files in memory it includes only those on the device `memfds` (memfds, SysV segments, shared anonymous memory) whose
    inode isn't in `counted`, since memory file systems are counted separately, mapped or not.
    """
    found = {b"Pss:": 0, b"Pss_Shmem:": 0}
    pid, _resident = _living_thread(pid)
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                name = line[: line.find(b":") + 1]
                if name in found:
                    found[name] = int(line.split()[1])
        shared = _shared_kb(pid, memfds, counted) if found[b"Pss_Shmem:"] else 0
    except OSError:
        return 0
    return found[b"Pss:"] - found[b"Pss_Shmem:"] + shared


def _shared_kb(pid: int, device: int, counted: Collection[int]) -> int:
    """Return the process's share of files on that device, from the parts of its address space (proc(5), smaps)."""
    wanted = f"{os.major(device):02x}:{os.minor(device):02x}".encode()
    total = 0
    counts = False
    with open(f"/proc/{pid}/smaps", "rb") as file:
        for line in file:
            if line.startswith(b"Pss:"):
                total += int(line.split()[1]) if counts else 0
            elif b"-" in line[:20]:  # start-end perms offset dev inode path
                words = line.split(None, 5)
                counts = words[3] == wanted and int(words[4]) not in counted
    return total


def resident_kb(pid: int) -> int:
    """Return the resident memory: at least the process's share, and much cheaper to read."""
    return _living_thread(pid)[1]


def _resident_kb(thread: int) -> int:
    try:
        with open(f"/proc/{thread}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE // 1024
    except (OSError, IndexError):
        return 0


def _living_thread(pid: int) -> tuple[int, int]:
    """Return a thread whose /proc folder shows the process's memory, and the resident kB.

    If the first thread has ended, its folder is empty although other threads run. /proc also has folders for threads (proc(5)).
    """
    if resident := _resident_kb(pid):
        return pid, resident
    for thread in _threads(pid):
        if resident := _resident_kb(thread):
            return thread, resident
    return pid, 0


def _threads(pid: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    except OSError:
        return []


def _descriptor_tables(pid: int) -> list[int]:
    """Return one thread for each table of descriptors, since threads may have their own (unshare(2), CLONE_FILES)."""
    tables: list[int] = []
    for thread in _threads(pid):
        try:
            is_known = any(same_descriptors(table, thread) for table in tables)
        except OSError:  # a kernel without kcmp(2), or a thread that has ended
            is_known = False
        if not is_known:
            tables.append(thread)
    return tables


# --- what processes hold open ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Open:
    """What the descriptors of processes hold although no folder has it."""

    memfd_kb: dict[int, int] = field(default_factory=dict)
    """pid → size of its memfds; each memfd is counted once."""
    memfds: set[int] = field(default_factory=set)
    """Their inodes"""
    deleted_kb: int = 0
    """Files on disk without a name"""
    sockets: int = 0
    pipes: int = 0

    @property
    def buffers_kb(self) -> int:
        return (self.pipes * PIPE_BYTES + max(0, self.sockets - FREE_SOCKETS) * SOCKET_BYTES) // 1024


def memfd_device() -> int:
    """Return st_dev of memfds, which are on an internal file system of the kernel."""
    fd = os.memfd_create("gibil")
    try:
        return os.fstat(fd).st_dev
    finally:
        os.close(fd)


def open_files(pids: Iterable[int], memfds: int, in_memory: Collection[int]) -> Open:
    """Return what the processes hold open.

    `memfds`: st_dev of memfds; `in_memory`: st_dev of file systems counted separately.
    """
    found = Open()
    seen: set[tuple[int, int]] = set()
    for pid, thread in ((owner, thread) for owner in pids for thread in _descriptor_tables(owner)):
        try:
            names = os.listdir(f"/proc/{thread}/fd")
        except OSError:
            continue
        for name in names:
            try:
                status = os.stat(f"/proc/{thread}/fd/{name}")
            except OSError:
                continue
            key = status.st_dev, status.st_ino
            if key in seen:
                continue
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFSOCK:
                found.sockets += 1
            elif kind == stat.S_IFIFO:
                found.pipes += 1
            elif kind == stat.S_IFREG and status.st_dev == memfds:
                found.memfd_kb[pid] = found.memfd_kb.get(pid, 0) + status.st_blocks // 2
                found.memfds.add(status.st_ino)
            elif kind == stat.S_IFREG and status.st_nlink == 0 and status.st_dev not in in_memory:
                found.deleted_kb += status.st_blocks // 2
            else:
                continue
            seen.add(key)
    return found


# --- memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """Where a machine can use memory in addition to its processes: descriptors that PID 1 opened before any job ran."""

    mounts: Sequence[int]
    """Of file systems in memory, in the order of MEMORY_MOUNTS"""
    segments: int
    """/proc/sysvipc/shm of the machine's IPC namespace"""
    queues: int
    """/proc/sysvipc/msg"""
    devices: frozenset[int]
    """st_dev of the mounts"""

    @classmethod
    def of(cls, descriptors: Sequence[int]) -> Memory:
        """`descriptors`: in the order of spawn._memory_of."""
        segments, queues, *mounts = descriptors
        return cls(mounts, segments, queues, frozenset(os.fstat(mount).st_dev for mount in mounts))

    def full_mounts(self) -> dict[str, tuple[bool, int]]:
        """Return path → whether the file system in memory is full, and its size in MB."""
        found = {}
        for path, mount in zip(MEMORY_MOUNTS, self.mounts, strict=False):
            status = os.statvfs(mount)
            found[path] = status.f_bfree == 0 or status.f_ffree == 0, status.f_blocks * status.f_frsize // 1024**2
        return found

    def unmapped_kb(self) -> int:
        """Return the size of memory file systems, and of SysV IPC that no process is attached to."""
        total = 0
        for mount in self.mounts:
            status = os.statvfs(mount)
            total += (status.f_blocks - status.f_bfree) * status.f_frsize // 1024
        for line in _table(self.segments):  # key shmid perms size cpid lpid nattch uid gid cuid cgid atime dtime ctime rss swap
            if len(line) > 15 and line[6] == b"0":
                total += (int(line[14]) + int(line[15])) // 1024
        for line in _table(self.queues):  # key msqid perms cbytes …
            total += int(line[3]) // 1024
        return total


def _table(fd: int) -> list[list[bytes]]:
    text = b""
    with contextlib.suppress(OSError):
        while len(text) < 4 * 1024**2 and (part := os.pread(fd, 65536, len(text))):
            text += part
    return [line.split() for line in text.splitlines()[1:] if line.strip()]


def _sizes_kb(pids: Iterable[int], held: Open, memfds: int) -> dict[int, int]:
    return {pid: proportional_kb(pid, memfds, held.memfds) + held.memfd_kb.get(pid, 0) for pid in pids}


def _at_most_kb(pids: Sequence[int], memory: Memory, memfds: int) -> int:
    """Return a cheap upper bound of their memory: shared memory counts for each process."""
    held = open_files(pids, memfds, memory.devices)
    return sum(map(resident_kb, pids)) + sum(held.memfd_kb.values()) + held.buffers_kb + memory.unmapped_kb()


def memory_mb(init: int, memory: Memory, memfds: int) -> int:
    """Return the machine's memory as `enforce_memory` compares it with the limit."""
    pids = family(init)
    held = open_files(pids, memfds, memory.devices)
    return (sum(_sizes_kb(pids, held, memfds).values()) + held.buffers_kb + memory.unmapped_kb()) // 1024


class Enforced(NamedTuple):
    """Result of `enforce_memory`."""

    killed: bool
    used_kb: int
    """At most this: up to half of the limit, memory that processes share may be counted for each of them."""


def enforce_memory(init: int, limit_mb: int, memory: Memory, memfds: int) -> Enforced:
    """Kill the largest process of the machine if its memory exceeds the limit."""
    limit = limit_mb * 1024
    used = _at_most_kb(family(init, max_age_s=_SHARED_SCAN_S), memory, memfds)
    if used <= limit // 2:
        return Enforced(False, used)
    handles: dict[int, int] = {}
    try:
        for pid in family(init):
            try:
                handles[pid] = os.pidfd_open(pid)  # opened before measuring, so that a reused pid isn't killed
            except OSError:
                continue
        held = open_files(handles, memfds, memory.devices)
        sizes = _sizes_kb(handles, held, memfds)
        used = sum(sizes.values()) + held.buffers_kb + memory.unmapped_kb()
        if used <= limit or not handles:  # only files, which the limits of their file systems bound
            return Enforced(False, used)
        largest = max(sizes, key=lambda pid: sizes[pid])
        signal.pidfd_send_signal(handles[largest], signal.SIGKILL)
    except ProcessLookupError:
        return Enforced(False, used)
    finally:
        for handle in handles.values():
            os.close(handle)
    return Enforced(True, used)


# --- disks -------------------------------------------------------------------------------------------------------


def count_tasks(init: int) -> int:
    """Return the number of threads of all processes of the machine, as RLIMIT_NPROC counts them."""
    found = 1
    for pid in family(init, max_age_s=_SHARED_SCAN_S):
        with contextlib.suppress(OSError, IndexError, ValueError):
            found += int(_stat(pid)[_THREADS])
    return found


def lower_session_priorities(init: int, known: set[int]) -> None:
    """Lower the weight of the machine's sessions if the kernel groups processes by session (sched(7), autogroup).

    Then `nice` applies only within a session, and each setsid(2) would get another full share. `known`: sessions that are done.
    """
    if not _autogroups():
        return
    sessions = set()
    for pid in family(init, max_age_s=_SHARED_SCAN_S):
        with contextlib.suppress(OSError, IndexError, ValueError):
            sessions.add((int(_stat(pid)[_SESSION]), pid))
    known &= {session for session, _pid in sessions}
    for session, pid in sessions:
        if session in known or session == 0:
            continue
        try:
            with open(f"/proc/{pid}/autogroup", "w") as file:
                file.write("19")
        except BlockingIOError:
            return  # ten per second for a user; the rest follows next time
        except OSError:
            continue
        known.add(session)


def _autogroups() -> bool:
    try:
        with open("/proc/sys/kernel/sched_autogroup_enabled", "rb") as file:
            return file.read(1) == b"1"
    except OSError:
        return False
