"""Machines inherit no settings from the process that started their daemon: a cron job, an agent under `nice`, a shell."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gibil_bot.providers.local.paths import read_daemon
from tests.doubles.machines import LocalLodging, local_lodging, shared_folder
from tests.doubles.patience import patient

pytestmark = pytest.mark.usefixtures("local_machines")


@pytest.fixture
async def fresh(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalLodging]:
    async with local_lodging(tmp_path / "data", shared_folder(tmp_path_factory)) as lodging:
        yield lodging


# Any user may undo these; the ones below only root.
_ODD = """
import ctypes, os, resource, signal, socket, subprocess, sys
from pathlib import Path
libc = ctypes.CDLL(None, use_errno=True)
os.umask(0o077)
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGUSR2})
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
assert libc.prctl(29, 7_000_000, 0, 0, 0) == 0  # PR_SET_TIMERSLACK
assert libc.prctl(41, 1, 0, 0, 0) == 0  # PR_SET_THP_DISABLE
assert libc.syscall({"x86_64": 251, "aarch64": 30}[os.uname().machine], 1, 0, 3 << 13) == 0  # ioprio_set: idle
libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
Path("/proc/self/coredump_filter").write_text("0x7f")
Path("/proc/self/oom_score_adj").write_text("700")
for kind, soft in ((resource.RLIMIT_NOFILE, 300), (resource.RLIMIT_STACK, 1 << 20), (resource.RLIMIT_CPU, 3000),
                   (resource.RLIMIT_FSIZE, 1 << 33), (resource.RLIMIT_AS, 1 << 36), (resource.RLIMIT_NPROC, 4000)):
    resource.setrlimit(kind, (soft, soft if "hard" in sys.argv else resource.getrlimit(kind)[1]))
if "nice" in sys.argv:
    os.nice(15)
"""


async def start_daemon(lodging: LocalLodging, *odd: str) -> None:
    """Start the daemon from a process with unusual settings, which also leaves a descriptor open."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n{_ODD}\n"
        "from gibil_bot.providers.local import daemon_start\n"
        f"daemon_start.begin(Path({str(lodging.data_dir)!r}))\n"
    )
    left, right = socket.socketpair()
    with left, right:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, *odd, pass_fds=[right.fileno()], start_new_session=True
        )
        right.close()
        async with asyncio.timeout(patient(30)):
            assert await process.wait() == 0
            await asyncio.get_running_loop().run_in_executor(None, left.recv, 1)  # returns when no process holds the other end
    async with asyncio.timeout(patient(30)):
        while read_daemon(lodging.paths) is None:  # written by another process
            await asyncio.sleep(0.01)


