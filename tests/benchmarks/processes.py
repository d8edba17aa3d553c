"""Processes that a benchmark starts: pinned to CPUs, measured from /proc, and ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
QUIET_S = 0.4
STOP_WITHIN_S = 15.0


def cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def server_cpus() -> set[int]:
    """Return the CPUs of the measured side: the first one, or the only one."""
    return {cpus()[0]}


def client_cpus() -> set[int]:
    """Return the CPUs of the load: all others, or the only one."""
    return set(cpus()[1:]) or server_cpus()


@contextlib.contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, on_cpus: set[int] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a new process group, with its output in `log`; at the end it and its children are killed."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        if on_cpus is not None:
            os.sched_setaffinity(process.pid, on_cpus)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(what: str, condition: Callable[[], bool], *, within_s: float, every_s: float = 0.002) -> float:
    """Return the seconds until the condition held. Raises TimeoutError."""
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > within_s:
            raise TimeoutError(f"{what} did not happen within {within_s:g} s")
        time.sleep(every_s)
    return time.perf_counter() - start


def tree(pid: int) -> list[int]:
    """Return the process and all its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{parent}/task"):
                found += [int(word) for word in Path(f"/proc/{parent}/task/{thread}/children").read_text().split()]
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of the process and its descendants, including those that have ended."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def resident_mb(pid: int) -> float:
    """Return the resident memory of the process and its descendants; shared pages are counted in each."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{each}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
    return total / 1024


def wait_until_quiet(pid: int, *, within_s: float = 120.0) -> None:
    """Wait until the process has used almost no CPU for a moment, because its work is done."""
    deadline = time.perf_counter() + within_s
    before = cpu_s(pid)
    while time.perf_counter() < deadline:
        time.sleep(QUIET_S)
        after = cpu_s(pid)
        if after - before <= 0.05 * QUIET_S:
            return
        before = after
    raise TimeoutError(f"process {pid} did not come to rest within {within_s:g} s")
