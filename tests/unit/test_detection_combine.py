"""The tasks that follow from facts: scripts that a real bash runs on prepared machines of all kinds."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gibil_bot.detection.combine import Folder, combine, detection
from gibil_bot.detection.detect import WANTED_FILES, detect, wanted
from gibil_bot.detection.detected import Detection
from gibil_bot.detection.facts import Candidate, Evidence, Facts, Runtime, Step
from gibil_bot.detection.project import Project
from gibil_bot.scripts.templates import text
from tests.doubles.patience import patient
from tests.doubles.programs import add_programs, write_program

BASH = shutil.which("bash") or "/bin/bash"


def candidate(run: str, *needs: str, rank: int = 50, check: str = "", path: str = "Makefile") -> Candidate:
    return Candidate(run=run, evidence=Evidence(path=path, line=3, text="test"), needs=needs, rank=rank, check=check)


def detected(*folders: Folder, lint: bool = False) -> Detection:
    return detection(combine(folders, "lint" if lint else "test"), (), "")


def top(*facts: Facts) -> Detection:
    return detected(Folder("", facts))


def bash(script: str, folder: Path, *, args: str = "", path: str = os.defpath, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a task's script as a machine does: `bash -e FILE`."""
    file = folder / ".task"
    file.write_text(script)
    folder.joinpath("tmp").mkdir(exist_ok=True)
    env = {"PATH": path, "HOME": str(folder), "GIBIL_INPUT_ARGS": args, "GIBIL_NEUTRAL": str(folder / "neutral"), **more}
    env |= {"GITHUB_PATH": str(folder / "path"), "GITHUB_ENV": str(folder / "env"), "RUNNER_TEMP": str(folder / "tmp")}
    return subprocess.run(
        [BASH, "-e", str(file)], cwd=folder, env=env, capture_output=True, text=True, timeout=patient(30), check=False
    )


def last(found: Detection) -> str:
    return found.tasks[-1].run


def test_each_kind_of_work_is_a_separate_task() -> None:
    evidence = Evidence(path="uv.lock")
    found = top(
        Facts(
            ecosystem="Python",
            runtimes=(Runtime(name="python", version="3.12", evidence=evidence),),
            steps=(Step(run="true", shown="uv sync", evidence=evidence, inputs=("uv.lock", "pyproject.toml")),),
            tests=(candidate("pytest"),),
            packages=("libpq-dev",),
            env={"A": "1"},
            caches=("~/.cache/uv",),
        )
    )
    assert [(task.name, task.kind, dict(task.env)) for task in found.tasks] == [
        ("runtime", "prepare", {}),
        ("install", "prepare", {"A": "1"}),
        ("test", "run", {"A": "1"}),
    ]
    assert (found.runtime, found.packages, found.caches) == ({"python": "3.12"}, ("libpq-dev",), ("~/.cache/uv",))
    assert found.key_files == ("uv.lock", "pyproject.toml")
    assert found.evidence == (
        "runtime: python 3.12 ← uv.lock",
        "runtime: packages libpq-dev",
        "install: uv sync ← uv.lock",
        "test: pytest ← Makefile:3 (test)",
    )
    assert found.problem is None


def test_the_first_command_whose_programs_exist_runs_with_the_requesters_arguments(tmp_path: Path) -> None:
    script = last(
        top(
            Facts(
                ecosystem="make",
                tests=(
                    candidate("missing-program test", "missing-program", rank=10),
                    candidate("echo wrong", check="false", rank=12),
                    candidate("printf '<%s>'", "printf", rank=20),
                    candidate("echo too late", rank=30),
                ),
            )
        )
    )
    done = bash(script, tmp_path, args="-k  'a b'")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "gibil: found Makefile:3 (test), but missing-program isn't on this machine; looking further\n"
        "gibil: found Makefile:3 (test), but it can't run here (false fails); looking further\n"
        "gibil: found Makefile:3 (test) → printf '<%s>' -k 'a b'\n<-k><'a><b'>"
    )