def state(pid: int) -> dict[str, str]:
    """Return the state of a process that its children inherit."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    found: dict[str, str] = {
        name: status[name].strip() for name in ("Umask", "SigBlk", "SigIgn", "Cpus_allowed", "THP_enabled") if name in status
    }
    found |= {"nice": fields[16].decode(), "policy": fields[38].decode()}
    for name in ("oom_score_adj", "personality", "timerslack_ns", "coredump_filter"):
        with contextlib.suppress(PermissionError):  # only root may read some of them
            found[name] = Path(f"/proc/{pid}/{name}").read_text().strip()
    number = {"x86_64": 252, "aarch64": 31}[os.uname().machine]
    found["io priority"] = str(ctypes.CDLL(None).syscall(number, 1, pid) >> 13)
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]:
        found[line[:26].strip()] = " ".join(line[26:].split()[:2])
    return found


def all_processors() -> str:
    with subprocess.Popen(
        [sys.executable, "-c", "import os; os.sched_setaffinity(0, range(4096)); input()"], stdin=-1, stdout=-1
    ) as it:
        assert it.stdin is not None
        while True:
            here = state(it.pid)["Cpus_allowed"]
            it.stdin.close()
            return here


EXPECTED = {
    "Umask": "0022",
    "SigBlk": "0000000000000000",
    "THP_enabled": "1",
    "nice": "0",
    "policy": "0",
    "oom_score_adj": "0",
    "personality": "00000000",
    "timerslack_ns": "50000",
    "coredump_filter": "00000033",
    "io priority": "0",
}
SOFT = {
    "Max open files": "1024",
    "Max stack size": str(8 << 20),
    "Max cpu time": "unlimited",
    "Max file size": "unlimited",
    "Max address space": "unlimited",
}


async def test_settings_of_the_starting_process_are_not_inherited(fresh: LocalLodging) -> None:
    await start_daemon(fresh)
    for pid in (fresh.daemon_pid(), fresh.fork_server_pid()):
        seen = state(pid)
        assert {name: seen.get(name, expected) for name, expected in EXPECTED.items()} == EXPECTED
        assert os.geteuid() != 0 or EXPECTED.keys() <= seen.keys()
        assert int(seen["SigIgn"], 16) & (1 << 1 | 1 << 9) == 0, "SIGINT and SIGUSR1"
        assert seen["Cpus_allowed"] == all_processors()
        if pid == fresh.fork_server_pid():  # the daemon itself raises its limit of open files
            assert {name: seen[name].split()[0] for name in SOFT} == SOFT
    machine = await fresh.provider.create(fresh.spec("plain"))
    command = (
        "umask; ulimit -Sn; nproc; grep -E 'SigBlk|Cpus_allowed:' /proc/self/status; ls -l /proc/self/fd | grep -c socket:"
    )
    umask, files, _processors, blocked, processors, sockets = str((await fresh.run(machine, command)).stdout).splitlines()
    assert (umask, files, blocked.split()[1], sockets) == ("0022", "4096", "0000000000000000", "0")
    seen_by_machine, whole = (int(text.replace(",", ""), 16) for text in (processors.split()[1], all_processors()))
    assert seen_by_machine & ~whole == 0
    assert seen_by_machine.bit_count() >= min(2, whole.bit_count())


def may(attempt: str) -> bool:
    """Return whether a new process may do this: root may, unless it lacks the capability."""
    code = f"import os, resource\n{attempt}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def may_raise_limits() -> bool:
    return may("for most in 300, 1024: resource.setrlimit(resource.RLIMIT_NOFILE, (300, most))")


async def test_hard_limits_and_niceness_are_reset_if_permitted(fresh: LocalLodging) -> None:
    if not may_raise_limits() or not may("os.nice(15); os.setpriority(os.PRIO_PROCESS, 0, 0)"):
        pytest.skip("raising them again needs CAP_SYS_RESOURCE and CAP_SYS_NICE")
    await start_daemon(fresh, "hard", "nice")
    seen = state(fresh.fork_server_pid())
    assert {name: seen[name].split()[0] for name in SOFT} == SOFT
    assert (seen["Max open files"], seen["nice"]) == ("1024 524288", "0")
    assert (await fresh.provider.probe()).inherited == ()


async def test_inherited_settings_that_cannot_be_reset_are_reported_and_machines_work(fresh: LocalLodging) -> None:
    if may_raise_limits():
        pytest.skip("every setting can be reset here")
    await start_daemon(fresh, "hard", "nice")
    output = " ".join((await fresh.provider.probe()).inherited)
    assert "open files 300" in output
    assert "processor time 3000" in output
    assert ("nice value 15" in output) is not may("os.nice(15); os.setpriority(os.PRIO_PROCESS, 0, 0)")
    machine = await fresh.provider.create(fresh.spec("hobbled"))
    assert int(str((await fresh.run(machine, "ulimit -Hn")).stdout)) <= 300


async def test_machines_are_created_although_the_oom_score_cannot_be_lowered(fresh: LocalLodging) -> None:
    """As on a system that set it: then it is the lowest value that gibil's processes may have (proc(5))."""
    if os.geteuid() != 0:
        pytest.skip("only root can set a minimum score")
    code = """
import ctypes, os, sys
from pathlib import Path
Path("/proc/self/oom_score_adj").write_text("900")
os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: /proc/self is its own again
pid = gibil_bot.providers.local.init.JobPriorities(nice=False).fork()
if pid == 0:
    print(Path("/proc/self/oom_score_adj").read_text().strip(), flush=True)
    os._exit(0)
os.waitpid(pid, 0)
"""
    here = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {here!r})\nimport gibil_bot.providers.local.init\n{code}"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=patient(60)
    )
    assert (done.stdout, done.stderr) == ("900\n", "")
