"""Output of any size, kept small: its beginning and its end, and how much was left out in between. Pure."""

from __future__ import annotations

_LINE_BYTES = 400
"""So far a cut is moved to the end of a line."""


class Excerpt:
    """Takes bytes as they come, and keeps about `most` of them: a quarter from the beginning, the rest from the end."""

    def __init__(self, most: int) -> None:
        self._head_size = most // 4
        self._tail_size = most - self._head_size
        self._head = bytearray()
        self._tail = bytearray()
        self.size = 0
        """Of everything that came."""

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self._head_size - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 4 * self._tail_size:  # not with every block
            del self._tail[: -self._tail_size]

    def parts(self) -> tuple[str, int, str]:
        """(beginning, bytes that were left out, end); all of it is in the beginning when nothing was."""
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
        """With a line in between that says how much is missing, and `hint`."""
        head, left_out, tail = self.parts()
        if not left_out:
            return head
        newline = "" if head.endswith("\n") else "\n"
        return f"{head}{newline}[... {left_out} bytes left out; {hint} ...]\n{tail}"


def decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def whole_characters(data: bytes) -> bytes:
    """Without a character at the end of which only the first bytes are there."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:  # inside a character
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return data[:-back] if length > back else data
    return data
