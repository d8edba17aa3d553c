"""The values of inputs: validation of a command's arguments, and defaults."""

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
    """Return why this can't be the value of the input, as the end of a sentence that begins with the input's name; None if
    valid.
    """
    if len(value) > MAX_VALUE:
        return f"is longer than {MAX_VALUE} characters"
    if "\0" in value:
        return "contains a NUL character"
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
    """Return the value of every declared input: the given one, else its default, else `false` for booleans and "" for others.

    Raises UsageError with a message for the author of the command.
    """
    by_name = {item.name: item for item in declared}
    for name in given:
        if name not in by_name:
            names = ", ".join(f"`{name}`" for name in by_name)
            accepted = f"; it takes {names}" if names else "; it takes none"
            raise UsageError(f"`/gibil {word}` has no argument `{name}`{nearest(name, by_name) or accepted}")
    values: dict[str, str] = {}
    for item in declared:
        if item.name in given:
            problem = value_problem(item, given[item.name])
            if problem:
                raise UsageError(f"`{item.name}` {problem}")
            values[item.name] = given[item.name]
        elif item.default is not None:
            values[item.name] = item.default
        elif item.required:
            about = f" ({item.description})" if item.description else ""
            raise UsageError(f"`/gibil {word}` needs `{item.name}`{about}: write `/gibil {word} {item.name}=…`")
        else:
            values[item.name] = "false" if item.type == "boolean" else ""
    return values


def typed_values(declared: Sequence[Input], values: Mapping[str, str]) -> dict[str, bool | float]:
    """Return the values of booleans and numbers as conditions see them. Other inputs are text and are omitted."""
    typed: dict[str, bool | float] = {}
    for item in declared:
        value = values.get(item.name, "")
        if item.type == "boolean":
            typed[item.name] = value == "true"
        elif item.type == "number" and value and math.isfinite(float(value)):
            typed[item.name] = float(value)
    return typed
