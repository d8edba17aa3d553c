"""Detached jobs, started by PID 1 itself, so that their exit status comes from the kernel and no program of the machine.

Each job has two processes, both children of PID 1. The *job* waits until everything is prepared, and executes its interpreter.
The *recorder* stays a copy of PID 1, which no process of the machine may trace: it creates the job's folder as scripts/jobs.py
does (so that the same scripts follow it), and copies the job's pipes into its files. When PID 1 has reaped the job, it tells
the recorder, which copies what is in the pipes at that moment, writes `rc` and releases the lock.

Like every process but PID 1, the recorder can be killed. Then the output ends early, but the status is still known. PID 1
continues a recorder that was stopped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
from typing import Any, NoReturn

from gibil_bot.providers.local.fd_passing import unread_bytes

_BLOCK = 128 * 1024
_HOME = "/root"
_NEW = os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Flags for files in a directory where earlier jobs can write: links aren't followed, and FIFOs don't block."""


_IN_THE_WAY = (errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM)
"""Errors when something else exists where a folder should be created."""


class Launch:
    """Shared by PID 1, the job and the recorder: PID 1 constructs it and forks, then each process calls its own method."""

    def __init__(self, spec: int, reply: int, *, merged: bool) -> None:
        """`spec`: descriptor of a file with the job as JSON. `reply`: pipe for the line that the client of the job gets."""
        self._spec, self._reply = spec, reply
        self._opened: list[int] = []
        try:
            self._start_read, self._start_write = self._pipe()
            self._pipes = [self._pipe() for _ in range(1 if merged else 2)]
            self.control, self._control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            self._close(self._opened)
            raise
        self.control.setblocking(False)

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe2(os.O_CLOEXEC)
        self._opened += ends
        return ends

    def parent(self) -> socket.socket:
        """Call in PID 1 when both processes run. Returns the socket for `report`."""
        self._close(self._opened)
        self._control.close()
        return self.control

    def abandon(self) -> None:
        """Call in PID 1 when one of them could not be started; the other one ends by itself."""
        self.parent().close()

    def await_start(self) -> tuple[dict[str, Any], list[int]]:
        """Call in the job:

        wait for the recorder; returns {argv, env, cwd} and stdin, stdout, stderr. Exits if the recorder failed.
        """
        os.close(self._start_write)
        path = os.read(self._start_read, 4096)
        if not path:
            os._exit(125)
        spec = _read(self._spec)
        spec["argv"] = [word.replace("{0}", path.decode()) for word in spec["argv"]]
        return spec, [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), self._pipes[0][1], self._pipes[-1][1]]

    def record(self) -> NoReturn:
        """Run the recorder."""
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_IGN)
            os.setsid()
            reads = [read for read, _ in self._pipes]
            spec = _read(self._spec)
            _close_all_but({*reads, self._reply, self._start_write, self._control.fileno()})
            recorder = _Recorder(spec, reads, self._control)
            problem = recorder.prepare()
            with contextlib.suppress(OSError):  # a client that has disconnected doesn't stop the job
                os.write(self._reply, f"{problem or 'gibil:started'}\n".encode())
            if problem:
                os._exit(1)
            os.close(self._reply)
            os.write(self._start_write, recorder.script.encode())
            os.close(self._start_write)
            recorder.copy()
        finally:
            os._exit(1)

    @staticmethod
    def _close(fds: list[int]) -> None:
        for fd in fds:
            os.close(fd)
        fds.clear()


def report(control: socket.socket, status: int) -> None:
    """Send the exit status (0 to 255) to the recorder. Never blocks and never raises, since the recorder may have ended."""
    with contextlib.suppress(OSError):
        control.send(b"%d" % status)
    control.close()


