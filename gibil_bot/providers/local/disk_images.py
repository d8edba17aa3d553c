"""Disks that are file systems of a fixed size: a sparse image per machine, formatted as ext4, mounted through a loop device.

Only root can mount one, and only where loop devices and mkfs.ext4 exist; elsewhere a disk is a folder whose size the daemon
polls (usage_poller.py). An image is copied from an empty one that is formatted once per size, which costs less than a
millisecond. The mount is detached: it is in the machine's own mount namespace and in no table of the host, and it is unmounted
when the daemon's descriptor closes. Interfaces: loop(4), linux/loop.h, linux/ext4.h (EXT4_IOC_SHUTDOWN).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import shutil
import struct
import subprocess
import threading
import time
from pathlib import Path

from gibil_bot.providers.local import syscalls as sc

IMAGE = "disk.img"
"""In the machine's folder."""
SMALLEST_MB = 64

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
_EXT4_IOC_SHUTDOWN = 0x8004_587D
_GOING_FLAGS_NOLOGFLUSH = 2
_ATTEMPTS = 32
_EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EBUSY)
_FORMAT_S = 60
_TRY_AGAIN_S = 60.0
# No journal, because no disk outlives a crash. Inode tables are left unwritten: empty, an image takes some hundred kilobytes.
# One inode per 8 KiB: dependency folders are made of small files.
_FORMAT = (
    "-q", "-F", "-b", "4096", "-i", "8192", "-m", "0", "-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg",
    "-E", "lazy_itable_init=1,nodiscard",
)  # fmt: skip
_MOUNT_FLAGS = ("noinit_itable", "nodiscard")
_NAME = "-1"
"""Increased whenever _FORMAT changes."""
_FORMATTING = threading.Lock()


class Image:
    """A mounted disk. `mount` is the detached mount, `folder` a descriptor of its top directory.

    `device` is its loop device, and `flags` are those that it was mounted with.
    """

    def __init__(self, path: Path, mount: int, device: str, flags: tuple[str, ...]) -> None:
        self.path, self.mount = path, mount
        self._device, self._flags = device, flags
        self.folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)

    def full(self) -> str | None:
        """Return what is used up, "space" or "files"; None if neither is."""
        status = os.statvfs(self.folder)
        if status.f_bavail * status.f_frsize < 1024**2:
            return "space"
        return "files" if status.f_favail == 0 else None

    def close(self) -> None:
        """Unmount without writing anything back, when no process of the machine runs any more. Blocking.

        The caller removes the file, because another machine of the same name may have one by now.
        """
        with contextlib.suppress(OSError):  # without it, unmounting writes all dirty data
            fcntl.ioctl(self.folder, _EXT4_IOC_SHUTDOWN, struct.pack("=I", _GOING_FLAGS_NOLOGFLUSH))
        self.unmount()

    def unmount(self) -> None:
        """Unmount it; its data is written back. Blocking."""
        os.close(self.folder)
        os.close(self.mount)

    def freeze(self) -> None:
        """Write all data to its file, which nothing changes any more, unmounting included. Blocking. Raises OSError."""
        sc.make_read_only(self.folder)
        self._flags = ("ro", *_MOUNT_FLAGS)

    def another_mount(self) -> int:
        """Return a read-only detached mount of the same file system. Blocking. Raises OSError."""
        return sc.mount_device("ext4", self._device, self._flags, sc.MOUNT_ATTR_RDONLY)

    def discard(self) -> None:
        """Close it and remove its file, if no machine used it. Blocking."""
        self.close()
        self.path.unlink(missing_ok=True)

    def move(self, path: Path) -> None:
        """Move its file to another folder. Raises OSError."""
        self.path.rename(path)
        self.path = path


class Images:
    """Creates the disks of one daemon's machines. `problem`: why the last one couldn't be created.

    One disk of the size that was requested last is prepared in advance, because copying, attaching and mounting take some
    milliseconds. All methods but `take_prepared` block.
    """

    def __init__(self, local: Path) -> None:
        self._local = local
        self._problem = "" if os.geteuid() == 0 else "only root can mount a file system of a fixed size"
        self._try_again_at = math.inf
        self._lock = threading.Lock()
        self._prepared: tuple[int, Image] | None = None
        self._count = 0

    @property
    def problem(self) -> str:
        """Return the last failure, or an empty string. After a minute it is tried again, as the reason may have passed."""
        if time.monotonic() >= self._try_again_at:
            self._problem, self._try_again_at = "", math.inf
        return self._problem

    def take_prepared(self, machine: Path, size_mb: int) -> Image | None:
        """Move the prepared disk to the machine if it has that size. None if it doesn't, or if none is ready."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            prepared = self._prepared
            if prepared is None or prepared[0] != size_mb:
                return None
            self._prepared = None
        finally:
            self._lock.release()
        prepared[1].move(machine / IMAGE)
        return prepared[1]

    def create(self, machine: Path, size_mb: int) -> Image | None:
        """Create a disk; None if the host can't mount images. Raises OSError if it ran out of something."""
        if self.problem or size_mb < SMALLEST_MB:
            return None
        try:
            return create_image(self._local, machine / IMAGE, size_mb)
        except OSError as error:
            if error.errno in _EXHAUSTED or not machine.is_dir():  # the machine was destroyed meanwhile
                raise
            self._problem, self._try_again_at = error.strerror or str(error), time.monotonic() + _TRY_AGAIN_S
            return None

    def prepare(self, size_mb: int) -> None:
        """Prepare a disk of that size, and discard one of another size. Never raises."""
        with self._lock:
            prepared = self._prepared
            if self.problem or (prepared is not None and prepared[0] == size_mb):
                return
            self._prepared = None
            if prepared is not None:
                prepared[1].discard()
            self._count += 1
            with contextlib.suppress(OSError):
                path = self._local / f"disks/.{self._count}.{os.getpid()}"
                self._prepared = size_mb, create_image(self._local, path, size_mb)

    def close(self) -> None:
        """Discard the prepared disk."""
        with self._lock:
            if self._prepared is not None:
                self._prepared[1].discard()
            self._prepared = None


