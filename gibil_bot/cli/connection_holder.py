"""Holds SSH connections to machines, and runs the commands of later `gibil run` processes (warm_run.py) over them.

`gibil run` starts one for each user, data directory and set of settings; it ends when its connections have been idle for
GIBIL_CONNECTION_IDLE, or when its last machine has ended. What it declines, the client does itself: so it never reports errors
in the arguments. A client's end is the end of its command, as if it were interrupted twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from gibil_bot import warm_run as warm
from gibil_bot.cli.output import describe, failure_view, json_text
from gibil_bot.cli.run import as_line, outcome_view, run, run_interruptible, timeout_seconds
from gibil_bot.config import Settings, load_settings
from gibil_bot.errors import GibilError, UsageError
from gibil_bot.machines import validation
from gibil_bot.machines.service import open_machines
from gibil_bot.machines.session import new_tag
from gibil_bot.providers.lifecycle import CREATION
from gibil_bot.ssh.shell import SSHShell

if TYPE_CHECKING:
    from gibil_bot.machines.service import MachineService
    from gibil_bot.machines.session import MachineSession

_MOST_CLIENTS = 64
_REQUEST_S = 5.0
_OPENS_S = 2.0
"""A client waits this long for a connection to be opened; a later client uses it."""
_FRESH_S = 30.0
"""How long the provider's answer about a cloud machine counts."""
_FRESH_CODE_S = 1.0
_UNSENT = 1024 * 1024


class _Declined(Exception):
    """The client has to run the command itself."""


class _Gone(Exception):
    """The client has closed its connection."""


