"""Resetting what the daemon inherits from its starter, which may be a cron job or an agent under `nice`.

This defines what processes on machines start with. Reset: resource limits, niceness, scheduling policy, processors, I/O
priority, OOM score, timer slack, signals, umask, personality, memory policy, huge pages, open descriptors. An ordinary user can
neither raise a hard limit nor lower a nice value; what can't be reset is reported. Not reset: the control group, with which an
operator limits the whole service, and the namespaces.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path

from gibil_bot.providers.local.syscalls import prctl, reset_io_priority, reset_memory_policy, reset_personality

OPEN_FILES = (1024, 524_288)
"""Soft and hard, as systemd has them for services."""

_ENOUGH_FILES = 4096
"""A lower hard limit is reported; this one is common for logins."""
_ENDLESS = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
_LOCKED = 8 * 1024**2
LIMITS: dict[str, tuple[int, tuple[int, int]]] = {
    "open files": (resource.RLIMIT_NOFILE, OPEN_FILES),
    "stack bytes": (resource.RLIMIT_STACK, (8 * 1024**2, resource.RLIM_INFINITY)),
    "processor time": (resource.RLIMIT_CPU, _ENDLESS),
    "bytes of a file": (resource.RLIMIT_FSIZE, _ENDLESS),
    "bytes of data": (resource.RLIMIT_DATA, _ENDLESS),
    "bytes of address space": (resource.RLIMIT_AS, _ENDLESS),
    "resident bytes": (resource.RLIMIT_RSS, _ENDLESS),
    "core bytes": (resource.RLIMIT_CORE, (0, resource.RLIM_INFINITY)),
    "locked bytes": (resource.RLIMIT_MEMLOCK, (_LOCKED, _LOCKED)),
    "message queue bytes": (resource.RLIMIT_MSGQUEUE, (819_200, 819_200)),
    "realtime priority": (resource.RLIMIT_RTPRIO, (0, 0)),
    "nice ceiling": (resource.RLIMIT_NICE, (0, 0)),
}
"""Limits of everything that the daemon starts: the kernel's defaults except open files (setrlimit(2)). The numbers of processes
and of queued signals are the host's; machines have their own limit of processes."""

_OF_THE_HOST = {
    "processes": (resource.RLIMIT_NPROC, "Max processes"),
    "pending signals": (resource.RLIMIT_SIGPENDING, "Max pending signals"),
}
_UNIMPORTANT = ("locked bytes", "message queue bytes", "core bytes")
"""Often below the kernel's defaults, without effect on builds, so not reported."""

_TIMER_SLACK_NS = 50_000
_PR_SET_TIMERSLACK, _PR_MCE_KILL, _PR_SET_THP_DISABLE, _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 29, 33, 41, 47, 4
_MOST_PROCESSORS = 8192


def become_neutral() -> tuple[str, ...]:
    """Reset what can be reset; return the rest, for people. Call with one thread, before any other process is started."""
    _reset_signals()
    os.umask(0o022)
    stays = [*_reset_scheduling(), *_reset_limits()]
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("0")
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0x33")
    for reset in (reset_personality, reset_io_priority, reset_memory_policy):
        with contextlib.suppress(OSError):
            reset()
    for option, *arguments in (
        (_PR_SET_TIMERSLACK, _TIMER_SLACK_NS),
        (_PR_MCE_KILL, 0),
        (_PR_SET_THP_DISABLE, 0),
        (_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL),
    ):
        with contextlib.suppress(OSError):  # not supported by this kernel
            prctl(option, *arguments)
    return tuple(stays)


def _reset_signals() -> None:
    """Reset ignored signals: processes that a script starts with `&` ignore SIGINT and SIGQUIT."""
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # ignored by Python; PID 1 resets them
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _reset_scheduling() -> list[str]:
    stays = []
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, range(_MOST_PROCESSORS))  # the kernel reduces it to the processors of our control group
    if (nice := os.getpriority(os.PRIO_PROCESS, 0)) != 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, 0)
        except OSError:
            stays.append(f"nice value {nice}")
    if os.sched_getscheduler(0) != os.SCHED_OTHER:
        try:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        except OSError:
            stays.append("its scheduling policy")
    return stays


def _reset_limits() -> list[str]:
    limits = dict(LIMITS)
    for name, (kind, line) in _OF_THE_HOST.items():
        if (values := _host_limit(line)) is not None:
            limits[name] = kind, values
    stays = []
    for name, (kind, (soft, hard)) in limits.items():
        if _set_limit(kind, soft, hard) or name in _UNIMPORTANT or name in _OF_THE_HOST:
            continue
        highest = resource.getrlimit(kind)[1]
        if name != "open files" or highest < _ENOUGH_FILES:
            stays.append(f"{name} {highest}")
    return stays


def _set_limit(kind: int, soft: int, hard: int) -> bool:
    """Set a limit. False if the hard limit can't be raised as far as requested."""
    try:
        resource.setrlimit(kind, (soft, hard))
    except (ValueError, OSError):
        highest = resource.getrlimit(kind)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (highest if _exceeds(soft, highest) else soft, highest))
        return False
    return True


def _exceeds(value: int, bound: int) -> bool:
    return bound != resource.RLIM_INFINITY and (value == resource.RLIM_INFINITY or value > bound)


def _host_limit(line: str) -> tuple[int, int] | None:
    """Return the soft and hard limit of the host's PID 1, which has the kernel's defaults."""
    with contextlib.suppress(OSError, ValueError):
        for text in Path("/proc/1/limits").read_text().splitlines():
            if text.startswith(line):
                soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in text[26:].split()[:2])
                return soft, hard
    return None
