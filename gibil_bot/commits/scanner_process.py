"""Process that runs Kingfisher on text from machines: the child of scanner.py. It has no secrets, and few rights.

stdin has pieces of text, stdout one answer for each, both as messages: the length in four bytes, and the data. The first answer
comes when the rules are loaded: null, or why they can't be. Every other one is the list of findings of a piece: line (from 1),
rule, secret in base64, and the offsets of its beginning and end, which are those of the decoded text if the scanner decoded it.

The process ends with its parent, at the end of stdin, and if a piece takes too long. Once it has read the rules, it has a
limit of memory, and Linux denies it all system calls but those that computing needs: it can't open files or connections, start
programs, or access other processes.
"""

from __future__ import annotations

import binascii
import contextlib
import os
import sys

TYPE_CHECKING = False  # importing typing takes 5 ms
if TYPE_CHECKING:
    from typing import Any

MOST_PIECE_BYTES = 128 * 1024
"""Some pieces need a hundred times their size of memory."""
MOST_FOUND = 501
"""Different findings in an answer."""
MOST_ANSWER_BYTES = 4 * 1024 * 1024
PIECE_S = 20.0

_LINGERS_S = 5
"""How much longer than PIECE_S it lives if its parent doesn't end it."""
_MEMORY_BYTES = 512 * 1024**2
"""All of its address space, of which it uses 90 MiB with the rules."""
_RULES_BYTES = 64 * 1024**2
"""Limit for the file in which Kingfisher stores its compiled rules."""

# name: (x86_64, aarch64); None where the architecture has no such call
_ALLOWED: dict[str, tuple[int, int | None]] = {
    "alarm": (37, None),
    "brk": (12, 214),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "read": (0, 63),
    "restart_syscall": (219, 128),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "setitimer": (38, 103),
    "sigaltstack": (131, 132),
    "write": (1, 64),
}
_AUDIT_ARCH = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_LOAD_WORD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _EPERM = 0x7FFF_0000, 0x0005_0001
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_MODE_FILTER = 2


def main() -> None:
    import json
    import signal

    # The parent ends it. A service manager sends SIGTERM to all processes of a service, and a piece that is being scanned must
    # not seem to have ended the scanner.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    _end_with_parent()
    _limit(core=0, fsize=_RULES_BYTES)
    try:
        from kingfisher_sdk import Rules, Scanner

        # Compiling them takes three seconds; the user's cache folder (KF_RULE_CACHE_DIR) stores the result.
        # Comments such as `kingfisher:ignore` have no effect without a policy: the machine would write them.
        scanner = Scanner(Rules(confidence="high"))
    except Exception as error:
        _answer(json.dumps(str(error)[:1000] or type(error).__name__).encode())
        return
    _limit(fsize=0, nofile=0, nproc=0, memory=_MEMORY_BYTES)
    _deny_system_calls()
    _answer(b"null")
    while (piece := _next_piece()) is not None:
        signal.alarm(int(PIECE_S) + _LINGERS_S)
        answer = json.dumps(_scan(scanner, piece)).encode()
        signal.alarm(0)
        _answer(answer)


def _scan(scanner: Any, piece: bytes) -> list[tuple[int, str, str, int, int]]:
    found: dict[tuple[int, str], tuple[int, str, str, int, int]] = {}
    for each in scanner.scan(piece):
        if each.visible:
            location = each.location
            line, start, end = int(location["line"]), int(location["start_offset"]), int(location["end_offset"])
            secret = binascii.b2a_base64(each.secret.encode("utf-8", "surrogateescape"), newline=False).decode()
            found.setdefault((line, secret), (line, each.rule_id, secret, start, end))
            if len(found) == MOST_FOUND:
                break
    return list(found.values())


def _next_piece() -> bytes | None:
    header = _read(4)
    return None if header is None else _read(int.from_bytes(header, "big"))


def _read(size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        more = os.read(0, size - len(data))
        if not more:
            return None
        data += more
    return data


def _answer(data: bytes) -> None:
    rest = memoryview(len(data).to_bytes(4, "big") + data)
    while rest:
        rest = rest[os.write(1, rest) :]


def _limit(
    *, core: int | None = None, fsize: int | None = None, nofile: int | None = None, nproc: int | None = None,
    memory: int | None = None,
) -> None:  # fmt: skip
    """Lower the limits of this process. Some systems know only some of them."""
    import resource

    for kind, most in (
        (resource.RLIMIT_CORE, core),
        (resource.RLIMIT_FSIZE, fsize),
        (resource.RLIMIT_NOFILE, nofile),
        (resource.RLIMIT_NPROC, nproc),
        (resource.RLIMIT_AS, memory),
    ):
        if most is not None:
            _, hard = resource.getrlimit(kind)
            lowest = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (lowest, lowest))


def _end_with_parent() -> None:
    """Let the kernel kill this process when the thread that started it ends; elsewhere the end of stdin does."""
    if sys.platform == "linux":
        import signal

        from gibil_bot.providers.local.syscalls import PR_SET_PDEATHSIG, prctl

        with contextlib.suppress(OSError):
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _deny_system_calls() -> None:
    """Let all system calls fail but _ALLOWED, if the kernel and the architecture can (seccomp(2))."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in _AUDIT_ARCH:
        return
    import ctypes
    import struct

    from gibil_bot.providers.local.syscalls import PR_SET_SECCOMP, prctl

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    column = 0 if machine == "x86_64" else 1
    code = [
        (_LOAD_WORD, 0, 0, 4),  # struct seccomp_data: nr at 0, arch at 4
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD_WORD, 0, 0, 0),
    ]
    for numbers in _ALLOWED.values():
        number = numbers[column]
        if number is not None:
            code += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _EPERM))
    raw = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(raw, len(raw))
    record = Program(len(raw) // 8, ctypes.addressof(buffer))
    with contextlib.suppress(OSError):  # a kernel without it: the limits remain
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(record))
