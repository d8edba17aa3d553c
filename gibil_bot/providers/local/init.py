"""PID 1 of a machine: starts and kills processes for the daemon, reaps, and ends the machine when the daemon has ended.

Requests and answers are JSON datagrams on one SOCK_SEQPACKET socket, with descriptors (SCM_RIGHTS).
  {"spawn": id, "argv": […], "env": {…}} with stdin, stdout, stderr    → {"exit": id, "status": waitstatus as exit code}
  {"spawn": id, …, "plain": [tag, command]}                            the same, if the machine has no environment: see _plain
  {"spawn": id, …, "size": [columns, rows]} without descriptors        → {"terminal": id} with the pty's master, then exit
  {"spawn": id, "job": true, "merged": bool} with spec, reply pipe    → exit
  {"kill": id, "signal": n, "session": bool}                           the process group, or all of its session
  {"kill_jobs": n}                                                     every process but this one and the recorders of jobs
  {"kill_all": n}                                                      every process of the machine but this one
  {"listen": id, "port": n}                            → {"listening": id} with a socket that listens on the loopback interface
A negative status is the signal that ended the process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import resource
import select
import signal
import socket
import struct
import termios
import time
from collections import deque
from typing import Any, NoReturn

from gibil_bot.providers.local import init_jobs
from gibil_bot.providers.local.fd_passing import receive

MESSAGE_BYTES = 200 * 1024
"""Largest request: an argument of execve(2) has at most 128 KiB anyway."""

PATIENCE_S = 10.0
"""How long a command waits for a free process slot."""

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
}
"""The environment that every command of the machine starts with. It has no proxy variables, because tests read them."""

MACHINE_ENVIRONMENT = "/run/gibil/env"  # scripts/commands.py

_VARIABLE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")


def operators_environment() -> dict[str, str]:
    """Return what tool_settings.py has put in the machine's environment, at most 64 KiB."""
    try:
        with open("/etc/gibil/environment", encoding="utf-8", errors="replace") as file:
            lines = file.read(64 * 1024).splitlines()
    except OSError:
        return {}
    return {match[1]: match[2] for line in lines if (match := _VARIABLE.fullmatch(line))}


_Waiting = tuple[dict[str, Any], list[int], float]


MOST_DESCRIPTORS = 4096
"""Open descriptors of a job. The kernel limits by RLIMIT_NOFILE of the sender how many descriptors of one user are in transit
through sockets, over all machines, so the limit of PID 1 and the daemon has to be well above that of jobs."""
OOM_SCORE = "800"
LISTEN_BACKLOG = 128


class JobPriorities:
    """Priorities of jobs below PID 1: the kernel kills them first, and they yield the processors to the host's programs.

    Created before PID 1 closes its own /proc. A process that may not raise a priority may return to its own score.
    """

    def __init__(self, nice: bool) -> None:
        self.nice = nice
        self._score = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
        self._own = os.read(self._score, 16).strip()

    def fork(self) -> int:
        """Fork with a raised OOM score of the child, which can't raise it itself: its /proc is closed until it execs."""
        with contextlib.suppress(OSError):
            os.pwrite(self._score, OOM_SCORE.encode() if int(self._own) < int(OOM_SCORE) else self._own, 0)
        try:
            return os.fork()
        finally:
            with contextlib.suppress(OSError):
                os.pwrite(self._score, self._own, 0)


def serve(control: socket.socket, priorities: JobPriorities) -> NoReturn:
    """Serve until the daemon's end closes. Then every process of the machine dies with this one."""
    try:
        _Init(control, priorities).loop()
    finally:
        os._exit(0)