class _Recorder:
    def __init__(self, spec: dict[str, Any], reads: list[int], control: socket.socket) -> None:
        self._spec, self._reads, self._control = spec, reads, control
        self._files: dict[int, int | None] = {}
        """read end → file; None if it can't be written any more."""
        self._left: dict[int, int | None] = {}
        self._rc = self._lock = -1
        self._cut = False
        self.script = ""

    def prepare(self) -> str | None:
        """Create the job's folder. Returns the line for the client if the job can't start."""
        folder = self._spec["folder"]
        if not os.path.isdir(self._spec["cwd"]):
            return f"gibil:failed {self._spec['no_folder']}"
        os.umask(0o077)
        jobs = f"{_HOME}/.gibil/jobs"
        problem: OSError | None = None
        for obstacle in (None, jobs, os.path.dirname(jobs)):
            try:
                if obstacle is not None:
                    _move_away(obstacle)
                self._make_files(jobs, folder)
            except OSError as error:
                problem = error
                if error.errno not in _IN_THE_WAY:
                    break
            else:
                return None
        assert problem is not None
        return f"gibil:failed cannot write to its directory (is the disk full?): {problem.strerror}"

    def _make_files(self, jobs: str, folder: str) -> None:
        """Create the job's files. The job is new, so existing files with these names are from other jobs and are moved away."""
        own, lock = f"{jobs}/{folder}", f"{jobs}/.{folder}.lock"
        os.makedirs(jobs, exist_ok=True)
        for path in (own, lock):
            _move_away(path)
        self._lock = os.open(lock, _NEW | os.O_EXCL, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.mkdir(own, 0o700)
        self.script = f"{own}/script.{os.getpid()}"
        _write(self.script, self._spec["script"].encode("utf-8", "surrogateescape"))
        for read, name in zip(self._reads, ("out", "err"), strict=False):
            self._files[read] = os.open(f"{own}/{name}", _NEW, 0o600)
            self._left[read] = self._spec["limit"]
        if self._spec["returns"]:
            _write(f"{own}/returns", "".join(f"{path}\n" for path in self._spec["returns"]).encode())
        _write(f"{own}/rc", b"...    \n")
        self._rc = os.open(f"{own}/rc", os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        _write(f"{own}/pid", b"%d\n" % os.getpid())

    def copy(self) -> NoReturn:
        """Copy until no process holds the pipes any more."""
        poll = select.poll()
        for fd in (*self._reads, self._control.fileno()):
            poll.register(fd, select.POLLIN)
        while self._reads or self._lock >= 0:
            for fd, _event in poll.poll():
                if fd == self._control.fileno():
                    poll.unregister(fd)
                    self._finish(self._control.recv(16))
                elif fd in self._reads and not self._copy_block(fd, _BLOCK):
                    poll.unregister(fd)
                    self._reads.remove(fd)
                    os.close(fd)
        os._exit(0)

    def _finish(self, status: bytes) -> None:
        """Copy what was in the pipes when the job ended, although other processes may still print, and store the status."""
        for read in self._reads:
            unread = unread_bytes(read)
            while unread > 0:
                count = self._copy_block(read, min(unread, _BLOCK))
                if not count:
                    break
                unread -= count
        if status:
            words = status + b" cut" if self._cut else status
            os.pwrite(self._rc, words.ljust(7) + b"\n", 0)
        os.close(self._lock)
        self._lock = -1

    def _copy_block(self, read: int, size: int) -> int:
        """Copy at most `size` bytes; returns how many. 0: nothing more is read from this pipe."""
        data = os.read(read, size)
        left = self._left[read]
        if left is not None:
            if len(data) > left:
                self._cut = True
                self._store(read, data[:left])
                self._left[read] = 0
                return 0
            self._left[read] = left - len(data)
        self._store(read, data)
        return len(data)

    def _store(self, read: int, data: bytes) -> None:
        view = memoryview(data)
        file = self._files[read]
        while view and file is not None:
            try:
                view = view[os.write(file, view) :]
            except OSError:  # the disk is full; the job continues
                self._cut = True
                self._files[read] = file = None


def _read(fd: int) -> dict[str, Any]:
    """Read the job without using the file position, which two processes share."""
    spec = json.loads(os.pread(fd, os.fstat(fd).st_size, 0))
    assert isinstance(spec, dict)
    return spec


def _move_away(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, f"{path}.{os.getpid()}~")


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, _NEW, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _close_all_but(keep: set[int]) -> None:
    """Close all other descriptors of a process that doesn't exec and can't read its own /proc."""
    start = 0
    for fd in sorted(keep):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1 << 20)
    null = os.open(os.devnull, os.O_RDWR)
    while null < 2:
        null = os.dup(null)
