"""The script that sets a machine up, run by a real bash in a directory that stands in for the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from gibil_bot.machines import provision_script, remote_layout
from gibil_bot.machines.source import CodeSource
from gibil_bot.planning.schema import parse_repository_file
from gibil_bot.scripts import commands
from tests.doubles.patience import patient

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing here: apt-get install bash")


@dataclass
class Folder:
    """Stands in for a machine's root directory: absolute paths of the script are moved into it."""

    folder: Path

    def run(self, text: str, given: dict[str, str] | None = None, log: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`log`: a file for both streams, as a job has one."""
        (self.folder / "root" / "project").mkdir(parents=True, exist_ok=True)
        (self.folder / "run").mkdir(exist_ok=True)
        file = parse_repository_file(".gibil.yml", text.encode()) if text else None
        origin = CodeSource(repo="https://example.com/ada/engine.git", branch=None, sha="a" * 40, file=file)
        given = given or {}
        script = self.moved(provision_script.provision_script(origin, tuple(given)))
        environment = {"PATH": os.environ["PATH"], **remote_layout.with_prefix(given)}
        if log is None:
            return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=patient(30))
        with log.open("ab") as both:
            return subprocess.run(
                ["bash", "-c", script], env=environment, stdout=both, stderr=both, text=True, timeout=patient(30)
            )

    def moved(self, script: str) -> str:
        return script.replace("/root", f"{self.folder}/root").replace("/run/gibil", f"{self.folder}/run/gibil")

    def has(self, marker: str) -> bool:
        return (self.folder / marker.lstrip("/")).exists()

    def state(self) -> list[list[str]]:
        lines = (self.folder / "root/.gibil/provision").read_text().splitlines()
        return [[field for column, field in enumerate(line.split("\t")) if column != 3] for line in lines]

    def later(self, command: str) -> str:
        """Return the output of a later command."""
        load = self.moved(commands.LOAD_ENVIRONMENT)
        done = subprocess.run(["bash", "-c", f"{load}; {command}"], capture_output=True, text=True, timeout=patient(30))
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_a_machine_without_tasks_is_ready_and_done(folder: Folder) -> None:
    assert folder.run("").returncode == 0
    assert folder.has(remote_layout.READY)
    assert folder.has(remote_layout.TASKS_DONE)
    assert not folder.has(remote_layout.TASKS_FAILED)


def test_tasks_run_in_order_and_after_a_failure_only_with_a_condition(folder: Folder) -> None:
    done = folder.run(
        "tasks:\n"
        "  - {name: one, run: echo first}\n"
        "  - {name: forgiven, run: exit 7, continue-on-error: true}\n"
        "  - {name: breaks, run: 'echo out; echo err >&2; exit 3'}\n"
        "  - {name: left out, run: echo never}\n"
        "  - {name: on failure, if: failure(), run: echo cleaning}\n"
        "  - {name: always, if: always(), run: echo last}\n"
    )
    assert done.returncode == 1
    assert folder.has(remote_layout.READY)
    assert folder.has(remote_layout.TASKS_FAILED)
    assert not folder.has(remote_layout.TASKS_DONE)
    assert folder.state() == [
        ["0", "success", "0", "ready"],
        ["1", "success", "0", "one"],
        ["2", "failure", "7", "forgiven"],
        ["3", "failure", "3", "breaks"],
        ["4", "skipped", "", "left out"],
        ["5", "success", "0", "on failure"],
        ["6", "success", "0", "always"],
    ]
    assert "never" not in done.stdout
    assert "cleaning" in done.stdout


def test_a_task_with_nothing_to_do_is_skipped_unless_it_failed(folder: Folder) -> None:
    done = folder.run(
        "tasks:\n"
        "  - {name: nothing, run: 'echo no linter >$GIBIL_NEUTRAL'}\n"
        "  - {name: after, run: 'true'}\n"
        "  - {name: failed, run: 'echo nothing >$GIBIL_NEUTRAL; exit 1', continue-on-error: true}\n"
    )
    assert done.returncode == 0
    assert folder.has(remote_layout.TASKS_DONE)
    assert [row[1:3] for row in folder.state()[1:]] == [["skipped", "0"], ["success", "0"], ["failure", "1"]]


def test_a_status_line_starts_a_new_line_after_any_task_output(folder: Folder) -> None:
    log = folder.folder / "out"
    file = (
        "tasks:\n  - {name: a, run: printf dangling}\n  - {name: b, run: echo whole}\n"
        "  - {name: c, run: 'true'}\n  - {name: d, run: 'printf dangling >&2; exit 3'}\n"
    )
    assert folder.run(file, log=log).returncode == 1
    assert log.read_text().splitlines() == [
        *("=== ready", "=== a", "dangling", "=== a: success, exit status 0", "=== b", "whole", "=== b: success, exit status 0"),
        *("=== c", "=== c: success, exit status 0", "=== d", "dangling", "=== d: failure, exit status 3", "=== a task failed"),
    ]


def test_a_condition_sees_the_environment_of_the_file_and_of_the_task(folder: Folder) -> None:
    done = folder.run(
        "env: {COLOUR: red}\n"
        "tasks:\n"
        "  - {name: one, if: env.COLOUR == 'red', run: echo one}\n"
        "  - {name: two, if: env.COLOUR == 'blue', env: {COLOUR: blue}, run: echo two}\n"
        "  - {name: three, if: env.COLOUR == 'blue', run: echo three}\n",
        {},
    )
    assert [line for line in done.stdout.splitlines() if line in ("one", "two", "three")] == ["one", "two"]
    assert "=== three: skipped" in done.stdout


def test_a_task_gets_its_environment_folder_shell_and_timeout(folder: Folder) -> None:
    (folder.folder / "root/project/sub dir").mkdir(parents=True)
    done = folder.run(
        "env: {COLOUR: red, KIND: file}\n"
        "tasks:\n"
        "  - {name: env, env: {KIND: own}, run: 'echo \"$COLOUR-$KIND-$GIVEN-$CI-$GITHUB_SHA\"'}\n"
        "  - {name: folder, working-directory: sub dir, run: pwd}\n"
        "  - {name: sh, shell: sh, run: 'echo sh:$0'}\n"
        "  - {name: template, shell: 'sh -c \"echo 100% of; cat {0}\"', run: the text}\n"
        "  - {name: slow, timeout-minutes: 0.05, run: sleep 60}\n",
        {"GIVEN": "a b\n'c'", "KIND": "given"},
    )
    assert f"red-own-a b\n'c'-true-{'a' * 40}" in done.stdout
    assert f"{folder.folder}/root/project/sub dir\n" in done.stdout
    assert "sh:" in done.stdout
    assert "100% of\nthe text" in done.stdout
    assert folder.state()[-1] == ["5", "timed_out", "124", "slow"]


def test_values_written_by_a_task_reach_later_tasks_and_commands(folder: Folder) -> None:
    done = folder.run(
        "env: {A: file}\n"
        "tasks:\n"
        "  - run: |\n"
        '      echo "A=1=2" >>"$GITHUB_ENV"\n'
        '      printf "B<<END\\ntwo\\nlines\\nEND\\n" >>"$GITHUB_ENV"\n'
        '      echo "gibil_failed=1" >/dev/null; echo "number=9" >>"$GITHUB_ENV"\n'
        f'      mkdir -p {folder.folder}/tools; echo {folder.folder}/tools >>"$GITHUB_PATH"\n'
        '  - run: echo "<$A|$B|$number|$PATH>"\n'
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"<1=2|two\nlines|9|{folder.folder}/tools:" in done.stdout
    assert folder.later('echo "$A|$B|$PATH"').startswith(f"1=2|two\nlines|{folder.folder}/tools:")
    assert (folder.folder / "run/gibil/env").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("line", ["no sign", "1X=2", "GITHUB_TOKEN=x", "NODE_OPTIONS=x", "A<<END"])
def test_a_task_that_writes_invalid_values_fails(folder: Folder, line: str) -> None:
    folder.run(f'tasks: [{{name: odd, run: \'echo "{line}" >>"$GITHUB_ENV"\'}}]\n')
    assert folder.state()[-1][1] == "failure"
    assert folder.has(remote_layout.TASKS_FAILED)


def test_a_failed_set_up_writes_the_marker_that_callers_poll(folder: Folder) -> None:
    done = folder.run("runtime: {go: '0.1'}\ntasks: [{run: echo never}]\n")
    assert done.returncode == 1
    assert not folder.has(remote_layout.READY)
    assert folder.has(remote_layout.TASKS_FAILED)
    assert folder.state()[-1][1] == "failure"
    assert "never" not in done.stdout


def test_variable_names_that_the_script_uses_itself_reach_tasks(folder: Folder) -> None:
    given = {"number": "x", "status": "y", "IFS": ":", "BASH_ENV": "/dev/null", "line": "z", "text": "t"}
    done = folder.run("tasks: [{run: 'echo \"$number$status$line$text\"'}]\n", given)
    assert "xyzt\n" in done.stdout
