"""What several processes of local machines do with descriptors: receive them over a socket, close inherited ones, look into
a pipe. Light to import: PID 1 of every machine has it."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import struct
import termios


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """A message and its descriptors (SCM_RIGHTS, unix(7)), none of which a program that we start inherits.

    `socket.recv_fds` has a parameter for that flag too, and does not hand it on.
    """
    numbers = array.array("i")
    message, ancillary, _flags, _address = sock.recvmsg(size, socket.CMSG_LEN(most * numbers.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)


def close_others(keep: set[int]) -> None:
    """Close every descriptor but the standard streams and those: another program may be waiting for its end."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep:
            with contextlib.suppress(OSError):  # EBADF: that of the listing itself; after any other error, it is closed, too
                os.close(int(name))


def unread_bytes(pipe: int) -> int:
    """How many bytes are in the pipe now; 0 where it has no such number."""
    with contextlib.suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0])
    return 0
