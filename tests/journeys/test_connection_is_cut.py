"""The SSH connection to a cloud server is cut during gibil commands: no output is lost or repeated, and they report it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.doubles.cloud import Cloud
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.machines import shared_folder
from tests.doubles.patience import patient
from tests.doubles.terminal import read_until

TASKS = """tasks:
  - name: talks
    run: |
      mkfifo /root/go; exec 9<>/root/go
      echo one; read x <&9
      echo two; read x <&9
      echo three
"""


@pytest.fixture
def line(hetzner: Cloud, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(tmp_path, shared_folder(tmp_path_factory), hetzner.settings) as line:
        yield line


def test_commands_survive_a_lost_connection_or_report_their_end(hetzner: Cloud, line: CommandLine) -> None:
    """One sequence on one server, `m`, which takes seconds to boot."""
    waiting_for_tasks_continues(hetzner, line)
    a_followed_job_arrives_once_and_completely(hetzner, line)
    a_long_outage_and_its_end_are_reported(hetzner, line)
    a_foreground_command_ends_with_its_connection_and_reports_it(hetzner, line)
    following_ends_with_one_line_when_the_machine_is_gone(hetzner, line)


def waiting_for_tasks_continues(hetzner: Cloud, line: CommandLine) -> None:
    line.repository("project", {".gibil.yml": TASKS})
    process = line.start("create", "--name", "m", "--repo", "project", "--wait", "tasks", "--json")
    assert process.stderr is not None
    shown: list[bytes] = []
    for word in (b"one\n", b"two\n"):
        while (row := process.stderr.readline()) != word:
            assert row, shown
            shown.append(row)
        shown.append(row)
        assert hetzner.cut("m") >= 1
        assert line.gibil("run", "m", "echo go >/root/go").returncode == 0
    out, err = process.communicate(timeout=patient(60))
    text = b"".join((*shown, err)).decode()
    assert (process.returncode, json.loads(out)["tasks"]) == (0, "success"), text
    assert [text.count(f"\n{word}\n") for word in ("one", "two", "three")] == [1, 1, 1], text


def a_followed_job_arrives_once_and_completely(hetzner: Cloud, line: CommandLine) -> None:
    talk = "for i in $(seq 6); do seq $i 90000; seq $i 50000 >&2; read x <&9; done"
    job = line.json("run", "m", f"mkfifo /root/pace; exec 9<>/root/pace; {talk}", "--background")["job_id"]
    out, err = (line.folder / name for name in ("out", "err"))
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = line.start("logs", "m", job, "-f", stdout=out_file, stderr=err_file)
        seen = 0
        for _ in range(6):
            while out.stat().st_size <= seen:
                assert process.poll() is None, err.read_bytes()[-300:]
                time.sleep(0.005)  # a file that another process writes
            seen = out.stat().st_size + 200_000  # of about half a megabyte each time
            hetzner.cut_next("m")  # data in flight at the last cut may arrive before the next connection is made
            hetzner.run_past_ssh("m", "echo go >/root/pace")
        assert process.wait(timeout=patient(30)) == 0
    expected = subprocess.run(["bash", "-c", talk.replace("read x <&9", ":")], capture_output=True, check=True)
    words = err.read_bytes()
    output = re.findall(rb"gibil: [^\n]*\n", words)
    for each in output:
        words = words.replace(each, b"")
    assert out.read_bytes() == expected.stdout
    assert words == expected.stderr


def a_long_outage_and_its_end_are_reported(hetzner: Cloud, line: CommandLine) -> None:
    job = line.json("run", "m", "echo one; mkfifo /root/more; read x </root/more; echo two", "--background")["job_id"]
    process = line.start("logs", "m", job, "-f")
    read_until(process, b"one\n")
    hetzner.unplug("m")
    assert process.stderr is not None
    assert process.stderr.readline() == b"gibil: the connection to m is lost; reconnecting \xe2\x80\xa6\n"
    hetzner.plug_in("m")
    assert process.stderr.readline() == b"gibil: the connection to m is restored\n"
    line.gibil("run", "m", "echo go >/root/more")
    out, err = process.communicate(timeout=patient(20))
    assert (out, err, process.returncode) == (b"two\n", b"", 0)


def a_foreground_command_ends_with_its_connection_and_reports_it(hetzner: Cloud, line: CommandLine) -> None:
    mark = f"7{os.getpid()}.3"
    process = line.start("run", "m", f"trap '' PIPE HUP; echo up; sleep {mark}; echo never")
    read_until(process, b"up\n")
    hetzner.cut("m")
    out, err = process.communicate(timeout=patient(30))
    assert (out, process.returncode) == (b"", 4)
    assert err.decode() == (
        "gibil: the connection to m was lost, and the command was stopped; "
        "for a command that survives a lost connection: gibil run m COMMAND --background\n"
    )
    assert line.gibil("run", "m", f"pgrep -f 'slee[p] {mark}'").stdout == ""


def following_ends_with_one_line_when_the_machine_is_gone(hetzner: Cloud, line: CommandLine) -> None:
    job = line.json("run", "m", "echo up; sleep 600", "--background")["job_id"]
    following = line.start("logs", "m", job, "-f")
    running = line.start("run", "m", "echo up; sleep 600")
    for process in (following, running):
        read_until(process, b"up\n")
    destroying = threading.Thread(target=lambda: line.json("destroy", "m"))
    destroying.start()
    output = [process.communicate(timeout=patient(30))[1].decode().splitlines()[-1] for process in (following, running)]
    destroying.join()
    gone = "machine m is gone: it was destroyed, or it expired"
    assert [process.returncode for process in (following, running)] == [4, 4]
    assert output == [f"gibil: {gone}", f"gibil: {gone}; the command's exit status is unknown"]
