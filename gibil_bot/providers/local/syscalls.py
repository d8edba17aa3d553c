"""System calls that Python 3.11 does not offer, by ctypes: namespaces, mounts, process control.

Every function raises OSError with the call and its arguments in the text, because users read that text when their kernel
rejects a call. Constants are those of linux/sched.h, linux/mount.h and linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import socket
import struct

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x4_0000
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_IDMAP = 0x10_0000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_KEYCTL_JOIN_SESSION_KEYRING = 1

# Numbers since Linux 5.1 are the same for all architectures.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_FSOPEN, _FSCONFIG, _FSMOUNT, _FSPICK = 430, 431, 432, 433
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE, _FSCONFIG_CMD_RECONFIGURE = 0, 1, 6, 7
_FSPICK_CLOEXEC, _FSPICK_EMPTY_PATH = 1, 8
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "keyctl": 250, "kcmp": 312, "ioprio_set": 251, "set_mempolicy": 238},
    "aarch64": {"pivot_root": 41, "keyctl": 219, "kcmp": 272, "ioprio_set": 30, "set_mempolicy": 237},
}
_KCMP_FILES = 2
_IOPRIO_WHO_PROCESS = 1


def _number(call: str) -> int:
    machine = platform.machine()
    if machine not in _NUMBERS:
        raise OSError(38, f"{call}: local machines support x86_64 and aarch64, not {machine}")
    return _NUMBERS[machine][call]


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), f"setns({kind:#x})")


def mount(source: str | None, target: str, kind: str | None = None, flags: int = 0, options: str | None = None) -> None:
    done = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), ctypes.c_ulong(flags), _bytes(options))
    _check(done, f"mount {kind or 'bind'} on {target} (flags {flags:#x}, {options or 'no options'})")


def unmount(target: str, flags: int = 0) -> None:
    _check(_libc.umount2(_bytes(target), flags), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    _check(_libc.syscall(_number("pivot_root"), _bytes(new), _bytes(old)), "pivot_root")


def open_tree(path: str, *, recursive: bool = False) -> int:
    """Return a descriptor of a detached copy of the mount at `path` (open_tree(2), OPEN_TREE_CLONE)."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _check(_libc.syscall(_OPEN_TREE, _AT_FDCWD, _bytes(path), ctypes.c_uint(flags)), f"open_tree {path}")


def mount_setattr(fd: int, attributes: int, *, user_namespace: int = 0, recursive: bool = False) -> None:
    """Set MOUNT_ATTR_* on a detached mount (mount_setattr(2)); `user_namespace` is the map of MOUNT_ATTR_IDMAP."""
    record = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    flags = ctypes.c_uint(_AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0))
    done = _libc.syscall(_MOUNT_SETATTR, fd, b"", flags, record, ctypes.c_size_t(len(record)))
    _check(done, f"mount_setattr({attributes:#x})")


def move_mount(fd: int, target: str) -> None:
    """Attach a detached mount at `target`."""
    done = _libc.syscall(_MOVE_MOUNT, fd, b"", _AT_FDCWD, _bytes(target), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH))
    _check(done, f"move_mount to {target}")


def mount_device(kind: str, device: str, flags: tuple[str, ...] = (), attributes: int = 0) -> int:
    """Mount a block device detached (fsopen(2), fsmount(2)); returns a directory descriptor.

    The mount is in no mount table, and exists while the descriptor is open. Of a device that is mounted with the same flags, it
    is another mount of the same file system.
    """
    context = _check(_libc.syscall(_FSOPEN, kind.encode(), ctypes.c_uint(1)), f"fsopen {kind}")
    try:
        options = [(_FSCONFIG_SET_FLAG, flag.encode(), None) for flag in flags]
        source = (_FSCONFIG_SET_STRING, b"source", os.fsencode(device))
        for command, key, value in (source, *options, (_FSCONFIG_CMD_CREATE, None, None)):
            done = _libc.syscall(_FSCONFIG, context, ctypes.c_uint(command), key, value, 0)
            _check(done, f"mount {kind} from {device} ({key.decode() if key else 'create'})")
        all_attributes = ctypes.c_uint(MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | attributes)
        return _check(_libc.syscall(_FSMOUNT, context, ctypes.c_uint(1), all_attributes), f"fsmount {kind}")
    finally:
        os.close(context)


def make_read_only(mount: int) -> None:
    """Write all data of the mounted file system to its device, and reject further writes (fspick(2))."""
    flags = ctypes.c_uint(_FSPICK_CLOEXEC | _FSPICK_EMPTY_PATH)
    context = _check(_libc.syscall(_FSPICK, mount, b"", flags), "fspick")
    try:
        for command, key in ((_FSCONFIG_SET_FLAG, b"ro"), (_FSCONFIG_CMD_RECONFIGURE, None)):
            done = _libc.syscall(_FSCONFIG, context, ctypes.c_uint(command), key, None, 0)
            _check(done, "making a file system read-only")
    finally:
        os.close(context)


def syncfs(fd: int) -> None:
    """Write all data of the file system of an open file to its device (syncfs(2))."""
    _check(_libc.syncfs(fd), "syncfs")


def prctl(option: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> None:
    words = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    words += [ctypes.c_ulong(0)] * (4 - len(words))
    _check(_libc.prctl(option, *words), f"prctl({option})")


def set_process_name(name: str) -> None:
    prctl(PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))


def drop_bounding_set(keep: frozenset[int]) -> None:
    """Limit the capabilities of all programs that are executed from now on to `keep`."""
    for capability in range(64):
        if capability not in keep and _libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            if ctypes.get_errno() == 22:
                return  # EINVAL: one past the last capability that this kernel knows
            _check(-1, f"prctl(PR_CAPBSET_DROP, {capability})")


def new_session_keyring() -> None:
    """Replace the inherited session keyring, which may hold tickets of the user who started us, by an empty one."""
    if _libc.syscall(_number("keyctl"), _KEYCTL_JOIN_SESSION_KEYRING, None) < 0 and ctypes.get_errno() not in (38, 1):
        _check(-1, "keyctl(JOIN_SESSION_KEYRING)")  # ENOSYS, EPERM: no keyrings here


def set_hostname(name: str) -> None:
    raw = name.encode()
    _check(_libc.sethostname(raw, len(raw)), f"sethostname({name})")


def loopback_up() -> None:
    """Start `lo` in this network namespace (SIOCSIFFLAGS with IFF_UP|IFF_RUNNING, netdevice(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))


def same_descriptors(one: int, other: int) -> bool:
    """Return whether two threads share their table of descriptors (kcmp(2)). Raises OSError if the kernel doesn't say."""
    result = _libc.syscall(_number("kcmp"), one, other, _KCMP_FILES, ctypes.c_ulong(0), ctypes.c_ulong(0))
    return _check(result, f"kcmp({one}, {other})") == 0


def reset_personality() -> None:
    """Reset the execution domain and its flags (personality(2))."""
    _check(_libc.personality(ctypes.c_ulong(0)), "personality(0)")


def reset_io_priority() -> None:
    """Reset the I/O priority class, so that the nice value decides (ioprio_set(2))."""
    _check(_libc.syscall(_number("ioprio_set"), _IOPRIO_WHO_PROCESS, 0, 0), "ioprio_set(none)")


def reset_memory_policy() -> None:
    """Reset the memory policy to the host's (set_mempolicy(2), MPOL_DEFAULT)."""
    _check(_libc.syscall(_number("set_mempolicy"), 0, None, ctypes.c_ulong(0)), "set_mempolicy(default)")
