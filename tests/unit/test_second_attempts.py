"""A failed test is run again only if it starts real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

FAILS_ONCE = """
from pathlib import Path

def test_fails_once() -> None:
    seen = Path(__file__).with_suffix(".seen")
    first = not seen.exists()
    seen.touch()
    assert not first
"""


def outcome(project: Path, *arguments: str) -> str:
    """Return pytest's last line for tests that fail at the first run, with this repository's settings."""
    for marker in project.rglob("*.seen"):
        marker.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return (done.stdout.strip().splitlines() or [done.stderr])[-1]


@pytest.mark.slow
def test_only_tests_that_start_processes_get_a_second_attempt(tmp_path: Path) -> None:
    pytest.importorskip("pytest_rerunfailures", reason="needs the plugin pytest-rerunfailures")
    for folder in ("unit", "contracts", "journeys"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        (tmp_path / "tests" / folder / f"test_{folder}.py").write_text(FAILS_ONCE)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copy(REPOSITORY / "tests" / "conftest.py", tmp_path / "tests")
    (tmp_path / "tests" / "doubles").symlink_to(REPOSITORY / "tests" / "doubles")
    assert "2 failed, 1 passed, 1 rerun" in outcome(tmp_path)
    assert "1 failed in" in outcome(tmp_path, "tests/unit", "--reruns", "3")
