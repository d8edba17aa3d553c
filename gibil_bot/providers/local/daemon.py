"""The daemon of local machines: one process per data directory that owns its machines, independent of their creators.

It creates and destroys machines, serves their SSH and egress, and enforces their time to live. It is started on demand, has
no terminal, and ends by itself when it has had no machine for a while. When it is killed, the kernel kills the fork server and
with it every machine; their folders are left, and the next daemon removes those first.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import resource
import signal
import sys
import time
from pathlib import Path

from gibil_bot.errors import GibilError
from gibil_bot.providers.local.daemon_start import IDLE_S
from gibil_bot.providers.local.fd_passing import close_others
from gibil_bot.providers.local.fork_client import ForkClient
from gibil_bot.providers.local.paths import PROTOCOL, DaemonRecord, LocalPaths, code_version, read_daemon, write_daemon
from gibil_bot.providers.local.process_state import become_neutral

_LOCK_WAIT_S = 10.0


def main(data_dir: str, idle_s: str = str(IDLE_S), starting: str = "") -> None:
    """Start the daemon in the background, and exit when it answers. Prints the reason and exits with 1 if it can't run.

    `starting`: a descriptor that this process keeps open and the daemon closes.
    """
    gc.set_threshold(25_000, 20, 20)  # imported objects stay: searching them for garbage would delay the first machine
    close_others({int(starting)} if starting else set())
    paths = LocalPaths(Path(data_dir))
    try:
        paths.prepare()
        runtime = paths.runtime()
    except GibilError as error:
        sys.exit(error.message)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(ready_write)
        message = os.read(ready_read, 4096)
        if message != b"ready":
            sys.exit(
                message.decode(errors="replace") or f"the local-machine daemon ended at once; see {paths.local}/keeper.log"
            )
        os._exit(0)
    os.close(ready_read)
    if starting:
        os.close(int(starting))
    os.setsid()
    _detach(paths)
    inherited = become_neutral()
    if inherited:
        sys.stderr.write(f"machines inherit from the starter, because it cannot be undone: {', '.join(inherited)}\n")
    lock = os.open(paths.local / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _acquire(lock):
        running = read_daemon(paths)
        holder = f"process {running.pid}" if running else "another process"
        os.write(ready_write, f"{holder} runs the local machines of {paths.data_dir} and doesn't answer; end it".encode())
        os._exit(1)
    status = 1
    try:
        # Under the lock, because the previous daemon removed its folder when it ended.
        runtime.mkdir(mode=0o700, exist_ok=True)
        _run(paths, runtime, ready_write, float(idle_s), inherited)
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def _detach(paths: LocalPaths) -> None:
    os.chdir("/")
    log = os.open(paths.local / "keeper.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(null)


def _acquire(lock: int) -> bool:
    """Lock the file; the previous daemon may be ending. False if it doesn't."""
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _run(paths: LocalPaths, runtime: Path, ready: int, idle_s: float, inherited: tuple[str, ...]) -> None:
    link = ForkClient.start()  # in parallel with the imports below, which take longer
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    import uvloop  # output of jobs passes through here, 1.5 times as fast as with asyncio's own loop

    from gibil_bot.providers.local.registry import MachineRegistry

    gc.freeze()
    for stale in runtime.glob("*.sock"):
        stale.unlink()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(paths, runtime, link, ready, idle_s, inherited, MachineRegistry))


async def _serve(
    paths: LocalPaths,
    runtime: Path,
    link: ForkClient,
    ready: int,
    idle_s: float,
    inherited: tuple[str, ...],
    registry_type: type,
) -> None:
    from gibil_bot.providers.local.control_server import ControlServer
    from gibil_bot.providers.local.managed_machine import load_ssh_server

    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.set)
    loop.set_exception_handler(_log_failure)
    registry = registry_type(paths, runtime, link, inherited)
    control_server = ControlServer(registry, ending, idle_s)
    await registry.clear_leftovers()
    server = await asyncio.start_unix_server(control_server.attend, path=runtime / "control.sock", limit=1024 * 1024)
    (runtime / "control.sock").chmod(0o600)
    write_daemon(
        paths, DaemonRecord(pid=os.getpid(), socket=str(runtime / "control.sock"), protocol=PROTOCOL, version=code_version())
    )
    os.write(ready, b"ready")
    os.close(ready)
    await load_ssh_server()
    gc.freeze()
    idle = loop.create_task(control_server.watch_idleness())
    await ending.wait()
    idle.cancel()
    server.close()
    with contextlib.suppress(FileNotFoundError):
        (runtime / "control.sock").unlink()
    await control_server.finish()
    await registry.close()
    with contextlib.suppress(OSError):  # parts of a machine are left; the next daemon removes them
        os.rmdir(runtime)


def _log_failure(loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    sys.stderr.write(time.strftime("%Y-%m-%dT%H:%M:%S "))
    loop.default_exception_handler(context)
