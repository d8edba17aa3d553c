"""Runs one PostgreSQL server for postgres.py, as another user if this one is root, and ends with the tests.

    python -I postmaster.py CHANNEL FOLDER UID GID PROGRAM ARGUMENT…

CHANNEL is the descriptor of a socket to the tests. Each request is one packet: `start`, the number of a signal for the
server, or `crash`, which kills all its processes. Each message is one packet: `ready`, or `ended` once no process of the server
is left. When the tests close the socket, or are killed, the server ends and FOLDER, which contains the data in `data`, is
deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import sys
from pathlib import Path

CLONE_NEWIPC = 0x0800_0000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
IPC_RMID = 0
READY_POLL_MS = 5

libc = ctypes.CDLL(None, use_errno=True)


class Postmaster:
    def __init__(self, folder: Path, uid: int, gid: int, command: list[str]) -> None:
        self._status_file = folder / "data" / "postmaster.pid"
        self._log = folder / "log"
        self._uid, self._gid = uid, gid
        self._command = command
        self._parent = os.getpid()
        self.pid = 0
        self.descriptor = -1

    def start(self) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become()
            finally:
                os._exit(127)
        self.descriptor = os.pidfd_open(self.pid)

    def _become(self) -> None:
        log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for number, fd in enumerate((nothing, log, log)):
            os.dup2(fd, number)
        os.closerange(3, 1 << 12)
        if self._uid != os.geteuid():
            libc.unshare(CLONE_NEWIPC)  # so that no segment of shared memory remains if this process's parent is killed, too
            os.setgroups([])
            os.setgid(self._gid)
            os.setuid(self._uid)
        # After the change of the user, which resets it.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT)
        if os.getppid() == self._parent:
            os.execve(self._command[0], self._command, {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"})

    def is_ready(self) -> bool:
        """Return whether it accepts connections, as pg_ctl does."""
        try:
            lines = self._status_file.read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def crash(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)  # so that it starts no further process
        for child in children_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait until no process of the server is left: those whose parent died are children of this process."""
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        os.close(self.descriptor)
        self.pid, self.descriptor = 0, -1

    def release_memory(self) -> None:
        """Delete the System V segment that a killed server has left; its next start would do so."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            libc.shmctl(int(self._status_file.read_text().splitlines()[6].split()[1]), IPC_RMID, None)


def children_of(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.read_bytes().rpartition(b")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def serve(channel: socket.socket, postmaster: Postmaster) -> None:
    """Carry out requests until the tests have closed the channel."""
    starting = False
    while True:
        waiting = select.poll()
        waiting.register(channel, select.POLLIN)
        if postmaster.pid:
            waiting.register(postmaster.descriptor, select.POLLIN)
        # While it starts, poll its file, because it sends no event.
        ready = [fd for fd, _ in waiting.poll(READY_POLL_MS if starting else None)]
        if postmaster.descriptor in ready:
            postmaster.wait()
            starting = False
            channel.send(b"ended")
        elif starting and postmaster.is_ready():
            starting = False
            channel.send(b"ready")
        if channel.fileno() not in ready:
            continue
        request = channel.recv(16)
        if not request:
            return
        if request == b"start":
            postmaster.start()
            starting = True
        elif postmaster.pid and request == b"crash":
            postmaster.crash()
        elif postmaster.pid:
            os.kill(postmaster.pid, int(request))


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    folder = Path(sys.argv[2])
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    postmaster = Postmaster(folder, int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
    try:
        with contextlib.suppress(ConnectionError):  # the tests have ended
            serve(channel, postmaster)
    finally:
        if postmaster.pid:
            os.kill(postmaster.pid, signal.SIGQUIT)
            postmaster.wait()
        postmaster.release_memory()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