class _Client(asyncio.Protocol):
    """One `gibil run`: its messages, and a queue of its stdin."""

    def __init__(self, accept: Callable[[_Client], None]) -> None:
        self._accept = accept
        self._transport: Any  # an asyncio.Transport by its methods, also with uvloop
        self._received = bytearray()
        self._messages: asyncio.Queue[tuple[bytes, bytes]] = asyncio.Queue()
        self._stdin: asyncio.Queue[bytes] = asyncio.Queue(warm.MOST_UNREAD + 1)
        self._drained: asyncio.Future[None] | None = None
        self.is_gone = False
        self.is_interrupted = False
        """It has sent INTERRUPT or CANCEL, or is gone: maybe before the command has begun, together with GO."""
        self.interrupt: Callable[[], None] = lambda: None
        self.cancel: Callable[[], object] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=_UNSENT)
        self._accept(self)

    def is_own_user(self) -> bool:
        connection = self._transport.get_extra_info("socket")
        _pid, user, _group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return bool(user == os.geteuid())

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= warm.HEADER_BYTES and not self.is_gone:
            end = warm.HEADER_BYTES + int.from_bytes(received[1 : warm.HEADER_BYTES], "big")
            if end > 2 * warm.FRAME_BYTES:
                self._transport.abort()
            if len(received) < end:
                return
            kind, content = bytes(received[:1]), bytes(received[warm.HEADER_BYTES : end])
            del received[:end]
            self._handle(kind, content)

    def _handle(self, kind: bytes, data: bytes) -> None:
        if kind in (warm.STDIN, warm.STDIN_END):
            try:
                self._stdin.put_nowait(data)
            except asyncio.QueueFull:  # it didn't wait for READ
                self._transport.abort()
        elif kind == warm.INTERRUPT:
            self.is_interrupted = True
            self.interrupt()
        elif kind == warm.CANCEL:
            self.is_interrupted = True
            self.cancel()
        elif self._messages.qsize() < 2:
            self._messages.put_nowait((kind, data))

    def eof_received(self) -> bool:
        self._end()
        return True  # the answer to a client that only closed its half is still sent

    def connection_lost(self, error: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.is_gone:
            self.is_gone = self.is_interrupted = True
            self.resume_writing()
            self._messages.put_nowait((b"", b""))
            self.cancel()

    async def read(self) -> tuple[bytes, bytes]:
        """Return the next request. Raises _Gone."""
        kind, data = await self._messages.get()
        if not kind:
            raise _Gone
        return kind, data

    def send(self, kind: bytes, data: bytes = b"") -> None:
        self._transport.write(warm.frame(kind, data))

    def output(self, stream: str, data: bytes) -> asyncio.Future[None] | None:
        """Send output; return what to wait for when the client doesn't read."""
        kind = warm.STDOUT if stream == "stdout" else warm.STDERR
        for start in range(0, len(data), warm.FRAME_BYTES):
            self.send(kind, data[start : start + warm.FRAME_BYTES])
        return None if self._drained is None else asyncio.shield(self._drained)  # for waiters that are cancelled

    def message(self, text: str) -> None:
        self.output("stderr", f"gibil: {text}\n".encode("utf-8", "replace"))

    def pause_writing(self) -> None:
        if not self.is_gone:
            self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None:
            drained.set_result(None)

    async def stdin(self) -> AsyncIterator[bytes]:
        while data := await self._stdin.get():
            yield data
            self.send(warm.READ)

    def close(self) -> None:
        """Close the connection when everything is sent."""
        self._transport.close()


class ConnectionHolder:
    """The connections of one data directory with one set of settings. `serve` returns when it isn't needed any more."""

    def __init__(self, settings: Settings, machines: MachineService, environment: bytes) -> None:
        self._settings = settings
        self._machines = machines
        self._environment = environment
        self._sessions: dict[str, asyncio.Task[MachineSession]] = {}
        self._checked: dict[str, float] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._clients: set[asyncio.Task[None]] = set()
        self._idle_since = time.monotonic()
        self._is_needed = True
        self._changed = asyncio.Event()
        self._code = _code_times(settings)
        self._code_checked = time.monotonic()
        self._has_changed = False

    async def serve(self, listener: socket.socket, name: str) -> None:
        """`name`: the machine that the first request is expected for. If it has ended before, nothing may ever ask."""
        server = await asyncio.get_running_loop().create_unix_server(lambda: _Client(self._accept), sock=listener)
        self._open_soon(name)
        try:
            while self._clients or (left := self._left_s()) > 0:
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(None if self._clients else left):
                        await self._changed.wait()
        finally:
            server.close()
            for task in (*self._clients, *self._watches):
                task.cancel()
            await asyncio.gather(*self._clients, *self._watches, return_exceptions=True)
            for name, opening in tuple(self._sessions.items()):
                opening.cancel()
                await self._drop(name, opening)

    def _left_s(self) -> float:
        return self._idle_since + self._settings.connection_idle_s - time.monotonic() if self._is_needed else 0.0

    def _accept(self, client: _Client) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(client))
        self._clients.add(task)
        task.add_done_callback(self._served)
        self._changed.set()

    def _served(self, task: asyncio.Task[None]) -> None:
        self._clients.discard(task)
        self._idle_since = time.monotonic()
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            asyncio.get_running_loop().call_exception_handler({"message": "serving a client failed", "exception": error})

    async def _serve(self, client: _Client) -> None:
        try:
            if len(self._clients) <= _MOST_CLIENTS and client.is_own_user():
                await self._serve_request(client)
        except (_Gone, TimeoutError):
            pass
        except _Declined:
            client.send(warm.DECLINED)
        finally:
            client.close()

    async def _serve_request(self, client: _Client) -> None:
        async with asyncio.timeout(_REQUEST_S):
            kind, data = await client.read()
        if self._is_outdated():
            raise _Declined
        params = self._parse(kind, data)
        session = self._open_session(params["name"])
        if session is None:
            try:
                async with asyncio.timeout(_OPENS_S):
                    session = await self._session(params["name"])
            except (GibilError, TimeoutError):
                raise _Declined from None
        policy = {None: warm.TRY_STDIN, True: warm.WAIT_FOR_STDIN, False: warm.NO_STDIN}[params["wants_stdin"]]
        tag = new_tag()
        client.send(warm.ACCEPTED, policy + tag.encode())
        async with asyncio.timeout(_REQUEST_S):
            kind, _ = await client.read()
        if kind == warm.GO:
            client.send(warm.ENDED, bytes((await _run(session, client, tag, params),)))

    def _parse(self, kind: bytes, data: bytes) -> dict[str, Any]:
        """Return the parameters of `gibil run`. Raises _Declined for what the client has to do."""
        known = warm.VERSION + warm.frame(warm.SETTINGS, self._environment)
        if kind != warm.REQUEST or not data.startswith(known):
            raise _Declined
        words = [os.fsdecode(word) for word in data[len(known) :].split(b"\0")][1:]
        try:
            params = _plain(words) or _parsed(words)
            validation.check_command(params["command"])
        except (click.ClickException, click.exceptions.Exit, UsageError):
            raise _Declined from None
        if params["background"] or params["env_files"] or params["provider"]:
            raise _Declined
        return params

    def _is_outdated(self) -> bool:
        """Return whether the saved settings or the code have changed. Then this process ends."""
        now = time.monotonic()
        if now > self._code_checked + _FRESH_CODE_S:
            self._code_checked = now
            if _code_times(self._settings, self._code) != self._code:
                self._has_changed = True
                self._is_needed = False
        return self._has_changed

    @property
    def _is_local(self) -> bool:
        return self._machines.factory.provider.name == "local"

    def _open_session(self, name: str) -> MachineSession | None:
        """Return the session with an open connection to the machine that has the name now; None if that is unknown.

        The daemon closes the connection before a local machine's name is free again. For cloud machines, the provider is asked.
        """
        opening = self._sessions.get(name)
        if opening is None or not opening.done() or opening.cancelled() or opening.exception() is not None:
            return None
        session = opening.result()
        if session.shell.is_closed:
            return None
        if self._is_local:
            return None if isinstance(session.shell, SSHShell) and session.shell.has_hung_up() else session
        return session if time.monotonic() < self._checked[name] + _FRESH_S else None

    async def _session(self, name: str) -> MachineSession:
        """Return the session of a machine that is known to exist. Raises GibilError."""
        opening = self._sessions.get(name)
        if opening is not None and opening.done() and not await self._is_usable(name, opening):
            await self._drop(name, opening)
            opening = None
        opening = opening or self._sessions.get(name)  # another client has opened it meanwhile
        return await asyncio.shield(opening or self._open_soon(name))

    def _open_soon(self, name: str) -> asyncio.Task[MachineSession]:
        opening = self._sessions[name] = asyncio.create_task(self._open(name))
        self._checked[name] = time.monotonic()
        watch = asyncio.create_task(self._watch(name, opening))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        return opening

    async def _open(self, name: str) -> MachineSession:
        session = await self._machines.open(name)
        session.may_be_extended = True
        return session

    async def _is_usable(self, name: str, opening: asyncio.Task[MachineSession]) -> bool:
        """Return whether the connection is open, to the machine that has the name now. Asks the provider."""
        if self._open_session(name) is not None:
            return True
        if self._is_local or opening.cancelled() or opening.exception() is not None:
            return False
        session = opening.result()
        if session.shell.is_closed:
            return False
        machine = await self._machines.factory.get(name)
        if machine is None or machine.labels.get(CREATION) != session.machine.labels.get(CREATION):
            return False
        session.machine = machine
        self._checked[name] = time.monotonic()
        return True

    async def _watch(self, name: str, opening: asyncio.Task[MachineSession]) -> None:
        """Forget a machine when its connection ends; without machines there is nothing to hold."""
        try:
            session = await asyncio.shield(opening)
            if isinstance(session.shell, SSHShell):
                await session.shell.wait_closed()
        except GibilError:
            pass
        await self._drop(name, opening)
        if not self._sessions:
            self._is_needed = False
            self._changed.set()

    async def _drop(self, name: str, opening: asyncio.Task[MachineSession]) -> None:
        if self._sessions.get(name) is opening:
            del self._sessions[name]
            with contextlib.suppress(GibilError, asyncio.CancelledError):
                await (await opening).close()


