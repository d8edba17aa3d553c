"""Descriptors that come over a socket (SCM_RIGHTS, unix(7)), each for this process alone."""

from __future__ import annotations

import array
import socket


def receive(sock: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """A message and its descriptors, none of which a program that we start inherits.

    `socket.recv_fds` has a parameter for that flag too, and does not hand it on.
    """
    numbers = array.array("i")
    message, ancillary, _flags, _address = sock.recvmsg(size, socket.CMSG_LEN(most * numbers.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    return message, list(numbers)