def test_arguments_go_where_the_command_wants_them(tmp_path: Path) -> None:
    script = last(top(Facts(ecosystem="x", tests=(candidate('test $# != 0 || set -- -n auto; echo [ "$@" ]'),))))
    assert bash(script, tmp_path).stdout.endswith("[ -n auto ]\n")
    assert bash(script, tmp_path, args="a*").stdout.endswith("[ a* ]\n")


def test_a_failing_command_is_the_tasks_result(tmp_path: Path) -> None:
    assert bash(last(top(Facts(ecosystem="x", tests=(candidate("exit 7 #"),)))), tmp_path).returncode == 7
    assert (
        bash(last(top(Facts(ecosystem="x", tests=(candidate("false && true"), candidate("true"))))), tmp_path).returncode == 1
    )


def test_each_ecosystem_runs_its_own_tests_and_one_failure_fails_the_task(tmp_path: Path) -> None:
    python = Facts(ecosystem="Python", tests=(candidate("echo python; exit 3 #"), candidate("echo never", rank=60)))
    node = Facts(ecosystem="Node.js", tests=(candidate("absent", "absent"), candidate("echo node")))
    guess = Facts(ecosystem="Shell", tests=(candidate("echo shell", rank=85),))
    done = bash(last(top(python, node, guess)), tmp_path)
    assert done.returncode == 1
    assert "gibil: Python: failed with exit status 3" in done.stdout
    assert "gibil: Node.js: passed (echo node)" in done.stdout
    assert "never" not in done.stdout
    assert "shell" not in done.stdout
    green = bash(last(top(Facts(ecosystem="Python", tests=(candidate("true"),)), node)), tmp_path)
    assert green.returncode == 0


def test_a_makefile_covers_all_ecosystems(tmp_path: Path) -> None:
    make = Facts(ecosystem="make", tests=(candidate("echo covered", rank=10),))
    done = bash(last(top(Facts(ecosystem="Python", tests=(candidate("echo python"),)), make)), tmp_path)
    assert done.stdout == "gibil: found Makefile:3 (test) → echo covered\ncovered\n"


def test_if_no_command_that_was_found_can_run_the_task_ends_like_a_command_that_does_not_exist(tmp_path: Path) -> None:
    assert bash(last(top(Facts(ecosystem="a", tests=(candidate("x", "absent"),)))), tmp_path).returncode == 127


def test_the_last_resort_runs_only_if_nothing_else_can(tmp_path: Path) -> None:
    facts = (Facts(ecosystem="a", tests=(candidate("x", "absent"),)), Facts(ecosystem="b", tests=(candidate("y", "absent"),)))
    done = bash(last(top(*facts, Facts(ecosystem="c", tests=(candidate("echo guess", rank=85),)))), tmp_path)
    assert (done.returncode, done.stdout.endswith("guess\n")) == (0, True)


def test_when_nothing_can_run_the_task_fails_and_quotes_the_projects_own_ci(tmp_path: Path) -> None:
    files = {".github/workflows/ci.yml": b"jobs:\n  test:\n    steps:\n      - run: ./run-tests.sh --all\n"}
    found = detect(Project(frozenset(files), files), "test")
    assert found.problem is not None
    done = bash(last(found), tmp_path)
    assert done.returncode == 1
    assert "gibil: found no way to test this project; looked for a test target of a Makefile" in done.stderr
    assert "gibil: its CI runs `./run-tests.sh --all` (.github/workflows/ci.yml:4)" in done.stderr
    assert "    run: ./run-tests.sh --all\n" in done.stderr


def test_a_project_without_a_linter_is_neutral(tmp_path: Path) -> None:
    found = detect(Project(frozenset(["README.md"]), {}), "lint")
    assert [task.name for task in found.tasks] == ["lint"]
    done = bash(last(found), tmp_path)
    assert done.returncode == 0
    assert "no linter" in (tmp_path / "neutral").read_text()


