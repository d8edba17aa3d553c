"""DNS messages (RFC 1035): reading one question, and answering it with addresses. No I/O."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

A, PTR, AAAA, ANY = 1, 12, 28, 255
NO_ERROR, FORMAT_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED = 0, 1, 2, 3, 4

MOST_BYTES = 1024
"""Of a question. A name has at most 255 bytes; options may follow."""

MOST_ADDRESSES = 12
"""In an answer, which then fits into 512 bytes with the longest name."""

_HEADER = struct.Struct(">HHHHHH")
_RESPONSE, _RECURSION_DESIRED, _RECURSION_AVAILABLE = 0x8000, 0x0100, 0x0080
_INTERNET = 1
_LABEL = re.compile(rb"[A-Za-z0-9_-]+")
_POINTER_TO_QUESTION = 0xC000 | _HEADER.size


class NotAQuestion(ValueError):
    """The message gets no answer."""


@dataclass(frozen=True, slots=True)
class Question:
    """`name`: lower case without the final dot. `problem`: the error code if it can't be answered."""

    id: int
    flags: int
    raw: bytes
    name: str
    kind: int
    problem: int = NO_ERROR


def parse_question(message: bytes) -> Question:
    """Parse a message with one question; options in the additional section are ignored (RFC 6891, section 7)."""
    if not _HEADER.size <= len(message) <= MOST_BYTES:
        raise NotAQuestion("wrong size")
    number, flags, questions, answers, authorities, _additional = _HEADER.unpack_from(message)
    if flags & _RESPONSE:
        raise NotAQuestion("a response")
    if flags & 0x7800:
        return Question(number, flags, b"", "", 0, NOT_IMPLEMENTED)
    malformed = Question(number, flags, b"", "", 0, FORMAT_ERROR)
    if (questions, answers, authorities) != (1, 0, 0):
        return malformed
    labels = []
    position = _HEADER.size
    while position < len(message) and (length := message[position]):
        label = message[position + 1 : position + 1 + length]
        if length > 63 or len(label) < length or position + length - _HEADER.size > 253:
            return malformed
        labels.append(label)
        position += 1 + length
    end = position + 5
    if end > len(message):
        return malformed
    kind, kind_of_network = struct.unpack_from(">HH", message, position + 1)
    raw = message[_HEADER.size : end]
    if kind_of_network != _INTERNET:
        return Question(number, flags, raw, "", kind, NOT_IMPLEMENTED)
    if not all(_LABEL.fullmatch(label) for label in labels):
        return Question(number, flags, raw, "", kind, NAME_ERROR)
    return Question(number, flags, raw, b".".join(labels).decode().lower(), kind)


def answer(question: Question, code: int, addresses: tuple[IPv4Address | IPv6Address, ...] = (), ttl_s: int = 0) -> bytes:
    """Return the response to a question, with those of the addresses that it asks for."""
    version = {A: 4, AAAA: 6}.get(question.kind)
    chosen = [address for address in addresses if address.version == version][:MOST_ADDRESSES]
    flags = _RESPONSE | (question.flags & (0x7800 | _RECURSION_DESIRED)) | _RECURSION_AVAILABLE | code
    records = b"".join(
        struct.pack(">HHHIH", _POINTER_TO_QUESTION, question.kind, _INTERNET, ttl_s, len(address.packed)) + address.packed
        for address in chosen
    )
    return _HEADER.pack(question.id, flags, int(bool(question.raw)), len(chosen), 0, 0) + question.raw + records
