"""The shell programs in gibil_bot/scripts: shellcheck's findings, and their placeholders."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gibil_bot.scripts
from gibil_bot.scripts.runtimes import runtime_tool
from gibil_bot.scripts.templates import fill, script, text

FOLDER = Path(gibil_bot.scripts.__file__).parent
PROGRAMS = sorted(FOLDER.glob("*.sh"))


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, "--norc", "-f", "gcc", *PROGRAMS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_names_its_dialect_and_the_reason_for_each_exception(path: Path) -> None:
    first, *rest = path.read_text().split("\n")
    assert first in ("#!/bin/sh", "# shellcheck shell=sh", "# shellcheck shell=bash")
    for line in rest:
        assert "# shellcheck" not in line or re.fullmatch(r" *# shellcheck disable=SC[0-9]+  # .+", line), line


def test_comments_of_a_snippet_are_not_sent_to_a_machine() -> None:
    assert not re.search(r"^ *#", text("find_processes"), re.MULTILINE)
    assert "shellcheck" not in text("gibil_runtime")
    assert text("gibil_runtime").startswith("#!/bin/sh\n# gibil-runtime NAME [VERSION]")


@pytest.mark.parametrize("shell", [["dash", "-n"], ["bash", "-n"]], ids=" ".join)
def test_the_parts_of_the_runtime_tool_are_one_program(shell: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed here: apt-get install {shell[0]}")
    tool = runtime_tool()
    done = subprocess.run(shell, input=tool, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Each name in the final `case` has its function.
    names = re.search(r"^ *(python \|.*)\)$", tool, re.MULTILINE)
    assert names is not None
    for name in names[1].split(" | "):
        assert f"\ninstall_{name}() {{" in tool, name


def test_a_value_that_looks_like_a_placeholder_stays_as_it_is() -> None:
    assert fill("@A@ @B_C@ @lower@ a@B.example", A="@B_C@", B_C="x") == "@B_C@ x @lower@ a@B.example"


def test_each_placeholder_has_one_value_and_each_value_a_placeholder() -> None:
    with pytest.raises(KeyError, match="TURNS"):
        script("stray_end")
    with pytest.raises(ValueError, match="OTHER"):
        script("stray_end", TURNS="1", OTHER="2")
