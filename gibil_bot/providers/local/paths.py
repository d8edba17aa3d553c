"""Where things are: the local folder in the data directory, the short-pathed runtime folder, and the locks on both.

<data dir>/local/      keeper.lock  starting.lock  keeper.json  keeper.log  skeleton-…/  machines/NAME/  disks/  causes/NAME
machines/NAME/         lock (holds PID 1's pid)  machine.json  disk/  mnt/  disk.img
<runtime dir>/KEY/     control.sock  XXXXXXXX.sock     (an AF_UNIX path holds 107 bytes, see unix(7))
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
from gibil_bot.providers.local.rmtree import remove_tree

PROTOCOL = 1
"""Of the control socket: counted up when an old provider and a new daemon would misunderstand each other."""

_SOCKET_PATH_BYTES = 107


@dataclass(frozen=True, slots=True)
class LocalPaths:
    """One data directory's local machines."""

    data_dir: Path

    @property
    def local(self) -> Path:
        return self.data_dir / "local"

    @property
    def machines(self) -> Path:
        return self.local / "machines"

    @property
    def causes(self) -> Path:
        return self.local / "causes"

    @property
    def key(self) -> str:
        return hashlib.sha256(os.fsencode(self.local)).hexdigest()[:8]

    def machine(self, name: str) -> Path:
        return self.machines / name

    def prepare(self) -> None:
        """Make the folders. Raises Unavailable where that cannot be."""
        try:
            self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            for folder in (self.local, self.machines):
                folder.mkdir(mode=0o711, exist_ok=True)
                if folder.stat().st_uid != os.geteuid():
                    raise Unavailable(
                        f"{folder} belongs to user id {folder.stat().st_uid}, and this is {os.geteuid()}",
                        ("run as the user whose folder it is, or set GIBIL_DATA_DIR to a folder of your own",),
                    )
                folder.chmod(0o711)  # tier `root`: PID 1 passes through here as a user id of its own
        except OSError as error:
            raise Unavailable(
                f"the folder {error.filename} cannot be made: {error.strerror}",
                ("set GIBIL_DATA_DIR to a folder that you may write",),
            ) from error

    def runtime(self) -> Path:
        """The folder of our sockets, made on demand: 0700, ours, and with a short path."""
        uid = os.geteuid()
        candidates = [Path("/run/gibil")] if uid == 0 else []
        if os.environ.get("XDG_RUNTIME_DIR") and uid != 0:
            candidates.append(Path(os.environ["XDG_RUNTIME_DIR"]) / "gibil")
        candidates.append(Path(f"/tmp/gibil-{uid}"))  # noqa: S108 - made 0700, and refused when it is somebody else's
        problem = "no folder could be made"
        for candidate in candidates:
            if len(os.fsencode(candidate)) + 40 > _SOCKET_PATH_BYTES:
                continue
            try:
                for folder in (candidate, candidate / self.key):
                    folder.mkdir(mode=0o700, exist_ok=True)
                    status = folder.lstat()
                    if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o077:
                        raise ProviderError(f"{folder} is not a folder of ours that nobody else can enter; remove it")
                return candidate / self.key
            except OSError as error:
                problem = f"{candidate}: {error.strerror}"
        raise ProviderError(f"there is no place for the sockets of local machines: {problem}; set XDG_RUNTIME_DIR")


class DaemonRecord(msgspec.Struct, frozen=True, kw_only=True):
    """keeper.json: where the running daemon answers, and what it is."""

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
    """Names this version of the daemon: another one without machines is replaced."""
    folder = Path(__file__).parent
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.py"))]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:12]


@contextlib.contextmanager
def locked(path: Path, *, wait_s: float) -> Iterator[bool]:
    """Hold the file's lock; False when somebody else had it all the time. Blocking: not for the event loop."""
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
    """Remove the folder of a machine that nobody keeps; False when it is alive after all. Blocking.

    Call with the daemon's lock held. The folder's own lock lives in PID 1; when it is free PID 1 has ended or is just
    ending, and then its whole process namespace is being killed: wait for that, so that nobody writes any more.
    """
    folder = paths.machine(name)
    if not folder.is_dir():
        return True
    with locked(folder / "lock", wait_s=5.0) as free:
        if not free:
            return False
        _await_death(folder / "lock")
        remove_tree(folder)
    return True


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
