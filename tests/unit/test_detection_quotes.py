"""Quotes of a project's own CI, and the `.gibil.yml` that is suggested."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from gibil_bot.cli import detect as command
from gibil_bot.detection import workflows
from gibil_bot.detection.detect import detect
from gibil_bot.detection.project import Project
from gibil_bot.errors import UsageError
from gibil_bot.planning.schema import parse_repository_file
from tests.doubles.repositories import no_git_settings, repository

__all__ = ["no_git_settings"]


def project(files: dict[str, str]) -> Project:
    return Project(frozenset(files), {path: text.encode() for path, text in files.items()})


def quotes(files: dict[str, str], purpose: str = "test") -> list[str]:
    return [str(quote) for quote in workflows.quotes(project(files), purpose)]


ACTIONS = """\
name: CI
on: push
env: &shared {A: "1"}
other: *shared
jobs:
  docs:
    steps:
      - run: tox -e docs
  tests:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/setup-python@v5
        with: {python-version: "3.12"}
      - run: pip install -e .[test]
      - name: Run the tests
        run: |
          # all of them
          export MODE=full
          python -m pytest \\
            -n auto tests
      - run: >
          uv run
          tox run
      - run: "pytest ${{ matrix.args }}"
      - run: python -m tox --version
  windows:
    runs-on: windows-latest
    steps:
      - run: pytest windows
"""


def test_commands_that_test_are_quoted_with_their_line() -> None:
    assert quotes({".github/workflows/tests.yml": ACTIONS}) == [
        "`python -m pytest -n auto tests` (.github/workflows/tests.yml:19)",
        "`uv run tox run` (.github/workflows/tests.yml:22)",
        "`pytest ${{ matrix.args }}` (.github/workflows/tests.yml:24)",
        "`python -m tox --version` (.github/workflows/tests.yml:25)",
        "`tox -e docs` (.github/workflows/tests.yml:8)",
    ]


def test_other_services_and_documents_are_quoted() -> None:
    assert quotes({".gitlab-ci.yml": "unit:\n  script:\n    - make test\n    - echo done\n"}) == [
        "`make test` (.gitlab-ci.yml:3)"
    ]
    assert quotes({".travis.yml": "language: node_js\nscript: npm test\n"}) == ["`npm test` (.travis.yml:2)"]
    agents = "# Work\nRun `make test` first, never `rm -rf`.\n```sh\n$ npm run test:unit  # fast\n```\n"
    assert quotes({"AGENTS.md": agents}) == ["`make test` (AGENTS.md:2)", "`npm run test:unit` (AGENTS.md:4)"]
    linters = "jobs:\n  style:\n    steps:\n      - run: ruff check .\n      - run: pytest\n"
    assert quotes({".github/workflows/ci.yaml": linters}, "lint") == ["`ruff check .` (.github/workflows/ci.yaml:4)"]


def test_only_rake_tasks_that_test_are_quoted() -> None:
    job = "jobs:\n  a:\n    steps:\n"
    steps = ("bundle exec rake rdoc", "rake release", "ruby -Ilib exe/rake", "bundle exec rake", "rake test:units")
    found = quotes({".github/workflows/test.yml": job + "".join(f"      - run: {step}\n" for step in steps)})
    assert [quote.split("`")[1] for quote in found] == ["ruby -Ilib exe/rake", "bundle exec rake", "rake test:units"]


def test_the_setup_steps_of_agents_are_preparation() -> None:
    text = "jobs:\n  copilot-setup-steps:\n    steps:\n      - run: npm ci\n"
    files = {".github/workflows/copilot-setup-steps.yml": text, "AGENTS.md": "```\n./run-tests.sh\n./scripts/test\n```\n"}
    found = workflows.quotes(project(files), "test")
    assert [(quote.command, quote.is_preparation) for quote in found] == [
        ("./run-tests.sh", False),
        ("./scripts/test", False),
        ("npm ci", True),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "jobs: [1, 2]\n", "jobs: {a: {steps: {run: pytest}}}\n", "jobs: {a: {steps: [{run: [pytest]}, 7, null]}}\n",
        "- 1\n", "'",
        "jobs: &a\n  b: *a\n", "\x00", "jobs:\n  a: !!python/object:os.system x\n", "", "{" * 5000,
        "jobs:\n  t:\n    steps:\n" + "      - run: pytest\n" * 9000, "a: " + "make " * 50_000,
        "jobs:\n  t:\n    steps:\n      - run: " + "make a " * 30_000 + "\n",
        "jobs:\n  t:\n    steps:\n      - run: " + "x" * 200_000 + "\n",
    ],
)  # fmt: skip
def test_broken_and_huge_files_are_read_quickly(text: str) -> None:
    started = time.process_time()
    found = quotes({".github/workflows/a.yml": text, ".gitlab-ci.yml": text, ".travis.yml": text, "AGENTS.md": text})
    assert len(found) <= 25
    assert time.process_time() - started < 15


PYTHON = {
    "pyproject.toml": '[build-system]\nrequires = []\n[project]\nname = "a"\nrequires-python = ">=3.12"\n'
    '[dependency-groups]\ntest = ["pytest"]\n',
    "tests/test_a.py": "import pytest\n",
}


def test_the_suggestion_does_what_detection_does() -> None:
    found = detect(project(PYTHON), "test")
    assert (
        found.suggestion
        == """\
