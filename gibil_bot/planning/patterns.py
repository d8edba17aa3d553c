"""Regular expressions for the `pattern:` of inputs: RE2, which takes linear time for any pattern and value.

Python's `re` backtracks: `(a+)+$` takes minutes on thirty letters. Patterns come from repositories and values from comments, so
neither is trusted. Syntax: https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

MAX_PATTERN = 200
MAX_VALUE = 1000
"""In characters."""
_MAX_MEMORY = 1024 * 1024
"""Maximum size of a compiled pattern in bytes; a larger one is rejected within some ten milliseconds."""

# RE2's messages and the texts for users; {0} is the part of the pattern that RE2 quotes.
# https://github.com/google/re2/blob/main/re2/regexp.cc, kErrorStrings
_MESSAGES = {
    "missing )": "a ( without its )",
    "unexpected )": "a ) without its (",
    "missing ]": "a [ without its ]",
    "trailing \\": "the pattern ends after a \\; write \\\\ for the character",
    "invalid character class range": "the range {0} is reversed, or there is no class of that name",
    "no argument for repetition operator": "there is nothing before {0} to repeat",
    "bad repetition operator": "{0} is a repetition of a repetition; put the inner one into ( )",
    "invalid repetition size": "the repetition {0} is reversed, or too large when expanded",
    "invalid escape sequence": "{0} is not supported",
    "invalid perl operator": "{0}…) is not supported",
    "invalid named capture group": "{0} is not a group with a name",
    "pattern too large - compile failed": "the pattern is too large when its repetitions are expanded",
}


class InvalidPattern(ValueError):
    """A pattern that RE2 doesn't accept. The message is a clause for people."""


class Pattern:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def fullmatch(self, value: str) -> bool:
        """Return whether the whole value matches; False for a value longer than MAX_VALUE characters."""
        if len(value) > MAX_VALUE:
            return False
        try:
            return self._compiled.fullmatch(value) is not None
        except UnicodeEncodeError:  # a lone surrogate: JSON can hold one, UTF-8 can't
            return False


@lru_cache(maxsize=256)
def compile_pattern(text: str) -> Pattern:
    """Compile a pattern. Raises InvalidPattern if it is unsupported, too long or too large."""
    import re2  # type: ignore[import-untyped]  # most commands need no pattern

    if len(text) > MAX_PATTERN:
        raise InvalidPattern(f"a pattern of more than {MAX_PATTERN} characters")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        return Pattern(re2.compile(text, options))
    except UnicodeEncodeError:
        raise InvalidPattern("a character that is not valid Unicode") from None
    except re2.error as error:
        raise InvalidPattern(_message(error)) from None


def _message(error: Exception) -> str:
    (message,) = error.args
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    kind, _, part = re.sub(r"\s+", " ", text).partition(": ")
    return _MESSAGES[kind].format(part) if kind in _MESSAGES else text