def remove_leftovers(local: Path) -> None:
    """Remove prepared disks of a daemon that was killed."""
    for path in (local / "disks").glob(".*"):
        if not path.name.endswith(f".{os.getpid()}"):
            path.unlink(missing_ok=True)


def create_image(local: Path, path: Path, size_mb: int) -> Image:
    """Create and mount a disk of that size at `path`. Blocking. Raises OSError if that isn't possible."""
    template = _template(local, size_mb)
    image = _copy(template, path)
    try:
        return _mount(image, path, _MOUNT_FLAGS)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(image)


def mount_read_only(path: Path) -> Image:
    """Mount an existing image, whose file isn't changed by that. Blocking. Raises OSError."""
    image = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _mount(image, path, ("ro", *_MOUNT_FLAGS), _LO_FLAGS_READ_ONLY)
    finally:
        os.close(image)


def _mount(image: int, path: Path, flags: tuple[str, ...], loop_flags: int = 0) -> Image:
    device, name = _attach(image, loop_flags)
    try:
        return Image(path, sc.mount_device("ext4", name, flags), name, flags)
    finally:
        os.close(device)  # a mounted device stays attached; otherwise it detaches itself now


def image_disk_mb(machine: Path) -> int | None:
    """Return how much of the host's disk the machine's image uses; None if it has none."""
    try:
        return (machine / IMAGE).stat().st_blocks * 512 // 1024**2
    except OSError:
        return None


def _template(local: Path, size_mb: int) -> Path:
    """Return the path of an empty formatted image of that size. Raises OSError."""
    folder = local / "disks"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / f"{size_mb}{_NAME}.ext4"
    with _FORMATTING:  # several machines of a new size may be requested at the same time
        if not path.exists():
            _make_template(path, size_mb)
    return path


def _make_template(path: Path, size_mb: int) -> None:
    program = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin")
    if program is None:
        raise FileNotFoundError(errno.ENOENT, "mkfs.ext4 is not installed")
    draft = path.parent / f".{size_mb}.{os.getpid()}"
    try:
        command = [program, *_FORMAT, str(draft), f"{size_mb}m"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_FORMAT_S, check=False)
        if done.returncode:
            raise OSError(errno.EIO, f"mkfs.ext4: {done.stderr.decode(errors='replace').strip()[-200:]}")
        draft.rename(path)
    except subprocess.TimeoutExpired:
        raise OSError(errno.ETIMEDOUT, f"mkfs.ext4 took longer than {_FORMAT_S} s") from None
    finally:
        draft.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> int:
    """Copy a sparse file; return the open copy."""
    read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        write = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(write, os.fstat(read).st_size)
            position = 0
            while True:
                try:
                    position = os.lseek(read, position, os.SEEK_DATA)
                except OSError as error:
                    if error.errno == errno.ENXIO:  # no more data
                        return write
                    raise
                end = os.lseek(read, position, os.SEEK_HOLE)
                while position < end:
                    block = os.pread(read, min(end - position, 1024**2), position)
                    position += os.pwrite(write, block, position)
        except BaseException:
            os.close(write)
            target.unlink(missing_ok=True)
            raise
    finally:
        os.close(read)


def _attach(image: int, flags: int) -> tuple[int, str]:
    """Attach the file to a loop device, which detaches itself when unused. Returns (descriptor, path). Raises OSError."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        info = bytearray(232)  # struct loop_info64; lo_flags is at 52
        struct.pack_into("=I", info, 52, _LO_FLAGS_AUTOCLEAR | flags)
        config = struct.pack("=II", image, 4096) + bytes(info) + bytes(64)  # struct loop_config
        for attempt in range(_ATTEMPTS):
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(name, (os.O_RDONLY if flags & _LO_FLAGS_READ_ONLY else os.O_RDWR) | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if error.errno != errno.EBUSY or attempt + 1 == _ATTEMPTS:  # another process was quicker
                    raise
            else:
                return device, name
        raise AssertionError("the loop returns or raises")
    finally:
        os.close(control)
