"""The list of commands: made without importing one, and true all the same."""

from __future__ import annotations

import re
import subprocess
import sys

import click
import pytest

from gibil_bot.cli import gibil

NAMES = gibil.list_commands(click.Context(gibil))


def summaries() -> dict[str, str]:
    """Each command with its text in `gibil --help`."""
    context = click.Context(gibil, max_content_width=200, terminal_width=200)
    listing = gibil.get_help(context).partition("Commands:\n")[2].partition("\n\n")[0]
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in listing.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_the_list_says_of_each_command_what_its_own_help_says_first(name: str) -> None:
    command = gibil.get_command(click.Context(gibil), name)
    assert command is not None
    assert command.name == name
    first_paragraph = " ".join((command.help or "").split("\n\n")[0].split())
    assert first_paragraph.startswith(summaries()[name])


def test_every_command_is_listed() -> None:
    assert list(summaries()) == NAMES


def test_an_unknown_command_is_wrong_use() -> None:
    done = subprocess.run([sys.executable, "-m", "gibil_bot", "brew"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "No such command 'brew'" in done.stderr


def test_help_imports_neither_a_command_nor_a_heavy_library() -> None:
    words = [sys.executable, "-X", "importtime", "-m", "gibil_bot", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    heavy = {"asyncio", "yaml", "msgspec", "asyncssh", "githubkit", "starlette", "uvicorn", "mcp", "gibil_bot.model"}
    assert "gibil_bot.cli" in loaded
    assert not {name for name in loaded if name in heavy or name.startswith("gibil_bot.cli.")}
