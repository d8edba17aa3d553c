"""The shipped workflows, run on small projects: detection, and its tasks in real shells. No network is needed or used."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gibil_bot.model import Command
from gibil_bot.planning.plan import catalogue, for_command
from gibil_bot.workflows_dir import read_workflows, shipped_workflows
from tests.doubles.facts import facts
from tests.doubles.patience import patient
from tests.doubles.repositories import git, repository
from tests.doubles.taskshell import Done, run_plan
from tests.doubles.tools import needs

UNITTEST = """import unittest

class Sums(unittest.TestCase):
    def test_sum(self):
        self.assertEqual(1 + 1, {answer})
"""


PYTHON = """#!/bin/sh
if test "$1 $2" = "-m venv"; then
    {venv}
    for folder; do :; done
    mkdir -p "$folder/bin"
    cp "$0" "$folder/bin/python3"
    ln -sf python3 "$folder/bin/python"
    exit
fi
exec {real} -S "$@"
"""


def do(
    tmp_path: Path,
    files: dict[str, str],
    *,
    word: str = "test",
    arguments: dict[str, str] | None = None,
    without: tuple[str, ...] = (),
    fakes: dict[str, str] | None = None,
) -> list[Done]:
    """Run a shipped workflow on a project with these files. `without`: programs missing on the machine; `fakes`: fake ones."""
    project, scratch = tmp_path / "project", tmp_path / "scratch"
    scratch.mkdir()
    for name, text in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    repository = {name: text.encode() for name, text in files.items() if name == ".gibil.yml"}
    known = catalogue(read_workflows(shipped_workflows()), repository, base_ref="main")
    (plan,) = for_command(known, Command(word=word, arguments=arguments or {}), facts())
    return run_plan(plan, project, scratch, environ={"PATH": machine(tmp_path, without, fakes or {}), "HOME": str(scratch)})


def machine(tmp_path: Path, without: tuple[str, ...], fakes: dict[str, str]) -> str:
    """Return a PATH like a plain machine's: the base tools, python3 and `fakes`, without this computer's other programs."""
    tools = tmp_path / "bin"
    tools.mkdir()
    base = (
        "bash sh echo cat grep find sed head mkdir ln rm touch test printf env dirname basename uname tr sort id make node npm "
        "ls mv cp wc cut awk mktemp git"
    )
    for name in base.split():
        where = shutil.which(name)
        if where and name not in without and name not in fakes:
            (tools / name).symlink_to(where)
    # The interpreter itself, without the packages of the environment that runs these tests. Its virtual environments contain
    # it and no pip: creating a real one takes seconds.
    (tools / "python3").write_text(
        PYTHON.format(real=os.path.realpath(sys.executable), venv="exit 1" if "venv" in without else ":")
    )
    (tools / "python3").chmod(0o755)
    for name, script in fakes.items():
        (tools / name).unlink(missing_ok=True)  # a link to the real program, which must not be written to
        (tools / name).write_text(f"#!/bin/sh\n{script}\n")
        (tools / name).chmod(0o755)
    return str(tools)


def named(done: list[Done], name: str) -> Done:
    (found,) = [task for task in done if task.name == name]
    return found


def test_a_standard_library_project_is_tested_without_pip_and_network(tmp_path: Path) -> None:
    done = do(tmp_path, {"tests/test_sums.py": UNITTEST.format(answer=2)})
    assert [task.name for task in done] == ["runtime", "test"]
    assert [task.exit_status for task in done] == [0, 0], done
    assert "→ python -m unittest discover -v -s tests\n" in done[1].output
    assert "Ran 1 test" in done[1].output


def test_a_failing_test_fails_the_task(tmp_path: Path) -> None:
    done = do(tmp_path, {"test_sums.py": UNITTEST.format(answer=3)})
    assert [(task.name, task.exit_status) for task in done] == [("runtime", 0), ("test", 1)]
    assert "FAILED (failures=1)" in done[1].output


def test_a_package_of_tests_and_a_src_folder_are_found(tmp_path: Path) -> None:
    done = do(
        tmp_path,
        {
            "src/engine.py": "answer = 42\n",
            "tests/__init__.py": "",
            "tests/test_engine.py": "import unittest, engine\nclass T(unittest.TestCase):\n"
            "    def test_it(self): self.assertEqual(engine.answer, 42)\n",
        },
    )
    assert named(done, "test").exit_status == 0, done
    assert "-s tests -t ." in named(done, "test").output


@needs("make")
def test_a_makefile_takes_precedence_and_gets_the_arguments(tmp_path: Path) -> None:
    done = do(
        tmp_path,
        {"Makefile": "tests := x\ntest: ; @echo made $(V) $(sort b a)\n", "tests/test_sums.py": UNITTEST.format(answer=3)},
        arguments={"args": "V=1"},
    )
    test = named(done, "test")
    assert test.exit_status == 0, test.output
    assert test.output.splitlines()[-2:] == ["gibil: found Makefile:2 (test) → make test V=1", "made 1 a b"]


def test_a_makefile_is_ignored_without_make(tmp_path: Path) -> None:
    done = do(tmp_path, {"Makefile": "check:\n\ttrue\n", "tests/test_sums.py": UNITTEST.format(answer=2)}, without=("make",))
    assert named(done, "test").exit_status == 0, done
    assert "make isn't on this machine; looking further" in named(done, "test").output


def test_an_argument_is_never_expanded_by_the_shell(tmp_path: Path) -> None:
    done = do(
        tmp_path, {"Makefile": "test: ; @echo made\n"}, arguments={"args": "$(touch\tx) `id` *"}, fakes={"make": 'echo "$*"'}
    )
    assert named(done, "test").output.splitlines()[-1] == "test $(touch x) `id` *"


def test_a_virtual_environment_that_cannot_be_created_fails_the_preparation(tmp_path: Path) -> None:
    done = do(tmp_path, {"tests/test_x.py": "import pytest\n"}, without=("venv",))
    assert (done[0].name, done[0].exit_status) == ("runtime", 1)
    assert "can't create a virtual environment with" in done[0].output
    assert named(done, "test").exit_status is None


def test_dependencies_that_cannot_be_installed_fail_the_preparation_and_no_test_runs(tmp_path: Path) -> None:
    done = do(tmp_path, {"requirements.txt": "surely-not-there==99\n", "tests/test_sums.py": UNITTEST.format(answer=2)})
    assert [(task.name, task.exit_status == 0) for task in done[:-1]] == [("runtime", True), ("install", False)]
    assert "requirements.txt" in done[1].output
    assert (done[-1].name, done[-1].exit_status) == ("test", None)


@needs("npm")
def test_a_package_json_with_a_test_script_is_run_by_npm(tmp_path: Path) -> None:
    done = do(tmp_path, {"package.json": '{"name": "x", "scripts": {"test": "node -p 1+41"}}'})
    test = named(done, "test")
    assert test.exit_status == 0, done
    assert "→ npm test" in test.output
    assert "42" in test.output


def test_npms_placeholder_is_not_a_test_script(tmp_path: Path) -> None:
    script = 'echo \\"Error: no test specified\\" && exit 1'
    done = do(tmp_path, {"package.json": f'{{"scripts": {{"test": "{script}"}}}}'})
    assert done[-1].exit_status == 1
    assert "found no way to test this project" in done[-1].output


@pytest.mark.parametrize(
    ("lock", "manager", "install"),
    [("pnpm-lock.yaml", "pnpm", "pnpm install --frozen-lockfile"), ("package-lock.json", "npm", "npm ci")],
)
def test_the_lock_file_selects_the_package_manager(lock: str, manager: str, install: str, tmp_path: Path) -> None:
    files = {
        "package.json": '{"scripts": {"test": "x"}, "dependencies": {"left-pad": "1"}}',
        lock: "lockfileVersion: '9.0'\n" if manager == "pnpm" else '{"lockfileVersion": 3, "packages": {}}',
    }
    fake = 'test "$1" = --version && echo 9.15.0 || echo "called ${0##*/} $*"'
    done = do(tmp_path, files, without=("npm", "node"), fakes={manager: fake, "npm": fake, "node": "echo v22.1.0"})
    assert [task.exit_status for task in done] == [0, 0, 0], done
    assert f"called {install}" in named(done, "install").output
    assert re.search(f"called {manager} (run )?test", named(done, "test").output)


@pytest.mark.parametrize(
    ("file", "text", "program", "shown"),
    [
        ("go.mod", "module x\n\ngo 1.21\n", "go", "go test ./..."),
        ("Cargo.toml", "[package]\nname = 'x'\nversion = '1.0.0'\n", "cargo", "cargo test"),
    ],
)
def test_go_and_rust_are_recognized_and_reported_if_missing(
    file: str, text: str, program: str, shown: str, tmp_path: Path
) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "lacking").mkdir()
    fake = 'case $1 in version) echo go version go1.99.1 ;; --version) echo 1.99.1 ;; *) echo "called ${0##*/} $*" ;; esac'
    done = do(tmp_path / "with", {file: text, "x_test.go": ""}, fakes={program: fake, "gibil-runtime": "exit 0"})
    assert done[-1].exit_status == 0, done
    assert f"called {shown}" in done[-1].output
    done = do(tmp_path / "lacking", {file: text, "x_test.go": ""})
    assert (done[0].name, done[0].exit_status, done[-1].exit_status) == ("runtime", 1, None), done
    assert "can't be installed here; choose an image that has it" in done[0].output


def test_an_unknown_project_gets_instructions(tmp_path: Path) -> None:
    (done,) = do(tmp_path, {"README.md": "Hello"})
    assert (done.name, done.exit_status) == ("test", 1)
    assert "gibil: found no way to test this project" in done.output
    assert ".gibil.yml" in done.output


def test_a_gibil_yml_replaces_all_detection(tmp_path: Path) -> None:
    own = """
