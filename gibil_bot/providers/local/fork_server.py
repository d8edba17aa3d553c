"""Fork server: a small single-threaded process that forks machines for the daemon and waits for them.

PDEATHSIG is sent when the *thread* that forked ends, and a child of a process with an event loop would unwind into that loop.
So machines are forked here, in a process with one thread and nothing else to do. It is started with an empty environment and
gets no secret, because PID 1 of every machine is a copy of it.

  {"spawn": id, "request": SpawnRequest} with the control socket      → {"init": id, "pid": host pid of PID 1}
      and with the detached mounts of its disk and layers, as far as they are images
  {"kill": id}                                                        kill PID 1, and with it the whole machine
                                                                      → {"dead": id} when all its processes have ended
  {"look": id, "folder": path, "files": most, "seconds": s}           → {"look": id, "tree": [kb, files, complete]}
  {"look": id, "empty": path}                                         empty the trash → {"look": id, "tree": [0, 0, true]}
                                                                        "tree": null when it failed
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gibil_bot.providers.local import spawn
from gibil_bot.providers.local import syscalls as sc
from gibil_bot.providers.local.disk_usage import DiskUsage, measure_folder
from gibil_bot.providers.local.fd_passing import receive
from gibil_bot.providers.local.mounts import SpawnRequest
from gibil_bot.providers.local.trash import empty_trash

FIRST_UID = 0x7000_0000
"""Above the ranges of distributions, user directories and systemd-nspawn (https://systemd.io/UIDS-GIDS/)."""

RANGES = 4094
_MESSAGE_BYTES = 256 * 1024
_MOST_FDS = 16


class _Machine:
    """One machine, from the first fork until its PID 1 has ended."""

    def __init__(self, number: int, folder: str, go: int, report: int) -> None:
        self.number, self.folder, self.go, self.report = number, folder, go, report
        self.init: int | None = None
        self.doomed = False


class ForkServer:
    """Handles the requests on `link`."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._entering: dict[int, _Machine] = {}
        """pid of the first child → machine."""
        self._living: dict[int, _Machine] = {}
        """pid of PID 1 → machine."""
        self._looking: dict[int, tuple[int, int]] = {}
        """pid of a child that measures a folder → (id of the request, its pipe)."""
        self._wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def loop(self) -> None:
        """Serve until the daemon's end of the link closes. Then the process exits, and every machine dies with it."""
        poll = select.poll()
        poll.register(self._link.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = {fd for fd, _event in poll.poll()}
            if self._wake in ready:
                os.read(self._wake, 4096)
                self._reap()
            if self._link.fileno() in ready:
                message, fds = receive(self._link, _MESSAGE_BYTES, _MOST_FDS)
                if not message:
                    return
                self._handle(json.loads(message), fds)

    def _handle(self, request: dict[str, Any], fds: list[int]) -> None:
        if "spawn" in request:
            with socket.socket(fileno=fds[0]) as control:
                try:
                    self._spawn(request["spawn"], request["request"], control, fds[1:])
                except OSError as error:
                    text = json.dumps({"failed": "forking", "errno": error.errno, "text": error.strerror or str(error)})
                    control.send(text.encode())
                    self._send({"dead": request["spawn"]})
                finally:
                    for fd in fds[1:]:
                        os.close(fd)
        elif "look" in request:
            self._look(request)
        elif "kill" in request:
            for machine in (*self._entering.values(), *self._living.values()):
                if machine.number == request["kill"]:
                    machine.doomed = True  # killed as soon as its PID 1 is our child
                    if machine.init is not None:
                        os.kill(machine.init, signal.SIGKILL)  # a child that wasn't waited for: its pid isn't reused

    def _look(self, request: dict[str, Any]) -> None:
        """Measure a folder, or empty the trash, in a child process, because many files take seconds."""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
        except OSError:
            os.close(read)
            os.close(write)
            self._send({"look": request["look"], "tree": None})
            return
        if pid == 0:
            try:
                signal.set_wakeup_fd(-1)
                sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
                os.nice(10)
                if os.geteuid():
                    spawn.become_owner()
                if "empty" in request:
                    empty_trash(Path(request["empty"]))
                    tree = DiskUsage(0, 0, True)
                else:
                    tree = measure_folder(request["folder"], request["files"], request["seconds"])
                os.write(write, json.dumps(tree).encode())
            finally:
                os._exit(0)
        os.close(write)
        self._looking[pid] = request["look"], read

    def _looked(self, number: int, read: int) -> None:
        answer = os.read(read, 4096)
        os.close(read)
        self._send({"look": number, "tree": json.loads(answer) if answer else None})

    def _spawn(self, number: int, request: SpawnRequest, control: socket.socket, disks: list[int]) -> None:
        folder = f"{request['local']}/machines/{request['name']}"
        locks = [os.open(f"{folder}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)]
        fcntl.flock(locks[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        opened: list[int] = list(locks)
        try:
            if request["privilege"] == "root":
                request["base"], lock = _claim_range([layer["base"] for layer in request["layers"]])
                locks.append(lock)
                opened.append(lock)
            go_read, go_write = os.pipe2(os.O_CLOEXEC)
            report_read, report_write = os.pipe2(os.O_CLOEXEC)
            opened += [go_read, report_write]
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                os.close(go_write)
                spawn.enter(request, control, go_read, report_write, tuple(locks), disks)
            self._entering[pid] = _Machine(number, folder, go_write, report_read)
        finally:
            for fd in opened:
                os.close(fd)

    def _reap(self) -> None:
        gone = []
        while True:
            try:
                pid, _status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            gone.append(pid)
        for pid in gone:
            if machine := self._entering.pop(pid, None):
                self._entered(machine)
        for pid in gone:
            if look := self._looking.pop(pid, None):
                self._looked(*look)
        for pid in gone:
            if machine := self._living.pop(pid, None):
                os.close(machine.go)
                self._send({"dead": machine.number})

    def _entered(self, machine: _Machine) -> None:
        """The first child has ended, so its PID 1, if it exists, is our child now."""
        reported = os.read(machine.report, 32)
        os.close(machine.report)
        if not reported:
            os.close(machine.go)
            self._send({"dead": machine.number})
            return
        machine.init = int(reported)
        self._living[machine.init] = machine
        _remember(machine.folder, machine.init)
        if machine.doomed:
            os.kill(machine.init, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError):  # PID 1 failed, and has reported that itself
            os.write(machine.go, b"1")
        self._send({"init": machine.number, "pid": machine.init})

    def _send(self, answer: dict[str, Any]) -> None:
        self._link.send(json.dumps(answer).encode())


def _claim_range(preferred: Sequence[int] = ()) -> tuple[int, int]:
    """Return the first uid of a free range, and its lock.

    The machine holds the lock, so no two machines on this host share a range, whatever their data directories. `preferred`:
    first uids of the layers below the machine, whose owners needn't be mapped to other ids if it has the same range.
    """
    folder = "/run/gibil-uids"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    numbers = [(base - FIRST_UID) // spawn.IDS for base in preferred]
    for number in (*(number for number in numbers if 0 <= number < RANGES), *range(RANGES)):
        lock = os.open(f"{folder}/{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return FIRST_UID + number * spawn.IDS, lock
    raise OSError(11, "machines use all ranges of user ids")


def _remember(folder: str, pid: int) -> None:
    """Store the pid and start time of PID 1, so that the cleanup after a crash can wait for it and not for a later process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            started = int(file.read().rpartition(b")")[2].split()[19])
        with open(f"{folder}/lock", "w") as file:
            file.write(f"{pid} {started}\n")
    except OSError:
        pass  # it has ended already


def main(link: str, daemon: str) -> None:
    """Run the fork server. `link`: number of the inherited descriptor; `daemon`: the daemon's pid. It dies with the daemon."""
    sc.prctl(sc.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(daemon):
        return
    sc.prctl(sc.PR_SET_CHILD_SUBREAPER, 1)
    sc.set_process_name("gibil-forger")
    link_fd = int(link)
    os.set_inheritable(link_fd, False)
    gc.collect()
    gc.freeze()  # memory shared with every PID 1 stays shared, because the collector doesn't write to it any more
    with socket.socket(fileno=link_fd) as daemon_end:
        ForkServer(daemon_end).loop()
