"""Connections of a machine that the kernel dropped, because their destination isn't redirected (route.py): reported as blocked.

The machine writes the packets, so they are hostile; the kernel limits how many of them arrive.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable

from gibil_bot.model import Refusal
from gibil_bot.providers.local.relay import readable

_HEADERS = struct.calcsize("=IHHII") + struct.calcsize(">BBH")
"""struct nlmsghdr and struct nfgenmsg."""
_PAYLOAD = 9


async def read_packet_log(log: socket.socket, report: Callable[[Refusal], None]) -> None:
    """Report the destination of every packet, until cancelled."""
    log.setblocking(False)
    while True:
        try:
            message = log.recv(65536)
        except BlockingIOError:
            await readable(log)
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # some packets didn't fit into the socket's buffer
                return
        else:
            if (refusal := destination(message)) is not None:
                report(refusal)


def destination(message: bytes) -> Refusal | None:
    """Return where the TCP packet in a message of nfnetlink_log was sent."""
    size = struct.unpack_from("=I", message)[0] if len(message) >= _HEADERS else 0
    position = _HEADERS
    while position + 4 <= min(size, len(message)):
        length, kind = struct.unpack_from("=HH", message, position)
        if length < 4:
            return None
        if kind == _PAYLOAD:
            return _of_packet(message[position + 4 : position + length])
        position += length + 3 & ~3
    return None


def _of_packet(packet: bytes) -> Refusal | None:
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != socket.IPPROTO_TCP:
        return None
    ports = packet[(packet[0] & 15) * 4 :]
    if len(ports) < 4:
        return None
    return Refusal(host=socket.inet_ntoa(packet[16:20]), port=int.from_bytes(ports[2:4]))