def _plain(words: list[str]) -> dict[str, Any] | None:
    """Return the parameters of `gibil run NAME COMMAND` and `gibil run NAME -- WORD…`, in a tenth of the time of `_parsed`."""
    if len(words) < 2 or words[0].startswith("-"):
        return None
    name, command, *more = words
    if command == "--" and more:
        command = as_line(more)
    elif more or command.startswith("-"):
        return None
    nothing = dict.fromkeys(("timeout", "wants_stdin", "provider"))
    return {"name": name, "command": command, "env": {}, "background": False, "env_files": (), "as_json": False, **nothing}


def _parsed(words: list[str]) -> dict[str, Any]:
    with run.make_context("gibil run", words) as context:
        params = dict(context.params)
    params["timeout"] = timeout_seconds(params["timeout"])
    params["env"] = validation.environment(params["env"])
    return params


def _code_times(settings: Settings, known: dict[str, int] | None = None) -> dict[str, int]:
    """Return when the saved settings and the imported code, or the files of `known`, were changed."""
    if known is None:
        modules = [module for name, module in tuple(sys.modules.items()) if name.partition(".")[0] == "gibil_bot"]
        known = dict.fromkeys([str(settings.data_dir / "settings.json"), *(m.__file__ for m in modules if m.__file__)], 0)
    times = {}
    for path in known:
        try:
            times[path] = os.stat(path).st_mtime_ns
        except OSError:
            times[path] = 0
    return times


