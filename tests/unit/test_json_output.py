"""`gibil schema` and its page describe every command with --json."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

import gibil_bot.cli
from gibil_bot.cli import gibil
from gibil_bot.cli.json_output import OUTPUTS
from gibil_bot.cli.schema import all_schemas, page, schema_of
from gibil_bot.errors import UsageError
from tests.doubles.json_output import check_output, command_of

PAGE = Path(gibil_bot.cli.__file__).with_name("README.md")


def commands_with_json(group: click.Group = gibil, prefix: str = "") -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands_with_json(command, f"{prefix}{name} ")
        elif any("--json" in each.opts for each in command.params):
            yield f"{prefix}{name}"


def test_every_command_with_json_output_has_types() -> None:
    missing = set(commands_with_json()) - OUTPUTS.keys()
    assert not missing, "add the types of their output to gibil_bot/cli/json_output.py"
    assert set(OUTPUTS) == set(commands_with_json())


def test_the_page_is_generated_from_the_types() -> None:
    assert PAGE.read_text() == page(), "run: python -m gibil_bot.cli.schema > gibil_bot/cli/README.md"


@pytest.mark.parametrize("command", [*OUTPUTS, "failure"])
def test_each_schema_is_valid(command: str) -> None:
    Draft202012Validator.check_schema(schema_of(command))
    assert all_schemas()[command]["title"] == schema_of(command)["title"]


def test_an_unknown_command_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="there is no JSON output of 'brew'; write one of: demo, try, create"):
        schema_of("brew")


GOOD = {"name": "m", "ttl_minutes": 60, "expires_at": "2026-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('{"name": "m", "ttl_minutes": 60}', "'expires_at' is a required property"),
        ('{"name": "m", "ttl_minutes": "60", "expires_at": "x"}', "ttl_minutes: '60' is not of type 'number'"),
        ('{"name": "m", "ttl_minutes": 60, "expires_at": "x", "new": 1}', "'new' was unexpected"),
        ("[]", "is not of type 'object'"),
        ('{"error": "x", "code": 1, "message": "x", "exit_code": 2}', "code: 1 is not of type 'string'"),
    ],
)
def test_an_output_that_is_not_described_fails_the_test_that_ran_the_command(value: str, problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        check_output(["extend", "m", "30m", "--json"], value)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["list", "--json"], "list"),
        (["cache", "list", "--json"], "cache list"),
        (["run", "m", "list", "--json"], "run"),
        (["--json", "list"], "list"),
        (["brew", "--json"], None),
        ([], None),
    ],
)
def test_the_command_of_a_line_is_found(arguments: list[str], command: Any) -> None:
    assert command_of(arguments) == command
