"""Variables that a project's CI sets for its tests: the tests on machines have them, too."""

from __future__ import annotations

import pytest

from gibil_bot.detection.combine import Purpose
from gibil_bot.detection.detect import detect
from gibil_bot.detection.detected import Detection
from gibil_bot.detection.project import Project
from gibil_bot.planning.plan import check_files

WORKFLOW = """
on: push
env: { RUSTFLAGS: -D warnings, TZ: UTC }
jobs:
  lint:
    runs-on: ubuntu-latest
    env: { OTHER: job }
    steps: [{ run: ruff check }]
  test:
    runs-on: ubuntu-latest
    env:
      TZ: America/New_York
      LIMIT_JEST: yes
      SHARD: ${{ matrix.shard }}
      NPM_TOKEN: x
      npm_config_cache: /cache
      LANG: en_US.utf8
      GITHUB_EXTRA: x
      PATH: /opt/bin
    steps:
      - run: pip install -e .
        env: { STEP: install }
      - run: pytest
        env: { MODE: full }
"""


def detected(workflow: str, purpose: Purpose = "test") -> Detection:
    files = {
        ".github/workflows/test.yml": workflow.encode(),
        "pyproject.toml": b"[project]\nname = 'x'\n[tool.ruff]\n",
        "test_x.py": b"import pytest\n",
        "tox.ini": b"[testenv]\nset_env = MODE = tox\ncommands = pytest\n",
    }
    return detect(Project(frozenset(files), files), purpose)


def test_tests_have_the_variables_of_their_job_and_step() -> None:
    found = detected(WORKFLOW)
    env = {task.name: dict(task.env) for task in found.tasks}
    expected = {"RUSTFLAGS": "-D warnings", "TZ": "America/New_York", "LIMIT_JEST": "yes", "MODE": "full"}
    assert expected.items() <= env["test"].items()
    assert not {"SHARD", "NPM_TOKEN", "npm_config_cache", "LANG", "GITHUB_EXTRA", "PATH", "STEP", "OTHER"} & env["test"].keys()
    assert "TZ" not in env["install"]
    assert any(
        line.startswith("test: with RUSTFLAGS, TZ, LIMIT_JEST, MODE ← .github/workflows/test.yml:3 (its CI sets")
        for line in found.evidence
    ), found.evidence
    assert 'TZ: "America/New_York"' in found.suggestion
    assert check_files({".gibil.yml": found.suggestion.encode()}) == ()


def test_linters_have_no_variables_of_the_tests() -> None:
    assert all("TZ" not in task.env for task in detected(WORKFLOW, "lint").tasks)


def test_variables_of_a_job_with_services_may_name_them_and_are_left_out() -> None:
    text = WORKFLOW.replace("    steps:\n", "    services: { db: { image: postgres } }\n    steps:\n")
    assert all("TZ" not in task.env for task in detected(text).tasks)


@pytest.mark.parametrize("env", ["env: 1", "env: [a]", "env: { A: [x] }", 'env: { A: "a\\u0007b" }', "env: { 'A B': x }"])
def test_other_forms_of_env_are_left_out(env: str) -> None:
    text = f"jobs:\n  test:\n    {env}\n    steps: [{{ run: pytest }}]\n"
    assert all(not {"A", "A B", "a"} & task.env.keys() for task in detected(text).tasks)
