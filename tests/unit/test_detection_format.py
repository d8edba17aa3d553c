"""Which formatter a project is set up for, and what its task runs."""

from __future__ import annotations

import json

import pytest

from gibil_bot.detection.detect import detect
from gibil_bot.detection.detected import Detection
from gibil_bot.detection.project import Project


def project(files: dict[str, str]) -> Detection:
    return detect(Project(frozenset(files), {path: text.encode() for path, text in files.items()}), "format")


CI = "on: push\njobs:\n  lint:\n    runs-on: x\n    steps:\n      - run: uvx ruff format --check\n"
HOOKS = "repos:\n  - repo: https://github.com/astral-sh/ruff-pre-commit\n    hooks:\n      - id: ruff-format\n"


@pytest.mark.parametrize(
    ("files", "command"),
    [
        ({"pyproject.toml": "[tool.ruff.format]\nquote-style = 'double'\n"}, "uvx ruff format"),
        ({"pyproject.toml": "[tool.black]\n[tool.ruff]\n"}, "uvx black ."),
        ({"pyproject.toml": "[tool.black]\n", ".github/workflows/ci.yml": CI}, "uvx ruff format"),
        ({"ruff.toml": ""}, "uvx ruff format"),
        ({".pre-commit-config.yaml": HOOKS}, "uvx pre-commit run --all-files"),
        ({"go.mod": "module x\ngo 1.22\n", "a.go": ""}, "gofmt -w"),
        ({"Cargo.toml": "[package]\nname = 'x'\n", "src/lib.rs": ""}, "cargo fmt --all"),
        (
            {"package.json": json.dumps({"scripts": {"test": "jest", "format": "prettier --write src"}})},
            "npm run format",
        ),
        (
            {"package.json": json.dumps({"scripts": {"test": "jest"}, "devDependencies": {"prettier": "3"}})},
            "npx prettier --write .",
        ),
        (
            {"package.json": json.dumps({"scripts": {"test": "jest"}}), "biome.json": "{}"},
            "npx @biomejs/biome format --write .",
        ),
    ],
)
def test_the_projects_formatter_is_found(files: dict[str, str], command: str) -> None:
    found = project(files)
    assert found.problem is None
    assert [task.name for task in found.tasks][-1] == "format"
    first = next(line for line in found.evidence if line.startswith("format: "))
    assert first.startswith(f"format: {command} ← ")


@pytest.mark.parametrize(
    "files",
    [
        {"pyproject.toml": "[project]\nname = 'x'\n"},
        {".pre-commit-config.yaml": "repos:\n  - repo: https://example.com/x\n    hooks:\n      - id: mypy\n"},
        {"package.json": json.dumps({"scripts": {"test": "jest", "format": "prettier --check ."}})},
    ],
)
def test_a_project_without_a_formatter_is_left_alone(files: dict[str, str]) -> None:
    found = project(files)
    assert found.problem is not None
    assert "found no formatter" in found.problem
    assert "GIBIL_NEUTRAL" in found.tasks[-1].run


def test_the_formatter_of_a_toolchain_installs_no_dependencies() -> None:
    found = project({"go.mod": "module x\ngo 1.22\nrequire example.com/y v1.0.0\n", "go.sum": "", "a.go": ""})
    assert [task.name for task in found.tasks] == ["runtime", "format"]
