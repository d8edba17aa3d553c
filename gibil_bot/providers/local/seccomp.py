"""System-call filter of a machine: a small deny list, the allowed socket families, and calls that only pretend to succeed.

Denied are calls that builds never need and that had vulnerabilities (the same as in container runtimes' default profiles), and
keyrings, which namespaces separate badly. Also denied are calls that access the descriptors and memory of other processes
without being a debugger, and calls that change the limits of PID 1. With privilege `user` only uid 0 exists, so `chown
postgres` would fail and with it most packages: those calls report success without doing anything. The idea is charliecloud's
(https://hpc.github.io/charliecloud/ch-run.html, --seccomp); the numbers are from the kernel's tables.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import socket
import struct
from collections.abc import Iterable

from gibil_bot.providers.local.syscalls import PR_SET_SECCOMP, prctl

_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32_BIT = 0x4000_0000

# name: (x86_64, aarch64); None where the architecture has no such call
_PRETENDED: dict[str, tuple[int, int | None]] = {
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setgroups": (116, 159),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setreuid": (113, 145),
    "setregid": (114, 143),
    "setresuid": (117, 147),
    "setresgid": (119, 149),
    "setfsuid": (122, 151),
    "setfsgid": (123, 152),
    "capset": (126, 91),
}
_DENIED: dict[str, tuple[int, int]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "userfaultfd": (323, 282),
}

_SOCKET_CALLS: dict[str, tuple[int, int]] = {
    "socket": (41, 198),
    "socketpair": (53, 199),
}
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
"""Socket families whose addresses belong to a network namespace. Others are shared with the host and with all machines (VSOCK,
ALG, QIPCRTR …), or make the kernel load modules on demand. PACKET belongs to a namespace as well, but a machine has no network
card to capture from, and it is one of the kernel's most attacked families."""

_NETLINK_PROTOCOLS = (0, 2, 4, 9, 15, 16)
"""ROUTE, USERSOCK, SOCK_DIAG, AUDIT (libaudit asks whether it exists), KOBJECT_UEVENT, GENERIC (linux/netlink.h)."""
_NOT_ON_PID_1: dict[str, tuple[int, int, int]] = {
    # name: (x86_64, aarch64, which argument is the pid)
    "ioprio_set": (251, 30, 1),
    "prlimit64": (302, 261, 0),
    "sched_setaffinity": (203, 122, 0),
    "sched_setattr": (314, 274, 0),
    "sched_setparam": (142, 118, 0),
    "sched_setscheduler": (144, 119, 0),
    "setpriority": (141, 140, 1),
}
"""Calls that jobs may not use on PID 1.

It has the uid of the machine's root, and none of them checks whether it is traceable.
"""

_LOAD_WORD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW = 0x7FFF_0000
_ERRNO = 0x0005_0000
_SECCOMP_MODE_FILTER = 2

_Instruction = tuple[int, int, int, int]


def program(machine: str, *, pretend_root: bool) -> bytes:
    """The filter as classic BPF (seccomp(2)): struct sock_filter after struct sock_filter."""
    column = 0 if machine == "x86_64" else 1
    code: list[_Instruction] = [
        (_LOAD_WORD, 0, 0, 4),  # struct seccomp_data: nr at 0, arch at 4
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),  # the numbers of another architecture would slip past the list
        (_LOAD_WORD, 0, 0, 0),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
    ]
    for numbers in _SOCKET_CALLS.values():
        code += _when(numbers[column], _only_namespaced_sockets())
    answers: list[tuple[int | None, int]] = [(numbers[column], _ERRNO | errno.EPERM) for numbers in _DENIED.values()]
    if pretend_root:
        answers += [(numbers[column], _ERRNO) for numbers in _PRETENDED.values()]
    for number, answer in answers:
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    for *calls, argument in _NOT_ON_PID_1.values():
        code += _when(calls[column], _not_on_pid_1(argument))
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _when(number: int, body: list[_Instruction]) -> list[_Instruction]:
    """Run `body`, which has to return, for the system call `number`, which is in the accumulator."""
    return [(_JUMP_EQUAL, 0, len(body), number), *body]


def _load_argument(index: int) -> _Instruction:
    """Load the lower half of an argument, the part that the kernel reads of an int (both architectures are little-endian)."""
    return (_LOAD_WORD, 0, 0, 16 + 8 * index)


def _unless_one_of(values: Iterable[int], error: int) -> list[_Instruction]:
    """Return `error` unless the accumulator holds one of the values; then continue after this code."""
    chosen = tuple(values)
    jumps = [(_JUMP_EQUAL, len(chosen) - at, 0, value) for at, value in enumerate(chosen)]
    return [*jumps, (_RETURN, 0, 0, _ERRNO | error)]


def _only_namespaced_sockets() -> list[_Instruction]:
    netlink = [_load_argument(2), *_unless_one_of(_NETLINK_PROTOCOLS, errno.EPROTONOSUPPORT)]
    return [
        _load_argument(0),
        *_unless_one_of(_FAMILIES, errno.EAFNOSUPPORT),
        (_JUMP_EQUAL, 0, len(netlink), socket.AF_NETLINK),
        *netlink,
        (_RETURN, 0, 0, _ALLOW),
    ]


def _not_on_pid_1(argument: int) -> list[_Instruction]:
    return [
        _load_argument(argument),
        (_JUMP_EQUAL, 0, 1, 1),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def install(*, pretend_root: bool) -> None:
    """Filter this process and all its future children. Needs CAP_SYS_ADMIN in its user namespace."""
    raw = program(platform.machine(), pretend_root=pretend_root)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    record = _Program(len(raw) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(record))
