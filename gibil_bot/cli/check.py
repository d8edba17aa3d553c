"""`gibil check` and `gibil plan`: what is wrong with a workflow, and what it would do."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot.cli.output import Paint, json_option, print_json, print_text, say, write_err
from gibil_bot.cli.replay import guess_event
from gibil_bot.config import load_settings
from gibil_bot.errors import UsageError
from gibil_bot.humanize import duration_setting
from gibil_bot.limits import WORKFLOW_FILE_BYTES
from gibil_bot.model import (
    CommentCreated,
    Event,
    Person,
    Plan,
    PullRequest,
    PullRequestChanged,
    Repository,
    TaskPlan,
    Trust,
    UnusableFile,
)
from gibil_bot.planning.workflow import PULL_REQUEST_ACTIONS
from gibil_bot.workflows_dir import read_workflows, shipped_workflows

if TYPE_CHECKING:
    from gibil_bot.planning.plan import EventContext

READ_LIMIT_BYTES = WORKFLOW_FILE_BYTES + 1


@click.command()
@click.argument("files", nargs=-1, type=click.Path(exists=True, path_type=Path))
@json_option
def check(files: tuple[Path, ...], as_json: bool) -> None:
    """Validate workflow files and `.gibil.yml`.

    Every problem of every file is reported.

    Without FILES: this directory's `.gibil.yml` and `.gibil/workflows/`. A directory stands for the workflows in it: those
    of its `.gibil/workflows/` and its `.gibil.yml` where it has them, else its `*.yml` files.

    \b
    gibil check
    gibil check .gibil.yml .gibil/workflows/*.yml
    gibil check ~/operator-workflows --json
    """
    from gibil_bot.planning.plan import check_files

    paths = _workflow_files(files)
    problems = check_files({str(path): _unusable(path) or _read(path) for path in paths})
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
    """The files to check, each once. Raises UsageError where there is none."""
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
    """A file that the bot would not read, since it is no plain file of its repository: see runs/commit_files.py."""
    parts = path.absolute().parts
    if parts[-3:-1] == (".gibil", "workflows"):
        depth = 3
    elif path.name in (".gibil.yml", ".gibil.yaml"):
        depth = 1
    else:
        return None  # the operator's, which are read wherever they are
    folders = [Path(*parts[:end]) for end in range(len(parts) - depth + 1, len(parts))]
    if any(folder.is_symlink() for folder in folders):
        return UnusableFile.of("symlink", is_folder=True)
    if path.is_symlink():
        target, root = Path(os.path.realpath(path)), Path(os.path.realpath(Path(*parts[:-depth])))
        if not target.is_relative_to(root) or not target.is_file():
            return UnusableFile.of("symlink")
    return None


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("comment", required=False)
@click.option(
    "--pull-request", "action", type=click.Choice(PULL_REQUEST_ACTIONS),
    help="Plan for a pull request that was opened, pushed to (synchronize) or reopened.",
)  # fmt: skip
@click.option(
    "--event", "event_file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Plan for a recorded payload: a comment, or a pull request that changed.",
)  # fmt: skip
@json_option
def plan(file: Path, comment: str | None, action: str | None, event_file: Path | None, as_json: bool) -> None:
    """Print what a workflow would do on an event, and do nothing.

    The event is a COMMENT, an action of a pull request, or a recorded payload. Without a payload, the pull request is an
    invented one: number 1, from the branch 'topic' into 'main'.

    \b
    gibil plan .gibil/workflows/preview.yml '/gibil preview target=demo'
    gibil plan .gibil/workflows/docs.yml --pull-request opened
    gibil plan .gibil/workflows/docs.yml --event comment.json --json
    """
    from gibil_bot.planning.plan import plan_view

    given = [each for each in (comment, action, event_file) if each is not None]
    if len(given) != 1:
        raise UsageError("name one event: a comment ('/gibil test'), --pull-request opened, or --event FILE")
    plans = _plans(file, _event(file, comment, action, event_file))
    if as_json:
        print_json([plan_view(each) for each in plans])
    else:
        print_text("\n".join(plan_text(each) for each in plans))
    if not plans and comment is None:
        say(f"this event starts nothing in {file}", sys.stderr)


def _event(file: Path, comment: str | None, action: str | None, event_file: Path | None) -> Event:
    from gibil_bot.github import webhook

    if event_file is not None:
        payload = event_file.read_bytes()
        return webhook.narrow(guess_event(payload, event_file), payload)
    repository = Repository(
        id=1,
        full_name="owner/repository",
        clone_url="https://github.com/owner/repository.git",
        default_branch="main",
    )
    person = Person(login="you")
    if action is not None:
        pull_request = _invented_pull_request(1)
        return PullRequestChanged(
            installation_id=1, repository=repository, pull_request=pull_request, action=action, sender=person
        )
    body = comment or ""
    if "/gibil" not in body:
        body = f"/gibil {body}"
    return CommentCreated(installation_id=1, repository=repository, number=1, comment_id=1, author=person, body=body)


def _plans(file: Path, event: Event) -> tuple[Plan, ...]:
    from gibil_bot.github import commands
    from gibil_bot.planning import plan as planning

    is_own = file.name in (".gibil.yml", ".gibil.yaml")
    shipped = {} if not is_own else read_workflows(shipped_workflows())
    known = planning.catalogue(
        shipped if is_own else {file.name: _read(file)}, {".gibil.yml": _read(file)} if is_own else {}, base_ref="base"
    )
    if known.problems:
        more = len(known.problems) - 1
        note = f" (and {more} more: gibil check {file})" if more else ""
        raise UsageError(f"{known.problems[0].message}{note}", code="WORKFLOW_INVALID")
    if isinstance(event, CommentCreated):
        facts = _facts(event, _invented_pull_request(event.number), event.author.login, event.event_name)
        asked = commands.parse(event.body)
        if not asked:
            say("there is no command in this comment; a command is a line such as /gibil test", sys.stderr)
            return ()
        words = {workflow.command for workflow in known.workflows if workflow.command}
        if not any(command.word in words for command in asked):
            starts = f"its command is /gibil {min(words)}" if words else "it has no command; try --pull-request opened"
            say(f"/gibil {asked[0].word} doesn't start {file}: {starts}", sys.stderr)
        return tuple(plan for command in asked if command.word in words for plan in planning.for_command(known, command, facts))
    if isinstance(event, PullRequestChanged):
        facts = _facts(event, event.pull_request, event.sender.login, "pull_request")
        return planning.for_pull_request(known, event.action, facts)[0]
    return ()


def plan_text(plan: Plan) -> str:
    """A plan for people: the machine, the tasks and which of them are skipped, inputs, secrets and limits."""
    machine = plan.machine
    wanted = [machine.server_type or machine.size, machine.image or "", machine.location or ""]
    wanted += [f"{value} MB of {name}" for name, value in (("memory", machine.memory_mb), ("disk", machine.disk_mb)) if value]
    lines = [
        f"{plan.workflow} ({plan.path})",
        f"  machine      {', '.join(filter(None, wanted))}; destroyed after {duration_setting(machine.ttl_s)} at the latest",
    ]
    width = max((len(task.name) for task in plan.tasks), default=0)
    for number, task in enumerate(plan.tasks, start=1):
        lines.append(f"  task {number:<7} {task.name:<{width}}  {_when(plan, task)}".rstrip())
    if plan.inputs:
        lines.append(f"  inputs       {' '.join(f'{name}={value}' for name, value in plan.inputs.items())}")
    if plan.secrets:
        lines.append(f"  secrets      {', '.join(plan.secrets)}")
    lines.append(f"  stops after  {duration_setting(int(plan.timeout_s))}, all tasks together")
    newer = "a newer run cancels this one" if plan.cancel_in_progress else "a newer run waits for this one"
    lines.append(f"  group        {plan.concurrency_group}: {newer}")
    lines += [f"  note         {note}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def _when(plan: Plan, task: TaskPlan) -> str:
    """Whether a task runs, for each way in which the tasks before it may end."""
    from gibil_bot.planning import expressions

    runs_after = [
        status
        for status in ("success", "failure", "cancelled")
        if expressions.evaluate(
            task.condition, status=status, inputs=plan.inputs, github=plan.github, env={**plan.env, **task.env}
        )
    ]
    if runs_after == ["success"]:
        return "runs"
    if not runs_after:
        return f"skipped: if: {task.condition}"
    if "success" not in runs_after:
        return f"runs only after {' or '.join('a failure' if s == 'failure' else 'a cancellation' for s in runs_after)}"
    others = " and ".join("failures" if status == "failure" else "a cancellation" for status in runs_after[1:])
    return f"runs, also after {others}"


def _facts(event: CommentCreated | PullRequestChanged, pull_request: PullRequest, actor: str, name: str) -> EventContext:
    from gibil_bot.planning.plan import EventContext
    from gibil_bot.wiring import machine_caps

    settings = load_settings()
    return EventContext(
        repository=event.repository,
        pull_request=pull_request,
        sha=pull_request.head_sha,
        actor=actor,
        trust=Trust.TRUSTED,
        event_name=name,
        max_ttl_s=settings.max_ttl_s,
        caps=machine_caps(settings),
    )


def _invented_pull_request(number: int) -> PullRequest:
    """A comment's payload tells the number and nothing more; the bot would ask GitHub."""
    return PullRequest(
        number=number,
        title="A pull request",
        author=Person(login="you"),
        head_sha="0" * 40,
        head_ref="topic",
        head_repository="owner/repository",
        base_ref="main",
        base_sha="0" * 40,
    )


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(READ_LIMIT_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
