"""`gibil check` and `gibil plan`: what is wrong with a workflow, and what it would do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.output import Paint, json_option, print_json, say, write_err
from gibil_bot.cli.replay import guess_event
from gibil_bot.config import load_settings
from gibil_bot.errors import UsageError
from gibil_bot.model import CommentCreated, Person, Plan, PullRequest, PullRequestChanged, Trust
from gibil_bot.planning.shipped import read_workflows, shipped_workflows

if TYPE_CHECKING:
    from gibil_bot.planning.plan import Facts

READ_LIMIT_BYTES = 64 * 1024 + 1


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Validate workflow files, and `.gibil.yml`.

    \b
    gibil check .gibil.yml .gibil/workflows/*.yml
    """
    from gibil_bot.planning.plan import check_files

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
        write_err(f"{paint.bad(problem.message)}\n")
    if problems:
        sys.exit(2)
    valid = "1 file is valid" if len(files) == 1 else f"{len(files)} files are valid"
    write_err(f"{paint.good(valid)}\n")


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
    from gibil_bot.planning.plan import plan_view

    plans = [plan_view(each) for each in _plans(file, event_file.read_bytes())]
    print_json(plans)
    if not plans and not as_json:
        say("this event starts nothing in that workflow", sys.stderr)


def _plans(file: Path, payload: bytes) -> tuple[Plan, ...]:
    from gibil_bot.github import commands, webhook
    from gibil_bot.planning import plan as planning

    event = webhook.narrow(guess_event(payload, file), payload)
    is_own = file.name in (".gibil.yml", ".gibil.yaml")
    shipped = {} if not is_own else read_workflows(shipped_workflows())
    known = planning.catalogue(
        shipped if is_own else {file.name: _read(file)}, {".gibil.yml": _read(file)} if is_own else {}, base_ref="base"
    )
    if known.problems:
        raise known.problems[0]
    if isinstance(event, CommentCreated):
        facts = _facts(event, _unknown_pull_request(event.number), event.author.login, "issue_comment")
        words = {workflow.command for workflow in known.workflows}
        asked = [command for command in commands.parse(event.body) if command.word in words]
        return tuple(plan for command in asked for plan in planning.for_command(known, command, facts))
    if isinstance(event, PullRequestChanged):
        facts = _facts(event, event.pull_request, event.sender.login, "pull_request")
        return planning.for_pull_request(known, event.action, facts)[0]
    return ()


def _facts(event: CommentCreated | PullRequestChanged, pull_request: PullRequest, actor: str, name: str) -> Facts:
    from gibil_bot.planning.plan import Facts

    return Facts(
        repository=event.repository,
        pull_request=pull_request,
        sha=pull_request.head_sha,
        actor=actor,
        trust=Trust.TRUSTED,
        event_name=name,
        max_ttl_s=load_settings().max_ttl_s,
    )


def _unknown_pull_request(number: int) -> PullRequest:
    """A comment's payload tells the number and nothing more; the bot would ask GitHub."""
    return PullRequest(
        number=number,
        title="",
        author=Person(login=""),
        head_sha="0" * 40,
        head_ref="",
        head_repository=None,
        base_ref="",
        base_sha="",
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
