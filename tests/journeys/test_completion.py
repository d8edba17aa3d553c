"""Tab completion in each shell that `gibil completion` supports: commands, options, and their values."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.patience import patient
from tests.doubles.terminal import read_descriptor

pytestmark = [pytest.mark.usefixtures("local_machines"), pytest.mark.xdist_group("completion")]
MINE = "name: Mine\non: {command: mine}\ntasks: [{run: 'true'}]\n"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("completion"), shared_folder(tmp_path_factory)) as line:
        line.json("create", "--name", "pair", "--fleet", "2")
        line.repository("project", {".gibil/workflows/mine.yml": MINE})
        yield line


def offered(line: CommandLine, words: str) -> list[str]:
    """Return bash's completions of the last word."""
    arguments = words.split(" ")
    script = (
        f'eval "$(gibil completion bash)"; COMP_WORDS=({" ".join(word or chr(34) * 2 for word in arguments)}); '
        f'COMP_CWORD={len(arguments) - 1}; _gibil_completion gibil; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = line.bash(script)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gibil ext", ["extend"]),
        ("gibil run ", ["pair-1", "pair-2"]),
        ("gibil destroy pair-1 ", ["pair-2"]),
        ("gibil destroy --fleet ", ["pair"]),
        ("gibil create --size ", ["small", "medium", "large"]),
        ("gibil create --size m", ["medium"]),
        ("gibil create --provider ", ["local", "hetzner"]),
        ("gibil list --provider h", ["hetzner"]),
        ("gibil init --provider l", ["local"]),
        ("gibil create --wait ", ["ready", "tasks"]),
        ("gibil try project -w ", ["do", "explain", "fix", "format", "lint", "mine", "review", "test"]),
        ("gibil try -w li", ["lint"]),
        ("gibil completion z", ["zsh"]),
        ("gibil logs absent ", []),
        ("gibil logs pair-1 --provider nonsense ", []),
    ],
)
def test_commands_machines_and_option_values_are_completed(line: CommandLine, words: str, expected: list[str]) -> None:
    assert offered(line, words) == expected


def test_jobs_of_the_named_machine_are_completed(line: CommandLine) -> None:
    job = line.json("run", "pair-1", "true", "--background")["job_id"]
    assert offered(line, "gibil logs pair-1 ") == [job]
    assert offered(line, "gibil logs pair-1 run") == [job]
    assert offered(line, "gibil logs pair-2 ") == []


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed: apt-get install zsh")
@pytest.mark.parametrize("set_up", ["", "autoload -Uz compinit && compinit -i;"])
def test_zsh_completes_with_and_without_an_initialized_completion(line: CommandLine, set_up: str) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**line.environment(), "TERM": "xterm", "ZDOTDIR": str(line.folder)}
        os.chdir(line.here)
        os.execvpe("zsh", ["zsh", "-f", "-i"], environment)
    try:
        read_descriptor(terminal, b"2004h")  # zsh reads lines from here on
        os.write(terminal, f'{set_up} eval "$(gibil completion zsh)"; echo lo""aded\n'.encode())
        output = read_descriptor(terminal, b"loaded\r\n")
        assert b"not found" not in output
        assert b"insecure" not in output
        os.write(terminal, b"gibil create --size m\t")
        read_descriptor(terminal, b"edium")
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed: apt-get install fish")
def test_fish_completes(line: CommandLine) -> None:
    script = "gibil completion fish | source; complete -C 'gibil create --size m'; complete -C 'gibil run pair-'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        env=line.environment(),
        cwd=line.here,
        capture_output=True,
        text=True,
        timeout=patient(60),
    )
    assert [row.split("\t")[0] for row in done.stdout.splitlines()] == ["medium", "pair-1", "pair-2"], done.stderr
