"""The values of inputs: what a command's arguments may be, and what they become."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from gibil_bot.errors import UsageError
from gibil_bot.humanize import nearest
from gibil_bot.planning.patterns import MAX_VALUE, compile_pattern
from gibil_bot.planning.workflow import Input

_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,15}(?:\.[0-9]{1,15})?|\.[0-9]{1,15})")


def value_problem(declared: Input, value: str) -> str | None:
    """Why this cannot be the value of the input, as the end of a sentence that begins with its name; None: it can."""
    if len(value) > MAX_VALUE:
        return f"is longer than {MAX_VALUE} characters"
    if "\0" in value:
        return "holds a NUL character"
    if declared.type == "boolean" and value not in ("true", "false"):
        return f"must be true or false, got {value!r}"
    if declared.type == "number" and not _NUMBER.fullmatch(value):
        return f"must be a number, got {value!r}"
    if declared.type == "choice" and value not in declared.options:
        return f"must be one of {', '.join(declared.options)}, got {value!r}{nearest(value, declared.options)}"
    if declared.pattern is not None and not compile_pattern(declared.pattern).fullmatch(value):
        return f"must match {declared.pattern}, got {value!r}"
    return None


def input_values(declared: Sequence[Input], given: Mapping[str, str], *, word: str) -> dict[str, str]:
    """Every declared input with its value: given, else its default, else `false` for booleans and nothing for others.

    Raises UsageError with a sentence for the person who wrote the command.
    """
    by_name = {known.name: known for known in declared}
    for name in given:
        if name not in by_name:
            names = ", ".join(f"`{known}`" for known in by_name)
            has = f"; it takes {names}" if names else "; it takes none"
            raise UsageError(f"`/gibil {word}` has no argument `{name}`{nearest(name, by_name) or has}")
    values: dict[str, str] = {}
    for known in declared:
        if known.name in given:
            problem = value_problem(known, given[known.name])
            if problem:
                raise UsageError(f"`{known.name}` {problem}")
            values[known.name] = given[known.name]
        elif known.default is not None:
            values[known.name] = known.default
        elif known.required:
            about = f" ({known.description})" if known.description else ""
            raise UsageError(f"`/gibil {word}` needs `{known.name}`{about}: write `/gibil {word} {known.name}=…`")
        else:
            values[known.name] = "false" if known.type == "boolean" else ""
    return values


def typed_values(declared: Sequence[Input], values: Mapping[str, str]) -> dict[str, bool | float]:
    """The values of booleans and numbers as conditions see them; other inputs are text and are not here."""
    typed: dict[str, bool | float] = {}
    for known in declared:
        value = values.get(known.name, "")
        if known.type == "boolean":
            typed[known.name] = value == "true"
        elif known.type == "number" and value and math.isfinite(float(value)):
            typed[known.name] = float(value)
    return typed
