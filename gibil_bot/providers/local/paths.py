"""Paths of local machines: the local folder in the data directory, the runtime folder of sockets, and the locks on both.

<data dir>/local/      keeper.lock  starting.lock  keeper.json  keeper.log  skeleton-…/  machines/NAME/  disks/  causes/NAME
                       trash/  (folders of destroyed machines, see trash.py)
                       layers/ID/
machines/NAME/         lock (holds PID 1's pid)  machine.json  disk/  mnt/  disk.img
<runtime dir>/KEY/     control.sock  <random>.sock     (an AF_UNIX path holds 107 bytes, see unix(7))
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from gibil_bot.errors import ProviderError, Unavailable
from gibil_bot.providers.local.trash import discard

PROTOCOL = 1
"""Version of the control protocol; increased when providers and daemons of different versions would misunderstand each other.

A daemon with machines keeps running when the package is updated, and only the same protocol can use it. `quit` never changes.
"""

_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class LocalPaths:
    """Paths of one data directory's local machines."""

    data_dir: Path

    @property
    def local(self) -> Path:
        return self.data_dir / "local"

    @property
    def machines(self) -> Path:
        return self.local / "machines"

    @property
    def trash(self) -> Path:
        return self.local / "trash"

    @property
    def causes(self) -> Path:
        return self.local / "causes"

    @property
    def key(self) -> str:
        return hashlib.sha256(os.fsencode(self.local)).hexdigest()[:8]

    @property
    def layers(self) -> Path:
        return self.local / "layers"

    def machine(self, name: str) -> Path:
        return self.machines / name

    def layer(self, layer_id: str) -> Path:
        return self.layers / layer_id

    def prepare(self) -> None:
        """Create the folders. Raises Unavailable if that fails."""
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.local, self.machines):
                folder.mkdir(mode=0o711, exist_ok=True)
                if folder.stat().st_uid != os.geteuid():
                    raise Unavailable(
                        f"{folder} belongs to user id {folder.stat().st_uid}, but gibil runs as user id {os.geteuid()}",
                        ("run gibil as the owner of that folder, or set GIBIL_DATA_DIR to your own folder",),
                    )
                folder.chmod(0o711)  # privilege `root`: PID 1 enters through here under its own user id
        except OSError as error:
            raise Unavailable(
                f"cannot create the folder {error.filename}: {error.strerror}",
                ("set GIBIL_DATA_DIR to a writable directory",),
            ) from error

    def runtime(self) -> Path:
        """Return the folder of the sockets, created on demand: mode 0700, our own, and with a short path."""
        uid = os.geteuid()
        candidates = [Path("/run/gibil")] if uid == 0 else []
        if os.environ.get("XDG_RUNTIME_DIR") and uid != 0:
            candidates.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "gibil")
        candidates.append(Path(f"/tmp/gibil-{uid}"))  # noqa: S108 - created with 0700, and rejected if another user owns it
        problem = "no folder could be created"
        for candidate in candidates:
            if len(os.fsencode(candidate)) + 40 > _SOCKET_PATH_BYTES:
                continue
            try:
                for folder in (candidate, candidate / self.key):
                    folder.mkdir(mode=0o700, exist_ok=True)
                    status = folder.lstat()
                    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
                        raise ProviderError(f"{folder} must be a folder of this user with mode 700; remove it")
                return candidate / self.key
            except OSError as error:
                problem = f"{candidate}: {error.strerror}"
        raise ProviderError(f"cannot create a folder for the sockets of local machines: {problem}; set XDG_RUNTIME_DIR")


class DaemonRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Content of keeper.json: pid, control socket and version of the running daemon."""

    pid: int
    socket: str
    protocol: int
    version: str


def read_daemon(paths: LocalPaths) -> DaemonRecord | None:
    try:
        return msgspec.json.decode((paths.local / "keeper.json").read_bytes(), type=DaemonRecord)
    except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
        return None


def write_daemon(paths: LocalPaths, daemon: DaemonRecord) -> None:
    draft = paths.local / ".keeper.json"
    draft.write_bytes(msgspec.json.encode(daemon))
    draft.rename(paths.local / "keeper.json")


def code_version() -> str:
    """Return an identifier of this version of the daemon. A daemon of another version without machines is replaced."""
    folder = Path(__file__).parent
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.py"))]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float) -> Iterator[bool]:
    """Hold the file's lock during the block; yields False if another process holds it. Blocking: not for the event loop."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(0.01)
            else:
                yield True
                return
    finally:
        os.close(fd)


def clear_dead_machine(paths: LocalPaths, name: str) -> bool:
    """Move the folder of a machine without a daemon to the trash; False if the machine still runs. Blocking.

    The caller holds the daemon's lock. PID 1 holds the lock of the folder; when it is free, PID 1 has ended or is ending, and
    its process namespace is being killed. This waits for that end, because processes write to the folder until then.
    """
    folder = paths.machine(name)
    if not folder.is_dir():
        return True
    with _dead(folder) as dead:
        if dead:
            discard(folder, paths.trash)
        return dead


def await_dead_machine(paths: LocalPaths, name: str) -> bool:
    """Wait until no process of an ended machine can write to its folder; False if the machine still runs. Blocking."""
    with _dead(paths.machine(name)) as dead:
        return dead


@contextlib.contextmanager
def _dead(folder: Path) -> Iterator[bool]:
    with locked(folder / "lock", wait_s=5.0) as free:
        if free:
            _await_death(folder / "lock")
        yield free


def _await_death(record: Path) -> None:
    try:
        pid, started = record.read_text().split()
    except (OSError, ValueError):
        return  # it never had a PID 1
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return
        if fields[19].decode() != started or fields[0] in (b"Z", b"X"):
            return  # a namespace's PID 1 is a zombie only after all others in it are gone
        time.sleep(0.005)


def own_privilege() -> str:
    """Return how machines are isolated: `root` for root, `user` for other users. It has no silent fallback."""
    return "root" if os.geteuid() == 0 else "user"


def groups_prefix(paths: LocalPaths) -> str:
    """Return the prefix of the control groups' names, which differs by data directory."""
    return f"gibil-{paths.key}"
