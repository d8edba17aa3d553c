"""The values of inputs: validation of a command's arguments, and defaults."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from gibil_bot.errors import UsageError
from gibil_bot.humanize import nearest, without_hidden
from gibil_bot.planning.patterns import MAX_VALUE, compile_pattern
from gibil_bot.planning.workflow import Input

TEXT_LIMIT = 8000
"""Characters of an input with type text."""

_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,15}(?:\.[0-9]{1,15})?|\.[0-9]{1,15})")


def value_problem(declared: Input, value: str) -> str | None:
    """Return why this can't be the value of the input, as the end of a sentence that begins with the input's name; None if
    valid.
    """
    if declared.type == "text" and len(value) > TEXT_LIMIT:
        return (
            f"has {len(value):,} characters, and may have {TEXT_LIMIT:,}: write less, or put the text into a file of the pull "
            "request and name that"
        )
    if len(value) > MAX_VALUE and declared.type != "text":
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


def text_input(declared: Sequence[Input]) -> Input | None:
    """Return the input that takes what follows the command's word."""
    return next((item for item in declared if item.type == "text"), None)


_LEADING = re.compile(r"""([A-Za-z_][A-Za-z0-9_-]{0,99})=(?:"([^"\n]*)"|'([^'\n]*)'|“([^”\n]*)”|((?:[^\s"'“]\S*)?))(?:\s+|$)""")


def split_text(declared: Sequence[Input], text: str, *, word: str) -> dict[str, str]:
    """Return the arguments in the text that follows a command's word: NAME=VALUE of declared inputs at its beginning, and what
    remains as the input of type text. Raises UsageError.
    """
    free = text_input(declared)
    names = {item.name for item in declared if item is not free}
    given: dict[str, str] = {}
    while (match := _LEADING.match(text)) and match[1] in names:
        if match[1] in given:
            raise UsageError(f"the argument `{match[1]}` is given twice")
        given[match[1]] = next((value for value in match.groups()[1:] if value is not None), "")
        text = text[match.end() :]
    if free is not None and (text := text.removeprefix(f"{free.name}=").strip()):
        given[free.name] = text
    elif text:
        raise UsageError(f"`/gibil {word}` takes no text: write NAME=VALUE for each of its inputs")
    return given


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
            if item.type != "text" and "\n" in given[item.name]:
                problem = "contains a line break, which only an input of type text may"
            if problem:
                raise UsageError(f"`{item.name}` {problem}")
            values[item.name] = without_hidden(given[item.name]) if item.type == "text" else given[item.name]
        elif item.default is not None:
            values[item.name] = item.default
        elif item.required:
            about = f" ({item.description})" if item.description else ""
            is_text = item.type == "text"
            example = f"it after the command, `/gibil {word} …`" if is_text else f"`/gibil {word} {item.name}=…`"
            raise UsageError(f"`/gibil {word}` needs `{item.name}`{about}: write {example}")
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
