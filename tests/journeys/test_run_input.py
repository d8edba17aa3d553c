"""`gibil run`: the words of a command, and its stdin: pipes, files, none, and silent pipes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from gibil_bot.cli.stdin import FIRST_BYTE_S
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import processes_with, shared_folder
from tests.doubles.patience import patient

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("run_input")]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("run"), shared_folder(tmp_path_factory)) as line:
        line.json("create", "--name", "box", "--ttl", "1h")
        yield line


@pytest.mark.parametrize(
    ("words", "output"),
    [
        ("'echo \"a  b\" | wc -c'", "5\n"),  # one word is a line of shell, as in the seed
        ("-- 'echo \"a  b\" | wc -c'", "5\n"),
        ("-- ls -la /etc/hostname", None),
        ("""-- printf '[%s]' "a  b" 'c"d' '$HOME' ''""", '[a  b][c"d][$HOME][]'),
        ("--json -- echo --json -- x", '"stdout": "--json -- x\\n"'),
    ],
)
def test_a_command_is_one_line_of_shell_or_the_words_after_two_dashes(
    line: CommandLine, words: str, output: str | None
) -> None:
    done = line.bash(f"gibil run box {words}")
    assert done.returncode == 0, done.stderr
    assert output is None or output in done.stdout
    if "--json" not in words:
        assert line.bash(f"gibil ssh box {words}").stdout == done.stdout, "`gibil ssh` reads its arguments in the same way"


def test_other_words_are_rejected_with_the_two_valid_forms(line: CommandLine) -> None:
    (unquoted, extra, both, empty, blank, dashes, background, branch) = line.many(
        [
            ["run", "box", "ls", "-la"],
            ["run", "box", "echo", "hi"],
            ["run", "box", "ls", "--", "ls"],
            ["run", "box", ""],
            ["run", "box", "--json", "--", "  "],
            ["run", "box", "--"],
            ["run", "box", "", "--background"],
            ["branch", "main", "--run", ""],
        ]
    )
    assert "Quote the command (gibil run box 'echo hi'), or write it after -- (gibil run box -- echo hi)." in extra.stderr
    assert "'-l'" in unquoted.stderr
    assert "write it after -- (gibil run box -- ls -la)." in unquoted.stderr
    assert "is given twice" in both.stderr
    assert json.loads(blank.stdout)["code"] == "USAGE"
    for done in (empty, background, branch):
        assert done.stderr == "gibil: a command can't be empty or contain a NUL byte\n"
    assert all(done.returncode == 2 for done in (unquoted, extra, both, empty, blank, dashes, background, branch))


def test_a_missing_machine_differs_from_a_command_that_exits_with_2(line: CommandLine) -> None:
    missing, failed = line.many([["run", "absent", "exit 2", "--json"], ["run", "box", "exit 2", "--json"]])
    assert (missing.returncode, failed.returncode) == (2, 2)
    assert json.loads(missing.stdout)["code"] == "SERVER_NOT_FOUND"
    assert json.loads(failed.stdout) == {"stdout": "", "stderr": "", "exit_code": 2}
    by_words = line.many([["run", "absent", "exit 2"], ["run", "box", "exit 2"]])
    assert [done.stderr.startswith("gibil: ") for done in by_words] == [True, False]


def test_a_pipe_a_file_and_a_here_document_are_the_commands_input(line: CommandLine) -> None:
    (line.here / "script").write_text("echo from $0 $1; exit 3\n")
    assert line.bash("echo hi | gibil run box cat").stdout == "hi\n"
    done = line.bash("gibil run box 'bash -s word' <script; echo $?")
    assert done.stdout == "from bash word\n3\n"
    assert line.bash("gibil run box 'wc -l' <<<$'one\ntwo'").stdout.strip() == "2"
    assert json.loads(line.bash("echo hi | gibil run box --env A=b 'echo $A; cat' --json").stdout)["stdout"] == "b\nhi\n"
    assert line.bash("(sleep 1; echo late) | gibil run box cat").stdout == "late\n"


def test_a_hundred_megabytes_pass_in_both_directions(line: CommandLine) -> None:
    source = "head -c 104857600 /dev/zero | tr '\\0' x"
    done = line.bash(f"{source} | gibil run box cat | sha256sum; {source} | sha256sum")
    first, second = done.stdout.splitlines()
    assert first == second
    assert done.stderr == ""


def test_a_command_that_does_not_read_its_input_ends(line: CommandLine) -> None:
    began = time.monotonic()
    done = line.bash("yes | gibil run box 'head -n 1; echo end'; echo ${PIPESTATUS[1]}")
    assert done.stdout == "y\nend\n0\n"
    assert line.bash("gibil run box true </dev/zero; echo $?").stdout == "0\n"
    assert time.monotonic() - began < FIRST_BYTE_S


@pytest.mark.parametrize("how", ["<&-", "</dev/null", "< <(true)"])
def test_a_command_without_input_reads_end_of_file_at_once(line: CommandLine, how: str) -> None:
    began = time.monotonic()
    done = line.bash(f"gibil run box 'cat; echo end' {how}")
    assert (done.stdout, done.stderr) == ("end\n", "")
    assert time.monotonic() - began < FIRST_BYTE_S


def test_a_silent_open_pipe_delays_no_command(line: CommandLine) -> None:
    """As when an agent, CI or a daemon starts it."""
    began = time.monotonic()
    silent = line.start("run", "box", "echo end", stdin=subprocess.PIPE)
    unread = line.start("run", "box", "cat; echo read", "--no-stdin", stdin=subprocess.PIPE)
    for process, output in ((silent, b"end\n"), (unread, b"read\n")):
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.read() == output
        assert process.wait(timeout=patient(20)) == 0
        process.stdin.close()
    assert time.monotonic() - began < FIRST_BYTE_S


def test_a_daemons_child_has_no_input(line: CommandLine) -> None:
    call = f"{shlex.quote(sys.executable)} -m gibil_bot run box 'cat; echo end'"
    done = line.bash(f"setsid --wait {call} <&- >out 2>err; cat out err")
    assert done.stdout == "end\n"


def test_background_jobs_have_no_input_and_interrupted_ones_leave_nothing(line: CommandLine) -> None:
    done = line.bash("echo hi | gibil run box 'cat; echo end' --background")
    assert line.gibil("logs", "box", done.stdout.strip(), "-f").stdout == "end\n"
    assert line.bash("echo hi | gibil run box cat --background --stdin").returncode == 2
    late = line.bash("yes | gibil run box 'cat >/dev/null; sleep 631' --timeout 1; echo ${PIPESTATUS[1]}")
    assert late.stdout == "124\n"
    assert processes_with("sleep\x00631") == []
