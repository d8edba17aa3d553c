"""`gibil-runtime` with trees that are stored already, in folders of the test: no network and no machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gibil_bot.scripts.runtimes import USED_SCRIPT, runtime_tool


def stored(opt: Path, tree: str, program: str, output: str) -> None:
    folder = opt / tree / "bin"
    folder.mkdir(parents=True)
    (opt / tree / ".gibil").write_text(f"bin {program}\n")
    (folder / program).write_text(f'#!/bin/sh\necho "{output}"\n')
    (folder / program).chmod(0o755)


def tool(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "apt-get").write_text("#!/bin/sh\nexit 100\n")
    (folder / "apt-get").chmod(0o755)
    script = runtime_tool().replace("opt=/opt/gibil bin=/usr/local/bin", f"opt={folder}/opt bin={folder}/bin")
    env = {"PATH": f"{folder}/bin:{folder}:{os.environ['PATH']}", "HOME": str(folder)}
    return subprocess.run(["sh", "-s", *words], input=script, capture_output=True, text=True, env=env, timeout=60)


def test_a_stored_tree_is_used_and_noted(tmp_path: Path) -> None:
    stored(tmp_path / "opt", "node-99.1.0", "node", "v99.1.0")
    stored(tmp_path / "opt", "node-99.2.0", "node", "v99.2.0")
    (tmp_path / "opt/node-99.3.0").mkdir()  # incomplete
    for _ in range(2):
        done = tool(tmp_path, "node", "99")
        assert (done.returncode, done.stdout) == (0, f"gibil: node 99.2.0 ({tmp_path}/bin/node)\n"), done.stderr
    assert os.readlink(tmp_path / "bin/node") == f"{tmp_path}/opt/node-99.2.0/bin/node"
    assert (tmp_path / "opt/.used").read_text() == "node-99.2.0\n"
    assert "/opt/gibil/.used" in USED_SCRIPT


def test_a_stored_python_is_started_at_its_own_path(tmp_path: Path) -> None:
    """A virtual environment that a link's Python creates has no library."""
    stored(tmp_path / "opt", "python-9.9.1", "python9.9", "Python 9.9.1 $0")
    done = tool(tmp_path, "python", "9.9")
    assert (done.returncode, done.stdout) == (0, f"gibil: python 9.9.1 ({tmp_path}/bin/python9.9)\n"), done.stderr
    started = subprocess.run([tmp_path / "bin/python9.9"], capture_output=True, text=True)
    assert started.stdout == f"Python 9.9.1 {tmp_path}/opt/python-9.9.1/bin/python9.9\n"
    assert not (tmp_path / "bin/python3").exists(), "the host has one"


@pytest.mark.parametrize("name", ["swift", "elixir", "erlang", "dotnet", "ghc"])
def test_a_language_of_the_distribution_alone_ends_in_one_sentence(tmp_path: Path, name: str) -> None:
    done = tool(tmp_path, name, "987")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"gibil: {name} 987 isn't available; gibil looked at the distribution (apt-get update failed)\n"
