"""The daemon's end of a machine's control socket: asks PID 1 to start and kill, hears what ended.

Requests wait in a queue while PID 1 is busy (EAGAIN), while too many descriptors are under way (ETOOMANYREFS) or while
we have no descriptors left (EMFILE), so a thousand commands at once are late and never wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from gibil_bot.errors import ProviderError
from gibil_bot.providers.local.fd_passing import receive
from gibil_bot.providers.local.init import MESSAGE_BYTES

_RETRY_S = 0.002
_PATIENCE_S = 20.0
"""How long a command waits for descriptors that others have to release."""
_BUSY = (errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class SpawnFailed(Exception):
    """The kernel, or the box, refused a step of forging."""

    def __init__(self, stage: str, number: int | None, text: str) -> None:
        super().__init__(f"{stage}: {text}")
        self.stage, self.number, self.text = stage, number, text


class Command(Protocol):
    """Something that runs on the machine."""

    def descriptors(self) -> list[int]:
        """Make its stdin, stdout, stderr (none for a terminal); called when the request can be sent. May raise OSError."""

    def on_terminal(self, master: int) -> None: ...

    def on_exit(self, status: int) -> None:
        """Called once, at most. Negative: the signal that killed it."""

    def on_refused(self, reason: str) -> None:
        """Called instead: it could not be started."""


class InitClient:
    """`ready` holds the machine's listeners when it is up, or raises SpawnFailed. `on_gone` is called when PID 1 hung up."""

    def __init__(self, control: socket.socket, on_gone: Callable[[], None]) -> None:
        self._control = control
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[list[socket.socket]] = self._loop.create_future()
        self.spawned = asyncio.Event()
        """Set whenever a command is asked for: every process of the machine descends from one."""
        self.memory: list[int] = []
        """Descriptors that came with the listeners (forge._memory_of), open until `close_memory`"""
        self._commands: dict[int, Command] = {}
        self._queue: deque[tuple[int | None, bytes]] = deque()
        """(id of the command to be started, or None for a kill; message)"""
        self._count = 0
        self._flushing = False
        self._short_since: float | None = None
        """Since when the first request of the queue has been waiting for descriptors"""
        self._closed = False
        self._root: int | None = None
        control.setblocking(False)
        with contextlib.suppress(OSError):
            control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES)
        self._loop.add_reader(control.fileno(), self._read)

    def entered(self, pid: int) -> None:
        """Its host pid is known: learn which user of the host is root in there (user_namespaces(7))."""
        with contextlib.suppress(OSError):
            inside, outside, _count = Path(f"/proc/{pid}/uid_map").read_text().split()[:3]
            if inside == "0" and int(outside) != os.geteuid():
                self._root = int(outside)

    def give_to_root(self, fd: int) -> None:
        """Make a pipe that is made out here the property of the machine's root.

        Otherwise its owner has no name in there, and no process may open it by its name (/dev/stdin, /proc/self/fd/1).
        """
        if self._root is not None:
            os.fchown(fd, self._root, self._root)

    def spawn(self, command: Command, arguments: list[str], env: dict[str, str], size: tuple[int, int] | None = None) -> int:
        """Start; returns the command's id. Raises ProviderError when the request is too large or the machine is gone."""
        request: dict[str, Any] = {"argv": arguments, "env": env}
        if size:
            request["size"] = size
        return self._start(command, request)

    def start_job(self, command: Command, *, merged: bool) -> int:
        """Start a detached job (jobs.py): `descriptors` are its specification, and where it says how its start went."""
        return self._start(command, {"job": True, "merged": merged})

    def _start(self, command: Command, request: dict[str, Any]) -> int:
        if self._closed:
            raise ProviderError("the machine is gone")
        self._count += 1
        message = json.dumps({"spawn": self._count, **request}, ensure_ascii=False).encode("utf-8", "surrogateescape")
        if len(message) > MESSAGE_BYTES:
            raise ProviderError(f"the command is too long: {len(message)} bytes with its environment; send scripts by stdin")
        self._commands[self._count] = command
        self.spawned.set()
        self._queue.append((self._count, message))
        self._flush()
        return self._count

    @property
    def has_commands(self) -> bool:
        """Whether a command was asked for whose end has not been reported."""
        return bool(self._commands)

    def kill(self, number: int, which: int = signal.SIGKILL, *, session: bool = True) -> None:
        if number not in self._commands or self._closed:
            return
        for waiting in self._queue:
            if waiting[0] == number:  # never sent
                self._queue.remove(waiting)
                self._commands.pop(number).on_exit(-which)
                return
        self._queue.append((None, json.dumps({"kill": number, "signal": int(which), "session": session}).encode()))
        self._flush()

    def kill_jobs(self) -> None:
        """SIGKILL to every process of the machine but PID 1 and the recorders of jobs, which write down how those ended.

        A machine that forks all the time can escape: then `kill_all`.
        """
        self._kill_many("kill_jobs")

    def kill_all(self) -> None:
        """SIGKILL to every process of the machine but PID 1."""
        self._kill_many("kill_all")

    def _kill_many(self, which: str) -> None:
        if not self._closed:
            self._queue.append((None, json.dumps({which: int(signal.SIGKILL)}).encode()))
            self._flush()

    def close(self) -> None:
        """Hang up: PID 1 ends, and with it the machine. No command hears of its exit any more."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        self._control.close()
        self._queue.clear()
        self._commands.clear()
        if not self.ready.done():
            self.ready.set_exception(SpawnFailed("starting PID 1", None, "it ended without a word"))
            self.ready.exception()  # whoever does not wait for it any more is not told that nobody did

    def close_memory(self) -> None:
        """Call when nothing reads `memory` any more."""
        fds, self.memory = self.memory, []
        for fd in fds:
            os.close(fd)

    def _flush(self) -> None:
        self._flushing = False
        while self._queue and not self._closed:
            number, message = self._queue[0]
            fds: list[int] = []
            try:
                if number is not None:
                    fds = self._commands[number].descriptors()
                socket.send_fds(self._control, [message], fds)
            except BlockingIOError:
                return self._later()
            except (BrokenPipeError, ConnectionResetError):
                return  # the reader sees it too and says so
            except OSError as error:
                if error.errno not in _BUSY:
                    raise
                self._short_since = self._short_since or self._loop.time()
                if number is None or self._loop.time() - self._short_since < _PATIENCE_S:
                    return self._later()
                self._commands.pop(number).on_refused(
                    f"the command was not started: descriptors are used up ({error.strerror}), by other machines of this user "
                    "or on this host"
                )
            else:
                self._short_since = None
            finally:
                for fd in fds:
                    os.close(fd)
            self._queue.popleft()

    def _later(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_later(_RETRY_S, self._flush)

    def _read(self) -> None:
        for _ in range(64):  # then the rest of the loop has its turn
            try:
                message, fds = receive(self._control, 65536, 64)
            except BlockingIOError:
                return
            except ConnectionResetError:
                message, fds = b"", []
            if not message:
                self.close()
                self._on_gone()
                return
            self._hear(json.loads(message), fds)
            if self._closed:
                return

    def _hear(self, answer: dict[str, Any], fds: list[int]) -> None:
        if "exit" in answer:
            command = self._commands.pop(answer["exit"], None)
            if command:
                command.on_exit(int(answer["status"]))
        elif "terminal" in answer and answer["terminal"] in self._commands and fds:
            self._commands[answer["terminal"]].on_terminal(fds.pop(0))
        elif "ready" in answer and not self.ready.done():
            self.ready.set_result([socket.socket(fileno=fds.pop(0)) for _ in range(answer["ready"])])
            self.memory, fds = fds, []
        elif "failed" in answer and not self.ready.done():
            self.ready.set_exception(SpawnFailed(answer["failed"], answer["errno"], answer["text"]))
        for fd in fds:
            os.close(fd)
