"""`gibil run` over a connection that an earlier command has left open: the client of cli/connection_holder.py.

Imports nothing but modules that are written in C or loaded with Python, since their import would take longer than the command.
Returns None whenever the ordinary way has to be taken: there is no holder, or it declines. Nothing has run on the machine then.

packaging/gibil is the same client in Perl, which starts in a quarter of the time, and asks first: this one serves computers
without Perl, and `python -m gibil_bot`.

The socket is in a directory that only this user can enter, and both sides check the user of the other process. Its name depends
on the settings in the environment, and on the installed program: a holder of others is never asked.

A message is its kind, the length of its data in four bytes, and the data. The client sends REQUEST (VERSION, SETTINGS, the
arguments), and GO when the holder has ACCEPTED: when one of them ends in between, nothing has run.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # importing typing takes 5 ms
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

FOLDER = "connections"
DECLINED, ACCEPTED, STDOUT, STDERR, READ, ENDED = b"D", b"A", b"O", b"E", b"M", b"X"
VERSION = b"2"
SETTINGS, REQUEST, GO, STDIN, STDIN_END, INTERRUPT, CANCEL = b"V", b"R", b"G", b"I", b"Z", b"S", b"K"
NO_STDIN, WAIT_FOR_STDIN, TRY_STDIN = b"0", b"1", b"2"
FRAME_BYTES = 128 * 1024
MOST_UNREAD = 4
"""The number of STDIN messages that may wait for READ: interrupts don't wait behind input that the command doesn't read."""
HEADER_BYTES = 5
FIRST_BYTE_S = 10.0
"""See cli/stdin.py."""
_ANSWERS_S = 5.0
PERL = "_GIBIL_HOLDER"
"""The variable with which the client in Perl starts Python: `unasked`, `declined`, or `lost` and the command's tag."""
_NOT_HERE = ("--background", "--env-file", "--provider", "--help", "-h")


def frame(kind: bytes, data: bytes = b"") -> bytes:
    """Return a message: its kind, the length of its data in four bytes, the data."""
    return kind + len(data).to_bytes(4, "big") + data


def settings_of(environ: Mapping[str, str]) -> bytes:
    """Return the settings that a holder must have started with, to be compared."""
    return "\0".join(f"{name}={environ[name]}" for name in sorted(environ) if name.startswith(("GIBIL_", "HCLOUD_"))).encode(
        "utf-8", "surrogateescape"
    )


def data_directory(environ: Mapping[str, str]) -> str:
    return os.path.abspath(os.path.expanduser(environ.get("GIBIL_DATA_DIR") or "~/.gibil"))


def socket_name(environ: Mapping[str, str]) -> str:
    """Return the name of the holder's socket for these settings and this installation."""
    folder, program = os.path.split(sys.argv[0] if sys.argv else "")
    if program != "gibil-python":
        folder = os.path.dirname(sys.executable)
    try:
        launcher = os.stat(os.path.join(folder, "gibil"))
        installed = f"{launcher.st_dev}:{launcher.st_ino}:{int(launcher.st_mtime)}"
    except OSError:
        installed = __file__
    number = 0
    for byte in b"%b\0%b\0%b" % (VERSION, settings_of(environ), os.fsencode(installed)):
        number = (number * 31 + byte) % 16777213
    return f"{number:06x}.sock"


def is_possible(arguments: list[str], environ: Mapping[str, str]) -> bool:
    """Return whether a holder may serve these arguments; the holder parses them."""
    if len(arguments) < 3 or arguments[0] != "run" or arguments[1].startswith("-"):
        return False
    if "_GIBIL_COMPLETE" in environ or environ.get("GIBIL_CONNECTION_IDLE") in ("0", "0s", "0m"):
        return False
    if not all(map(_is_open, range(3))):
        return False
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return not any(word.startswith(_NOT_HERE) for word in ours[1:])


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def run(arguments: list[str], environ: MutableMapping[str, str]) -> int | None:
    """Run a command through the holder; return its exit status. None: nothing has happened."""
    state, _, tag = environ.pop(PERL, "").partition(" ")
    if state == "lost":
        return _lost(arguments, tag)
    if state == "declined" or not is_possible(arguments, environ) or not sys.platform.startswith("linux"):
        return None
    words = [os.fsencode(word) for word in arguments]
    request = VERSION + frame(SETTINGS, settings_of(environ)) + b"\0".join(words)
    if len(request) > FRAME_BYTES or any(b"\0" in word for word in words):
        return None
    connection = _connect(environ)
    if connection is None:
        return None
    try:
        connection.settimeout(_ANSWERS_S)
        connection.sendall(frame(REQUEST, request))
        header = _receive(connection, HEADER_BYTES)
        answer = _receive(connection, int.from_bytes(header[1:], "big"))
        if header[:1] != ACCEPTED:
            return None
        connection.sendall(frame(GO))
    except OSError:
        connection.close()
        return None
    return _Client(connection, answer[:1], arguments, answer[1:].decode("ascii", "replace")).run()


def _receive(connection, size: int) -> bytes:  # type: ignore[no-untyped-def]
    data = b""
    while len(data) < size:
        more: bytes = connection.recv(size - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def is_served(environ: Mapping[str, str]) -> bool:
    """Return whether a holder runs for these settings."""
    connection = _connect(environ)
    if connection is None:
        return False
    connection.close()
    return True


def _connect(environ: Mapping[str, str]):  # type: ignore[no-untyped-def]
    """Return a connection to the holder, a process of this user; None if there is none."""
    import _socket

    try:
        # A path below /proc/self/fd is short, and a socket's path has at most 107 bytes.
        folder = os.open(os.path.join(data_directory(environ), FOLDER), os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        kind = os.fstat(folder)
        if kind.st_uid != os.geteuid() or kind.st_mode & 0o077:
            raise OSError("others may enter the directory")
        connection.settimeout(_ANSWERS_S)
        connection.connect(f"/proc/self/fd/{folder}/{socket_name(environ)}")
        peer = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], sys.byteorder) != os.geteuid():
            raise OSError("it belongs to another user")
    except OSError:
        connection.close()
        return None
    finally:
        os.close(folder)
    return connection