class _Init:
    def __init__(self, control: socket.socket, priorities: JobPriorities) -> None:
        self._control, self._priorities = control, priorities
        self._ids: dict[int, int] = {}
        """pid → id of the daemon's request."""
        self._pids: dict[int, int] = {}
        self._recorders: dict[int, socket.socket] = {}
        """pid of a job → socket to its recorder."""
        self._recorder_pids: set[int] = set()
        self._waiting: deque[_Waiting] = deque()
        self._wake, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        # Commands that wait for a process slot keep their descriptors here; jobs get the ordinary limit.
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        most = max(256, min(MOST_DESCRIPTORS, hard // 4))
        self._open_files = most, most
        self._shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"

    def loop(self) -> None:
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while True:
            ready = {fd for fd, _event in poll.poll(50 if self._waiting else None)}
            if self._wake in ready:
                os.read(self._wake, 4096)
            self._reap()
            while self._waiting and self._start(*self._waiting[0]):
                self._waiting.popleft()
            if self._control.fileno() in ready:
                message, fds = receive(self._control, MESSAGE_BYTES, 4)
                if not message:
                    return
                self._handle(json.loads(message), fds)

    def _handle(self, request: dict[str, Any], fds: list[int]) -> None:
        if "spawn" in request:
            waiting = (request, fds, time.monotonic() + PATIENCE_S)
            if self._waiting or not self._start(*waiting):
                self._waiting.append(waiting)
        elif "kill" in request:
            self._kill(request["kill"], request["signal"], request["session"])
        elif "kill_jobs" in request:
            for pid in _others():
                if pid not in self._recorder_pids:
                    _signal(os.kill, pid, request["kill_jobs"])
        elif "kill_all" in request:
            _signal(os.kill, -1, request["kill_all"])
        elif "listen" in request:
            self._listen(request["listen"], request["port"])

    def _start(self, request: dict[str, Any], fds: list[int], deadline: float) -> bool:
        """Handle a request to start a process. False if there is no process slot now."""
        master = launch = None
        try:
            if "job" in request:
                if len(fds) != 2:  # descriptors above our limit don't arrive
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                launch = init_jobs.Launch(*fds, merged=request["merged"])
            if "size" in request and not fds:
                master, slave = _open_terminal(*request["size"])
                fds += [slave]
            pid = self._priorities.fork()
            if pid == 0:
                self._execute(request, fds, terminal=master is not None, launch=launch)
            if launch is not None:
                recorder = os.fork()
                if recorder == 0:
                    launch.record()
                self._recorder_pids.add(recorder)
        except OSError as error:
            if launch is not None:
                launch.abandon()
            if master is not None:
                os.close(master)
                os.close(fds.pop())
            if error.errno in (errno.EAGAIN, errno.ENOMEM) and time.monotonic() < deadline:
                return False
            if fds:
                with contextlib.suppress(OSError):  # its reader has ended
                    os.write(fds[-1], f"gibil: cannot start a process: {error.strerror}\n".encode())
            for fd in fds:
                os.close(fd)
            self._send({"exit": request["spawn"], "status": 254})
            return True
        if launch is not None:
            self._recorders[pid] = launch.parent()
        self._ids[pid] = request["spawn"]
        self._pids[request["spawn"]] = pid
        if master is not None:
            self._send({"terminal": request["spawn"]}, [master])
            os.close(master)
        for fd in fds:
            os.close(fd)
        return True

    def _execute(self, request: dict[str, Any], fds: list[int], *, terminal: bool, launch: init_jobs.Launch | None) -> NoReturn:
        try:
            if launch is not None:
                request, fds = launch.await_start()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            if terminal:
                fcntl.ioctl(fds[0], termios.TIOCSCTTY, 0)
            os.set_inheritable(self._control.fileno(), False)
            for target in range(3):
                os.dup2(fds[target if target < len(fds) else -1], target)
            _limit_open_files(self._open_files)
            if self._priorities.nice:
                os.nice(10)  # the io priority follows it, ioprio_set(2)
            arguments, env = request["argv"], {**ENVIRONMENT, **request["env"]}
            try:
                os.chdir(request.get("cwd", "/root"))
                if "plain" in request and not os.path.lexists(MACHINE_ENVIRONMENT):
                    arguments, env = _plain(request["plain"], env)
            except OSError:
                if "cwd" in request:
                    raise
                os.chdir("/")
            arguments = [self._shell if word == "" else word for word in arguments]
            os.execvpe(arguments[0], arguments, env)  # noqa: S606 - this is what PID 1 is for
        except BaseException as error:
            reason = error.strerror if isinstance(error, OSError) else repr(error)
            os.write(2, f"gibil: cannot start the command{_named(request)}: {reason}\n".encode())
            os._exit(127 if isinstance(error, FileNotFoundError) else 126)
        finally:
            os._exit(126)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                return
            if not pid:
                return
            if os.WIFSTOPPED(status):
                if pid in self._recorder_pids:
                    _signal(os.kill, pid, signal.SIGCONT)
                continue
            self._recorder_pids.discard(pid)
            number = self._ids.pop(pid, None)
            if pid in self._recorders:
                code = os.waitstatus_to_exitcode(status)
                init_jobs.report(self._recorders.pop(pid), code if code >= 0 else 128 - code)
            if number is not None:
                del self._pids[number]
                self._send({"exit": number, "status": os.waitstatus_to_exitcode(status)})

    def _kill(self, number: int, which: int, session: bool) -> None:
        for waiting in [waiting for waiting in self._waiting if waiting[0]["spawn"] == number]:
            self._waiting.remove(waiting)
            for fd in waiting[1]:
                os.close(fd)
            self._send({"exit": number, "status": -which})
        pid = self._pids.get(number)
        if pid is None:
            return
        _signal(os.killpg, pid, which)
        if session:
            for member in _session(pid):
                _signal(os.kill, member, which)

    def _listen(self, number: int, port: int) -> None:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("127.0.0.1", port))
                listener.listen(LISTEN_BACKLOG)
                self._send({"listening": number}, [listener.fileno()])
        except OSError as error:
            self._send({"listening": number, "errno": error.errno or errno.EIO})

    def _send(self, answer: dict[str, Any], fds: list[int] | None = None) -> None:
        socket.send_fds(self._control, [json.dumps(answer).encode()], fds or [])


def _plain(plain: list[str], env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Do what scripts/commands.enter_home does in a shell; return what to execute."""
    tag, command = plain
    marks = {"GIBIL_JOB": tag, "GIBIL_LEADER": str(os.getpid()), "OLDPWD": "/root", "PWD": "/root"}
    return ["", "-c", command], {**env, **marks}


def _named(request: dict[str, Any]) -> str:
    return f" {request['argv'][0]}" if request.get("argv") else ""


def _limit_open_files(wanted: tuple[int, int]) -> None:
    """Set the limit of open files; lower than wanted if our own is lower, since machines lack the capability to raise it.

    This limit is never infinite (fs.nr_open).
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted[0], hard), min(wanted[1], hard)))


def _signal(send: Any, target: int, which: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        send(target, which)


def _session(leader: int) -> list[int]:
    """Return the processes of a session, including other process groups, which a shell with job control creates."""
    members = []
    for pid in _others():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            members.append(pid)
    return members


def _others() -> list[int]:
    """Return all processes of the machine but this one."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]


def _open_terminal(columns: int, rows: int) -> tuple[int, int]:
    """Return (master, slave) of a new pty in the machine's own devpts."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(master, 0x40045431, struct.pack("i", 0))  # TIOCSPTLCK: unlock
        number = struct.unpack("i", fcntl.ioctl(master, 0x80045430, bytes(4)))[0]  # TIOCGPTN
        slave = os.open(f"/dev/pts/{number}", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    except BaseException:
        os.close(master)
        raise
    return master, slave