async def _run(session: MachineSession, client: _Client, tag: str, params: dict[str, Any]) -> int:
    """Run the command as `gibil run` does; return its exit status."""
    task = asyncio.current_task()
    assert task is not None
    as_json = params["as_json"]
    if client.is_interrupted:
        return _report(client, KeyboardInterrupt(), as_json)
    client.cancel = task.cancel

    def listen(interrupt: Callable[[], None]) -> None:
        client.interrupt = interrupt

    began = time.monotonic()
    try:
        outcome = await run_interruptible(
            session, params["command"], params["timeout"], params["env"], client.stdin(), None if as_json else client.output,
            listen, tag,
        )  # fmt: skip
        for line in await session.blocked(began):
            client.message(line)
    except asyncio.CancelledError:
        task.uncancel()
        return _report(client, KeyboardInterrupt(), as_json)
    except Exception as error:
        return _report(client, error, as_json)
    finally:
        client.cancel = lambda: None
    if as_json:
        client.output("stdout", json_text(outcome_view(outcome)).encode("utf-8", "replace"))
    elif outcome.timed_out:
        client.message(f"the command took longer than {params['timeout']:g} s and was killed")
    return outcome.exit_code


def _report(client: _Client, error: BaseException, as_json: bool) -> int:
    """Send an error as output.fail prints it."""
    if isinstance(error, KeyboardInterrupt):
        code, status, lines = "INTERRUPTED", 130, ["interrupted"]
    else:
        code, status, lines = describe(error)
    if as_json:
        client.output("stdout", json_text(failure_view(code, status, lines)).encode("utf-8", "replace"))
    for line in lines:
        client.message(line)
    return status


@contextlib.contextmanager
def _listening(folder: str, name: str) -> Iterator[socket.socket | None]:
    """Listen at a socket during the block; None if another process does, or if other users may enter the folder.

    The lock ends with the process, however that ends. Only its owner deletes the files.
    """
    os.makedirs(folder, mode=0o700, exist_ok=True)
    directory = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    kind = os.fstat(directory)
    if kind.st_uid != os.geteuid() or kind.st_mode & 0o077 or _lock(directory, f"{name}.lock") is None:
        yield None
        return
    for other in os.listdir(folder):  # of processes that were killed
        if other.endswith(".lock") and (lock := _lock(directory, other)) is not None:
            _delete(directory, other.removesuffix(".lock"), other)
            os.close(lock)
    _delete(directory, name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(f"/proc/self/fd/{directory}/{name}")
        listener.listen(_MOST_CLIENTS)
        listener.setblocking(False)
        yield listener
    finally:
        _delete(directory, name, f"{name}.lock")


def _lock(directory: int, name: str) -> int | None:
    """Lock a file, and return its descriptor; None if another process has it, or has just deleted it."""
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), os.stat(name, dir_fd=directory, follow_symlinks=False)):
            return lock
    except OSError:
        pass
    os.close(lock)
    return None


def _delete(directory: int, *names: str) -> None:
    for name in names:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)


async def _hold(settings: Settings, environment: bytes, listener: socket.socket, machine: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with open_machines(settings) as machines:
        await ConnectionHolder(settings, machines, environment).serve(listener, machine)


def main() -> None:
    """Hold connections until they aren't needed any more. Prints nothing: clients do without a holder that fails."""
    environment, (name, machine) = warm.settings_of(os.environ), sys.argv[1:]
    folder = os.path.join(warm.data_directory(os.environ), warm.FOLDER)
    settings = load_settings()
    import uvloop

    with _listening(folder, name) as listener, contextlib.suppress(asyncio.CancelledError):
        if listener is not None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_hold(settings, environment, listener, machine))


if __name__ == "__main__":
    main()
    sys.exit()
