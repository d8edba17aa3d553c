"""Parsers for a machine's answers: fields, bounded numbers, one line for a message. No I/O.

The code that runs on a machine controls it, and may replace any tool that our scripts call there.
"""

from __future__ import annotations

import math
import re

from gibil_bot.errors import GibilError

MOST_ANSWERED = 1024 * 1024
"""How many bytes of an answer are stored unless the caller asks for more."""
LARGEST = 2**53
"""The largest size, offset or time: a double, and so every JSON parser, represents it exactly."""
LINE_CHARACTERS = 500

_DIGITS = re.compile(r"[0-9]{1,16}")
_DECIMAL = re.compile(r"[0-9]{1,16}(\.[0-9]{1,20})?")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


class BadAnswer(GibilError, ValueError):
    """A machine's answer is not what the script prints."""

    code = "BAD_ANSWER"


def number(text: str | bytes, most: int = LARGEST) -> int:
    """Parse a plain decimal number from 0 to `most`. Raises BadAnswer."""
    words = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    if not _DIGITS.fullmatch(words) or int(words) > most:
        raise BadAnswer(f"the machine answered {_shown(words)} where a number from 0 to {most} was expected")
    return int(words)


def exit_status(text: str | bytes) -> int:
    """Parse an exit status, 0 to 255. Raises BadAnswer."""
    return number(text, 255)


def decimal(text: str | bytes) -> float:
    """Parse a finite number ≥ 0, with or without a fraction. Raises BadAnswer."""
    words = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    if not _DECIMAL.fullmatch(words) or not math.isfinite(float(words)):
        raise BadAnswer(f"the machine answered {_shown(words)} where a number was expected")
    return float(words)


def timestamp(text: str | bytes) -> float:
    """Parse seconds since the epoch, within the range of datetime. Raises BadAnswer."""
    seconds = decimal(text)
    if not 0 <= seconds < 253_402_300_800:  # the year 10000
        raise BadAnswer(f"the machine answered {_shown(str(seconds))} where a time was expected")
    return seconds


def fields_of(answer: bytes, count: int) -> list[bytes]:
    """Split NUL-separated fields; the last field may contain further NULs. Raises BadAnswer."""
    fields = answer.split(b"\0", count - 1)
    if len(fields) != count:
        raise BadAnswer(f"the machine answered {len(fields)} fields where {count} were expected")
    return fields


def printable(text: str, limit: int = LINE_CHARACTERS) -> str:
    """Return untrusted text as one line for a message or a terminal, cut at `limit` characters.

    Control and bidirectional characters become blanks; other unprintable characters (half of a surrogate pair, a zero-width
    character) become U+FFFD.
    """
    line = _UNPRINTABLE.sub(" ", text[: 4 * limit]).strip()
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
    return line if len(line) <= limit else f"{line[:limit]} […]"


def last_line(output: bytes, otherwise: str = "no reason given") -> str:
    """Return the last line that isn't blank: most tools print their error there."""
    lines = output[-64 * 1024 :].decode("utf-8", "replace").strip().splitlines()
    return (printable(lines[-1]) if lines else "") or otherwise


def size_text(count: int) -> str:
    """Format a number of bytes for a message."""
    return f"{count // 1024**2} MiB" if count >= 1024**2 else f"{count} bytes"


def _shown(words: str) -> str:
    return repr(printable(words, 40))
