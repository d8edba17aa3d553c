"""`gibil detect`: what a run without `.gibil.yml` would do to a checkout, and which files say so."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.errors import UsageError

if TYPE_CHECKING:
    from gibil_bot.detection.combine import Purpose
    from gibil_bot.detection.detected import Detection
    from gibil_bot.detection.project import Project

_MOST_PATHS = 20_000
_ALL_BYTES = 4 * 1024 * 1024
_SKIPPED = frozenset((".git", "node_modules", ".venv", "venv", ".tox", ".nox", "__pycache__", "target", ".mypy_cache"))


@click.command()
@click.argument("path", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--lint", is_flag=True, help="What `/gibil lint` would run, instead of the tests.")
@click.option("--format", "formats", is_flag=True, help="What `/gibil format` would run, instead of the tests.")
@json_option
def detect(path: Path, lint: bool, formats: bool, as_json: bool) -> None:
    """Print what would prepare and test a checkout, and why.

    Reads the folder's files as they are now, committed or not, and runs nothing. Each line names the file that says so. A
    command whose programs are missing on the prepared machine is skipped, and the next one is tried. `gibil init --repo` writes
    the result to a .gibil.yml, which replaces detection.

    \b
    gibil detect
    gibil detect ../other --lint
    """
    from gibil_bot.detection.detect import detect as detect_project

    found = detect_project(read(path), "lint" if lint else "format" if formats else "test")
    if as_json:
        print_json(view(found))
        return
    if (path / ".gibil.yml").exists():
        print_message(".gibil.yml exists; its tasks, if it has any, replace what is detected")
    print_text(text(found))


def view(found: Detection) -> dict[str, object]:
    """Return the JSON value of a detection."""
    return {
        "problem": found.problem,
        "runtime": dict(found.runtime),
        "packages": list(found.packages),
        "tasks": [{"name": task.name, "kind": task.kind, "env": dict(task.env), "run": task.run} for task in found.tasks],
        "evidence": list(found.evidence),
        "key_files": list(found.key_files),
        "caches": list(found.caches),
        "quotes": [
            {"command": each.command, "path": each.path, "line": each.line, "is_preparation": each.is_preparation}
            for each in found.quotes
        ],
        "suggestion": found.suggestion,
    }


def text(found: Detection) -> str:
    """Render a detection for people."""
    lines = list(found.evidence)
    if found.problem is not None:
        lines.append(found.problem)
        lines += [f"its CI runs {quote}" for quote in found.quotes if not quote.is_preparation]
        if found.suggestion:
            lines += ["", "a .gibil.yml made from that, for gibil init --repo:", "", found.suggestion.rstrip("\n")]
    return "\n".join(lines) + "\n"


def read(path: Path) -> Project:
    """Return the folder's project: its files in git, and new ones that aren't ignored; without git, all files.

    Links aren't followed, and of a large project only a part is read. Raises UsageError.
    """
    from gibil_bot.detection.detect import wanted
    from gibil_bot.detection.project import FILE_BYTES, Project

    paths = asyncio.run(_tracked(path))
    if paths is None:
        paths = _walked(path)
    files: dict[str, bytes] = {}
    size = 0
    for name in wanted(paths):
        content = _content(path / name, FILE_BYTES)
        if content is not None and size + len(content) <= _ALL_BYTES:
            size += len(content)
            files[name] = content
    return Project(frozenset(paths), files)


async def _tracked(path: Path) -> list[str] | None:
    """Return the paths of a checkout; None if the folder isn't the top of one."""
    from gibil_bot import git
    from gibil_bot.commits.local_repository import open_repository
    from gibil_bot.git import GitError

    try:
        async with open_repository(path) as repository:
            head = None if repository.is_bare else await repository.head()
            if head is None or not repository.folder.samefile(path):
                return None
            commit = await repository.commit_of_working_tree(head)
            listing = await git.run("ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, git_dir=repository.view)
    except (GitError, OSError):
        return None
    return [name for name in listing.decode("utf-8", "replace").split("\0") if name][:_MOST_PATHS]


def _walked(path: Path) -> list[str]:
    found: list[str] = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        prefix = os.path.relpath(folder, path)
        found += [name if prefix == "." else f"{prefix}/{name}" for name in sorted(names)]
        if len(found) > _MOST_PATHS:
            break
    return found[:_MOST_PATHS]


def _content(path: Path, most: int) -> bytes | None:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > most:
            return None
        return path.read_bytes()
    except OSError:
        return None


def write(path: Path, *, force: bool, purpose: Purpose = "test") -> tuple[Path, str]:
    """Write the suggested `.gibil.yml` to the folder; return its path and content. Raises UsageError."""
    from gibil_bot.detection.detect import detect as detect_project

    file = path / ".gibil.yml"
    found = detect_project(read(path), purpose)
    if not found.suggestion:
        raise UsageError(f"{found.problem or 'nothing was detected'}; write {file} yourself, see `gibil check`")
    if found.suggestion.count("\n") > 500 or len(found.suggestion) > 60_000:
        raise UsageError(f"what was detected is too long for a {file.name}; write it yourself")
    try:
        with open(file, "w" if force else "x", encoding="utf-8") as output:
            output.write(found.suggestion)
    except FileExistsError:
        raise UsageError(f"{file} exists already; --force replaces it") from None
    except OSError as error:
        raise UsageError(f"{file} can't be written: {error.strerror}") from error
    return file, found.suggestion