def test_linting_prepares_only_what_linters_need() -> None:
    evidence = Evidence(path="x")
    python = Facts(ecosystem="Python", steps=(Step(run="pip", evidence=evidence),), tests=(candidate("pytest"),))
    hooks = Facts(ecosystem="pre-commit", runtimes=(Runtime(name="uv", evidence=evidence),), linters=(candidate("uvx"),))
    assert [task.name for task in detected(Folder("", (python, hooks)), lint=True).tasks] == ["runtime", "lint"]
    assert [task.name for task in detected(Folder("", (python, hooks))).tasks] == ["install", "test"]
    target = Facts(ecosystem="make", linters=(candidate("make lint", rank=10),))
    assert [task.name for task in detected(Folder("", (target, python)), lint=True).tasks] == ["install", "lint"]


def test_folders_with_manifests_count_if_the_top_has_none(tmp_path: Path) -> None:
    files = {
        "back end/pyproject.toml": b'[project]\nname = "b"\n',
        "back end/tests/test_b.py": b"import unittest\n",
        "-web/package.json": b'{"scripts": {"test": "node --test"}}',
        "docs/package.json": b'{"scripts": {"test": "false"}}',
    }
    assert set(wanted(files)) >= set(files) - {"docs/package.json"}
    found = detect(Project(frozenset(files), files), "test")
    assert any("python -m unittest discover -v -s tests ← back end/tests/test_b.py" in line for line in found.evidence)
    assert any(line.startswith("test: Node.js in -web: npm") for line in found.evidence)
    assert not any("docs" in line for line in found.evidence)
    for path in files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(files[path])
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("python", "npm"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} in "$PWD"\n')
        (programs / name).chmod(0o755)
    done = bash(last(found), tmp_path, path=f"{programs}:{os.defpath}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"python in {tmp_path}/back end\n" in done.stdout
    assert f"npm in {tmp_path}/-web\n" in done.stdout


LIBRARY = {
    "pyproject.toml": b"[tool.pytest]\n[tool.ruff]\n",
    "requirements.txt": b"mock\n",
    "checks/test_all.py": b"import pytest\n",
    "lib/setup.py": b"setup()",
    "lib/tests/test_a.py": b"import pytest\n",
    "other/setup.py": b"setup()",
}


@pytest.mark.parametrize(
    "job",
    [
        "steps: [{ run: pytest, working-directory: ./lib/ }]",
        "steps: [{ run: pytest, working-directory: other/../lib/. }]",
        'steps: [{ run: "pip install .\\ncd lib\\npytest" }]',
        "defaults: { run: { working-directory: lib } }\n    steps: [{ run: pytest }]",
    ],
)
def test_the_folder_in_which_the_ci_tests_counts_if_the_top_is_no_package(job: str) -> None:
    workflow = f"jobs:\n  test:\n    runs-on: x\n    {job}\n".encode()
    files = {**LIBRARY, ".github/workflows/test.yml": workflow}
    assert "lib/setup.py" in wanted(files)
    found = detect(Project(frozenset(files), files), "test")
    tests = [line for line in found.evidence if line.startswith("test")]
    assert tests == ["test: python -m pytest ← lib/tests/test_a.py:1 (import pytest)"]
    assert sorted(line.split(" ←")[0] for line in found.evidence if line.startswith("install")) == [
        "install: in lib: pip install -e . pytest",
        "install: pip install -r requirements.txt pytest",
    ]
    package = {**files, "setup.py": b"setup()"}
    found = detect(Project(frozenset(package), package), "test")
    assert not any("lib/tests" in line and line.startswith("test") and "in lib" in line for line in found.evidence)


@pytest.mark.parametrize("folder", [".ci", "./.ci/"])
def test_a_folder_with_a_dot_in_its_name_is_where_the_ci_tests(folder: str) -> None:
    workflow = f"jobs:\n  test:\n    steps: [{{ run: pytest, working-directory: {folder} }}]\n".encode()
    files = {".github/workflows/test.yml": workflow, ".ci/setup.py": b"setup()", ".ci/tests/test_a.py": b"import pytest\n"}
    found = detect(Project(frozenset(files), files), "test")
    assert any(line.startswith("install: in .ci: ") for line in found.evidence), found.evidence


def test_folders_are_prepared_for_a_target_of_the_top() -> None:
    files = {
        "Makefile": b"test:\n\t$(MAKE) -C a test\n",
        "a/pyproject.toml": b'[project]\nname = "a"\n',
        "a/tests/test_a.py": b"import pytest\n",
    }
    found = detect(Project(frozenset(files), files), "test")
    assert [task.name for task in found.tasks] == ["runtime", "install", "test"]
    assert any(line.startswith("test: make: make test") for line in found.evidence)


HOSTILE = (
    "a'; touch owned; '",
    'b"$(touch owned)"',
    "c\nd; touch owned",
    "-rf",
    "`touch owned`",
    "\x1b[31mred",
    "x' \\",
    "$HOME",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(name: str, tmp_path: Path) -> None:
    evidence = Evidence(path=name, line=1, text=name)
    facts = Facts(
        ecosystem=name,
        runtimes=(Runtime(name="node", version="", accepts=(), optional=True, evidence=evidence),),
        steps=(Step(run="true", shown=name, evidence=evidence),),
        tests=(
            Candidate(run="false", evidence=evidence, needs=(name,), rank=10),
            Candidate(run="true", shown=name, evidence=evidence),
        ),
    )
    folder = f"{name}/"
    (tmp_path / name).mkdir()
    found = detected(Folder(folder, (facts,)), Folder("", (Facts(ecosystem=name, tests=(candidate("true"),)),)))
    for task in found.tasks:
        done = bash(task.run, tmp_path)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout
        assert all(line.startswith("gibil: ") for line in done.stdout.splitlines()), done.stdout
    assert not list(tmp_path.rglob("owned"))
    assert all(line.isprintable() for line in found.evidence)


def machine(folder: Path, programs: dict[str, str]) -> str:
    """Return a PATH with these programs, and those of the computer that scripts need."""
    place = folder / "bin"
    add_programs(place, "sed", "head", "cat", "mkdir", "rm", "awk", "readlink", "tr", "ln")
    for name, content in programs.items():
        write_program(place / name, content, BASH)
    return str(place)


def runtime(version: str, *accepts: str, optional: bool = False) -> Runtime:
    return Runtime(name="node", version=version, accepts=accepts, optional=optional, evidence=Evidence(path=".nvmrc", line=1))


@pytest.mark.parametrize(
    ("wanted", "status", "output"),
    [
        (runtime(""), 0, "gibil: found .nvmrc:1 → node 20.19.2\n"),
        (runtime("20"), 0, "gibil: found .nvmrc:1 → node 20.19.2\n"),
        (runtime("22", "20"), 0, "gibil: found .nvmrc:1 → node 20.19.2\n"),
        (runtime("2", optional=True), 0, "(it has 20.19.2); installing it\ntool node 2\ngibil: going on without node 2\n"),
        (runtime("22"), 1, "which this machine doesn't have (it has 20.19.2); installing it\ntool node 22\n"),
        (runtime("", "24", "22"), 1, "tool node 24\n"),
    ],
)
def test_a_machines_own_runtime_is_used_if_it_will_do(wanted: Runtime, status: int, output: str, tmp_path: Path) -> None:
    path = machine(tmp_path, {"node": "echo v20.19.2", "gibil-runtime": 'echo tool "$@"; exit 1'})
    script = top(Facts(ecosystem="Node.js", runtimes=(wanted,), tests=(candidate("true"),))).tasks[0].run
    done = bash(script, tmp_path, path=path)
    assert (done.returncode, done.stdout.endswith(output)) == (status, True), done.stdout
    if status:
        assert done.stderr.startswith("gibil: .nvmrc:1: node ")


def test_a_missing_runtime_is_installed(tmp_path: Path) -> None:
    tool = f'printf "#!{BASH}\\necho v22.5.0\\n" >{tmp_path}/bin/node; /bin/chmod 755 {tmp_path}/bin/node'
    path = machine(tmp_path, {"gibil-runtime": tool})
    script = top(Facts(ecosystem="Node.js", runtimes=(runtime("22"),), tests=(candidate("true"),))).tasks[0].run
    done = bash(script, tmp_path, path=path)
    # The tool itself reports what it installed.
    assert done.stdout == "gibil: found .nvmrc:1 → node 22, which this machine doesn't have; installing it\n", done.stderr


PIP = "\n".join(
    (
        'echo "uv $*" >>"$HOME/calls"',
        'case "$*" in *broken*) exit 1 ;; esac',
        "exit 0",
    )
)


def install(step: str, folder: Path) -> tuple[int, str, list[str]]:
    path = machine(folder, {"uv": PIP, "python": "exit 1"})
    done = bash(f"{text('detect_begin')}{text('detect_pip')}{step}\n", folder, path=path)
    calls = folder / "calls"
    return done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_requirements_are_resolved_together_and_optional_parts_that_fail_are_named(tmp_path: Path) -> None:
    status, output, calls = install("resolve -e . + --group test + -r broken.txt", tmp_path)
    assert status == 0
    assert calls == [
        "uv pip install -e . --group test -r broken.txt",
        "uv pip install -e .",
        "uv pip install --group test",
        "uv pip install -r broken.txt",
    ]
    assert "gibil: going on without -r broken.txt, which can't be installed" in output


def test_pip_replaces_uv_where_uv_reaches_no_index(tmp_path: Path) -> None:
    path = machine(tmp_path, {"uv": "exit 2", "python": 'echo "$*" >>"$HOME/calls"'})
    script = f"{text('detect_begin')}{text('detect_pip')}resolve -e . + --group test\n"
    assert bash(script, tmp_path, path=path).returncode == 0
    assert (tmp_path / "calls").read_text().splitlines() == [
        "-m pip install --quiet --disable-pip-version-check --upgrade pip",
        "-m pip install --disable-pip-version-check -e . --group test",
    ]


def test_a_project_that_cannot_be_installed_fails_the_preparation(tmp_path: Path) -> None:
    assert install("resolve -e broken + pytest", tmp_path)[0] != 0


def test_extras_that_cannot_be_installed_are_left_out(tmp_path: Path) -> None:
    status, output, calls = install("resolve -e '.[broken]' + pytest", tmp_path)
    assert status == 0
    assert calls[-2:] == ["uv pip install -e .", "uv pip install pytest"]
    assert "gibil: going on without the extras of -e .[broken], which can't be installed" in output


def test_packages_of_the_ci_that_a_distribution_does_not_have_are_left_out(tmp_path: Path) -> None:
    ci = (
        "jobs:\n  test:\n    steps:\n      - run: sudo apt-get update && sudo apt-get -qq install -y libxml2=2.9* libgone"
        " python3-dev $MORE && true\n      - run: pytest\n"
    )
    files = {".github/workflows/test.yml": ci, "pytest.ini": "", "test_a.py": "import pytest"}
    found = detect(Project(frozenset(files), {path: content.encode() for path, content in files.items()}), "test")
    assert found.packages == ("libxml2", "libgone")
    assert "runtime: packages libxml2 libgone ← .github/workflows/test.yml:4 (its CI runs `" in "\n".join(found.evidence)
    assert "packages:\n  - libxml2\n  - libgone\n" in found.suggestion
    programs = {"apt-get": 'echo "$*" >>"$HOME/calls"; case "$*" in *libgone*) exit 1 ;; esac', "dpkg-query": "exit 1"}
    programs |= {"id": "echo 0", "python3": "echo Python 3.12.1; exit 1"}
    script = found.tasks[0].run.partition("version_of()")[0]
    done = bash(script, tmp_path, path=machine(tmp_path, programs))
    assert done.returncode == 0
    assert "gibil: going on without the package libgone" in done.stdout
    assert "install -q -y --no-install-recommends libxml2" in (tmp_path / "calls").read_text().splitlines()


def test_the_versions_of_a_lock_file_are_preferred(tmp_path: Path) -> None:
    lock = '[[package]]\nname = "one"\nversion = "1.2"\n\n[[package]]\nname = "two"\nversion = "3"\n\n'
    (tmp_path / "poetry.lock").write_text(lock + '[[package]]\nname = "two"\nversion = "4"\n')
    assert install('versions_of poetry.lock\ncat "$UV_CONSTRAINT"', tmp_path)[1] == "one==1.2\n"


def test_pytest_alone_is_never_installed_silently(tmp_path: Path) -> None:
    _, output, calls = install("ensure pytest pytest 'tests/test_a.py:1 (import pytest)'", tmp_path)
    assert calls == ["uv pip install pytest"]
    assert output.startswith("gibil: found tests/test_a.py:1 (import pytest), which needs pytest, and nothing has installed it")


def test_a_second_command_is_tried_if_the_first_fails(tmp_path: Path) -> None:
    status, output, calls = install("first uv sync broken + uv sync --frozen", tmp_path)
    assert (status, calls) == (0, ["uv sync broken", "uv sync --frozen"])
    assert output == "gibil: uv sync broken failed\n"


def test_few_files_are_read_of_a_large_project() -> None:
    paths = [f"tests/test_{number}.py" for number in range(5000)] + ["pyproject.toml", "uv.lock", ".github/workflows/ci.yml"]
    found = wanted(paths)
    assert len(found) <= WANTED_FILES
    assert {"pyproject.toml", "uv.lock", ".github/workflows/ci.yml"} <= set(found)
    assert len([path for path in found if path.startswith("tests/")]) <= 40


def test_native_modules_are_compiled_with_the_headers_of_the_nodejs_that_runs(tmp_path: Path) -> None:
    path = machine(tmp_path, {"node": "case $1 in -p) echo 20.19.2 ;; *) echo v20.19.2 ;; esac"})
    headers = tmp_path / "include" / "node"
    headers.mkdir(parents=True)
    script = top(Facts(ecosystem="Node.js", runtimes=(runtime(""),), tests=(candidate("true"),))).tasks[0].run
    cache = tmp_path / ".cache/node-gyp/20.19.2"
    for patch, exists in ((1, False), (2, True)):
        lines = [f"#define NODE_{name}_VERSION {n}\n" for name, n in (("MAJOR", 20), ("MINOR", 19), ("PATCH", patch))]
        (headers / "node_version.h").write_text("".join(lines))
        assert bash(script, tmp_path, path=f"{path}:{os.defpath}").returncode == 0
        assert (cache / "include/node/node_version.h").exists() is exists
    assert (cache / "installVersion").read_text() == "11\n"


def test_playwright_that_cant_download_uses_the_distributions_chromium(tmp_path: Path) -> None:
    folder = tmp_path / "ms-playwright" / "chromium-1"
    program = f'case "$*" in *--dry-run*) echo "  Install location:    {folder}" ;; *) echo "$@" >calls; exit 1 ;; esac'
    path = machine(tmp_path, {"npx": program, "chromium": "exit 0"})
    script = f"{text('detect_begin')}{text('detect_browser')}playwright npx playwright -- chromium firefox\n"
    done = bash(script, tmp_path, path=f"{path}:{os.defpath}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "calls").read_text() == "playwright install --with-deps chromium firefox\n"
    assert (folder / "chrome-linux/chrome").resolve() == tmp_path / "bin/chromium"
    assert "tests in other browsers will fail" in done.stdout
