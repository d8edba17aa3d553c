"""Regular expressions for `pattern:` of an input: RE2, which takes linear time whatever the pattern and the value are.

Python's `re` backtracks, and `(a+)+$` on thirty letters takes minutes. A pattern comes from a repository and a value from a
comment, so neither may cost that. Syntax: https://github.com/google/re2/wiki/Syntax
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

MAX_PATTERN = 200
MAX_VALUE = 1000
"""Characters."""
_MAX_MEMORY = 1024 * 1024
"""Bytes of a compiled pattern; one that is larger is rejected in some ten milliseconds."""

# What RE2 says, and what people read; {0} is the part of the pattern that RE2 quotes.
# https://github.com/google/re2/blob/main/re2/regexp.cc, kErrorStrings
_MESSAGES = {
    "missing )": "a ( without its )",
    "unexpected )": "a ) without its (",
    "missing ]": "a [ without its ]",
    "trailing \\": "the pattern ends after a \\; write \\\\ for the character",
    "invalid character class range": "the range {0} is upside down, or no class of that name exists",
    "no argument for repetition operator": "there is nothing before {0} that it could repeat",
    "bad repetition operator": "{0} is a repetition of a repetition; put the inner one into ( )",
    "invalid repetition size": "the repetition {0} is upside down, or too large when it is written out",
    "invalid escape sequence": "{0} is not supported",
    "invalid perl operator": "{0}…) is not supported",
    "invalid named capture group": "{0} is not a group with a name",
    "pattern too large - compile failed": "the pattern is too large when its repetitions are written out",
}


class InvalidPattern(ValueError):
    """A pattern that RE2 doesn't accept. The message is a clause for people."""


class Pattern:
    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled

    def fullmatch(self, value: str) -> bool:
        """Return whether the whole value matches. A value longer than MAX_VALUE characters never does."""
        if len(value) > MAX_VALUE:
            return False
        try:
            return self._compiled.fullmatch(value) is not None
        except UnicodeEncodeError:  # a lone surrogate: JSON can hold one, UTF-8 can't
            return False


@lru_cache(maxsize=256)
def compile_pattern(text: str) -> Pattern:
    """Raises InvalidPattern for a pattern that is not supported, too long or too large."""
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
    (said,) = error.args
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    kind, _, part = re.sub(r"\s+", " ", text).partition(": ")
    return _MESSAGES[kind].format(part) if kind in _MESSAGES else text
