"""File descriptors: receiving them over a socket, closing inherited ones, and counting the bytes in a pipe.

Cheap to import, because PID 1 of every machine imports it.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import termios


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive a message and its descriptors (SCM_RIGHTS, unix(7)), which no program that we start inherits.

    `socket.recv_fds` has a parameter for that flag, but ignores it.
    """
    numbers = array.array("i")
    message, ancillary, _flags, _address = sock.recvmsg(size, socket.CMSG_LEN(most * numbers.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)


def close_others(keep: set[int]) -> None:
    """Close every descriptor but the standard streams and `keep`: another program may wait until a descriptor is closed."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):  # EBADF: the listing's own; after other errors it is closed, too
                os.close(int(name))


def unread_bytes(pipe: int) -> int:
    """Return how many bytes are in the pipe now; 0 if the kernel doesn't say."""
    with contextlib.suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])
    return 0