env: {GREETING: hello}
tasks:
  - {name: first, run: 'echo "LATER=from first" >>"$GITHUB_ENV"; echo $GREETING'}
  - {name: breaks, run: exit 3}
  - {name: not now, run: echo never}
  - {name: last, run: 'echo "$LATER"', if: failure()}
"""
    done = do(tmp_path, {".gibil.yml": own, "Makefile": "test:\n\tfalse\n"})
    assert [(task.name, task.exit_status) for task in done] == [("first", 0), ("breaks", 3), ("not now", None), ("last", 0)]
    assert done[0].output == "hello\n"
    assert done[3].output == "from first\n"


def test_the_installed_runtime_is_accepted_and_another_is_rejected_by_name(tmp_path: Path) -> None:
    have = f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in ("right", "wrong"):
        (tmp_path / folder).mkdir()
    own = "runtime: {{python: '{}'}}\ntasks: [{{name: t, run: python3 --version}}]\n"
    set_up, task = do(tmp_path / "right", {".gibil.yml": own.format(have)})
    assert (set_up.name, set_up.exit_status, task.exit_status) == ("set up", 0, 0), set_up.output
    assert f"gibil: python {have}" in set_up.output
    set_up, task = do(tmp_path / "wrong", {".gibil.yml": own.format("2.9")})
    assert (set_up.exit_status, task.exit_status) == (1, None)
    assert f"gibil: python 2.9 is requested (runtime), but this machine has python3 is {have}" in set_up.output


def test_a_second_python_becomes_the_python_of_the_tasks(tmp_path: Path) -> None:
    own = "runtime: {python: 3.99}\ntasks: [{name: t, run: python3 --version}]\n"
    set_up, task = do(tmp_path, {".gibil.yml": own}, fakes={"python3.99": "echo Python 3.99.1"})
    assert set_up.exit_status == 0, set_up.output
    assert task.output == "Python 3.99.1\n"


def test_only_missing_packages_are_requested_from_the_package_manager(tmp_path: Path) -> None:
    own = "packages: [libone, libtwo]\ntasks: [{name: t, run: 'true'}]\n"
    dpkg = 'test "$4" = libone -o -f "$HOME/installed" && printf installed || exit 1'
    fakes = {"dpkg-query": dpkg, "apt-get": 'echo "apt-get $*"; touch "$HOME/installed"', "id": "echo 0"}
    for folder in ("missing", "present"):
        (tmp_path / folder).mkdir()
    lacking = do(tmp_path / "missing", {".gibil.yml": own}, without=("id",), fakes=fakes)[0]
    assert lacking.exit_status == 0, lacking.output
    assert lacking.output.splitlines() == [
        "gibil: installing libtwo",
        "apt-get update -q",
        "apt-get install -q -y --no-install-recommends libtwo",
    ]
    fakes["dpkg-query"] = "printf installed"
    present = do(tmp_path / "present", {".gibil.yml": own}, without=("id",), fakes=fakes)[0]
    assert present.output == "gibil: all packages are installed already\n"


def test_missing_packages_without_root_are_reported_in_one_sentence(tmp_path: Path) -> None:
    own = "packages: [libone]\ntasks: [{name: t, run: 'true'}]\n"
    set_up, task = do(tmp_path, {".gibil.yml": own}, without=("id",), fakes={"dpkg-query": "exit 1", "id": "echo 1000"})
    assert (set_up.exit_status, task.exit_status) == (1, None)
    assert "only root can install them" in set_up.output


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"ruff.toml": ""}, "uvx ruff check"),
        ({"pyproject.toml": "[tool.ruff.lint]\n"}, "uvx ruff check"),
        ({"setup.cfg": "[flake8]\n"}, "uvx flake8"),
        ({".pre-commit-config.yaml": "repos: []\n"}, "uvx pre-commit run --all-files"),
        ({"Makefile": "lint: ; @exit 5\n"}, "make lint"),
    ],
)
def test_lint_runs_the_linter_that_the_project_is_set_up_for(files: dict[str, str], command: str, tmp_path: Path) -> None:
    fake = 'case $1 in --version) echo 1.2.3 ;; -n) ;; *) echo "called ${0##*/} $*"; exit 5 ;; esac'
    done = do(tmp_path, files, word="lint", fakes={"uv": "echo uv 0.9.1", "uvx": fake, "make": fake})
    assert (done[-1].name, done[-1].exit_status) == ("lint", 5), done
    assert f"called {command}" in done[-1].output


def test_a_linter_that_cannot_be_made_available_fails_the_run(tmp_path: Path) -> None:
    done = do(tmp_path, {"Makefile": "lint: ; ruff check\n"}, word="lint", fakes={"make": 'test "$1" = -n && echo ruff check'})
    assert (done[-1].name, done[-1].exit_status) == ("lint", 127), done
    assert "gibil: found Makefile:1 (lint), but ruff isn't on this machine; looking further" in done[-1].output
    assert done[-1].nothing_to_do == ""


def test_lint_of_a_project_without_linters_has_nothing_to_do(tmp_path: Path) -> None:
    (done,) = do(tmp_path, {"README.md": "Hello"}, word="lint")
    assert (done.name, done.exit_status) == ("lint", 0)
    assert done.nothing_to_do.startswith("found no linter that this project is set up for")
    assert "; add a target lint to" in done.nothing_to_do


def test_format_of_a_project_without_formatters_has_nothing_to_do(tmp_path: Path) -> None:
    (done,) = do(tmp_path, {"README.md": "Hello"}, word="format")
    assert (done.name, done.exit_status) == ("format", 0)
    assert done.nothing_to_do.startswith("found no formatter that this project is set up for")
    assert "; configure one, such as [tool.ruff.format]" in done.nothing_to_do


@pytest.mark.parametrize(
    ("files", "program", "command"),
    [
        ({"go.mod": "module x\n\ngo 1.21\n", "a.go": "", "vendor/b.go": ""}, "gofmt", "gofmt -w a.go"),
        ({"Cargo.toml": "[package]\nname = 'x'\nversion = '1.0.0'\n"}, "cargo", "cargo fmt --all"),
        ({".prettierrc": "", "package.json": "{}"}, "npx", "npx prettier --write ."),
    ],
)
def test_format_runs_the_projects_formatter(files: dict[str, str], program: str, command: str, tmp_path: Path) -> None:
    repository(tmp_path / "project", files)
    fake = 'case $1 in version) echo go version go1.99.1 ;; --version) echo v22.1.0 ;; *) echo "called ${0##*/} $*" ;; esac'
    others = ("go", "cargo", "rustfmt", "node", "npm", "gibil-runtime")
    tools = {"xargs": f'exec {shutil.which("xargs")} "$@"'}
    fakes = tools | dict.fromkeys(others, fake) | {program: 'echo "called ${0##*/} $*"'}
    done = do(tmp_path, {}, word="format", fakes=fakes)
    assert (done[-1].name, done[-1].exit_status) == ("format", 0), done
    assert f"called {command}\n" in done[-1].output


def test_format_says_that_the_hooks_of_pre_commit_cannot_be_fetched(tmp_path: Path) -> None:
    hooks = "repos:\n  - repo: https://example.invalid/hooks\n    hooks:\n      - id: ruff-format\n"
    fakes = {"uv": "echo uv 0.9.1", "uvx": "exit 3", "timeout": "exit 128"}
    done = do(tmp_path, {".pre-commit-config.yaml": hooks}, word="format", fakes=fakes)[-1]
    assert (done.name, done.exit_status, done.nothing_to_do) == ("format", 127, "")
    assert "its hooks at https://example.invalid/hooks can't be fetched from this machine" in done.output
    assert "write a workflow .gibil/workflows/format.yml" in done.output
    assert ".gibil.yml" not in done.output


def test_files_that_exist_before_the_formatter_are_not_its_changes(tmp_path: Path) -> None:
    project = repository(tmp_path / "project", {"ruff.toml": "", "a.py": "x\n"})
    for name in ("node_modules/x", "na*me [1]#!\\ é", "-log"):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text("installed\n")
    uvx = "echo y >a.py; echo z >new.py; mkdir name; echo z >'name/na!me 1'; echo log >>-log"
    (done,) = [
        each for each in do(tmp_path, {}, word="format", fakes={"uv": "echo uv 0.9.1", "uvx": uvx}) if each.name == "format"
    ]
    assert done.exit_status == 0, done
    changed = git(project, "status", "--porcelain", "--untracked-files=all")
    assert changed.splitlines() == [" M a.py", '?? "name/na!me 1"', "?? new.py"]


def test_an_installed_package_has_the_workflows_and_the_shell_programs(tmp_path: Path) -> None:
    """Compare with the contents of a wheel built by setuptools; skipped if it isn't installed."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed: sh .ci/install test")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip("building needs setuptools 77, as pyproject.toml says")
    top = Path(__file__).parents[2]
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(top / name, copy)
    shutil.copytree(top / "gibil_bot", copy / "gibil_bot", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(top / "workflows", copy / "workflows")
    build = "import setuptools.build_meta as backend; backend.build_wheel('.')"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True, timeout=patient(120))
    assert done.returncode == 0, done.stderr
    (wheel,) = copy.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"gibil_bot/_workflows/{name}.yml" for name in ("test", "lint", "format")} <= set(names)
    assert {"gibil/__init__.py", "gibil/py.typed", "gibil_bot/sdk/opening.py"} <= set(names)
    assert not [name for name in names if name.startswith(("gibil_bot/sdk/site/gibil/__", "gibil_bot/packaging/"))]
    (launcher,) = (each for each in zipfile.ZipFile(wheel).infolist() if each.filename.endswith(".data/scripts/gibil"))
    assert launcher.external_attr >> 16 & 0o111, "it is installed as a program"
    scripts = {f"gibil_bot/scripts/{path.name}" for path in (top / "gibil_bot/scripts").glob("*.sh")}
    assert scripts
    assert scripts <= set(names)
