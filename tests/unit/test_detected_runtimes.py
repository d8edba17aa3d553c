"""The scripts of the task `runtime` of a detected project, with programs of the test: no network and no machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gibil_bot.scripts.templates import text
from tests.doubles.programs import add_programs, write_program

WORDS = 'say() { echo "gibil: $*"; }\nfail() { say "$@"; exit 1; }\n'


def run(folder: Path, script: str) -> str:
    add_programs(folder / "tools", "bash", "cp", "cut", "grep", "head", "mkdir", "rm", "sed")
    env = {"PATH": f"{folder}:{folder}/tools", "GITHUB_PATH": f"{folder}/path", "GITHUB_ENV": f"{folder}/env"}
    done = subprocess.run(
        [folder / "tools/bash", "-eu"], input=WORDS + script, capture_output=True, text=True, env=env, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("version", ["9.9", "9.9.1"])
def test_the_virtual_environment_has_the_python_of_a_patch_version(tmp_path: Path, version: str) -> None:
    write_program(tmp_path / "python3", "exit 3")
    create = 'for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"'
    write_program(tmp_path / "python9.9", f'if test "$2" = venv; then {create}; else echo 9.9.1; fi')
    out = run(tmp_path, f"venv={tmp_path}/venv version={version}\n{text('detect_venv')}")
    assert out == f"gibil: created a virtual environment of Python 9.9.1 ({tmp_path}/venv)\n"


@pytest.mark.parametrize(
    ("name", "output", "version", "belongs"),
    [("ruby", "ruby 3.9.1p0", "3.9.1", "bundle"), ("java", 'openjdk version "17.0.9"', "17.0.9", "javac")],
)
def test_what_debian_has_in_another_package_is_installed(
    tmp_path: Path, name: str, output: str, version: str, belongs: str
) -> None:
    write_program(tmp_path / name, f"echo '{output}'")
    add_programs(tmp_path / "tools", "chmod")
    write_program(tmp_path / "gibil-runtime", f'echo "tool $*"; echo >{tmp_path}/{belongs}; chmod 755 {tmp_path}/{belongs}')
    out = [run(tmp_path, f"{text('detect_runtime')}\nruntime {name} required Evidence ''") for _ in range(2)]
    found = f"gibil: found Evidence → {name} {version}\n"
    assert out == [f"{found}tool {name} {version.split('.')[0]}\n", found]


def test_a_runtime_is_used_if_the_rest_cannot_be_installed(tmp_path: Path) -> None:
    write_program(tmp_path / "ruby", "echo ruby 3.9.1")
    write_program(tmp_path / "gibil-runtime", "exit 1")
    out = run(tmp_path, f"{text('detect_runtime')}\nruntime ruby required Gemfile ''")
    assert out.splitlines() == ["gibil: found Gemfile → ruby 3.9.1", "gibil: going on with this ruby"]


def test_a_uv_that_the_machine_has_is_configured(tmp_path: Path) -> None:
    write_program(tmp_path / "uv", "echo uv 0.11.0")
    settings = tmp_path / "etc/uv/uv.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("native-tls = true\n")
    write_program(tmp_path / "gibil-runtime", f'echo "tool $*"; echo "system-certs = true" >{settings}')
    script = f"etc={tmp_path}/etc\n{text('detect_runtime')}\nruntime uv required uv.lock ''"
    found = "gibil: found uv.lock → uv 0.11.0\n"
    assert [run(tmp_path, script) for _ in range(2)] == [f"{found}tool uv 0\n", found]
