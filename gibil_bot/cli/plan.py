"""`gibil plan`: what a workflow would do on an event."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gibil_bot.agent_task import AgentPlan
from gibil_bot.cli.check import read_workflow
from gibil_bot.cli.output import json_option, print_json, print_message, print_text
from gibil_bot.cli.replay import guess_event
from gibil_bot.config import load_settings
from gibil_bot.errors import UsageError
from gibil_bot.humanize import duration_setting
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
)
from gibil_bot.planning.workflow import PULL_REQUEST_ACTIONS
from gibil_bot.workflows_dir import engine_names, read_workflows, shipped_workflows

if TYPE_CHECKING:
    from gibil_bot.planning.plan import EventContext


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

    The event is a COMMENT, an action of a pull request, or a recorded payload. Without a payload, an example of a pull request
    is used: number 1, from the branch 'topic' into 'main'.

    \b
    gibil plan .gibil/workflows/preview.yml '/gibil preview target=demo'
    gibil plan .gibil/workflows/docs.yml --pull-request opened
    gibil plan .gibil/workflows/docs.yml --event comment.json --json
    """
    from gibil_bot.planning.plan import plan_view

    events = [each for each in (comment, action, event_file) if each is not None]
    if len(events) != 1:
        raise UsageError("name one event: a comment ('/gibil test'), --pull-request opened, or --event FILE")
    plans = _plans(file, _event(file, comment, action, event_file))
    if as_json:
        print_json([plan_view(each) for each in plans])
    else:
        print_text("\n".join(plan_text(each) for each in plans))
    if not plans and comment is None:
        print_message(f"this event starts nothing in {file}")


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
        pull_request = _example_pull_request(1)
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
    catalogue = planning.catalogue(
        shipped if is_own else {file.name: read_workflow(file)},
        {".gibil.yml": read_workflow(file)} if is_own else {},
        base_ref="base",
        engines=engine_names(load_settings().models.engines),
    )
    if catalogue.problems:
        more = len(catalogue.problems) - 1
        note = f" (and {more} more: gibil check {file})" if more else ""
        raise UsageError(f"{catalogue.problems[0].message}{note}", code="WORKFLOW_INVALID")
    if isinstance(event, CommentCreated):
        context = _event_context(event, _example_pull_request(event.number), event.author.login, event.event_name)
        found = commands.parse(event.body, planning.free_text_words(catalogue))
        if not found:
            print_message("there is no command in this comment; a command is a line such as /gibil test")
            return ()
        words = {workflow.command for workflow in catalogue.workflows if workflow.command}
        if not any(command.word in words for command in found):
            starts = f"its command is /gibil {min(words)}" if words else "it has no command; try --pull-request opened"
            print_message(f"/gibil {found[0].word} doesn't start {file}: {starts}")
        return tuple(
            plan for command in found if command.word in words for plan in planning.for_command(catalogue, command, context)
        )
    if isinstance(event, PullRequestChanged):
        context = _event_context(event, event.pull_request, event.sender.login, "pull_request")
        return planning.for_pull_request(catalogue, event.action, context)[0]
    return ()


def plan_text(plan: Plan) -> str:
    """Render a plan for people: the machine, the tasks and which of them are skipped, inputs, secrets and limits."""
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
        if task.agent is not None:
            lines.append(f"  {'':<12} {'':<{width}}  {_limits(task.agent)}")
    if plan.inputs:
        values = {name: f"{value.splitlines()[0]} …" if "\n" in value else value for name, value in plan.inputs.items()}
        lines.append(f"  inputs       {' '.join(f'{name}={value}' for name, value in values.items())}")
    if plan.secrets:
        lines.append(f"  secrets      {', '.join(plan.secrets)}")
    lines.append(f"  stops after  {duration_setting(int(plan.timeout_s))}, all tasks together")
    newer = "a newer run cancels this one" if plan.cancel_in_progress else "a newer run waits for this one"
    lines.append(f"  group        {plan.concurrency_group}: {newer}")
    lines += [f"  note         {note}" for note in plan.notes]
    return "\n".join(lines) + "\n"


def _limits(agent: AgentPlan) -> str:
    """Return who works on a task instead of a script, and its limits."""
    parts = [f"an agent: {agent.engine}" + (f" with {agent.model}" if agent.model else ""), f"{agent.max_turns} turns"]
    parts += [f"{agent.budget_usd} USD"] if agent.budget_usd is not None else []
    parts += [f"{agent.max_tokens:,} tokens"] if agent.max_tokens is not None else []
    parts += [f"at most {agent.rounds} rounds until {agent.until} passes"] if agent.until else []
    parts += [f"{agent.attempts} attempts"] if agent.attempts > 1 else []
    parts.append(f"may reach {', '.join(agent.allow) or 'only the model'}")
    return "; ".join(parts)


def _when(plan: Plan, task: TaskPlan) -> str:
    """Return in which cases a task runs, depending on how the tasks before it end."""
    from gibil_bot.planning import expressions

    runs_after = [
        status
        for status in ("success", "failure", "cancelled")
        if expressions.evaluate(
            task.condition, status=status, inputs=plan.inputs, github=plan.github, env={**plan.env, **task.env}
        )
    ]
    if runs_after == ["success"]:
        return "runs; its tasks are detected in the project's files on the machine" if task.detect else "runs"
    if not runs_after:
        return f"skipped: if: {task.condition}"
    if "success" not in runs_after:
        return f"runs only after {' or '.join('a failure' if s == 'failure' else 'a cancellation' for s in runs_after)}"
    others = " and ".join("failures" if status == "failure" else "a cancellation" for status in runs_after[1:])
    return f"runs, also after {others}"


def _event_context(
    event: CommentCreated | PullRequestChanged, pull_request: PullRequest, actor: str, name: str
) -> EventContext:
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


def _example_pull_request(number: int) -> PullRequest:
    """Return a pull request: a comment's payload has only its number, and the bot would read the rest from GitHub."""
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
