"""The small project of the demonstration: its repository, and the changes of its pull request.

`project/base` is the repository, `project/change` the pull request's changes, `project/failing` the same with a mistake.
Untidy changes are indented with tabs, which the repository's workflow `format` replaces.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent / "project"
TITLE = "Add the table of reciprocals"
BRANCH = "reciprocals"
FULL_NAME = "ada/sexagesimal"


def base_files() -> dict[str, bytes]:
    return _files(FOLDER / "base")


def changed_files(*, failing: bool = False, untidy: bool = False) -> dict[str, bytes]:
    files = _files(FOLDER / "change")
    if failing:
        files |= _files(FOLDER / "failing")
    if untidy:
        files |= {path: content.replace(b"    ", b"\t") for path, content in files.items() if path.endswith(".py")}
    return files


def _files(folder: Path) -> dict[str, bytes]:
    """Return path → content, without Python's caches."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
