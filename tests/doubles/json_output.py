"""Checks what commands print with `--json` against the types that `gibil schema` publishes, without unknown keys."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from typing import Any

from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from gibil_bot.cli import _wants_json
from gibil_bot.cli.json_output import OUTPUTS
from gibil_bot.cli.schema import schema_of


def check_output(arguments: Sequence[str], stdout: str) -> None:
    """Raise AssertionError if the stdout of `gibil ARGUMENTS` is JSON that its schema doesn't describe.

    A command that was killed, or whose stdout was closed, prints nothing: that isn't checked here.
    """
    if not stdout.strip() or not _wants_json(list(arguments)) or (command := command_of(arguments)) is None:
        return
    value = json.loads(stdout)
    failed = isinstance(value, dict) and {"error", "code", "message", "exit_code"} <= value.keys()
    problems = sorted(
        _validator("failure" if failed else command).iter_errors(value), key=lambda each: list(each.absolute_path)
    )
    assert not problems, (
        f"gibil {' '.join(arguments)} printed JSON that gibil_bot/cli/json_output.py doesn't describe: "
        + "; ".join(f"{each.json_path}: {each.message[:300]}" for each in problems[:5])
    )


def command_of(arguments: Sequence[str]) -> str | None:
    """Return the command of a line of arguments, as `OUTPUTS` names it; None for a group, a wrong name, a line without one."""
    words = [word for word in arguments if not word.startswith("-")]
    return next((name for name in (" ".join(words[:2]), " ".join(words[:1])) if name in OUTPUTS), None)


@functools.cache
def _validator(command: str) -> Draft202012Validator:
    schema = copy.deepcopy(schema_of(command))
    if command != "failure":  # an interruption adds the keys of what is left
        _close(schema)
    return Draft202012Validator(schema)


def _close(schema: Any) -> None:
    """Forbid keys that the schema doesn't name. Users must accept them, since later versions may add some."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
    elif isinstance(schema, list):
        for value in schema:
            _close(value)
