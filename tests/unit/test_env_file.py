"""`--env-file` follows the rules of `docker run --env-file`."""

from __future__ import annotations

from pathlib import Path

import pytest

from gibil_bot.errors import UsageError
from gibil_bot.machines import validation
from gibil_bot.machines.env_file import MOST_BYTES, parse_env_file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1", {"A": "1"}),
        ("# a comment\n\n  \n   # indented\n  A=1\n", {"A": "1"}),
        ("A=\"quoted\"\nB='x'\n", {"A": '"quoted"', "B": "'x'"}),
        ("A= padded # kept \n", {"A": " padded # kept "}),
        ("A=$HOME\nB=x=y\nC=\n", {"A": "$HOME", "B": "x=y", "C": ""}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("\ufeffA=1\n", {"A": "1"}),
        ("HERE\nABSENT\n", {"HERE": "of the caller"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("Ä=ö\n", {"Ä": "ö"}),
    ],
)
def test_values_are_taken_unchanged(text: str, expected: dict[str, str]) -> None:
    assert parse_env_file(text.encode(), "f", {"HERE": "of the caller"}) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"A=1\n=hidden\n", "--env-file: f:2: there is no name before '='; write NAME=value"),
        (b"export A=hidden\n", "--env-file: f:1: the name that begins with 'export A' contains a blank; write NAME=value"),
        (b"A=\xff\n", "--env-file: f:1: the line isn't UTF-8"),
    ],
)
def test_a_wrong_line_is_reported_with_its_number_and_without_its_value(content: bytes, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_env_file(content, "f", {})
    assert raised.value.message == message


def test_entries_override_files_and_later_files_override_earlier_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("A=first\nB=first\nC=first\n")
    second.write_text("B=second\nC=second\n")
    found = validation.environment(["C=entry"], [str(first), str(second)])
    assert found == {"A": "first", "B": "second", "C": "entry"}


def test_an_unreadable_or_endless_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent' can't be read: No such file or directory"):
        validation.environment([], [str(tmp_path / "absent")])
    with pytest.raises(UsageError, match=f"is larger than {MOST_BYTES // 1024**2} MiB"):
        validation.environment([], ["/dev/zero"])
    wrong = tmp_path / "wrong"
    wrong.write_text("GIBIL_X=1\n")
    with pytest.raises(UsageError, match="is reserved"):
        validation.environment([], [str(wrong)])