class _Client:
    """Copies the standard streams and signals of this process."""

    def __init__(self, connection, policy: bytes, arguments: list[str], tag: str) -> None:  # type: ignore[no-untyped-def]
        self._connection = connection
        self._arguments = arguments
        self._tag = tag
        self._reads_stdin, self._stdin_until = _stdin_policy(policy)
        self._unsent = frame(STDIN_END) if not self._reads_stdin else b""
        self._unread = 0
        self._signals: list[int] = []
        self._interrupted = False
        self._broken: OSError | None = None

    def run(self) -> int:
        import _signal  # type: ignore[import-not-found]

        waking, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP):
            if _signal.getsignal(number) != _signal.SIG_IGN:
                _signal.signal(number, lambda number, _: self._signals.append(number))
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._connection.settimeout(0)
        try:
            return self._copy(waking, _signal.SIGINT)
        except ConnectionError:
            return _lost(self._arguments, self._tag)

    def _copy(self, waking: int, interrupt: int) -> int:
        import select

        received = bytearray()
        socket = self._connection.fileno()
        while True:
            ready = select.poll()
            ready.register(socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            ready.register(waking, select.POLLIN)
            if self._reads_stdin and not self._unsent and self._unread < MOST_UNREAD:
                ready.register(0, select.POLLIN)
            events = dict(ready.poll(self._left_ms()))
            if waking in events:
                os.read(waking, 100)
            while self._signals:
                is_first = self._signals.pop(0) == interrupt and not self._interrupted
                self._unsent += frame(INTERRUPT if is_first else CANCEL)
                self._interrupted = True
            if not events and self._stdin_until is not None:
                self._end_silent_stdin()
            if 0 in events:
                self._read_stdin()
            if events.get(socket, 0) & select.POLLOUT and self._unsent:
                self._send()
            if events.get(socket, 0) & ~select.POLLOUT:
                data = self._connection.recv(2 * FRAME_BYTES)
                if not data:
                    raise ConnectionError
                received += data
                status = self._receive(received)
                if status is not None:
                    return status

    def _send(self) -> None:
        try:
            self._unsent = self._unsent[self._connection.send(self._unsent) :]
        except ConnectionError:  # the command has ended, and its exit status can be read
            self._unsent, self._reads_stdin, self._stdin_until = b"", False, None

    def _receive(self, received: bytearray) -> int | None:
        """Handle complete messages and remove them; return the exit status if it has come."""
        while len(received) >= HEADER_BYTES:
            end = HEADER_BYTES + int.from_bytes(received[1:HEADER_BYTES], "big")
            if len(received) < end:
                return None
            kind, data = bytes(received[:1]), bytes(received[HEADER_BYTES:end])
            del received[:end]
            if kind == ENDED:
                return self._end(data[0])
            if kind == READ:
                self._unread -= 1
            elif self._broken is None:
                try:
                    _write_all(1 if kind == STDOUT else 2, data)
                except OSError as error:
                    self._broken = error
                    self._broken_stream = "stdout" if kind == STDOUT else "stderr"
                    self._unsent += frame(CANCEL)
        return None

    def _end(self, status: int) -> int:
        if self._broken is None:
            return status
        if isinstance(self._broken, BrokenPipeError):
            return 141
        _say(f"{self._broken_stream} can't be written: {self._broken.strerror}")
        return 1

    def _left_ms(self) -> float | None:
        if self._stdin_until is None:
            return None
        from time import monotonic

        return max(0.0, self._stdin_until - monotonic()) * 1000

    def _read_stdin(self) -> None:
        self._stdin_until = None
        try:
            data = os.read(0, FRAME_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            _say(f"stdin can't be read: {error.strerror}")
            data = b""
        self._reads_stdin = bool(data)
        self._unread += 1
        self._unsent += frame(STDIN, data) if data else frame(STDIN_END)

    def _end_silent_stdin(self) -> None:
        self._stdin_until = None
        self._reads_stdin = False
        self._unsent += frame(STDIN_END)
        _say(
            f"stdin has been silent for {FIRST_BYTE_S:g} s, so the command gets no input; --stdin waits for it, "
            "</dev/null skips this wait"
        )


def _stdin_policy(policy: bytes) -> tuple[bool, float | None]:
    """Return whether to pass on stdin, and until when a silent pipe counts as open. See stdin.forward."""
    import stat

    if policy == NO_STDIN:
        return False, None
    try:
        kind = os.fstat(0)
    except OSError:
        return False, None
    if stat.S_ISCHR(kind.st_mode) and (os.isatty(0) or kind.st_rdev == os.stat(os.devnull).st_rdev):
        return False, None
    if policy == TRY_STDIN and (stat.S_ISFIFO(kind.st_mode) or stat.S_ISSOCK(kind.st_mode)):
        from time import monotonic

        return True, monotonic() + FIRST_BYTE_S
    return True, None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # a terminal that another program has left non-blocking
            import select

            select.select([], [descriptor], [])


def _say(text: str) -> None:
    try:
        os.write(2, f"gibil: {text}\n".encode())
    except OSError:
        return


def _lost(arguments: list[str], tag: str) -> int:
    """Kill a command whose holder has ended, and report that. Returns the exit status."""
    from gibil_bot.cli.run import report_lost_holder

    return report_lost_holder(arguments, tag)
