"""Commands that PID 1 of a local machine starts without the shell that prepares others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gibil_bot.scripts.commands import enter_home, read_plain_command, run_command


@given(some.text(some.characters(exclude_characters="\0"), min_size=1))
def test_a_plain_command_is_recognized_with_its_tag(command: str) -> None:
    assert read_plain_command(run_command("command-1", enter_home(command), with_env=False)) == ("command-1", command)


PLAIN = run_command("command-1", enter_home("a b"), with_env=False)


@pytest.mark.parametrize(
    "command",
    [
        "",
        "true",
        PLAIN + "; true",
        PLAIN + " x",
        PLAIN + "'",
        PLAIN.replace("/root", "/root/project"),
        PLAIN.replace("GIBIL_JOB=command-1", "GIBIL_JOB=$(id)"),
        PLAIN.replace("'a b'", '"a b"'),
        PLAIN.replace("'a b'", "$x"),
        PLAIN.removeprefix("export GIBIL_JOB="),
        run_command("command-1", enter_home("a"), with_env=True),
    ],
)
def test_any_other_command_is_left_to_the_shell(command: str) -> None:
    assert read_plain_command(command) is None
