"""The SSH connection to a cloud server is cut while `gibil` works over it: nothing is lost or shown twice, and it says so."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.doubles.cloud import Cloud, cloud
from tests.doubles.commandline import CommandLine, command_line
from tests.doubles.hetzner_guests import Image
from tests.doubles.machines import shared_folder
from tests.doubles.terminal import read_until

pytestmark = pytest.mark.xdist_group("connection is cut")

TASKS = """tasks:
  - name: talks
    run: |
      mkfifo /root/go
      echo one; read x </root/go
      echo two; read x </root/go
      echo three
"""


@pytest.fixture(scope="module")
def hetzner(hetzner_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with cloud(tmp_path_factory.mktemp("cloud"), shared_folder(tmp_path_factory), hetzner_image) as hetzner:
        yield hetzner


@pytest.fixture(scope="module")
def line(hetzner: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """With one server, `m`, that was waited for over a connection that was cut in the middle of its tasks."""
    with command_line(tmp_path_factory.mktemp("line"), shared_folder(tmp_path_factory), hetzner.settings) as line:
        line.repository("project", {".gibil.yml": TASKS})
        process = line.start("create", "--name", "m", "--repo", "project", "--wait", "tasks", "--json")
        assert process.stderr is not None
        shown = []
        for word in (b"one\n", b"two\n"):
            while (row := process.stderr.readline()) != word:
                assert row, shown
                shown.append(row)
            shown.append(row)
            assert hetzner.cut("m") == 1
            assert line.gibil("run", "m", "echo go >/root/go").returncode == 0
        out, err = process.communicate(timeout=60)
        text = b"".join((*shown, err)).decode()
        assert (process.returncode, '"tasks": "success"' in out.decode()) == (0, True), text
        assert [text.count(f"\n{word}\n") for word in ("one", "two", "three")] == [1, 1, 1], text
        yield line


def test_a_job_that_is_followed_arrives_once_and_whole_whatever_is_cut(hetzner: Cloud, line: CommandLine) -> None:
    talk = "for i in $(seq 24); do seq $i 20000; seq $i 15000 >&2; sleep 0.05; done"
    job = line.json("run", "m", talk, "--background")["job_id"]
    out, err = (line.folder / name for name in ("out", "err"))
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = line.start("logs", "m", job, "-f", stdout=out_file, stderr=err_file)
        cuts = seen = 0
        while process.poll() is None:
            if out.stat().st_size > seen:
                cuts += hetzner.cut("m")
                seen = out.stat().st_size + 400_000
    assert process.returncode == 0
    assert cuts >= 3
    expected = subprocess.run(["bash", "-c", talk], capture_output=True, check=True)
    words = err.read_bytes()
    said = re.findall(rb"gibil: [^\n]*\n", words)
    for each in said:
        words = words.replace(each, b"")
    assert out.read_bytes() == expected.stdout
    assert words == expected.stderr


def test_a_loss_that_lasts_is_said_and_the_return_too(hetzner: Cloud, line: CommandLine) -> None:
    job = line.json("run", "m", "echo one; mkfifo /root/more; read x </root/more; echo two", "--background")["job_id"]
    process = line.start("logs", "m", job, "-f")
    read_until(process, b"one\n")
    hetzner.unplug("m")
    assert process.stderr is not None
    assert process.stderr.readline() == b"gibil: the connection to m is lost; making it again \xe2\x80\xa6\n"
    hetzner.plug_in("m")
    assert process.stderr.readline() == b"gibil: the connection to m is there again\n"
    line.gibil("run", "m", "echo go >/root/more")
    out, err = process.communicate(timeout=20)
    assert (out, err, process.returncode) == (b"two\n", b"", 0)


def test_a_command_in_the_foreground_ends_with_its_connection_and_says_so(hetzner: Cloud, line: CommandLine) -> None:
    mark = f"7{os.getpid()}.3"
    process = line.start("run", "m", f"trap '' PIPE HUP; echo up; sleep {mark}; echo never")
    read_until(process, b"up\n")
    hetzner.cut("m")
    out, err = process.communicate(timeout=30)
    assert (out, process.returncode) == (b"", 4)
    assert err.decode() == (
        "gibil: the connection to m was lost, and the command was stopped; "
        "what has to outlive its connection: gibil run m COMMAND --background\n"
    )
    assert line.gibil("run", "m", f"pgrep -f 'slee[p] {mark}'").stdout == ""


def test_when_the_machine_is_gone_following_ends_with_one_line(hetzner: Cloud, line: CommandLine) -> None:
    """The last one here: it burns the machine."""
    job = line.json("run", "m", "echo up; sleep 600", "--background")["job_id"]
    following = line.start("logs", "m", job, "-f")
    running = line.start("run", "m", "echo up; sleep 600")
    for process in (following, running):
        read_until(process, b"up\n")
    burning = threading.Thread(target=lambda: line.json("destroy", "m"))
    burning.start()
    said = [process.communicate(timeout=30)[1].decode().splitlines()[-1] for process in (following, running)]
    burning.join()
    gone = "machine m is gone: somebody burned it, or its time was up"
    assert [process.returncode for process in (following, running)] == [4, 4]
    assert said == [f"gibil: {gone}", f"gibil: {gone}; the command's end is not known"]