runtime:
  python: "3.13"
tasks:
  - name: install
    prepare: true
    run: |
      python3 -m venv "$RUNNER_TEMP/venv"
      . "$RUNNER_TEMP/venv/bin/activate"
      echo "$RUNNER_TEMP/venv/bin" >>"$GITHUB_PATH"
      echo "VIRTUAL_ENV=$VIRTUAL_ENV" >>"$GITHUB_ENV"
      pip install --upgrade pip
      pip install -e . --group test pytest
  - name: test
    run: python -m pytest
"""
    )


def test_without_facts_the_suggestion_is_the_ci() -> None:
    text = "jobs:\n  test:\n    steps:\n      - run: sudo apt-get install -y fpc\n      - run: ./scripts/run-tests --all\n"
    assert (
        detect(project({".github/workflows/ci.yml": text}), "test").suggestion
        == """\
# .github/workflows/ci.yml:5 runs this
tasks:
  - name: install
    prepare: true
    run: apt-get install -y fpc
  - name: test
    run: ./scripts/run-tests --all
"""
    )


SUGGESTED = [
    PYTHON,
    {**PYTHON, "uv.lock": "", "web/package.json": "{}"},
    {"package.json": '{"scripts": {"test": "node --test"}, "engines": {"node": ">=22"}}', "package-lock.json": "{}"},
    {"Makefile": "test:\n\tprove t\n"},
    {"go.mod": "module a\n\ngo 1.23\n", "a_test.go": "package a\n"},
    {"Cargo.toml": '[package]\nname = "a"\n'},
    {"api/pyproject.toml": '[project]\nname = "a"\n', "api/test_a.py": "import unittest\n",
     "we b/package.json": '{"scripts": {"test": "x"}}'},
    {".github/workflows/c.yml": "jobs:\n  test:\n    steps:\n      - run: 'pytest -k \"a: b # c\"'\n      - run: pytest\n"},
    {"tests/#a: 'b'.py": "import unittest\ndef test_x(): 1\n", "requirements.txt": "", "test_a.py": "import unittest\n"},
]  # fmt: skip


@pytest.mark.parametrize("files", SUGGESTED)
def test_every_suggestion_is_a_valid_file(files: dict[str, str]) -> None:
    text = detect(project(files), "test").suggestion
    assert parse_repository_file(".gibil.yml", text.encode()).tasks
    assert yaml.safe_load(text)["tasks"][-1]["run"].strip()
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_a_checkout_is_read_as_it_is_now(tmp_path: Path, no_git_settings: None) -> None:
    folder = repository(tmp_path / "checkout", {**PYTHON, ".gitignore": "ignored.py\n", "linked": ""})
    (folder / "new.toml").write_text("")
    (folder / "ignored.py").write_text("")
    (folder / "uv.lock").write_text("version = 1\n")
    (folder / "tox.ini").symlink_to("/etc/passwd")
    found = command.read(folder)
    assert {"pyproject.toml", "new.toml", "uv.lock"} <= found.paths
    assert "ignored.py" not in found.paths
    assert "tox.ini" not in found.files
    assert "install: uv sync --locked --group test ← uv.lock (groups test)" in command.text(detect(found, "test"))
    assert command.read(tmp_path).paths > {"checkout/pyproject.toml"}


def test_the_file_is_written_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="found no way to test this project"):
        command.write(tmp_path, force=False)
    (tmp_path / "Makefile").write_text("test:\n\ttrue\n")
    file, content = command.write(tmp_path, force=False)
    assert file.read_text() == content == "tasks:\n  - name: test\n    run: make test\n"
    with pytest.raises(UsageError, match="exists already; --force replaces it"):
        command.write(tmp_path, force=False)
    file.write_text("tasks: []\n")
    command.write(tmp_path, force=True)
    assert file.read_text() == content
