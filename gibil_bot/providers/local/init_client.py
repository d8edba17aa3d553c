"""Client of a machine's PID 1, used by the daemon: requests to start and kill processes, and reports of their end.

Requests wait in a queue while PID 1 is busy (EAGAIN), while too many descriptors are in transit (ETOOMANYREFS) or while this
process has none left (EMFILE), so that a thousand concurrent commands are delayed and don't fail.
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
_MOST_PLAIN = 4096
_PATIENCE_S = 20.0
"""How long a command waits for descriptors that others have to release."""
_BUSY = (errno.ETOOMANYREFS, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class SpawnFailed(Exception):
    """A step of creating a machine failed. `stage`: which step; `number`: errno, if known."""

    def __init__(self, stage: str, number: int | None, text: str) -> None:
        super().__init__(f"{stage}: {text}")
        self.stage, self.number, self.text = stage, number, text


class Command(Protocol):
    """A process on the machine that the daemon starts."""

    def descriptors(self) -> list[int]:
        """Open stdin, stdout, stderr (none for a terminal). Called when the request can be sent. May raise OSError."""

    def on_terminal(self, master: int) -> None: ...

    def on_exit(self, status: int) -> None:
        """Called at most once. A negative status is the signal that killed it."""

    def on_refused(self, reason: str) -> None:
        """Called instead if it could not be started."""


class InitClient:
    """`ready` resolves to the machine's listeners, or raises SpawnFailed. `on_gone` is called when PID 1 closes the socket."""

    def __init__(self, control: socket.socket, on_gone: Callable[[], None]) -> None:
        self._control = control
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[list[socket.socket]] = self._loop.create_future()
        self.spawned = asyncio.Event()
        """Set whenever a command is requested. Every process of the machine descends from a command."""
        self.routed = 0
        """How many of the last listeners are the sockets of route.set_up. Known when `ready` is."""
        self.views: list[int] = []
        """Descriptors of proc_views.mount_views, open until `release_mounts`."""
        self.memory: list[int] = []
        """Descriptors that came with the listeners (spawn._memory_of), open until `release_mounts`."""
        self._mounts: int | None = None
        """The machine's mount namespace. While it is open, the end of the last process doesn't unmount the file systems."""
        self._commands: dict[int, Command] = {}
        self._listens: dict[int, asyncio.Future[socket.socket]] = {}
        self._queue: deque[tuple[int | None, bytes]] = deque()
        """(id of the command to start, or None for a kill; message)."""
        self._count = 0
        self._flushing = False
        self._short_since: float | None = None
        """Since when the first request of the queue has waited for descriptors."""
        self._closed = False
        self._root: int | None = None
        control.setblocking(False)
        with contextlib.suppress(OSError):
            control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MESSAGE_BYTES)
        self._loop.add_reader(control.fileno(), self._read)

    def entered(self, pid: int) -> None:
        """Read which user of the host is root on the machine (user_namespaces(7)). Call when the host pid of PID 1 is known."""
        with contextlib.suppress(OSError):
            inside, outside, _count = Path(f"/proc/{pid}/uid_map").read_text().split()[:3]
            if inside == "0" and int(outside) != os.geteuid():
                self._root = int(outside)

    def chown_to_root(self, fd: int) -> None:
        """Change the owner of a pipe to the machine's root.

        Otherwise its owner doesn't exist on the machine, and no process can open it by name (/dev/stdin, /proc/self/fd/1).
        """
        if self._root is not None:
            os.fchown(fd, self._root, self._root)

    def spawn(
        self,
        command: Command,
        arguments: list[str],
        env: dict[str, str],
        size: tuple[int, int] | None = None,
        plain: tuple[str, str] | None = None,
    ) -> int:
        """Start a command and return its id. Raises ProviderError if the request is too large or the machine has ended.

        `plain`: the same, as read_plain_command returns it.
        """
        request: dict[str, Any] = {"argv": arguments, "env": env}
        if plain and len(plain[1]) < _MOST_PLAIN:
            request["plain"] = plain
        if size:
            request["size"] = size
        return self._start(command, request)

    def start_job(self, command: Command, *, merged: bool) -> int:
        """Start a detached job (init_jobs.py). `descriptors` are its specification, and a pipe for the result of the start."""
        return self._start(command, {"job": True, "merged": merged})

    def _start(self, command: Command, request: dict[str, Any]) -> int:
        if self._closed:
            raise ProviderError("the machine has ended")
        self._count += 1
        message = json.dumps({"spawn": self._count, **request}, ensure_ascii=False).encode("utf-8", "surrogateescape")
        if len(message) > MESSAGE_BYTES:
            raise ProviderError(f"the command is too long ({len(message)} bytes with its environment); send scripts over stdin")
        self._commands[self._count] = command
        self.spawned.set()
        self._queue.append((self._count, message))
        self._flush()
        return self._count

    @property
    def has_commands(self) -> bool:
        """Whether a command was requested whose end hasn't been reported."""
        return bool(self._commands)

    def kill(self, number: int, which: int = signal.SIGKILL, *, session: bool = True) -> None:
        if number not in self._commands or self._closed:
            return
        for waiting in self._queue:
            if waiting[0] == number:  # not sent yet
                self._queue.remove(waiting)
                self._commands.pop(number).on_exit(-which)
                return
        self._queue.append((None, json.dumps({"kill": number, "signal": int(which), "session": session}).encode()))
        self._flush()

    async def listen(self, port: int) -> socket.socket:
        """Return a socket that listens on the machine's 127.0.0.1; 0 is any free port. Raises OSError, ProviderError."""
        if self._closed:
            raise ProviderError("the machine has ended")
        self._count += 1
        number = self._count
        listening: asyncio.Future[socket.socket] = self._loop.create_future()
        self._listens[number] = listening
        self._queue.append((None, json.dumps({"listen": number, "port": port}).encode()))
        self._flush()
        return await listening

    def kill_jobs(self) -> None:
        """Send SIGKILL to every process but PID 1 and the recorders of jobs, which store how the jobs ended.

        Processes that fork all the time can escape; then use `kill_all`.
        """
        self._kill_many("kill_jobs")

    def kill_all(self) -> None:
        """Send SIGKILL to every process but PID 1."""
        self._kill_many("kill_all")

    def _kill_many(self, which: str) -> None:
        if not self._closed:
            self._queue.append((None, json.dumps({which: int(signal.SIGKILL)}).encode()))
            self._flush()

    def close(self) -> None:
        """Close the socket: PID 1 ends, and with it the machine. Commands get no `on_exit` any more."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._control.fileno())
        self._loop.remove_writer(self._control.fileno())
        self._control.close()
        self._queue.clear()
        self._commands.clear()
        for listening in self._listens.values():
            if not listening.done():
                listening.set_exception(ProviderError("the machine has ended"))
        self._listens.clear()
        if not self.ready.done():
            self.ready.set_exception(SpawnFailed("starting PID 1", None, "it ended without a message"))
            self.ready.exception()  # retrieved, so that asyncio doesn't log an error that no caller waits for

    def release_mounts(self) -> None:
        """Unmount the machine's file systems, when no process of it is left and nothing reads `memory` any more. Blocking.

        The kernel takes half a second for 100,000 files that were in use.
        """
        fds = [*self.memory, *self.views]
        self.memory, self.views = [], []
        if self._mounts is not None:
            fds.append(self._mounts)
            self._mounts = None
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
                return  # the reader sees it as well, and reports it
            except OSError as error:
                if error.errno not in _BUSY:
                    raise
                self._short_since = self._short_since or self._loop.time()
                if number is None or self._loop.time() - self._short_since < _PATIENCE_S:
                    return self._later()
                self._commands.pop(number).on_refused(
                    f"cannot start the command: other machines of this user, or this host, use all file descriptors "
                    f"({error.strerror}); try again"
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
        for _ in range(64):  # then other callbacks of the loop run
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
            self._handle(json.loads(message), fds)
            if self._closed:
                return

    def _handle(self, answer: dict[str, Any], fds: list[int]) -> None:
        if "exit" in answer:
            command = self._commands.pop(answer["exit"], None)
            if command:
                command.on_exit(int(answer["status"]))
        elif "terminal" in answer and answer["terminal"] in self._commands and fds:
            self._commands[answer["terminal"]].on_terminal(fds.pop(0))
        elif "listening" in answer:
            listening = self._listens.pop(answer["listening"], None)
            if listening is not None and not listening.done():  # otherwise the caller was cancelled
                if fds:
                    listening.set_result(socket.socket(fileno=fds.pop(0)))
                else:
                    number = answer.get("errno", errno.EMFILE)  # without room for its descriptor, an answer comes without it
                    listening.set_exception(OSError(number, os.strerror(number)))
        elif "ready" in answer and not self.ready.done():
            self.routed = answer["routed"]
            self.ready.set_result([socket.socket(fileno=fds.pop(0)) for _ in range(answer["ready"])])
            self.views, fds = fds[: answer["views"]], fds[answer["views"] :]
            (self._mounts, *self.memory), fds = fds, []
        elif "failed" in answer and not self.ready.done():
            self.ready.set_exception(SpawnFailed(answer["failed"], answer["errno"], answer["text"]))
        for fd in fds:
            os.close(fd)
