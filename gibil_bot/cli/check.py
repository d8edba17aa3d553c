"""`gibil check`: every problem of workflow files."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from gibil_bot.cli.output import Paint, json_option, print_json, write_err
from gibil_bot.errors import UsageError
from gibil_bot.limits import WORKFLOW_FILE_BYTES
from gibil_bot.model import UnusableFile

READ_LIMIT_BYTES = WORKFLOW_FILE_BYTES + 1


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Validate workflow files and `.gibil.yml`.

    Reports every problem of every file.

    Without FILES: this directory's `.gibil.yml` and `.gibil/workflows/`. For a directory, its `.gibil/workflows/` and
    `.gibil.yml` are checked if they exist, else its `*.yml` files.

    \b
    gibil check
    gibil check .gibil.yml .gibil/workflows/*.yml
    gibil check ~/operator-workflows --json
    """
    from gibil_bot.planning.plan import check_files
    from gibil_bot.workflows_dir import engine_names

    paths = _workflow_files(files)
    engines = engine_names(Path(folder) if (folder := os.environ.get("GIBIL_ENGINES")) else None)
    problems = check_files({str(path): _unusable(path) or read_workflow(path) for path in paths}, engines)
    if as_json:
        print_json(
            {
                "files": len(paths),
                "problems": [{"file": p.path, "line": p.line, "column": p.column, "message": p.problem} for p in problems],
            }
        )
    paint = Paint(sys.stderr)
    for problem in problems:
        write_err(f"{paint.bad(problem.message)}\n")
    if problems:
        sys.exit(2)
    valid = "1 file is valid" if len(paths) == 1 else f"{len(paths)} files are valid"
    write_err(f"{paint.good(valid)}\n")


def _workflow_files(named: tuple[Path, ...]) -> list[Path]:
    """Return the files to check, each once. Raises UsageError if there are none."""
    found: dict[Path, None] = {}
    for path in named or (Path(),):
        if not path.is_dir():
            found[path] = None
            continue
        inside = [path / name for name in (".gibil.yml", ".gibil.yaml") if _is_file_or_link(path / name)]
        own = path / ".gibil" / "workflows"
        plain = named and not inside and not (path / ".git").exists()
        folder = own if own.is_dir() else path if plain else None
        if folder is not None:
            inside += sorted(file for file in folder.iterdir() if file.suffix in (".yml", ".yaml") and file not in inside)
        if not inside:
            here = "this directory" if not named else f"'{path}'"
            raise UsageError(
                f"there is no .gibil.yml and no workflow (.gibil/workflows/*.yml) in {here}; name the files: gibil check FILE…"
            )
        found |= dict.fromkeys(inside)
    return list(found)


def _is_file_or_link(path: Path) -> bool:
    return path.is_file() or path.is_symlink()


def _unusable(path: Path) -> UnusableFile | None:
    """Return why the bot would not read a file that isn't a plain file of its repository, or None (runs/commit_files.py)."""
    parts = path.absolute().parts
    if parts[-3:-1] == (".gibil", "workflows"):
        depth = 3
    elif path.name in (".gibil.yml", ".gibil.yaml"):
        depth = 1
    else:
        return None  # an operator's file, which may be a link
    folders = [Path(*parts[:end]) for end in range(len(parts) - depth + 1, len(parts))]
    if any(folder.is_symlink() for folder in folders):
        return UnusableFile.of("symlink", is_folder=True)
    if path.is_symlink():
        target, root = Path(os.path.realpath(path)), Path(os.path.realpath(Path(*parts[:-depth])))
        if not target.is_relative_to(root) or not target.is_file():
            return UnusableFile.of("symlink")
    return None


def read_workflow(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
