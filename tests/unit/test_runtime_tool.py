"""`gibil-runtime` with trees that are stored already, in folders of the test: no network and no machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from gibil_bot.scripts.runtimes import USED_SCRIPT, runtime_tool
from tests.doubles.programs import add_programs, write_program


def stored(opt: Path, tree: str, program: str, output: str) -> None:
    folder = opt / tree / "bin"
    folder.mkdir(parents=True)
    (opt / tree / ".gibil").write_text(f"bin {program}\n")
    (folder / program).write_text(f'#!/bin/sh\necho "{output}"\n')
    (folder / program).chmod(0o755)


def tool(folder: Path, *words: str, apt: str = "exit 100", path: str = os.environ["PATH"]) -> subprocess.CompletedProcess[str]:
    write_program(folder / "apt-get", apt)
    paths = f"opt={folder}/opt bin={folder}/bin etc={folder}/etc"
    real = "opt=/opt/gibil bin=/usr/local/bin etc=/etc"
    assert real in runtime_tool(), "the tool would write to this computer's folders"
    script = runtime_tool().replace(real, paths)
    env = {"PATH": f"{folder}/bin:{folder}:{path}", "HOME": str(folder)}
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
    for version in ("9.9", "9.9.1"):
        done = tool(tmp_path, "python", version)
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


@pytest.mark.parametrize(
    ("version", "before", "after"),
    [
        ("0.10.12", "native-tls", "native-tls"),
        ("0.11.0", "native-tls", "system-certs"),
        ("0.9.0", "system-certs", "native-tls"),
    ],
)
def test_uv_is_configured_with_the_names_that_it_knows(tmp_path: Path, version: str, before: str, after: str) -> None:
    settings = tmp_path / "etc/uv/uv.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'{before} = true\npython-install-mirror = "https://native-tls.example"\n')
    write_program(tmp_path / "uv", f"echo 'uv {version} (x86_64-unknown-linux-gnu)'")
    for _ in range(2):
        done = tool(tmp_path, "uv")
        assert done.returncode == 0, done.stderr
        assert settings.read_text() == f'{after} = true\npython-install-mirror = "https://native-tls.example"\n'


def test_without_the_operators_certificates_uv_isnt_configured(tmp_path: Path) -> None:
    write_program(tmp_path / "uv", "echo uv 0.11.0")
    assert tool(tmp_path, "uv").stdout == f"gibil: uv 0.11.0 ({tmp_path}/uv)\n"
    assert not (tmp_path / "etc").exists()


@pytest.fixture
def ruby(tmp_path: Path) -> str:
    """Make a ruby without Bundler; return the PATH of other programs."""
    write_program(tmp_path / "ruby", "echo 'ruby 3.9.1p0'")
    tools = "cat chmod cut grep head mktemp rm sed sh sort tail uname"
    add_programs(tmp_path / "tools", *tools.split())
    return str(tmp_path / "tools")


def test_a_ruby_without_bundle_gets_it_from_the_distribution(tmp_path: Path, ruby: str) -> None:
    apt = f'echo "$*" >>{tmp_path}/log; case $* in *install*) echo >{tmp_path}/bundle; chmod 755 {tmp_path}/bundle ;; esac'
    for _ in range(2):
        done = tool(tmp_path, "ruby", "3.9", apt=apt, path=ruby)
        assert (done.returncode, done.stdout) == (0, f"gibil: ruby 3.9.1 ({tmp_path}/ruby)\n"), done.stderr
    (_update, install) = (tmp_path / "log").read_text().splitlines()
    assert install.endswith(" install ruby-dev bundler")


def test_a_ruby_whose_bundle_is_out_of_reach_is_used(tmp_path: Path, ruby: str) -> None:
    done = tool(tmp_path, "ruby", "3.9", path=ruby)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "gibil: going on without bundle: the distribution (apt-get update failed)",
        f"gibil: ruby 3.9.1 ({tmp_path}/ruby)",
    ]
