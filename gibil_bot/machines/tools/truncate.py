"""Truncation of output: its beginning, its end, and how many bytes were left out in between. No I/O."""

from __future__ import annotations

_LINE_BYTES = 400
"""How far a cut is moved at most to fall on the end of a line."""


class Excerpt:
    """Stores about `most` bytes of the data that is added: a quarter from the beginning, the rest from the end."""

    def __init__(self, most: int) -> None:
        self._head_size = most // 4
        self._tail_size = most - self._head_size
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0
        """Bytes added in all."""

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self._head_size - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 4 * self._tail_size:  # not with every block, because it moves memory
            del self._tail[: -self._tail_size]

    def parts(self) -> tuple[str, int, str]:
        """Return (beginning, bytes left out, end). If nothing was left out, the beginning has everything."""
        tail = bytes(self._tail[-self._tail_size :])
        if self.size <= len(self._head) + len(tail):
            return decoded(bytes(self._head) + tail), 0, ""
        head = bytes(self._head)
        line_end = head.rfind(b"\n", max(0, len(head) - _LINE_BYTES)) + 1
        head = head[:line_end] if line_end else head
        line_start = tail.find(b"\n", 0, _LINE_BYTES) + 1
        tail = tail[line_start:]
        return decoded(head), self.size - len(head) - len(tail), decoded(tail)

    def text(self, hint: str) -> str:
        """Return the text, with a line at the cut that has the number of bytes left out and `hint`."""
        head, left_out, tail = self.parts()
        if not left_out:
            return head
        newline = "" if head.endswith("\n") else "\n"
        return f"{head}{newline}[... {left_out} bytes left out; {hint} ...]\n{tail}"


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def whole_characters(data: bytes) -> bytes:
    """Drop an incomplete UTF-8 character at the end."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:  # inside a character
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return data[:-back] if length > back else data
    return data
