"""`gibil check` and `gibil plan`: what is wrong with a workflow, and what it would do."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gibil_bot.cli.output import Paint, json_option, print_json
from gibil_bot.errors import UsageError

READ_LIMIT_BYTES = 64 * 1024 + 1


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Validate workflow files, and `.gibil.yml`.

    \b
    gibil check .gibil.yml .gibil/workflows/*.yml
    """
    from gibil_bot.planning.checking import check_files

    problems = check_files({str(path): _read(path) for path in files})
    if as_json:
        print_json(
            {
                "files": len(files),
                "problems": [{"file": p.path, "line": p.line, "column": p.column, "message": p.problem} for p in problems],
            }
        )
    paint = Paint(sys.stderr)
    for problem in problems:
        click.echo(paint.bad(problem.message), err=True)
    if problems:
        sys.exit(2)
    click.echo(paint.good(f"{len(files)} {'file is' if len(files) == 1 else 'files are'} valid"), err=True)


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--event", "event_file", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A recorded payload: a comment, or a pull request that changed.",
)  # fmt: skip
@json_option
def plan(file: Path, event_file: Path, as_json: bool) -> None:
    """Print what a workflow would do on an event, and do nothing.

    \b
    gibil plan .gibil/workflows/docs.yml --event comment.json
    """
    from gibil_bot.planning.checking import plan_for_event

    plans = plan_for_event(str(file), _read(file), event_file.read_bytes())
    print_json(plans)
    if not plans and not as_json:
        click.echo("gibil: this event starts nothing in that workflow", err=True)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
