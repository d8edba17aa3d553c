"""Repositories for tests of git itself, created by the real git without the configuration of the user who runs the tests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.doubles.patience import patient

NO_SETTINGS = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
ADA = {
    **NO_SETTINGS,
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.com",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.com",
}
ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/nonexistent", "LC_ALL": "C.UTF-8", **ADA}


@pytest.fixture
def no_git_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Return an environment without git settings of the user who runs the tests."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    for name, value in NO_SETTINGS.items():
        monkeypatch.setenv(name, value)


def git(folder: Path, *arguments: str, given: bytes = b"", **more: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env={**ENVIRONMENT, **more},
        input=given,
        capture_output=True,
        timeout=patient(60),
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode("utf-8", "surrogateescape").removesuffix("\n")


def repository(folder: Path, files: dict[str, str], *, branch: str = "main") -> Path:
    """Create a checkout with one commit."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "-b", branch)
    commit(folder, files)
    return folder


def commit(folder: Path, files: dict[str, str]) -> str:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "--allow-empty", "-m", "change")
    return git(folder, "rev-parse", "HEAD")


def snapshot(folder: Path) -> dict[str, bytes | str]:
    """Return every file and link below a folder: path → content."""
    found: dict[str, bytes | str] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path)
        elif path.is_file():
            found[name] = path.read_bytes()
        else:
            found[name] = ""
    return found
