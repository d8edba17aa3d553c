"""Several users of the same few machines; some of their commands are killed, and the daemon, too."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gibil_bot.machines.creation_journal import FOLDER
from gibil_bot.providers.local.limits import Groups, find_hierarchies
from gibil_bot.providers.local.paths import groups_prefix, read_daemon
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import processes_with, shared_folder
from tests.doubles.patience import patient

USERS, COMMANDS, NAMES = 5, 11, ("a", "b", "c")
MARK = "sleep\x00733"

WHAT_MAY_HAPPEN = {None, "NAME_TAKEN", "SERVER_NOT_FOUND", "MACHINE_LOST", "INTERRUPTED"}
"""None is success. MACHINE_LOST: another user destroyed the machine, or killed the daemon, during a command."""


@pytest.fixture
def line(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, local_machines: None) -> Iterator[CommandLine]:
    with command_line(tmp_path, shared_folder(tmp_path_factory), own_daemon=True) as line:
        yield line


def test_concurrent_users_whose_commands_are_killed_get_answers_and_leave_nothing(line: CommandLine) -> None:
    with ThreadPoolExecutor() as people:
        answers = [answer for each in people.map(lambda seed: one_user(line, seed), range(USERS)) for answer in each]
    assert [answer for answer in answers if answer[0] not in WHAT_MAY_HAPPEN] == []
    assert None in {code for code, *_ in answers}
    line.json("destroy", "--all")
    for record in (line.data_dir / FOLDER).iterdir():  # stays for a minute if its creator was killed early
        os.utime(record, (0, 0))
    assert line.json("list") == []
    assert processes_with(MARK) == []
    assert list(line.paths.machines.iterdir()) == []
    assert list((line.data_dir / FOLDER).iterdir()) == []
    assert Groups(find_hierarchies(), groups_prefix(line.paths)).leftovers() == []


def one_user(line: CommandLine, seed: int) -> list[tuple[str | None, str, str]]:
    """Return (error code, command, message) for a user's commands; the user doesn't coordinate with others."""
    dice = random.Random(seed)
    answers: list[tuple[str | None, str, str]] = []
    for _ in range(COMMANDS):
        name = dice.choice(NAMES)
        command = dice.choice(
            (
                ("create", "--name", name, "--ttl", "5"),
                ("create", "--name", name, "--ttl", "5"),
                ("run", name, "echo here"),
                ("run", name, "sleep 733", "--background"),
                ("list",),
                ("extend", name, "1m"),
                ("jobs", name),
                ("destroy", name),
            )
        )
        process = line.start(*command, "--json")
        is_signalled = dice.random() < 0.3
        if is_signalled:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0.05, 0.4))
            process.send_signal(dice.choice((signal.SIGKILL, signal.SIGINT, signal.SIGTERM)))
        elif dice.random() < 0.06 and (daemon := read_daemon(line.paths)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon.pid, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=patient(60))
        assert b"Traceback" not in stderr or b"gibil_bot/" not in stderr, (
            stderr.decode()
        )  # Python itself prints one if it is interrupted while it starts
        if stdout or not is_signalled:
            answer = json.loads(stdout)
            failure = answer if isinstance(answer, dict) and "code" in answer else {}
            answers.append((failure.get("code"), " ".join(command), str(failure.get("error", ""))))
    return answers
